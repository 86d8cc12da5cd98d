//! Which position of which head predicts which token, and the loss over heads.

use candle_core::{Device, Tensor};
use wmtp_data_sets::{PaddedBatch, TokenFile};
use wmtp_model::loss::{SPAN_ROWS, cross_entropy, cross_entropy_gradients};
use wmtp_model::{Horizon, MtpModel, StepDropout};

use crate::error::Result;
use crate::optimizer::{Gradients, Parameter};
use crate::scorer::Scorer;

/// A response token that some head has to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Position of its row within the optimizer step.
    pub slot: usize,
    /// Its number within the response, from 0.
    pub index: usize,
}

/// Everything that one head has to predict in one micro-batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadTargets {
    /// Positions that predict, in the flattened batch.
    pub sources: Vec<u32>,
    /// Tokens that should be predicted.
    pub ids: Vec<u32>,
    /// Which response token each one is.
    pub targets: Vec<Target>,
}

impl HeadTargets {
    /// Targets of one head. Head k at position j - k predicts token j, for every response token j >= k;
    /// the first ones are predicted from within the prompt. `first_slot` is the position of the batch's
    /// first row within the optimizer step.
    pub fn of(batch: &PaddedBatch, horizon: Horizon, first_slot: usize) -> Self {
        let k = horizon.get();
        let mut found = Self::default();
        for (row, (&length, &prompt)) in batch.lengths.iter().zip(&batch.prompt_lens).enumerate() {
            let start = row * batch.width;
            for j in prompt.max(k)..length {
                found.sources.push((start + j - k) as u32);
                found.ids.push(batch.ids[start + j]);
                found.targets.push(Target {
                    slot: first_slot + row,
                    index: j - prompt,
                });
            }
        }
        found
    }
}

/// Number of targets per head over the rows of one optimizer step: the divisors of the loss.
pub fn target_counts(file: &TokenFile, rows: &[usize], horizons: &[Horizon]) -> Vec<usize> {
    let count = |horizon: &Horizon| {
        let of_row = |&row: &usize| {
            let row = file.row(row);
            row.ids
                .len()
                .saturating_sub(row.prompt_len.max(horizon.get()))
        };
        rows.iter().map(of_row).sum()
    };
    horizons.iter().map(count).collect()
}

/// Sums of one head over the targets of one optimizer step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadSums {
    /// Sum of weight times cross-entropy.
    pub weighted: f64,
    /// Sum of cross-entropy.
    pub unweighted: f64,
    /// Number of targets.
    pub count: usize,
}

impl HeadSums {
    fn mean(self, sum: f64) -> Option<f64> {
        (self.count > 0).then(|| sum / self.count as f64)
    }

    /// Mean unweighted cross-entropy, where there are targets.
    pub fn cross_entropy(self) -> Option<f64> {
        self.mean(self.unweighted)
    }
}

/// Loss of one optimizer step: per head the weighted sum over the *number* of targets, then the mean
/// over the heads that have any.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLoss {
    /// One entry per head, in the order of horizons.
    pub heads: Vec<HeadSums>,
}

impl StepLoss {
    /// Empty sums with the step's divisors.
    pub fn new(counts: &[usize]) -> Self {
        let sums = |&count: &usize| HeadSums {
            count,
            ..HeadSums::default()
        };
        Self {
            heads: counts.iter().map(sums).collect(),
        }
    }

    /// Number of heads with at least one target.
    pub fn active(&self) -> usize {
        self.heads.iter().filter(|head| head.count > 0).count()
    }

    /// The loss that is minimised.
    pub fn weighted(&self) -> f64 {
        self.mean(|head| head.mean(head.weighted))
    }

    /// The same with every weight 1, comparable over experiments.
    pub fn unweighted(&self) -> f64 {
        self.mean(HeadSums::cross_entropy)
    }

    /// Its numbers for curves.
    pub(crate) fn metrics(&self) -> Vec<(String, f64)> {
        let mut metrics = vec![
            ("train_loss".to_owned(), self.weighted()),
            ("train_loss_unweighted".to_owned(), self.unweighted()),
        ];
        let heads = self.heads.iter().enumerate();
        let named = heads.filter_map(|(head, sums)| Some((head, sums.cross_entropy()?)));
        metrics.extend(named.map(|(head, ce)| (format!("ce_head_{}", head + 1), ce)));
        metrics
    }

    fn mean(&self, of: impl Fn(HeadSums) -> Option<f64>) -> f64 {
        let sum: f64 = self.heads.iter().filter_map(|&head| of(head)).sum();
        sum / self.active() as f64
    }
}

/// A padded batch as token ids `[rows, width]`.
pub fn ids_tensor(batch: &PaddedBatch, device: &Device) -> Result<Tensor> {
    let shape = (batch.rows, batch.width);
    Ok(Tensor::from_slice(&batch.ids, shape, device)?)
}

