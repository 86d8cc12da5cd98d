//! Reading a folder once: sizes, SHA-256 and CRC64NVME of every file and of its parts.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::digest::{hex, is_lower_hex};
use crate::manifest::check_path;
use crate::{Digest, Error, FileEntry, Parts, Result};

const MIB: u64 = 1 << 20;

/// Files of at most so many bytes are kept as they were hashed, so that sending them reads nothing again.
const KEEP_UP_TO: u64 = MIB;
/// Bytes of them that a process keeps at a time; further ones are read and hashed again.
static KEEP: Semaphore = Semaphore::const_new(32 << 20);

/// Files are read side by side by at most so many threads.
const MOST_READERS: usize = 8;

/// Bytes per part of a file: 16 MiB, 64 MiB from 8 GiB on, and never more than 9,000 parts.
///
/// It depends on the size alone, because the part table is part of what an id covers.
pub(crate) fn part_size(file_size: u64) -> u64 {
    let mut size = if file_size >= 8 << 30 {
        64 * MIB
    } else {
        16 * MIB
    };
    while file_size.div_ceil(size) > 9_000 {
        size *= 2;
    }
    size
}

/// A CRC64NVME checksum, written as 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc64(u64);

impl Crc64 {
    /// Checksum of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc_fast::checksum(Crc64Nvme, bytes))
    }

    /// A checksum that was computed piece by piece.
    pub(crate) fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// Checksum of a file from those of its parts.
    pub(crate) fn of_parts(file_size: u64, parts: &Parts) -> Self {
        let mut whole = 0;
        let mut start = 0;
        for part in &parts.crc64nvme {
            let length = parts.size.min(file_size - start);
            whole = crc_fast::checksum_combine(Crc64Nvme, whole, part.0, length);
            start += length;
        }
        Self(whole)
    }

    /// The spelling of S3 headers.
    pub(crate) fn base64(self) -> String {
        aws_smithy_types::base64::encode(self.0.to_be_bytes())
    }
}

impl fmt::Display for Crc64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0.to_be_bytes()))
    }
}

impl FromStr for Crc64 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = is_lower_hex(text, 16)
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten();
        value.map(Self).ok_or_else(|| {
            Error::bad_input(
                format!("checksum {text:?}"),
                "expected 16 lower-case hexadecimal digits",
            )
        })
    }
}

impl Serialize for Crc64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Crc64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A file of the folder with all that publishing needs to know.
#[derive(Debug, Clone)]
pub(crate) struct ScannedFile {
    pub(crate) entry: FileEntry,
    pub(crate) local: Local,
}

/// Where a content comes from.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// The file.
    pub(crate) path: PathBuf,
    /// The very bytes that were hashed, where they were kept.
    pub(crate) bytes: Option<Bytes>,
}

