//! A whole training step of a model: `spec/parity.md` 4.2, stages 1 to 13.

use candle_core::Tensor;
use serde::Deserialize;
use wmtp_model::{
    HeadKind, Horizon, MtpModel, Observer, ParamStore, Params, Rotary, Site, ValueModel, loss,
};
use wmtp_training::heads::{HeadTargets, ids_tensor};
use wmtp_weighting::{WeightSettings, Whitening, gae, td_errors, token_weights};

use super::batch::{Batch, ModelConfig, shared_rotary};
use super::fused::{Fused, FusedAttention};
use super::step::{Fixed, Learned};
use super::{Mutation, Run, step};
use crate::{Error, Values};

/// Key of the weights that the loss takes, `[b, s]`.
pub(crate) const TOKEN_WEIGHTS: &str = "weight.projected";

/// Key of the weights' mean over all response targets.
pub(crate) const MEAN_WEIGHT: &str = "weight.mean";

/// Stands for the id where a position predicts no response target.
pub(crate) const NO_TARGET: f64 = -1.0;

/// Bounds that no weight reaches.
const OPEN: (f64, f64) = (1e-300, 1e300);

/// How values become weights in a model case.
#[derive(Deserialize)]
struct Weighting {
    gamma: f64,
    lam: f64,
    temp: f64,
    w_min: f64,
    w_max: f64,
}

impl Weighting {
    fn settings(&self, (eps, w_max): (f64, f64)) -> WeightSettings {
        WeightSettings {
            temperature: self.temp,
            eps,
            w_max,
            entropy_floor: 0.0,
            blend: 1.0,
        }
    }
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let mut params = run.case.config::<ModelConfig>()?.params(run.case)?;
    if run.has(&Mutation::NormEpsilon) {
        params.norm_eps = 1e-6;
    }
    let batch = Batch::new(run.case, &params)?;
    let rotary = rotary(run, &params, &batch)?;
    record_tokens(run, &batch, &params)?;
    record_rotary(run, &batch, &params);
    let store = policy_store(run, &params)?;
    let policy = MtpModel::new(&params, &store)?
        .with_rotary(rotary.clone())
        .with_products(run.products());
    let fused = run.mutation.and_then(Fused::of);
    let mut hidden = if let Some(fused) = fused {
        let mut recorder = FusedAttention {
            fused,
            run,
            params: &params,
            store: &store,
            rotary: &rotary,
            input: None,
        };
        record_forward(&mut recorder, &policy, &batch)?
    } else {
        record_forward(run, &policy, &batch)?
    };
    if run.has(&Mutation::FusedNorm) {
        hidden = hidden.iter().map(Tensor::detach).collect();
    }
    record_values(run, &params, &store, rotary, &batch)?;
    record_weights(run, &batch)?;
    let weights = TargetWeights::new(run, &batch, run.upstream(TOKEN_WEIGHTS))?;
    let total = record_loss(run, &hidden, policy.unembedding(), &batch, &weights)?;
    let scorer = || Ok::<_, Error>(Fixed::boxed(&batch, &weights));
    let learned = Learned {
        policy: &policy,
        trained: &store,
        frozen: None,
        batch: &batch,
        scorer: &scorer,
    };
    let first = step::first_gradients(run, &learned, Some(&total))?;
    step::record(run, &learned, &first)
}

/// What the pass that trains takes from the batch: its ids, its response targets, and for each horizon the id that each
/// position predicts.
pub(super) fn record_tokens(run: &mut Run, batch: &Batch, params: &Params) -> Result<(), Error> {
    let mut padded = batch.padded();
    if run.has(&Mutation::EarlyResponse) {
        let begins = padded.prompt_lens.iter_mut();
        begins.for_each(|begin| *begin -= 1);
    }
    run.record("ids", Values::of(&ids_tensor(&padded, &run.device)?)?);
    let (rows, s) = (padded.rows, padded.width);
    for horizon in params.horizons() {
        let (k, found) = (horizon.get(), HeadTargets::of(&padded, horizon, 0));
        let mut target = vec![NO_TARGET; rows * (s - k)];
        let mut mask = vec![0.0; rows * s];
        for (source, id) in found.sources.iter().zip(&found.ids) {
            let (row, position) = (*source as usize / s, *source as usize % s);
            target[row * (s - k) + position] = f64::from(*id);
            mask[row * s + position + k] = 1.0;
        }
        run.record(
            format!("target.{k}"),
            Values::new(vec![rows, s - k], target),
        );
        // The next token's horizon reaches every target.
        if horizon == Horizon::NEXT {
            run.record("mask", Values::new(vec![rows, s], mask));
        }
    }
    Ok(())
}

