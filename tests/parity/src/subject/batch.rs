//! A case's rows and their response targets, and the model that reads them.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use wmtp_data_sets::PaddedBatch;
use wmtp_model::{Horizon, Params, Rotary};

use crate::{Case, Error, Kind, Values};

/// The sizes of a case's model.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ModelConfig {
    pub(super) vocab: usize,
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
    fn is_wide(&self) -> bool {
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
        params
            .validate()
            .map_err(|error| case.bad(format!("config: {error}")))?;
        if params.ffn_dim() != self.ffn {
            return Err(case.bad(format!(
                "feed-forward width {} cannot be configured",
                self.ffn
            )));
        }
        Ok(params)
    }
}

/// Whether the model that a case trains is a wide one.
pub(crate) fn is_wide(case: &Case) -> Result<bool, Error> {
    #[derive(Deserialize)]
    struct Outer {
        policy: ModelConfig,
    }
    match case.kind {
        Kind::Model | Kind::Lora => Ok(case.config::<ModelConfig>()?.is_wide()),
        Kind::Rho1Step => Ok(case.config::<Outer>()?.policy.is_wide()),
        _ => Ok(false),
    }
}

/// The golden's rotary tables, which every stage after the rotary one shares: at least these positions.
pub(super) fn shared_rotary(
    case: &Case,
    params: &Params,
    positions: usize,
) -> Result<Rotary, Error> {
    let half = params.head_dim() / 2;
    let cos = case.input("rope.cos")?;
    if cos.shape.len() != 2 || cos.shape[0] < positions || cos.shape[1] != half {
        return Err(case.bad(format!(
            "input rope.cos has shape {:?}, expected {positions} rows or more of {half}",
            cos.shape
        )));
    }
    let sin = case.input_of("rope.sin", &cos.shape)?;
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
    /// The case's batch, which fits a model of this configuration.
    pub(super) fn new(case: &Case, params: &Params) -> Result<Self, Error> {
        let shape = &case.input("ids")?.shape;
        let [batch, sequence] = shape[..] else {
            return Err(case.bad(format!("input ids has shape {shape:?}, expected rows")));
        };
        let horizons = params.n_future_tokens;
        if sequence <= horizons || sequence > Rotary::POSITIONS {
            return Err(case.bad(format!(
                "input ids has rows of {sequence}, expected more than the {horizons} horizons and at most {} positions",
                Rotary::POSITIONS
            )));
        }
        let ids = case.ids("ids", params.vocab_size)?;
        let mask = case.input_of("mask", shape)?;
        let responses: Option<Vec<_>> = mask.data.chunks_exact(sequence).map(response).collect();
        let responses = responses
            .ok_or_else(|| case.bad("input mask has a row that is not one span of 1 behind a 0"))?;
        if responses.iter().all(|(first, last)| first == last) {
            return Err(case.bad("input mask has no response target"));
        }
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
        Values::new(vec![self.responses.len(), self.sequence], data)
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

/// Begin and end of the only span of 1 in a row of a mask, at the row's end where there is none. A response that began at
/// the first position would have no state before it.
fn response(row: &[f64]) -> Option<(usize, usize)> {
    let first = row.iter().position(|m| *m != 0.0).unwrap_or(row.len());
    let count = row[first..].iter().take_while(|m| **m - 1.0 == 0.0).count();
    let last = first + count;
    (first > 0 && row[last..].iter().all(|m| *m == 0.0)).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_one_response_behind_a_prompt() {
        assert_eq!(response(&[0.0, 1.0, 1.0, 0.0]), Some((1, 3)));
        assert_eq!(response(&[0.0, 0.0]), Some((2, 2)));
        for other in [
            [1.0, 1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 1.0],
            [0.0, 0.5, 1.0, 0.0],
            [0.0, f64::NAN, 0.0, 0.0],
        ] {
            assert_eq!(response(&other), None, "{other:?}");
        }
    }
}
