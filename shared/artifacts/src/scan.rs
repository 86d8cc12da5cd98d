//! Reading a folder once: sizes, SHA-256 and CRC64NVME of every file and of its parts.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crc_fast::CrcAlgorithm::Crc64Nvme;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::digest::{hex, is_lower_hex};
use crate::manifest::check_path;
use crate::{Digest, Error, FileEntry, Parts, Result};

const MIB: u64 = 1 << 20;

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
    /// Where it lies.
    pub(crate) source: PathBuf,
}

/// All files below a folder, sorted by path. Only regular files and folders may lie there.
pub(crate) fn scan_folder(root: &Path) -> Result<Vec<ScannedFile>> {
    let mut paths = Vec::new();
    collect(root, String::new(), &mut paths)?;
    paths.sort();
    paths
        .into_iter()
        .map(|path| scan_file(root, path))
        .collect()
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
    let part = part_size(size);
    let mut sha = Sha256::new();
    let mut parts = Vec::new();
    let mut read = 0;
    while read < size {
        let end = size.min(read + part);
        parts.push(scan_part(&mut file, end - read, &mut sha).map_err(io)?);
        read = end;
    }
    let entry = FileEntry {
        path,
        size,
        sha256: Digest(sha.finalize().into()),
        parts: (parts.len() > 1).then_some(Parts {
            size: part,
            crc64nvme: parts,
        }),
    };
    Ok(ScannedFile { entry, source })
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

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(scan_folder(dir.path()).unwrap_err().exit_class().code(), 65);
    }
}
