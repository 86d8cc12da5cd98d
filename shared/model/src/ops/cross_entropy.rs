//! Unembedding and weighted cross-entropy in row chunks; logits are never stored.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Saved, TASK_ROWS, add_partials, by_dtype, storage_of, values};
use crate::float::Float;
use crate::kernels::{
    Matrix, MatrixMut, Write, exp_sum, matmul, maximum, project, project_back, vectorised,
};

/// Parts of the rows that gather their own unembedding gradient; a constant keeps the sum's order.
const ROW_GROUPS: usize = 4;

/// `Σ w_i · ce_i` as a scalar, and the unweighted `ce_i` in nats. The gradients of the operands that are trained
/// are computed in the same pass.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    weights: &[f64],
) -> Result<(Tensor, Vec<f64>)> {
    let per_row = Arc::new(Mutex::new(Vec::new()));
    let op = LinearCrossEntropy {
        targets: targets.to_vec(),
        weights: weights.to_vec(),
        keep: hidden.track_op() || unembedding.track_op(),
        keep_unembedding: unembedding.track_op(),
        per_row: Arc::clone(&per_row),
        saved: Saved::new(),
    };
    let sum = hidden.contiguous()?.apply_op2(unembedding, op)?;
    let per_row = std::mem::take(&mut *per_row.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((sum, per_row))
}

struct LinearCrossEntropy {
    targets: Vec<u32>,
    weights: Vec<f64>,
    keep: bool,
    /// Whether backward will ask for the gradient of the unembedding.
    keep_unembedding: bool,
    per_row: Arc<Mutex<Vec<f64>>>,
    saved: Saved,
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

    fn bwd(
        &self,
        h: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        by_dtype!(h.dtype(), self.backward(h, w, grad))
    }
}

impl LinearCrossEntropy {
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
        let group = rows.div_ceil(ROW_GROUPS).next_multiple_of(TASK_ROWS).max(1);
        let groups = rows.div_ceil(group);
        let mut per_row = vec![0.0; rows];
        let mut d_hidden = vec![T::zero(); if self.keep { rows * dim } else { 0 }];
        let of_group = if self.keep_unembedding {
            vocab * dim
        } else {
            0
        };
        let mut partials = vec![T::zero(); groups * of_group];
        let pieces = h
            .par_chunks(group * dim)
            .zip(self.targets.par_chunks(group))
            .zip(self.weights.par_chunks(group))
            .zip(per_row.par_chunks_mut(group))
            .map(|(((hidden, targets), weights), per_row)| Rows {
                hidden,
                targets,
                weights,
                per_row,
            });
        if self.keep_unembedding {
            pieces
                .zip(d_hidden.par_chunks_mut(group * dim))
                .zip(partials.par_chunks_mut(vocab * dim))
                .for_each(|((rows, d_hidden), d_w)| {
                    rows.run(w, dim, vocab, Some((d_hidden, Some(d_w))));
                });
            let mut d_w = vec![T::zero(); vocab * dim];
            add_partials(&mut d_w, &partials);
            self.saved.put(Gradients {
                hidden: d_hidden,
                unembedding: Some(d_w),
            })?;
        } else if self.keep {
            pieces
                .zip(d_hidden.par_chunks_mut(group * dim))
                .for_each(|(rows, d_hidden)| rows.run(w, dim, vocab, Some((d_hidden, None))));
            self.saved.put(Gradients {
                hidden: d_hidden,
                unembedding: None,
            })?;
        } else {
            pieces.for_each(|rows| rows.run(w, dim, vocab, None));
        }
        let sum: f64 = per_row
            .iter()
            .zip(&self.weights)
            .map(|(ce, w)| ce * w)
            .sum();
        *self.per_row.lock().unwrap_or_else(PoisonError::into_inner) = per_row;
        Ok((storage_of(vec![T::from_f64(sum)]), Shape::from(())))
    }

    fn check(&self, rows: usize, dim: usize, vocab: usize, w_dim: usize) -> Result<()> {
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
            super::gradient(data.iter().map(|x| *x * factor).collect::<Vec<T>>(), like)
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

/// A run of rows that one task works through, chunk by chunk.
struct Rows<'a, T> {
    hidden: &'a [T],
    targets: &'a [u32],
    weights: &'a [f64],
    per_row: &'a mut [f64],
}

impl<T: Float> Rows<'_, T> {
    fn run(
        self,
        w: &[T],
        dim: usize,
        vocab: usize,
        mut gradients: Option<(&mut [T], Option<&mut [T]>)>,
    ) {
        let mut logits = vec![T::zero(); TASK_ROWS.min(self.targets.len()) * vocab];
        for first in (0..self.targets.len()).step_by(TASK_ROWS) {
            let last = self.targets.len().min(first + TASK_ROWS);
            let hidden = &self.hidden[first * dim..last * dim];
            let logits = &mut logits[..(last - first) * vocab];
            project(logits, hidden, w, vocab, dim, Write::Replace);
            let (targets, weights) = (&self.targets[first..last], &self.weights[first..last]);
            softmax_rows(
                logits,
                vocab,
                targets,
                weights,
                &mut self.per_row[first..last],
            );
            if let Some((d_hidden, d_w)) = &mut gradients {
                project_back(
                    &mut d_hidden[first * dim..last * dim],
                    logits,
                    w,
                    vocab,
                    dim,
                );
                if let Some(d_w) = d_w {
                    matmul(
                        MatrixMut::new(d_w, vocab, dim, dim),
                        Matrix::new(logits, last - first, vocab, vocab).transposed(),
                        Matrix::new(hidden, last - first, dim, dim),
                        T::one(),
                        Write::Add,
                    );
                }
            }
        }
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
