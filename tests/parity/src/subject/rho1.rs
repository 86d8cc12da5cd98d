//! Rho-1: a policy and a reference, their excess loss and its weights.

use candle_core::Tensor;
use serde::Deserialize;
use wmtp_model::{Horizon, MtpModel, loss};
use wmtp_weighting::rho1::{ExcessMode, excess, topk};
use wmtp_weighting::{WeightSettings, Whitening, token_weights};

use super::Run;
use super::batch::{Batch, ModelConfig, shared_rotary};
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    policy: ModelConfig,
    reference: ModelConfig,
}

#[derive(Deserialize)]
struct Outer {
    policy: Weighting,
}

#[derive(Deserialize)]
struct Weighting {
    temp: f64,
    w_min: f64,
    w_max: f64,
    ratio: f64,
    min_ce_diff: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let config: Config = run.case.config()?;
    let batch = Batch::new(run.case)?;
    let reference = Scored::new(run, &config.reference, "reference.")?;
    let next = Horizon::new(1).expect("1 is a horizon");
    let reference_ce = Values {
        shape: vec![batch.responses.len(), batch.sequence],
        data: reference.cross_entropy(&batch, next)?,
    };
    run.record("rho1.reference_ce", reference_ce);
    let policy = Scored::new(run, &config.policy, "policy.")?;
    let by_horizon = policy
        .model
        .params()
        .horizons()
        .map(|k| policy.cross_entropy(&batch, k));
    let policy_ce = interleave(&batch, &by_horizon.collect::<Result<Vec<_>, Error>>()?);
    run.record("rho1.policy_ce", policy_ce);
    record_scores(run, &batch, config.policy.n_future)?;
    record_weights(run, &batch, config.policy.n_future)
}

/// A frozen model and its trunk output on the batch.
struct Scored {
    model: MtpModel,
    trunk_bsd: Tensor,
}

impl Scored {
    fn new(run: &Run, config: &ModelConfig, prefix: &str) -> Result<Self, Error> {
        let params = config.params(run.case)?;
        let store = run.store(&params, prefix)?;
        let model = MtpModel::frozen(&params, &store)?.with_rotary(shared_rotary(run.case)?);
        let trunk_bsd = model.trunk(&Batch::new(run.case)?.ids_bs)?;
        Ok(Self { model, trunk_bsd })
    }

    /// Cross-entropy `[b, s]` of every response target that the horizon reaches, 0 elsewhere.
    fn cross_entropy(&self, batch: &Batch, horizon: Horizon) -> Result<Vec<f64>, Error> {
        let (k, s) = (horizon.get(), batch.sequence);
        let places: Vec<_> = batch.targets().filter(|(_, j)| *j >= k).collect();
        let rows: Vec<u32> = places.iter().map(|(b, j)| (b * s + j - k) as u32).collect();
        let targets: Vec<u32> = places.iter().map(|(b, j)| batch.ids[b * s + j]).collect();
        let hidden = self.model.head_hidden(horizon, &self.trunk_bsd)?;
        let hidden = loss::select_rows(&hidden, &rows)?;
        let ce = loss::cross_entropy(&hidden, self.model.unembedding(), &targets)?;
        let mut full = vec![0.0; batch.ids.len()];
        for ((b, j), ce) in places.into_iter().zip(ce) {
            full[b * s + j] = ce;
        }
        Ok(full)
    }
}

/// `[b, s]` of each horizon side by side as `[b, s, horizons]`.
fn interleave(batch: &Batch, by_horizon: &[Vec<f64>]) -> Values {
    let places = 0..batch.ids.len();
    Values {
        shape: vec![batch.responses.len(), batch.sequence, by_horizon.len()],
        data: places
            .flat_map(|place| by_horizon.iter().map(move |column| column[place]))
            .collect(),
    }
}

/// Applies `f` to the numbers of each horizon at the targets it reaches; 0 elsewhere.
fn per_horizon(
    batch: &Batch,
    horizons: usize,
    f: impl Fn(&[usize], usize) -> Result<Vec<f64>, Error>,
) -> Result<Values, Error> {
    let column = |k: usize| {
        let reached = batch.targets().filter(|(_, j)| *j >= k);
        let places: Vec<usize> = reached.map(|(b, j)| b * batch.sequence + j).collect();
        let mut full = vec![0.0; batch.ids.len()];
        for (place, number) in places.iter().zip(f(&places, k - 1)?) {
            full[*place] = number;
        }
        Ok(full)
    };
    let columns = (1..=horizons)
        .map(column)
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(interleave(batch, &columns))
}

fn record_scores(run: &mut Run, batch: &Batch, horizons: usize) -> Result<(), Error> {
    let settings = run.case.config::<Outer>()?.policy;
    for (key, mode) in [
        ("rho1.excess", ExcessMode::SignedExcess),
        ("rho1.abs_excess", ExcessMode::AbsExcess),
    ] {
        let policy = run.upstream("rho1.policy_ce")?;
        let reference = run.upstream("rho1.reference_ce")?;
        let scores = per_horizon(batch, horizons, |places, column| {
            let of_policy = |p: &usize| policy.data[p * horizons + column];
            let policy_ce: Vec<f64> = places.iter().map(of_policy).collect();
            let reference_ce: Vec<f64> = places.iter().map(|p| reference.data[*p]).collect();
            Ok(excess(
                &policy_ce,
                &reference_ce,
                mode,
                settings.min_ce_diff,
            )?)
        })?;
        run.record(key, scores);
    }
    Ok(())
}

/// Weights of the signed excess, normalised per horizon: continuous and top-k.
fn record_weights(run: &mut Run, batch: &Batch, horizons: usize) -> Result<(), Error> {
    let outer = run.case.config::<Outer>()?.policy;
    let settings = WeightSettings {
        temperature: outer.temp,
        eps: outer.w_min,
        w_max: outer.w_max,
        entropy_floor: 0.0,
        blend: 1.0,
    };
    let scores = run.upstream("rho1.excess")?;
    let at = |places: &[usize], column: usize| -> Vec<f64> {
        places
            .iter()
            .map(|p| scores.data[p * horizons + column])
            .collect()
    };
    let continuous = per_horizon(batch, horizons, |places, column| {
        let scores = at(places, column);
        Ok(token_weights(&scores, &Whitening::of(&scores), &settings)?.weights)
    })?;
    let selected = per_horizon(batch, horizons, |places, column| {
        Ok(topk(&at(places, column), outer.ratio, &settings)?.weights)
    })?;
    run.record("rho1.weight", continuous);
    run.record("rho1.topk", selected);
    Ok(())
}
