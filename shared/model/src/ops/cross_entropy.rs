//! Unembedding and weighted cross-entropy in spans of rows; all logits never exist together.

use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Fresh, Products, Right, Saved, TASK_ROWS, WeightGradient, by_dtype, gradient, storage_of,
    values,
};
use crate::float::Float;
use crate::kernels::{exp_sum, maximum, vectorised};

/// Rows whose logits are held at once on the CPU: enough for the product that makes the unembedding's gradient to run at full
/// speed. A constant, so that the order of its sums depends on shapes alone.
pub const SPAN_ROWS: usize = 1024;

/// `Σ w_i · ce_i` as a scalar, and the unweighted `ce_i` in nats. The gradients of the operands that are trained
/// are computed in the same pass.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    weights: &[f64],
    products: Products,
) -> Result<(Tensor, Vec<f64>)> {
    let keep = (
        hidden.track_op() || unembedding.track_op(),
        unembedding.track_op(),
    );
    let op = LinearCrossEntropy::new(targets, weights, products, keep);
    let per_row = Arc::clone(&op.per_row);
    let sum = hidden.contiguous()?.apply_op2(unembedding, op)?;
    Ok((sum, reported(&per_row)))
}

/// What one head's loss leaves for going back.
#[derive(Debug)]
pub struct LossGradients {
    /// Unweighted cross-entropy of each row, in nats.
    pub ce: Vec<f64>,
    /// Gradient of the hidden rows `[n, d]`.
    pub hidden: Tensor,
    /// Gradient of the unembedding `[v, d]`, where it is trained.
    pub unembedding: Option<Tensor>,
}

/// The gradients of `Σ w_i · ce_i` straight away, without a graph.
pub(crate) fn cross_entropy_gradients(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    weights: &[f64],
    products: Products,
) -> Result<LossGradients> {
    let op = LinearCrossEntropy::new(targets, weights, products, (true, unembedding.track_op()));
    hidden.contiguous()?.apply_op2_no_bwd(unembedding, &op)?;
    let ce = reported(&op.per_row);
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return op.gradients_on_device(ce);
    }
    by_dtype!(hidden.dtype(), op.into_gradients(ce, hidden, unembedding))
}

pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) weights: Vec<f64>,
    pub(super) products: Products,
    /// Whether backward will follow.
    pub(super) keep: bool,
    /// Whether it will ask for the gradient of the unembedding.
    pub(super) keep_unembedding: bool,
    per_row: PerRow,
    pub(super) saved: Saved,
}

/// The cross-entropies of one call, as a graph takes the operation away from who wants them.
type PerRow = Arc<Mutex<Vec<f64>>>;

