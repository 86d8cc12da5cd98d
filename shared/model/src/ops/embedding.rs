//! Row gather with one scatter-add as its backward: token embeddings and selected hidden rows.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{by_dtype, gradient, storage_of, tensor_values, values};
use crate::float::Float;

/// The rows `ids` of `table [rows, d]`, as `[ids, d]`. A row may be taken more than once.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.contiguous()?.apply_op1(Gather { ids: ids.to_vec() })
}

struct Gather {
    ids: Vec<u32>,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(table.dtype(), self.forward(table, layout))
    }

    fn bwd(&self, table: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        by_dtype!(table.dtype(), self.backward(table, &grad.contiguous()?))
    }
}

impl Gather {
    fn forward<T: Float>(
        &self,
        table: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, dim) = layout.shape().dims2()?;
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= rows) {
            return Err(candle_core::Error::msg(format!(
                "embedding: row {id} of a table of {rows}"
            )));
        }
        let table = values::<T>(table, layout)?;
        let mut out = Vec::with_capacity(self.ids.len() * dim);
        for id in &self.ids {
            out.extend_from_slice(&table[*id as usize * dim..][..dim]);
        }
        Ok((storage_of(out), Shape::from((self.ids.len(), dim))))
    }

    fn backward<T: Float>(&self, table: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, dim) = table.dims2()?;
        let (storage, layout) = grad.storage_and_layout();
        let grad = tensor_values::<T>(&storage, layout)?;
        let mut sum = vec![T::zero(); rows * dim];
        for (id, grad) in self.ids.iter().zip(grad.chunks_exact(dim)) {
            for (sum, g) in sum[*id as usize * dim..][..dim].iter_mut().zip(grad) {
                *sum += *g;
            }
        }
        gradient(sum, table).map(Some)
    }
}
