//! RMSNorm with a gradient: `y = x / √(mean x² + eps) · w` (Zhang and Sennrich 2019).

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Fresh, Layer, Saved, TASK_ROWS, Wanted, add_partials, by_dtype, gradient, rows_and_width,
    storage_of, tensor_values, values,
};
use crate::float::Float;
use crate::kernels;
use crate::tape::Operand;

/// Normalises the last dimension of `x [.., d]` and scales it by `w [d]`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op2(w, RmsNorm::new(eps))
}

pub(crate) struct RmsNorm {
    pub(super) eps: f64,
    pub(super) inverse: Saved,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.forward(x, x_layout, w, w_layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_dtype!(x.dtype(), self.on_device(x, x_layout, w, w_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.back_to(x, w, grad, Wanted::by_graph(x, w))
    }
}

impl Layer for RmsNorm {
    fn run(&self, x: &Tensor, w: &Operand) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(w.flat()?, self)
    }

    fn back(
        &self,
        x: &Tensor,
        w: &Operand,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.back_to(x, w.flat()?, grad, wanted)
    }
}

impl RmsNorm {
    fn back_to(
        &self,
        x: &Tensor,
        w: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return by_dtype!(x.dtype(), self.back_on_device(x, w, &grad, wanted));
        }
        by_dtype!(x.dtype(), self.backward(x, w, &grad, wanted))
    }
}

impl RmsNorm {
    pub(crate) fn new(eps: f64) -> Self {
        Self {
            eps,
            inverse: Saved::new(),
        }
    }

    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, dim) = rows_and_width(x_layout.shape())?;
        if w_layout.shape().elem_count() != dim {
            return Err(candle_core::Error::msg(format!(
                "rms-norm: rows of {dim} against {:?} weights",
                w_layout.shape()
            )));
        }
        let (x, w) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
        let mut out = Fresh::<T>::new(x.len());
        let mut inverse = vec![T::zero(); rows];
        out.unwritten()
            .par_chunks(TASK_ROWS * dim)
            .zip(x.par_chunks(TASK_ROWS * dim))
            .zip(inverse.par_chunks_mut(TASK_ROWS))
            .for_each(|((out, x), inverse)| {
                kernels::rms_norm(x, w, self.eps, out.cleared(), inverse);
            });
        self.inverse.put(inverse)?;
        Ok((storage_of(out.finish()), x_layout.shape().clone()))
    }

    fn backward<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let inverse = self.inverse.get::<Vec<T>>()?;
        let dim = w.elem_count();
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = w.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let (x_values, w_values) = (
            tensor_values::<T>(&x_storage, x_layout)?,
            tensor_values::<T>(&w_storage, w_layout)?,
        );
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let mut dx = Fresh::<T>::new(x_values.len());
        let mut partials = vec![T::zero(); inverse.len().div_ceil(TASK_ROWS) * dim];
        dx.unwritten()
            .par_chunks(TASK_ROWS * dim)
            .zip(x_values.par_chunks(TASK_ROWS * dim))
            .zip(grad.par_chunks(TASK_ROWS * dim))
            .zip(inverse.par_chunks(TASK_ROWS))
            .zip(partials.par_chunks_mut(dim))
            .for_each(|((((dx, x), grad), inverse), partial)| {
                kernels::rms_norm_back(grad, x, w_values, inverse, dx.cleared(), partial);
            });
        let dw = wanted.weights.then(|| {
            let mut dw = vec![T::zero(); dim];
            add_partials(&mut dw, &partials);
            gradient(dw, w)
        });
        let dx = wanted.input.then(|| gradient(dx.finish(), x));
        Ok((dx.transpose()?, dw.transpose()?))
    }
}
