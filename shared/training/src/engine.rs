//! What every training run shares: applying gradients, falling back, keeping the best, resuming.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wmtp_artifacts::fault;
use wmtp_records::jsonl;

use crate::buffer::{self, Buffer, StateFile};
use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::memory::{Halved, MicroBatch, Room};
use crate::optimizer::{AdamW, AdamWSettings, Gradients, Parameter, assign, clip_coefficient};
use crate::ranks::Ranks;
use crate::schedule::Schedule;
use crate::throughput::Work;

/// After so many bad steps in a row, training stops.
pub const MAX_BAD_STEPS: u32 = 3;

/// Names of files in a resume checkpoint.
mod files {
    pub(super) const PARAMETERS: &str = "parameters.safetensors";
    pub(super) const BEST: &str = "best.safetensors";
    /// Moments; where several ranks keep a part each, the first rank's.
    pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
    pub(super) const STATE: &str = "engine.json";
    pub(super) const METRICS: &str = "metrics.jsonl";
}

/// Settings of the optimiser that all runs share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimSettings {
    /// Constants of AdamW.
    pub adamw: AdamWSettings,
    /// Largest norm of the gradient.
    pub grad_clip: f64,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Learning rate of the last step as a share of the peak.
    pub min_lr_ratio: f64,
    /// Sequences that go through the model at once, as long as memory allows.
    pub micro_batch_sequences: usize,
    /// Validate after so many steps, and after the last; 0 means only after the last.
    pub eval_every_steps: usize,
    /// When to stop before the last step; `None` means never.
    pub early_stop: Option<EarlyStop>,
    /// Memory for a step.
    pub room: Room,
}

/// Training stops early when the validation loss has not improved for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStop {
    /// Validations in a row without an improvement that are too many.
    pub patience: usize,
    /// An improvement is a loss lower than that of the last improvement by more than this.
    pub min_delta: f64,
}

impl OptimSettings {
    /// The optimiser section of a recipe.
    pub fn of(optim: &wmtp_recipe::Optim) -> Self {
        Self {
            adamw: AdamWSettings {
                beta1: optim.beta1,
                beta2: optim.beta2,
                eps: optim.eps,
                weight_decay: optim.weight_decay,
            },
            grad_clip: optim.grad_clip,
            warmup_ratio: optim.warmup_ratio,
            min_lr_ratio: optim.min_lr_ratio,
            micro_batch_sequences: optim.micro_batch_sequences,
            eval_every_steps: optim.eval_every_steps,
            early_stop: optim.early_stop_patience.map(|patience| EarlyStop {
                patience,
                min_delta: optim.early_stop_min_delta,
            }),
            room: Room::Measured,
        }
    }
}

/// What became of the gradients of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// The parameters moved.
    Applied {
        /// Learning rate of the first parameter.
        lr: f64,
        /// Norm before clipping.
        grad_norm: f64,
    },
    /// Loss or gradient was not finite: nothing moved and the learning rate was halved for good.
    Skipped {
        /// Bad steps in a row, this one included.
        in_a_row: u32,
        /// What the schedule is multiplied with from now on.
        lr_factor: f64,
    },
}

impl Update {
    /// Its numbers for curves.
    fn metrics(self) -> Vec<(String, f64)> {
        let named = |name: &str, value| (name.to_owned(), value);
        match self {
            Self::Applied { lr, grad_norm } => {
                vec![named("lr", lr), named("grad_norm", grad_norm)]
            }
            Self::Skipped { lr_factor, .. } => vec![named("lr_factor", lr_factor)],
        }
    }
}

/// One optimizer step as callers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// 1-based number of the step.
    pub step: u64,
    /// What it had to do.
    pub work: Work,
    /// What became of the gradients.
    pub update: Update,
    /// How often memory ran out before the step went through.
    pub halved: Vec<Halved>,
    /// Numbers for curves, in a fixed order.
    pub metrics: Vec<(String, f64)>,
    /// Numbers for whoever looks on, of which the curves keep nothing: statistics of the step's token weights, of which the
    /// checkpoint has a file of its own, and of what they come from; the validation loss of every head.
    pub live: Vec<(String, f64)>,
}

