//! Publishing: contents first, looked at again, the manifest last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::blob::{self, Listing, Source, blocking};
use crate::client::Bucket;
use crate::commit::create_only;
use crate::scan::{Local, ScannedFile, scan_folder};
use crate::transfer::Task;
use crate::upload::{upload, upload_few};
use crate::{
    Content, Digest, Error, FileEntry, Kind, Manifest, Outcome, Provenance, Result, Store, fault,
    gc, layout,
};

/// Contents of another store copied at a time, each by a task of its own.
const COPIES_IN_FLIGHT: usize = 64;
/// Local files of one part that are read together: at most so many, of at most so many bytes.
const FEW: usize = 8;
const FEW_BYTES: u64 = 1 << 20;
/// Groups of them under way at a time. How many of their requests are, the store's pace tells.
const GROUPS_IN_FLIGHT: usize = 16;

/// Where the contents of an artifact come from.
pub(crate) enum Sources {
    /// Local files that were hashed before.
    Files(BTreeMap<Digest, Local>),
    /// Another store.
    Store(Arc<Bucket>),
}

impl Sources {
    fn of_files(scanned: Vec<ScannedFile>) -> Self {
        let files = scanned.into_iter();
        Self::Files(files.map(|file| (file.entry.sha256, file.local)).collect())
    }

    fn of(&self, entry: &FileEntry) -> Result<Source> {
        match self {
            Self::Store(bucket) => Ok(Source::Store(Arc::clone(bucket))),
            Self::Files(files) => Ok(Source::File(local(files, entry)?.path.clone())),
        }
    }
}

/// The local file with a content.
fn local<'f>(files: &'f BTreeMap<Digest, Local>, entry: &FileEntry) -> Result<&'f Local> {
    files
        .get(&entry.sha256)
        .ok_or_else(|| Error::bad_input(&entry.path, "no local file has this content"))
}

