//! Multipart uploads: persisted part by part, so that they survive a restart, and completed by writing one record that
//! names the part segments. Nothing is copied, whatever the size.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::record::{ObjectRecord, PartRecord, SegmentEntry, UploadRecord, new_etag, seal};
use super::segment::{Received, Segment};
use super::{Backend, Body, Condition, Object, locked};
use crate::checksums::{Sums, of_parts, require};
use crate::disk::step;
use crate::error::{AtPath, Error};

/// Every part but the last has at least this size, as in S3.
const MIN_PART_BYTES: u64 = 5 << 20;

/// The highest part number.
pub(crate) const MAX_PART_NUMBER: i32 = 10_000;

/// An upload that is under way.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) record: UploadRecord,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<u16, Part>,
    /// Completed or aborted: no further part may join.
    closed: bool,
}

/// A received part.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) record: PartRecord,
    pub(crate) segment: Arc<Segment>,
}

/// A part as the client names it at completion.
#[derive(Debug, Clone)]
pub(crate) struct NamedPart {
    pub(crate) number: i32,
    pub(crate) etag: Option<String>,
    pub(crate) sums: Sums,
}

impl Upload {
    /// An upload read back from disk, with the parts that are whole; their segments are linked already.
    pub(crate) fn restored(record: UploadRecord, parts: impl IntoIterator<Item = Part>) -> Self {
        let parts = parts
            .into_iter()
            .map(|part| (part.record.number, part))
            .collect();
        Self {
            record,
            state: Mutex::new(State {
                parts,
                closed: false,
            }),
        }
    }

    /// The parts received so far, by number.
    pub(crate) fn parts(&self) -> Vec<PartRecord> {
        locked(&self.state)
            .parts
            .values()
            .map(|part| part.record.clone())
            .collect()
    }

    fn closed_error(&self) -> Error {
        Error::NoSuchUpload(self.record.id.clone())
    }
}

/// The file name of a part's record.
pub(crate) fn part_name(number: u16) -> String {
    format!("{number:05}.json")
}

impl Backend {
    /// Begins an upload; it is on disk when this returns.
    pub(crate) fn create_upload(&self, record: UploadRecord) -> Result<(), Error> {
        self.disk.require_space(0)?;
        let folder = self.upload_dir(&record.id);
        self.disk.create_dir(&folder)?;
        self.disk
            .replace_file(&folder.join("upload.json"), &seal(&record))?;
        self.disk.sync_dir(&folder)?;
        locked(&self.uploads).insert(record.id.clone(), Arc::new(Upload::restored(record, [])));
        Ok(())
    }

    /// The upload with this id, if it is for this bucket and key.
    pub(crate) fn upload(&self, id: &str, bucket: &str, key: &str) -> Result<Arc<Upload>, Error> {
        let found = locked(&self.uploads).get(id).cloned();
        found
            .filter(|upload| upload.record.bucket == bucket && upload.record.key == key)
            .ok_or_else(|| Error::NoSuchUpload(id.to_owned()))
    }

    /// The uploads of a bucket, by key, then by id.
    pub(crate) fn uploads_of(&self, bucket: &str) -> Vec<UploadRecord> {
        let uploads = locked(&self.uploads);
        let mut records: Vec<UploadRecord> = uploads
            .values()
            .map(|upload| upload.record.clone())
            .filter(|record| record.bucket == bucket)
            .collect();
        records.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        records
    }

    /// Adds a received, verified body as a part, replacing one of the same number.
    pub(crate) fn add_part(
        &self,
        upload: &Upload,
        number: u16,
        received: Received,
    ) -> Result<PartRecord, Error> {
        let (sums, size) = (received.digests.sums.clone(), received.size);
        let segment = received.into_segment(&self.disk)?;
        let record = PartRecord {
            number,
            etag: new_etag(0),
            modified: self.clock.now(),
            sums,
            segment: SegmentEntry {
                name: Some(segment.name().to_owned()),
                size,
            },
        };
        let mut state = locked(&upload.state);
        if state.closed {
            return Err(upload.closed_error());
        }
        let folder = self.upload_dir(&upload.record.id);
        self.disk
            .replace_file(&folder.join(part_name(number)), &seal(&record))?;
        let synced = self.disk.sync_dir(&folder);
        segment.link();
        let replaced = state.parts.insert(
            number,
            Part {
                record: record.clone(),
                segment,
            },
        );
        synced?;
        if let Some(old) = replaced {
            old.segment.unlink();
        }
        Ok(record)
    }