impl StepReport {
    /// A metric by name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let found = self.metrics.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| *value)
    }
}

/// Which of a trainer's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// Those of the file that it learns from.
    Train,
    /// Those of the file that it is validated on.
    Validation,
}

impl Side {
    /// The one of two that belongs to it.
    pub(crate) fn of<T>(self, train: T, validation: T) -> T {
        match self {
            Self::Train => train,
            Self::Validation => validation,
        }
    }
}

/// Does what all ranks do together, again with half as many sequences at once each time that memory runs out;
/// [`Engine::take_halved`] tells of each, also where this fails.
///
/// # Errors
/// That of one sequence at a time, any that says something else.
pub(crate) fn as_room_allows<T: Trainer, R>(
    trainer: &mut T,
    attempt: impl Fn(&mut T) -> Result<R>,
) -> Result<R> {
    let before = trainer.engine().micro_batch_sequences();
    loop {
        match attempt(trainer) {
            Ok(done) => return Ok(done),
            Err(error) => trainer.engine_mut().halve(error, before)?,
        }
    }
}

/// What a validation found.
#[derive(Debug, Default)]
pub(crate) struct Validation {
    /// The loss by which weights are chosen; none where there are no rows.
    pub(crate) loss: Option<f64>,
    /// Numbers for whoever looks on.
    pub(crate) live: Vec<(String, f64)>,
}

/// Ends a step whose gradients were applied or skipped: validates where that is due, offers the weights as the best, and
/// writes the line of metrics.
pub(crate) fn end_step<T: Trainer>(
    trainer: &mut T,
    mut report: StepReport,
    validate: impl Fn(&mut T) -> Result<Validation>,
) -> Result<StepReport> {
    report.metrics.extend(report.update.metrics());
    let begun = Instant::now();
    if trainer.engine().validation_due() {
        let Validation { loss, live } = as_room_allows(trainer, validate)?;
        if let Some(loss) = loss {
            trainer.engine_mut().offer_best(loss)?;
            report.metrics.push(("validation_loss".to_owned(), loss));
        }
        report.live.extend(live);
    }
    let engine = trainer.engine_mut();
    engine.validating += begun.elapsed();
    report.halved = engine.take_halved();
    if let Some(last) = report.halved.last() {
        let sequences = last.to as f64;
        report
            .metrics
            .push(("micro_batch_sequences".to_owned(), sequences));
    }
    engine.log(&report.metrics);
    Ok(report)
}

/// What [`Trainer::score`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// One entry per row.
    pub of_rows: Vec<Vec<f64>>,
    /// How often memory ran out before the rows went through.
    pub halved: Vec<Halved>,
}

/// A run that goes step by step and can stop between any two of them.
pub trait Trainer: Send {
    /// What every run has.
    fn engine(&self) -> &Engine;
    /// The same, to change it.
    fn engine_mut(&mut self) -> &mut Engine;
    /// Steps that take every training row once.
    fn steps_per_epoch(&self) -> u64;
    /// Rows that it is validated on.
    fn num_held_out(&self) -> usize;
    /// Does the next step. An error leaves the run between two steps where it leaves [`Self::step`] as it was and all ranks
    /// know of it: it can be saved.
    fn advance(&mut self) -> Result<StepReport>;
    /// Writes everything that continuing needs.
    fn save(&self, dir: &Path) -> Result<()>;
    /// Continues from what [`Trainer::save`] wrote: the rest of the run is the same bit for bit.
    fn restore(&mut self, dir: &Path) -> Result<()>;
    /// What the model makes of each response target of rows, with the present weights: its value, or the cross-entropy of
    /// head 1.
    fn score(&mut self, side: Side, rows: &[usize]) -> Result<Scored>;
    /// Positions of rows in pieces: [`Trainer::score`] of one after another gives what that of all at once does, bit for bit.
    fn pieces(&self, side: Side, rows: &[usize]) -> Vec<Vec<usize>>;

