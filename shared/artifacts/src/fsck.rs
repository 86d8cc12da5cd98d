//! Checking a whole store: is everything there that its manifests and names promise?
//!
//! Read only. Names are read first, then manifests, then contents: each is written after what it points to, so a job
//! that publishes meanwhile is not taken for a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::blob::{LOOKUPS_IN_FLIGHT, Source, num_parts};
use crate::client::Bucket;
use crate::inventory::Found;
use crate::transfer::PartReader;
use crate::{ArtifactId, Digest, Error, FileEntry, Kind, Manifest, Result, Store, layout};

/// Contents of one part read at a time.
const CONTENTS_IN_FLIGHT: usize = 16;

/// How much of the contents is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsckDepth {
    /// Nothing: presence and size are looked up.
    Sizes,
    /// Everything: the SHA-256 of each content is computed as well.
    Full,
}

/// What a check is busy with, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsckPhase {
    /// Reading names; counted in names.
    Names,
    /// Reading manifests; counted in manifests.
    Manifests,
    /// Looking contents up; counted in contents.
    Sizes,
    /// Reading contents; counted in bytes.
    Contents,
}

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A manifest breaks the format, or is not that of its artifact.
    UnreadableManifest,
    /// A content that a manifest lists is not in the store.
    MissingContent,
    /// A content has another size than its manifest says.
    WrongSize,
    /// A content has its size, but not its SHA-256.
    AlteredContent,
    /// A name points to an artifact without a manifest.
    NameToNowhere,
    /// What a name points to cannot be read.
    UnreadableName,
    /// An object that no manifest lists. The only finding that is no damage.
    Orphan,
}

impl Fault {
    /// All of them, the gravest first.
    pub const ALL: [Self; 7] = [
        Self::UnreadableManifest,
        Self::MissingContent,
        Self::WrongSize,
        Self::AlteredContent,
        Self::NameToNowhere,
        Self::UnreadableName,
        Self::Orphan,
    ];

    /// A heading for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::UnreadableManifest => "unreadable manifests",
            Self::MissingContent => "missing contents",
            Self::WrongSize => "contents of a wrong size",
            Self::AlteredContent => "altered contents",
            Self::NameToNowhere => "names that point to nothing",
            Self::UnreadableName => "unreadable names",
            Self::Orphan => "orphans",
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::UnreadableManifest => {
                "the manifest breaks the format or is not that of its artifact; jobs refuse the artifact"
            }
            Self::MissingContent => {
                "a manifest lists the content and the store does not have it; jobs refuse the artifact"
            }
            Self::WrongSize => {
                "the content was cut off or replaced after it was committed; jobs refuse the artifact"
            }
            Self::AlteredContent => {
                "the content has its size but other bytes than were committed; jobs refuse the artifact"
            }
            Self::NameToNowhere => {
                "the name points to an artifact that has no manifest in this store"
            }
            Self::UnreadableName => {
                "the newest generation of the name does not say which artifact it means"
            }
            Self::Orphan => {
                "no manifest lists the object: a job was stopped before its commit, or is about to commit; it costs \
                 room and does no harm"
            }
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::UnreadableManifest => {
                "where it has a newer schema, use a newer wmtp; else delete the object and run the job that made the \
                 artifact with --force"
            }
            Self::MissingContent | Self::WrongSize | Self::AlteredContent => {
                "where a copy is left, `wmtp-store repair --from` it; else run the job that made the artifact with \
                 --force: it uploads the content anew, under the same id when the bytes are the same"
            }
            Self::NameToNowhere | Self::UnreadableName => {
                "run the job that makes the artifact again with --name: the name gets a new generation"
            }
            Self::Orphan => "nothing has to be done",
        }
    }

    /// Whether an artifact cannot be used, or not be found, because of it.
    pub fn is_damage(self) -> bool {
        self != Self::Orphan
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub fault: Fault,
    /// Key of the object below the store's prefix.
    pub key: String,
    /// What was found and what was expected.
    pub detail: String,
    /// Artifacts that cannot be used because of it.
    pub artifacts: Vec<ArtifactId>,
}

