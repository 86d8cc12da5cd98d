//! The store as jobs see it.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::client::Bucket;
use crate::{
    ArtifactId, Digest, Error, FileEntry, Kind, Manifest, Result, StoreOptions, StoreUri, blob,
    layout,
};

/// A bucket and prefix that hold artifacts, names, cache entries and runs. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    pub(crate) bucket: Arc<Bucket>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.bucket.place())
    }
}

impl Store {
    /// Sets up a store. No request is sent to it yet; see [`Store::reach`] and [`Store::preflight`].
    ///
    /// # Errors
    /// [`Error::Usage`] when the endpoint is no URL or would send plain http over the network.
    pub async fn connect(uri: &StoreUri, options: StoreOptions) -> Result<Self> {
        let bucket = Bucket::connect(uri, options).await?;
        Ok(Self {
            bucket: Arc::new(bucket),
        })
    }

    /// Where the store is.
    pub fn uri(&self) -> &StoreUri {
        &self.bucket.uri
    }

    /// Where an artifact's manifest lies, as `s3://` address.
    pub fn address(&self, id: &ArtifactId) -> String {
        format!("{}/{}", self.uri(), layout::manifest(id))
    }

    /// Where the content with a digest lies, as `s3://` address.
    pub fn content_address(&self, digest: &Digest) -> String {
        format!("{}/{}", self.uri(), layout::blob(digest))
    }

    /// The manifest of an artifact, checked; not yet that its content is there ([`Store::verify`]).
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Corrupt`] or [`Error::BadInput`] when it is not sound.
    pub async fn manifest(&self, id: &ArtifactId) -> Result<Manifest> {
        Ok(self.stored_manifest(id).await?.0)
    }

    /// [`Store::manifest`] with the bytes that the store holds; they may have fields that this version ignores.
    pub(crate) async fn stored_manifest(&self, id: &ArtifactId) -> Result<(Manifest, Bytes)> {
        let key = layout::manifest(id);
        let bytes = self
            .bucket
            .get(&key)
            .await?
            .ok_or_else(|| self.absent(id))?;
        let manifest = Manifest::parse(&bytes)?;
        if &manifest.id != id {
            let what = format!("{key} in {}", self.bucket.place());
            return Err(Error::corrupt(
                what,
                format!("it is the manifest of {}", manifest.id),
            ));
        }
        let made_in_secs =
            manifest.provenance.created_at.as_second() - Timestamp::now().as_second();
        if made_in_secs > 86_400 {
            tracing::warn!(%id, "the artifact says it was made more than a day in the future");
        }
        Ok((manifest, bytes))
    }

    /// The store does not have an artifact.
    pub(crate) fn absent(&self, id: &ArtifactId) -> Error {
        Error::NotFound {
            what: format!("artifact {id}"),
            store: self.bucket.place(),
            hint: Some("run the job that makes it first, or check --store and the id".to_owned()),
        }
    }

    /// Checks that every content of an artifact is in the store with its right size.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names the first file whose content is missing or short.
    pub async fn verify(&self, manifest: &Manifest) -> Result<()> {
        let contents = blob::distinct(&manifest.content.files);
        self.verify_contents(manifest, contents).await
    }

    /// [`Store::verify`] for some of its contents.
    pub(crate) async fn verify_contents(
        &self,
        manifest: &Manifest,
        contents: Vec<FileEntry>,
    ) -> Result<()> {
        let missing = blob::missing(&self.bucket, contents).await?;
        let Some(file) = missing.first() else {
            return Ok(());
        };
        Err(Error::corrupt(
            format!("artifact {} in {}", manifest.id, self.bucket.place()),
            format!(
                "the content of {} ({}) is missing or has another size; {} of {} files are affected",
                file.path,
                layout::blob(&file.sha256),
                missing.len(),
                manifest.content.files.len()
            ),
        ))
    }

    /// All committed artifacts of a kind.
    pub async fn artifacts(&self, kind: Kind) -> Result<Vec<ArtifactId>> {
        let folders = self.bucket.list_folders(&layout::artifacts(kind)).await?;
        let ids = folders
            .iter()
            .filter_map(|folder| folder.parse::<ArtifactId>().ok());
        Ok(ids.filter(|id| id.kind() == kind).collect())
    }

    /// The artifact that an id or a name means.
    ///
    /// # Errors
    /// [`Error::NotFound`] tells which names there are.
    pub async fn resolve(&self, kind: Kind, reference: &str) -> Result<ArtifactId> {
        if let Ok(id) = reference.parse::<ArtifactId>() {
            if id.kind() == kind {
                return Ok(id);
            }
            let what = format!("artifact {id}");
            return Err(Error::bad_input(
                what,
                format!("a {kind} artifact is needed here"),
            ));
        }
        if let Some(id) = self.name(kind, reference).await? {
            return Ok(id);
        }
        let names: Vec<_> = self
            .names(kind)
            .await?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let hint = if names.is_empty() {
            format!("no {kind} artifact has a name yet; run the job that makes it first")
        } else {
            format!("the names of {kind} artifacts are {}", names.join(", "))
        };
        Err(Error::NotFound {
            what: format!("{kind} artifact {reference:?}"),
            store: self.bucket.place(),
            hint: Some(hint),
        })
    }
}
