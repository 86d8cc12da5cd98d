//! Uploading a content: in one request, or in parts that survive a crash.
//!
//! The key of a content is its digest, so whoever finds an unfinished upload of that key may go on with it: parts whose
//! CRC64NVME is right are not sent again. Two writers may so come to share an upload. Each then may find that the other
//! ended it or replaced a part; it looks again, and as the content is the same either way, whoever ends first ends for
//! both.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use sha2::{Digest as _, Sha256};

use crate::blob::{Source, num_parts, part_bounds, read_few};
use crate::client::{Bucket, StoredPart};
use crate::scan::Local;
use crate::transfer::{Part, PartReader, Room, Task, Width};
use crate::{Crc64, Digest, Error, FileEntry, Result, fault, layout};

/// Times that an upload is taken up; each but the last ended because another writer was at it too.
const MAX_TURNS: usize = 6;

/// Puts a content into a store, whether or not it is there already.
pub(crate) async fn upload(target: &Arc<Bucket>, entry: &FileEntry, source: Source) -> Result<()> {
    if entry.parts.is_none() {
        let part = source.whole(entry).await?;
        let _slot = target.slot().await;
        return target
            .put(&layout::blob(&entry.sha256), part.bytes.clone())
            .await;
    }
    for _ in 0..MAX_TURNS {
        let upload = match Multipart::unfinished(target, entry).await {
            Some(upload) => upload,
            None => Multipart::begin(target, entry).await?,
        };
        if upload.carry_out(&source).await? {
            abort_rest(target, entry).await;
            return Ok(());
        }
    }
    Err(target.unavailable(
        &format!("upload {}", layout::blob(&entry.sha256)),
        "the upload vanished again and again".to_owned(),
        "look for a rule of the bucket, or another program, that aborts multipart uploads at once",
    ))
}

/// Puts local contents of one part each into a store, side by side.
pub(crate) async fn upload_few(target: &Arc<Bucket>, files: Vec<(FileEntry, Local)>) -> Result<()> {
    let (mut contents, mut unread) = (Vec::new(), Vec::new());
    for (entry, local) in files {
        match local.bytes {
            Some(bytes) => contents.push((entry.sha256, bytes)),
            None => unread.push((entry, local.path)),
        }
    }
    let _room = Room::take(unread.iter().map(|(entry, _)| entry.size).sum()).await;
    if !unread.is_empty() {
        contents.extend(read_few(unread).await?);
    }
    let sending = contents.into_iter().map(|(digest, bytes)| async move {
        let _slot = target.slot().await;
        target.put(&layout::blob(&digest), bytes).await
    });
    let mut sending: FuturesUnordered<_> = sending.collect();
    while let Some(sent) = sending.next().await {
        sent?;
        fault::point("publish:after-blob");
    }
    Ok(())
}

/// Frees what earlier attempts left: the content is there, and whoever is still at one of them will find it so.
async fn abort_rest(target: &Bucket, entry: &FileEntry) {
    let key = layout::blob(&entry.sha256);
    for id in unfinished_ids(target, &key).await {
        if let Err(error) = target.abort_upload(&key, &id).await {
            tracing::warn!(%error, "an unfinished upload stays in the store until a collection");
        }
    }
}

/// The uploads of a key that were begun and not ended; none where the store or its rights do not tell.
async fn unfinished_ids(target: &Bucket, key: &str) -> Vec<String> {
    match target.open_uploads(key).await {
        Ok(uploads) => uploads
            .unwrap_or_default()
            .into_iter()
            .filter(|upload| upload.key == key)
            .map(|upload| upload.id)
            .collect(),
        Err(error) => {
            tracing::debug!(%error, "unfinished uploads cannot be listed; none is resumed");
            Vec::new()
        }
    }
}

/// Why sending stopped.
enum Stop {
    /// Another writer ended the upload or replaced a part of it.
    Overtaken,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A multipart upload under way.
struct Multipart {
    to: Arc<Destination>,
    entry: FileEntry,
    /// The parts that the store has, by index.
    stored: BTreeMap<usize, CompletedPart>,
}

/// Where the parts of an upload go.
struct Destination {
    target: Arc<Bucket>,
    key: String,
    id: String,
}

impl Multipart {
    async fn begin(target: &Arc<Bucket>, entry: &FileEntry) -> Result<Self> {
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
        Ok(Self::new(target, entry, id, BTreeMap::new()))
    }

