//! A training run within a job: inputs, progress, checkpoints, signals, exit codes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use wmtp_artifacts::fault;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Crew, JobError, Progress, Run};
use wmtp_model::{Adapters, LoraSettings, LoraTarget, ParamStore, Params, Place, Products};
use wmtp_recipe::seed::stream;
use wmtp_recipe::{Dtype, Optim, Recipe};
use wmtp_records::{Split, data_files, jsonl};

use crate::engine::{MAX_BAD_STEPS, Scored, Side, StepReport, StoppedEarly, Trainer, Update};
use crate::error::{Error, Result};
use crate::gpu::{self, NVIDIA_SMI, Told, Watch};
use crate::memory::Halved;
use crate::ranks::{Order, Ranks};
use crate::saving::Saving;
use crate::throughput::{Epochs, Rates, Throughput, peak_memory_bytes};

/// Paths inside a model bundle.
pub mod bundle {
    /// The weights.
    pub const WEIGHTS: &str = "safetensors/model.safetensors";
    /// The configuration.
    pub const PARAMS: &str = "configs/params.json";
    /// The tokenizer.
    pub const TOKENIZER: &str = "tokenizer/tokenizer.json";
}

/// Precision of weights, sums and updates that a recipe asks for.
pub fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 | Dtype::Bf16 => DType::F32,
        Dtype::F64 => DType::F64,
    }
}

/// Precision of the products with weights that a recipe asks for.
pub fn products(dtype: Dtype) -> Products {
    match dtype {
        Dtype::F32 | Dtype::F64 => Products::F32,
        Dtype::Bf16 => Products::Bf16,
    }
}

/// The ranks that a run shares its steps with.
#[derive(Debug)]
pub struct Team {
    /// This process among them.
    pub ranks: Arc<Ranks>,
    /// The processes of the others, which end with this value.
    _crew: Option<Crew>,
}

impl Team {
    /// Starts the other ranks of a run; one rank is this process alone.
    ///
    /// # Errors
    /// A rank that cannot be started.
    pub fn start(run: &Run, compute: Compute) -> Result<Self, JobError> {
        let ranks = usize::from(compute.ranks);
        if ranks == 1 {
            return Ok(Self {
                ranks: Ranks::alone(),
                _crew: None,
            });
        }
        let (crew, links) = run.crew(ranks, threads_of_each(ranks))?;
        run.event("ranks", &json!({ "ranks": ranks }));
        Ok(Self {
            ranks: Ranks::linked(links),
            _crew: Some(crew),
        })
    }
}

/// Threads of each rank of this machine.
fn threads_of_each(ranks: usize) -> usize {
    (rayon::current_num_threads() / ranks).max(1)
}

