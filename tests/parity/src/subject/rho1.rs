//! Rho-1: a policy and a reference, their excess loss, its weights and a training step under them.

use std::sync::Arc;

use serde::Deserialize;
use wmtp_model::{Horizon, MtpModel, ParamStore, loss};
use wmtp_training::TokenScores;
use wmtp_training::heads::Target;
use wmtp_training::optimizer::parameters;
use wmtp_training::scorer::{Rho1Scorer, Rho1Settings, Rho1Weighting, Scorer, StepRow, StepStats};
use wmtp_weighting::WeightSettings;
use wmtp_weighting::rho1::{ExcessMode, Selection, excess};

use super::batch::{Batch, ModelConfig, shared_rotary};
use super::step::Learned;
use super::{Mode, Mutation, Run, step};
use crate::{Error, Kind, Precision, Values};

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
    let params = config.policy.params(run.case)?;
    let batch = Batch::new(run.case, &params)?;
    if config.reference.vocab < params.vocab_size {
        let reason = "config: the reference has fewer tokens than the policy";
        return Err(run.case.bad(reason));
    }
    let reference = reference_losses(run, &config.reference, &batch)?;
    run.record("rho1.reference_ce", reference);
    // What trains has its weights under their own names, as gradients and steps are named after them.
    let trains = run.case.kind == Kind::Rho1Step;
    let store = run.store(&params, if trains { "" } else { "policy." })?;
    let policy = MtpModel::new(&params, &store)?
        .with_rotary(shared_rotary(run.case, &params, batch.sequence)?)
        .with_products(run.products());
    record_steps(run, &policy, &store, &batch)?;
    record_scores(run, &batch, config.policy.n_future)?;
    if trains {
        record_training(run, &policy, &store, &batch)?;
    }
    Ok(())
}

/// The reference's cross-entropy `[b, s]` of every response target, 0 elsewhere.
fn reference_losses(run: &Run, config: &ModelConfig, batch: &Batch) -> Result<Values, Error> {
    let params = config.params(run.case)?;
    let store = run.store(&params, "reference.")?;
    let rotary = shared_rotary(run.case, &params, batch.sequence)?;
    let model = MtpModel::frozen(&params, &store)?.with_rotary(rotary);
    let trunk_bsd = model.trunk(&batch.ids_bs)?;
    let places: Vec<usize> = batch
        .targets()
        .map(|(b, j)| b * batch.sequence + j)
        .collect();
    let rows: Vec<u32> = places.iter().map(|place| *place as u32 - 1).collect();
    let targets: Vec<u32> = places.iter().map(|place| batch.ids[*place]).collect();
    let hidden = model.head_hidden_at(Horizon::NEXT, &trunk_bsd, &rows)?;
    let losses = loss::cross_entropy(&hidden, model.unembedding(), &targets, model.products())?;
    Ok(batch.spread(&losses))
}

/// `[b, s]` of each horizon side by side as `[b, s, horizons]`.
fn interleave(batch: &Batch, by_horizon: &[Vec<f64>]) -> Values {
    let places = 0..batch.ids.len();
    let data = places.flat_map(|place| by_horizon.iter().map(move |column| column[place]));
    Values::new(shape(batch, by_horizon.len()), data.collect())
}

fn shape(batch: &Batch, horizons: usize) -> Vec<usize> {
    vec![batch.responses.len(), batch.sequence, horizons]
}

/// The golden's losses of the policy, where weights are made of them: in isolated mode, and under bf16 products. Those
/// move a loss by more than what is left of a small excess, and the band of bf16 is that of its arithmetic, with the
/// weights of the f64 run (`spec/parity.md` 4.7).
fn given_losses<'a>(run: &Run<'a>, batch: &Batch, horizons: usize) -> Option<&'a Values> {
    let golden = run.case.golden.get("rho1.policy_ce");
    golden
        .filter(|_| run.mode == Mode::Isolated || run.precision == Precision::Bf16)
        .filter(|golden| golden.shape == shape(batch, horizons) && golden.is_finite())
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
        let policy =
            given_losses(run, batch, horizons).unwrap_or_else(|| run.upstream("rho1.policy_ce"));
        let reference = run.upstream("rho1.reference_ce");
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