    fn new(
        target: &Arc<Bucket>,
        entry: &FileEntry,
        id: String,
        stored: BTreeMap<usize, CompletedPart>,
    ) -> Self {
        let to = Destination {
            target: Arc::clone(target),
            key: layout::blob(&entry.sha256),
            id,
        };
        Self {
            to: Arc::new(to),
            entry: entry.clone(),
            stored,
        }
    }

    /// The unfinished upload that has most of the content. A store without checksums of parts cannot tell what it has:
    /// then there is none.
    async fn unfinished(target: &Arc<Bucket>, entry: &FileEntry) -> Option<Self> {
        let key = layout::blob(&entry.sha256);
        let mut best: Option<Self> = None;
        for id in unfinished_ids(target, &key).await {
            let parts = match target.list_parts(&key, &id).await {
                Ok(parts) => parts.unwrap_or_default(),
                Err(error) => {
                    tracing::debug!(%error, "an unfinished upload cannot be looked into");
                    continue;
                }
            };
            let right = parts.into_iter().filter_map(|part| right_part(entry, part));
            let stored: BTreeMap<_, _> = right.collect();
            let most = best.as_ref().map_or(0, |best| best.stored.len());
            if stored.len() > most {
                best = Some(Self::new(target, entry, id, stored));
            }
        }
        if let Some(upload) = &best {
            let (have, all) = (upload.stored.len(), num_parts(entry));
            tracing::info!(key, "an upload goes on: {have} of {all} parts are there");
        }
        best
    }

    /// Sends what is missing and makes the object visible; false when it must be taken up once more.
    async fn carry_out(mut self, source: &Source) -> Result<bool> {
        let ended = match self.send(source).await {
            Ok(()) => self.complete().await,
            Err(stop) => Err(stop),
        };
        match ended {
            Ok(()) => Ok(true),
            Err(Stop::Overtaken) if self.to.target.options.reupload => Ok(false),
            Err(Stop::Overtaken) => self.is_there().await,
            Err(Stop::Failed(error)) => {
                let is_content = matches!(error, Error::BadInput { .. } | Error::Corrupt { .. });
                // Else the parts wait for the next attempt.
                if is_content
                    && self
                        .to
                        .target
                        .abort_upload(&self.to.key, &self.to.id)
                        .await
                        .is_err()
                {
                    tracing::warn!(key = self.to.key, "an unfinished upload stays in the store");
                }
                Err(error)
            }
        }
    }

    /// Sends the parts that the store lacks. What comes from another store is read and hashed whole nevertheless.
    async fn send(&mut self, source: &Source) -> std::result::Result<(), Stop> {
        let must_hash = matches!(source, Source::Store(_));
        let all = 0..num_parts(&self.entry);
        let wanted: Vec<_> = all
            .filter(|index| must_hash || !self.stored.contains_key(index))
            .collect();
        let mut sha = Sha256::new();
        let mut width = Width::new();
        let mut sending = FuturesUnordered::new();
        let mut parts = PartReader::new(source.clone(), &self.entry, wanted);
        while let Some(part) = parts.next().await? {
            if must_hash {
                sha.update(&part[..]);
            }
            if self.stored.contains_key(&part.index) {
                continue;
            }
            let to = Arc::clone(&self.to);
            sending.push(Task::spawn(async move { to.send_part(part).await }));
            while sending.len() >= width.now() {
                self.note(sending.next().await, &mut width)?;
            }
        }
        while !sending.is_empty() {
            self.note(sending.next().await, &mut width)?;
        }
        if must_hash && Digest(sha.finalize().into()) != self.entry.sha256 {
            return Err(Stop::Failed(Error::corrupt(
                &self.entry.path,
                "the bytes do not have the SHA-256 that the manifest states",
            )));
        }
        Ok(())
    }

    /// Writes down a part that was sent.
    fn note(
        &mut self,
        sent: Option<std::result::Result<(usize, CompletedPart), Stop>>,
        width: &mut Width,
    ) -> std::result::Result<(), Stop> {
        if let Some(sent) = sent {
            let (index, part) = sent?;
            width.arrived(part_bounds(&self.entry, index).1);
            self.stored.insert(index, part);
            fault::point("upload:after-part");
        }
        Ok(())
    }

