//! Copying artifacts between two stores: contents first, manifests last, ids unchanged.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::publish::Sources;
use crate::{ArtifactId, Manifest, Result, Store};

/// How much is copied with an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyScope {
    /// The artifact alone.
    Artifact,
    /// The artifact and all that it was made from.
    Lineage,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Artifacts that the target now holds.
    pub artifacts: u64,
    /// Contents that were copied.
    pub blobs_copied: u64,
    /// Contents that the target had already.
    pub blobs_present: u64,
    /// Bytes that were copied.
    pub bytes_copied: u64,
}

impl Store {
    /// Copies an artifact to another store. What is there already is not copied again, so a copy that was
    /// cut off goes on where it stopped.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] when this store lacks the artifact; [`crate::Error::Corrupt`] when its
    /// content here is damaged, in which case the target is left without its manifest.
    pub async fn copy_to(
        &self,
        id: &ArtifactId,
        target: &Store,
        scope: CopyScope,
    ) -> Result<CopyReport> {
        let mut report = CopyReport::default();
        for (manifest, stored) in self.closure(id, scope).await? {
            self.copy_one(manifest, stored, target, &mut report).await?;
        }
        Ok(report)
    }

    /// The manifests to copy, as read and as stored; the one that was asked for comes last.
    pub(crate) async fn closure(
        &self,
        id: &ArtifactId,
        scope: CopyScope,
    ) -> Result<Vec<(Manifest, Bytes)>> {
        let mut seen = BTreeSet::from([id.clone()]);
        let mut waiting = vec![id.clone()];
        let mut manifests = Vec::new();
        while let Some(id) = waiting.pop() {
            let (manifest, stored) = self.stored_manifest(&id).await?;
            if scope == CopyScope::Lineage {
                let inputs = manifest.provenance.inputs.iter();
                waiting.extend(
                    inputs
                        .map(|input| input.id.clone())
                        .filter(|id| seen.insert(id.clone())),
                );
            }
            manifests.push((manifest, stored));
        }
        manifests.reverse();
        Ok(manifests)
    }

    /// Copies one artifact. Its manifest goes over byte by byte: the id covers what this version may not know.
    async fn copy_one(
        &self,
        manifest: Manifest,
        stored: Bytes,
        target: &Store,
        report: &mut CopyReport,
    ) -> Result<()> {
        let files = manifest.content.files.iter();
        let distinct: BTreeSet<_> = files.map(|file| file.sha256).collect();
        let sources = Sources::Store(Arc::clone(&self.bucket));
        let brought = target.bring(manifest, stored.to_vec(), &sources).await?;
        report.blobs_copied += brought.uploaded.len() as u64;
        report.blobs_present += (distinct.len() - brought.uploaded.len()) as u64;
        report.bytes_copied += brought.uploaded.values().sum::<u64>();
        report.artifacts += 1;
        Ok(())
    }
}
