//! The folder on disk: its layout, its exclusive lock, and the few durable file operations all else is built from.
//!
//! ```text
//! ROOT/lock                                        held while a server runs
//! ROOT/keys.json                                   access and secret key, 0600
//! ROOT/buckets/<bucket>/<sha256 of the key>.json   an object's record; a small body behind it
//! ROOT/uploads/<upload id>/upload.json, 00001.json, ...
//! ROOT/segments/<random id>                        immutable data
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::{AtPath, Error};

/// Names of files that are not yet published; removed at start.
const TEMPORARY: &str = ".tmp-";

/// A number here kills the process, as `kill -9` does, at that step of all that change the disk: tests look at what is
/// left.
const DIE_AT_STEP: &str = "DEV_STORE_DIE_AT_STEP";

/// Free bytes that must remain after a write, so that records still fit.
const RESERVE_BYTES: u64 = 4 << 20;

/// The root folder, locked for this process.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    sync: bool,
    /// Of the folders that many writers sync at a time.
    shared_syncs: Mutex<HashMap<PathBuf, Arc<SharedSync>>>,
    _lock: File,
}

impl Disk {
    /// Opens or creates the root and takes its lock.
    pub(crate) fn open(root: &Path, sync: bool) -> Result<Self, Error> {
        fs::create_dir_all(root).at(root)?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .at(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::RootHeld {
                    root: root.to_owned(),
                });
            }
            Err(fs::TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        let disk = Self {
            root: root.to_owned(),
            sync,
            shared_syncs: Mutex::default(),
            _lock: lock,
        };
        for folder in [disk.buckets(), disk.uploads(), disk.segments()] {
            disk.create_dir(&folder)?;
        }
        Ok(disk)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn buckets(&self) -> PathBuf {
        self.root.join("buckets")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(crate) fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    /// Creates a folder and makes its name durable; an existing one is fine.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<(), Error> {
        fs::create_dir_all(path).at(path)?;
        step();
        path.parent().map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    /// Puts `bytes` at `path` so that a reader sees the old file or the new one, never a part of either.
    ///
    /// The new name is durable after [`Disk::sync_dir`] on the parent.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let folder = path.parent().unwrap_or(&self.root);
        let temporary = folder.join(format!("{TEMPORARY}{}", random_name()));
        let written = self
            .write_new(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, path).at(path));
        step();
        if written.is_err() {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .at(path)?;
        step();
        file.write_all(bytes).at(path)?;
        self.sync_file(&file, path)
    }

    pub(crate) fn sync_file(&self, file: &File, path: &Path) -> Result<(), Error> {
        step();
        if self.sync {
            file.sync_all().at(path)
        } else {
            Ok(())
        }
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), Error> {
        step();
        if self.sync {
            File::open(path)
                .and_then(|folder| folder.sync_all())
                .at(path)
        } else {
            Ok(())
        }
    }

    /// [`Disk::sync_dir`] of a folder that stays and that many writers change: one sync serves all who wait for it.
    pub(crate) fn sync_shared_dir(&self, path: &Path) -> Result<(), Error> {
        step();
        if !self.sync {
            return Ok(());
        }
        self.shared_sync(path)
            .and_then(|shared| shared.sync())
            .at(path)
    }

    fn shared_sync(&self, path: &Path) -> io::Result<Arc<SharedSync>> {
        let mut known = self
            .shared_syncs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.get(path) {
            return Ok(Arc::clone(shared));
        }
        let shared = Arc::new(SharedSync::of(File::open(path)?));
        known.insert(path.to_owned(), Arc::clone(&shared));
        Ok(shared)
    }

    /// Removes a file; `false` when there was none.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<bool, Error> {
        let removed = fs::remove_file(path);
        step();
        match removed {
            Ok(()) => path
                .parent()
                .map_or(Ok(true), |parent| self.sync_dir(parent).map(|()| true)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).at(path),
        }
    }

    /// Refuses a write of `bytes` that the disk has no room for.
    pub(crate) fn require_space(&self, bytes: u64) -> Result<(), Error> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(io::Error::from)
            .at(&self.root)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < bytes.saturating_add(RESERVE_BYTES) {
            Err(Error::NoSpace {
                path: self.root.clone(),
            })
        } else {
            Ok(())
        }
    }
}

