//! Fetching: the mirror first, then the store; every file verified by SHA-256.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::blob::{self, blocking, num_parts};
use crate::client::Bucket;
use crate::mirror::PartialFile;
use crate::{ArtifactId, Error, FileEntry, Manifest, Mirror, Result, Store};

/// Files fetched at a time, and parts of one file read ahead: at most 256 MiB in memory for parts of 16 MiB.
const FILES_IN_FLIGHT: usize = 6;
const PARTS_AHEAD: usize = 2;

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
        mirror.check_room(&files)?;
        stream::iter(files)
            .map(|entry| {
                let (bucket, mirror) = (Arc::clone(&self.bucket), mirror.clone());
                let folder = folder.to_owned();
                async move {
                    ensure(&bucket, &mirror, &entry).await?;
                    blocking(move || mirror.place(&entry, &folder)).await
                }
            })
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        Ok(manifest)
    }
}

/// Makes sure that the mirror holds a content.
async fn ensure(bucket: &Arc<Bucket>, mirror: &Mirror, entry: &FileEntry) -> Result<()> {
    let (near, wanted) = (mirror.clone(), entry.clone());
    if blocking(move || near.has(&wanted)).await? {
        return Ok(());
    }
    let (near, wanted) = (mirror.clone(), entry.clone());
    let opened = blocking(move || {
        let Some(mut partial) = PartialFile::open(&near, &wanted)? else {
            return Ok(None);
        };
        let kept = partial.resume(&wanted)?;
        Ok(Some((partial, kept)))
    })
    .await?;
    let Some((mut partial, kept)) = opened else {
        return Ok(());
    };
    let mut parts = stream::iter(kept..num_parts(entry))
        .map(|index| {
            let (bucket, entry) = (Arc::clone(bucket), entry.clone());
            async move { blob::read_part(&bucket, &entry, index).await }
        })
        .buffered(PARTS_AHEAD);
    while let Some(bytes) = parts.try_next().await? {
        partial = blocking(move || partial.append(&bytes).map(|()| partial)).await?;
    }
    let wanted = entry.clone();
    blocking(move || partial.finish(&wanted)).await
}