/// What a check of a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Names that were read.
    pub names: u64,
    /// Manifests that were found, unreadable ones among them.
    pub manifests: u64,
    /// Distinct contents that readable manifests list.
    pub contents: u64,
    /// Bytes of these contents.
    pub bytes: u64,
    /// Bytes that were read and hashed; 0 unless the check was full.
    pub bytes_hashed: u64,
    /// Bytes of orphans.
    pub bytes_orphaned: u64,
    /// Sorted by kind and key.
    pub findings: Vec<Finding>,
}

impl FsckReport {
    /// Whether every artifact and every name can be used, as far as the check went.
    pub fn is_sound(&self) -> bool {
        !self
            .findings
            .iter()
            .any(|finding| finding.fault.is_damage())
    }

    /// The findings of one kind.
    pub fn of(&self, fault: Fault) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.fault == fault)
    }

    fn add(&mut self, fault: Fault, key: String, detail: String, artifacts: Vec<ArtifactId>) {
        self.findings.push(Finding {
            fault,
            key,
            detail,
            artifacts,
        });
    }

    fn add_altered(&mut self, promise: Promised, damage: Option<String>) {
        if let Some(detail) = damage {
            let key = layout::blob(&promise.entry.sha256);
            let detail = format!("{}: {detail}", promise.entry.path);
            self.add(Fault::AlteredContent, key, detail, promise.artifacts);
        }
    }
}

/// A content as manifests promise it, and the artifacts that need it.
struct Promised {
    entry: FileEntry,
    artifacts: Vec<ArtifactId>,
}

/// Contents by digest and size: two manifests that disagree on the size of one cannot both be right.
type Contents = BTreeMap<(Digest, u64), Promised>;