    /// Puts the best weights into place and tells the step that they come from.
    fn finish(&mut self) -> Result<u64> {
        self.engine_mut().finish()
    }

    /// Steps done.
    fn step(&self) -> u64 {
        self.engine().step()
    }

    /// Steps in all.
    fn total_steps(&self) -> u64 {
        self.engine().total()
    }

    /// Smallest validation loss so far.
    fn best_loss(&self) -> Option<f64> {
        self.engine().best_loss()
    }

    /// The stop before the last step, once it has come.
    fn stopped_early(&self) -> Option<StoppedEarly> {
        self.engine().stopped_early()
    }

    /// The ranks that share the work: each has a trainer like this one, and all have to do the same calls of those above that
    /// can fail.
    fn ranks(&self) -> &Arc<Ranks> {
        self.engine().ranks()
    }

    /// Whether there is nothing left to do.
    fn is_done(&self) -> bool {
        self.step() >= self.total_steps() || self.stopped_early().is_some()
    }
}

/// Why a run ended before its last step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoppedEarly {
    /// The step after which it stopped.
    pub step: u64,
    /// Validations since the last improvement.
    pub validations: usize,
    /// The smallest validation loss.
    pub best_loss: f64,
    /// The step after which it was seen.
    pub best_step: u64,
}

/// Validations since the last improvement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Waiting {
    validations: usize,
    /// Loss of the last improvement.
    mark: Option<f64>,
}

impl Waiting {
    fn note(&mut self, loss: f64, min_delta: f64) {
        if self.mark.is_none_or(|mark| loss < mark - min_delta) && loss.is_finite() {
            *self = Self {
                validations: 0,
                mark: Some(loss),
            };
        } else {
            self.validations += 1;
        }
    }
}

/// Weights of the step with the smallest validation loss.
#[derive(Debug, Clone)]
struct Best {
    step: u64,
    loss: f64,
    /// Kept by the rank that leads.
    values: Vec<Buffer>,
}

/// Numbers of the state file. Floats travel as text, since JSON parsers may round the last bit.
#[derive(Debug, Serialize, Deserialize)]
struct EngineState {
    step: u64,
    updates: u64,
    bad_in_a_row: u32,
    lr_factor: String,
    best: Option<(u64, String)>,
    /// States of earlier builds do not say; there the settings hold.
    micro_batch_sequences: Option<usize>,
    /// Validations since the last improvement, and the loss of that; only where a run may stop early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<(usize, Option<String>)>,
}

/// Bytes of so many buffers as large as all parameters.
fn bytes_of(parameters: &[Parameter], buffers: usize) -> u64 {
    let bytes = |p: &Parameter| p.var.elem_count() * p.var.dtype().size_in_bytes();
    (buffers * parameters.iter().map(bytes).sum::<usize>()) as u64
}

/// What to reckon with for activations of so many bytes: measured peaks of models of 20 to 180 MiB lie 5 to 50 % above
/// them, and of one of many thin blocks, none of them kept, twice: packed operands, and what the allocator keeps.
fn with_margin(bytes: usize) -> u64 {
    (bytes / 2 * 3) as u64
}

/// Optimizer, schedule, fallback, best weights and the metrics written so far.
#[derive(Debug)]
pub struct Engine {
    optimizer: AdamW,
    schedule: Schedule,
    grad_clip: f64,
    eval_every: u64,
    micro_batch: MicroBatch,
    total: u64,
    step: u64,
    bad_in_a_row: u32,
    lr_factor: f64,
    best: Option<Best>,
    early_stop: Option<EarlyStop>,
    waiting: Waiting,
    metrics: Lines,
    validating: Duration,
    /// How often memory ran out, where nobody was told yet.
    halved: Vec<Halved>,
}

impl Engine {
    /// Starts a run of `total` steps over these parameters.
    pub fn new(parameters: Vec<Parameter>, settings: &OptimSettings, total: u64) -> Result<Self> {
        Self::among(&Ranks::alone(), parameters, settings, total)
    }

