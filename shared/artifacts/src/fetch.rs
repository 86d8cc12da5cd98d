//! Fetching: the mirror first, then the store; every file verified by SHA-256.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::blob::{Source, blocking, num_parts};
use crate::client::Bucket;
use crate::mirror::PartialFile;
use crate::transfer::{Hasher, PartReader, Task};
use crate::{ArtifactId, Error, FileEntry, Manifest, Mirror, Result, Store, fault};

/// Files fetched at a time, each by a task of its own.
const FILES_IN_FLIGHT: usize = 32;

impl Store {
    /// Fetches an artifact and returns the folder with its files: read-only, and shared by all who ask.
    ///
    /// What the mirror holds is verified and not fetched again.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such artifact; [`Error::Corrupt`] when a content is missing or
    /// damaged in the store.
    pub async fn fetch(&self, id: &ArtifactId, mirror: &Mirror) -> Result<PathBuf> {
        let folder = mirror.tree(id);
        self.fetch_into(id, mirror, &folder).await?;
        Ok(folder)
    }

    /// One file of an artifact, verified, without the others; `None` where the artifact has no such file. It comes whole into
    /// memory, so a file of several parts is refused.
    ///
    /// # Errors
    /// [`Error::Usage`] for a large file; [`Error::Corrupt`] when its content is missing or damaged.
    pub async fn read(&self, manifest: &Manifest, path: &str) -> Result<Option<Bytes>> {
        let Some(entry) = manifest.file(path) else {
            return Ok(None);
        };
        if entry.parts.is_some() {
            return Err(Error::usage(
                format!("{path} of {}", manifest.id),
                "it is too large to be read at once; fetch the artifact",
            ));
        }
        let source = Source::Store(Arc::clone(&self.bucket));
        Ok(Some(source.whole(entry).await?.bytes))
    }

    /// [`Store::fetch`] of some files: a report needs the recipe of a checkpoint, not its weights. Whoever fetches all of
    /// the artifact later gets the rest.
    ///
    /// # Errors
    /// As [`Store::fetch`].
    pub async fn fetch_files(
        &self,
        id: &ArtifactId,
        mirror: &Mirror,
        wanted: impl Fn(&FileEntry) -> bool,
    ) -> Result<PathBuf> {
        let folder = mirror.tree(id);
        self.fetch_some(id, mirror, &folder, wanted).await?;
        Ok(folder)
    }

    /// Fetches an artifact into a folder of the caller's, as hard links into the mirror where possible.
    ///
    /// # Errors
    /// As [`Store::fetch`].
    pub async fn fetch_into(
        &self,
        id: &ArtifactId,
        mirror: &Mirror,
        folder: &Path,
    ) -> Result<Manifest> {
        self.fetch_some(id, mirror, folder, |_| true).await
    }

    async fn fetch_some(
        &self,
        id: &ArtifactId,
        mirror: &Mirror,
        folder: &Path,
        wanted: impl Fn(&FileEntry) -> bool,
    ) -> Result<Manifest> {
        let manifest = self.manifest(id).await?;
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let files = manifest.content.files.iter();
        let files: Vec<FileEntry> = files.filter(|file| wanted(file)).cloned().collect();
        let (near, held) = (mirror.clone(), manifest.clone());
        let files = blocking(move || {
            near.hold(&held, &files)?;
            Ok(files)
        })
        .await?;
        stream::iter(files)
            .map(|entry| {
                let place = Place {
                    mirror: mirror.clone(),
                    folder: folder.to_owned(),
                };
                let bucket = Arc::clone(&self.bucket);
                Task::spawn(async move { place.bring(&bucket, entry).await })
            })
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        Ok(manifest)
    }
}

/// Where fetched files go: into a mirror, and from there into a folder.
struct Place {
    mirror: Mirror,
    folder: PathBuf,
}

impl Place {
    /// Brings one file. Each change of thread costs a small file as much as its request, so there are few of them.
    async fn bring(self, bucket: &Arc<Bucket>, entry: FileEntry) -> Result<()> {
        let (here, wanted) = (self.mirror.clone(), entry.clone());
        // A look at a name, not at a content: short enough not to need a thread of its own.
        let may_be_here = here.blob(&entry.sha256).exists();
        if may_be_here && blocking(move || here.has(&wanted)).await? {
            return blocking(move || self.mirror.place(&entry, &self.folder)).await;
        }
        let target = self.mirror.blob(&entry.sha256);
        if entry.parts.is_some() {
            download(bucket, &entry, target).await?;
            return blocking(move || self.mirror.place(&entry, &self.folder)).await;
        }
        let content = Source::Store(Arc::clone(bucket)).whole(&entry).await?;
        blocking(move || {
            if let Some(partial) = PartialFile::open(target)? {
                partial.fill(&content)?;
            }
            fault::point("fetch:after-part");
            self.mirror.place(&entry, &self.folder)
        })
        .await
    }
}

/// Fetches a content to its place, where it appears when it is whole and its SHA-256 is right. What an earlier attempt
/// left is checked and not fetched again.
pub(crate) async fn download(
    bucket: &Arc<Bucket>,
    entry: &FileEntry,
    target: PathBuf,
) -> Result<()> {
    let wanted = entry.clone();
    let opened = blocking(move || {
        let Some(mut partial) = PartialFile::open(target)? else {
            return Ok(None);
        };
        let kept = partial.resume(&wanted)?;
        Ok(Some((partial, kept)))
    })
    .await?;
    let Some((mut partial, (kept, sha))) = opened else {
        return Ok(());
    };
    let source = Source::Store(Arc::clone(bucket));
    let mut parts = PartReader::new(source, entry, kept..num_parts(entry));
    let hasher = Hasher::new(sha);
    while let Some(part) = parts.next().await? {
        hasher.update(&part).await;
        partial = blocking(move || partial.append(&part).map(|()| partial)).await?;
        fault::point("fetch:after-part");
    }
    let (found, wanted) = (hasher.finish().await, entry.clone());
    blocking(move || partial.finish(found, &wanted)).await
}
