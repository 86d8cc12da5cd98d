//! Rho-1: a policy and a reference, their excess loss and its weights.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use wmtp_model::{Horizon, MtpModel, loss};
use wmtp_training::TokenScores;
use wmtp_training::heads::Target;
use wmtp_training::scorer::{Rho1Scorer, Rho1Settings, Rho1Weighting, Scorer, StepRow};
use wmtp_weighting::WeightSettings;
use wmtp_weighting::rho1::{ExcessMode, excess};

use super::batch::{Batch, ModelConfig, shared_rotary};
use super::{Mutation, Run};
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
        let hidden = self.model.head_hidden_at(horizon, &self.trunk_bsd, &rows)?;
        let ce = loss::cross_entropy(
            &hidden,
            self.model.unembedding(),
            &targets,
            self.model.products(),
        )?;
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
    mut f: impl FnMut(&[usize], usize) -> Result<Vec<f64>, Error>,
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

/// Weights of the signed excess by the scorer that training takes, one micro-batch of one step.
fn record_weights(run: &mut Run, batch: &Batch, horizons: usize) -> Result<(), Error> {
    for (key, weighting) in [
        ("rho1.weight", Rho1Weighting::Continuous),
        ("rho1.topk", Rho1Weighting::Topk),
    ] {
        let policy = run.upstream("rho1.policy_ce")?;
        let reference = run.upstream("rho1.reference_ce")?;
        let mut scorer = scorer(run, batch, reference, weighting)?;
        let rows: Vec<StepRow> = rows(batch).collect();
        if run.has(&Mutation::StaleStatistics) {
            scorer.begin_step(0, &rows)?;
            weigh(&mut scorer, batch, horizons, |place, column| {
                9.0 * policy.data[place * horizons + column]
            })?;
            scorer.end_step();
        }
        scorer.begin_step(1, &rows)?;
        let weights = weigh(&mut scorer, batch, horizons, |place, column| {
            // The scorer's reference is stored in f32. What rounding it added goes onto the policy too, so that the
            // excess is the golden's at every precision.
            let reference = reference.data[place];
            policy.data[place * horizons + column] - reference + f64::from(reference as f32)
        })?;
        run.record(key, weights);
    }
    Ok(())
}

fn rows(batch: &Batch) -> impl Iterator<Item = StepRow> {
    let rows = batch.responses.iter().enumerate();
    rows.map(|(row, (first, last))| StepRow {
        row,
        targets: last - first,
    })
}

fn scorer(
    run: &Run,
    batch: &Batch,
    reference: &Values,
    weighting: Rho1Weighting,
) -> Result<Rho1Scorer, Error> {
    let outer = run.case.config::<Outer>()?.policy;
    let gathered = batch.gather(reference);
    let stored = batch.by_row(&gathered).into_iter().enumerate();
    let stored = stored.map(|(row, ce)| (row, ce.iter().map(|ce| *ce as f32).collect()));
    let rho1 = Rho1Settings {
        mode: ExcessMode::SignedExcess,
        weighting,
        ratio: outer.ratio,
        min_ce_diff: outer.min_ce_diff,
    };
    let settings = WeightSettings {
        temperature: outer.temp,
        eps: outer.w_min,
        w_max: outer.w_max,
        entropy_floor: 0.0,
        blend: 1.0,
    };
    Ok(Rho1Scorer::new(
        Arc::new(TokenScores::new(stored)),
        rho1,
        settings,
    ))
}

/// Weights `[b, s, horizons]` for the policy's cross-entropy at a place and horizon.
fn weigh(
    scorer: &mut Rho1Scorer,
    batch: &Batch,
    horizons: usize,
    policy_ce: impl Fn(usize, usize) -> f64,
) -> Result<Values, Error> {
    per_horizon(batch, horizons, |places, column| {
        let target = |place: &usize| {
            let (slot, j) = (place / batch.sequence, place % batch.sequence);
            let index = j - batch.responses[slot].0;
            Target { slot, index }
        };
        let targets: Vec<Target> = places.iter().map(target).collect();
        let ce: Vec<f64> = places
            .iter()
            .map(|place| policy_ce(*place, column))
            .collect();
        let horizon = Horizon::new(column + 1).expect("a column more than none");
        Ok(scorer.weigh(horizon, &targets, Some(&ce))?)
    })
}
