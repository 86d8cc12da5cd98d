//! A case's rows and their response targets, and the model that reads them.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use wmtp_data_sets::PaddedBatch;
use wmtp_model::{Horizon, Params, Rotary};

use crate::{Case, Error, Values};

/// The sizes of a case's model.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ModelConfig {
    vocab: usize,
    dim: usize,
    ffn: usize,
    n_heads: usize,
    n_kv: usize,
    n_layers: usize,
    pub(crate) n_future: usize,
    eps: f64,
    theta: f64,
}

impl ModelConfig {
    /// Whether the model is as wide as the wide one of `spec/parity.md` 4.8.
    pub(crate) fn is_wide(&self) -> bool {
        self.dim >= 256
    }

    /// Our configuration of the same model.
    pub(super) fn params(&self, case: &Case) -> Result<Params, Error> {
        let params = Params {
            dim: self.dim,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv,
            vocab_size: self.vocab,
            // One multiple of the width itself, from a wanted width of at most that.
            multiple_of: self.ffn,
            ffn_dim_multiplier: (self.ffn as f64 / (8 * self.dim / 3) as f64).min(1.0),
            norm_eps: self.eps,
            rope_theta: self.theta,
            n_future_tokens: self.n_future,
        };
        params.validate()?;
        if params.ffn_dim() != self.ffn {
            return Err(case.bad(format!(
                "feed-forward width {} cannot be configured",
                self.ffn
            )));
        }
        Ok(params)
    }
}

/// The golden's rotary tables, which every stage after the rotary one shares.
pub(super) fn shared_rotary(case: &Case) -> Result<Rotary, Error> {
    let (cos, sin) = (case.input("rope.cos")?, case.input("rope.sin")?);
    let half = cos.shape.last().copied().unwrap_or(0);
    Ok(Rotary::from_tables(
        half,
        cos.data.clone(),
        sin.data.clone(),
    )?)
}

/// Token ids `[b, s]`; row `b` owns the response targets `first[b] .. last[b]`.
pub(super) struct Batch {
    pub(super) ids: Vec<u32>,
    pub(super) ids_bs: Tensor,
    pub(super) sequence: usize,
    pub(super) responses: Vec<(usize, usize)>,
}

impl Batch {
    pub(super) fn new(case: &Case) -> Result<Self, Error> {
        let (ids, mask) = (case.input("ids")?, case.input("mask")?);
        let [batch, sequence] = ids.shape[..] else {
            return Err(case.bad(format!("ids have shape {:?}", ids.shape)));
        };
        let responses = mask.data.chunks_exact(sequence).map(|row| {
            let first = row.iter().position(|m| *m > 0.0).unwrap_or(sequence);
            let count = row.iter().filter(|m| **m > 0.0).count();
            (first, first + count)
        });
        let responses: Vec<(usize, usize)> = responses.collect();
        if responses.iter().any(|(first, _)| *first == 0) {
            return Err(case.bad("a response starts at position 0 and has no state before it"));
        }
        let ids = ids.ids();
        let ids_bs = Tensor::from_slice(&ids, (batch, sequence), &Device::Cpu)?;
        Ok(Self {
            ids,
            ids_bs,
            sequence,
            responses,
        })
    }

    /// The batch as training has it: each row ends with its response.
    pub(super) fn padded(&self) -> PaddedBatch {
        let (prompt_lens, lengths) = self.responses.iter().copied().unzip();
        PaddedBatch {
            ids: self.ids.clone(),
            rows: self.responses.len(),
            width: self.sequence,
            lengths,
            prompt_lens,
        }
    }

    pub(super) fn is_target(&self, row: usize, j: usize) -> bool {
        let (first, last) = self.responses[row];
        (first..last).contains(&j)
    }

    /// Every (row, target) pair a horizon can reach, in row order, masked or not.
    pub(super) fn places(&self, horizon: Horizon) -> Vec<(usize, usize)> {
        let rows = 0..self.responses.len();
        rows.flat_map(|b| (horizon.get()..self.sequence).map(move |j| (b, j)))
            .collect()
    }

    /// Every response target (row, position) in row order.
    pub(super) fn targets(&self) -> impl Iterator<Item = (usize, usize)> {
        let rows = self.responses.iter().enumerate();
        rows.flat_map(|(b, (first, last))| (*first..*last).map(move |j| (b, j)))
    }

    /// Spreads one number per response target over `[b, s]`, 0 elsewhere.
    pub(super) fn spread(&self, numbers: &[f64]) -> Values {
        let mut data = vec![0.0; self.ids.len()];
        for ((b, j), number) in self.targets().zip(numbers) {
            data[b * self.sequence + j] = *number;
        }
        Values {
            shape: vec![self.responses.len(), self.sequence],
            data,
        }
    }

    /// The numbers of `[b, s]` at the response targets: the reverse of [`Self::spread`].
    pub(super) fn gather(&self, values: &Values) -> Vec<f64> {
        self.targets()
            .map(|(b, j)| values.data[b * self.sequence + j])
            .collect()
    }

    /// One slice per row out of numbers per response target.
    pub(super) fn by_row<'a>(&self, mut numbers: &'a [f64]) -> Vec<&'a [f64]> {
        let take = |(first, last): &(usize, usize)| {
            let (row, rest) = numbers.split_at(last - first);
            numbers = rest;
            row
        };
        self.responses.iter().map(take).collect()
    }
}
