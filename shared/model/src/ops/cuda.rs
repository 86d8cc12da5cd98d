//! The fused operations on a CUDA device. Shapes, order of weights and what is kept are those of the host's.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Tensor};

use super::attention::AttentionHeads;
use super::cross_entropy::{LinearCrossEntropy, LossGradients};
use super::embedding::Gather;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::low_rank::{Adapted, AdapterGradient, Fused, LowRank, Slot, located, packed_shape};
use super::{Products, RmsNorm, Wanted, rows_and_width};
use crate::cuda::attention::{Attention, Kept};
use crate::cuda::{
    self, Angles, Factor, Matrix, MatrixMut, OnDevice, Ready, device_of, empty, product, tensor_of,
    tensor_values, values, weight_gradient,
};
use crate::float::Float;
use crate::kernels::Write;

/// Rows whose logits exist at once on a device; on the CPU it is [`super::SPAN_ROWS`].
const DEVICE_SPAN_ROWS: usize = 4096;

/// Width of the rows of `x`, and of their norm.
pub(super) fn norm_width(x_shape: &Shape) -> usize {
    x_shape.dims().last().copied().unwrap_or(0)
}

/// Runs an operation forward whose weights are packed.
pub(super) fn run_on_device<T: Float>(
    op: &impl Fused,
    x: &CudaStorage,
    x_layout: &Layout,
    w: &CudaStorage,
    w_layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let device = device_of(x);
    let (x, w) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
    let parts = op.parts(w, x_layout.shape());
    let (out, shape) = op.cuda_forward(&device, x, x_layout.shape(), &parts)?;
    Ok((cuda::storage_of(out, &device), shape))
}

/// Runs an operation forward whose weights lie where they are.
pub(super) fn run_parts<T: Float>(op: &impl Fused, x: &Tensor, w: &[Tensor]) -> Result<Tensor> {
    let device = x.device().as_cuda_device()?;
    let (storage, layout) = x.storage_and_layout();
    let x_values = tensor_values::<T>(&storage, layout)?;
    let (out, shape) = with_values(w, |parts| {
        op.cuda_forward(device, x_values.slice(..), x.shape(), parts)
    })?;
    Ok(tensor_of(out, shape, device))
}

/// Takes an operation back whose weights lie where they are.
pub(super) fn back_parts<T: Float>(
    op: &impl Fused,
    x: &Tensor,
    w: &[Tensor],
    res: &Tensor,
    grad: &Tensor,
    wanted: Wanted,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    with_values::<T, _>(w, |parts| {
        op.cuda_backward(x, parts, res, grad, wanted, None)
    })
}

/// Takes an operation back whose weights are packed.
pub(super) fn back_on_device<T: Float>(
    op: &impl Fused,
    x: &Tensor,
    w: &Tensor,
    res: &Tensor,
    grad: &Tensor,
    wanted: Wanted,
    adapters: Option<AdapterGradient<'_>>,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (storage, layout) = w.storage_and_layout();
    let parts = op.parts(tensor_values::<T>(&storage, layout)?, x.shape());
    let (dx, dw) = op.cuda_backward(x, &parts, res, grad, wanted, adapters)?;
    let dw = match (dw, adapters) {
        (Some(dw), None) => Some(dw.reshape(w.shape())?),
        (dw, _) => dw,
    };
    Ok((dx, dw))
}

/// Calls `use_them` with the values of tensors.
fn with_values<T: Float, R>(
    tensors: &[Tensor],
    use_them: impl FnOnce(&[CudaView<'_, T>]) -> Result<R>,
) -> Result<R> {
    let held: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let values = held
        .iter()
        .map(|(storage, layout)| tensor_values::<T>(storage, layout));
    use_them(&values.collect::<Result<Vec<_>>>()?)
}

/// `rows · right`, one row after another.
fn times<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    rows: CudaView<'_, F>,
    right: &Matrix<'_, F>,
) -> Result<CudaSlice<T>> {
    let (depth, width) = right.sides();
    let count = rows.len() / depth;
    let mut out = empty::<T>(device, count * width)?;
    let to = MatrixMut::new(out.as_view_mut(), count, width);
    let left = Matrix::new(rows, count, depth, depth);
    product(device, to, &left, right, 1.0, Write::Replace, 1)?;
    Ok(out)
}

/// `rows · wᵀ`, `[n, outputs]`, of factors `[n, inputs]` and weights `[outputs, inputs]`.
fn project<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    rows: CudaView<'_, F>,
    w: CudaView<'_, F>,
    (outputs, inputs): (usize, usize),
) -> Result<CudaSlice<T>> {
    let right = Matrix::new(w, outputs, inputs, inputs).transposed();
    times(device, rows, &right)
}