/// Losses and weights of one step by the pass that trains, once for each way of weighting the signed excess.
fn record_steps(
    run: &mut Run,
    policy: &MtpModel,
    store: &ParamStore,
    batch: &Batch,
) -> Result<(), Error> {
    let trained = parameters(store, 0.0);
    let reference = run.upstream("rho1.reference_ce").clone();
    for (key, weighting) in [
        ("rho1.weight", Rho1Weighting::Continuous),
        ("rho1.topk", Rho1Weighting::Topk),
    ] {
        let mut heard = Heard::new(run, batch, &reference, weighting)?;
        if run.has(&Mutation::StaleStatistics) {
            heard.scale = 9.0;
            step::pass(policy, &trained, batch, &mut heard)?;
            heard.end_step();
            heard.scale = 1.0;
        }
        step::pass(policy, &trained, batch, &mut heard)?;
        let (policy_ce, weights) = (heard.policy_ce, heard.weights);
        run.record("rho1.policy_ce", interleave(batch, &policy_ce));
        run.record(key, interleave(batch, &weights));
    }
    Ok(())
}

/// The optimizer step that follows from the continuous weights.
fn record_training(
    run: &mut Run,
    policy: &MtpModel,
    store: &ParamStore,
    batch: &Batch,
) -> Result<(), Error> {
    let reference = run.upstream("rho1.reference_ce").clone();
    let heard = Heard::new(run, batch, &reference, Rho1Weighting::Continuous)?;
    let scorer = || Ok::<_, Error>(Box::new(heard.clone()) as Box<dyn Scorer>);
    let learned = Learned {
        policy,
        trained: store,
        frozen: None,
        batch,
        scorer: &scorer,
    };
    let first = step::first_gradients(run, &learned, None)?;
    step::record(run, &learned, &first)
}

/// Passes the questions of the pass that trains on to its scorer, and keeps what it was given and answered: one `[b, s]`
/// for each horizon, 0 where there is no target.
#[derive(Clone)]
struct Heard<'a> {
    scorer: Rho1Scorer,
    batch: &'a Batch,
    reference: &'a Values,
    /// The golden's losses of the policy, in the place of ours.
    golden: Option<&'a Values>,
    /// What the policy's losses are multiplied with.
    scale: f64,
    policy_ce: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

impl<'a> Heard<'a> {
    fn new(
        run: &Run<'a>,
        batch: &'a Batch,
        reference: &'a Values,
        weighting: Rho1Weighting,
    ) -> Result<Self, Error> {
        let horizons = run.case.config::<Config>()?.policy.n_future;
        Ok(Self {
            scorer: scorer(run, batch, reference, weighting)?,
            batch,
            reference,
            golden: given_losses(run, batch, horizons),
            scale: 1.0,
            policy_ce: vec![vec![0.0; batch.ids.len()]; horizons],
            weights: vec![vec![0.0; batch.ids.len()]; horizons],
        })
    }

    fn place(&self, target: &Target) -> usize {
        target.slot * self.batch.sequence + self.batch.responses[target.slot].0 + target.index
    }

    /// The loss that the scorer is to compare. Its reference is stored in f32: what rounding that added goes onto the policy
    /// too, so that the excess is the golden's at every precision.
    fn compared(&self, column: usize, place: usize, ours: f64) -> f64 {
        let horizons = self.weights.len();
        let policy = self
            .golden
            .map_or(ours, |golden| golden.data[place * horizons + column]);
        let reference = self.reference.data[place];
        self.scale * policy - reference + f64::from(reference as f32)
    }
}

impl Scorer for Heard<'_> {
    fn begin_step(&mut self, step: u64, rows: &[StepRow]) -> wmtp_training::Result<()> {
        self.scorer.begin_step(step, rows)
    }

    fn needs_policy_ce(&self) -> bool {
        self.scorer.needs_policy_ce()
    }

    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        policy_ce: Option<&[f64]>,
    ) -> wmtp_training::Result<Vec<f64>> {
        let column = horizon.get() - 1;
        let places: Vec<usize> = targets.iter().map(|target| self.place(target)).collect();
        let compared = policy_ce.map(|losses| {
            for (place, loss) in places.iter().zip(losses) {
                self.policy_ce[column][*place] = *loss;
            }
            let both = places.iter().zip(losses);
            both.map(|(place, loss)| self.compared(column, *place, *loss))
                .collect::<Vec<f64>>()
        });
        let weights = self.scorer.weigh(horizon, targets, compared.as_deref())?;
        for (place, weight) in places.iter().zip(&weights) {
            self.weights[column][*place] = *weight;
        }
        Ok(weights)
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        self.scorer.end_step()
    }
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
        selection: Selection {
            ratio: outer.ratio,
            hard: false,
        },
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