/// Our own tables at the sequence's positions.
pub(super) fn record_rotary(run: &mut Run, batch: &Batch, params: &Params) {
    let own = Rotary::new(params);
    let table = |data: &[f64]| Values::new(vec![batch.sequence, own.half()], data.to_vec());
    run.record("rope.cos", table(own.cos(batch.sequence)));
    run.record("rope.sin", table(own.sin(batch.sequence)));
}

fn rotary(run: &Run, params: &Params, batch: &Batch) -> Result<Rotary, Error> {
    let shared = shared_rotary(run.case, params, batch.sequence)?;
    if !run.has(&Mutation::RotaryTable) {
        return Ok(shared);
    }
    let (half, positions) = (shared.half(), shared.positions());
    let shifted = |table: &[f64], first_pair: f64| {
        let mut table = table.to_vec();
        table.rotate_left(half);
        table.iter_mut().step_by(half).for_each(|x| *x = first_pair);
        table
    };
    let (cos, sin) = (shared.cos(positions), shared.sin(positions));
    Ok(Rotary::from_tables(
        half,
        shifted(cos, 1.0),
        shifted(sin, 0.0),
    )?)
}

fn policy_store(run: &Run, params: &Params) -> Result<ParamStore, Error> {
    let named = |(name, shape): (String, Vec<usize>)| {
        let mut tensor = run.weight_of(&name, &shape)?;
        if name == "layers.1.attention.wq.weight" && run.has(&Mutation::NotANumber) {
            tensor = (tensor * f64::NAN)?;
        }
        let query = name.ends_with("attention.wq.weight");
        if query && run.has(&Mutation::AttentionScale) {
            // √d for √e under the scores, by way of the queries.
            tensor = (tensor * (params.head_dim() as f64 / params.dim as f64).sqrt())?;
        }
        if (query || name.ends_with("attention.wk.weight")) && run.has(&Mutation::HalfSplitRotary) {
            // Scores are the same for any order of pairs, so the rows move instead of the rotation.
            tensor = in_pairs(&tensor, params.head_dim())?;
        }
        Ok((name, tensor))
    };
    let tensors = params.tensor_shapes().into_iter().map(named);
    Ok(ParamStore::from_tensors(
        tensors.collect::<Result<_, Error>>()?,
    )?)
}

/// The rows of each head of a projection in the order 0, e/2, 1, e/2 + 1, …, as if they were in halves.
fn in_pairs(weight: &Tensor, head_dim: usize) -> candle_core::Result<Tensor> {
    let (rows, dim) = weight.dims2()?;
    let halves = weight.reshape((rows / head_dim, 2, head_dim / 2, dim))?;
    halves.transpose(1, 2)?.contiguous()?.reshape((rows, dim))
}

/// Runs trunk and heads; returns each head's normed hidden state `[b, s, d]`.
pub(super) fn record_forward(
    recorder: &mut impl Observer,
    policy: &MtpModel,
    batch: &Batch,
) -> Result<Vec<Tensor>, Error> {
    let trunk = policy.trunk_observed(&batch.ids_bs, recorder)?;
    let mut hidden = Vec::new();
    for horizon in policy.params().horizons() {
        let head = policy.head_hidden_observed(horizon, &trunk, recorder)?;
        recorder.observe(Site::Logits(horizon), policy.logits(&head)?)?;
        hidden.push(head);
    }
    Ok(hidden)
}

fn record_values(
    run: &mut Run,
    params: &Params,
    store: &ParamStore,
    rotary: Rotary,
    batch: &Batch,
) -> Result<(), Error> {
    let weight = run.weight_of("value_head.weight", &[1, params.dim])?;
    let bias = if run.has(&Mutation::ValueBias) {
        0.1
    } else {
        0.0
    };
    let bias = Tensor::full(bias, 1, weight.device())?.to_dtype(weight.dtype())?;
    let head = ParamStore::from_tensors(vec![
        ("value_head.weight".to_owned(), weight),
        ("value_head.bias".to_owned(), bias),
    ])?;
    let trunk = ParamStore::value_trunk_from(params, store)?;
    let model = ValueModel::frozen(params, HeadKind::Linear, &trunk, &head)?.with_rotary(rotary);
    model.values_observed(&batch.ids_bs, run)?;
    Ok(())
}