/// `rows · w`, `[n, inputs]`: the way back through [`project`].
fn unproject<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    rows: CudaView<'_, F>,
    w: CudaView<'_, F>,
    (outputs, inputs): (usize, usize),
) -> Result<CudaSlice<T>> {
    times(device, rows, &Matrix::new(w, outputs, inputs, inputs))
}

/// The factors of one weight gradient `[outputs, inputs]`: `grad [rows, outputs]`, `input [rows, inputs]`.
struct Factors<'a, F> {
    grad: CudaView<'a, F>,
    outputs: usize,
    input: CudaView<'a, F>,
    inputs: usize,
}

impl Linear {
    pub(super) fn on_device<T: Float, F: Factor<T>>(
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        let (_, inputs) = rows_and_width(x_shape)?;
        let w = Self::lone(parts, inputs)?;
        let outputs = w.len() / inputs;
        let (x, w) = (F::of(device, x)?, F::of(device, w)?);
        let out = project::<T, F>(device, x.view(), w.view(), (outputs, inputs))?;
        let mut dims = x_shape.dims().to_vec();
        *dims.last_mut().expect("rows_and_width refused scalars") = outputs;
        Ok((out, Shape::from(dims)))
    }

    /// The one matrix `[outputs, inputs]`.
    fn lone<'a, T>(parts: &[CudaView<'a, T>], inputs: usize) -> Result<CudaView<'a, T>> {
        match parts {
            [w] if w.len().is_multiple_of(inputs) => Ok(w.slice(..)),
            _ => Err(candle_core::Error::msg(format!(
                "linear: rows of {inputs} against weights of another width"
            ))),
        }
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let (_, inputs) = rows_and_width(x.shape())?;
        let w = Self::lone(parts, inputs)?;
        let outputs = w.len() / inputs;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let grad = F::of(device, tensor_values::<T>(&grad_storage, grad_layout)?)?;
        let dx = if wanted.input {
            let w = F::of(device, w)?;
            let dx = unproject::<T, F>(device, grad.view(), w.view(), (outputs, inputs))?;
            Some(tensor_of(dx, x.shape(), device))
        } else {
            None
        };
        if adapters.is_none() && !wanted.weights {
            return Ok((dx, None));
        }
        let input = F::of(device, tensor_values::<T>(&x_storage, x_layout)?)?;
        let factors = Factors {
            grad: grad.view(),
            outputs,
            input: input.view(),
            inputs,
        };
        let dw = weights_back::<T, F>(device, 0, None, &[factors], adapters)?;
        Ok((dx, Some(dw)))
    }
}

/// Writes the gradient of a norm's weights.
type NormBack<'a, T> = &'a dyn Fn(CudaViewMut<'_, T>) -> Result<()>;

/// Gradient of the weights that an operation has packed behind each other: `start` elements of a norm, whose gradient
/// `norm` writes, then one matrix after another; with `adapters`, theirs instead.
fn weights_back<T: Float, F: Factor<T>>(
    device: &CudaDevice,
    start: usize,
    norm: Option<NormBack<'_, T>>,
    factors: &[Factors<'_, F>],
    adapters: Option<AdapterGradient<'_>>,
) -> Result<Tensor> {
    if let Some(adapters) = adapters {
        return adapters.on_device::<T, F>(device, start, factors);
    }
    let sizes = factors.iter().map(|one| one.outputs * one.inputs);
    let count = start + sizes.sum::<usize>();
    let mut gradient = empty::<T>(device, count)?;
    if let Some(norm) = norm {
        norm(gradient.slice_mut(..start))?;
    }
    let mut first = start;
    for one in factors {
        let size = one.outputs * one.inputs;
        weight_gradient::<T, F>(
            device,
            gradient.slice_mut(first..first + size),
            (one.grad.slice(..), one.outputs),
            (one.input.slice(..), one.inputs),
            Write::Replace,
        )?;
        first += size;
    }
    Ok(tensor_of(gradient, count, device))
}

/// What going back through an attention half needs: the heads, and the weights as factors where they were made.
struct AttentionContext<T, F> {
    kept: Kept<T, F>,
    weights: Option<CudaSlice<F>>,
}

/// The norm's weights and the matrices of a block's half.
fn norm_and_matrices<'a, 'b, T>(
    parts: &'a [CudaView<'b, T>],
    dim: usize,
) -> Result<(&'a CudaView<'b, T>, &'a [CudaView<'b, T>])> {
    match parts.split_first() {
        Some((norm, matrices)) if norm.len() == dim => Ok((norm, matrices)),
        _ => Err(candle_core::Error::msg(format!(
            "a block's half of width {dim} has a norm of another width"
        ))),
    }
}

