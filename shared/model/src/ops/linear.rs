//! `y = x · wᵀ` with the weight in its stored layout `[out, in]`.

use candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::run_on_device;
use super::low_rank::{AdapterGradient, Branch, Factors, Fused, LowRank, Stack};
use super::{
    Fresh, Products, Right, TASK_ROWS, Wanted, WeightGradient, backward, by_dtype, gradient,
    rows_and_width, storage_of, tensor_values, values,
};
use crate::float::Float;

/// Projects the last dimension of `x [.., in]` by `w [out, in]`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    linear_with(x, w, Products::F32)
}

/// [`linear`] with products of another kind.
pub fn linear_with(x: &Tensor, w: &Tensor, products: Products) -> Result<Tensor> {
    x.contiguous()?.apply_op2(w, Linear(products))
}

/// [`linear`] upon a frozen weight with an adapter.
pub(crate) fn adapted_linear(
    x: &Tensor,
    w: &Tensor,
    low_rank: &LowRank,
    products: Products,
) -> Result<Tensor> {
    low_rank.apply(x, std::slice::from_ref(w), Linear(products))
}

/// The projection with products of its own kind.
pub(crate) struct Linear(pub(crate) Products);

impl Linear {
    /// Its one matrix.
    fn stack(outputs: usize, inputs: usize) -> Stack {
        Stack {
            start: 0,
            outputs,
            inputs,
        }
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.forward(x, x_layout, w, w_layout, None))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_dtype!(x.dtype(), run_on_device(self, x, x_layout, w, w_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = Wanted::by_graph(x, w);
        backward(self, x, w, res, &grad.contiguous()?, wanted, None)
    }
}

impl Fused for Linear {
    const NAME: &'static str = "linear";

    fn products(&self) -> Products {
        self.0
    }

    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        branch: Option<&Branch<'_, T>>,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = rows_and_width(x_layout.shape())?;
        let (outputs, w_inputs) = w_layout.shape().dims2()?;
        if w_inputs != inputs {
            return Err(candle_core::Error::msg(format!(
                "linear: rows of {inputs} against weights of {w_inputs} inputs"
            )));
        }
        let (x, w) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
        let weights = Right::transposed(w, (outputs, inputs), (rows, TASK_ROWS), self.0);
        let mut out = Fresh::<T>::new(rows * outputs);
        out.unwritten()
            .par_chunks(TASK_ROWS * outputs)
            .zip(x.par_chunks(TASK_ROWS * inputs))
            .enumerate()
            .for_each(|(task, (out, x))| {
                let out = out.product(&weights, x);
                if let Some(branch) = branch {
                    branch.add(out, x, Self::stack(outputs, inputs), task * TASK_ROWS);
                }
            });
        let mut dims = x_layout.shape().dims().to_vec();
        *dims.last_mut().expect("rows_and_width refused scalars") = outputs;
        Ok((storage_of(out.finish()), Shape::from(dims)))
    }

    fn backward<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (outputs, inputs) = w.dims2()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = w.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let (x_values, w_values) = (
            tensor_values::<T>(&x_storage, x_layout)?,
            tensor_values::<T>(&w_storage, w_layout)?,
        );
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let branch = adapters.map(AdapterGradient::branch).transpose()?.flatten();
        let input_gradient = || {
            let weights = Right::stored(w_values, (outputs, inputs), self.0);
            let mut dx = Fresh::<T>::new(x_values.len());
            dx.unwritten()
                .par_chunks(TASK_ROWS * inputs)
                .zip(grad.par_chunks(TASK_ROWS * outputs))
                .enumerate()
                .for_each(|(task, (dx, grad))| {
                    let dx = dx.product(&weights, grad);
                    if let Some(branch) = &branch {
                        branch.add_back(dx, grad, Self::stack(outputs, inputs), task * TASK_ROWS);
                    }
                });
            dx.finish()
        };
        let dx = || wanted.input.then(input_gradient);
        if let Some(adapters) = adapters {
            let factors = Factors {
                grad,
                outputs,
                input: x_values,
                inputs,
            };
            let dx = dx().map(|dx| gradient(dx, x)).transpose()?;
            return Ok((dx, Some(adapters.gradient(0, &[factors])?)));
        }
        let weight_gradients =
            || WeightGradient::new((grad, outputs), (x_values, inputs), self.0).made();
        // Neither waits for the other: a thread that has no more of one takes of the other.
        let (dx, dw) = rayon::join(dx, || wanted.weights.then(weight_gradients));
        let dx = dx.map(|dx| gradient(dx, x)).transpose()?;
        let dw = dw.map(|dw| gradient(dw, w)).transpose()?;
        Ok((dx, dw))
    }

    #[cfg(feature = "cuda")]
    fn parts<'a, T>(&self, packed: CudaView<'a, T>, _: &Shape) -> Vec<CudaView<'a, T>> {
        vec![packed]
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward<T: Float>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        match self.0 {
            Products::F32 => Self::on_device::<T, T>(device, x, x_shape, parts),
            Products::Bf16 => Self::on_device::<T, T::Bf16>(device, x, x_shape, parts),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward<T: Float>(
        &self,
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match self.0 {
            Products::F32 => Self::back_on_device::<T, T>(x, parts, res, grad, wanted, adapters),
            Products::Bf16 => {
                Self::back_on_device::<T, T::Bf16>(x, parts, res, grad, wanted, adapters)
            }
        }
    }
}
