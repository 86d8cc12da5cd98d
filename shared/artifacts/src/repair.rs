//! Mending a store: contents that are missing or damaged come anew from where they are still whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::blob::Source;
use crate::carry::is_whole;
use crate::fsck::check_content;
use crate::upload::upload;
use crate::{
    Error, Fault, FileEntry, Finding, FsckDepth, FsckPhase, FsckReport, Result, Store, layout,
};

/// Where contents may still be whole.
#[derive(Debug, Clone)]
pub enum Spare {
    /// An export, a cache of artifacts, or a folder with the files of an artifact.
    Folder(PathBuf),
    /// Another store.
    Store(Store),
}

impl Spare {
    /// Where a content lies, if it is there and whole.
    async fn source(&self, entry: &FileEntry) -> Result<Option<Source>> {
        match self {
            Self::Folder(folder) => {
                for path in places(folder, entry) {
                    if is_whole(path.clone(), entry.clone()).await? {
                        return Ok(Some(Source::File(path)));
                    }
                }
                Ok(None)
            }
            Self::Store(store) => {
                let key = layout::blob(&entry.sha256);
                let head = store.bucket.head(&key).await?;
                let is_there = head.is_some_and(|head| head.size == entry.size);
                Ok(is_there.then(|| Source::Store(Arc::clone(&store.bucket))))
            }
        }
    }
}

/// Where a folder may have a content: as exports, caches and folders of files lay them out.
fn places(folder: &Path, entry: &FileEntry) -> [PathBuf; 3] {
    let key = layout::blob(&entry.sha256);
    let in_cache = key.trim_start_matches("v1/");
    [
        folder.join(&key),
        folder.join(in_cache),
        folder.join(&entry.path),
    ]
}

/// What a repair did.
#[derive(Debug, Clone, Default)]
pub struct RepairReport {
    /// Contents that were damaged and are whole now.
    pub mended: Vec<Finding>,
    /// Damage that stays; its detail says why.
    pub left: Vec<Finding>,
}

impl Store {
    /// Checks the store, and puts each content that is missing or damaged into it anew from `spare`. What is written is
    /// read back and hashed before it counts as mended. Damage of other kinds, and what `spare` does not have whole,
    /// is left as it is.
    ///
    /// # Errors
    /// As [`Store::fsck`], and when the store cannot be written to.
    pub async fn repair(
        &self,
        depth: FsckDepth,
        spare: &Spare,
        watch: impl FnMut(FsckPhase, u64, u64),
    ) -> Result<RepairReport> {
        let FsckReport { findings, .. } = self.fsck(depth, watch).await?;
        let mut report = RepairReport::default();
        for mut finding in findings.into_iter().filter(|found| found.fault.is_damage()) {
            match self.mend(&finding, spare).await {
                Ok(true) => report.mended.push(finding),
                Ok(false) => report.left.push(finding),
                Err(Error::Corrupt { detail, .. }) => {
                    finding.detail = format!("{}; the spare one: {detail}", finding.detail);
                    report.left.push(finding);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }

    /// Mends one content; false when there is nothing to mend it from.
    async fn mend(&self, finding: &Finding, spare: &Spare) -> Result<bool> {
        let is_content = matches!(
            finding.fault,
            Fault::MissingContent | Fault::WrongSize | Fault::AlteredContent
        );
        let digest = layout::digest_of_blob(&finding.key);
        let (true, Some(digest), Some(id)) = (is_content, digest, finding.artifacts.first()) else {
            return Ok(false);
        };
        let files = self.manifest(id).await?.content.files;
        let Some(entry) = files.into_iter().find(|file| file.sha256 == digest) else {
            return Ok(false);
        };
        let Some(source) = spare.source(&entry).await? else {
            return Ok(false);
        };
        upload(&self.bucket, &entry, source).await?;
        check_content(&self.bucket, &entry).await?;
        Ok(true)
    }
}