/// What a step learns, and what it may keep of the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Learner<'a> {
    /// The model.
    pub model: &'a MtpModel,
    /// Its parameters, in the order of the gradients.
    pub parameters: &'a [Parameter],
    /// Bytes that the activations of the trunk may take; blocks beyond them are computed again on the way back.
    /// `None` keeps all. It changes no bit of the result.
    pub activation_bytes: Option<usize>,
    /// What the step drops of the adapters' input.
    pub dropout: Option<StepDropout>,
}

impl Learner<'_> {
    /// Bytes that a micro-batch of so many positions takes at its peak, on top of weights, gradient sums and optimiser:
    /// the trunk blocks that are kept, each with what it has packed of its weights, one more that is gone back through
    /// and its gradients, one head's, the stream between the blocks, and the unembedding's gradient and turned copy
    /// beside a span of logits; with dropout, copies of what the adapters of a block's half read.
    pub(crate) fn peak_bytes(&self, positions: usize) -> usize {
        let (params, unembedding) = (self.model.params(), self.model.unembedding());
        let dtype = unembedding.dtype();
        let kept = self.num_kept(positions);
        let blocks = (kept + 3) * params.block_activation_bytes(positions, dtype);
        let stream = (params.num_trunk_blocks() + 4) * positions * params.dim;
        let outside = 2 * params.vocab_size * params.dim + params.dim;
        let weights = (params.num_params() - outside) / params.n_layers;
        let output = 3 * unembedding.elem_count() + positions.min(SPAN_ROWS) * params.vocab_size;
        let packed = kept * self.model.num_packed_in_block() + 4 * weights;
        let read = self
            .dropout
            .map_or(0, |_| 2 * params.dim + params.ffn_dim());
        blocks + (stream + packed + output + positions * read) * dtype.size_in_bytes()
    }

    /// The model as it passes through some of the step's sequences, from that with this place among them on.
    fn model_from(&self, first_slot: usize) -> MtpModel {
        let model = self.model.clone();
        match self.dropout {
            Some(dropout) => model.with_dropout(dropout, first_slot),
            None => model,
        }
    }

    /// Trunk blocks whose activations are kept for a batch of so many positions.
    fn num_kept(&self, positions: usize) -> usize {
        let dtype = self.model.unembedding().dtype();
        let params = self.model.params();
        let packed = self.model.num_packed_in_block();
        params.num_kept_blocks(self.activation_bytes, positions, packed, dtype)
    }
}

/// Adds loss and gradients of one micro-batch to those of its optimizer step.
///
/// The trunk runs once. The heads run one after another upon its output, each with its own way back, so that only one
/// head's activations are alive at a time; then their summed gradient goes through the trunk, block by block. Returns
/// `false` when a cross-entropy is not finite: the sums then say so and the gradients are of no use.
pub fn accumulate(
    learner: &Learner<'_>,
    batch: &PaddedBatch,
    first_slot: usize,
    scorer: &mut dyn Scorer,
    loss: &mut StepLoss,
    gradients: &mut Gradients,
) -> Result<bool> {
    let (model, parameters) = (learner.model_from(first_slot), learner.parameters);
    let (output, products) = (model.unembedding(), model.products());
    let device = output.device().clone();
    let num_kept = learner.num_kept(batch.rows * batch.width);
    let trunk = model.trunk_taped(&ids_tensor(batch, &device)?, num_kept)?;
    let active = loss.active() as f64;
    let mut take = |id, gradient: &Tensor| gradients.add(parameters, id, gradient);
    let mut trunk_gradient: Option<Tensor> = None;
    for (horizon, sums) in model.params().horizons().zip(&mut loss.heads) {
        let targets = HeadTargets::of(batch, horizon, first_slot);
        if targets.ids.is_empty() {
            continue;
        }
        let head = model.head_taped(horizon, trunk.output(), &targets.sources)?;
        let policy_ce = if scorer.needs_policy_ce() {
            let ce = cross_entropy(head.hidden(), output, &targets.ids, products)?;
            if !ce.iter().all(|ce| ce.is_finite()) {
                sums.weighted = f64::NAN;
                return Ok(false);
            }
            Some(ce)
        } else {
            None
        };
        let weights = scorer.weigh(horizon, &targets.targets, policy_ce.as_deref())?;
        let share = 1.0 / (sums.count as f64 * active);
        let shares: Vec<f64> = weights.iter().map(|weight| weight * share).collect();
        let made = cross_entropy_gradients(head.hidden(), output, &targets.ids, &shares, products)?;
        for (weight, ce) in weights.iter().zip(&made.ce) {
            sums.weighted += weight * ce;
            sums.unweighted += ce;
        }
        if !sums.weighted.is_finite() {
            return Ok(false);
        }
        if let Some(gradient) = &made.unembedding {
            take(output.id(), gradient)?;
        }
        let gradient = head.backward(&made.hidden, &mut take)?;
        trunk_gradient = Some(match trunk_gradient {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
    }
    if let Some(gradient) = trunk_gradient {
        trunk.backward(gradient, take)?;
    }
    Ok(true)
}