/// A small file's bytes; its share of what may be kept is given back with them.
struct Kept {
    bytes: Vec<u8>,
    _share: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// All files below a folder, sorted by path. Only regular files and folders may lie there.
pub(crate) fn scan_folder(root: &Path) -> Result<Vec<ScannedFile>> {
    let mut paths = Vec::new();
    collect(root, String::new(), &mut paths)?;
    paths.sort();
    let mut files = scan_files(root, &paths)?;
    files.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    Ok(files)
}

/// Reads the files side by side; in no order.
fn scan_files(root: &Path, paths: &[String]) -> Result<Vec<ScannedFile>> {
    let next = AtomicUsize::new(0);
    let scan = || {
        let mine = std::iter::from_fn(|| paths.get(next.fetch_add(1, Ordering::Relaxed)));
        let scanned = mine.map(|path| scan_file(root, path.clone()));
        scanned.collect::<Result<Vec<_>>>()
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let others = cores.min(MOST_READERS).min(paths.len()).saturating_sub(1);
    thread::scope(|scope| {
        let others: Vec<_> = (0..others).map(|_| scope.spawn(scan)).collect();
        let mut files = scan()?;
        for other in others {
            let scanned = other.join();
            files.extend(scanned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(files)
    })
}

fn collect(folder: &Path, prefix: String, paths: &mut Vec<String>) -> Result<()> {
    let io = |source| Error::io(folder, source);
    for item in fs::read_dir(folder).map_err(io)? {
        let item = item.map_err(io)?;
        let here = item.path();
        let wrong = |detail: &str| Error::bad_input(here.display().to_string(), detail);
        let name = item
            .file_name()
            .into_string()
            .map_err(|_| wrong("the name is not UTF-8"))?;
        let path = format!("{prefix}{name}");
        check_path(&path).map_err(wrong)?;
        let kind = item.file_type().map_err(io)?;
        if kind.is_dir() {
            collect(&here, format!("{path}/"), paths)?;
        } else if kind.is_file() {
            paths.push(path);
        } else {
            return Err(wrong("only regular files and folders can be published"));
        }
    }
    Ok(())
}

fn scan_file(root: &Path, path: String) -> Result<ScannedFile> {
    let source = root.join(&path);
    let io = |error| Error::io(&source, error);
    let mut file = File::open(&source).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let bytes = keep(&mut file, size).map_err(io)?;
    let (sha256, parts) = match &bytes {
        Some(bytes) => (Digest::of(bytes), None),
        None => hash(&mut file, size).map_err(io)?,
    };
    let entry = FileEntry {
        path,
        size,
        sha256,
        parts,
    };
    let path = source;
    Ok(ScannedFile {
        entry,
        local: Local { path, bytes },
    })
}

/// The digest of a file, and its parts if there are several.
fn hash(file: &mut File, size: u64) -> std::io::Result<(Digest, Option<Parts>)> {
    let part = part_size(size);
    let mut sha = Sha256::new();
    let mut parts = Vec::new();
    let mut read = 0;
    while read < size {
        let end = size.min(read + part);
        parts.push(scan_part(file, end - read, &mut sha)?);
        read = end;
    }
    let parts = (parts.len() > 1).then_some(Parts {
        size: part,
        crc64nvme: parts,
    });
    Ok((Digest(sha.finalize().into()), parts))
}

/// All bytes of a small file, as long as there is room to keep them; one that shrinks meanwhile is an error.
fn keep(file: &mut File, size: u64) -> std::io::Result<Option<Bytes>> {
    if size > KEEP_UP_TO {
        return Ok(None);
    }
    let Ok(share) = KEEP.try_acquire_many(size as u32) else {
        return Ok(None);
    };
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes)?;
    Ok(Some(Bytes::from_owner(Kept {
        bytes,
        _share: share,
    })))
}

/// Reads one part in blocks; a file that shrinks meanwhile is an error.
fn scan_part(file: &mut File, length: u64, sha: &mut Sha256) -> std::io::Result<Crc64> {
    let mut part = crc_fast::Digest::new(Crc64Nvme);
    let mut block = vec![0; (length.min(MIB)) as usize];
    let mut left = length;
    while left > 0 {
        let want = left.min(MIB) as usize;
        let block = &mut block[..want];
        file.read_exact(block)?;
        sha.update(&*block);
        part.update(block);
        left -= want as u64;
    }
    Ok(Crc64(part.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::read_few;

    #[test]
    fn part_sizes_keep_the_number_of_parts_low() {
        assert_eq!(part_size(0), 16 * MIB);
        assert_eq!(part_size((8 << 30) - 1), 16 * MIB);
        assert_eq!(part_size(27_000_000_000), 64 * MIB);
        assert_eq!(u64::div_ceil(27_000_000_000, 64 * MIB), 403);
        for size in [1, 1 << 30, 600 << 30, 5 << 40] {
            assert!(u64::div_ceil(size, part_size(size)) <= 9_000, "{size}");
        }
    }

    #[test]
    fn the_checksum_of_the_standard_text() {
        // Check value of CRC-64/NVME for "123456789" in the catalogue of parametrised CRC algorithms.
        assert_eq!(Crc64::of(b"123456789").to_string(), "ae8b14860a799888");
    }

    #[test]
    fn files_come_sorted_by_path_with_their_digests() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for path in ["b/z", "b.x", "a", "b/a"] {
            fs::write(dir.path().join(path), path).unwrap();
        }
        let files = scan_folder(dir.path()).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.entry.path.as_str()).collect();
        assert_eq!(paths, ["a", "b.x", "b/a", "b/z"]);
        assert_eq!(files[1].entry.sha256, Digest::of(b"b.x"));
        assert_eq!(files[1].entry.parts, None);
    }

    #[test]
    fn a_large_file_has_a_checksum_for_each_part() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..(16 * MIB + 5)).map(|n| (n % 251) as u8).collect();
        fs::write(dir.path().join("large"), &bytes).unwrap();
        let file = scan_folder(dir.path()).unwrap().remove(0);
        let split = (16 * MIB) as usize;
        let expected = vec![Crc64::of(&bytes[..split]), Crc64::of(&bytes[split..])];
        let parts = file.entry.parts.unwrap();
        assert_eq!(parts.crc64nvme, expected);
        assert_eq!(Crc64::of_parts(file.entry.size, &parts), Crc64::of(&bytes));
        assert_eq!(file.entry.sha256, Digest::of(&bytes));
    }

    #[tokio::test]
    async fn what_is_sent_of_a_file_is_what_was_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (size, is_kept) in [(0, true), (KEEP_UP_TO, true), (KEEP_UP_TO + 1, false)] {
            let (bytes, other) = (vec![1; size as usize], vec![2; size as usize]);
            fs::write(&path, &bytes).unwrap();
            let file = scan_folder(dir.path()).unwrap().remove(0);
            assert_eq!(file.entry.sha256, Digest::of(&bytes));
            assert_eq!((file.entry.size, &file.entry.parts), (size, &None));
            fs::write(&path, other).unwrap();
            assert_eq!(file.local.bytes.is_some(), is_kept);
            if let Some(kept) = file.local.bytes {
                assert!(kept == bytes);
            } else {
                let read = read_few(vec![(file.entry, file.local.path)]).await;
                assert_eq!(read.unwrap_err().exit_class().code(), 65, "it changed");
            }
        }
    }

    #[test]
    fn many_files_are_read_side_by_side_and_a_bad_one_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |number: usize| dir.path().join(format!("{number:03}"));
        for number in 0..200 {
            fs::write(path(number), number.to_string()).unwrap();
        }
        let files = scan_folder(dir.path()).unwrap();
        assert_eq!(files.len(), 200);
        for (number, file) in files.iter().enumerate() {
            assert_eq!(file.local.path, path(number));
            assert_eq!(file.entry.sha256, Digest::of(number.to_string().as_bytes()));
        }
        let gone = vec!["000".to_owned(), "no such file".to_owned()];
        let error = scan_files(dir.path(), &gone).unwrap_err();
        assert!(error.to_string().contains("no such file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(scan_folder(dir.path()).unwrap_err().exit_class().code(), 65);
    }
}
