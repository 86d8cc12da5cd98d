//! Training a policy: multi-token prediction with weighted targets.
//!
//! The tuned reference of Rho-1 is the same thing with one head and every weight 1.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wmtp_data_sets::{BatchPlan, TokenFile, pad_batch};
use wmtp_model::loss::SPAN_ROWS;
use wmtp_model::{
    Adapters, Dropout, Horizon, MtpModel, ParamStore, Params, Products, Rotary, StepDropout,
};
use wmtp_records::jsonl;
use wmtp_weighting::{Histogram, WeightStats};

use crate::buffer;
use crate::engine::{
    Engine, OptimSettings, Scored, Side, StepReport, Trainer, Update, Validation, as_room_allows,
    end_step,
};
use crate::error::{Error, Result};
use crate::heads::{HeadTargets, Learner, StepLoss, Target, accumulate, target_counts};
use crate::inference::{
    all_cross_entropies, batch_cross_entropies, head_cross_entropies, head_means, largest_batch,
    passing_bytes, pieces,
};
use crate::lines::Lines;
use crate::memory::allocator;
use crate::optimizer::{Gradients, parameters};
use crate::ranks::{Exact, Ranks};
use crate::scorer::{ExcessStats, Scorer, StepRow, StepStats};
use crate::throughput::{Learning, Work};

/// Bins of the weight histogram.
const BINS: usize = 60;

/// Rows whose weights are shown to readers.
const SHOWN_ROWS: usize = 6;

mod files {
    pub(super) const STATE: &str = "policy.json";
    pub(super) const WEIGHTS: &str = "weights.jsonl";
}

/// Settings of a policy run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicySettings {
    /// Peak learning rate.
    pub lr: f64,
    /// The optimiser.
    pub optim: OptimSettings,
    /// Passes over the training rows; fractions are fine.
    pub epochs: f64,
    /// Sequences per optimizer step.
    pub batch_sequences: usize,
    /// How products with weights are computed in training steps; validation is f32.
    pub products: Products,
    /// Bytes that the trunk's activations may take, see [`Learner`].
    pub activation_bytes: Option<usize>,
    /// What training steps drop of the adapters' input; nothing else drops any.
    pub dropout: Option<Dropout>,
    /// Upper end of the weight histogram.
    pub w_max: f64,
    /// Seed of the order of rows.
    pub order_seed: u64,
}

/// Rows that a run learns from or is validated on.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// The file.
    pub file: &'a TokenFile,
    /// Which of its rows.
    pub rows: Vec<usize>,
}

impl<'a> Rows<'a> {
    /// The correct rows of a file.
    pub fn correct(file: &'a TokenFile) -> Self {
        Self {
            file,
            rows: file.correct_rows(),
        }
    }
}

/// Checks that a model has a position for every token of the longest row: its rotary table ends somewhere.
///
/// # Errors
/// [`Error::BadData`] that says which split has a longer one.
pub(crate) fn check_lengths(train: &Rows<'_>, validation: &Rows<'_>) -> Result<()> {
    for (split, rows) in [("training", train), ("validation", validation)] {
        let (longest, most) = (rows.file.max_len(), Rotary::POSITIONS);
        if longest > most {
            return Err(Error::BadData(format!(
                "the longest row of the {split} split has {longest} tokens, and the model's positions end at {most}: \
                 make the data set with a data.max_length of at most {most}"
            )));
        }
    }
    Ok(())
}

/// A policy in training.
pub struct PolicyTrainer<'a> {
    engine: Engine,
    gradients: Gradients,
    params: &'a Params,
    store: &'a ParamStore,
    adapters: Option<&'a Adapters>,
    model: MtpModel,
    train: Rows<'a>,
    validation: Rows<'a>,
    plan: StepPlan,
    scorer: Box<dyn Scorer>,
    settings: PolicySettings,
    record: WeightRecord,
}

/// The model that a run starts from, and what it trains of it: the adapters where there are any, which leaves the store's
/// weights as they are.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// The model's configuration.
    pub params: &'a Params,
    /// Its weights.
    pub store: &'a ParamStore,
    /// Adapters upon them.
    pub adapters: Option<&'a Adapters>,
}

