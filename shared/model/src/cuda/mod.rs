//! A CUDA device: tensors as slices of its memory, matrix products by cuBLAS, and kernels of our own for the rest.
//!
//! Everything runs on the one stream of a device opened with [`crate::Place::open`], in the order it was asked for, so
//! nothing here waits: the host does where it reads a result. Sums have an order that depends on shapes alone.

pub(crate) mod attention;
mod kernels;
mod optimizer;
mod product;
pub(crate) mod rows;

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::cublas::sys::{cublasComputeType_t, cudaDataType};
use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits,
};
use candle_core::cuda::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, Device, Layout, Result, Shape, Storage, Tensor, WithDType,
};
use half::bf16;

pub(crate) use kernels::{
    Angles, Heads, cross_entropy, gather_rows, heads_first, heads_last, join_heads, rms_norm,
    rms_norm_back, rms_norm_weights_back, scatter_rows, softmax, softmax_back, split_heads, swiglu,
    swiglu_back,
};
pub use optimizer::{AdamWStep, adamw_step, add_into, squared_norms};
pub(crate) use product::{Matrix, MatrixMut, product, weight_gradient};

/// Element types of tensors on a device.
pub(crate) trait OnDevice:
    CudaDType + DeviceRepr + ValidAsZeroBits + Factor<Self> + Send + Sync + Sized + 'static
{
    /// What [`crate::Products::Bf16`] multiplies; f64 keeps its own.
    type Bf16: Factor<Self>;
    /// Ending of the kernels for it.
    const TYPE: &'static str;
    /// In what products are summed.
    const COMPUTE: cublasComputeType_t;
}

impl OnDevice for f32 {
    type Bf16 = bf16;
    const TYPE: &'static str = "f32";
    const COMPUTE: cublasComputeType_t = cublasComputeType_t::CUBLAS_COMPUTE_32F;
}

impl OnDevice for f64 {
    type Bf16 = f64;
    const TYPE: &'static str = "f64";
    const COMPUTE: cublasComputeType_t = cublasComputeType_t::CUBLAS_COMPUTE_64F;
}

/// Element types of the factors of products whose results are `T`.
pub(crate) trait Factor<T>: DeviceRepr + Send + Sync + Sized + 'static {
    /// Ending of the kernels that make it of `T`.
    const TYPES: &'static str;
    /// cuBLAS's name for it.
    const KIND: cudaDataType;
    /// Whether attention has a kernel of its own for it, see [`attention`].
    const ATTENDS: bool;

    /// The numbers as factors; copied only where they are rounded.
    fn of<'a>(device: &CudaDevice, x: CudaView<'a, T>) -> Result<Ready<'a, Self>>;

    /// Writes the numbers as factors.
    fn write(device: &CudaDevice, x: &CudaView<'_, T>, to: CudaViewMut<'_, Self>) -> Result<()>;

    /// Matrices behind each other as factors; copied only where they are rounded or lie apart.
    fn behind_each_other<'a>(
        device: &CudaDevice,
        matrices: &[CudaView<'a, T>],
    ) -> Result<Ready<'a, Self>> {
        if let [one] = matrices {
            return Self::of(device, one.slice(..));
        }
        let mut all = empty::<Self>(device, matrices.iter().map(CudaView::len).sum())?;
        let mut first = 0;
        for matrix in matrices {
            let last = first + matrix.len();
            Self::write(device, matrix, all.slice_mut(first..last))?;
            first = last;
        }
        Ok(Ready::Made(all))
    }
}

impl Factor<f32> for f32 {
    const TYPES: &'static str = "f32_f32";
    const KIND: cudaDataType = cudaDataType::CUDA_R_32F;
    const ATTENDS: bool = false;

    fn of<'a>(_: &CudaDevice, x: CudaView<'a, f32>) -> Result<Ready<'a, f32>> {
        Ok(Ready::AsItIs(x))
    }

    fn write(
        device: &CudaDevice,
        x: &CudaView<'_, f32>,
        mut to: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        device.cuda_stream().memcpy_dtod(x, &mut to).w()
    }
}

impl Factor<f64> for f64 {
    const TYPES: &'static str = "f64_f64";
    const KIND: cudaDataType = cudaDataType::CUDA_R_64F;
    const ATTENDS: bool = false;

    fn of<'a>(_: &CudaDevice, x: CudaView<'a, f64>) -> Result<Ready<'a, f64>> {
        Ok(Ready::AsItIs(x))
    }

    fn write(
        device: &CudaDevice,
        x: &CudaView<'_, f64>,
        mut to: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        device.cuda_stream().memcpy_dtod(x, &mut to).w()
    }
}

impl Factor<f32> for bf16 {
    const TYPES: &'static str = "f32_bf16";
    const KIND: cudaDataType = cudaDataType::CUDA_R_16BF;
    const ATTENDS: bool = true;