    /// Starts a run whose steps these ranks share.
    pub fn among(
        ranks: &Arc<Ranks>,
        parameters: Vec<Parameter>,
        settings: &OptimSettings,
        total: u64,
    ) -> Result<Self> {
        // Gradients, two moments and the best weights: zeros that take no memory until they are written. Ranks divide the
        // moments among themselves, and one keeps the best weights.
        let unwritten = bytes_of(&parameters, ranks.world() + 3);
        let on_device = parameters.iter().any(|p| !p.var.device().is_cpu());
        let room = if on_device {
            Room::Allocator
        } else {
            settings.room
        };
        Ok(Self {
            optimizer: AdamW::among(ranks, parameters, settings.adamw)?,
            schedule: Schedule::new(total, settings.warmup_ratio, settings.min_lr_ratio),
            grad_clip: settings.grad_clip,
            eval_every: settings.eval_every_steps as u64,
            micro_batch: MicroBatch::new(settings.micro_batch_sequences, room, unwritten),
            total,
            step: 0,
            bad_in_a_row: 0,
            lr_factor: 1.0,
            best: None,
            early_stop: settings.early_stop,
            waiting: Waiting::default(),
            metrics: Lines::default(),
            validating: Duration::ZERO,
            halved: Vec::new(),
        })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The trainable tensors in their order.
    pub fn parameters(&self) -> &[Parameter] {
        self.optimizer.parameters()
    }

    /// Smallest validation loss so far.
    pub fn best_loss(&self) -> Option<f64> {
        self.best.as_ref().map(|best| best.loss)
    }

    /// The step after which the best weights were seen.
    pub fn best_step(&self) -> Option<u64> {
        self.best.as_ref().map(|best| best.step)
    }

    /// The stop before the last step, once it has come.
    pub fn stopped_early(&self) -> Option<StoppedEarly> {
        let (stop, best) = (self.early_stop?, self.best.as_ref()?);
        let validations = self.waiting.validations;
        (validations >= stop.patience && self.step < self.total).then_some(StoppedEarly {
            step: self.step,
            validations,
            best_loss: best.loss,
            best_step: best.step,
        })
    }

    /// Sequences that go through the model at once.
    pub fn micro_batch_sequences(&self) -> usize {
        self.micro_batch.sequences()
    }

    /// The ranks that share the steps.
    pub(crate) fn ranks(&self) -> &Arc<Ranks> {
        self.optimizer.ranks()
    }

    /// Lets a micro-batch through that needs so many bytes, on every rank of this machine; all of them ask for it.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when there are fewer.
    pub(crate) fn admit(&mut self, bytes: usize) -> Result<()> {
        let ranks = self.optimizer.ranks();
        let bytes = with_margin(bytes * ranks.world());
        self.micro_batch.admit(ranks, bytes)
    }

    /// Sends half as many sequences through the model at once, when `error` says that memory ran out.
    ///
    /// # Errors
    /// The error itself, when it says something else or there is one sequence at a time already. Then there are as many at
    /// once as `before`: with more memory the run goes on as fast as it was.
    fn halve(&mut self, error: Error, before: usize) -> Result<()> {
        match self.micro_batch.halve(error) {
            Ok(halved) => {
                self.halved.push(halved);
                Ok(())
            }
            Err(error) => {
                self.micro_batch.set_sequences(before);
                Err(error)
            }
        }
    }

    /// How often memory ran out since this was asked last.
    pub fn take_halved(&mut self) -> Vec<Halved> {
        std::mem::take(&mut self.halved)
    }

    /// Whether the step just done is to be followed by a validation.
    pub(crate) fn validation_due(&self) -> bool {
        let (step, every) = (self.step, self.eval_every);
        step == self.total || (every > 0 && step.is_multiple_of(every))
    }

    /// Time spent on validations so far.
    pub fn validating(&self) -> Duration {
        self.validating
    }

    /// Bytes of the state that all ranks together write: the weights, two moments of each, and the best ones once there
    /// are any.
    pub fn state_bytes(&self) -> u64 {
        bytes_of(self.parameters(), 3 + usize::from(self.best.is_some()))
    }

    /// Metrics as JSON lines, one per step.
    pub fn metrics(&self) -> &Lines {
        &self.metrics
    }

    /// Adds up the gradients of one step over all ranks, clips and applies them, or skips the step when they are not finite.
    /// The loss is that of all ranks.
    ///
    /// # Errors
    /// [`Error::Numeric`] at the third bad step in a row; [`Error::NoGradient`] when `all_needed` and some
    /// parameter was left out by the backward pass.
    pub fn apply(
        &mut self,
        loss: f64,
        gradients: &mut Gradients,
        all_needed: bool,
    ) -> Result<Update> {
        let loss = if fault::fails("train:loss") {
            f64::NAN
        } else {
            loss
        };
        let grad_norm = self.optimizer.gather(gradients)?;
        let step = self.step + 1;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return self.skip();
        }
        if all_needed && let Some(index) = gradients.first_untouched() {
            let name = self.parameters()[index].name.clone();
            return Err(Error::NoGradient { name, step });
        }
        let factor = self.schedule.factor(self.step) * self.lr_factor;
        let scale = clip_coefficient(grad_norm, self.grad_clip);
        self.optimizer.update(gradients, scale, factor)?;
        self.bad_in_a_row = 0;
        self.step = step;
        let peak = self.parameters().first().map_or(0.0, |first| first.lr);
        Ok(Update::Applied {
            lr: peak * factor,
            grad_norm,
        })
    }

