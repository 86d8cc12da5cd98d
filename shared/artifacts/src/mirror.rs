//! The local mirror: contents by digest, and trees of hard links to them.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::blob::{is_right, num_parts, part_bounds};
use crate::{ArtifactId, Digest, Error, FileEntry, Result};

/// Bytes written at a time. Larger writes make the kernel ask for larger pieces of free memory, and where it
/// got those back from a hypervisor, each of their pages costs a fault: 1 GiB takes 0.4 s in blocks of up to 256 KiB, and
/// 4 s in blocks of 1 MiB (virtual machine with Linux 6.18 and free page reporting, 2026-11).
const BLOCK: usize = 128 << 10;
/// What takes no room on the disk.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A folder that keeps fetched contents, shared by all jobs on a machine.
///
/// Contents lie under their digest, read-only, and appear there only when complete and verified. Several
/// processes may use one mirror at a time. What was fetched through a mirror stays in it until the last clone of
/// this value is dropped; without a limit nothing ever goes.
#[derive(Debug, Clone)]
pub struct Mirror {
    root: PathBuf,
    limit: Option<u64>,
    /// Locked files of the artifacts in use.
    held: Arc<Mutex<BTreeMap<ArtifactId, File>>>,
}

impl Mirror {
    /// Opens a mirror, creating its folder.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be created.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(|source| Error::io(root, source))?;
        let root = root
            .canonicalize()
            .map_err(|source| Error::io(root, source))?;
        Ok(Self {
            root,
            limit: None,
            held: Arc::default(),
        })
    }

    /// With a bound on the bytes of its contents: what was used least recently makes room for what is fetched.
    #[must_use]
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Whether this process has an artifact in use.
    pub(crate) fn is_holding(&self, id: &ArtifactId) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.contains_key(id)
    }

    /// Keeps a locked file open as long as this mirror is.
    pub(crate) fn keep_holding(&self, id: &ArtifactId, file: File) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(id.clone(), file);
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a content lies, or will lie.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        let text = digest.to_string();
        self.root.join("blobs/sha256").join(&text[..2]).join(text)
    }

    /// The tree of an artifact.
    pub(crate) fn tree(&self, id: &ArtifactId) -> PathBuf {
        self.root.join("trees").join(id.to_string())
    }

    /// Fails when the contents that are not here would not fit on the disk.
    pub(crate) fn check_room(&self, files: &[FileEntry]) -> Result<()> {
        let absent = files
            .iter()
            .filter(|file| !self.blob(&file.sha256).exists());
        let needed: u64 = absent.map(|file| file.size).sum();
        let disk =
            rustix::fs::statvfs(&self.root).map_err(|error| Error::io(&self.root, error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= free {
            return Ok(());
        }
        Err(Error::NoSpace {
            what: self.root.display().to_string(),
            detail: format!("{needed} bytes are to be fetched and {free} are free"),
        })
    }

    /// Whether a content is here and whole. A damaged one is removed, so that it is fetched again.
    pub(crate) fn has(&self, entry: &FileEntry) -> Result<bool> {
        let path = self.blob(&entry.sha256);
        match fs::metadata(&path) {
            Ok(found) if found.len() == entry.size && Digest::of_file(&path)? == entry.sha256 => {
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(&path, error)),
        }
        tracing::warn!(path = %path.display(), "a mirrored file is damaged; fetching it again");
        remove_if_there(&path)?;
        Ok(false)
    }

    /// Places a content into a folder: a hard link, or a copy where the folder is on another disk.
    pub(crate) fn place(&self, entry: &FileEntry, folder: &Path) -> Result<()> {
        let blob = self.blob(&entry.sha256);
        let path = folder.join(&entry.path);
        let parent = path.parent().unwrap_or(folder);
        if in_folder(parent, || fs::hard_link(&blob, &path)).is_ok() || is_same_file(&blob, &path) {
            return Ok(());
        }
        // Something else lies there, or the folder is on another disk.
        let temporary = tempfile::Builder::new()
            .prefix(".placing-")
            .tempdir_in(parent)
            .map_err(|source| Error::io(parent, source))?;
        let new = temporary.path().join("file");
        fs::hard_link(&blob, &new)
            .or_else(|_| fs::copy(&blob, &new).map(|_| ()))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| Error::io(&path, source))
    }
}

