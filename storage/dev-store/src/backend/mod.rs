//! The store itself, without any protocol: buckets, objects, uploads, and what is found at start.
//!
//! A write is ordered so that a kill at any instant leaves the old object or the new one: data durable, then the record
//! by rename, then the folder, then the index in memory, then the old data. Conditions are judged inside the key's lock.

pub(crate) mod listing;
pub(crate) mod multipart;
pub(crate) mod record;
pub(crate) mod segment;
mod start;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use s3s::dto::ETagCondition;

use self::listing::{Page, Query};
use self::multipart::Upload;
use self::record::{ObjectRecord, record_name, seal};
use self::segment::{Segment, Span};
pub use self::start::{Damage, StartReport};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::{AtPath, Error};

/// Locks over keys: two writers of one key always meet at the same one.
const KEY_LOCKS: usize = 256;

/// An object: its record and the handles of its segments, in the same order.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) record: ObjectRecord,
    pub(crate) segments: Vec<Arc<Segment>>,
}

impl Object {
    /// The stretches of segments that hold the bytes from `from` up to, not including, `to`.
    pub(crate) fn spans(&self, from: u64, to: u64) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut begin = 0;
        for (entry, segment) in self.record.segments.iter().zip(&self.segments) {
            let end = begin + entry.size;
            if from < end && begin < to {
                spans.push(Span {
                    segment: Arc::clone(segment),
                    segment_size: entry.size,
                    from: from.max(begin) - begin,
                    to: to.min(end) - begin,
                });
            }
            begin = end;
        }
        spans
    }

    fn link(&self) {
        for segment in &self.segments {
            segment.link();
        }
    }

    fn unlink(&self) {
        for segment in &self.segments {
            segment.unlink();
        }
    }
}

/// The conditions of a write.
#[derive(Debug, Default)]
pub(crate) struct Condition {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
}

impl Condition {
    fn check(&self, key: &str, current: Option<&ObjectRecord>) -> Result<(), Error> {
        match (&self.if_match, current) {
            (Some(_), None) => return Err(Error::NoSuchKey(key.to_owned())),
            (Some(wanted), Some(record)) if !etag_matches(wanted, &record.etag) => {
                return Err(Error::PreconditionFailed("If-Match"));
            }
            _ => {}
        }
        match (&self.if_none_match, current) {
            (Some(refused), Some(record)) if etag_matches(refused, &record.etag) => {
                Err(Error::PreconditionFailed("If-None-Match"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a condition names this ETag; `*` names any.
pub(crate) fn etag_matches(condition: &ETagCondition, etag: &str) -> bool {
    condition
        .as_etag()
        .is_none_or(|wanted| wanted.value() == etag)
}

/// A bucket: a folder of records and their ordered index.
#[derive(Debug)]
pub(crate) struct Bucket {
    folder: PathBuf,
    objects: RwLock<BTreeMap<String, Arc<Object>>>,
}

impl Bucket {
    pub(crate) fn get(&self, key: &str) -> Result<Arc<Object>, Error> {
        self.find(key)
            .ok_or_else(|| Error::NoSuchKey(key.to_owned()))
    }

    fn find(&self, key: &str) -> Option<Arc<Object>> {
        self.objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    pub(crate) fn list(&self, query: &Query) -> Page<Arc<Object>> {
        listing::page(
            &self.objects.read().unwrap_or_else(PoisonError::into_inner),
            query,
        )
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Object>>) -> T) -> T {
        change(&mut self.objects.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the bucket was made, as far as the file system knows.
    pub(crate) fn created(&self) -> SystemTime {
        let metadata = fs::metadata(&self.folder);
        metadata
            .and_then(|data| data.created().or_else(|_| data.modified()))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The store under one root.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
    uploads: Mutex<BTreeMap<String, Arc<Upload>>>,
    key_locks: Vec<Mutex<()>>,
}

impl Backend {
    pub(crate) fn bucket(&self, name: &str) -> Result<Arc<Bucket>, Error> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoSuchBucket(name.to_owned()))
    }

    /// The buckets in name order.
    pub(crate) fn buckets(&self) -> Vec<(String, Arc<Bucket>)> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .iter()
            .map(|(name, bucket)| (name.clone(), Arc::clone(bucket)))
            .collect()
    }

    pub(crate) fn create_bucket(&self, name: &str) -> Result<(), Error> {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if buckets.contains_key(name) {
            return Err(Error::BucketExists(name.to_owned()));
        }
        let folder = self.disk.buckets().join(name);
        self.disk.create_dir(&folder)?;
        buckets.insert(
            name.to_owned(),
            Arc::new(Bucket {
                folder,
                objects: RwLock::default(),
            }),
        );
        Ok(())
    }

    /// Publishes an object whose data is durable, if the condition holds.
    pub(crate) fn put(
        &self,
        bucket: &Bucket,
        object: Object,
        condition: &Condition,
    ) -> Result<Arc<Object>, Error> {
        let key = object.record.key.clone();
        let name = record_name(&key);
        let _guard = self.lock_key(&name);
        let current = bucket.find(&key);
        condition.check(&key, current.as_ref().map(|object| &object.record))?;
        self.disk
            .replace_file(&bucket.folder.join(name), &seal(&object.record))?;
        // From the rename on the record may be what a restart finds, so the index follows it even if the sync fails.
        let synced = self.disk.sync_shared_dir(&bucket.folder);
        let object = Arc::new(object);
        object.link();
        bucket.change(|objects| objects.insert(key, Arc::clone(&object)));
        synced?;
        if let Some(old) = current {
            old.unlink();
        }
        Ok(object)
    }

    /// Removes an object if the condition holds; an absent one is fine, and so is a damaged record.
    pub(crate) fn delete(
        &self,
        bucket: &Bucket,
        key: &str,
        condition: &Condition,
    ) -> Result<(), Error> {
        let name = record_name(key);
        let _guard = self.lock_key(&name);
        let current = bucket.find(key);
        condition.check(key, current.as_ref().map(|object| &object.record))?;
        self.disk.remove_file(&bucket.folder.join(name))?;
        if let Some(old) = bucket.change(|objects| objects.remove(key)) {
            old.unlink();
        }
        Ok(())
    }

    fn lock_key(&self, record_name: &str) -> MutexGuard<'_, ()> {
        let slot = usize::from_str_radix(&record_name[..2], 16).unwrap_or_default();
        locked(&self.key_locks[slot % KEY_LOCKS])
    }
}

/// Locks a mutex whose holder may have panicked: all state behind ours is changed in one step, so it is never half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a whole file.
fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).at(path)
}