    fn of<'a>(device: &CudaDevice, x: CudaView<'a, f32>) -> Result<Ready<'a, bf16>> {
        let mut all = empty::<bf16>(device, x.len())?;
        Self::write(device, &x, all.as_view_mut())?;
        Ok(Ready::Made(all))
    }

    fn write(device: &CudaDevice, x: &CudaView<'_, f32>, to: CudaViewMut<'_, bf16>) -> Result<()> {
        kernels::cast::<f32, bf16>(device, x, to)
    }
}

/// Factors of a product.
pub(crate) enum Ready<'a, F> {
    AsItIs(CudaView<'a, F>),
    Made(CudaSlice<F>),
}

impl<F> Ready<'_, F> {
    pub(crate) fn view(&self) -> CudaView<'_, F> {
        match self {
            Self::AsItIs(view) => view.slice(..),
            Self::Made(slice) => slice.as_view(),
        }
    }

    /// What was made for it.
    pub(crate) fn made(self) -> Option<CudaSlice<F>> {
        match self {
            Self::AsItIs(_) => None,
            Self::Made(slice) => Some(slice),
        }
    }
}

/// Memory for so many elements, not yet written.
#[expect(
    unsafe_code,
    reason = "memory that a kernel fills is not cleared first"
)]
pub(crate) fn empty<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: nothing reads what was not written. Most callers hand the slice to a kernel or a product that writes all of
    // it; those that write a part of it, as the caches of keys and values do, read no further than they have written.
    unsafe { device.alloc(len) }
}

/// The contiguous values of an operand.
pub(crate) fn values<'a, T: OnDevice>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("fused operations take contiguous tensors"))?;
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// The contiguous values of a tensor whose storage is locked.
pub(crate) fn tensor_values<'a, T: OnDevice>(
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match storage {
        Storage::Cuda(storage) => values(storage, layout),
        _ => Err(candle_core::Error::msg(
            "an operand lies on another device than the rest",
        )),
    }
}

/// Wraps the values of a result.
pub(crate) fn storage_of<T: OnDevice>(data: CudaSlice<T>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(data, device.clone())
}

/// A result as a tensor without a graph.
pub(crate) fn tensor_of<T: OnDevice>(
    data: CudaSlice<T>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = Storage::Cuda(storage_of(data, device));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// Numbers of the host in an element type, on the device.
pub(crate) fn upload<T: OnDevice + WithDType>(
    device: &CudaDevice,
    numbers: &[f64],
) -> Result<CudaSlice<T>> {
    let numbers: Vec<T> = numbers.iter().map(|x| T::from_f64(*x)).collect();
    device.clone_htod(&numbers)
}

/// Opens a CUDA device for training: one stream, and memory that stays with the process until its end.
///
/// # Errors
/// In words, without a driver, without a device of this number, or when the driver is too old for our kernels.
#[expect(unsafe_code, reason = "calls into the driver")]
pub(crate) fn open(ordinal: usize) -> std::result::Result<Device, String> {
    use candle_core::cuda::cudarc::driver::sys;
    // SAFETY: the call only tries to open the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no NVIDIA driver here (libcuda.so.1 was not found)".to_owned());
    }
    start(ordinal).map_err(|error| error.to_string())
}

#[expect(unsafe_code, reason = "calls into the driver")]
fn start(ordinal: usize) -> Result<Device> {
    use candle_core::cuda::cudarc::driver::{result, sys};
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: all work of this process runs on the device's one stream, in order, so no event has to guard a tensor;
    // the pool is the device's own, and the attribute is a u64 as the driver documents it.
    unsafe {
        cuda.disable_event_tracking();
        let pool =
            result::device::get_default_mem_pool(cuda.cuda_stream().context().cu_device()).w()?;
        let mut keep = u64::MAX;
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_mut(&mut keep).cast(),
        )
        .result()
        .w()?;
    }
    kernels::load(cuda)?;
    Ok(device)
}

/// The device as the driver's tools name it: `GPU-` and 32 digits in groups.
pub fn uuid(device: &Device) -> Result<String> {
    let uuid = device
        .as_cuda_device()?
        .cuda_stream()
        .context()
        .uuid()
        .w()?;
    let number = u128::from_be_bytes(uuid.bytes.map(i8::cast_unsigned));
    let digits = format!("{number:032x}");
    Ok(format!(
        "GPU-{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    ))
}

/// The most bytes that tensors have held on a device so far.
#[expect(unsafe_code, reason = "calls into the driver")]
pub fn peak_memory(device: &Device) -> Result<u64> {
    use candle_core::cuda::cudarc::driver::{result, sys};
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let mut most = 0u64;
    // SAFETY: the pool is the device's own, and the attribute is written as a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        sys::cuMemPoolGetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            std::ptr::from_mut(&mut most).cast(),
        )
        .result()
        .w()?;
    }
    Ok(most)
}

/// The device of a storage.
pub(crate) fn device_of(storage: &CudaStorage) -> CudaDevice {
    storage.device().clone()
}
