//! Fused, differentiable operations on CPU tensors (f32 and f64), each with its own backward.
//!
//! candle's fused norm, softmax and rotary functions cut the gradient in silence; these do not. An
//! operation keeps what backward needs inside its own instance, one instance per call.

mod attention;
mod cross_entropy;
mod embedding;
mod feed_forward;
mod linear;
mod low_rank;
mod norm;

use std::any::Any;
use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::kernels::{Matrix, MatrixMut, Write, matmul};

pub(crate) use attention::{AttentionSetup, adapted_attention_heads, attention_heads};
pub(crate) use cross_entropy::linear_cross_entropy;
pub use embedding::embedding;
pub(crate) use feed_forward::{adapted_feed_forward, feed_forward};
pub(crate) use linear::adapted_linear;
pub use linear::linear;
pub(crate) use low_rank::{LowRank, Slot};
pub use norm::rms_norm;

/// Rows that one parallel task takes at least. A constant, so results do not depend on the thread count.
const TASK_ROWS: usize = 256;

/// Parallel tiles of a weight gradient.
const GRADIENT_TILES: usize = 4;

/// What forward leaves for backward. Written once by forward; backward may run more than once.
struct Saved(OnceLock<Box<dyn Any + Send + Sync>>);

impl Saved {
    fn new() -> Self {
        Self(OnceLock::new())
    }

    fn put<C: Any + Send + Sync>(&self, context: C) -> Result<()> {
        self.0
            .set(Box::new(context))
            .map_err(|_| candle_core::Error::msg("a fused operation instance ran forward twice"))
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

/// The contiguous values of an operand.
fn values<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("fused operations take contiguous tensors"))?;
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// The contiguous values of a tensor whose storage is locked.
fn tensor_values<'a, T: Float>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => values(storage, layout),
        _ => Err(candle_core::Error::msg("fused operations run on the CPU")),
    }
}

/// Wraps the values of a result, without copying.
fn storage_of<T: Float>(data: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(data)
}

/// A gradient with the shape of `like`.
fn gradient<T: Float>(data: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), like.device())
}

fn unsupported(dtype: DType) -> candle_core::Error {
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

/// `dst [out, in] = gradᵀ · input`, tiled over output rows; every element sums all rows in one order.
fn weight_gradient<T: Float>(
    dst: &mut [T],
    grad: &[T],
    outputs: usize,
    input: &[T],
    inputs: usize,
) {
    let rows = grad.len() / outputs;
    let tile = outputs.div_ceil(GRADIENT_TILES).next_multiple_of(16);
    dst.par_chunks_mut(tile * inputs)
        .enumerate()
        .for_each(|(index, dst)| {
            let height = dst.len() / inputs;
            let columns = if rows == 0 {
                grad
            } else {
                &grad[index * tile..]
            };
            matmul(
                MatrixMut::new(dst, height, inputs, inputs),
                Matrix::new(columns, rows, height, outputs).transposed(),
                Matrix::new(input, rows, inputs, inputs),
                T::one(),
                Write::Replace,
            );
        });
}

/// Adds the per-task partial sums in task order.
fn add_partials<T: Float>(dst: &mut [T], partials: &[T]) {
    for partial in partials.chunks_exact(dst.len()) {
        for (sum, x) in dst.iter_mut().zip(partial) {
            *sum += *x;
        }
    }
}

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
use by_dtype;