impl AttentionHeads {
    pub(super) fn on_device<T: Float, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        let sizes = self.sizes(x_shape, parts.iter().map(CudaView::len).sum())?;
        let (batch, sequence, dim) = x_shape.dims3()?;
        let layout = self.setup.layout;
        let (norm, matrices) = norm_and_matrices(parts, dim)?;
        let (normed, _) = cuda::rms_norm::<T, F>(device, &x, norm, self.setup.eps)?;
        let weights = F::behind_each_other(device, matrices)?;
        let sides = (sizes.packed, dim);
        let qkv = project::<T, F>(device, normed.as_view(), weights.view(), sides)?;
        drop(normed);
        let heads = self.with_angles(device, sequence, |angles| {
            cuda::split_heads::<T, F>(device, layout, &qkv, angles)
        })?;
        drop(qkv);
        let (out, kept) = Attention::new(layout, batch, sequence).forward::<T, F>(device, heads)?;
        if self.keep {
            self.saved.put(AttentionContext {
                kept,
                weights: weights.made(),
            })?;
        }
        Ok((out, Shape::from((batch, sequence, sizes.query))))
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        &self,
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let sizes = self.sizes(x.shape(), parts.iter().map(CudaView::len).sum())?;
        let (batch, sequence, dim) = x.dims3()?;
        let layout = self.setup.layout;
        let context = self.saved.get::<AttentionContext<T, F>>()?;
        let (norm, matrices) = norm_and_matrices(parts, dim)?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (res_storage, res_layout) = res.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let out = tensor_values::<T>(&res_storage, res_layout)?;
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let attention = Attention::new(layout, batch, sequence);
        let back = attention.backward::<T, F>(device, &context.kept, &out, &grad)?;
        let d_qkv = self.with_angles(device, sequence, |angles| {
            cuda::join_heads::<T, F>(device, layout, &back, angles)
        })?;
        drop(back);
        let (normed, inverse) = cuda::rms_norm::<T, F>(device, &x_values, norm, self.setup.eps)?;
        let sides = (sizes.packed, dim);
        let d_normed = {
            let weights = factors_of(device, context.weights.as_ref(), matrices)?;
            unproject::<T, F>(device, d_qkv.as_view(), weights.view(), sides)?
        };
        let d_normed = d_normed.as_view();
        let dx = if wanted.input {
            let dx = cuda::rms_norm_back(device, &d_normed, &x_values, norm, &inverse, None)?;
            Some(tensor_of(dx, x.shape(), device))
        } else {
            None
        };
        if adapters.is_none() && !wanted.weights {
            return Ok((dx, None));
        }
        let factors = Factors {
            grad: d_qkv.as_view(),
            outputs: sizes.packed,
            input: normed.as_view(),
            inputs: dim,
        };
        let norm = |out: CudaViewMut<'_, T>| {
            cuda::rms_norm_weights_back(device, &d_normed, &x_values, &inverse, out)
        };
        let dw = weights_back::<T, F>(device, dim, Some(&norm), &[factors], adapters)?;
        Ok((dx, Some(dw)))
    }

    /// Calls `use_them` with the angles of the positions `0..sequence`.
    fn with_angles<T: Float, R>(
        &self,
        device: &CudaDevice,
        sequence: usize,
        use_them: impl FnOnce(&Angles<'_, T>) -> Result<R>,
    ) -> Result<R> {
        let (cosines, sines) = self.setup.rotary.on_device::<T>(device)?;
        let (cos_storage, cos_layout) = cosines.storage_and_layout();
        let (sin_storage, sin_layout) = sines.storage_and_layout();
        let count = sequence * self.setup.rotary.half();
        use_them(&Angles {
            cosines: tensor_values::<T>(&cos_storage, cos_layout)?.slice(..count),
            sines: tensor_values::<T>(&sin_storage, sin_layout)?.slice(..count),
            sequence,
        })
    }
}