/// What is kept of the weights.
#[derive(Debug)]
struct WeightRecord {
    lines: Lines,
    histogram: Histogram,
    shown: BTreeMap<usize, Vec<f64>>,
}

/// One line of `weights.jsonl`.
#[derive(Serialize)]
struct WeightLine<'a> {
    step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<usize>,
    #[serde(flatten)]
    stats: &'a WeightStats,
}

/// Weight statistics of a step as live metrics; where each head has weights of its own, under its number.
fn live_statistics(head: Option<usize>, stats: &WeightStats) -> [(String, f64); 9] {
    let suffix = head.map_or_else(String::new, |head| format!("_head_{head}"));
    [
        ("mean", stats.mean),
        ("std", stats.std),
        ("min", stats.min),
        ("max", stats.max),
        ("entropy", stats.entropy),
        ("clip_ratio_low", stats.clip_low),
        ("clip_ratio_high", stats.clip_high),
        ("projection_c", stats.projection_c),
        ("temperature", stats.temperature),
    ]
    .map(|(name, value)| (format!("weight_{name}{suffix}"), value))
}

/// What Rho-1 compared in a step as live metrics: means over the targets of all heads, and each head's share of selected
/// targets where some are selected.
fn live_excess(heads: &[(usize, ExcessStats)]) -> Vec<(String, f64)> {
    let targets: usize = heads.iter().map(|(_, excess)| excess.targets).sum();
    if targets == 0 {
        return Vec::new();
    }
    let mean = |of: fn(&ExcessStats) -> f64| {
        heads.iter().map(|(_, excess)| of(excess)).sum::<f64>() / targets as f64
    };
    let mut live = vec![
        ("rho1_excess_mean".to_owned(), mean(|excess| excess.score)),
        ("rho1_policy_ce".to_owned(), mean(|excess| excess.policy_ce)),
        ("rho1_ref_ce".to_owned(), mean(|excess| excess.reference_ce)),
    ];
    live.extend(heads.iter().filter_map(|(head, excess)| {
        let share = excess.selected? as f64 / excess.targets as f64;
        Some((format!("rho1_selected_ratio_head_{head}"), share))
    }));
    live
}

/// Resume state beyond the engine's.
#[derive(Serialize, Deserialize)]
struct PolicyState {
    scorer: serde_json::Value,
    histogram: Vec<u64>,
    shown: BTreeMap<usize, Vec<f64>>,
}

/// Weights of one optimizer step while they are being collected.
#[derive(Default)]
struct StepWeights {
    all: Vec<f64>,
    by_row: BTreeMap<usize, Vec<f64>>,
    /// The policy's cross-entropies that the scorer was given, by the slot of the first target and the horizon; kept where
    /// other ranks need them.
    policy_ce: BTreeMap<(usize, usize), Vec<f64>>,
}

/// An optimizer step, or one rank's part of it.
struct StepSums {
    loss: StepLoss,
    heard: StepWeights,
}

/// One rank's part of a step as it crosses to the others.
#[derive(Serialize, Deserialize)]
struct SentSums {
    /// Weighted and unweighted, head by head.
    heads: Vec<[Exact; 2]>,
    policy_ce: Vec<((usize, usize), Vec<Exact>)>,
}

impl From<StepSums> for SentSums {
    fn from(part: StepSums) -> Self {
        let exact = |losses: Vec<f64>| losses.into_iter().map(Exact::from).collect();
        let policy_ce = part.heard.policy_ce.into_iter();
        Self {
            heads: part
                .loss
                .heads
                .iter()
                .map(|head| [head.weighted.into(), head.unweighted.into()])
                .collect(),
            policy_ce: policy_ce
                .map(|(key, losses)| (key, exact(losses)))
                .collect(),
        }
    }
}

/// Passes every question on to the scorer and notes what it answered.
struct Listening<'a> {
    scorer: &'a mut dyn Scorer,
    rows: &'a [usize],
    shown: &'a BTreeMap<usize, Vec<f64>>,
    keeps_ce: bool,
    heard: StepWeights,
}

