//! Where tensors come from: a PyTorch checkpoint or a safetensors file, read in blocks.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use wmtp_job_kit::JobError;
use wmtp_model::Element;

use super::pth::Pth;
use crate::header::Header;

/// Bytes read at a time; a multiple of every element's width.
const BLOCK: u64 = 1 << 20;

/// A tensor and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) shape: Vec<u64>,
    pub(super) place: Place,
}

/// Some bytes of a file, or of an entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Entry of the archive; empty for a file of its own.
    pub(super) entry: String,
    pub(super) start: u64,
    pub(super) length: u64,
}

/// A file with tensors.
pub(super) enum Source {
    Pth(Pth),
    Safetensors(PathBuf),
}

impl Source {
    /// Opens a file and lists its tensors. What is not named `.safetensors` must be an archive of torch.save.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Tensor>), JobError> {
        let is_link = path
            .symlink_metadata()
            .is_ok_and(|found| found.is_symlink());
        if is_link {
            return Err(JobError::bad_input(format!(
                "{} is a symbolic link; give the file itself",
                path.display()
            )));
        }
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            let tensors = of_header(path)?;
            return Ok((Self::Safetensors(path.to_owned()), tensors));
        }
        let mut pth = Pth::open(path)?;
        let tensors = pth.tensors()?;
        Ok((Self::Pth(pth), tensors))
    }

    /// Reads a tensor's bytes, in blocks of whole elements.
    pub(super) fn read(
        &mut self,
        place: &Place,
        take: impl FnMut(&[u8]) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let path = match self {
            Self::Pth(pth) => return pth.read(place, take),
            Self::Safetensors(path) => path,
        };
        let broken =
            |error: std::io::Error| JobError::bad_input(error).context(path.display().to_string());
        let mut file = File::open(&*path).map_err(broken)?;
        file.seek(SeekFrom::Start(place.start)).map_err(broken)?;
        let mut take = take;
        in_blocks(&mut file, place.length, broken, &mut take)
    }
}

/// Hands on so many bytes of a file.
pub(super) fn in_blocks(
    file: &mut impl Read,
    length: u64,
    broken: impl Fn(std::io::Error) -> JobError,
    take: &mut impl FnMut(&[u8]) -> Result<(), JobError>,
) -> Result<(), JobError> {
    let mut block = vec![0; BLOCK.min(length) as usize];
    let mut left = length;
    while left > 0 {
        let size = BLOCK.min(left) as usize;
        file.read_exact(&mut block[..size]).map_err(&broken)?;
        take(&block[..size])?;
        left -= size as u64;
    }
    Ok(())
}

fn of_header(path: &Path) -> Result<Vec<Tensor>, JobError> {
    let header = Header::read(path)?;
    let tensors = header.tensors.iter().map(|(name, (dtype, shape))| {
        let element = match dtype {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            other => {
                let what = format!("{}: tensor {name} has type {other:?}", path.display());
                return Err(JobError::bad_input(what));
            }
        };
        let (start, end) = header.offsets[name];
        Ok(Tensor {
            name: name.clone(),
            element,
            shape: shape.iter().map(|&size| size as u64).collect(),
            place: Place {
                entry: String::new(),
                start,
                length: end - start,
            },
        })
    });
    tensors.collect()
}