/// Does what the rank that leads wants, until it has gone.
///
/// # Errors
/// What only this rank knows of; what all ranks know the first one tells.
pub fn follow(trainer: &mut dyn Trainer) -> Result<(), JobError> {
    let ranks = Arc::clone(trainer.ranks());
    while let Some(order) = ranks.hear()? {
        let done = match order {
            Order::Advance => trainer.advance().map(drop),
            Order::Save(dir) => trainer.save(&dir),
            Order::Restore(dir) => trainer.restore(&dir),
            Order::Finish => trainer.finish().map(drop),
            Order::Score(side, rows) => trainer.score(side, &rows).map(drop),
        };
        match done {
            Err(Error::Rank { .. } | Error::RankLost { .. }) => return Ok(()),
            Err(error) if !error.is_shared() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// What the trained model makes of rows, see [`Trainer::score`], by all ranks: one entry per row.
///
/// # Errors
/// Preempted (143) after a signal, and what scoring says.
pub fn score(
    trainer: &mut dyn Trainer,
    run: &Run,
    side: Side,
    rows: &[usize],
) -> Result<Vec<Vec<f64>>, JobError> {
    let scored = score_in_pieces(trainer, side, rows, || run.flow());
    let untold = trainer.engine_mut().take_halved();
    let halved = scored.as_ref().map_or(&[][..], |scored| &scored.halved);
    tell_halved(run, trainer.step(), [halved, &untold].concat());
    Ok(scored?.of_rows)
}

/// [`score`] piece by piece; `flow` may end it between two.
///
/// # Errors
/// Preempted (143) when it did, and what scoring says.
pub fn score_in_pieces(
    trainer: &mut dyn Trainer,
    side: Side,
    rows: &[usize],
    flow: impl Fn() -> ControlFlow<()>,
) -> Result<Scored, JobError> {
    let mut all = Scored {
        of_rows: vec![Vec::new(); rows.len()],
        halved: Vec::new(),
    };
    for piece in trainer.pieces(side, rows) {
        if flow().is_break() {
            return Err(JobError::preempted());
        }
        fault::point("train:score");
        let rows: Vec<usize> = piece.iter().map(|&position| rows[position]).collect();
        trainer.ranks().order(&Order::Score(side, rows.clone()))?;
        let scored = trainer.score(side, &rows)?;
        for (position, of_row) in piece.into_iter().zip(scored.of_rows) {
            all.of_rows[position] = of_row;
        }
        all.halved.extend(scored.halved);
    }
    Ok(all)
}

/// A trainer whose steps the other ranks do with it.
struct Led<'a, 't> {
    trainer: &'a mut (dyn Trainer + 't),
    ranks: Arc<Ranks>,
    /// Where this rank's share of the processor works; none where it has all of it or a device.
    pool: Option<rayon::ThreadPool>,
}

impl<'a, 't> Led<'a, 't> {
    fn new(trainer: &'a mut (dyn Trainer + 't), device: &Device) -> Result<Self, JobError> {
        let ranks = Arc::clone(trainer.ranks());
        let shares = ranks.are_several() && device.is_cpu();
        let threads = threads_of_each(ranks.world());
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(Self {
            pool: shares.then(pool).transpose().map_err(JobError::internal)?,
            trainer,
            ranks,
        })
    }

    fn advance(&mut self) -> Result<StepReport> {
        self.ranks.order(&Order::Advance)?;
        let trainer = &mut self.trainer;
        match &self.pool {
            Some(pool) => pool.install(|| trainer.advance()),
            None => trainer.advance(),
        }
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.ranks.order(&Order::Save(dir.to_owned()))?;
        self.trainer.save(dir)
    }

    fn restore(&mut self, dir: &Path) -> Result<()> {
        self.ranks.order(&Order::Restore(dir.to_owned()))?;
        self.trainer.restore(dir)
    }

    fn finish(&mut self) -> Result<u64> {
        self.ranks.order(&Order::Finish)?;
        self.trainer.finish()
    }
}

/// Opens the device that a run was told to compute on, and says which it is.
pub fn open_device(place: Place, run: &Run) -> Result<Device> {
    let device = place.open()?;
    let (name, driver) = match wmtp_model::device_uuid(&device) {
        Ok(Some(uuid)) => gpu::names(Path::new(NVIDIA_SMI), &uuid),
        // What is not known is not told.
        Ok(None) | Err(_) => None,
    }
    .unzip();
    run.computes_on(&place.to_string(), name, driver);
    Ok(device)
}

/// Where a training computes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Compute {
    /// Where to compute: cpu, cuda, or cuda:1 for the second device.
    #[arg(long, value_name = "DEVICE", env = "WMTP_DEVICE", default_value_t = Place::BUILT_FOR)]
    device: Place,
    /// Processes that share each step's micro-batches: a GPU each, from DEVICE on, or equal parts of the processor.
    #[arg(
        long,
        value_name = "NUMBER",
        env = "WMTP_RANKS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    ranks: u16,
}

