//! Contents in the store: uploading them in parts, reading their parts, looking whether they are there.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};

use crate::client::{Bucket, MAX_MISMATCHES};
use crate::scan::part_size;
use crate::{Crc64, Digest, Error, FileEntry, Result, layout};

/// Parts of one file under way at a time; with parts of 64 MiB this bounds memory to 256 MiB.
const PARTS_IN_FLIGHT: usize = 4;
/// Objects looked up at a time.
pub(crate) const LOOKUPS_IN_FLIGHT: usize = 16;

/// Where an upload takes its bytes from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A local file that was scanned before.
    File(PathBuf),
    /// The same content in another store.
    Store(Arc<Bucket>),
}

impl Source {
    /// One part, checked against the entry.
    async fn part(&self, entry: &FileEntry, index: usize) -> Result<Bytes> {
        match self {
            Self::Store(bucket) => read_part(bucket, entry, index).await,
            Self::File(path) => {
                let (start, length) = part_bounds(entry, index);
                let bytes = read_file(path.clone(), start, length).await?;
                if is_right(entry, index, &bytes) {
                    return Ok(bytes);
                }
                let what = path.display().to_string();
                Err(Error::bad_input(
                    what,
                    "the file changed while it was being published",
                ))
            }
        }
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
    let (_, length) = part_bounds(entry, index);
    if bytes.len() as u64 != length {
        return false;
    }
    match &entry.parts {
        Some(parts) => parts.crc64nvme.get(index) == Some(&Crc64::of(bytes)),
        None => Digest::of(bytes) == entry.sha256,
    }
}

async fn read_file(path: PathBuf, start: u64, length: u64) -> Result<Bytes> {
    let read = move || {
        let read = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::with_capacity(length as usize);
            file.take(length).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        read().map_err(|source| Error::io(&path, source))
    };
    blocking(read).await
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
pub(crate) async fn read_part(bucket: &Bucket, entry: &FileEntry, index: usize) -> Result<Bytes> {
    let key = layout::blob(&entry.sha256);
    let (start, length) = part_bounds(entry, index);
    let whole = entry.parts.is_none();
    let damaged = |detail: &str| {
        Error::corrupt(
            format!("{} ({key} in {})", entry.path, bucket.place()),
            detail,
        )
    };
    for _ in 0..=MAX_MISMATCHES {
        let found = if length == 0 {
            bucket.head(&key).await?.map(|_| Bytes::new())
        } else {
            bucket.get_range(&key, start, length).await?
        };
        let bytes = found.ok_or_else(|| damaged("the content is missing"))?;
        if is_right(entry, index, &bytes) {
            return Ok(bytes);
        }
        tracing::warn!(key, part = index, "content does not match its digest");
    }
    Err(damaged(if whole {
        "the bytes do not have the SHA-256 that the manifest states"
    } else {
        "a part does not have the CRC64NVME that the manifest states"
    }))
}

/// Puts a content into a store, whether or not it is there already.
pub(crate) async fn upload(target: &Bucket, entry: &FileEntry, source: Source) -> Result<()> {
    if entry.parts.is_none() {
        let bytes = source.part(entry, 0).await?;
        return target.put(&layout::blob(&entry.sha256), bytes).await;
    }
    let upload = Multipart::begin(target, entry).await?;
    match upload.send(source).await {
        Ok(parts) => upload.complete(parts).await,
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

/// A multipart upload under way.
struct Multipart<'a> {
    target: &'a Bucket,
    entry: &'a FileEntry,
    key: String,
    id: String,
}

impl<'a> Multipart<'a> {
    async fn begin(target: &'a Bucket, entry: &'a FileEntry) -> Result<Self> {
        let key = layout::blob(&entry.sha256);
        let checksums = target.send_checksums;
        let request = target
            .client
            .create_multipart_upload()
            .bucket(&target.uri.bucket)
            .key(target.key(&key))
            .set_checksum_algorithm(checksums.then_some(ChecksumAlgorithm::Crc64Nvme))
            .set_checksum_type(checksums.then_some(ChecksumType::FullObject));
        let operation = format!("begin the upload of {key}");
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) => return Err(target.failure(&operation, error).await),
        };
        let id = output.upload_id().unwrap_or_default().to_owned();
        Ok(Self {
            target,
            entry,
            key,
            id,
        })
    }

    /// Sends all parts. What comes from another store is hashed whole on the way.
    async fn send(&self, source: Source) -> Result<Vec<CompletedPart>> {
        let must_hash = matches!(source, Source::Store(_));
        let mut sha = Sha256::new();
        let source = &source;
        let parts =
            stream::iter(0..num_parts(self.entry))
                .map(|index| async move {
                    Ok::<_, Error>((index, source.part(self.entry, index).await?))
                })
                .buffered(PARTS_IN_FLIGHT / 2)
                .map_ok(|(index, bytes)| {
                    if must_hash {
                        sha.update(&bytes);
                    }
                    self.send_part(index, bytes)
                })
                .try_buffered(PARTS_IN_FLIGHT / 2)
                .try_collect()
                .await?;
        if must_hash && Digest(sha.finalize().into()) != self.entry.sha256 {
            return Err(Error::corrupt(
                &self.entry.path,
                "the bytes do not have the SHA-256 that the manifest states",
            ));
        }
        Ok(parts)
    }

    async fn send_part(&self, index: usize, bytes: Bytes) -> Result<CompletedPart> {
        let target = self.target;
        let number = index as i32 + 1;
        let crc = target.send_checksums.then(|| Crc64::of(&bytes).base64());
        let request = target
            .client
            .upload_part()
            .bucket(&target.uri.bucket)
            .key(target.key(&self.key))
            .upload_id(&self.id)
            .part_number(number)
            .set_checksum_crc64_nvme(crc.clone())
            .body(bytes.into());
        let mut request = request.customize().config_override(target.slow_upload());
        if !target.sign_payload {
            request = request.disable_payload_signing();
        }
        match request.send().await {
            Ok(output) => Ok(CompletedPart::builder()
                .part_number(number)
                .set_e_tag(output.e_tag().map(str::to_owned))
                .set_checksum_crc64_nvme(crc)
                .build()),
            Err(error) => {
                let operation = format!("upload part {number} of {}", self.key);
                Err(target.failure(&operation, error).await)
            }
        }
    }

    /// Makes the object visible. After a lost reply the upload is gone and the object is there.
    async fn complete(&self, parts: Vec<CompletedPart>) -> Result<()> {
        let target = self.target;
        let table = self.entry.parts.as_ref().filter(|_| target.send_checksums);
        let crc = table.map(|parts| Crc64::of_parts(self.entry.size, parts).base64());
        let request = target
            .client
            .complete_multipart_upload()
            .bucket(&target.uri.bucket)
            .key(target.key(&self.key))
            .upload_id(&self.id)
            .set_checksum_type(crc.is_some().then_some(ChecksumType::FullObject))
            .set_checksum_crc64_nvme(crc)
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(parts))
                    .build(),
            );
        let Err(error) = request.send().await else {
            return Ok(());
        };
        match target.head(&self.key).await? {
            Some(head) if head.size == self.entry.size => Ok(()),
            _ => Err(target
                .failure(&format!("complete the upload of {}", self.key), error)
                .await),
        }
    }

    /// Frees what the store keeps of a failed upload; failing at that changes nothing.
    async fn abort(&self) {
        let request = self
            .target
            .client
            .abort_multipart_upload()
            .bucket(&self.target.uri.bucket)
            .key(self.target.key(&self.key))
            .upload_id(&self.id);
        if request.send().await.is_err() {
            tracing::warn!(key = self.key, "an unfinished upload stays in the store");
        }
    }
}

/// The entries whose content is not in the store with its right size. Equal contents are looked up once.
pub(crate) async fn missing(bucket: &Arc<Bucket>, files: &[FileEntry]) -> Result<Vec<FileEntry>> {
    let mut distinct = files.to_vec();
    distinct.sort_by_key(|file| file.sha256);
    distinct.dedup_by_key(|file| file.sha256);
    let found: Vec<_> = stream::iter(distinct)
        .map(|file| {
            let bucket = Arc::clone(bucket);
            async move {
                let head = bucket.head(&layout::blob(&file.sha256)).await?;
                let is_there = head.is_some_and(|head| head.size == file.size);
                Ok::<_, Error>((!is_there).then_some(file))
            }
        })
        .buffered(LOOKUPS_IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}