/// TD errors, advantages and token weights `[b, s]`, each from the one before.
fn record_weights(run: &mut Run, batch: &Batch) -> Result<(), Error> {
    let weighting: Weighting = run.case.config()?;
    let rewards = run.case.input_of("reward", &[batch.responses.len()])?;
    let values = run.upstream("value.v");
    let mut deltas = Vec::new();
    for (b, (first, last)) in batch.responses.iter().enumerate() {
        let states = &values.data[b * batch.sequence + first - 1..b * batch.sequence + last - 1];
        deltas.extend(td_errors(states, rewards.data[b], weighting.gamma));
    }
    run.record("td.delta", batch.spread(&deltas));

    let deltas = batch.gather(run.upstream("td.delta"));
    let rows = batch.by_row(&deltas);
    let advantages: Vec<f64> = rows
        .iter()
        .flat_map(|row| gae(row, weighting.gamma, weighting.lam))
        .collect();
    run.record("td.advantage", batch.spread(&advantages));

    let advantages = batch.gather(run.upstream("td.advantage"));
    let whitening = Whitening::of(&advantages);
    let whitened: Vec<f64> = advantages.iter().map(|a| whitening.apply(*a)).collect();
    run.record("weight.z", batch.spread(&whitened));
    let weigh = |bounds| token_weights(&advantages, &whitening, &weighting.settings(bounds));
    run.record("weight.raw", batch.spread(&weigh(OPEN)?.weights));
    let projected = weigh((weighting.w_min, weighting.w_max))?;
    run.record(TOKEN_WEIGHTS, batch.spread(&projected.weights));
    run.record(MEAN_WEIGHT, Values::vector(vec![projected.stats.mean]));
    Ok(())
}

/// The weight of each response target for each horizon, faults included.
pub(super) struct TargetWeights {
    projected: Vec<f64>,
    sequence: usize,
    at_source: bool,
    /// What each horizon's weights are multiplied with, where the run divides by their sum.
    factors: Option<Vec<f64>>,
}

impl TargetWeights {
    /// From weights `[b, s]`.
    pub(super) fn new(run: &Run, batch: &Batch, projected: &Values) -> Result<Self, Error> {
        let mut weights = Self {
            projected: projected.data.clone(),
            sequence: batch.sequence,
            at_source: run.has(&Mutation::WeightAtSource),
            factors: None,
        };
        if run.has(&Mutation::DivideByWeights) {
            let horizons = run.case.config::<ModelConfig>()?.n_future;
            let factor = |k: usize| {
                let reached = batch.targets().filter(|(_, j)| *j >= k);
                let row: Vec<f64> = reached
                    .map(|(b, j)| weights.projected[b * batch.sequence + j])
                    .collect();
                row.len() as f64 / row.iter().sum::<f64>()
            };
            weights.factors = Some((1..=horizons).map(factor).collect());
        }
        Ok(weights)
    }

    /// The weight of target `j` of row `b` for horizon `k`.
    pub(super) fn of(&self, horizon: Horizon, b: usize, j: usize) -> f64 {
        let k = horizon.get();
        let place = if self.at_source { j - k } else { j };
        let factor = self.factors.as_ref().map_or(1.0, |factors| factors[k - 1]);
        self.projected[b * self.sequence + place] * factor
    }
}

/// Mean over heads of `Σ w·ce / count` with candle's graph behind it; records every cross-entropy and loss.
pub(super) fn record_loss(
    run: &mut Run,
    hidden: &[Tensor],
    unembedding: &Tensor,
    batch: &Batch,
    weights: &TargetWeights,
) -> Result<Tensor, Error> {
    let mut losses = Vec::new();
    for (k, hidden) in (1..).zip(hidden) {
        let (horizon, s) = (Horizon::new(k).expect("k starts at 1"), batch.sequence);
        let places = batch.places(horizon);
        let rows: Vec<u32> = places.iter().map(|(b, j)| (b * s + j - k) as u32).collect();
        let targets: Vec<u32> = places.iter().map(|(b, j)| batch.ids[b * s + j]).collect();
        let weight = |(b, j): &(usize, usize)| {
            let counts = batch.is_target(*b, *j);
            if counts {
                weights.of(horizon, *b, *j)
            } else {
                0.0
            }
        };
        let row_weights: Vec<f64> = places.iter().map(weight).collect();
        let count = batch.targets().filter(|(_, j)| *j >= k).count();
        let selected = loss::select_rows(hidden, &rows)?;
        let head = loss::weighted_cross_entropy(
            &selected,
            unembedding,
            &targets,
            &row_weights,
            run.products(),
        )?;
        let shape = vec![batch.responses.len(), s - k];
        run.record(format!("ce.{k}"), Values::new(shape, head.ce));
        let mean = (head.sum / count as f64)?.reshape(1)?;
        run.record(format!("loss.head.{k}"), Values::of(&mean)?);
        losses.push(mean);
    }
    let total = (Tensor::cat(&losses, 0)?.sum_all()? / losses.len() as f64)?;
    run.record("loss.total", Values::of(&total.reshape(1)?)?);
    Ok(total)
}
