//! Clipping, the optimizer's first step and the trace of the first steps, by the code that trains.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use wmtp_model::{Horizon, MtpModel, ParamStore};
use wmtp_training::heads::{HeadTargets, Learner, StepLoss, Target, accumulate};
use wmtp_training::optimizer::{Parameter, clip_coefficient};
use wmtp_training::scorer::{Scorer, StepRow, StepStats};
use wmtp_training::{AdamW, AdamWSettings, Gradients};

use super::batch::Batch;
use super::model::TargetWeights;
use super::{Mode, Mutation, Run};
use crate::golden::Optimizer;
use crate::{Error, Values};

/// Clips and applies the gradients of the first step, then trains on as long as the golden's trace.
pub(super) fn record(
    run: &mut Run,
    policy: &MtpModel,
    store: &ParamStore,
    backward: &GradStore,
    batch: &Batch,
    weights: &TargetWeights,
) -> Result<(), Error> {
    let settings = run.case.optimizer()?;
    let mut adamw = optimizer(run, store, settings)?;
    let first = first_gradients(run, adamw.parameters(), backward)?;
    let norm = first.norm()?;
    run.record("clip.norm", Values::vector(vec![norm]));
    let coefficient = coefficient(run, norm, settings.clip);
    run.record("clip.coefficient", Values::vector(vec![coefficient]));

    let mut scorer = Fixed { weights, batch };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..trace_length(run) {
        let (loss, gradients) = training_pass(policy, adamw.parameters(), batch, &mut scorer)?;
        losses.push(loss);
        norms.push(gradients.norm()?);
        let gradients = if step == 0 { &first } else { &gradients };
        let scale = if run.has(&Mutation::NoClipping) {
            1.0
        } else {
            self::coefficient(run, gradients.norm()?, settings.clip)
        };
        adamw.update(gradients, scale, 1.0)?;
        if step == 0 {
            record_parameters(run, store)?;
        }
    }
    run.record("trace.loss", Values::vector(losses));
    run.record("trace.grad_norm", Values::vector(norms));
    Ok(())
}

/// Steps that the golden traced; at least the one that the optimizer stage needs.
fn trace_length(run: &Run) -> usize {
    let trace = run.case.golden.get("trace.loss");
    trace.map_or(1, |trace| trace.data.len().max(1))
}

/// The reference decays every parameter, vectors too.
fn optimizer(run: &Run, store: &ParamStore, settings: Optimizer) -> Result<AdamW, Error> {
    let parameter = |(name, var): (&str, &candle_core::Var)| Parameter {
        name: name.to_owned(),
        var: var.clone(),
        lr: settings.lr,
        decays: true,
    };
    let (eps, decay) = match run.mutation {
        Some(Mutation::AdamEpsilon) => (1e-6, settings.weight_decay),
        Some(Mutation::WeightDecay) => (settings.eps, 0.01),
        _ => (settings.eps, settings.weight_decay),
    };
    let constants = AdamWSettings {
        beta1: settings.betas.0,
        beta2: settings.betas.1,
        eps,
        weight_decay: decay,
    };
    Ok(AdamW::new(
        store.iter().map(parameter).collect(),
        constants,
    )?)
}

fn coefficient(run: &Run, norm: f64, max_norm: f64) -> f64 {
    if run.has(&Mutation::ClipWithoutEpsilon) {
        return (max_norm / norm).min(1.0);
    }
    clip_coefficient(norm, max_norm)
}

/// The gradients of the first step: of our backward pass, or the golden's in isolated mode.
fn first_gradients(
    run: &Run,
    parameters: &[Parameter],
    backward: &GradStore,
) -> Result<Gradients, Error> {
    let mut gradients = Gradients::zeros(parameters)?;
    if run.mode == Mode::Chained {
        gradients.add_store(parameters, backward)?;
        return Ok(gradients);
    }
    for parameter in parameters {
        if let Some(golden) = run.case.golden.get(&format!("grad.{}", parameter.name)) {
            gradients.add_store(parameters, &given(parameter, golden)?)?;
        }
    }
    Ok(gradients)
}

/// A backward pass that leaves exactly these numbers for a parameter: that of `Σ gradient · parameter`.
pub(super) fn given(parameter: &Parameter, gradient: &Values) -> Result<GradStore, Error> {
    let gradient = gradient.tensor(parameter.var.dtype(), parameter.var.device())?;
    let product: Tensor = (parameter.var.as_tensor() * gradient)?;
    Ok(product.sum_all()?.backward()?)
}

fn record_parameters(run: &mut Run, store: &ParamStore) -> Result<(), Error> {
    for (name, var) in store.iter() {
        run.record(format!("param.step1.{name}"), Values::of(var)?);
    }
    Ok(())
}

/// Loss and gradients of one optimizer step.
fn training_pass(
    policy: &MtpModel,
    parameters: &[Parameter],
    batch: &Batch,
    scorer: &mut Fixed,
) -> Result<(f64, Gradients), Error> {
    let padded = batch.padded();
    let counts: Vec<usize> = policy
        .params()
        .horizons()
        .map(|horizon| HeadTargets::of(&padded, horizon, 0).ids.len())
        .collect();
    let mut loss = StepLoss::new(&counts);
    let mut gradients = Gradients::zeros(parameters)?;
    let learner = Learner {
        model: policy,
        parameters,
        activation_bytes: None,
    };
    accumulate(&learner, &padded, 0, scorer, &mut loss, &mut gradients)?;
    Ok((loss.weighted(), gradients))
}

/// Gives every step the weights of the first one, as the reference does.
struct Fixed<'a> {
    weights: &'a TargetWeights,
    batch: &'a Batch,
}

impl Scorer for Fixed<'_> {
    fn begin_step(&mut self, _step: u64, _rows: &[StepRow]) -> wmtp_training::Result<()> {
        Ok(())
    }

    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        _policy_ce: Option<&[f64]>,
    ) -> wmtp_training::Result<Vec<f64>> {
        let weight = |target: &Target| {
            // Targets that a horizon reaches from before the sequence are left out, so the index counts from
            // the response's first token.
            let first = self.batch.responses[target.slot].0;
            self.weights.of(horizon, target.slot, first + target.index)
        };
        Ok(targets.iter().map(weight).collect())
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        Vec::new()
    }
}
