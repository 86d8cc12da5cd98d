//! A PyTorch checkpoint: a zip archive of one pickle and the bytes of its storages.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use wmtp_job_kit::JobError;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, MAX_PICKLE, StoredTensor};
use super::source::{Place, Tensor};

/// Archives of more entries are no checkpoints.
const MAX_ENTRIES: usize = 100_000;
const PICKLE: &str = "/data.pkl";

/// A checkpoint that was looked through.
pub(super) struct Pth {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// Folder inside the archive that all entries lie in.
    top: String,
}

impl Pth {
    /// Opens an archive and checks that it holds what torch writes: plain files, not compressed, in one folder.
    pub(super) fn open(path: &Path) -> Result<Self, JobError> {
        let refuse = |what: String| JobError::bad_input(format!("{}: {what}", path.display()));
        let file = File::open(path)
            .map_err(|error| JobError::bad_input(error).context(path.display().to_string()))?;
        let size = file.metadata().map_err(JobError::bad_input)?.len();
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            refuse(format!("no zip archive as torch.save writes it: {error}"))
                .hint("a file of PyTorch before 1.6 has to be loaded and saved anew there")
        })?;
        if archive.len() > MAX_ENTRIES {
            return Err(refuse(format!("an archive of {} entries", archive.len())));
        }
        let mut names = BTreeSet::new();
        let mut total = 0_u64;
        for index in 0..archive.len() {
            let entry = archive
                .by_index_raw(index)
                .map_err(|error| refuse(format!("a broken archive: {error}")))?;
            let name = entry
                .name()
                .map_err(|error| refuse(format!("a broken archive: {error}")))?
                .into_owned();
            let bad = |what: &str| refuse(format!("entry {name:?} of the archive {what}"));
            if !is_inside(&name) {
                return Err(bad("has a path that leads out of the archive"));
            }
            if entry.is_symlink() {
                return Err(bad("is a symbolic link"));
            }
            if entry.encrypted() {
                return Err(bad("is encrypted"));
            }
            if entry.compression() != CompressionMethod::Stored
                || entry.size() != entry.compressed_size()
            {
                return Err(bad(
                    "is compressed, as torch.save never does; it could grow without bound",
                ));
            }
            total = total.saturating_add(entry.size());
            if total > size {
                return Err(bad("and those before it are larger than the archive"));
            }
            if !names.insert(name.clone()) {
                return Err(bad("is there twice"));
            }
        }
        let tops: Vec<_> = names
            .iter()
            .filter_map(|name| name.strip_suffix(PICKLE))
            .collect();
        let &[top] = tops.as_slice() else {
            return Err(refuse(format!(
                "{} pickles where one is expected",
                tops.len()
            )));
        };
        let top = top.to_owned();
        let mut pth = Self {
            path: path.to_owned(),
            archive,
            top,
        };
        pth.check_byte_order(&names)?;
        Ok(pth)
    }

    fn check_byte_order(&mut self, names: &BTreeSet<String>) -> Result<(), JobError> {
        let name = format!("{}/byteorder", self.top);
        if !names.contains(&name) || self.small(&name, 16)? == b"little" {
            return Ok(());
        }
        Err(self.refuse("its numbers are not little-endian"))
    }

    /// The tensors of the checkpoint.
    pub(super) fn tensors(&mut self) -> Result<Vec<Tensor>, JobError> {
        let bytes = self.small(&format!("{}{PICKLE}", self.top), MAX_PICKLE)?;
        let stored = pickle::tensors(&bytes).map_err(|refusal| self.refuse(refusal))?;
        let tensors = stored
            .into_iter()
            .map(|(name, stored)| self.tensor(name, &stored));
        tensors.collect()
    }

    fn tensor(&mut self, name: String, stored: &StoredTensor) -> Result<Tensor, JobError> {
        let width = stored.element.width();
        let mut elements = 1_u64;
        let is_dense = stored.shape.len() == stored.strides.len()
            && stored
                .shape
                .iter()
                .zip(&stored.strides)
                .rev()
                .all(|(size, stride)| {
                    let fits = *size <= 1 || *stride == elements;
                    elements = elements.saturating_mul(*size);
                    fits
                });
        if !is_dense {
            return Err(self.refuse(format!(
                "tensor {name} does not lie in the order of its rows (strides {:?})",
                stored.strides
            )));
        }
        let entry = format!("{}/data/{}", self.top, stored.storage);
        let end = stored.offset.saturating_add(elements);
        let size = self.size_of(&entry)?;
        if end > stored.storage_elements || stored.storage_elements.checked_mul(width) != Some(size)
        {
            return Err(self.refuse(format!(
                "tensor {name} of {elements} elements at {} does not fit into its storage of {size} bytes",
                stored.offset
            )));
        }
        Ok(Tensor {
            name,
            element: stored.element,
            shape: stored.shape.clone(),
            place: Place {
                entry,
                start: stored.offset * width,
                length: elements * width,
            },
        })
    }

    fn size_of(&mut self, entry: &str) -> Result<u64, JobError> {
        let size = self.archive.by_name(entry).map(|file| file.size());
        size.map_err(|_| self.refuse(format!("the archive lacks {entry}")))
    }

    /// Reads some bytes of an entry, and the rest of it, by which its checksum is verified.
    pub(super) fn read(
        &mut self,
        place: &Place,
        mut take: impl FnMut(&[u8]) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let path = self.path.display().to_string();
        let broken = |error: std::io::Error| {
            JobError::bad_input(error).context(format!("{path}: {}", place.entry))
        };
        let mut file = self
            .archive
            .by_name(&place.entry)
            .map_err(|error| JobError::bad_input(error.to_string()).context(path.clone()))?;
        std::io::copy(&mut file.by_ref().take(place.start), &mut std::io::sink())
            .map_err(broken)?;
        super::source::in_blocks(&mut file, place.length, broken, &mut take)?;
        std::io::copy(&mut file, &mut std::io::sink()).map_err(broken)?;
        Ok(())
    }

    fn small(&mut self, entry: &str, limit: u64) -> Result<Vec<u8>, JobError> {
        let size = self.size_of(entry)?;
        if size > limit {
            return Err(self.refuse(format!(
                "{entry} has {size} bytes, at most {limit} are read"
            )));
        }
        let mut bytes = Vec::new();
        let read = self
            .archive
            .by_name(entry)
            .map_err(std::io::Error::other)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes));
        read.map_err(|error| self.refuse(format!("{entry}: {error}")))?;
        Ok(bytes)
    }

    fn refuse(&self, what: impl std::fmt::Display) -> JobError {
        JobError::bad_input(format!("{}: {what}", self.path.display()))
    }
}

/// Whether a path stays inside of the archive.
fn is_inside(name: &str) -> bool {
    !name.contains(['\\', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is accepted is read to its last byte.
    fn read(path: &Path) -> Result<String, JobError> {
        let mut pth = Pth::open(path)?;
        let tensors = pth.tensors()?;
        for tensor in &tensors {
            let mut read = 0;
            pth.read(&tensor.place, |bytes| {
                read += bytes.len() as u64;
                Ok(())
            })?;
            assert_eq!(read, tensor.place.length, "{}", tensor.name);
        }
        Ok(format!("{} tensors", tensors.len()))
    }

    #[test]
    fn no_archive_makes_the_reader_fail() {
        let corpus = "tests/fixtures";
        let file = tempfile::NamedTempFile::new().unwrap();
        fuzzing::run(corpus.as_ref(), |bytes| {
            std::fs::write(file.path(), bytes).unwrap();
            read(file.path()).unwrap_or_else(|error| {
                error
                    .to_string()
                    .replace(&file.path().display().to_string(), "")
            })
        });
    }
}