impl Scorer for Listening<'_> {
    fn begin_step(&mut self, step: u64, rows: &[StepRow]) -> Result<()> {
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
    ) -> Result<Vec<f64>> {
        let weights = self.scorer.weigh(horizon, targets, policy_ce)?;
        if weights.len() != targets.len() {
            let (found, expected) = (weights.len(), targets.len());
            let reason = format!("the scorer gave {found} weights for {expected} targets");
            return Err(Error::BadData(reason));
        }
        if let (true, Some(first), Some(policy_ce)) = (self.keeps_ce, targets.first(), policy_ce) {
            let key = (first.slot, horizon.get());
            self.heard.policy_ce.insert(key, policy_ce.to_vec());
        }
        self.heard.all.extend(&weights);
        if horizon.get() == 1 {
            for (target, weight) in targets.iter().zip(&weights) {
                let row = self.rows[target.slot];
                if self.shown.contains_key(&row) {
                    self.heard
                        .by_row
                        .entry(row)
                        .or_default()
                        .push(round(*weight));
                }
            }
        }
        Ok(weights)
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        self.scorer.end_step()
    }
}

/// Weights of rows that were to go through the model together, but for which there is no room: they are made from all
/// of them, as if there were, and then looked up. Costs a forward pass per head more, which drops what the step drops.
struct Made {
    weights: BTreeMap<(Horizon, Target), f64>,
}

impl Made {
    fn of(
        (frozen, dropout): (&MtpModel, Option<StepDropout>),
        file: &TokenFile,
        rows: &[usize],
        at_once: usize,
        first_slot: usize,
        scorer: &mut dyn Scorer,
    ) -> Result<Self> {
        let batch = pad_batch(file, rows);
        let mut weights = BTreeMap::new();
        for horizon in frozen.params().horizons() {
            let targets = HeadTargets::of(&batch, horizon, first_slot).targets;
            let policy_ce = match dropout {
                None => head_cross_entropies(frozen, file, rows, at_once, horizon)?,
                Some(dropout) => {
                    let mut of_rows = Vec::with_capacity(rows.len());
                    for (number, rows) in rows.chunks(at_once).enumerate() {
                        let slot = first_slot + number * at_once;
                        let model = frozen.clone().with_dropout(dropout, slot);
                        let answers = batch_cross_entropies(&model, file, rows, &[horizon])?;
                        of_rows.extend(answers.into_iter().map(|heads| heads.concat()));
                    }
                    of_rows
                }
            };
            let policy_ce = policy_ce.concat();
            // Where one is not finite, the step is skipped by the pass that computes it again.
            let of_head = if policy_ce.iter().all(|ce| ce.is_finite()) {
                scorer.weigh(horizon, &targets, Some(&policy_ce))?
            } else {
                vec![f64::NAN; targets.len()]
            };
            let keys = targets.into_iter().map(|target| (horizon, target));
            weights.extend(keys.zip(of_head));
        }
        Ok(Self { weights })
    }
}

impl Scorer for Made {
    fn begin_step(&mut self, _: u64, _: &[StepRow]) -> Result<()> {
        Ok(())
    }

    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        _: Option<&[f64]>,
    ) -> Result<Vec<f64>> {
        let weight = |&target: &Target| self.weights[&(horizon, target)];
        Ok(targets.iter().map(weight).collect())
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        Vec::new()
    }
}

/// The model without a graph.
fn frozen(params: &Params, store: &ParamStore, adapters: Option<&Adapters>) -> Result<MtpModel> {
    Ok(match adapters {
        Some(adapters) => MtpModel::adapted_frozen(params, store, adapters)?,
        None => MtpModel::frozen(params, store)?,
    })
}

/// Four decimals are plenty for display, and such a number survives JSON exactly.
fn round(weight: f64) -> f64 {
    (weight * 1e4).round() / 1e4
}