impl Compute {
    /// Opens the device of the rank that leads, and says which it is.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn open(self, run: &Run) -> Result<Device> {
        open_device(self.device, run)
    }

    /// Opens the device of another rank.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn open_for(self, rank: usize) -> Result<Device> {
        Ok(self.device.of_rank(rank).open()?)
    }

    /// What this adds to the settings of a run: a device's arithmetic differs from the CPU's in the last bits, and several
    /// ranks add up in another order, so the results are others. Which of several devices it is makes no difference.
    pub fn options(self) -> serde_json::Value {
        let mut options = serde_json::Map::new();
        if self.device != Place::Cpu {
            options.insert("device".to_owned(), "cuda".into());
        }
        if self.ranks > 1 {
            options.insert("ranks".to_owned(), self.ranks.into());
        }
        options.into()
    }

    /// Checks that the device can drop this share of the adapters' input.
    ///
    /// # Errors
    /// A usage error for a share of a GPU's.
    pub fn check_dropout(self, share: f64) -> Result<(), JobError> {
        if share == 0.0 || self.device == Place::Cpu {
            return Ok(());
        }
        let error = format!(
            "lora.dropout is {share} and --device {}: adapters are trained with dropout on the CPU alone",
            self.device
        );
        Err(JobError::usage(error).hint("set lora.dropout to 0, or give --device cpu"))
    }

    /// Checks that a full step of so many sequences has a micro-batch for every rank.
    ///
    /// # Errors
    /// A usage error that says which settings to change.
    pub fn check(self, (key, sequences): (&str, usize), optim: &Optim) -> Result<(), JobError> {
        let (ranks, micro) = (usize::from(self.ranks), optim.micro_batch_sequences.max(1));
        let count = sequences.div_ceil(micro);
        if ranks <= count {
            return Ok(());
        }
        let error = format!(
            "{ranks} ranks share the micro-batches of a step, and there are {count}: {key} is {sequences}, \
             optim.micro_batch_sequences {micro}"
        );
        let most = sequences / ranks;
        Err(JobError::usage(error).hint(match most {
            0 => format!("give at most {sequences} --ranks"),
            most => format!("set optim.micro_batch_sequences to {most}, or give fewer --ranks"),
        }))
    }
}

/// Model configuration and weights of a fetched bundle.
pub fn load_bundle(dir: &Path, dtype: DType, device: &Device) -> Result<(Params, ParamStore)> {
    let params = Params::load(&dir.join(bundle::PARAMS))?;
    let store = ParamStore::load(&dir.join(bundle::WEIGHTS), &params, dtype, device)?;
    Ok((params, store))
}

/// What adapters go upon, and whose rank they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapted {
    /// The policy.
    Policy,
    /// The trunk of the value model.
    ValueTrunk,
    /// The reference of Rho-1.
    Reference,
}

/// [`load_bundle`] for a model that a recipe trains: under adapters the weights stay frozen, and those of a file in a
/// smaller type take no more memory than there.
pub fn load_adapted(
    dir: &Path,
    recipe: &Recipe,
    adapted: Adapted,
    device: &Device,
) -> Result<(Params, ParamStore)> {
    let dtype = dtype(recipe.model.dtype);
    let Some(lora) = lora(recipe, adapted) else {
        return load_bundle(dir, dtype, device);
    };
    let params = Params::load(&dir.join(bundle::PARAMS))?;
    let store =
        ParamStore::load_adapted(&dir.join(bundle::WEIGHTS), &params, &lora, dtype, device)?;
    Ok((params, store))
}

/// Fresh adapters as a recipe asks for them; none where it trains every weight.
pub fn adapters(
    recipe: &Recipe,
    adapted: Adapted,
    params: &Params,
    device: &Device,
) -> Result<Option<Adapters>> {
    let Some(settings) = lora(recipe, adapted) else {
        return Ok(None);
    };
    let (init, name): (fn(_, _, _, _, _) -> _, _) = match adapted {
        Adapted::Policy => (Adapters::init, "lora"),
        Adapted::Reference => (Adapters::init, "stage1/lora"),
        Adapted::ValueTrunk => (Adapters::init_value_trunk, "stage1/lora"),
    };
    let (seed, dtype) = (stream(recipe.seed, name), dtype(recipe.model.dtype));
    Ok(Some(init(params, settings, seed, dtype, device)?))
}

