//! Row gather with one scatter-add as its backward: token embeddings and selected hidden rows.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda::scatter_on_device;
use super::{by_dtype, storage_of, tensor_values, values};
use crate::float::Float;

/// The rows `ids` of `table [rows, d]`, as `[ids, d]`. A row may be taken more than once.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.contiguous()?.apply_op1(Gather { ids: ids.to_vec() })
}

/// Gradient of a table of `rows` rows from the gradient `[ids, d]` of the rows that were taken.
pub(crate) fn scatter_rows(grad: &Tensor, ids: &[u32], rows: usize) -> Result<Tensor> {
    let grad = grad.contiguous()?;
    #[cfg(feature = "cuda")]
    if grad.device().is_cuda() {
        return by_dtype!(grad.dtype(), scatter_on_device(&grad, ids, rows));
    }
    by_dtype!(grad.dtype(), scatter(&grad, ids, rows))
}

pub(super) struct Gather {
    pub(super) ids: Vec<u32>,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(table.dtype(), self.forward(table, layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, table: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_dtype!(table.dtype(), self.on_device(table, layout))
    }

    fn bwd(&self, table: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        scatter_rows(grad, &self.ids, table.dim(0)?).map(Some)
    }
}

impl Gather {
    /// Width of the rows of a table that has all of them.
    pub(super) fn width(&self, layout: &Layout) -> Result<usize> {
        let (rows, dim) = layout.shape().dims2()?;
        match self.ids.iter().find(|id| **id as usize >= rows) {
            Some(id) => Err(candle_core::Error::msg(format!(
                "embedding: row {id} of a table of {rows}"
            ))),
            None => Ok(dim),
        }
    }

    fn forward<T: Float>(
        &self,
        table: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dim = self.width(layout)?;
        let table = values::<T>(table, layout)?;
        let mut out = Vec::with_capacity(self.ids.len() * dim);
        for id in &self.ids {
            out.extend_from_slice(&table[*id as usize * dim..][..dim]);
        }
        Ok((storage_of(out), Shape::from((self.ids.len(), dim))))
    }
}

fn scatter<T: Float>(grad: &Tensor, ids: &[u32], rows: usize) -> Result<Tensor> {
    let dim = grad.dim(candle_core::D::Minus1)?;
    let (storage, layout) = grad.storage_and_layout();
    let grad = tensor_values::<T>(&storage, layout)?;
    let mut sum = vec![T::zero(); rows * dim];
    for (id, grad) in ids.iter().zip(grad.chunks_exact(dim)) {
        for (sum, g) in sum[*id as usize * dim..][..dim].iter_mut().zip(grad) {
            *sum += *g;
        }
    }
    Tensor::from_vec(sum, (rows, dim), &Device::Cpu)
}