impl<'a> PolicyTrainer<'a> {
    /// Prepares a run of these ranks; nothing is computed yet.
    ///
    /// # Errors
    /// [`Error::BadData`] when there are no training rows, or rows that are longer than the model reads.
    pub fn new(
        weights: Weights<'a>,
        train: Rows<'a>,
        validation: Rows<'a>,
        scorer: Box<dyn Scorer>,
        settings: PolicySettings,
        ranks: &Arc<Ranks>,
    ) -> Result<Self> {
        let Weights {
            params,
            store,
            adapters,
        } = weights;
        if train.rows.is_empty() {
            let reason = "the training split holds no row that is known to be correct";
            return Err(Error::BadData(reason.to_owned()));
        }
        check_lengths(&train, &validation)?;
        let plan = plan(
            &train,
            settings.epochs,
            settings.batch_sequences,
            settings.order_seed,
        );
        let total = plan.steps.len() as u64;
        let trained = adapters.map_or(store, Adapters::store);
        let trainable = parameters(trained, settings.lr);
        let engine = Engine::among(ranks, trainable, &settings.optim, total)?;
        let shown = shown_rows(&train.rows);
        Ok(Self {
            gradients: Gradients::zeros(engine.parameters())?,
            model: match adapters {
                Some(adapters) => MtpModel::adapted(params, store, adapters)?,
                None => MtpModel::new(params, store)?,
            }
            .with_products(settings.products),
            record: WeightRecord {
                lines: Lines::default(),
                histogram: Histogram::new(0.0, settings.w_max, BINS),
                shown: shown.into_iter().map(|row| (row, Vec::new())).collect(),
            },
            engine,
            params,
            store,
            adapters,
            train,
            validation,
            plan,
            scorer,
            settings,
        })
    }

    /// Makes sure that there is room for the largest micro-batch of a step, on all ranks.
    fn admit(&mut self, rows: &[usize]) -> Result<()> {
        let micro = rows.chunks(self.engine.micro_batch_sequences());
        let positions = micro.map(|rows| pad_batch(self.train.file, rows).ids.len());
        let learner = Learner {
            model: &self.model,
            parameters: self.engine.parameters(),
            activation_bytes: self.settings.activation_bytes,
            dropout: self.dropout(),
        };
        let bytes = learner.peak_bytes(positions.max().unwrap_or(0));
        self.engine.admit(bytes)
    }

    /// Makes sure that there is room for these rows on their way through the frozen model, on all ranks.
    fn admit_passing(&mut self, file: &TokenFile, rows: &[usize]) -> Result<()> {
        let positions = largest_batch(file, rows, self.engine.micro_batch_sequences());
        let unembedding = self.model.unembedding();
        let logits = positions.min(SPAN_ROWS) * self.params.vocab_size;
        let output = (unembedding.elem_count() + logits) * unembedding.dtype().size_in_bytes();
        let of_blocks = passing_bytes(self.params, positions, unembedding.dtype());
        self.engine.admit(of_blocks + output)
    }

    /// What the next step drops of the adapters' input.
    fn dropout(&self) -> Option<StepDropout> {
        let step = self.engine.step();
        self.settings.dropout.map(|dropout| dropout.of_step(step))
    }

    fn no_sums(&self, rows: &[usize]) -> StepLoss {
        let horizons: Vec<Horizon> = self.params.horizons().collect();
        StepLoss::new(&target_counts(self.train.file, rows, &horizons))
    }