/// The adapters of a recipe; none where it trains every weight.
fn lora(recipe: &Recipe, adapted: Adapted) -> Option<LoraSettings> {
    use wmtp_recipe::LoraTarget as Word;
    let lora = &recipe.lora;
    let r = match adapted {
        Adapted::Policy => lora.r,
        Adapted::ValueTrunk => recipe.stage1.lora_r,
        Adapted::Reference => recipe.reference.lora_r,
    };
    if r == 0 {
        return None;
    }
    let target = |word: &Word| match word {
        Word::Wq => LoraTarget::Wq,
        Word::Wk => LoraTarget::Wk,
        Word::Wv => LoraTarget::Wv,
        Word::Wo => LoraTarget::Wo,
        Word::W1 => LoraTarget::W1,
        Word::W2 => LoraTarget::W2,
        Word::W3 => LoraTarget::W3,
    };
    Some(LoraSettings {
        r,
        alpha: lora.alpha,
        targets: lora.targets.iter().map(target).collect(),
    })
}

/// Token ids of one split of a fetched data set.
pub fn load_tokens(dir: &Path, split: Split) -> Result<TokenFile> {
    Ok(TokenFile::load(&dir.join(data_files::tokens(split)))?)
}

/// How a trainer is driven.
#[derive(Debug, Clone, Copy)]
pub struct Drive<'a> {
    /// Where it computes.
    pub device: &'a Device,
    /// What it trains, for people.
    pub label: &'a str,
    /// Whether many rows are scored next: the state after the last step is then saved, for a run that is stopped or dies
    /// at that.
    pub is_scored: bool,
}

/// Runs a trainer to its end and puts the best weights into place; tells the step that they come from.
///
/// Goes on from the run's last checkpoint, saves one after as many steps or minutes as the recipe says, stops
/// between two steps on a signal, and keeps the state when the fallbacks are used up.
///
/// # Errors
/// Preempted (143) after a signal, numeric (78) at the third bad step in a row, no room (73) when memory is too small for
/// one sequence at a time.
pub fn drive(trainer: &mut dyn Trainer, run: &Run, drive: Drive<'_>) -> Result<u64, JobError> {
    let device = drive.device;
    check_held_out(trainer, run)?;
    let mut led = Led::new(trainer, device)?;
    let resumed = run.latest_checkpoint()?;
    if let Some((_, dir)) = &resumed {
        led.restore(&std::path::absolute(dir)?)?;
    }
    let saved = resumed.map(|(step, _)| step);
    let mut saving = Saving::new(&run.recipe().optim, saved, run.elapsed());
    if device.is_cpu() && !products(run.recipe().model.dtype).are_fast() {
        run.warning(
            "this processor has no AVX-512: `model.dtype: bf16` gives the same numbers here, but slower than f32",
        );
    }
    let total = led.trainer.total_steps();
    let progress = run.progress(drive.label, "step", total);
    progress.set(led.trainer.step());
    let mut pace = Pace::new(&led, run, device)?;
    let mut trained = Ok(());
    while trained.is_ok() && !led.trainer.is_done() {
        trained = step(&mut led, run, &mut saving, &mut pace, &progress);
    }
    pace.finish(run, device);
    trained?;
    progress.finish();
    if let Some(stopped) = led.trainer.stopped_early() {
        tell_early_stop(run, &stopped, total);
    }
    if run.should_stop() {
        return Err(stop(&led, run, &mut saving)?);
    }
    if drive.is_scored {
        save_unless_saved(&led, run, &mut saving)?;
    }
    Ok(led.finish()?)
}

/// Without a validation no weights are better than others: the last ones are published. A run that is to stop by its
/// validations cannot be meant so.
fn check_held_out(trainer: &dyn Trainer, run: &Run) -> Result<(), JobError> {
    if trainer.num_held_out() > 0 {
        return Ok(());
    }
    let what = "the validation split holds no row to validate on";
    if run.recipe().optim.early_stop_patience.is_some() {
        let error = format!("{what}, and optim.early_stop_patience stops by validations");
        return Err(JobError::bad_input(error).hint(
            "make the data set with a data.validation_share above 0, or leave optim.early_stop_patience out",
        ));
    }
    run.warning(format!(
        "{what}: the weights of the last step count as the best ones"
    ));
    Ok(())
}