    fn skip(&mut self) -> Result<Update> {
        let in_a_row = self.bad_in_a_row + 1;
        if in_a_row >= MAX_BAD_STEPS {
            return Err(Error::Numeric {
                step: self.step + 1,
                in_a_row,
            });
        }
        self.bad_in_a_row = in_a_row;
        self.step += 1;
        self.lr_factor /= 2.0;
        Ok(Update::Skipped {
            in_a_row,
            lr_factor: self.lr_factor,
        })
    }

    /// Keeps the present weights if this validation loss is the smallest so far, and counts validations without an
    /// improvement.
    pub fn offer_best(&mut self, loss: f64) -> Result<()> {
        if let Some(EarlyStop { min_delta, .. }) = self.early_stop {
            self.waiting.note(loss, min_delta);
        }
        if loss.is_finite() && self.best.as_ref().is_none_or(|best| loss < best.loss) {
            let values = if self.ranks().leads() {
                self.values()?
            } else {
                Vec::new()
            };
            self.best = Some(Best {
                step: self.step,
                loss,
                values,
            });
        }
        Ok(())
    }

    /// Puts the best weights into the parameters of all ranks and tells the step that they come from; without any, the present
    /// ones stay.
    pub fn finish(&mut self) -> Result<u64> {
        if let Some(best) = &self.best {
            // Those of a rank that does not lead come from the one that does.
            for (parameter, values) in self.parameters().iter().zip(&best.values) {
                assign(parameter, values)?;
            }
            let from_the_leader = vec![0; self.parameters().len()];
            self.ranks().spread(&from_the_leader, self.parameters())?;
        }
        Ok(self.best_step().unwrap_or(self.step))
    }

    /// Appends one line of metrics: the step, then the numbers that are finite.
    pub fn log(&mut self, metrics: &[(String, f64)]) {
        let mut line = serde_json::Map::new();
        line.insert("step".to_owned(), self.step.into());
        for (name, value) in metrics {
            if value.is_finite() {
                line.insert(name.clone(), (*value).into());
            }
        }
        self.metrics.push(&line);
    }