/// Weights as factors: those that forward made, or made anew.
fn factors_of<'a, T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    made: Option<&'a CudaSlice<F>>,
    matrices: &[CudaView<'a, T>],
) -> Result<Ready<'a, F>> {
    match made {
        Some(made) => Ok(Ready::AsItIs(made.as_view())),
        None => F::behind_each_other(device, matrices),
    }
}

/// What going back through a feed-forward half needs: gate and up, and the weights as factors where they were made.
struct FeedForwardContext<T, F> {
    gate_up: CudaSlice<T>,
    into: Option<CudaSlice<F>>,
    down: Option<CudaSlice<F>>,
}

/// The matrices of a feed-forward half, and its width.
struct FeedForwardMatrices<'a, 'b, T> {
    gate_up: &'a [CudaView<'b, T>],
    down: &'a CudaView<'b, T>,
    ffn: usize,
}

impl<'a, 'b, T> FeedForwardMatrices<'a, 'b, T> {
    /// Gate and up, then down.
    fn of(matrices: &'a [CudaView<'b, T>], dim: usize) -> Result<Self> {
        let unfit = || {
            candle_core::Error::msg(format!(
                "feed-forward: weights that do not fit the width {dim}"
            ))
        };
        let (down, gate_up) = matrices.split_last().ok_or_else(unfit)?;
        let into = gate_up.iter().map(CudaView::len).sum::<usize>();
        if down.is_empty() || !down.len().is_multiple_of(dim) || into != 2 * down.len() {
            return Err(unfit());
        }
        Ok(Self {
            gate_up,
            down,
            ffn: down.len() / dim,
        })
    }
}

impl FeedForward {
    pub(super) fn on_device<T: Float, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        let (rows, dim) = rows_and_width(x_shape)?;
        let (norm, matrices) = norm_and_matrices(parts, dim)?;
        let FeedForwardMatrices { gate_up, down, ffn } = FeedForwardMatrices::of(matrices, dim)?;
        let (normed, _) = cuda::rms_norm::<T, F>(device, &x, norm, self.eps)?;
        let into = F::behind_each_other(device, gate_up)?;
        let gate_up = project::<T, F>(device, normed.as_view(), into.view(), (2 * ffn, dim))?;
        drop(normed);
        let act = cuda::swiglu::<T, F>(device, &gate_up, ffn)?;
        let mut out = empty::<T>(device, x.len())?;
        device.memcpy_dtod(&x, &mut out)?;
        let down = F::of(device, down.slice(..))?;
        product(
            device,
            MatrixMut::new(out.as_view_mut(), rows, dim),
            &Matrix::new(act.as_view(), rows, ffn, ffn),
            &Matrix::new(down.view(), dim, ffn, ffn).transposed(),
            1.0,
            Write::Add,
            1,
        )?;
        if self.keep {
            self.saved.put(FeedForwardContext {
                gate_up,
                into: into.made(),
                down: down.made(),
            })?;
        }
        Ok((out, x_shape.clone()))
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        &self,
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let context = self.saved.get::<FeedForwardContext<T, F>>()?;
        let (_, dim) = rows_and_width(x.shape())?;
        let (norm, matrices) = norm_and_matrices(parts, dim)?;
        let FeedForwardMatrices { gate_up, down, ffn } = FeedForwardMatrices::of(matrices, dim)?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let residual = tensor_values::<T>(&grad_storage, grad_layout)?;
        let grad = F::of(device, residual.slice(..))?;
        let d_act = {
            let down = factors_of(device, context.down.as_ref(), std::slice::from_ref(down))?;
            unproject::<T, F>(device, grad.view(), down.view(), (dim, ffn))?
        };
        let (d_gate_up, act) = cuda::swiglu_back::<T, F>(device, &context.gate_up, &d_act, ffn)?;
        drop(d_act);
        let (normed, inverse) = cuda::rms_norm::<T, F>(device, &x_values, norm, self.eps)?;
        let d_normed = {
            let into = factors_of(device, context.into.as_ref(), gate_up)?;
            unproject::<T, F>(device, d_gate_up.as_view(), into.view(), (2 * ffn, dim))?
        };
        let d_normed = d_normed.as_view();
        let dx = if wanted.input {
            let upon = Some(&residual);
            let dx = cuda::rms_norm_back(device, &d_normed, &x_values, norm, &inverse, upon)?;
            Some(tensor_of(dx, x.shape(), device))
        } else {
            None
        };
        if adapters.is_none() && !wanted.weights {
            return Ok((dx, None));
        }
        let factors = [
            Factors {
                grad: d_gate_up.as_view(),
                outputs: 2 * ffn,
                input: normed.as_view(),
                inputs: dim,
            },
            Factors {
                grad: grad.view(),
                outputs: dim,
                input: act.as_view(),
                inputs: ffn,
            },
        ];
        let norm = |out: CudaViewMut<'_, T>| {
            cuda::rms_norm_weights_back(device, &d_normed, &x_values, &inverse, out)
        };
        let dw = weights_back::<T, F>(device, dim, Some(&norm), &factors, adapters)?;
        Ok((dx, Some(dw)))
    }
}