    /// Turns the named parts into an object. On any error the upload stays as it was.
    pub(crate) fn complete_upload(
        &self,
        upload: &Upload,
        named: &[NamedPart],
        sent: &Sums,
        condition: &Condition,
    ) -> Result<Arc<Object>, Error> {
        let bucket = self.bucket(&upload.record.bucket)?;
        let mut state = locked(&upload.state);
        if state.closed {
            return Err(upload.closed_error());
        }
        let parts = chosen_parts(&state.parts, named)?;
        let record = assemble(&upload.record, &parts, sent, self.clock.now())?;
        let segments = parts.into_iter().map(|part| part.segment).collect();
        let object = self.put(&bucket, record, Body::Segments(segments), condition)?;
        if let Err(error) = self.close_upload(upload, &mut state) {
            // The object exists, so the client must hear so; what stays of the upload is aborted in seven days.
            tracing::warn!(upload = upload.record.id, %error, "a completed upload was not cleaned up");
        }
        Ok(object)
    }

    /// Forgets an upload and its parts.
    pub(crate) fn abort_upload(&self, upload: &Upload) -> Result<(), Error> {
        let mut state = locked(&upload.state);
        if state.closed {
            return Err(upload.closed_error());
        }
        self.close_upload(upload, &mut state)
    }

    /// Aborts the uploads that began before `limit`, and says how many.
    pub(crate) fn abort_uploads_before(&self, limit: Timestamp) -> Result<usize, Error> {
        let old: Vec<Arc<Upload>> = locked(&self.uploads)
            .values()
            .filter(|upload| upload.record.initiated < limit)
            .cloned()
            .collect();
        for upload in &old {
            match self.abort_upload(upload) {
                Ok(()) | Err(Error::NoSuchUpload(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(old.len())
    }

    /// Removes the upload's folder, its own record first: a folder without one is a leftover, removed at start.
    fn close_upload(&self, upload: &Upload, state: &mut State) -> Result<(), Error> {
        state.closed = true;
        locked(&self.uploads).remove(&upload.record.id);
        let folder = self.upload_dir(&upload.record.id);
        self.disk.remove_file(&folder.join("upload.json"))?;
        fs::remove_dir_all(&folder).at(&folder)?;
        step();
        for part in std::mem::take(&mut state.parts).into_values() {
            part.segment.unlink();
        }
        Ok(())
    }

    fn upload_dir(&self, id: &str) -> PathBuf {
        self.disk.uploads().join(id)
    }
}

/// Looks the named parts up and holds what the client says about each against what arrived.
fn chosen_parts(parts: &BTreeMap<u16, Part>, named: &[NamedPart]) -> Result<Vec<Part>, Error> {
    if named.is_empty() {
        return Err(Error::Invalid(
            "an upload needs at least one part to be completed".to_owned(),
        ));
    }
    if !named.windows(2).all(|pair| pair[0].number < pair[1].number) {
        return Err(Error::InvalidPartOrder);
    }
    let chosen = named
        .iter()
        .map(|name| chosen_part(parts, name))
        .collect::<Result<Vec<Part>, Error>>()?;
    let all_but_last = &chosen[..chosen.len() - 1];
    match all_but_last
        .iter()
        .find(|part| part.record.segment.size < MIN_PART_BYTES)
    {
        Some(small) => Err(Error::PartTooSmall {
            number: small.record.number,
            size: small.record.segment.size,
        }),
        None => Ok(chosen),
    }
}

fn chosen_part(parts: &BTreeMap<u16, Part>, named: &NamedPart) -> Result<Part, Error> {
    let invalid = |reason: String| Error::InvalidPart {
        number: named.number,
        reason,
    };
    let number =
        u16::try_from(named.number).map_err(|_| invalid("no such part number".to_owned()))?;
    let part = parts
        .get(&number)
        .ok_or_else(|| invalid("was not uploaded".to_owned()))?;
    if named.etag.as_ref() != Some(&part.record.etag) {
        let sent = named.etag.as_deref().unwrap_or("none");
        return Err(invalid(format!(
            "ETag {sent} was sent, it has {}",
            part.record.etag
        )));
    }
    require(&named.sums, &part.record.sums).map_err(|error| invalid(error.to_string()))?;
    Ok(part.clone())
}

fn assemble(
    upload: &UploadRecord,
    parts: &[Part],
    sent: &Sums,
    modified: Timestamp,
) -> Result<ObjectRecord, Error> {
    let views: Vec<(&Sums, u64)> = parts
        .iter()
        .map(|part| (&part.record.sums, part.record.segment.size))
        .collect();
    let checksums = of_parts(upload.algorithm, upload.composite, &views);
    require(sent, &checksums.sums)?;
    Ok(ObjectRecord {
        key: upload.key.clone(),
        size: views.iter().map(|(_, size)| size).sum(),
        etag: new_etag(parts.len()),
        modified,
        headers: upload.headers.clone(),
        checksums,
        segments: parts
            .iter()
            .map(|part| part.record.segment.clone())
            .collect(),
    })
}