/// One step of a run, with all that people and files are to know of it, and the save that may be due behind it.
fn step(
    led: &mut Led<'_, '_>,
    run: &Run,
    saving: &mut Saving,
    pace: &mut Pace,
    progress: &Progress,
) -> Result<(), JobError> {
    if run.should_stop() {
        return Err(stop(led, run, saving)?);
    }
    let (started, step) = (run.elapsed(), led.trainer.step());
    let report = match led.advance() {
        Ok(report) => report,
        Err(error) => {
            tell_failure(run, led, &error);
            // A step that was counted lacks its validation.
            if error.is_shared() && led.trainer.step() == step {
                save_behind_failure(led, run, saving);
            }
            return Err(error.into());
        }
    };
    tell_fallbacks(run, &report);
    run.count_tokens(report.work.tokens);
    let took = run.elapsed().saturating_sub(started);
    let rate = pace.tell(run, led, &report, took);
    let loss = report.metric("train_loss").unwrap_or(f64::NAN);
    progress.detail(format!("loss {loss:.3}, {rate:.0} tokens/s"));
    progress.set(report.step);
    fault::point("train:step");
    if saving.is_due(report.step, run.elapsed()) && !led.trainer.is_done() {
        save(led, run, saving)?;
    }
    Ok(())
}

/// How fast a run is, step by step.
struct Pace {
    throughput: Throughput,
    epochs: Epochs,
    /// Floating-point operations per second that the devices of all ranks reach.
    peak: f64,
    gpu: Option<Watch>,
    /// Time that all validations up to the last step took.
    validating: Duration,
}

impl Pace {
    fn new(led: &Led<'_, '_>, run: &Run, device: &Device) -> Result<Self> {
        Ok(Self {
            throughput: Throughput::default(),
            epochs: Epochs::new(led.trainer.steps_per_epoch(), led.trainer.step()),
            peak: peak_flops(run, device)? * devices(&led.ranks, device),
            gpu: watched(device, run),
            validating: led.trainer.engine().validating(),
        })
    }

    /// Counts a step that took so long, its validation included, and reports its numbers; returns real tokens per
    /// second over all steps so far.
    fn tell(&mut self, run: &Run, led: &Led<'_, '_>, report: &StepReport, took: Duration) -> f64 {
        let validating = led.trainer.engine().validating();
        let validation = validating.saturating_sub(self.validating);
        self.validating = validating;
        let (whole, validation) = (took.as_secs_f64(), validation.as_secs_f64());
        let secs = self.throughput.add(report.work, whole, validation);
        let of_training = report.metrics.iter().chain(&report.live);
        let mut metrics: Vec<(&str, f64)> = of_training
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        let rates = Rates::of(report.work, secs);
        metrics.push(("tokens_per_second", rates.tokens));
        metrics.push(("padded_tokens_per_second", rates.positions));
        metrics.push(("samples_per_second", rates.sequences));
        let pass = self.epochs.add(report.step, whole);
        metrics.extend(pass.map(|secs| ("epoch_secs", secs)));
        metrics.push(("mfu", rates.flops / self.peak));
        metrics.push(("step_secs", secs));
        metrics.extend(self.gpu.iter().flat_map(|watch| told(watch, run)));
        run.metrics(report.step, &metrics);
        self.throughput.rates().tokens
    }

    /// Says how fast the steps of this attempt were: in words for people, in numbers for whoever reads its events.
    fn finish(&self, run: &Run, device: &Device) {
        let Some(summary) = self
            .throughput
            .summary(self.peak, peak_memory_bytes(device))
        else {
            return;
        };
        run.log(summary.to_string());
        run.event("throughput", &json!(summary));
    }
}

