//! Publishing: contents first, looked at again, the manifest last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::blob::{self, Source, blocking};
use crate::commit::create_only;
use crate::scan::{ScannedFile, scan_folder};
use crate::{Content, Error, Kind, Manifest, Outcome, Provenance, Result, Store, fault, layout};

/// Files of one part uploaded at a time: at most 128 MiB in memory.
const FILES_IN_FLIGHT: usize = 8;

/// An artifact that is about to be published.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What it holds.
    pub kind: Kind,
    /// Folder whose files, all of them, become its content.
    pub root: PathBuf,
    /// Small facts that belong to the content and to the id.
    pub attributes: BTreeMap<String, String>,
}

impl Store {
    /// Publishes a folder as an artifact and returns its committed manifest.
    ///
    /// Equal content is the same artifact: the manifest of its first maker is returned. A kill at any
    /// moment leaves either the whole artifact or nothing that a reader could see.
    ///
    /// # Errors
    /// [`Error::BadInput`] when a file may not be published or changes meanwhile; [`Error::Corrupt`] when the
    /// store holds other content under the same id, or loses what was uploaded.
    pub async fn publish(&self, draft: &Draft, provenance: &Provenance) -> Result<Manifest> {
        let root = draft.root.clone();
        let scanned = blocking(move || scan_folder(&root)).await?;
        let content = Content {
            files: scanned.iter().map(|file| file.entry.clone()).collect(),
            attributes: draft.attributes.clone(),
        };
        let manifest = Manifest::new(draft.kind, content, provenance.clone())?;
        let stored = manifest.to_bytes()?;
        fault::point("publish:before-blobs");
        self.upload_missing(scanned).await?;
        self.verify(&manifest).await?;
        fault::point("publish:after-blobs");
        let committed = self.commit(manifest, stored).await?;
        fault::point("publish:after-manifest");
        Ok(committed)
    }

    /// Uploads what the store lacks; small files side by side, large ones one after the other in parts.
    async fn upload_missing(&self, scanned: Vec<ScannedFile>) -> Result<()> {
        let entries: Vec<_> = scanned.iter().map(|file| file.entry.clone()).collect();
        let lacking: BTreeSet<_> = if self.bucket.options.reupload {
            entries.iter().map(|entry| entry.sha256).collect()
        } else {
            let missing = blob::missing(&self.bucket, &entries).await?;
            missing.iter().map(|entry| entry.sha256).collect()
        };
        let mut distinct = scanned;
        distinct.sort_by_key(|file| file.entry.sha256);
        distinct.dedup_by_key(|file| file.entry.sha256);
        distinct.retain(|file| lacking.contains(&file.entry.sha256));
        let (large, small): (Vec<_>, Vec<_>) = distinct
            .into_iter()
            .partition(|file| file.entry.parts.is_some());
        let uploads = stream::iter(small).map(|file| {
            let bucket = Arc::clone(&self.bucket);
            async move { blob::upload(&bucket, &file.entry, Source::File(file.source)).await }
        });
        uploads
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_for_each(|()| async {
                fault::point("publish:after-blob");
                Ok(())
            })
            .await?;
        for file in large {
            blob::upload(&self.bucket, &file.entry, Source::File(file.source)).await?;
            fault::point("publish:after-blob");
        }
        Ok(())
    }

    /// Writes the manifest. This is the moment at which the artifact comes to exist.
    pub(crate) async fn commit(&self, manifest: Manifest, stored: Vec<u8>) -> Result<Manifest> {
        let key = layout::manifest(&manifest.id);
        let is_equal = |found: &[u8]| {
            Manifest::parse(found)
                .is_ok_and(|theirs| theirs.id == manifest.id && theirs.content == manifest.content)
        };
        let (outcome, found) = create_only(&self.bucket, &key, stored, is_equal).await?;
        match outcome {
            Outcome::Committed | Outcome::AlreadyOurs => Ok(manifest),
            Outcome::TheirsEqual => Manifest::parse(&found),
            Outcome::TheirsDifferent => Err(Error::corrupt(
                format!("{key} in {}", self.bucket.place()),
                "the store holds another content, or a damaged manifest, under the id of this one",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use dev_store::TestServer;
    use serde_json::json;

    use super::*;
    use crate::{Credentials, StoreOptions};

    async fn connect(server: &TestServer) -> Store {
        let options = StoreOptions {
            endpoint: Some(server.endpoint().to_owned()),
            region: Some(server.region().to_owned()),
            credentials: Some(Credentials::new(server.access_key(), server.secret_key())),
            ..StoreOptions::default()
        };
        Store::connect(&"s3://wmtp/x".parse().unwrap(), options)
            .await
            .unwrap()
    }

    fn manifest(job: &str) -> Manifest {
        let provenance = Provenance {
            job: job.to_owned(),
            run_id: "job-0123456789abcdef".parse().unwrap(),
            attempt: 1,
            code_version: "0.1.0".to_owned(),
            recipe_version: 1,
            recipe: json!(null),
            options: json!({}),
            inputs: vec![],
            created_at: "2026-11-21T02:22:02Z".parse().unwrap(),
        };
        Manifest::new(Kind::Scores, Content::default(), provenance).unwrap()
    }

    /// After a lost reply the same write is sent again and meets itself; that is no conflict.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_meets_itself_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let server = TestServer::start(dir.path());
        let store = connect(&server).await;
        let ours = manifest("evaluate");
        let stored = ours.to_bytes().unwrap();
        let key = layout::manifest(&ours.id);
        for expected in [Outcome::Committed, Outcome::AlreadyOurs] {
            let (outcome, found) = create_only(&store.bucket, &key, stored.clone(), |_| false)
                .await
                .unwrap();
            assert_eq!((outcome, found.as_ref()), (expected, stored.as_slice()));
        }
        assert_eq!(store.commit(ours.clone(), stored).await.unwrap(), ours);
        let theirs = manifest("other");
        let bytes = theirs.to_bytes().unwrap();
        assert_eq!(
            store.commit(theirs, bytes).await.unwrap(),
            ours,
            "the first maker's stays"
        );
    }
}