/// Makes a file, and its folder where that is missing: among many files that is the exception.
fn in_folder<T>(folder: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            make()
        }
        made => made,
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    are_one(fs::metadata(a), fs::symlink_metadata(b))
}

/// Whether two files exist and are one.
fn are_one(a: io::Result<Metadata>, b: io::Result<Metadata>) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// A content being fetched: `<digest>.part`, locked.
pub(crate) struct PartialFile {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl PartialFile {
    /// Opens the partial file and waits for its lock: one process fetches a content, the others wait. None when
    /// the content came to lie in its place meanwhile.
    pub(crate) fn open(target: PathBuf) -> Result<Option<Self>> {
        let path = target.with_extension("part");
        let folder = target.parent().unwrap_or(&target);
        let file = in_folder(folder, || lock_at(&path));
        let file = file.map_err(|source| Error::io(&path, source))?;
        if target.exists() {
            fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
            return Ok(None);
        }
        Ok(Some(Self { file, path, target }))
    }

    /// Keeps the leading parts that an interrupted fetch left and that check out; returns their number and hash.
    pub(crate) fn resume(&mut self, entry: &FileEntry) -> Result<(usize, Sha256)> {
        let mut sha = Sha256::new();
        let mut kept = 0;
        let mut offset = 0;
        let mut bytes = Vec::new();
        while entry.parts.is_some() && kept < num_parts(entry) {
            let (start, length) = part_bounds(entry, kept);
            bytes.clear();
            bytes.reserve_exact(length as usize);
            let read = self.file.seek(SeekFrom::Start(start));
            read.and_then(|_| (&self.file).take(length).read_to_end(&mut bytes))
                .map_err(|source| Error::io(&self.path, source))?;
            if !is_right(entry, kept, &bytes) {
                break;
            }
            sha.update(&bytes);
            kept += 1;
            offset = start + length;
        }
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| Error::io(&self.path, source))?;
        self.end_at(offset)?;
        Ok((kept, sha))
    }

    /// Appends one part.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(BLOCK)
            .try_for_each(|block| self.write(block))?;
        let end = self.file.stream_position();
        self.end_at(end.map_err(|source| Error::io(&self.path, source))?)
    }

    /// Zeros become a hole: they are read back as zeros all the same.
    fn write(&mut self, block: &[u8]) -> Result<()> {
        let written = if *block == ZEROS[..block.len()] {
            self.file.seek_relative(block.len() as i64)
        } else {
            self.file.write_all(block)
        };
        written.map_err(|source| Error::io(&self.path, source))
    }

    /// A hole at the end is no part of the file yet, and what an earlier attempt left may be longer. A file that ends there
    /// is left alone: ext4 takes even an empty one that is cut to nothing for one that is being replaced, and when it is
    /// closed waits until all that was written since is on its way to the disk (half a second per GiB).
    fn end_at(&self, length: u64) -> Result<()> {
        let found = self.file.metadata();
        found
            .and_then(|found| {
                if found.len() == length {
                    return Ok(());
                }
                self.file.set_len(length)
            })
            .map_err(|source| Error::io(&self.path, source))
    }

    /// Takes a whole content, which was checked when it arrived, and moves it to its place as [`PartialFile::finish`] does.
    pub(crate) fn fill(mut self, content: &[u8]) -> Result<()> {
        // What an interrupted fetch left has other bytes where zeros are skipped.
        self.end_at(0)?;
        self.append(content)?;
        self.publish()
    }

    /// Checks the digest of what was written and moves it, read-only, to its place. It is not made durable: a mirror hashes what
    /// it has before every use, so what a power cut takes is fetched again.
    pub(crate) fn finish(self, found: Digest, entry: &FileEntry) -> Result<()> {
        if found != entry.sha256 {
            self.file
                .set_len(0)
                .map_err(|source| Error::io(&self.path, source))?;
            return Err(Error::corrupt(
                &entry.path,
                format!("the fetched bytes do not have the SHA-256 {}", entry.sha256),
            ));
        }
        self.publish()
    }

    fn publish(&self) -> Result<()> {
        let io = |source| Error::io(&self.path, source);
        fs::rename(&self.path, &self.target).map_err(io)?;
        self.file
            .set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(io)
    }
}