/// A look at the GPU that a run computes on; none on the CPU. That there is no look fails no run.
fn watched(device: &Device, run: &Run) -> Option<Watch> {
    let watch = match wmtp_model::device_uuid(device) {
        Ok(None) => return None,
        Ok(Some(uuid)) => Watch::start(Path::new(NVIDIA_SMI), &uuid).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    watch.map_err(|reason| not_recorded(run, &reason)).ok()
}

/// What the GPU did since the last step that asked.
fn told(watch: &Watch, run: &Run) -> Vec<(&'static str, f64)> {
    match watch.take() {
        Some(Told::Use(metrics)) => metrics,
        Some(Told::Nothing(reason)) => {
            not_recorded(run, &reason);
            Vec::new()
        }
        None => Vec::new(),
    }
}

fn not_recorded(run: &Run, reason: &str) {
    run.log(format!("the use of the GPU is not recorded: {reason}"));
}

/// Every fallback is an event with its numbers, and a warning for people.
fn tell_fallbacks(run: &Run, report: &StepReport) {
    let step = report.step;
    tell_halved(run, step, report.halved.clone());
    if let Update::Skipped {
        in_a_row,
        lr_factor,
    } = report.update
    {
        run.warning(format!(
            "step {step}: loss or gradient is not finite ({in_a_row} of {MAX_BAD_STEPS} in a row); the step is skipped \
             and the learning rate is now {lr_factor} of the schedule's"
        ));
        tell_not_finite(run, step, in_a_row, Some(lr_factor));
    }
}

/// The same of a step that fails: what it tried is told, too.
fn tell_failure(run: &Run, led: &mut Led<'_, '_>, error: &Error) {
    let step = led.trainer.step() + 1;
    tell_halved(run, step, led.trainer.engine_mut().take_halved());
    if let Error::Numeric { in_a_row, .. } = error {
        tell_not_finite(run, step, *in_a_row, None);
    }
}

fn tell_not_finite(run: &Run, step: u64, in_a_row: u32, lr_factor: Option<f64>) {
    let data = json!({
        "cause": "not_finite",
        "step": step,
        "in_a_row": in_a_row,
        "most_in_a_row": MAX_BAD_STEPS,
        "lr_factor": lr_factor,
    });
    run.event("fallback", &data);
}

fn tell_halved(run: &Run, step: u64, halved: Vec<Halved>) {
    for halved in halved {
        let Halved {
            from, to, cause, ..
        } = &halved;
        run.warning(format!(
            "step {step}: out of memory: {cause}; from now on {to} sequences go through the model at once, not {from}: \
             the steps are the same but for rounding, and slower"
        ));
        let data = json!({
            "cause": "out_of_memory",
            "step": step,
            "micro_batch_sequences": to,
            "micro_batch_sequences_before": from,
            "needed_bytes": halved.needed_bytes,
            "available_bytes": halved.available_bytes,
        });
        run.event("fallback", &data);
    }
}

fn tell_early_stop(run: &Run, stopped: &StoppedEarly, total: u64) {
    let StoppedEarly {
        step,
        validations,
        best_loss,
        best_step,
    } = stopped;
    run.log(format!(
        "stopped early after step {step} of {total}: {validations} validations in a row without an improvement; the \
         smallest loss, {best_loss:.4}, was seen after step {best_step}"
    ));
    let data = json!({
        "step": step,
        "total_steps": total,
        "validations": validations,
        "best_loss": best_loss,
        "best_step": best_step,
    });
    run.event("stopped_early", &data);
}

/// Floating-point operations per second that this machine reaches in a plain matrix product of the run's kind and
/// precision: the best of a few.
fn peak_flops(run: &Run, device: &Device) -> Result<f64> {
    const TRIES: usize = 3;
    // On the CPU rows enough for every core, and a weight that fits its cache; more for a device.
    let (rows, width) = if device.is_cpu() {
        (2048, 512)
    } else {
        (8192, 4096)
    };
    let asked = run.recipe().model.dtype;
    let (dtype, products) = (dtype(asked), products(asked));
    let x = Tensor::ones((rows, width), dtype, device)?;
    let weight = Tensor::ones((width, width), dtype, device)?;
    let mut best = 0.0_f64;
    for _ in 0..TRIES {
        let started = run.elapsed();
        wmtp_model::ops::linear_with(&x, &weight, products)?;
        device.synchronize()?;
        let secs = run.elapsed().saturating_sub(started).as_secs_f64();
        best = best.max(2.0 * (rows * width * width) as f64 / secs.max(1e-9));
    }
    Ok(best)
}

/// How many devices the ranks have: all of them one processor, or one GPU each.
fn devices(ranks: &Ranks, device: &Device) -> f64 {
    if device.is_cpu() {
        1.0
    } else {
        ranks.world() as f64
    }
}

/// Saves what continuing needs.
fn save(led: &Led<'_, '_>, run: &Run, saving: &mut Saving) -> Result<(), JobError> {
    let (step, bytes) = (led.trainer.step(), led.trainer.engine().state_bytes());
    let began = run.elapsed();
    let dir = fresh_dir(std::path::absolute(run.scratch().join("resume"))?)?;
    led.save(&dir)?;
    run.save_checkpoint(step, &dir, led.trainer.best_loss())?;
    saving.count(step, bytes, began, run.elapsed());
    Ok(())
}

fn save_unless_saved(led: &Led<'_, '_>, run: &Run, saving: &mut Saving) -> Result<(), JobError> {
    if saving.step() == Some(led.trainer.step()) {
        return Ok(());
    }
    save(led, run, saving)
}

/// Saves what a later attempt, with more memory, goes on from. The run ends with its failure in any case: a state that could
/// not be saved is only told of, and a run that has done no step has none.
fn save_behind_failure(led: &Led<'_, '_>, run: &Run, saving: &mut Saving) {
    let step = led.trainer.step();
    if step == 0 {
        return;
    }
    if let Err(error) = save_unless_saved(led, run, saving) {
        run.warning(format!("the state of step {step} is not saved: {error}"));
        let saved = saving.step();
        run.event("not_saved", &json!({ "step": step, "saved_step": saved }));
    }
}

/// Ends a run that was told to stop, with what it ends with: its state is saved where the rest of the grace is enough for
/// that. An upload that the kill cuts off would be of no use to anyone.
fn stop(led: &Led<'_, '_>, run: &Run, saving: &mut Saving) -> Result<JobError, JobError> {
    let left = run.grace_left();
    match saving.unsaved(led.trainer.step(), led.trainer.engine().state_bytes(), left) {
        None => save_unless_saved(led, run, saving)?,
        Some(unsaved) => {
            run.warning(unsaved.to_string());
            run.event("not_saved", &json!(unsaved));
        }
    }
    Ok(JobError::preempted())
}

fn fresh_dir(dir: PathBuf) -> Result<PathBuf, JobError> {
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        use wmtp_model::Error as Model;
        let (exit, hint) = (error.exit(), hint(&error));
        let job_error = match error {
            Error::Io { source, path } | Error::Model(Model::Io { source, path }) => {
                let what = format!("cannot access {}", path.display());
                let error = match source.kind() {
                    // An artifact without a file that its kind has.
                    std::io::ErrorKind::NotFound => Self::bad_input(source),
                    _ => Self::from(source),
                };
                error.context(what)
            }
            other => Self::new(exit, other),
        };
        match hint {
            Some(hint) => job_error.hint(hint),
            None => job_error,
        }
    }
}

