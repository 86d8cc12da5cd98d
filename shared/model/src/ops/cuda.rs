//! The fused operations on a CUDA device. Shapes, order of weights and what is kept are those of the host's.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Tensor};

use super::attention::AttentionHeads;
use super::cross_entropy::{LinearCrossEntropy, LossGradients};
use super::embedding::Gather;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::low_rank::{Adapted, AdapterGradient, Fused, LowRank, Slot, packed_shape};
use super::{Products, RmsNorm, Wanted, rows_and_width};
use crate::cuda::{
    self, Angles, Factor, Heads, Matrix, MatrixMut, OnDevice, device_of, empty, product, tensor_of,
    tensor_values, values, weight_gradient,
};
use crate::float::Float;
use crate::kernels::{HeadLayout, Write};

/// Elements of scores that exist at once: 1 GiB in f32.
const SCORES: usize = 1 << 28;

/// Rows whose logits exist at once.
const SPAN_ROWS: usize = 4096;

/// Runs an operation forward.
pub(super) fn run_on_device<T: Float>(
    op: &impl Fused,
    x: &CudaStorage,
    x_layout: &Layout,
    w: &CudaStorage,
    w_layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let device = device_of(x);
    let (x, w) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
    let (out, shape) = op.cuda_forward(&device, x, x_layout.shape(), w, w_layout.shape())?;
    Ok((cuda::storage_of(out, &device), shape))
}

/// `rows · wᵀ`, `[n, outputs]`, of factors `[n, inputs]` and weights `[outputs, inputs]`.
fn project<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    rows: CudaView<'_, F>,
    w: CudaView<'_, F>,
    (outputs, inputs): (usize, usize),
) -> Result<CudaSlice<T>> {
    let count = rows.len() / inputs;
    let mut out = empty::<T>(device, count * outputs)?;
    product(
        device,
        MatrixMut::new(out.as_view_mut(), count, outputs),
        &Matrix::new(rows, count, inputs, inputs),
        &Matrix::new(w, outputs, inputs, inputs).transposed(),
        1.0,
        Write::Replace,
        1,
    )?;
    Ok(out)
}

/// `rows · w`, `[n, inputs]`: the way back through [`project`].
fn unproject<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    rows: CudaView<'_, F>,
    w: CudaView<'_, F>,
    (outputs, inputs): (usize, usize),
) -> Result<CudaSlice<T>> {
    let count = rows.len() / outputs;
    let mut out = empty::<T>(device, count * inputs)?;
    product(
        device,
        MatrixMut::new(out.as_view_mut(), count, inputs),
        &Matrix::new(rows, count, outputs, outputs),
        &Matrix::new(w, outputs, inputs, inputs),
        1.0,
        Write::Replace,
        1,
    )?;
    Ok(out)
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
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        w: CudaView<'_, T>,
        w_shape: &Shape,
    ) -> Result<(CudaSlice<T>, Shape)> {
        let (outputs, inputs) = w_shape.dims2()?;
        let (_, width) = rows_and_width(x_shape)?;
        if width != inputs {
            return Err(candle_core::Error::msg(format!(
                "linear: rows of {width} against weights of {inputs} inputs"
            )));
        }
        let (x, w) = (F::of(device, x)?, F::of(device, w)?);
        let out = project::<T, F>(device, x.view(), w.view(), (outputs, inputs))?;
        let mut dims = x_shape.dims().to_vec();
        *dims.last_mut().expect("rows_and_width refused scalars") = outputs;
        Ok((out, Shape::from(dims)))
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let sides = w.dims2()?;
        let (outputs, inputs) = sides;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = w.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let grad = F::of(device, tensor_values::<T>(&grad_storage, grad_layout)?)?;
        let dx = if wanted.input {
            let w = F::of(device, tensor_values::<T>(&w_storage, w_layout)?)?;
            let dx = unproject::<T, F>(device, grad.view(), w.view(), sides)?;
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
        let dw = weights_back::<T, F>(device, w, 0, None, &[factors], adapters)?;
        Ok((dx, Some(dw)))
    }
}

