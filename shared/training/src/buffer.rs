//! Numbers of one tensor where training keeps them, and their files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use rayon::prelude::*;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::error::{Error, Result};

/// Numbers of one tensor, in the precision of the parameters.
#[derive(Debug, Clone)]
pub enum Buffer {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// On a device; nothing else reads these numbers.
    #[cfg(feature = "cuda")]
    Device(Tensor),
}

impl Buffer {
    /// Zeros for a tensor of this kind.
    pub fn zeros(dtype: DType, len: usize) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32(vec![0.0; len])),
            DType::F64 => Ok(Self::F64(vec![0.0; len])),
            other => Err(untrained(other)),
        }
    }

    /// What the gradient of a parameter is summed in, where the parameter is: zeros, on a device without memory of their
    /// own until [`Self::begin`].
    pub(crate) fn sum_beside(parameter: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if parameter.device().is_cuda() {
            let zero = Tensor::zeros(1, parameter.dtype(), parameter.device())?;
            return Ok(Self::Device(zero.broadcast_as(parameter.shape())?));
        }
        Self::zeros(parameter.dtype(), parameter.elem_count())
    }

    /// Zeros for a moment of a parameter, where the parameter is.
    pub(crate) fn zeros_beside(parameter: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if parameter.device().is_cuda() {
            return Ok(Self::Device(parameter.detach().zeros_like()?));
        }
        Self::zeros(parameter.dtype(), parameter.elem_count())
    }

    /// These numbers where `like` keeps its own; `None` where they are of another kind.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "on a device it can fail")
    )]
    pub(crate) fn beside(self, like: &Self) -> Result<Option<Self>> {
        #[cfg(feature = "cuda")]
        if let Self::Device(place) = like {
            let same_kind = self.dtype() == like.dtype() && self.len() == place.elem_count();
            return same_kind
                .then(|| {
                    self.to_tensor(place.dims(), place.device())
                        .map(Self::Device)
                })
                .transpose();
        }
        let same_kind = std::mem::discriminant(&self) == std::mem::discriminant(like);
        Ok(same_kind.then_some(self))
    }

    /// Copies a tensor to the host, bit for bit.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::F32 => Ok(Self::F32(tensor.flatten_all()?.to_vec1()?)),
            DType::F64 => Ok(Self::F64(tensor.flatten_all()?.to_vec1()?)),
            other => Err(untrained(other)),
        }
    }

    /// The numbers as a tensor of the given shape.
    pub fn to_tensor(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::F32(values) => Tensor::from_slice(values, shape, device)?,
            Self::F64(values) => Tensor::from_slice(values, shape, device)?,
            #[cfg(feature = "cuda")]
            Self::Device(values) => values.reshape(shape)?.to_device(device)?,
        })
    }

    /// The numbers on the host.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "on a device it can fail")
    )]
    pub(crate) fn on_host(&self) -> Result<Cow<'_, Self>> {
        #[cfg(feature = "cuda")]
        if let Self::Device(values) = self {
            return Ok(Cow::Owned(Self::of(values)?));
        }
        Ok(Cow::Borrowed(self))
    }

    /// The numbers in double precision.
    pub fn into_f64(self) -> Result<Vec<f64>> {
        Ok(match self {
            Self::F32(values) => values.into_iter().map(f64::from).collect(),
            Self::F64(values) => values,
            #[cfg(feature = "cuda")]
            Self::Device(values) => Self::of(&values)?.into_f64()?,
        })
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            #[cfg(feature = "cuda")]
            Self::Device(values) => values.elem_count(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Back to [`Self::sum_beside`]: a device's memory is given back, a host's is kept, since its pages are dear.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "on a device it can fail")
    )]
    pub(crate) fn clear(&mut self) -> Result<()> {
        match self {
            Self::F32(values) => values.fill(0.0),
            Self::F64(values) => values.fill(0.0),
            #[cfg(feature = "cuda")]
            Self::Device(values) => *self = Self::sum_beside(values)?,
        }
        Ok(())
    }

    /// Takes the place of zeros: a device's tensor is taken as it is, which spares clearing, adding and memory.
    pub(crate) fn begin(&mut self, tensor: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Self::Device(sum) = self {
            *sum = tensor.detach();
            return Ok(());
        }
        self.add(tensor)
    }

    /// Adds a tensor of the same kind and size.
    pub fn add(&mut self, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.contiguous()?;
        #[cfg(feature = "cuda")]
        if let Self::Device(sum) = self {
            let tensor = tensor.reshape(sum.shape())?;
            return Ok(wmtp_model::cuda::add_into(sum, &tensor)?);
        }
        if !tensor.device().is_cpu() {
            return self.add(&tensor.to_device(&Device::Cpu)?);
        }
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
        match (self, &*storage) {
            (Self::F32(sum), Storage::Cpu(CpuStorage::F32(values))) if sum.len() == range.len() => {
                add_slices(sum, &values[range]);
                Ok(())
            }
            (Self::F64(sum), Storage::Cpu(CpuStorage::F64(values))) if sum.len() == range.len() => {
                add_slices(sum, &values[range]);
                Ok(())
            }
            _ => Err(Error::BadData(format!(
                "a gradient has kind {} and {} elements, its parameter differs",
                tensor.dtype().as_str(),
                tensor.elem_count()
            ))),
        }
    }

    /// Sum of squares of each buffer in double precision; the order of additions depends on the lengths alone.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "on a device it can fail")
    )]
    pub(crate) fn sums_of_squares(buffers: &[&Self]) -> Result<Vec<f64>> {
        if buffers.is_empty() {
            return Ok(Vec::new());
        }
        #[cfg(feature = "cuda")]
        if let Some(tensors) = Self::on_device(buffers) {
            return Ok(wmtp_model::cuda::squared_norms(&tensors)?);
        }
        // Parameters are all in one place, and their buffers with them.
        let of_host = |buffer: &&Self| match buffer {
            Self::F32(values) => sum_of_squares(values),
            Self::F64(values) => sum_of_squares(values),
            #[cfg(feature = "cuda")]
            Self::Device(_) => f64::NAN,
        };
        Ok(buffers.par_iter().map(of_host).collect())
    }

    /// The tensors of buffers that are all on a device.
    #[cfg(feature = "cuda")]
    fn on_device(buffers: &[&Self]) -> Option<Vec<Tensor>> {
        let tensor = |buffer: &&Self| match buffer {
            Self::Device(tensor) => Some(tensor.clone()),
            Self::F32(_) | Self::F64(_) => None,
        };
        buffers.iter().map(tensor).collect()
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            #[cfg(feature = "cuda")]
            Self::Device(values) if values.dtype() == DType::F64 => Dtype::F64,
            #[cfg(feature = "cuda")]
            Self::Device(_) => Dtype::F32,
        }
    }

    /// As many zeros of this kind on the host.
    pub(crate) fn zeros_on_host(&self) -> Self {
        match self.dtype() {
            Dtype::F64 => Self::F64(vec![0.0; self.len()]),
            _ => Self::F32(vec![0.0; self.len()]),
        }
    }

    /// Adds numbers of the same kind and count, both on the host.
    pub(crate) fn plus(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::F32(sum), Self::F32(values)) if sum.len() == values.len() => {
                add_slices(sum, values);
            }
            (Self::F64(sum), Self::F64(values)) if sum.len() == values.len() => {
                add_slices(sum, values);
            }
            _ => {
                let reason = "sums of another kind or length cannot be added".to_owned();
                return Err(Error::BadData(reason));
            }
        }
        Ok(())
    }

    /// The numbers of the host as they lie in memory: little-endian on all machines that this is built for.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F64(values) => bytemuck::cast_slice(values),
            #[cfg(feature = "cuda")]
            Self::Device(_) => unreachable!("bytes are taken from the host"),
        }
    }

    /// The same to write into.
    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F64(values) => bytemuck::cast_slice_mut(values),
            #[cfg(feature = "cuda")]
            Self::Device(_) => unreachable!("bytes are taken on the host"),
        }
    }
}