impl RmsNorm {
    pub(super) fn on_device<T: Float>(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = device_of(x);
        let (_, dim) = rows_and_width(x_layout.shape())?;
        let (x, w) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
        if w.len() != dim {
            return Err(candle_core::Error::msg(format!(
                "rms-norm: rows of {dim} against {:?} weights",
                w_layout.shape()
            )));
        }
        let (out, inverse) = cuda::rms_norm::<T, T>(&device, &x, &w, self.eps)?;
        self.inverse.put(inverse)?;
        Ok((cuda::storage_of(out, &device), x_layout.shape().clone()))
    }

    pub(super) fn back_on_device<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let inverse = self.inverse.get::<CudaSlice<T>>()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = w.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let w_values = tensor_values::<T>(&w_storage, w_layout)?;
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let dx = if wanted.input {
            let dx = cuda::rms_norm_back(device, &grad, &x_values, &w_values, inverse, None)?;
            Some(tensor_of(dx, x.shape(), device))
        } else {
            None
        };
        let dw = if wanted.weights {
            let mut dw = empty::<T>(device, w_values.len())?;
            let out = dw.as_view_mut();
            cuda::rms_norm_weights_back(device, &grad, &x_values, inverse, out)?;
            Some(tensor_of(dw, w.shape(), device))
        } else {
            None
        };
        Ok((dx, dw))
    }
}

impl LinearCrossEntropy {
    pub(super) fn on_device<T: Float>(
        &self,
        h: &CudaStorage,
        h_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.products {
            Products::F32 => self.with_factors::<T, T>(h, h_layout, w, w_layout),
            Products::Bf16 => self.with_factors::<T, T::Bf16>(h, h_layout, w, w_layout),
        }
    }