    /// Writes everything that continuing needs; a rank that does not lead, the moments that it keeps.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let saved = self.optimizer.save(&self.moments_file(dir)).and_then(|()| {
            if self.ranks().leads() {
                self.save_whole(dir)
            } else {
                Ok(())
            }
        });
        self.ranks().agree(saved).map(drop)
    }

    fn moments_file(&self, dir: &Path) -> PathBuf {
        dir.join(match self.ranks().rank() {
            0 => files::OPTIMIZER.to_owned(),
            rank => format!("optimizer.{rank}.safetensors"),
        })
    }

    /// What all ranks have alike.
    fn save_whole(&self, dir: &Path) -> Result<()> {
        self.save_tensors(&dir.join(files::PARAMETERS), &self.values()?)?;
        if let Some(best) = &self.best {
            self.save_tensors(&dir.join(files::BEST), &best.values)?;
        }
        self.metrics.write(&dir.join(files::METRICS))?;
        let state = EngineState {
            step: self.step,
            updates: self.optimizer.updates(),
            bad_in_a_row: self.bad_in_a_row,
            lr_factor: self.lr_factor.to_string(),
            best: self
                .best
                .as_ref()
                .map(|best| (best.step, best.loss.to_string())),
            micro_batch_sequences: Some(self.micro_batch.sequences()),
            waiting: self.early_stop.map(|_| {
                let mark = self.waiting.mark.map(|mark| mark.to_string());
                (self.waiting.validations, mark)
            }),
        };
        Ok(jsonl::write_json(&dir.join(files::STATE), &state)?)
    }

    /// Continues from what [`Engine::save`] wrote.
    pub fn restore(&mut self, dir: &Path) -> Result<()> {
        let restored = self.restore_own(dir);
        self.ranks().agree(restored).map(drop)
    }

    fn restore_own(&mut self, dir: &Path) -> Result<()> {
        let state_path = dir.join(files::STATE);
        let state: EngineState = jsonl::read_json(&state_path)?;
        let number = |text: &str| {
            text.parse::<f64>()
                .map_err(|_| buffer::bad_file(&state_path, format!("{text:?} is no number")))
        };
        if state.step > self.total {
            let reason = format!(
                "step {} lies beyond the run's {} steps",
                state.step, self.total
            );
            return Err(buffer::bad_file(&state_path, reason));
        }
        let values = self.load_tensors(&dir.join(files::PARAMETERS))?;
        for (parameter, values) in self.parameters().iter().zip(&values) {
            assign(parameter, values)?;
        }
        self.best = match state.best {
            None => None,
            Some((step, loss)) => Some(Best {
                step,
                loss: number(&loss)?,
                values: if self.ranks().leads() {
                    self.load_tensors(&dir.join(files::BEST))?
                } else {
                    Vec::new()
                },
            }),
        };
        let moments = self.moments_file(dir);
        self.optimizer.restore(&moments, state.updates)?;
        self.metrics = Lines::read(&dir.join(files::METRICS))?;
        self.lr_factor = number(&state.lr_factor)?;
        if let Some((validations, mark)) = state.waiting {
            let mark = mark.as_deref().map(number).transpose()?;
            self.waiting = Waiting { validations, mark };
        }
        self.bad_in_a_row = state.bad_in_a_row;
        // The moments are there now, and the best weights where there are any.
        let buffers = self.ranks().world() + usize::from(self.best.is_none());
        let unwritten = bytes_of(self.parameters(), buffers);
        let sequences = state.micro_batch_sequences;
        self.micro_batch.resume(sequences, unwritten);
        self.step = state.step;
        Ok(())
    }

    fn values(&self) -> Result<Vec<Buffer>> {
        self.parameters()
            .iter()
            .map(|p| Buffer::of(&p.var))
            .collect()
    }

    fn save_tensors(&self, path: &Path, values: &[Buffer]) -> Result<()> {
        let named = self.parameters().iter().zip(values);
        buffer::save(
            path,
            named.map(|(p, values)| (p.name.clone(), p.var.dims(), values)),
        )
    }

    fn load_tensors(&self, path: &Path) -> Result<Vec<Buffer>> {
        let mut file = StateFile::read(path)?;
        let like = |p: &Parameter| Buffer::zeros(p.var.dtype(), 0);
        let parameters = self.parameters().iter();
        let read = parameters
            .map(|p| file.take(&p.name, p.var.dims(), &like(p)?))
            .collect::<Result<_>>()?;
        file.end()?;
        Ok(read)
    }
}