impl Store {
    /// Checks the whole store. `watch` is told the phase, how much of it is done, and of how much (0: unknown).
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the store cannot be read to the end. What is wrong with its objects is no error
    /// but a finding.
    pub async fn fsck(
        &self,
        depth: FsckDepth,
        mut watch: impl FnMut(FsckPhase, u64, u64),
    ) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        let targets = self.targets_of_names(&mut report, &mut watch).await?;
        let (ids, mut promised) = self.promises(&mut report, &mut watch).await?;
        for (key, id) in targets.into_iter().filter(|(_, id)| !ids.contains(id)) {
            report.add(
                Fault::NameToNowhere,
                key,
                "there is no manifest of its artifact".to_owned(),
                vec![id],
            );
        }
        self.check_sizes(&mut promised, &mut report, &mut watch)
            .await?;
        if depth == FsckDepth::Full {
            self.check_bytes(promised, &mut report, &mut watch).await?;
        }
        report
            .findings
            .sort_by(|a, b| (a.fault, &a.key).cmp(&(b.fault, &b.key)));
        Ok(report)
    }

    /// Reads all that an artifact consists of and compares it with the digests of its manifest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names a file that is missing, or is not what the manifest states.
    pub async fn verify_bytes(&self, manifest: &Manifest) -> Result<()> {
        self.verify(manifest).await?;
        let (mut promised, mut report) = (Contents::new(), FsckReport::default());
        promise(&mut promised, manifest);
        self.check_bytes(promised, &mut report, &mut |_, _, _| {})
            .await?;
        match report.findings.pop() {
            None => Ok(()),
            Some(finding) => {
                let what = format!("artifact {} in {}", manifest.id, self.bucket.place());
                Err(Error::corrupt(what, finding.detail))
            }
        }
    }

    /// Folder of each name with the artifact that it points to.
    async fn targets_of_names(
        &self,
        report: &mut FsckReport,
        watch: &mut impl FnMut(FsckPhase, u64, u64),
    ) -> Result<Vec<(String, ArtifactId)>> {
        let mut names = Vec::new();
        for kind in Kind::ALL {
            let of_kind = self.bucket.list_folders(&layout::names(kind)).await?;
            names.extend(of_kind.into_iter().map(|name| (kind, name)));
        }
        report.names = names.len() as u64;
        let mut answers = stream::iter(names)
            .map(|(kind, name)| async move {
                let key = layout::name(kind, &name);
                (key, self.name(kind, &name).await)
            })
            .buffered(LOOKUPS_IN_FLIGHT);
        let (mut targets, mut done) = (Vec::new(), 0);
        while let Some((key, answer)) = answers.next().await {
            match answer {
                Ok(target) => targets.extend(target.map(|id| (key, id))),
                Err(
                    error @ (Error::Corrupt { .. } | Error::BadInput { .. } | Error::Usage { .. }),
                ) => report.add(Fault::UnreadableName, key, error.to_string(), vec![]),
                Err(error) => return Err(error),
            }
            done += 1;
            watch(FsckPhase::Names, done, report.names);
        }
        Ok(targets)
    }

    /// All artifacts with a manifest, and what their manifests promise.
    async fn promises(
        &self,
        report: &mut FsckReport,
        watch: &mut impl FnMut(FsckPhase, u64, u64),
    ) -> Result<(BTreeSet<ArtifactId>, Contents)> {
        let committed = self.committed().await?;
        for stray in committed.strays {
            report.bytes_orphaned += stray.size;
            let detail = format!("{} bytes, no manifest", stray.size);
            report.add(Fault::Orphan, stray.key, detail, vec![]);
        }
        report.manifests = committed.ids.len() as u64;
        let ids = committed.ids.iter().cloned().collect();
        let mut promised = Contents::new();
        let mut done = 0;
        let mut inventory = std::pin::pin!(self.inventory(committed.ids));
        while let Some(found) = inventory.try_next().await? {
            if let Some(Found { id, manifest }) = found {
                match manifest {
                    Ok(manifest) => promise(&mut promised, &manifest),
                    Err(error) => {
                        let key = layout::manifest(&id);
                        report.add(Fault::UnreadableManifest, key, error.to_string(), vec![id]);
                    }
                }
            }
            done += 1;
            watch(FsckPhase::Manifests, done, report.manifests);
        }
        report.contents = promised.len() as u64;
        report.bytes = promised.keys().map(|(_, size)| size).sum();
        Ok((ids, promised))
    }

    /// Looks for each content with its size, and for contents that nothing promises. Only those that are sound
    /// stay promised. A listing may lag behind, so what it lacks is asked for once more before it counts as missing.
    async fn check_sizes(
        &self,
        promised: &mut Contents,
        report: &mut FsckReport,
        watch: &mut impl FnMut(FsckPhase, u64, u64),
    ) -> Result<()> {
        let digests: BTreeSet<Digest> = promised.keys().map(|(digest, _)| *digest).collect();
        let mut stored = BTreeSet::new();
        let mut listed = 0;
        self.bucket
            .list_objects(layout::BLOBS, |object| {
                match layout::digest_of_blob(&object.key) {
                    Some(digest) if digests.contains(&digest) => {
                        stored.insert((digest, object.size));
                    }
                    _ => {
                        report.bytes_orphaned += object.size;
                        let detail = format!("{} bytes", object.size);
                        report.add(Fault::Orphan, object.key, detail, vec![]);
                    }
                }
                listed += 1;
                watch(FsckPhase::Sizes, listed, 0);
            })
            .await?;
        let suspects: Vec<_> = promised
            .keys()
            .copied()
            .filter(|content| !stored.contains(content))
            .collect();
        let mut heads = stream::iter(suspects)
            .map(|(digest, size)| async move {
                let head = self.bucket.head(&layout::blob(&digest)).await?;
                Ok::<_, Error>(((digest, size), head.map(|head| head.size)))
            })
            .buffered(LOOKUPS_IN_FLIGHT);
        while let Some((content, found)) = heads.try_next().await? {
            if found == Some(content.1) {
                continue;
            }
            let Some(promise) = promised.remove(&content) else {
                continue;
            };
            let (path, size) = (&promise.entry.path, content.1);
            let (fault, detail) = match found {
                None => (Fault::MissingContent, format!("{path}: {size} bytes")),
                Some(found) => (
                    Fault::WrongSize,
                    format!("{path}: {found} bytes instead of {size}"),
                ),
            };
            report.add(fault, layout::blob(&content.0), detail, promise.artifacts);
        }
        Ok(())
    }

    /// Reads every content: small ones side by side, large ones part by part.
    async fn check_bytes(
        &self,
        promised: Contents,
        report: &mut FsckReport,
        watch: &mut impl FnMut(FsckPhase, u64, u64),
    ) -> Result<()> {
        let total = promised.keys().map(|(_, size)| size).sum();
        let (large, small): (Vec<_>, Vec<_>) = promised
            .into_values()
            .partition(|promise| promise.entry.parts.is_some());
        let mut checks = stream::iter(small)
            .map(|promise| async move {
                let read = check_content(&self.bucket, &promise.entry).await;
                let size = promise.entry.size;
                Ok::<_, Error>((size, promise, damage(read)?))
            })
            .buffer_unordered(CONTENTS_IN_FLIGHT);
        while let Some((size, promise, damage)) = checks.try_next().await? {
            report.bytes_hashed += size;
            watch(FsckPhase::Contents, report.bytes_hashed, total);
            report.add_altered(promise, damage);
        }
        drop(checks);
        for promise in large {
            let before = report.bytes_hashed;
            let read = |bytes| watch(FsckPhase::Contents, before + bytes, total);
            let damage = damage(hash(&self.bucket, &promise.entry, read).await)?;
            report.bytes_hashed = before + promise.entry.size;
            report.add_altered(promise, damage);
        }
        Ok(())
    }
}