    fn with_factors<T: Float, F: Factor<T>>(
        &self,
        h: &CudaStorage,
        h_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = &device_of(h);
        let ((rows, dim), (vocab, w_dim)) = (h_layout.shape().dims2()?, w_layout.shape().dims2()?);
        self.check(rows, dim, vocab, w_dim)?;
        let hidden = F::of(device, values::<T>(h, h_layout)?)?;
        let unembedding = F::of(device, values::<T>(w, w_layout)?)?;
        let targets = device.clone_htod(&self.targets)?;
        let weights = device.clone_htod(&self.weights)?;
        let mut ce = device.alloc_zeros::<f64>(rows)?;
        let mut d_hidden = empty::<T>(device, if self.keep { rows * dim } else { 0 })?;
        // The first span writes it; without rows there is none, and the gradient is zero.
        let mut d_w = match (self.keep_unembedding, rows) {
            (false, _) => empty::<T>(device, 0)?,
            (true, 0) => device.alloc_zeros::<T>(vocab * dim)?,
            (true, _) => empty::<T>(device, vocab * dim)?,
        };
        for first in (0..rows).step_by(DEVICE_SPAN_ROWS) {
            let last = rows.min(first + DEVICE_SPAN_ROWS);
            let hidden = hidden.view().slice(first * dim..last * dim);
            let logits =
                project::<T, F>(device, hidden.slice(..), unembedding.view(), (vocab, dim))?;
            let grad = cuda::cross_entropy::<T, F>(
                device,
                &logits.as_view(),
                &targets.slice(first..last),
                &weights.slice(first..last),
                ce.slice_mut(first..last),
                self.keep,
            )?;
            drop(logits);
            let Some(grad) = grad else { continue };
            product(
                device,
                MatrixMut::new(
                    d_hidden.slice_mut(first * dim..last * dim),
                    last - first,
                    dim,
                ),
                &Matrix::new(grad.as_view(), last - first, vocab, vocab),
                &Matrix::new(unembedding.view(), vocab, dim, dim),
                1.0,
                Write::Replace,
                1,
            )?;
            if self.keep_unembedding {
                let write = if first == 0 {
                    Write::Replace
                } else {
                    Write::Add
                };
                let (grad, input) = ((grad.as_view(), vocab), (hidden, dim));
                weight_gradient::<T, F>(device, d_w.as_view_mut(), grad, input, write)?;
            }
        }
        if self.keep {
            let of_unembedding = self
                .keep_unembedding
                .then(|| tensor_of(d_w, w_layout.shape(), device));
            self.saved.put(LossGradients {
                ce: Vec::new(),
                hidden: tensor_of(d_hidden, h_layout.shape(), device),
                unembedding: of_unembedding,
            })?;
        }
        let sum = self.report(device.clone_dtoh(&ce)?);
        let sum = cuda::upload::<T>(device, &[sum])?;
        Ok((cuda::storage_of(sum, device), Shape::from(())))
    }

    pub(super) fn gradients_on_device(self, ce: Vec<f64>) -> Result<LossGradients> {
        let saved = self.saved.take::<LossGradients>()?;
        Ok(LossGradients { ce, ..saved })
    }

    pub(super) fn back_on_device(&self, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.get::<LossGradients>()?;
        let factor = grad.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        let of_unembedding = saved.unembedding.as_ref();
        Ok((
            Some((&saved.hidden * factor)?),
            of_unembedding.map(|data| data * factor).transpose()?,
        ))
    }
}

impl Gather {
    pub(super) fn on_device<T: Float>(
        &self,
        table: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, dim) = (device_of(table), self.width(layout)?);
        let rows = cuda::gather_rows::<T>(&device, &values(table, layout)?, &self.ids, dim)?;
        Ok((
            cuda::storage_of(rows, &device),
            Shape::from((self.ids.len(), dim)),
        ))
    }
}

/// Gradient of a table from that of the rows that were taken.
pub(super) fn scatter_on_device<T: Float>(
    grad: &Tensor,
    ids: &[u32],
    rows: usize,
) -> Result<Tensor> {
    let device = grad.device().as_cuda_device()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(candle_core::Error::msg(format!(
            "embedding: row {id} of a table of {rows}"
        )));
    }
    let dim = grad.dim(candle_core::D::Minus1)?;
    let (storage, layout) = grad.storage_and_layout();
    let grad = tensor_values::<T>(&storage, layout)?;
    let sum = cuda::scatter_rows::<T>(device, &grad, ids, (rows, dim))?;
    Ok(tensor_of(sum, (rows, dim), device))
}

impl LowRank {
    pub(super) fn cuda_tensor<T: Float>(&self, parts: &[Tensor], flat: &Tensor) -> Result<Tensor> {
        let device = flat.device().as_cuda_device()?;
        let (storage, layout) = flat.storage_and_layout();
        let flat = tensor_values::<T>(&storage, layout)?;
        let weights = self.cuda_sum::<T>(device, parts, &flat)?;
        Ok(tensor_of(weights, packed_shape(parts), device))
    }