fn untrained(dtype: DType) -> Error {
    Error::BadData(format!(
        "parameters are trained in f32 or f64, not in {}",
        dtype.as_str()
    ))
}

/// Adds number by number, large slices in parallel.
fn add_slices<T: Copy + AddAssign + Send + Sync>(sum: &mut [T], values: &[T]) {
    const TASK: usize = 1 << 16;
    sum.par_chunks_mut(TASK)
        .zip(values.par_chunks(TASK))
        .for_each(|(sum, values)| {
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += *value;
            }
        });
}

fn sum_of_squares<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            let value: f64 = value.into();
            *lane += value * value;
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        let value: f64 = value.into();
        *lane += value * value;
    }
    lanes.iter().sum()
}

/// A named host tensor on its way into a file.
struct Named<'a> {
    shape: &'a [usize],
    values: &'a Buffer,
}

impl View for Named<'_> {
    fn dtype(&self) -> Dtype {
        self.values.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.values.as_bytes())
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.values.dtype().bitsize() / 8
    }
}

/// Writes tensors; the same tensors give the same bytes.
pub(crate) fn save<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a [usize], &'a Buffer)>,
) -> Result<()> {
    let named = tensors
        .into_iter()
        .map(|(name, shape, values)| Ok((name, shape, values.on_host()?)))
        .collect::<Result<Vec<_>>>()?;
    let views = named
        .iter()
        .map(|(name, shape, values)| (name, Named { shape, values }));
    create_parent(path)?;
    // Tensor by tensor: the whole file beside them would double what a run holds.
    safetensors::serialize_to_file(views, None, path).map_err(|error| match error {
        SafeTensorError::IoError(source) => io_error(path, source),
        other => bad_file(path, other),
    })
}