    /// Makes the object visible. After a lost reply the upload is gone and the object is there.
    async fn complete(&self) -> std::result::Result<(), Stop> {
        let target = &self.to.target;
        let table = self.entry.parts.as_ref().filter(|_| target.send_checksums);
        let crc = table.map(|parts| Crc64::of_parts(self.entry.size, parts).base64());
        let parts = self.stored.values().cloned().collect();
        let request = target
            .client
            .complete_multipart_upload()
            .bucket(&target.uri.bucket)
            .key(target.key(&self.to.key))
            .upload_id(&self.to.id)
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
        // A repair does not take the word of the store that it has the content.
        if !target.options.reupload && self.is_there().await? {
            return Ok(());
        }
        let operation = format!("complete the upload of {}", self.to.key);
        Err(self.to.stop(&operation, error).await)
    }

    async fn is_there(&self) -> Result<bool> {
        let head = self.to.target.head(&self.to.key).await?;
        Ok(head.is_some_and(|head| head.size == self.entry.size))
    }
}

impl Destination {
    async fn send_part(&self, part: Part) -> std::result::Result<(usize, CompletedPart), Stop> {
        let target = &self.target;
        let number = number_of(part.index);
        let crc = target.send_checksums.then(|| Crc64::of(&part).base64());
        let request = target
            .sender
            .upload_part()
            .bucket(&target.uri.bucket)
            .key(target.key(&self.key))
            .upload_id(&self.id)
            .part_number(number)
            .set_checksum_crc64_nvme(crc.clone())
            .body(part.bytes.clone().into());
        let _slot = target.slot().await;
        let mut request = request.customize();
        if !target.sign_payload {
            request = request.disable_payload_signing();
        }
        match request.send().await {
            Ok(output) => Ok((part.index, completed(number, output.e_tag(), crc))),
            Err(error) => {
                let operation = format!("upload part {number} of {}", self.key);
                Err(self.stop(&operation, error).await)
            }
        }
    }

    async fn stop<E>(&self, operation: &str, error: SdkError<E>) -> Stop
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error
            .as_service_error()
            .and_then(ProvideErrorMetadata::code);
        if matches!(code, Some("NoSuchUpload" | "InvalidPart")) {
            return Stop::Overtaken;
        }
        Stop::Failed(self.target.failure(operation, error).await)
    }
}

/// Part numbers run from 1.
fn number_of(index: usize) -> i32 {
    index as i32 + 1
}

fn completed(number: i32, etag: Option<&str>, crc: Option<String>) -> CompletedPart {
    CompletedPart::builder()
        .part_number(number)
        .set_e_tag(etag.map(str::to_owned))
        .set_checksum_crc64_nvme(crc)
        .build()
}

/// A stored part that is what the manifest says, with its index.
fn right_part(entry: &FileEntry, part: StoredPart) -> Option<(usize, CompletedPart)> {
    let index = usize::try_from(part.number.checked_sub(1)?).ok()?;
    let expected = entry.parts.as_ref()?.crc64nvme.get(index)?.base64();
    let is_right = part.size == part_bounds(entry, index).1 && part.crc.as_ref() == Some(&expected);
    is_right.then(|| {
        (
            index,
            completed(part.number, part.etag.as_deref(), part.crc),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Parts;

    #[test]
    fn only_parts_that_are_surely_right_are_kept() {
        let (first, last) = (vec![1; 16 << 20], vec![2; 5]);
        let crcs = vec![Crc64::of(&first), Crc64::of(&last)];
        let entry = FileEntry {
            path: "f".to_owned(),
            size: (16 << 20) + 5,
            sha256: Digest::of(b"of the whole"),
            parts: Some(Parts {
                size: 16 << 20,
                crc64nvme: crcs.clone(),
            }),
        };
        let right = StoredPart {
            number: 2,
            size: 5,
            etag: Some("tag".to_owned()),
            crc: Some(crcs[1].base64()),
        };
        let (index, kept) = right_part(&entry, right.clone()).unwrap();
        assert_eq!((index, kept.part_number()), (1, Some(2)));
        let wrong = [
            StoredPart {
                number: 1,
                ..right.clone()
            },
            StoredPart {
                number: 3,
                ..right.clone()
            },
            StoredPart {
                number: 0,
                ..right.clone()
            },
            StoredPart {
                number: i32::MIN,
                ..right.clone()
            },
            StoredPart {
                size: 4,
                ..right.clone()
            },
            StoredPart {
                crc: None,
                ..right.clone()
            },
            StoredPart {
                crc: Some(crcs[0].base64()),
                ..right
            },
        ];
        for part in wrong {
            assert!(right_part(&entry, part.clone()).is_none(), "{part:?}");
        }
    }
}