/// Opens a file, creating it, and locks it. Its last holder may have moved it to its place: then the lock is on a
/// finished content, which must not be written to, and a new file takes the path.
fn lock_at(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        if are_one(file.metadata(), fs::symlink_metadata(path)) {
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: &[u8]) -> FileEntry {
        FileEntry {
            path: "a/b.txt".to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
            parts: None,
        }
    }

    fn fill(mirror: &Mirror, bytes: &[u8]) -> Result<()> {
        let entry = entry(bytes);
        let mut part =
            PartialFile::open(mirror.blob(&entry.sha256))?.expect("the content is not here yet");
        part.resume(&entry)?;
        part.append(bytes)?;
        part.finish(Digest::of(bytes), &entry)
    }

    #[test]
    fn a_content_appears_only_when_its_digest_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(dir.path()).unwrap();
        let wanted = entry(b"right");
        let mut part = PartialFile::open(mirror.blob(&wanted.sha256))
            .unwrap()
            .unwrap();
        part.append(b"wrong").unwrap();
        let error = part.finish(Digest::of(b"wrong"), &wanted).unwrap_err();
        assert_eq!(error.exit_class().code(), 76);
        assert!(!mirror.has(&wanted).unwrap());
        fill(&mirror, b"right").unwrap();
        assert!(mirror.has(&wanted).unwrap());
        let mode = fs::metadata(mirror.blob(&wanted.sha256))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o444);
    }

    #[test]
    fn zeros_are_kept_as_holes() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(dir.path()).unwrap();
        let bytes = [vec![1; 5], vec![0; 6 << 20]].concat();
        let blob = mirror.blob(&Digest::of(&bytes));
        fill(&mirror, &bytes).unwrap();
        assert!(fs::read(&blob).unwrap() == bytes);
        assert!(fs::metadata(&blob).unwrap().blocks() * 512 <= 256 << 10);
        // The same, over what a fetch of something else left.
        fs::remove_file(&blob).unwrap();
        fs::write(blob.with_extension("part"), vec![9; bytes.len() + 3]).unwrap();
        let partial = PartialFile::open(blob.clone()).unwrap().unwrap();
        partial.fill(&bytes).unwrap();
        assert!(fs::read(&blob).unwrap() == bytes);
    }

    #[test]
    fn who_waited_for_another_fetch_finds_it_done() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(dir.path()).unwrap();
        let wanted = entry(b"right");
        let mut part = PartialFile::open(mirror.blob(&wanted.sha256))
            .unwrap()
            .unwrap();
        let waiting = std::thread::spawn({
            let (mirror, wanted) = (mirror.clone(), wanted.clone());
            move || PartialFile::open(mirror.blob(&wanted.sha256)).map(|part| part.is_none())
        });
        part.append(b"right").unwrap();
        part.finish(Digest::of(b"right"), &wanted).unwrap();
        assert!(waiting.join().unwrap().unwrap());
        let blob = mirror.blob(&wanted.sha256);
        assert_eq!(fs::read(&blob).unwrap(), b"right");
        assert!(!blob.with_extension("part").exists());
    }

    #[test]
    fn a_damaged_content_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(dir.path()).unwrap();
        fill(&mirror, b"right").unwrap();
        let blob = mirror.blob(&Digest::of(b"right"));
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, b"wrong").unwrap();
        assert!(!mirror.has(&entry(b"right")).unwrap());
        assert!(!blob.exists());
    }

    #[test]
    fn what_cannot_fit_is_refused_before_it_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(dir.path()).unwrap();
        mirror.check_room(&[entry(b"small")]).unwrap();
        let huge = FileEntry {
            size: 1 << 60,
            ..entry(b"x")
        };
        assert_eq!(
            mirror.check_room(&[huge]).unwrap_err().exit_class().code(),
            73
        );
    }

    #[test]
    fn placing_replaces_whatever_lies_there_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(&dir.path().join("mirror")).unwrap();
        fill(&mirror, b"right").unwrap();
        let folder = dir.path().join("out");
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::write(folder.join("a/b.txt"), b"old").unwrap();
        for _ in 0..2 {
            mirror.place(&entry(b"right"), &folder).unwrap();
            assert_eq!(fs::read(folder.join("a/b.txt")).unwrap(), b"right");
        }
        assert!(is_same_file(
            &mirror.blob(&Digest::of(b"right")),
            &folder.join("a/b.txt")
        ));
        assert_eq!(fs::read_dir(folder.join("a")).unwrap().count(), 1);
    }
}
