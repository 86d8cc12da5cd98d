//! What training does with gradients on a device: sums, norm, AdamW.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaViewMut, PushKernelArg};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor,
};

use super::kernels::{blocks, each, function, holds, launch};
use super::{device_of, tensor_values, values};
use crate::float::Float;
use crate::ops::by_dtype;

/// Blocks that each leave one partial sum of squares.
const PARTS: usize = 256;

/// Adds `x` to `sum`, which no graph may hold.
pub fn add_into(sum: &Tensor, x: &Tensor) -> Result<()> {
    sum.inplace_op2(&x.contiguous()?, &AddInto)
}

/// Sets every element to zero; no graph may hold the tensor.
pub fn clear(tensor: &Tensor) -> Result<()> {
    tensor.inplace_op1(&Clear)
}

/// Sum of squares of each tensor, in double precision and a fixed order.
pub fn squared_norms(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else {
        return Ok(Vec::new());
    };
    let device = first.device().as_cuda_device()?;
    let mut parts = device.alloc_zeros::<f64>(tensors.len() * PARTS)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let part = parts.slice_mut(index * PARTS..(index + 1) * PARTS);
        by_dtype!(tensor.dtype(), squares(device, tensor, part))?;
    }
    let parts = device.clone_dtoh(&parts)?;
    Ok(parts
        .chunks_exact(PARTS)
        .map(|part| part.iter().sum())
        .collect())
}

#[expect(unsafe_code, reason = "kernels take pointers")]
fn squares<T: Float>(
    device: &CudaDevice,
    tensor: &Tensor,
    mut part: CudaViewMut<'_, f64>,
) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let x = tensor_values::<T>(&storage, layout)?;
    holds("parts of a sum", part.len(), PARTS)?;
    launch!(device, "sum_of_squares", T::TYPE, blocks(PARTS); &x, &mut part, &(x.len() as u64));
    Ok(())
}

struct AddInto;

impl InplaceOp2 for AddInto {
    fn name(&self) -> &'static str {
        "add-into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{} is the device's", self.name())
    }

    fn cuda_fwd(
        &self,
        sum: &mut CudaStorage,
        sum_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        by_dtype!(x.dtype(), add(sum, sum_layout, x, x_layout))
    }
}

#[expect(unsafe_code, reason = "kernels take pointers")]
fn add<T: Float>(
    sum: &mut CudaStorage,
    sum_layout: &Layout,
    x: &CudaStorage,
    x_layout: &Layout,
) -> Result<()> {
    let device = device_of(x);
    let x = values::<T>(x, x_layout)?;
    let (start, end) = whole(sum_layout)?;
    holds("sum", end - start, x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let mut sum = T::as_cuda_slice_mut(sum)?.slice_mut(start..end);
    launch!(&device, "add_into", T::TYPE, each(x.len()); &mut sum, &x, &(x.len() as u64));
    Ok(())
}

struct Clear;

impl InplaceOp1 for Clear {
    fn name(&self) -> &'static str {
        "clear"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{} is the device's", self.name())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        by_dtype!(storage.dtype(), zero(storage, layout))
    }
}

fn zero<T: Float>(storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    let stream = device_of(storage).cuda_stream();
    let (start, end) = whole(layout)?;
    let mut values = T::as_cuda_slice_mut(storage)?.slice_mut(start..end);
    stream.memset_zeros(&mut values).w()
}

fn whole(layout: &Layout) -> Result<(usize, usize)> {
    let offsets = layout.contiguous_offsets();
    offsets.ok_or_else(|| candle_core::Error::msg("a tensor that is updated is not contiguous"))
}

/// Constants of one AdamW update, as the loop on the host has them.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// `1 - lr · decay`.
    pub keep: f64,
    /// Decay of the first moment, and 1 minus it.
    pub first: [f64; 2],
    /// Decay of the second moment, and 1 minus it.
    pub second: [f64; 2],
    /// Learning rate over the first moment's correction.
    pub rate: f64,
    /// Root of the second moment's correction.
    pub root_correction2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Factor of the gradient: clipping.
    pub scale: f64,
}

/// One update of a parameter and its moments in place.
pub fn adamw_step(
    value: &Tensor,
    gradient: &Tensor,
    moments: [&Tensor; 2],
    step: AdamWStep,
) -> Result<()> {
    value.inplace_op1(&Update {
        gradient,
        moments,
        step,
    })
}

struct Update<'a> {
    gradient: &'a Tensor,
    moments: [&'a Tensor; 2],
    step: AdamWStep,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{} is the device's", self.name())
    }

    fn cuda_fwd(&self, value: &mut CudaStorage, layout: &Layout) -> Result<()> {
        by_dtype!(value.dtype(), self.run(value, layout))
    }
}

impl Update<'_> {
    /// The kernel writes the moments through views that only read by their type: nothing else holds them.
    #[expect(unsafe_code, reason = "kernels take pointers")]
    fn run<T: Float>(&self, value: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = device_of(value);
        let (start, end) = whole(layout)?;
        let count = end - start;
        let [first, second] = self.moments;
        let (g, g_layout) = self.gradient.storage_and_layout();
        let (m, m_layout) = first.storage_and_layout();
        let (v, v_layout) = second.storage_and_layout();
        let (g, m, v) = (
            tensor_values::<T>(&g, g_layout)?,
            tensor_values::<T>(&m, m_layout)?,
            tensor_values::<T>(&v, v_layout)?,
        );
        for slice in [&g, &m, &v] {
            holds("adamw", slice.len(), count)?;
        }
        if count == 0 {
            return Ok(());
        }
        let mut value = T::as_cuda_slice_mut(value)?.slice_mut(start..end);
        let number = T::from_f64;
        let AdamWStep {
            keep,
            first,
            second,
            rate,
            root_correction2,
            eps,
            scale,
        } = self.step;
        launch!(&device, "adamw", T::TYPE, each(count);
            &mut value, &g, &m, &v, &(count as u64), &number(keep), &number(first[0]), &number(first[1]),
            &number(second[0]), &number(second[1]), &number(rate), &number(root_correction2), &number(eps),
            &number(scale));
        Ok(())
    }
}