    fn cuda_sum<T: Float>(
        &self,
        device: &CudaDevice,
        parts: &[Tensor],
        flat: &CudaView<'_, T>,
    ) -> Result<CudaSlice<T>> {
        let mut packed = empty::<T>(device, parts.iter().map(Tensor::elem_count).sum())?;
        let mut first = 0;
        for part in parts {
            // Of a part in a smaller type, a copy for as long as it takes.
            let part = part.to_dtype(T::DTYPE)?;
            let (storage, layout) = part.storage_and_layout();
            let part = tensor_values::<T>(&storage, layout)?;
            let mut to = packed.slice_mut(first..first + part.len());
            device.cuda_stream().memcpy_dtod(&part, &mut to).w()?;
            first += part.len();
        }
        self.each_pair(flat, |slot, a, b| {
            let weight = packed.slice_mut(slot.start..slot.start + slot.outputs * slot.inputs);
            product::<T, T>(
                device,
                MatrixMut::new(weight, slot.outputs, slot.inputs),
                &Matrix::new(b, slot.outputs, self.rank, self.rank),
                &Matrix::new(a, self.rank, slot.inputs, slot.inputs),
                self.scale,
                Write::Add,
                1,
            )
        })?;
        Ok(packed)
    }

    /// Calls `act` with A and B of every slot.
    fn each_pair<T>(
        &self,
        flat: &CudaView<'_, T>,
        mut act: impl FnMut(Slot, CudaView<'_, T>, CudaView<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        for slot in &self.slots {
            let middle = first + self.rank * slot.inputs;
            let last = middle + slot.outputs * self.rank;
            act(*slot, flat.slice(first..middle), flat.slice(middle..last))?;
            first = last;
        }
        Ok(())
    }
}

impl AdapterGradient<'_> {
    /// As on the host: `dA = s·(dy·B)ᵀ·x` and `dB = s·dyᵀ·(x·Aᵀ)`.
    fn on_device<T: Float, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        start: usize,
        factors: &[Factors<'_, F>],
    ) -> Result<Tensor> {
        let LowRank { rank, scale, .. } = *self.low_rank;
        let (storage, layout) = self.flat.storage_and_layout();
        let flat = tensor_values::<T>(&storage, layout)?;
        let mut sums = empty::<T>(device, flat.len())?;
        let mut first = 0;
        self.low_rank.each_pair(&flat, |slot, a, b| {
            let sides = factors.iter().map(|one| (one.outputs, one.inputs));
            let (index, column) = located(slot, start, sides);
            let one = &factors[index];
            let (a, b) = (F::of(device, a)?, F::of(device, b)?);
            let rows = one.input.len() / slot.inputs;
            let grad = || Matrix::new(one.grad.slice(column..), rows, slot.outputs, one.outputs);
            let input = || Matrix::new(one.input.slice(..), rows, slot.inputs, slot.inputs);
            let down = project::<T, F>(device, one.input.slice(..), a.view(), (rank, slot.inputs))?;
            let mut up = empty::<T>(device, rows * rank)?;
            product(
                device,
                MatrixMut::new(up.as_view_mut(), rows, rank),
                &grad(),
                &Matrix::new(b.view(), slot.outputs, rank, rank),
                1.0,
                Write::Replace,
                1,
            )?;
            let (down, up) = (F::of(device, down.as_view())?, F::of(device, up.as_view())?);
            let middle = first + rank * slot.inputs;
            let last = middle + slot.outputs * rank;
            product(
                device,
                MatrixMut::new(sums.slice_mut(first..middle), rank, slot.inputs),
                &Matrix::new(up.view(), rows, rank, rank).transposed(),
                &input(),
                scale,
                Write::Replace,
                1,
            )?;
            product(
                device,
                MatrixMut::new(sums.slice_mut(middle..last), slot.outputs, rank),
                &grad().transposed(),
                &Matrix::new(down.view(), rows, rank, rank),
                scale,
                Write::Replace,
                1,
            )?;
            first = last;
            Ok(())
        })?;
        Ok(tensor_of(sums, self.flat.shape(), device))
    }
}

impl<O: Fused> Adapted<O> {
    pub(super) fn cuda_run<T: Float>(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        flat: &CudaStorage,
        flat_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = device_of(x);
        let (x, flat) = (values::<T>(x, x_layout)?, values::<T>(flat, flat_layout)?);
        let weights = self.low_rank.cuda_sum::<T>(&device, &self.parts, &flat)?;
        let parts = self.op.parts(weights.as_view(), x_layout.shape());
        let (out, shape) = self.op.cuda_forward(&device, x, x_layout.shape(), &parts)?;
        Ok((cuda::storage_of(out, &device), shape))
    }
}
