//! Where a model lives and computes.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::{Error, Result};

/// The CPU, or a CUDA device by its number, as users name them: `cpu`, `cuda`, `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host's processor.
    Cpu,
    /// A CUDA device.
    Cuda(usize),
}

impl Place {
    /// What this program was built for: a program with CUDA takes the CPU only when asked.
    pub const BUILT_FOR: Self = if cfg!(feature = "cuda") {
        Self::Cuda(0)
    } else {
        Self::Cpu
    };

    /// The place of one of several ranks, the first of which is here: a device of its own each, the processor for all.
    #[must_use]
    pub fn of_rank(self, rank: usize) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Cuda(first) => Self::Cuda(first + rank),
        }
    }

    /// Opens the device. Its tensors may be used from one thread at a time.
    ///
    /// # Errors
    /// [`Error::Device`] where this program was built without CUDA, or there is no driver or no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => open_cuda(ordinal).map_err(|reason| Error::Device {
                place: self,
                reason,
            }),
        }
    }
}

/// By what name the driver's tools know a device; the CPU has none.
///
/// # Errors
/// The driver's, where it does not tell.
pub fn device_uuid(device: &Device) -> Result<Option<String>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(Some(crate::cuda::uuid(device)?));
    }
    debug_assert!(device.is_cpu());
    Ok(None)
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> std::result::Result<Device, String> {
    crate::cuda::open(ordinal)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> std::result::Result<Device, String> {
    Err("this program was built without CUDA (`make cuda-build` builds one with it)".to_owned())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let unknown = || format!("{text:?} is no device: cpu, cuda, or cuda:1 for the second one");
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for place in [Place::Cpu, Place::Cuda(0), Place::Cuda(3)] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert_eq!("cuda:0".parse(), Ok(Place::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_this_program_was_not_built_for_is_refused_by_name() {
        let error = Place::Cuda(1).open().unwrap_err().to_string();
        assert!(
            error.contains("cuda:1") && error.contains("built without CUDA"),
            "{error}"
        );
    }
}