/// The syncs of one folder, one at a time. Whoever comes while one is under way, which may have missed its change, waits
/// for the next together with all others.
#[derive(Debug)]
struct SharedSync {
    folder: File,
    turns: Mutex<Turns>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    begun: u64,
    ended: u64,
    is_under_way: bool,
    /// The last that failed, and why: the system reports a failure once, and it concerns all who waited.
    failed: Option<(u64, io::ErrorKind)>,
}

impl SharedSync {
    fn of(folder: File) -> Self {
        Self {
            folder,
            turns: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.wait_for(self.next())
    }

    /// The number of the first sync that surely sees what was done before.
    fn next(&self) -> u64 {
        self.locked().begun + 1
    }

    fn locked(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that sync has ended, or makes it.
    fn wait_for(&self, mine: u64) -> io::Result<()> {
        let mut turns = self.locked();
        while turns.ended < mine {
            if turns.is_under_way {
                turns = self
                    .ended
                    .wait(turns)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            turns.is_under_way = true;
            turns.begun += 1;
            let number = turns.begun;
            drop(turns);
            let synced = self.folder.sync_all();
            turns = self.locked();
            turns.is_under_way = false;
            turns.ended = number;
            if let Err(error) = synced {
                turns.failed = Some((number, error.kind()));
            }
            self.ended.notify_all();
        }
        match turns.failed {
            Some((number, kind)) if number >= mine => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

/// Passes a step that changes the disk, or dies there.
pub(crate) fn step() {
    static LEFT: OnceLock<Option<AtomicU64>> = OnceLock::new();
    let left = LEFT.get_or_init(|| {
        let number = std::env::var(DIE_AT_STEP).ok()?;
        number.parse().ok().map(AtomicU64::new)
    });
    if left
        .as_ref()
        .is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 1)
    {
        let own = rustix::process::getpid();
        let killed = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        unreachable!("SIGKILL does not return: {killed:?}");
    }
}

/// The entries of a folder in name order, without temporary files, which are removed on the way.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        if file_name(&path).starts_with(TEMPORARY) {
            fs::remove_file(&path).at(&path)?;
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The last component as text; empty when it is not UTF-8, which none of ours is.
pub(crate) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// 128 random bits in hex.
pub(crate) fn random_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::{Disk, SharedSync, entries};
    use crate::error::Error;
    use std::fs::File;

    #[test]
    fn a_second_lock_on_the_same_root_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Disk::open(folder.path(), false).unwrap();
        assert!(matches!(
            Disk::open(folder.path(), false),
            Err(Error::RootHeld { .. })
        ));
        drop(first);
        Disk::open(folder.path(), false).unwrap();
    }

    #[test]
    fn one_sync_serves_all_who_wait_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let shared = SharedSync::of(File::open(folder.path()).unwrap());
        // One is under way since before the changes of the eight.
        shared.locked().begun = 1;
        let eight: Vec<u64> = (0..8).map(|_| shared.next()).collect();
        shared.locked().ended = 1;
        for number in eight {
            shared.wait_for(number).unwrap();
        }
        let turns = shared.locked();
        assert_eq!((turns.begun, turns.ended), (2, 2));
    }

    #[test]
    fn a_failed_sync_fails_for_all_whom_it_concerns_and_no_other() {
        // A pipe cannot be synced.
        let (pipe, _other) = std::io::pipe().unwrap();
        let shared = SharedSync::of(File::from(std::os::fd::OwnedFd::from(pipe)));
        let both = [shared.next(), shared.next()];
        for number in both {
            assert!(shared.wait_for(number).is_err());
        }
        assert_eq!(
            shared.locked().begun,
            1,
            "the second learns it from the first"
        );
        shared.locked().ended = 2;
        assert!(shared.wait_for(2).is_ok());
    }

    #[test]
    fn more_than_the_disk_holds_is_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), false).unwrap();
        assert!(matches!(
            disk.require_space(u64::MAX),
            Err(Error::NoSpace { .. })
        ));
    }

    #[test]
    fn temporaries_are_removed_and_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".tmp-1"), b"half").unwrap();
        std::fs::write(folder.path().join("kept"), b"whole").unwrap();
        assert_eq!(
            entries(folder.path()).unwrap(),
            vec![folder.path().join("kept")]
        );
        assert!(!folder.path().join(".tmp-1").exists());
    }
}