    /// The step's rows that are weighed together, each group with the slot of its first row.
    fn groups<'r>(
        &self,
        rows: &'r [usize],
    ) -> impl Iterator<Item = (usize, &'r [usize])> + use<'r> {
        let size = self.settings.optim.micro_batch_sequences.max(1);
        let groups = rows.chunks(size).enumerate();
        groups.map(move |(number, group)| (number * size, group))
    }

    /// What a step has to do on all ranks.
    fn work(&self, rows: &[usize], loss: &StepLoss) -> Work {
        let learning = match self.adapters {
            Some(_) => Learning::Through,
            None => Learning::Trained,
        };
        let at_once = self.engine.micro_batch_sequences();
        let horizons: Vec<Horizon> = self.params.horizons().collect();
        let mut work = Work::default();
        for micro in self
            .groups(rows)
            .flat_map(|(_, group)| group.chunks(at_once))
        {
            let batch = pad_batch(self.train.file, micro);
            let trunk = self.params.num_trunk_blocks();
            work = work.with_batch(&batch, (trunk, learning), self.params);
            for targets in target_counts(self.train.file, micro, &horizons) {
                work = work.with_head(&batch, targets, learning, self.params);
            }
        }
        let targets: Vec<usize> = loss.heads.iter().map(|head| head.count).collect();
        let positions = work.positions as usize;
        let of_adapters = |one: &Adapters| one.product_flops(self.params, positions, &targets);
        work.with_adapters(self.adapters.map_or(0.0, of_adapters))
    }

    /// A listener to the scorer, which begins the step.
    fn listen<'s>(
        scorer: &'s mut dyn Scorer,
        shown: &'s BTreeMap<usize, Vec<f64>>,
        step: u64,
        (file, rows): (&TokenFile, &'s [usize]),
        keeps_ce: bool,
    ) -> Result<Listening<'s>> {
        let targets = |&row: &usize| StepRow {
            row,
            targets: file.row(row).response_len(),
        };
        let step_rows: Vec<StepRow> = rows.iter().map(targets).collect();
        scorer.begin_step(step, &step_rows)?;
        Ok(Listening {
            scorer,
            rows,
            shown,
            keeps_ce,
            heard: StepWeights::default(),
        })
    }

    /// This rank's part of one optimizer step; its gradients are left in `self.gradients`.
    fn step_part(&mut self, rows: &[usize]) -> Result<StepSums> {
        let ranks = Arc::clone(self.engine.ranks());
        let (file, groups) = (self.train.file, self.groups(rows));
        let dropout = self.dropout();
        let mut loss = self.no_sums(rows);
        let mut scorer = Self::listen(
            self.scorer.as_mut(),
            &self.record.shown,
            self.engine.step(),
            (file, rows),
            ranks.are_several(),
        )?;
        self.gradients.clear()?;
        let learner = Learner {
            model: &self.model,
            parameters: self.engine.parameters(),
            activation_bytes: self.settings.activation_bytes,
            dropout,
        };
        let at_once = self.engine.micro_batch_sequences();
        let mine = groups
            .enumerate()
            .filter(|(number, _)| ranks.takes(*number));
        'step: for (_, (mut first_slot, group)) in mine {
            let mut made = None;
            if at_once < group.len() && scorer.needs_policy_ce() {
                // The policy whose weights these are computes as the step does.
                let frozen = frozen(self.params, self.store, self.adapters)?
                    .with_products(self.settings.products);
                let frozen = (&frozen, dropout);
                let weights = Made::of(frozen, file, group, at_once, first_slot, &mut scorer)?;
                made = Some(weights);
            }
            for micro in group.chunks(at_once) {
                let batch = pad_batch(file, micro);
                let scorer: &mut dyn Scorer = match &mut made {
                    Some(made) => made,
                    None => &mut scorer,
                };
                allocator("train:allocator")?;
                let gradients = &mut self.gradients;
                if !accumulate(&learner, &batch, first_slot, scorer, &mut loss, gradients)? {
                    break 'step;
                }
                first_slot += micro.len();
            }
        }
        let heard = scorer.heard;
        Ok(StepSums { loss, heard })
    }

    /// An optimizer step up to its gradients, which lie in `self.gradients`.
    fn attempt(&mut self, rows: &[usize]) -> Result<StepSums> {
        self.admit(rows)?;
        let part = self.step_part(rows);
        self.whole_step(part, rows)
    }

    /// The whole step from the parts of all ranks. The scorer hears of all groups on every rank, as if there were one: it
    /// goes on alike everywhere.
    fn whole_step(&mut self, part: Result<StepSums>, rows: &[usize]) -> Result<StepSums> {
        let ranks = Arc::clone(self.engine.ranks());
        if !ranks.are_several() {
            return part.map_err(Error::told);
        }
        let mut loss = self.no_sums(rows);
        let mut policy_ce = BTreeMap::new();
        for part in ranks.agree(part.map(SentSums::from))? {
            for (head, [weighted, unweighted]) in loss.heads.iter_mut().zip(part.heads) {
                head.weighted += f64::from(weighted);
                head.unweighted += f64::from(unweighted);
            }
            policy_ce.extend(part.policy_ce);
        }
        let heard = if loss.weighted().is_finite() {
            self.hear_all(rows, &policy_ce)?
        } else {
            StepWeights::default()
        };
        Ok(StepSums { loss, heard })
    }

    /// The weights of all groups of a step, from the cross-entropies where the scorer needs them.
    fn hear_all(
        &mut self,
        rows: &[usize],
        policy_ce: &BTreeMap<(usize, usize), Vec<Exact>>,
    ) -> Result<StepWeights> {
        let (file, groups) = (self.train.file, self.groups(rows));
        let (shown, step) = (&self.record.shown, self.engine.step());
        let mut scorer = Self::listen(self.scorer.as_mut(), shown, step, (file, rows), false)?;
        for (first_slot, group) in groups {
            let batch = pad_batch(file, group);
            for horizon in self.params.horizons() {
                let targets = HeadTargets::of(&batch, horizon, first_slot).targets;
                let Some(first) = targets.first() else {
                    continue;
                };
                let losses = policy_ce.get(&(first.slot, horizon.get()));
                let losses: Option<Vec<f64>> =
                    losses.map(|losses| losses.iter().map(|&loss| loss.into()).collect());
                scorer.weigh(horizon, &targets, losses.as_deref())?;
            }
        }
        Ok(scorer.heard)
    }

    fn record_weights(&mut self, heard: StepWeights) -> Vec<(String, f64)> {
        self.record.histogram.add(&heard.all);
        self.record.shown.extend(heard.by_row);
        let (mut shown, mut compared) = (Vec::new(), Vec::new());
        for StepStats {
            head,
            stats,
            excess,
        } in self.scorer.end_step()
        {
            let line = WeightLine {
                step: self.engine.step(),
                head,
                stats: &stats,
            };
            self.record.lines.push(&line);
            shown.extend(live_statistics(head, &stats));
            compared.extend(head.zip(excess));
        }
        shown.extend(live_excess(&compared));
        shown
    }

    /// Unweighted cross-entropy of head 1 over the validation rows, which all ranks ask for together; `None` when there are
    /// none.
    pub fn validate(&self) -> Result<Option<f64>> {
        let first: Vec<Horizon> = self.params.horizons().take(1).collect();
        Ok(self.validation_losses(&first)?.pop().flatten())
    }

    /// Unweighted cross-entropy of each of these heads over the validation rows.
    fn validation_losses(&self, horizons: &[Horizon]) -> Result<Vec<Option<f64>>> {
        let model = frozen(self.params, self.store, self.adapters)?;
        let size = self.engine.micro_batch_sequences();
        let (file, rows) = (self.validation.file, &self.validation.rows);
        let ranks = self.engine.ranks();
        let losses = all_cross_entropies(ranks, &model, file, rows, size, horizons)?;
        Ok(head_means(&losses, horizons.len()))
    }

    /// The validation behind a step, with the losses of all heads.
    fn validated(&mut self) -> Result<Validation> {
        let (file, rows) = (self.validation.file, self.validation.rows.clone());
        self.admit_passing(file, &rows)?;
        let horizons: Vec<Horizon> = self.params.horizons().collect();
        let losses = self.validation_losses(&horizons)?;
        let heads = horizons.iter().zip(&losses);
        let named = heads.filter_map(|(horizon, &loss)| {
            Some((format!("validation_ce_head_{}", horizon.get()), loss?))
        });
        Ok(Validation {
            loss: losses.first().copied().flatten(),
            live: named.collect(),
        })
    }

    /// Metrics as JSON lines, one per step.
    pub fn metrics(&self) -> &Lines {
        self.engine.metrics()
    }

    /// Weight statistics as JSON lines, one per step (Rho-1: one per step and head).
    pub fn weight_lines(&self) -> &Lines {
        &self.record.lines
    }

    /// All weights of the run in equal bins.
    pub fn histogram(&self) -> &Histogram {
        &self.record.histogram
    }

    /// A few rows with the weights that their response tokens had last, rounded to four decimals.
    pub fn shown_weights(&self) -> impl Iterator<Item = (usize, &[f64])> {
        let shown = self.record.shown.iter();
        shown
            .filter(|(_, weights)| !weights.is_empty())
            .map(|(&row, weights)| (row, weights.as_slice()))
    }
}