/// An artifact that a store now holds.
pub(crate) struct Brought {
    /// The manifest that the store holds.
    pub(crate) manifest: Manifest,
    /// Sizes of the contents that it lacked.
    pub(crate) uploaded: BTreeMap<Digest, u64>,
}

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
        let sources = Sources::of_files(scanned);
        if self.bucket.options.reupload {
            self.upload(manifest.content.files.clone(), &sources)
                .await?;
        }
        let committed = self.bring(manifest, stored, &sources).await?;
        fault::point("publish:after-manifest");
        Ok(committed.manifest)
    }

    /// Uploads the contents that the store lacks and commits the manifest: all within one valid look at the plans of
    /// collections, or again, which then finds most of it done.
    pub(crate) async fn bring(
        &self,
        manifest: Manifest,
        stored: Vec<u8>,
        sources: &Sources,
    ) -> Result<Brought> {
        let mut brought = Brought {
            manifest,
            uploaded: BTreeMap::new(),
        };
        let who = format!("artifact {}", brought.manifest.id);
        let mut turns = self.turns(gc::needs(&brought.manifest), who);
        loop {
            let look = turns.next().await?;
            let contents = blob::distinct(&brought.manifest.content.files);
            let missing = self.missing(&contents).await?;
            let sizes = missing.iter().map(|entry| (entry.sha256, entry.size));
            brought.uploaded.extend(sizes);
            self.upload(missing.clone(), sources).await?;
            self.look_again(&brought.manifest, contents, &missing)
                .await?;
            fault::point("publish:after-blobs");
            if !look.is_valid() {
                continue;
            }
            brought.manifest = self.commit(brought.manifest, stored.clone()).await?;
            if look.is_valid() {
                return Ok(brought);
            }
        }
    }

    /// Of distinct contents those that the store lacks. What a listing does not show counts as lacking without asking: at
    /// worst it is sent once too often.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn missing(&self, contents: &[FileEntry]) -> Result<Vec<FileEntry>> {
        let Some(listing) = Listing::of(&self.bucket, contents).await? else {
            return blob::missing(&self.bucket, contents.to_vec()).await;
        };
        let (shown, mut missing): (Vec<_>, Vec<_>) = contents
            .iter()
            .cloned()
            .partition(|entry| listing.has(entry));
        missing.extend(blob::missing(&self.bucket, shown).await?);
        Ok(missing)
    }

    /// Looks at every content once more before the commit. For what was sent just now a listing will do: no collection
    /// could have deleted it since. What was there before is asked for, as a listing may still show what is gone.
    async fn look_again(
        &self,
        manifest: &Manifest,
        mut contents: Vec<FileEntry>,
        sent: &[FileEntry],
    ) -> Result<()> {
        if let Some(listing) = Listing::of(&self.bucket, sent).await? {
            let sent: BTreeSet<_> = sent.iter().map(|entry| entry.sha256).collect();
            contents.retain(|entry| !(sent.contains(&entry.sha256) && listing.has(entry)));
        }
        self.verify_contents(manifest, contents).await
    }

    /// Uploads contents; small ones side by side, large ones one after the other in parts.
    async fn upload(&self, mut entries: Vec<FileEntry>, sources: &Sources) -> Result<()> {
        entries.sort_by_key(|entry| entry.sha256);
        entries.dedup_by_key(|entry| entry.sha256);
        let (large, small): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.parts.is_some());
        self.upload_small(small, sources).await?;
        for entry in large {
            upload(&self.bucket, &entry, sources.of(&entry)?).await?;
            fault::point("publish:after-blob");
        }
        Ok(())
    }

    async fn upload_small(&self, entries: Vec<FileEntry>, sources: &Sources) -> Result<()> {
        let files = match sources {
            Sources::Files(files) => files,
            Sources::Store(from) => return self.copy_small(entries, from).await,
        };
        let groups = groups(entries)
            .into_iter()
            .map(|group| {
                let group = group.into_iter();
                let located = group.map(|entry| {
                    let local = local(files, &entry)?.clone();
                    Ok((entry, local))
                });
                located.collect::<Result<Vec<_>>>()
            })
            .collect::<Result<Vec<_>>>()?;
        let sending = stream::iter(groups).map(|group| {
            let bucket = Arc::clone(&self.bucket);
            Task::spawn(async move { upload_few(&bucket, group).await })
        });
        sending
            .buffer_unordered(GROUPS_IN_FLIGHT)
            .try_collect()
            .await
    }

    async fn copy_small(&self, entries: Vec<FileEntry>, from: &Arc<Bucket>) -> Result<()> {
        let copies = stream::iter(entries).map(|entry| {
            let (bucket, from) = (Arc::clone(&self.bucket), Source::Store(Arc::clone(from)));
            Task::spawn(async move {
                upload(&bucket, &entry, from).await?;
                fault::point("publish:after-blob");
                Ok(())
            })
        });
        copies
            .buffer_unordered(COPIES_IN_FLIGHT)
            .try_collect()
            .await
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

/// Contents in groups that are read together; a large one is alone.
fn groups(entries: Vec<FileEntry>) -> Vec<Vec<FileEntry>> {
    let mut groups: Vec<Vec<FileEntry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.size;
        match groups.last_mut() {
            Some(last) if last.len() < FEW && bytes <= FEW_BYTES => last.push(entry),
            _ => {
                bytes = entry.size;
                groups.push(vec![entry]);
            }
        }
    }
    groups
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
            code_revision: None,
            recipe_version: 1,
            recipe: json!(null),
            options: json!({}),
            inputs: vec![],
            created_at: "2026-11-21T02:22:02Z".parse().unwrap(),
        };
        Manifest::new(Kind::Scores, Content::default(), provenance).unwrap()
    }

    #[test]
    fn small_files_are_grouped_and_large_ones_alone() {
        let entries = |sizes: &[u64]| -> Vec<FileEntry> {
            let entry = |size: &u64| FileEntry {
                path: "f".to_owned(),
                size: *size,
                sha256: Digest::of(b""),
                parts: None,
            };
            sizes.iter().map(entry).collect()
        };
        let sizes = |groups: Vec<Vec<FileEntry>>| -> Vec<Vec<u64>> {
            let of = |group: Vec<FileEntry>| group.iter().map(|entry| entry.size).collect();
            groups.into_iter().map(of).collect()
        };
        let (mib, half) = (FEW_BYTES, FEW_BYTES / 2);
        assert_eq!(
            sizes(groups(entries(&[half, half, 1, 16 * mib, 2, 3]))),
            [vec![half, half], vec![1], vec![16 * mib], vec![2, 3]]
        );
        let many = sizes(groups(entries(&[1; 2 * FEW + 1])));
        assert_eq!(many, [vec![1; FEW], vec![1; FEW], vec![1]]);
        assert_eq!(groups(Vec::new()), Vec::<Vec<FileEntry>>::new());
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