/// Gradient of the weights that an operation has packed behind each other: `start` elements of a norm, whose gradient
/// `norm` writes, then one matrix after another; with `adapters`, theirs instead.
fn weights_back<T: Float, F: Factor<T>>(
    device: &CudaDevice,
    packed: &Tensor,
    start: usize,
    norm: Option<&dyn Fn(CudaViewMut<'_, T>) -> Result<()>>,
    factors: &[Factors<'_, F>],
    adapters: Option<AdapterGradient<'_>>,
) -> Result<Tensor> {
    if let Some(adapters) = adapters {
        return adapters.on_device::<T, F>(device, start, factors);
    }
    let mut gradient = empty::<T>(device, packed.elem_count())?;
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
    Ok(tensor_of(gradient, packed.shape(), device))
}

/// Attention of one call on the device: every group of query heads that share a key/value head is one matrix of
/// `copies · s` queries.
struct Attention {
    layout: HeadLayout,
    sequence: usize,
    groups: usize,
}

impl Attention {
    fn new(layout: HeadLayout, batch: usize, sequence: usize) -> Self {
        Self {
            layout,
            sequence,
            groups: batch * layout.kv_heads,
        }
    }

    fn queries(&self) -> usize {
        self.layout.heads / self.layout.kv_heads * self.sequence
    }

    fn scale(&self) -> f64 {
        1.0 / (self.layout.head_dim as f64).sqrt()
    }

    /// Ranges of groups whose scores exist together.
    fn spans(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let at_once = (SCORES / (self.queries() * self.sequence)).max(1);
        let groups = self.groups;
        (0..groups)
            .step_by(at_once)
            .map(move |first| first..groups.min(first + at_once))
    }

    /// Groups of a tensor whose matrices have `rows` rows of the head's width.
    fn part<'a, F>(
        &self,
        data: &'a CudaSlice<F>,
        groups: &std::ops::Range<usize>,
        rows: usize,
    ) -> Matrix<'a, F> {
        let width = self.layout.head_dim;
        let size = rows * width;
        Matrix::new(
            data.slice(groups.start * size..groups.end * size),
            rows,
            width,
            width,
        )
    }

    fn part_mut<'a, T>(
        &self,
        data: &'a mut CudaSlice<T>,
        groups: &std::ops::Range<usize>,
        rows: usize,
    ) -> MatrixMut<'a, T> {
        let width = self.layout.head_dim;
        let size = rows * width;
        let data = data.slice_mut(groups.start * size..groups.end * size);
        MatrixMut::new(data, rows, width)
    }

    /// `scale · a · bᵀ`, `[groups, queries, s]`.
    fn scores<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        a: &Matrix<'_, F>,
        b: Matrix<'_, F>,
        scale: f64,
        groups: usize,
    ) -> Result<CudaSlice<T>> {
        let (queries, sequence) = (self.queries(), self.sequence);
        let mut scores = empty::<T>(device, groups * queries * sequence)?;
        product(
            device,
            MatrixMut::new(scores.as_view_mut(), queries, sequence),
            a,
            &b.transposed(),
            scale,
            Write::Replace,
            groups,
        )?;
        Ok(scores)
    }

    /// Probabilities `[groups, queries, s]`.
    fn probabilities<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
        groups: &std::ops::Range<usize>,
    ) -> Result<CudaSlice<F>> {
        let q = self.part(&heads.q, groups, self.queries());
        let k = self.part(&heads.k, groups, self.sequence);
        let scores = self.scores::<T, F>(device, &q, k, self.scale(), groups.len())?;
        cuda::softmax(device, &scores, self.sequence)
    }

    /// `[b, h, s, e]`.
    fn forward<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
    ) -> Result<CudaSlice<T>> {
        let mut out = empty::<T>(device, heads.q.len())?;
        for groups in self.spans() {
            let p = self.probabilities::<T, F>(device, heads, &groups)?;
            product(
                device,
                self.part_mut(&mut out, &groups, self.queries()),
                &Matrix::new(p.as_view(), self.queries(), self.sequence, self.sequence),
                &self.part(&heads.v, &groups, self.sequence),
                1.0,
                Write::Replace,
                groups.len(),
            )?;
        }
        Ok(out)
    }

    /// Gradients of queries, keys and values from that of the heads' outputs, all by head.
    fn backward<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
        grad: &CudaSlice<F>,
    ) -> Result<Heads<T>> {
        let (queries, sequence) = (self.queries(), self.sequence);
        let mut back = Heads {
            q: empty::<T>(device, heads.q.len())?,
            k: empty::<T>(device, heads.k.len())?,
            v: empty::<T>(device, heads.v.len())?,
        };
        for groups in self.spans() {
            let count = groups.len();
            let p = self.probabilities::<T, F>(device, heads, &groups)?;
            let d_out = self.part(grad, &groups, queries);
            product(
                device,
                self.part_mut(&mut back.v, &groups, sequence),
                &Matrix::new(p.as_view(), queries, sequence, sequence).transposed(),
                &d_out,
                1.0,
                Write::Replace,
                count,
            )?;
            let v = self.part(&heads.v, &groups, sequence);
            let d_p = self.scores::<T, F>(device, &d_out, v, 1.0, count)?;
            let d_scores = cuda::softmax_back::<T, F>(device, &p, &d_p, sequence)?;
            drop((p, d_p));
            product(
                device,
                self.part_mut(&mut back.q, &groups, queries),
                &Matrix::new(d_scores.as_view(), queries, sequence, sequence),
                &self.part(&heads.k, &groups, sequence),
                self.scale(),
                Write::Replace,
                count,
            )?;
            product(
                device,
                self.part_mut(&mut back.k, &groups, sequence),
                &Matrix::new(d_scores.as_view(), queries, sequence, sequence).transposed(),
                &self.part(&heads.q, &groups, queries),
                self.scale(),
                Write::Replace,
                count,
            )?;
        }
        Ok(back)
    }
}