/// What the reader can do about an error.
fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::OutOfMemory(_) | Error::NoRoom(_) => Some(
            "give the job more memory or set optim.activation_mib, and start it again: it goes on from its last saved state, where \
             there is one; a data set of a lower data.max_length needs less, too",
        ),
        Error::Model(wmtp_model::Error::Device { .. }) => {
            Some("on a machine without the device, --device cpu takes the processor")
        }
        Error::RankLost { .. } => Some(
            "what a lost rank said stands above; the run goes on from its last saved state when it is started again",
        ),
        Error::Numeric { .. } => {
            Some("lower optim.lr or raise optim.warmup_ratio: with them another run begins")
        }
        _ => None,
    }
}

/// The resolved recipe, cut down to the settings that were hashed: the same key gives the same bytes.
pub fn write_recipe(path: &Path, recipe: &Recipe, options: &serde_json::Value) -> Result<()> {
    let mut kept = serde_json::Map::new();
    let tree = recipe.to_json();
    for key in options
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
    {
        let Some(value) = tree.pointer(&format!("/{}", key.replace('.', "/"))) else {
            continue;
        };
        match key.split_once('.') {
            None => {
                kept.insert(key.clone(), value.clone());
            }
            Some((section, leaf)) => {
                let section = kept.entry(section).or_insert_with(|| serde_json::json!({}));
                section[leaf] = value.clone();
            }
        }
    }
    Ok(jsonl::write_json(path, &kept)?)
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::{Exit, Links};

    use super::*;
    use crate::engine::{Engine, OptimSettings};
    use crate::error::Shortage;

    /// A trainer of a rank that does not lead, whose steps all end alike.
    struct Failing {
        engine: Engine,
        error: fn() -> Error,
    }

    impl Failing {
        fn new(ranks: &Arc<Ranks>, error: fn() -> Error) -> Self {
            let settings = OptimSettings::of(&Optim::default());
            let engine = Engine::among(ranks, Vec::new(), &settings, 2).unwrap();
            Self { engine, error }
        }
    }

    impl Trainer for Failing {
        fn engine(&self) -> &Engine {
            &self.engine
        }

        fn engine_mut(&mut self) -> &mut Engine {
            &mut self.engine
        }

        fn steps_per_epoch(&self) -> u64 {
            2
        }

        fn num_held_out(&self) -> usize {
            1
        }

        fn advance(&mut self) -> Result<StepReport> {
            Err((self.error)())
        }

        fn save(&self, _: &Path) -> Result<()> {
            Err((self.error)())
        }

        fn restore(&mut self, _: &Path) -> Result<()> {
            Err((self.error)())
        }

        fn score(&mut self, _: Side, _: &[usize]) -> Result<Scored> {
            Err((self.error)())
        }

        fn pieces(&self, _: Side, _: &[usize]) -> Vec<Vec<usize>> {
            Vec::new()
        }
    }

    #[test]
    fn dropout_is_refused_on_a_device_before_it_is_opened() {
        let on = |device| Compute { device, ranks: 1 };
        assert!(on(Place::Cpu).check_dropout(0.05).is_ok());
        let cuda = on("cuda:1".parse().unwrap());
        assert!(cuda.check_dropout(0.0).is_ok());
        let refusal = cuda.check_dropout(0.05).unwrap_err();
        assert_eq!(refusal.exit(), Exit::Usage);
        let said = refusal.to_string();
        assert!(
            said.contains("lora.dropout is 0.05") && said.contains("cuda:1"),
            "{said}"
        );
    }

    #[test]
    fn a_rank_goes_on_with_what_all_know_and_ends_with_what_it_alone_knows() {
        type Fails = fn() -> Error;
        fn shortage() -> Shortage {
            Shortage::Allocator("nothing left".to_owned())
        }
        let numeric = || Error::Numeric {
            step: 3,
            in_a_row: 3,
        };
        let lost = || Error::RankLost {
            rank: 0,
            world: 2,
            reason: "it has ended".to_owned(),
        };
        let cases: [(Fails, Option<Exit>); 5] = [
            (|| Error::NoRoom(shortage()), None),
            (|| Error::OutOfMemory(shortage()), Some(Exit::NoRoom)),
            (|| Error::BadData("a row".to_owned()), Some(Exit::BadInput)),
            (numeric, None),
            (lost, None),
        ];
        for (error, exit) in cases {
            let mut links = Links::among_threads(2).unwrap();
            let ranks = Ranks::linked(links.pop().unwrap());
            let leader = Ranks::linked(links.pop().unwrap());
            leader.order(&Order::Advance).unwrap();
            leader.order(&Order::Save("/a folder".into())).unwrap();
            drop(leader);
            let followed = follow(&mut Failing::new(&ranks, error));
            assert_eq!(followed.err().map(|error| error.exit()), exit);
        }
    }

    #[test]
    fn a_devices_full_memory_is_no_room_and_a_missing_file_bad_input() {
        let exit = |error: Error| JobError::from(error).exit();
        // As the driver says it, through candle.
        let full =
            || candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        assert_eq!(exit(full().into()), Exit::NoRoom);
        assert_eq!(exit(wmtp_model::Error::from(full()).into()), Exit::NoRoom);
        let other = candle_core::Error::msg("shape mismatch");
        assert_eq!(exit(wmtp_model::Error::from(other).into()), Exit::Internal);
        let missing = Params::load(Path::new("/nowhere/params.json")).unwrap_err();
        assert_eq!(exit(missing.into()), Exit::BadInput);
    }
}