/// Reads a file of f32 and f64 tensors.
pub(crate) fn load(path: &Path) -> Result<BTreeMap<String, (Vec<usize>, Buffer)>> {
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| bad_file(path, error))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let buffer = match view.dtype() {
            Dtype::F32 => Buffer::F32(numbers(view.data(), f32::from_le_bytes)),
            Dtype::F64 => Buffer::F64(numbers(view.data(), f64::from_le_bytes)),
            other => {
                return Err(bad_file(
                    path,
                    format!("{name} is {other:?}, not f32 or f64"),
                ));
            }
        };
        tensors.insert(name, (view.shape().to_vec(), buffer));
    }
    Ok(tensors)
}

/// A file of a run's state, of which each tensor is taken once.
pub(crate) struct StateFile<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, (Vec<usize>, Buffer)>,
}

impl<'a> StateFile<'a> {
    pub(crate) fn read(path: &'a Path) -> Result<Self> {
        let tensors = load(path)?;
        Ok(Self { path, tensors })
    }

    /// A tensor, which must have this shape and the type of `like`, to whose device it goes.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize], like: &Buffer) -> Result<Buffer> {
        let (found, values) = self
            .tensors
            .remove(name)
            .ok_or_else(|| bad_file(self.path, format!("tensor {name} is missing")))?;
        let in_place = if found == shape {
            values.beside(like)?
        } else {
            None
        };
        in_place.ok_or_else(|| {
            let reason =
                format!("{name} has shape {found:?}, expected {shape:?} in the run's precision");
            bad_file(self.path, reason)
        })
    }

    /// Makes sure that every tensor was taken: one more is of another run.
    pub(crate) fn end(self) -> Result<()> {
        match self.tensors.keys().next() {
            Some(name) => Err(bad_file(self.path, format!("unexpected tensor {name}"))),
            None => Ok(()),
        }
    }
}

/// Splits little-endian bytes into numbers.
pub(crate) fn numbers<T, const N: usize>(bytes: &[u8], decode: fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| decode(chunk)).collect()
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| io_error(path, source))
}

/// Writes a whole file, creating the parent folder.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    create_parent(path)?;
    std::fs::write(path, bytes).map_err(|source| io_error(path, source))
}

fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(parent).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// An error that names a file.
pub(crate) fn bad_file(path: &Path, reason: impl ToString) -> Error {
    Error::BadFile {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_their_files_are_the_same_bit_for_bit() {
        let numbers = [-0.0, 0.0, f64::NAN, f64::MIN_POSITIVE / 2.0, 1.5, -1e300];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        for dtype in [DType::F32, DType::F64] {
            let whole = Tensor::new(&numbers, &Device::Cpu).unwrap();
            let tensor = whole.to_dtype(dtype).unwrap().narrow(0, 0, 5).unwrap();
            let copy = Buffer::of(&tensor).unwrap();
            let expected: Vec<u8> = match dtype {
                DType::F32 => numbers[..5]
                    .iter()
                    .flat_map(|&one| (one as f32).to_le_bytes())
                    .collect(),
                _ => numbers[..5]
                    .iter()
                    .flat_map(|one| one.to_le_bytes())
                    .collect(),
            };
            assert_eq!(copy.as_bytes(), expected);
            save(&path, [("x".to_owned(), tensor.dims(), &copy)]).unwrap();
            let (_, read) = load(&path).unwrap().remove("x").unwrap();
            assert_eq!(read.as_bytes(), expected);
        }
    }
}
