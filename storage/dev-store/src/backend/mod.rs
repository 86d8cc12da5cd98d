//! The store itself, without any protocol: buckets, objects, uploads, and what is found at start.
//!
//! A write is ordered so that a kill at any instant leaves the old object or the new one: data durable, then the record
//! by rename (a small body with it, in the same file), then the folder, then the index in memory, then the old data.
//! Conditions are judged inside the key's lock.

mod inline;
pub(crate) mod listing;
pub(crate) mod multipart;
pub(crate) mod record;
pub(crate) mod segment;
mod start;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::ETagCondition;

use self::inline::Inline;
use self::listing::{Page, Query};
use self::multipart::Upload;
use self::record::{ObjectRecord, record_name, seal};
use self::segment::{Reading, Segment, Span};
pub use self::start::{Damage, StartReport};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;

/// Locks over keys: two writers of one key always meet at the same one. They wait for the disk in it, so there are many
/// more than writers.
const KEY_LOCKS: usize = 1 << (4 * KEY_LOCK_DIGITS);
const KEY_LOCK_DIGITS: usize = 3;

/// An object: its record, and where its bytes lie.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) record: ObjectRecord,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// Behind the record.
    Inline(Inline),
    /// One for each of the record's entries, in their order.
    Segments(Vec<Arc<Segment>>),
}

/// The bytes of an object that is to be published, as its record says.
#[derive(Debug)]
pub(crate) enum Body {
    /// They go behind the record.
    Small(Bytes),
    /// They are durable already.
    Segments(Vec<Arc<Segment>>),
}

impl Body {
    fn into_data(self) -> Data {
        match self {
            Self::Small(_) => Data::Inline(Inline::default()),
            Self::Segments(segments) => Data::Segments(segments),
        }
    }
}

impl Object {
    fn segments(&self) -> &[Arc<Segment>] {
        match &self.data {
            Data::Inline(_) => &[],
            Data::Segments(segments) => segments,
        }
    }

    /// The stretches of segments that hold some bytes.
    fn spans(&self, bytes: Range<u64>) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut begin = 0;
        for (entry, segment) in self.record.segments.iter().zip(self.segments()) {
            let end = begin + entry.size;
            if bytes.start < end && begin < bytes.end {
                spans.push(Span {
                    segment: Arc::clone(segment),
                    segment_size: entry.size,
                    from: bytes.start.max(begin) - begin,
                    to: bytes.end.min(end) - begin,
                });
            }
            begin = end;
        }
        spans
    }

    /// Gets ready for the end of its file.
    fn let_go(&self, path: &Path) {
        if let Data::Inline(inline) = &self.data {
            inline.take_along(path, &self.record);
        }
    }

    fn link(&self) {
        for segment in self.segments() {
            segment.link();
        }
    }

    fn unlink(&self) {
        for segment in self.segments() {
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

    /// The file of a key's record.
    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(record_name(key))
    }

    /// Begins a read of some bytes of an object of this bucket, which may have been replaced since.
    pub(crate) fn read(&self, object: &Object, bytes: Range<u64>) -> Result<Reading, Error> {
        match &object.data {
            Data::Inline(inline) => {
                let body = inline.read(&self.file(&object.record.key), &object.record)?;
                let range = bytes.start as usize..bytes.end as usize;
                Ok(Reading::of(body.slice(range)))
            }
            Data::Segments(_) => segment::begin(object.spans(bytes)),
        }
    }

    /// The bytes of an object of this bucket for another one.
    pub(crate) fn body(&self, object: &Object) -> Result<Body, Error> {
        match &object.data {
            Data::Inline(inline) => {
                let body = inline.read(&self.file(&object.record.key), &object.record)?;
                Ok(Body::Small(body))
            }
            Data::Segments(segments) => Ok(Body::Segments(segments.clone())),
        }
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

    /// Publishes an object, if the condition holds.
    pub(crate) fn put(
        &self,
        bucket: &Bucket,
        record: ObjectRecord,
        body: Body,
        condition: &Condition,
    ) -> Result<Arc<Object>, Error> {
        let key = record.key.clone();
        let name = record_name(&key);
        let path = bucket.folder.join(&name);
        let _guard = self.lock_key(&name);
        let current = bucket.find(&key);
        condition.check(&key, current.as_ref().map(|object| &object.record))?;
        let file = match &body {
            Body::Small(bytes) => inline::file_of(&record, bytes),
            Body::Segments(_) => seal(&record),
        };
        if let Some(old) = &current {
            old.let_go(&path);
        }
        self.disk.replace_file(&path, &file)?;
        // From the rename on the record may be what a restart finds, so the index follows it even if the sync fails.
        let synced = self.disk.sync_shared_dir(&bucket.folder);
        let data = body.into_data();
        let object = Arc::new(Object { record, data });
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
        let path = bucket.folder.join(&name);
        let _guard = self.lock_key(&name);
        let current = bucket.find(key);
        condition.check(key, current.as_ref().map(|object| &object.record))?;
        if let Some(old) = &current {
            old.let_go(&path);
        }
        self.disk.remove_file(&path)?;
        if let Some(old) = bucket.change(|objects| objects.remove(key)) {
            old.unlink();
        }
        Ok(())
    }

    fn lock_key(&self, record_name: &str) -> MutexGuard<'_, ()> {
        let slot = usize::from_str_radix(&record_name[..KEY_LOCK_DIGITS], 16).unwrap_or_default();
        locked(&self.key_locks[slot])
    }
}

/// Locks a mutex whose holder may have panicked: all state behind ours is changed in one step, so it is never half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