/// Those that forward has left.
fn reported(per_row: &PerRow) -> Vec<f64> {
    std::mem::take(&mut *per_row.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Gradients<T> {
    hidden: Vec<T>,
    unembedding: Option<Vec<T>>,
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(h.dtype(), self.forward(h, h_layout, w, w_layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        h: &CudaStorage,
        h_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_dtype!(h.dtype(), self.on_device(h, h_layout, w, w_layout))
    }

    fn bwd(
        &self,
        h: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if h.device().is_cuda() {
            return self.back_on_device(grad);
        }
        by_dtype!(h.dtype(), self.backward(h, w, grad))
    }
}

impl LinearCrossEntropy {
    fn new(
        targets: &[u32],
        weights: &[f64],
        products: Products,
        (keep, keep_unembedding): (bool, bool),
    ) -> Self {
        Self {
            targets: targets.to_vec(),
            weights: weights.to_vec(),
            products,
            keep,
            keep_unembedding,
            per_row: PerRow::default(),
            saved: Saved::new(),
        }
    }

    fn into_gradients<T: Float>(
        self,
        ce: Vec<f64>,
        hidden: &Tensor,
        unembedding: &Tensor,
    ) -> Result<LossGradients> {
        let saved = self.saved.take::<Gradients<T>>()?;
        let of_unembedding = saved.unembedding.map(|data| gradient(data, unembedding));
        Ok(LossGradients {
            ce,
            hidden: gradient(saved.hidden, hidden)?,
            unembedding: of_unembedding.transpose()?,
        })
    }

    fn forward<T: Float>(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, dim), (vocab, w_dim)) = (h_layout.shape().dims2()?, w_layout.shape().dims2()?);
        self.check(rows, dim, vocab, w_dim)?;
        let (h, w) = (values::<T>(h, h_layout)?, values::<T>(w, w_layout)?);
        let (sides, products) = ((vocab, dim), self.products);
        let unembedding = Right::transposed(w, sides, (rows, TASK_ROWS), products);
        let back = self.keep.then(|| Right::stored(w, sides, products));
        let mut per_row = vec![0.0; rows];
        let d_width = if self.keep { dim } else { 1 };
        let mut d_hidden = Fresh::<T>::new(rows * d_width);
        let mut d_hidden_rest = d_hidden.unwritten();
        let mut d_w = None;
        for first in (0..rows).step_by(SPAN_ROWS) {
            let span = first..rows.min(first + SPAN_ROWS);
            let hidden = &h[span.start * dim..span.end * dim];
            let mut logits = Fresh::<T>::new(span.len() * vocab);
            let d_hidden;
            (d_hidden, d_hidden_rest) = d_hidden_rest.split_at(span.len() * d_width);
            logits
                .unwritten()
                .par_chunks(TASK_ROWS * vocab)
                .zip(hidden.par_chunks(TASK_ROWS * dim))
                .zip(self.targets[span.clone()].par_chunks(TASK_ROWS))
                .zip(self.weights[span.clone()].par_chunks(TASK_ROWS))
                .zip(per_row[span.clone()].par_chunks_mut(TASK_ROWS))
                .zip(d_hidden.par_chunks(TASK_ROWS * d_width))
                .for_each(|(((((logits, hidden), targets), weights), ce), d_hidden)| {
                    let logits = logits.product(&unembedding, hidden);
                    softmax_rows(logits, vocab, targets, weights, ce);
                    match &back {
                        Some(back) => d_hidden.product(back, logits),
                        None => d_hidden.cleared(),
                    };
                });
            if self.keep_unembedding {
                let logits = logits.finish();
                let of_span = WeightGradient::new((&logits, vocab), (hidden, dim), products);
                match &mut d_w {
                    None => d_w = Some(of_span.made()),
                    Some(d_w) => of_span.add(d_w),
                }
            }
        }
        if self.keep {
            self.saved.put(Gradients {
                hidden: d_hidden.finish(),
                unembedding: self
                    .keep_unembedding
                    .then(|| d_w.unwrap_or_else(|| vec![T::zero(); vocab * dim])),
            })?;
        }
        let sum = self.report(per_row);
        Ok((storage_of(vec![T::from_f64(sum)]), Shape::from(())))
    }

    /// Leaves the cross-entropies for the caller; returns their weighted sum.
    pub(super) fn report(&self, per_row: Vec<f64>) -> f64 {
        let terms = per_row.iter().zip(&self.weights);
        let sum = terms.map(|(ce, w)| ce * w).sum();
        *self.per_row.lock().unwrap_or_else(PoisonError::into_inner) = per_row;
        sum
    }

    pub(super) fn check(&self, rows: usize, dim: usize, vocab: usize, w_dim: usize) -> Result<()> {
        if dim != w_dim || dim == 0 {
            return Err(candle_core::Error::msg(format!(
                "cross-entropy: hidden rows of {dim}, unembedding rows of {w_dim}"
            )));
        }
        if self.targets.len() != rows || self.weights.len() != rows {
            let (targets, weights) = (self.targets.len(), self.weights.len());
            return Err(candle_core::Error::msg(format!(
                "cross-entropy: {rows} rows, {targets} targets, {weights} weights"
            )));
        }
        match self
            .targets
            .iter()
            .find(|target| **target as usize >= vocab)
        {
            Some(target) => Err(candle_core::Error::msg(format!(
                "cross-entropy: target {target} of a vocabulary of {vocab}"
            ))),
            None => Ok(()),
        }
    }

    fn backward<T: Float>(
        &self,
        h: &Tensor,
        w: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.saved.get::<Gradients<T>>()?;
        let factor = T::from_f64(grad.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?);
        let scaled = |data: &[T], like: &Tensor| -> Result<Tensor> {
            gradient(data.iter().map(|x| *x * factor).collect::<Vec<T>>(), like)
        };
        Ok((
            Some(scaled(&gradients.hidden, h)?),
            gradients
                .unembedding
                .as_deref()
                .map(|data| scaled(data, w))
                .transpose()?,
        ))
    }
}

/// Turns logits into `w · (softmax − onehot)` and reports `ce = log Σ exp(z) − z_target` per row.
fn softmax_rows<T: Float>(
    logits: &mut [T],
    vocab: usize,
    targets: &[u32],
    weights: &[f64],
    per_row: &mut [f64],
) {
    vectorised(
        #[inline(always)]
        || {
            let rows = logits
                .chunks_exact_mut(vocab)
                .zip(targets)
                .zip(weights)
                .zip(per_row);
            for (((row, target), weight), ce) in rows {
                let target = *target as usize;
                let top = maximum(row);
                let wanted = row[target];
                let sum = exp_sum(row, top);
                *ce = sum.to_f64().ln() + (top.to_f64() - wanted.to_f64());
                let factor = T::from_f64(*weight);
                let share = factor / sum;
                for p in row.iter_mut() {
                    *p *= share;
                }
                row[target] -= factor;
            }
        },
    );
}
