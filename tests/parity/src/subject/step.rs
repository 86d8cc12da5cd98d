//! The first step's gradients, clipping, the optimizer's first update and the trace of the first steps, by the code that
//! trains.

use candle_core::Tensor;
use wmtp_model::{Horizon, MtpModel, ParamStore};
use wmtp_training::heads::{HeadTargets, Learner, StepLoss, Target, accumulate};
use wmtp_training::optimizer::{Parameter, clip_coefficient};
use wmtp_training::scorer::{Scorer, StepRow, StepStats};
use wmtp_training::{AdamW, AdamWSettings, Gradients};

use super::batch::Batch;
use super::fused::Fused;
use super::model::TargetWeights;
use super::{Mode, Mutation, Results, Run};
use crate::golden::Optimizer;
use crate::{Error, Values};

/// A policy, what its optimizer moves, and what it learns from.
pub(super) struct Learned<'a> {
    pub(super) policy: &'a MtpModel,
    pub(super) trained: &'a ParamStore,
    /// The base of adapters, which no gradient may reach.
    pub(super) frozen: Option<&'a ParamStore>,
    pub(super) batch: &'a Batch,
    /// Makes what weighs the targets of one pass.
    pub(super) scorer: &'a dyn Fn() -> Result<Box<dyn Scorer + 'a>, Error>,
}

/// The gradients of the first step, as the pass that trains gives them; records them, and the losses that it reports.
///
/// A graph behind `total` is the pass's plain twin. It takes the golden's activations, which the pass has no place for: in
/// isolated mode both are judged. And it holds the faults of operations that cut a graph.
pub(super) fn first_gradients(
    run: &mut Run,
    learned: &Learned,
    total: Option<&Tensor>,
) -> Result<Gradients, Error> {
    let trained = parameters(learned.trained, run.case.optimizer()?.lr);
    let base = learned.frozen.map(|base| parameters(base, 0.0));
    if let Some(total) = total.filter(|_| run.mode == Mode::Isolated) {
        keep_twin(run, total, [Some(&trained), base.as_ref()])?;
    }
    let cut = total.filter(|_| run.mutation.is_some_and(cuts_the_graph));
    let gradients = |run: &Run, parameters: &[Parameter]| match cut {
        Some(total) => of_graph(parameters, total),
        None => Ok(training_pass(run, learned, parameters)?.1),
    };
    let first = gradients(run, &trained)?;
    let mut found = gradient_values(run, &trained, &first)?;
    if let Some(base) = &base {
        found.extend(gradient_values(run, base, &gradients(run, base)?)?);
    }
    run.results.extend(found);
    let loss = training_pass(run, learned, &trained)?.0;
    record_losses(run, &loss);
    Ok(first)
}

/// Keeps what the graph behind `total` gives beside what the pass will: the losses, which are recorded, and gradients.
fn keep_twin(
    run: &mut Run,
    total: &Tensor,
    parameters: [Option<&Vec<Parameter>>; 2],
) -> Result<(), Error> {
    let losses = run
        .results
        .iter()
        .filter(|(key, _)| key.starts_with("loss."));
    let mut twin: Results = losses
        .map(|(key, loss)| (key.clone(), loss.clone()))
        .collect();
    for parameters in parameters.into_iter().flatten() {
        let gradients = of_graph(parameters, total)?;
        twin.extend(gradient_values(run, parameters, &gradients)?);
    }
    run.twin = Some(twin);
    Ok(())
}

fn of_graph(parameters: &[Parameter], total: &Tensor) -> Result<Gradients, Error> {
    let mut gradients = Gradients::zeros(parameters)?;
    gradients.add_store(parameters, &total.backward()?)?;
    Ok(gradients)
}

/// Whether a fault is one of candle's graph, which the pass that trains does not have.
fn cuts_the_graph(mutation: &Mutation) -> bool {
    matches!(mutation, Mutation::FusedNorm | Mutation::LoraLeak) || Fused::of(mutation).is_some()
}

/// The gradient of each parameter that got one.
fn gradient_values(
    run: &Run,
    parameters: &[Parameter],
    gradients: &Gradients,
) -> Result<Results, Error> {
    let mut found = Results::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let cut = match run.mutation {
            Some(Mutation::CutGradient(cut)) => *cut == parameter.name,
            _ => false,
        };
        if gradients.is_touched(index) && !cut {
            let gradient = values_of(parameter, gradients, index)?;
            found.insert(format!("grad.{}", parameter.name), gradient);
        }
    }
    Ok(found)
}

fn values_of(parameter: &Parameter, gradients: &Gradients, index: usize) -> Result<Values, Error> {
    let data = gradients.get(index).clone().into_f64()?;
    Ok(Values {
        dtype: Some(parameter.var.dtype()),
        ..Values::new(parameter.var.dims().to_vec(), data)
    })
}

/// What the pass says that it minimises.
fn record_losses(run: &mut Run, loss: &StepLoss) {
    for (k, head) in (1..).zip(&loss.heads) {
        let mean = head.weighted / head.count as f64;
        run.record(format!("loss.head.{k}"), Values::vector(vec![mean]));
    }
    run.record("loss.total", Values::vector(vec![loss.weighted()]));
}