impl Trainer for PolicyTrainer<'_> {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn steps_per_epoch(&self) -> u64 {
        self.plan.per_epoch
    }

    fn num_held_out(&self) -> usize {
        self.validation.rows.len()
    }

    fn advance(&mut self) -> Result<StepReport> {
        let index = self.engine.step() as usize;
        let Some(rows) = self.plan.steps.get(index).cloned() else {
            return Err(Error::BadData(format!("the run has only {index} steps")));
        };
        let StepSums { loss, heard } = as_room_allows(self, |this| this.attempt(&rows))?;
        let work = self.work(&rows, &loss);
        let all_needed = loss.active() == loss.heads.len();
        let update = self
            .engine
            .apply(loss.weighted(), &mut self.gradients, all_needed)?;
        let live = match update {
            Update::Applied { .. } => self.record_weights(heard),
            Update::Skipped { .. } => Vec::new(),
        };
        let report = StepReport {
            step: self.engine.step(),
            work,
            update,
            halved: Vec::new(),
            metrics: loss.metrics(),
            live,
        };
        end_step(self, report, Self::validated)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.engine.save(dir)?;
        if !self.engine.ranks().leads() {
            return Ok(());
        }
        self.record.lines.write(&dir.join(files::WEIGHTS))?;
        let state = PolicyState {
            scorer: self.scorer.state(),
            histogram: self.record.histogram.counts.clone(),
            shown: self.record.shown.clone(),
        };
        Ok(jsonl::write_json(&dir.join(files::STATE), &state)?)
    }

    fn restore(&mut self, dir: &Path) -> Result<()> {
        self.engine.restore(dir)?;
        self.record.lines = Lines::read(&dir.join(files::WEIGHTS))?;
        let path = dir.join(files::STATE);
        let state: PolicyState = jsonl::read_json(&path)?;
        if state.histogram.len() != BINS {
            return Err(buffer::bad_file(
                &path,
                "the histogram has another number of bins",
            ));
        }
        self.record.histogram.counts = state.histogram;
        self.record.shown = state.shown;
        if !state.scorer.is_null() {
            self.scorer.restore(&state.scorer)?;
        }
        Ok(())
    }

    fn score(&mut self, side: Side, rows: &[usize]) -> Result<Scored> {
        let file = side.of(self.train.file, self.validation.file);
        let first: Vec<Horizon> = self.params.horizons().take(1).collect();
        let model = frozen(self.params, self.store, self.adapters)?;
        let losses = as_room_allows(self, |this| {
            this.admit_passing(file, rows)?;
            let (ranks, size) = (this.engine.ranks(), this.engine.micro_batch_sequences());
            all_cross_entropies(ranks, &model, file, rows, size, &first)
        })?;
        Ok(Scored {
            of_rows: losses.into_iter().map(|heads| heads.concat()).collect(),
            halved: self.engine.take_halved(),
        })
    }

    fn pieces(&self, side: Side, rows: &[usize]) -> Vec<Vec<usize>> {
        let file = side.of(self.train.file, self.validation.file);
        pieces(
            self.ranks(),
            file,
            rows,
            self.engine.micro_batch_sequences(),
        )
    }
}

/// What every optimizer step of a run takes.
pub(crate) struct StepPlan {
    /// Its rows.
    pub(crate) steps: Vec<Vec<usize>>,
    /// Steps that take every row once.
    pub(crate) per_epoch: u64,
}

/// Rows of every optimizer step of a run, at least one step.
pub(crate) fn plan(rows: &Rows<'_>, epochs: f64, batch: usize, seed: u64) -> StepPlan {
    let plan = BatchPlan::new(rows.file, rows.rows.clone(), batch, seed);
    let per_epoch = plan.steps_per_epoch();
    let steps = (epochs * per_epoch as f64).round() as usize;
    StepPlan {
        steps: plan.first_steps(steps.max(1)),
        per_epoch: per_epoch as u64,
    }
}

/// A few rows spread evenly over those given.
fn shown_rows(rows: &[usize]) -> Vec<usize> {
    let count = SHOWN_ROWS.min(rows.len());
    (0..count)
        .map(|index| rows[index * rows.len() / count])
        .collect()
}
