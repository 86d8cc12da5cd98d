//! Fused, differentiable operations on tensors of f32 and f64, each with its own backward; on a device with feature `cuda`.
//!
//! candle's fused norm, softmax and rotary functions cut the gradient in silence; these do not. An
//! operation keeps what backward needs inside its own instance, one instance per call.

mod attention;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
mod embedding;
mod feed_forward;
mod fresh;
mod linear;
mod low_rank;
mod norm;
mod widen;

use std::any::Any;
use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, WithDType,
};
use rayon::prelude::*;

use crate::float::Float;
pub use crate::kernels::Products;
use crate::kernels::{Matrix, MatrixMut, Right, Write};
use crate::tape::Operand;

pub(crate) use attention::{AttentionHeads, BlockSetup, adapted_attention_heads, attention_heads};
pub use cross_entropy::{LossGradients, SPAN_ROWS};
pub(crate) use cross_entropy::{cross_entropy_gradients, linear_cross_entropy};
#[cfg(feature = "cuda")]
use cuda::{back_on_device, back_parts, run_parts};
pub use embedding::embedding;
pub(crate) use embedding::scatter_rows;
pub(crate) use feed_forward::{FeedForward, adapted_feed_forward, feed_forward};
use fresh::{Fresh, Unwritten};
pub(crate) use linear::{Linear, adapted_linear};
pub use linear::{linear, linear_with};
use low_rank::AdapterGradient;
pub(crate) use low_rank::{Fused, LowRank, Slot};
pub(crate) use norm::RmsNorm;
pub use norm::rms_norm;

/// Implements the dispatch over element types that candle's operation traits leave to us.
macro_rules! by_dtype {
    ($dtype:expr, $call:ident ( $($arg:expr),* $(,)? )) => {
        match $dtype {
            candle_core::DType::F32 => $call::<f32>($($arg),*),
            candle_core::DType::F64 => $call::<f64>($($arg),*),
            other => Err($crate::ops::unsupported(other)),
        }
    };
    ($dtype:expr, $this:ident . $call:ident ( $($arg:expr),* $(,)? )) => {
        match $dtype {
            candle_core::DType::F32 => $this.$call::<f32>($($arg),*),
            candle_core::DType::F64 => $this.$call::<f64>($($arg),*),
            other => Err($crate::ops::unsupported(other)),
        }
    };
}
pub(crate) use by_dtype;

/// Rows that one parallel task takes at least. A constant, so results do not depend on the thread count.
const TASK_ROWS: usize = 256;

/// Parallel tiles of a weight gradient.
const GRADIENT_TILES: usize = 4;

/// What forward leaves for backward. Written once by forward; backward may run more than once.
pub(super) struct Saved(OnceLock<Box<dyn Any + Send + Sync>>);

impl Saved {
    fn new() -> Self {
        Self(OnceLock::new())
    }

    fn put<C: Any + Send + Sync>(&self, context: C) -> Result<()> {
        self.0
            .set(Box::new(context))
            .map_err(|_| candle_core::Error::msg("a fused operation instance ran forward twice"))
    }

    fn take<C: Any>(self) -> Result<C> {
        self.0
            .into_inner()
            .and_then(|context| context.downcast().ok())
            .map(|context| *context)
            .ok_or_else(|| candle_core::Error::msg("a fused operation kept nothing"))
    }

    fn get<C: Any>(&self) -> Result<&C> {
        self.0
            .get()
            .and_then(|context| context.downcast_ref())
            .ok_or_else(|| {
                candle_core::Error::msg("backward of a fused operation that recorded nothing")
            })
    }
}

/// Which gradients going back should make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) input: bool,
    pub(crate) weights: bool,
}

impl Wanted {
    /// What candle's graph will ask for.
    fn by_graph(x: &Tensor, w: &Tensor) -> Self {
        Self {
            input: x.track_op(),
            weights: w.track_op(),
        }
    }
}

/// A fused operation as a tape runs it: once forward, once back, without candle's graph, whose edges each cost a pass
/// that clears and one that adds.
pub(crate) trait Layer: Send + Sync {
    fn run(&self, x: &Tensor, w: &Operand) -> Result<Tensor>;

    /// Gradients of `x` and of the weights, these behind each other, from that of the result.
    fn back(
        &self,
        x: &Tensor,
        w: &Operand,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)>;
}

impl<O: Fused + CustomOp2> Layer for O {
    fn run(&self, x: &Tensor, w: &Operand) -> Result<Tensor> {
        let x = x.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return by_dtype!(x.dtype(), run_parts(self, &x, w.parts()));
        }
        x.apply_op2_no_bwd(w.flat()?, self)
    }

    fn back(
        &self,
        x: &Tensor,
        w: &Operand,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let parts = w.parts();
            return by_dtype!(x.dtype(), back_parts(self, x, parts, res, &grad, wanted));
        }
        backward(self, x, w.flat()?, res, &grad, wanted, None)
    }
}