/// Clips and applies the gradients of the first step, then trains on as long as the golden's trace.
pub(super) fn record(run: &mut Run, learned: &Learned, first: &Gradients) -> Result<(), Error> {
    let settings = run.case.optimizer()?;
    let mut adamw = optimizer(run, learned.trained, settings)?;
    let golden = match run.mode {
        Mode::Chained => None,
        Mode::Isolated => Some(golden_gradients(run, adamw.parameters(), first)?),
    };
    let first = golden.as_ref().unwrap_or(first);
    let norm = first.norm()?;
    run.record("clip.norm", Values::vector(vec![norm]));
    let coefficient = coefficient(run, norm, settings.clip);
    run.record("clip.coefficient", Values::vector(vec![coefficient]));

    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..trace_length(run) {
        let (loss, gradients) = training_pass(run, learned, adamw.parameters())?;
        losses.push(loss.weighted());
        norms.push(gradients.norm()?);
        let gradients = if step == 0 { first } else { &gradients };
        let scale = if run.has(&Mutation::NoClipping) {
            1.0
        } else {
            self::coefficient(run, gradients.norm()?, settings.clip)
        };
        adamw.update(gradients, scale, 1.0)?;
        if step == 0 {
            record_parameters(run, learned.trained)?;
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
fn parameters(store: &ParamStore, lr: f64) -> Vec<Parameter> {
    let mut parameters = wmtp_training::optimizer::parameters(store, lr);
    for one in &mut parameters {
        one.decays = true;
    }
    parameters
}

fn optimizer(run: &Run, store: &ParamStore, settings: Optimizer) -> Result<AdamW, Error> {
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
    Ok(AdamW::new(parameters(store, settings.lr), constants)?)
}

fn coefficient(run: &Run, norm: f64, max_norm: f64) -> f64 {
    if run.has(&Mutation::ClipWithoutEpsilon) {
        return (max_norm / norm).min(1.0);
    }
    clip_coefficient(norm, max_norm)
}

/// The golden's gradients of the first step; ours for a parameter where the golden's are no gradient of it.
fn golden_gradients(
    run: &Run,
    parameters: &[Parameter],
    ours: &Gradients,
) -> Result<Gradients, Error> {
    let mut gradients = Gradients::zeros(parameters)?;
    for (index, parameter) in parameters.iter().enumerate() {
        let key = format!("grad.{}", parameter.name);
        if let Some(golden) = run.given(&key, parameter.var.dims()) {
            give(&mut gradients, parameters, parameter, golden)?;
        } else if run.case.golden.contains_key(&key) && ours.is_touched(index) {
            let ours = values_of(parameter, ours, index)?;
            give(&mut gradients, parameters, parameter, &ours)?;
        }
    }
    Ok(gradients)
}

/// Hands a parameter these numbers as its gradient.
pub(super) fn give(
    gradients: &mut Gradients,
    parameters: &[Parameter],
    parameter: &Parameter,
    values: &Values,
) -> Result<(), Error> {
    let gradient = values.tensor(parameter.var.dtype(), parameter.var.device())?;
    Ok(gradients.add(parameters, parameter.var.id(), &gradient)?)
}

fn record_parameters(run: &mut Run, store: &ParamStore) -> Result<(), Error> {
    for (name, var) in store.iter() {
        run.record(format!("param.step1.{name}"), Values::of(var)?);
    }
    Ok(())
}

/// Loss and gradients of one optimizer step, by the pass of the policy's trainer.
fn training_pass(
    run: &Run,
    learned: &Learned,
    parameters: &[Parameter],
) -> Result<(StepLoss, Gradients), Error> {
    let mut scorer = (learned.scorer)()?;
    let (loss, gradients) = pass(learned.policy, parameters, learned.batch, scorer.as_mut())?;
    if run.has(&Mutation::HalvedHead) {
        return Ok((loss, halved_head(parameters, &gradients)?));
    }
    Ok((loss, gradients))
}

/// The same gradients, those of the second head's block by half.
fn halved_head(parameters: &[Parameter], gradients: &Gradients) -> Result<Gradients, Error> {
    let mut halved = Gradients::zeros(parameters)?;
    for (index, parameter) in parameters.iter().enumerate() {
        if gradients.is_touched(index) {
            let mut values = values_of(parameter, gradients, index)?;
            if parameter.name.starts_with("extra_heads.0.") {
                values.data.iter_mut().for_each(|x| *x /= 2.0);
            }
            give(&mut halved, parameters, parameter, &values)?;
        }
    }
    Ok(halved)
}

/// The same with a scorer that is looked at afterwards.
pub(super) fn pass(
    policy: &MtpModel,
    parameters: &[Parameter],
    batch: &Batch,
    scorer: &mut dyn Scorer,
) -> Result<(StepLoss, Gradients), Error> {
    let padded = batch.padded();
    let counts: Vec<usize> = policy
        .params()
        .horizons()
        .map(|horizon| HeadTargets::of(&padded, horizon, 0).ids.len())
        .collect();
    let rows = batch.responses.iter().enumerate();
    let rows = rows.map(|(row, (first, last))| StepRow {
        row,
        targets: last - first,
    });
    scorer.begin_step(0, &rows.collect::<Vec<_>>())?;
    let mut loss = StepLoss::new(&counts);
    let mut gradients = Gradients::zeros(parameters)?;
    let learner = Learner {
        model: policy,
        parameters,
        activation_bytes: None,
        dropout: None,
    };
    accumulate(&learner, &padded, 0, scorer, &mut loss, &mut gradients)?;
    Ok((loss, gradients))
}

/// Gives every step the weights of the first one, as the reference does.
pub(super) struct Fixed<'a> {
    weights: &'a TargetWeights,
    batch: &'a Batch,
}

impl<'a> Fixed<'a> {
    pub(super) fn boxed(batch: &'a Batch, weights: &'a TargetWeights) -> Box<dyn Scorer + 'a> {
        Box::new(Self { weights, batch })
    }
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
