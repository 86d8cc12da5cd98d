//! Contents in the store: their parts, reading them, looking whether they are there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::client::{Bucket, MAX_MISMATCHES};
use crate::scan::part_size;
use crate::transfer::{Buffer, Buffers, Part, Room, Task};
use crate::{Crc64, Digest, Error, FileEntry, Result, layout};

/// Objects looked up at a time.
pub(crate) const LOOKUPS_IN_FLIGHT: usize = 64;

/// Where bytes are taken from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A local file that was scanned before.
    File(PathBuf),
    /// A content in a store.
    Store(Arc<Bucket>),
}

impl Source {
    /// One part, checked against the entry.
    pub(crate) async fn part(
        &self,
        entry: &FileEntry,
        index: usize,
        room: Room,
        buffers: &Buffers,
    ) -> Result<Part> {
        let buffer = buffers.take(part_bounds(entry, index).1);
        let bytes = match self {
            Self::Store(bucket) => read_part(bucket, entry, index, buffer).await?,
            Self::File(path) => {
                let (path, entry) = (path.clone(), entry.clone());
                blocking(move || read_scanned(&path, &entry, index, buffer)).await?
            }
        };
        Ok(Part::new(index, bytes, room))
    }

    /// A content of one part.
    pub(crate) async fn whole(&self, entry: &FileEntry) -> Result<Part> {
        let room = Room::take(entry.size).await;
        self.part(entry, 0, room, &Buffers::default()).await
    }
}

/// Start and length of a part.
pub(crate) fn part_bounds(entry: &FileEntry, index: usize) -> (u64, u64) {
    let size = part_size(entry.size);
    let start = index as u64 * size;
    (start, size.min(entry.size - start))
}

/// Number of parts; an empty file has one, which is empty.
pub(crate) fn num_parts(entry: &FileEntry) -> usize {
    entry
        .parts
        .as_ref()
        .map_or(1, |parts| parts.crc64nvme.len())
}

/// Whether the bytes of a part are those that the manifest promises.
pub(crate) fn is_right(entry: &FileEntry, index: usize, bytes: &[u8]) -> bool {
    is_right_with(entry, index, bytes, || Crc64::of(bytes))
}

/// [`is_right`] of bytes whose checksum may be known.
fn is_right_with(
    entry: &FileEntry,
    index: usize,
    bytes: &[u8],
    crc: impl FnOnce() -> Crc64,
) -> bool {
    let (_, length) = part_bounds(entry, index);
    if bytes.len() as u64 != length {
        return false;
    }
    match &entry.parts {
        Some(parts) => parts.crc64nvme.get(index) == Some(&crc()),
        None => Digest::of(bytes) == entry.sha256,
    }
}

/// Some bytes of a local file.
fn read_file(path: &Path, start: u64, length: u64, bytes: &mut Vec<u8>) -> Result<()> {
    let mut read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        file.take(length).read_to_end(bytes)
    };
    match read() {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::io(path, source)),
    }
}

/// A part of a local file that was scanned before, checked against the entry.
fn read_scanned(path: &Path, entry: &FileEntry, index: usize, mut buffer: Buffer) -> Result<Bytes> {
    let (start, length) = part_bounds(entry, index);
    read_file(path, start, length, &mut buffer.bytes)?;
    if is_right(entry, index, &buffer.bytes) {
        return Ok(buffer.freeze());
    }
    Err(Error::bad_input(
        path.display().to_string(),
        "the file changed while it was being published",
    ))
}

/// Local files of one part each, read in one go: to small ones, going to another thread and back costs more than being
/// read.
pub(crate) async fn read_few(files: Vec<(FileEntry, PathBuf)>) -> Result<Vec<(Digest, Bytes)>> {
    let read = |(entry, path): &(FileEntry, PathBuf)| {
        let buffer = Buffers::default().take(entry.size);
        Ok((entry.sha256, read_scanned(path, entry, 0, buffer)?))
    };
    blocking(move || files.iter().map(read).collect()).await
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// One part of a stored content, checked; wrong bytes are asked for again before they count as damage.
async fn read_part(
    bucket: &Bucket,
    entry: &FileEntry,
    index: usize,
    mut buffer: Buffer,
) -> Result<Bytes> {
    let key = layout::blob(&entry.sha256);
    let (start, length) = part_bounds(entry, index);
    let whole = entry.parts.is_none();
    let damaged = |detail: &str| {
        Error::corrupt(
            format!("{} ({key} in {})", entry.path, bucket.place()),
            detail,
        )
    };
    let _slot = bucket.slot().await;
    for _ in 0..=MAX_MISMATCHES {
        let crc = if length == 0 {
            let head = bucket.head(&key).await?;
            head.map(|_| Crc64::of(&[]))
        } else {
            let bytes = &mut buffer.bytes;
            bucket.get_range(&key, start, length, bytes).await?
        };
        let Some(crc) = crc else {
            return Err(damaged("the content is missing"));
        };
        if is_right_with(entry, index, &buffer.bytes, || crc) {
            return Ok(buffer.freeze());
        }
        tracing::warn!(key, part = index, "content does not match its digest");
    }
    Err(damaged(if whole {
        "the bytes do not have the SHA-256 that the manifest states"
    } else {
        "a part does not have the CRC64NVME that the manifest states"
    }))
}

/// From so many contents on, listing what the store has is cheaper than asking for each.
const LIST_FROM: usize = 100;
/// As long as it has not too many others: contents that were to be asked for, per page.
const WANTED_PER_PAGE: usize = 20;

/// Contents as a listing shows them, which may lag behind.
pub(crate) struct Listing(BTreeSet<(Digest, u64)>);

impl Listing {
    /// Lists what the store has; nothing where that would not be cheaper.
    pub(crate) async fn of(bucket: &Bucket, files: &[FileEntry]) -> Result<Option<Self>> {
        if files.len() < LIST_FROM {
            return Ok(None);
        }
        let mut found = BTreeSet::new();
        let max_pages = files.len() / WANTED_PER_PAGE;
        let is_whole = bucket
            .list_some(layout::BLOBS, max_pages, |object| {
                let digest = layout::digest_of_blob(&object.key);
                found.extend(digest.map(|digest| (digest, object.size)));
            })
            .await?;
        Ok(is_whole.then_some(Self(found)))
    }

    pub(crate) fn has(&self, entry: &FileEntry) -> bool {
        self.0.contains(&(entry.sha256, entry.size))
    }
}

/// Each content once.
pub(crate) fn distinct(files: &[FileEntry]) -> Vec<FileEntry> {
    let mut distinct = files.to_vec();
    distinct.sort_by_key(|file| file.sha256);
    distinct.dedup_by_key(|file| file.sha256);
    distinct
}

/// Of distinct contents those that are not in the store with their right size.
pub(crate) async fn missing(
    bucket: &Arc<Bucket>,
    contents: Vec<FileEntry>,
) -> Result<Vec<FileEntry>> {
    let found: Vec<_> = stream::iter(contents)
        .map(|file| {
            let bucket = Arc::clone(bucket);
            Task::spawn(async move {
                let _slot = bucket.slot().await;
                let head = bucket.head(&layout::blob(&file.sha256)).await?;
                let is_there = head.is_some_and(|head| head.size == file.size);
                Ok::<_, Error>((!is_there).then_some(file))
            })
        })
        .buffered(LOOKUPS_IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}