/// The way back where the tensors are.
fn backward<O: Fused>(
    op: &O,
    x: &Tensor,
    w: &Tensor,
    res: &Tensor,
    grad: &Tensor,
    wanted: Wanted,
    adapters: Option<AdapterGradient<'_>>,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return by_dtype!(
            x.dtype(),
            back_on_device(op, x, w, res, grad, wanted, adapters)
        );
    }
    by_dtype!(x.dtype(), op.backward(x, w, res, grad, wanted, adapters))
}

/// The contiguous values of an operand.
fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("fused operations take contiguous tensors"))?;
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// The contiguous values of a tensor whose storage is locked.
fn tensor_values<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => values(storage, layout),
        _ => Err(candle_core::Error::msg(
            "an operand of a fused operation lies on another device than the rest",
        )),
    }
}

/// Wraps the values of a result, without copying.
fn storage_of<T: Float>(data: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(data)
}

/// Values that a thread copies at least.
const COPY: usize = 1 << 16;

/// A copy made by all threads.
fn copied<T: Float>(values: &[T]) -> Vec<T> {
    values.par_iter().with_min_len(COPY).copied().collect()
}

/// `a + b` of one shape on all threads. candle adds one number at a time, on threads of its own or on one.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.device().is_cpu() || a.shape() != b.shape() {
        return a + b;
    }
    by_dtype!(a.dtype(), sum_here(&a.contiguous()?, &b.contiguous()?))
}

fn sum_here<T: Float>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a_storage, a_layout) = a.storage_and_layout();
    let (b_storage, b_layout) = b.storage_and_layout();
    let (x, y) = (
        tensor_values::<T>(&a_storage, a_layout)?,
        tensor_values::<T>(&b_storage, b_layout)?,
    );
    let pairs = x.par_iter().zip(y).with_min_len(COPY);
    gradient(pairs.map(|(x, y)| *x + *y).collect(), a)
}

/// A gradient with the shape of `like`.
fn gradient<T: Float>(data: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), like.device())
}

pub(crate) fn unsupported(dtype: DType) -> candle_core::Error {
    candle_core::Error::msg(format!("fused operations take f32 or f64, not {dtype:?}"))
}

/// Last dimension of a shape, and the number of rows before it.
fn rows_and_width(shape: &Shape) -> Result<(usize, usize)> {
    let width = *shape
        .dims()
        .last()
        .ok_or_else(|| candle_core::Error::msg("a scalar has no rows"))?;
    if width == 0 {
        return Err(candle_core::Error::msg("rows of width 0"));
    }
    Ok((shape.elem_count() / width, width))
}

/// The gradient `gradᵀ · input` of weights `[out, in]`, tiled over output rows; every element sums all rows in one order.
struct WeightGradient<'a, T: Float> {
    grad: &'a [T],
    outputs: usize,
    inputs: usize,
    rows: usize,
    right: Right<'a, T>,
}

impl<'a, T: Float> WeightGradient<'a, T> {
    fn new(
        (grad, outputs): (&'a [T], usize),
        (input, inputs): (&'a [T], usize),
        products: Products,
    ) -> Self {
        let rows = grad.len() / outputs;
        Self {
            grad,
            outputs,
            inputs,
            rows,
            right: Right::stored(input, (rows, inputs), products),
        }
    }

    fn tile_rows(&self) -> usize {
        let rows = self.outputs.div_ceil(GRADIENT_TILES);
        rows.next_multiple_of(16)
    }

    /// `[out, in]`, row-major.
    fn made(&self) -> Vec<T> {
        let mut dst = Fresh::new(self.outputs * self.inputs);
        self.make(dst.unwritten());
        dst.finish()
    }

    /// Makes it where nothing is yet.
    fn make(&self, dst: Unwritten<'_, T>) {
        dst.par_chunks(self.tile_rows() * self.inputs)
            .enumerate()
            .for_each(|(index, dst)| {
                let columns = self.columns(index, dst.len());
                dst.product_of(&self.right, columns);
            });
    }

    /// Adds it to what is there.
    fn add(&self, dst: &mut [T]) {
        dst.par_chunks_mut(self.tile_rows() * self.inputs)
            .enumerate()
            .for_each(|(index, dst)| {
                let columns = self.columns(index, dst.len());
                let dst = MatrixMut::new(dst, dst.len() / self.inputs, self.inputs, self.inputs);
                self.right.times(dst, columns, T::one(), Write::Add);
            });
    }

    /// The gradient that belongs to a tile of `len` weights, transposed.
    fn columns(&self, index: usize, len: usize) -> Matrix<'a, T> {
        let height = len / self.inputs;
        let first = if self.rows == 0 {
            0
        } else {
            index * self.tile_rows()
        };
        Matrix::new(&self.grad[first..], self.rows, height, self.outputs).transposed()
    }
}

/// Adds the per-task partial sums in task order.
fn add_partials<T: Float>(dst: &mut [T], partials: &[T]) {
    for partial in partials.chunks_exact(dst.len()) {
        for (sum, x) in dst.iter_mut().zip(partial) {
            *sum += *x;
        }
    }
}