impl AttentionHeads {
    pub(super) fn on_device<T: Float, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        w: CudaView<'_, T>,
        w_shape: &Shape,
    ) -> Result<(CudaSlice<T>, Shape)> {
        let sizes = self.sizes(x_shape, w_shape.elem_count())?;
        let (batch, sequence, dim) = x_shape.dims3()?;
        let layout = self.setup.layout;
        let (norm, weights) = w.split_at(dim);
        let (normed, _) = cuda::rms_norm::<T, F>(device, &x, &norm, self.setup.eps)?;
        let weights = F::of(device, weights)?;
        let qkv = project::<T, F>(
            device,
            normed.as_view(),
            weights.view(),
            (sizes.packed, dim),
        )?;
        drop(normed);
        let heads = self.with_angles(device, sequence, |angles| {
            cuda::split_heads::<T, F>(device, layout, &qkv, angles)
        })?;
        drop(qkv);
        let out = Attention::new(layout, batch, sequence).forward::<T, F>(device, &heads)?;
        let out = cuda::heads_last(device, &out, sequence, layout)?;
        if self.keep {
            self.saved.put(heads)?;
        }
        Ok((out, Shape::from((batch, sequence, sizes.query))))
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let sizes = self.sizes(x.shape(), packed.elem_count())?;
        let (batch, sequence, dim) = x.dims3()?;
        let layout = self.setup.layout;
        let heads = self.saved.get::<Heads<F>>()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = packed.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let (norm, weights) = tensor_values::<T>(&w_storage, w_layout)?.split_at(dim);
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let grad = cuda::heads_first::<T, F>(device, &grad, sequence, layout)?;
        let back = Attention::new(layout, batch, sequence).backward(device, heads, &grad)?;
        drop(grad);
        let d_qkv = self.with_angles(device, sequence, |angles| {
            cuda::join_heads::<T, F>(device, layout, &back, angles)
        })?;
        drop(back);
        let (normed, inverse) = cuda::rms_norm::<T, F>(device, &x_values, &norm, self.setup.eps)?;
        let weights = F::of(device, weights)?;
        let sides = (sizes.packed, dim);
        let d_normed = unproject::<T, F>(device, d_qkv.as_view(), weights.view(), sides)?;
        let d_normed = d_normed.as_view();
        let dx = if wanted.input {
            let dx = cuda::rms_norm_back(device, &d_normed, &x_values, &norm, &inverse, None)?;
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
        let dw = weights_back::<T, F>(device, packed, dim, Some(&norm), &[factors], adapters)?;
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

/// The parts of a feed-forward operand `[norm d | w1 f·d | w3 f·d | w2 d·f]`.
struct FeedForwardWeights<'a, T> {
    ffn: usize,
    norm: CudaView<'a, T>,
    gate_up: CudaView<'a, T>,
    down: CudaView<'a, T>,
}

impl<'a, T> FeedForwardWeights<'a, T> {
    fn split(packed: CudaView<'a, T>, dim: usize) -> Result<Self> {
        let ffn = packed.len().saturating_sub(dim) / (3 * dim);
        if ffn == 0 || packed.len() != dim + 3 * dim * ffn {
            return Err(candle_core::Error::msg(format!(
                "feed-forward: {} packed weights for width {dim}",
                packed.len()
            )));
        }
        let (norm, rest) = packed.split_at(dim);
        let (gate_up, down) = rest.split_at(2 * dim * ffn);
        Ok(Self {
            ffn,
            norm,
            gate_up,
            down,
        })
    }
}

/// What going back needs of a feed-forward half: gate and up.
struct GateUp<T>(CudaSlice<T>);

impl FeedForward {
    pub(super) fn on_device<T: Float, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        w: CudaView<'_, T>,
        _w_shape: &Shape,
    ) -> Result<(CudaSlice<T>, Shape)> {
        let (rows, dim) = rows_and_width(x_shape)?;
        let weights = FeedForwardWeights::split(w, dim)?;
        let ffn = weights.ffn;
        let (normed, _) = cuda::rms_norm::<T, F>(device, &x, &weights.norm, self.eps)?;
        let into = F::of(device, weights.gate_up)?;
        let gate_up = project::<T, F>(device, normed.as_view(), into.view(), (2 * ffn, dim))?;
        drop((normed, into));
        let act = cuda::swiglu::<T, F>(device, &gate_up, ffn)?;
        let mut out = empty::<T>(device, x.len())?;
        device.memcpy_dtod(&x, &mut out)?;
        let down = F::of(device, weights.down)?;
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
            self.saved.put(GateUp(gate_up))?;
        }
        Ok((out, x_shape.clone()))
    }

    pub(super) fn back_on_device<T: Float, F: Factor<T>>(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device().as_cuda_device()?;
        let GateUp(gate_up) = self.saved.get::<GateUp<T>>()?;
        let (_, dim) = rows_and_width(x.shape())?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = packed.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let residual = tensor_values::<T>(&grad_storage, grad_layout)?;
        let weights = FeedForwardWeights::split(tensor_values::<T>(&w_storage, w_layout)?, dim)?;
        let ffn = weights.ffn;
        let grad = F::of(device, residual.slice(..))?;
        let down = F::of(device, weights.down)?;
        let d_act = unproject::<T, F>(device, grad.view(), down.view(), (dim, ffn))?;
        drop(down);
        let (d_gate_up, act) = cuda::swiglu_back::<T, F>(device, gate_up, &d_act, ffn)?;
        drop(d_act);
        let (normed, inverse) = cuda::rms_norm::<T, F>(device, &x_values, &weights.norm, self.eps)?;
        let into = F::of(device, weights.gate_up)?;
        let d_normed = unproject::<T, F>(device, d_gate_up.as_view(), into.view(), (2 * ffn, dim))?;
        drop(into);
        let d_normed = d_normed.as_view();
        let dx = if wanted.input {
            let dx = cuda::rms_norm_back(
                device,
                &d_normed,
                &x_values,
                &weights.norm,
                &inverse,
                Some(&residual),
            )?;
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
        let dw = weights_back::<T, F>(device, packed, dim, Some(&norm), &factors, adapters)?;
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
        let mut d_w = empty::<T>(
            device,
            if self.keep_unembedding {
                vocab * dim
            } else {
                0
            },
        )?;
        for first in (0..rows).step_by(SPAN_ROWS) {
            let last = rows.min(first + SPAN_ROWS);
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
            let (one, column) = located(slot, start, factors);
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

/// The factors of a slot's gradient, and the column of their `grad` at which its outputs start.
fn located<'a, 'b, F>(
    slot: Slot,
    mut start: usize,
    factors: &'a [Factors<'b, F>],
) -> (&'a Factors<'b, F>, usize) {
    for one in factors {
        let end = start + one.outputs * one.inputs;
        if slot.start < end {
            return (one, (slot.start - start) / one.inputs);
        }
        start = end;
    }
    unreachable!("a slot lies inside the packed weights")
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
        let shape = packed_shape(&self.parts);
        let (out, shape) =
            self.op
                .cuda_forward(&device, x, x_layout.shape(), weights.as_view(), &shape)?;
        Ok((cuda::storage_of(out, &device), shape))
    }
}