/// Adds what a manifest promises.
fn promise(promised: &mut Contents, manifest: &Manifest) {
    for entry in &manifest.content.files {
        let promise = promised
            .entry((entry.sha256, entry.size))
            .or_insert_with(|| Promised {
                entry: entry.clone(),
                artifacts: Vec::new(),
            });
        if promise.artifacts.last() != Some(&manifest.id) {
            promise.artifacts.push(manifest.id.clone());
        }
    }
}

/// What is wrong with the bytes; any failure but that is an error.
fn damage(read: Result<()>) -> Result<Option<String>> {
    match read {
        Ok(()) => Ok(None),
        Err(Error::Corrupt { detail, .. }) => Ok(Some(detail)),
        Err(error) => Err(error),
    }
}

/// Reads a content and compares it with what it should be.
pub(crate) async fn check_content(bucket: &Arc<Bucket>, entry: &FileEntry) -> Result<()> {
    if entry.parts.is_some() {
        return hash(bucket, entry, |_| {}).await;
    }
    Source::Store(Arc::clone(bucket)).whole(entry).await?;
    Ok(())
}

/// Reads a content of several parts in order and compares its SHA-256. `read` is told the bytes so far.
async fn hash(bucket: &Arc<Bucket>, entry: &FileEntry, mut read: impl FnMut(u64)) -> Result<()> {
    let source = Source::Store(Arc::clone(bucket));
    let mut parts = PartReader::new(source, entry, 0..num_parts(entry));
    let (mut sha, mut bytes) = (Sha256::new(), 0);
    while let Some(part) = parts.next().await? {
        sha.update(&part[..]);
        bytes += part.len() as u64;
        read(bytes);
    }
    if Digest(sha.finalize().into()) == entry.sha256 {
        return Ok(());
    }
    Err(Error::corrupt(
        &entry.path,
        "the bytes do not have the SHA-256 that the manifest states",
    ))
}
