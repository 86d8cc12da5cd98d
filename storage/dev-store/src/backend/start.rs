//! What happens at start: the index is rebuilt from the records, damage is set aside and reported, and what a killed
//! server left behind is removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use jiff::SignedDuration;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::inline::{Inline, require_size};
use super::multipart::{Part, Upload, part_name};
use super::record::{ObjectRecord, PartRecord, SegmentEntry, UploadRecord, record_name, unseal};
use super::segment::Segment;
use super::{Backend, Bucket, Data, KEY_LOCKS, Object};
use crate::clock::Clock;
use crate::disk::{Disk, entries, file_name};
use crate::error::{AtPath, Error};

/// Uploads older than this are aborted.
const UPLOAD_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A record that could not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file, left where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What a server found when it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Objects in the index.
    pub objects: usize,
    /// Uploads under way.
    pub uploads: usize,
    /// Uploads aborted because they were older than seven days.
    pub aborted_uploads: usize,
    /// Data files that no record named, removed. None is removed while a record is damaged, since it may name them.
    pub removed_segments: usize,
    /// Records that were skipped.
    pub damaged: Vec<Damage>,
}

impl Backend {
    /// Opens the root, taking its lock, and rebuilds the index.
    pub(crate) fn open(root: &Path, sync: bool) -> Result<(Self, StartReport), Error> {
        let disk = Disk::open(root, sync)?;
        let mut loader = Loader {
            disk: &disk,
            segments: BTreeMap::new(),
            report: StartReport::default(),
        };
        let buckets = loader.buckets()?;
        let uploads = loader.uploads()?;
        loader.remove_orphans()?;
        let mut report = loader.report;
        let key_locks = std::iter::repeat_with(Mutex::default)
            .take(KEY_LOCKS)
            .collect();
        let backend = Self {
            disk,
            clock: Clock::default(),
            buckets: RwLock::new(buckets),
            uploads: Mutex::new(uploads),
            key_locks,
        };
        report.aborted_uploads = backend.abort_old_uploads()?;
        report.uploads -= report.aborted_uploads;
        Ok((backend, report))
    }

    /// Aborts uploads older than seven days, and says how many.
    pub(crate) fn abort_old_uploads(&self) -> Result<usize, Error> {
        self.abort_uploads_before(self.clock.now() - UPLOAD_LIFETIME)
    }
}

struct Loader<'d> {
    disk: &'d Disk,
    /// The one handle of each segment that a record names, so that objects which share data share its count.
    segments: BTreeMap<String, Arc<Segment>>,
    report: StartReport,
}

impl Loader<'_> {
    fn buckets(&mut self) -> Result<BTreeMap<String, Arc<Bucket>>, Error> {
        let mut buckets = BTreeMap::new();
        for folder in entries(&self.disk.buckets())? {
            let mut objects = BTreeMap::new();
            for path in entries(&folder)? {
                if let Some(record) = self.read(&path, check_object)? {
                    let data = self.data(&record);
                    objects.insert(record.key.clone(), Arc::new(Object { record, data }));
                }
            }
            self.report.objects += objects.len();
            let name = file_name(&folder).to_owned();
            buckets.insert(
                name,
                Arc::new(Bucket {
                    folder,
                    objects: RwLock::new(objects),
                }),
            );
        }
        Ok(buckets)
    }

    fn uploads(&mut self) -> Result<BTreeMap<String, Arc<Upload>>, Error> {
        let mut uploads = BTreeMap::new();
        for folder in entries(&self.disk.uploads())? {
            let files = entries(&folder)?;
            let own = folder.join("upload.json");
            if !files.contains(&own) {
                fs::remove_dir_all(&folder).at(&folder)?;
                continue;
            }
            let Some(record) = self.read::<UploadRecord>(&own, |_, _| Ok(()))? else {
                continue;
            };
            let mut parts = Vec::new();
            for path in files.iter().filter(|path| **path != own) {
                if let Some(record) = self.read::<PartRecord>(path, check_part)? {
                    let segment = self.linked(&record.segment);
                    parts.extend(segment.map(|segment| Part { record, segment }));
                }
            }
            uploads.insert(record.id.clone(), Arc::new(Upload::restored(record, parts)));
        }
        self.report.uploads = uploads.len();
        Ok(uploads)
    }

    /// Reads one record; a damaged one is reported and skipped. What lies behind it is not read.
    fn read<T: Serialize + DeserializeOwned>(
        &mut self,
        path: &Path,
        check: impl FnOnce(&T, &Found<'_>) -> Result<(), String>,
    ) -> Result<Option<T>, Error> {
        let file = File::open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        let mut head = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut head).at(path)?;
        let found = Found {
            name: file_name(path),
            behind: length.saturating_sub(head.len() as u64),
        };
        match unseal(&head).and_then(|record| check(&record, &found).map(|()| record)) {
            Ok(record) => Ok(Some(record)),
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "damaged record skipped");
                self.report.damaged.push(Damage {
                    path: path.to_owned(),
                    reason,
                });
                Ok(None)
            }
        }
    }

    fn data(&mut self, record: &ObjectRecord) -> Data {
        if record.is_inline() {
            Data::Inline(Inline::default())
        } else {
            let entries = record.segments.iter();
            Data::Segments(entries.filter_map(|entry| self.linked(entry)).collect())
        }
    }

    /// The segment that an entry names.
    fn linked(&mut self, entry: &SegmentEntry) -> Option<Arc<Segment>> {
        let name = entry.name.as_ref()?;
        let path = self.disk.segments().join(name);
        let segment = self
            .segments
            .entry(name.clone())
            .or_insert_with(|| Segment::unlinked(path));
        segment.link();
        Some(Arc::clone(segment))
    }

    fn remove_orphans(&mut self) -> Result<(), Error> {
        if !self.report.damaged.is_empty() {
            return Ok(());
        }
        for path in entries(&self.disk.segments())? {
            if !self.segments.contains_key(file_name(&path)) {
                fs::remove_file(&path).at(&path)?;
                self.report.removed_segments += 1;
            }
        }
        Ok(())
    }
}

/// The file that a record was found in.
struct Found<'a> {
    name: &'a str,
    /// Bytes that lie behind the record.
    behind: u64,
}

fn check_object(record: &ObjectRecord, found: &Found<'_>) -> Result<(), String> {
    if record_name(&record.key) != found.name {
        return Err(format!("it is the record of the key {}", record.key));
    }
    let sum: u64 = record.segments.iter().map(|entry| entry.size).sum();
    if sum != record.size {
        return Err(format!(
            "its segments hold {sum} bytes, it says {}",
            record.size
        ));
    }
    if record.is_inline() {
        return require_size(found.behind, record.size);
    }
    record.segments.iter().try_for_each(require_name)
}

fn check_part(record: &PartRecord, found: &Found<'_>) -> Result<(), String> {
    if part_name(record.number) != found.name {
        return Err(format!("it is the record of part {}", record.number));
    }
    require_name(&record.segment)
}

fn require_name(entry: &SegmentEntry) -> Result<(), String> {
    match &entry.name {
        Some(_) => Ok(()),
        None => Err("a part of it has no data file".to_owned()),
    }
}
