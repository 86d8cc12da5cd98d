//! From the rows of an optimizer step to token weights: one trait, five algorithms.
//!
//! The trainer knows only [`Scorer`]; the recipe's `experiment.algo` chooses which one it gets. Weights
//! are plain numbers, so nothing that a scorer does can carry a gradient.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use wmtp_model::Horizon;
use wmtp_weighting::rho1::{self, ExcessMode, Selection};
use wmtp_weighting::{
    TokenWeights, WeightSettings, WeightStats, Whitening, control, token_weights, uniform,
};

use crate::error::{Error, Result};
use crate::heads::Target;
use crate::scores::TokenScores;

/// A row of the step: its index in the data set and the number of its response targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRow {
    /// Index in the data set.
    pub row: usize,
    /// Number of response targets.
    pub targets: usize,
}

/// Weights of one optimizer step, for the record.
#[derive(Debug, Clone, PartialEq)]
pub struct StepStats {
    /// The head that they belong to; `None` where all heads share the weights of their target tokens.
    pub head: Option<usize>,
    /// The statistics.
    pub stats: WeightStats,
    /// What the weights come from, where that is an excess over a reference.
    pub excess: Option<ExcessStats>,
}

/// Sums over one head's targets in one optimizer step of Rho-1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExcessStats {
    /// Targets.
    pub targets: usize,
    /// Cross-entropies of the policy, nats.
    pub policy_ce: f64,
    /// Cross-entropies of the reference, nats.
    pub reference_ce: f64,
    /// Scores: differences of the two as the recipe takes them.
    pub score: f64,
    /// Targets that were selected, where some are.
    pub selected: Option<usize>,
}

/// Gives every response target of an optimizer step its weight.
pub trait Scorer: Send {
    /// Called once per step, before its first micro-batch.
    fn begin_step(&mut self, step: u64, rows: &[StepRow]) -> Result<()>;

    /// Whether [`Scorer::weigh`] needs the policy's own cross-entropies.
    fn needs_policy_ce(&self) -> bool {
        false
    }

    /// Weights of one head's targets in one micro-batch, in their order.
    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        policy_ce: Option<&[f64]>,
    ) -> Result<Vec<f64>>;

    /// Called after the last micro-batch of a step that was applied.
    fn end_step(&mut self) -> Vec<StepStats>;

    /// What resuming needs beyond the step's number.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes back what [`Scorer::state`] gave.
    fn restore(&mut self, _state: &serde_json::Value) -> Result<()> {
        Ok(())
    }
}

/// Which targets are whitened and normalised together (spec 1.8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Scores are whitened by their own mean and deviation, those of the targets that are normalised together; else by
    /// statistics of more than them: the data set's, or for Rho-1 running ones.
    pub own_whitening: bool,
    /// Each sequence's weights have mean 1, so that no sequence counts more than another; else those of the optimizer
    /// step together, for Rho-1 of the micro-batch.
    pub per_sequence: bool,
}

/// Weights that were made group by group, and what there is to say of all.
#[derive(Debug, Clone, Default)]
struct Gathered {
    weights: Vec<f64>,
    c_times_count: f64,
    temperature: f64,
}

impl Gathered {
    fn add(&mut self, made: &TokenWeights) {
        self.weights.extend(&made.weights);
        self.c_times_count += made.stats.projection_c * made.weights.len() as f64;
        self.temperature = self.temperature.max(made.stats.temperature);
    }

    /// The factor of the projection is the targets' mean, the temperature the highest.
    fn stats(&self, settings: &WeightSettings) -> WeightStats {
        let c = self.c_times_count / self.weights.len().max(1) as f64;
        WeightStats::of(&self.weights, settings, c, self.temperature)
    }
}

/// How the weights of a step are made from the rows alone, before any forward pass.
#[derive(Debug, Clone)]
enum Rule {
    Uniform,
    Verifiable,
    RandomMatched { seed: u64 },
    Shuffled { row_seeds: BTreeMap<usize, u64> },
}

/// Weights per target token, the same for all heads, normalised over the whole optimizer step or over each sequence.
#[derive(Debug)]
pub struct StepScorer {
    rule: Rule,
    settings: WeightSettings,
    scope: Scope,
    advantages: Option<(Arc<TokenScores>, Whitening)>,
    weights: Vec<f64>,
    offsets: Vec<usize>,
    stats: Option<WeightStats>,
}

impl StepScorer {
    fn new(
        rule: Rule,
        settings: WeightSettings,
        advantages: Option<(Arc<TokenScores>, Whitening)>,
    ) -> Self {
        Self {
            rule,
            settings,
            scope: Scope::default(),
            advantages,
            weights: Vec::new(),
            offsets: vec![0],
            stats: None,
        }
    }

    /// With other targets whitened and normalised together.
    #[must_use]
    pub fn within(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Baseline: every weight is 1.
    pub fn baseline(settings: WeightSettings) -> Self {
        Self::new(Rule::Uniform, settings, None)
    }

    /// Verifiable: stored advantages, whitened with the data set's statistics.
    pub fn verifiable(
        advantages: Arc<TokenScores>,
        whitening: Whitening,
        settings: WeightSettings,
    ) -> Self {
        Self::new(Rule::Verifiable, settings, Some((advantages, whitening)))
    }

    /// Control: weights drawn at random from those that the verifiable run has in the same step.
    pub fn random_matched(
        advantages: Arc<TokenScores>,
        whitening: Whitening,
        settings: WeightSettings,
        seed: u64,
    ) -> Self {
        Self::new(
            Rule::RandomMatched { seed },
            settings,
            Some((advantages, whitening)),
        )
    }

    /// Control: the verifiable run's weights, permuted within each sequence by that row's seed.
    pub fn shuffled(
        advantages: Arc<TokenScores>,
        whitening: Whitening,
        settings: WeightSettings,
        row_seeds: BTreeMap<usize, u64>,
    ) -> Self {
        Self::new(
            Rule::Shuffled { row_seeds },
            settings,
            Some((advantages, whitening)),
        )
    }

    fn scores(&self, rows: &[StepRow]) -> Result<Vec<f64>> {
        let (advantages, _) = self.advantages()?;
        let mut scores = Vec::new();
        for row in rows {
            let values = advantages.of_row(row.row, row.targets)?;
            scores.extend(values.iter().map(|&value| f64::from(value)));
        }
        Ok(scores)
    }

    fn advantages(&self) -> Result<&(Arc<TokenScores>, Whitening)> {
        let stored = self.advantages.as_ref();
        stored.ok_or_else(|| Error::BadData("this scorer needs stored advantages".to_owned()))
    }

    fn verifiable_weights(&self, scores: &[f64]) -> Result<TokenWeights> {
        let whitening = if self.scope.own_whitening {
            Whitening::of(scores)
        } else {
            self.advantages()?.1
        };
        Ok(token_weights(scores, &whitening, &self.settings)?)
    }

    /// `make` of the scores that are normalised together: all, or one sequence's after another's.
    fn by_group(
        &self,
        scores: &[f64],
        offsets: &[usize],
        mut make: impl FnMut(&[f64]) -> Result<TokenWeights>,
    ) -> Result<TokenWeights> {
        if !self.scope.per_sequence {
            return make(scores);
        }
        let mut all = Gathered::default();
        for bounds in offsets.windows(2) {
            all.add(&make(&scores[bounds[0]..bounds[1]])?);
        }
        let stats = all.stats(&self.settings);
        Ok(TokenWeights {
            weights: all.weights,
            stats,
        })
    }

    fn make(&self, step: u64, rows: &[StepRow], offsets: &[usize]) -> Result<TokenWeights> {
        if matches!(self.rule, Rule::Uniform) {
            return Ok(uniform(offsets[rows.len()], &self.settings));
        }
        let scores = self.scores(rows)?;
        let verifiable = |scores: &[f64]| self.verifiable_weights(scores);
        match &self.rule {
            Rule::Uniform | Rule::Verifiable => self.by_group(&scores, offsets, verifiable),
            Rule::RandomMatched { seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(step);
                self.by_group(&scores, offsets, |scores| {
                    let observed = verifiable(scores)?.weights;
                    let (count, seed) = (observed.len(), rng.next_u64());
                    let drawn = control::random_matched(&observed, count, seed, &self.settings);
                    Ok(drawn?)
                })
            }
            Rule::Shuffled { row_seeds } => {
                let mut made = self.by_group(&scores, offsets, verifiable)?;
                let seed = |row: &StepRow| {
                    row_seeds.get(&row.row).copied().ok_or_else(|| {
                        Error::BadData(format!("row {} has no seed for shuffling", row.row))
                    })
                };
                let seeds = rows.iter().map(seed).collect::<Result<Vec<_>>>()?;
                made.weights = control::shuffled(&made.weights, offsets, &seeds)?;
                Ok(made)
            }
        }
    }
}

impl Scorer for StepScorer {
    fn begin_step(&mut self, step: u64, rows: &[StepRow]) -> Result<()> {
        self.offsets = offsets(rows);
        let made = self.make(step, rows, &self.offsets)?;
        self.weights = made.weights;
        self.stats = Some(made.stats);
        Ok(())
    }

    fn weigh(
        &mut self,
        _horizon: Horizon,
        targets: &[Target],
        _policy_ce: Option<&[f64]>,
    ) -> Result<Vec<f64>> {
        let weight = |target: &Target| self.weights[self.offsets[target.slot] + target.index];
        Ok(targets.iter().map(weight).collect())
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        let stats = self.stats.take();
        stats
            .map(|stats| StepStats {
                head: None,
                stats,
                excess: None,
            })
            .into_iter()
            .collect()
    }
}

fn offsets(rows: &[StepRow]) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut end = 0;
    for row in rows {
        end += row.targets;
        offsets.push(end);
    }
    offsets
}

/// How Rho-1 turns excess into weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rho1Weighting {
    /// Whitening and exponential, as for the verifiable algorithm.
    Continuous,
    /// A share of the targets is selected.
    Topk,
}

/// Settings of Rho-1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rho1Settings {
    /// Signed or absolute excess.
    pub mode: ExcessMode,
    /// From excess to weight.
    pub weighting: Rho1Weighting,
    /// What `topk` selects.
    pub selection: Selection,
    /// Smaller differences count as 0.
    pub min_ce_diff: f64,
}

/// Share of the newest step in the running mean and deviation.
const MOMENTUM: f64 = 0.1;

/// Running mean and deviation of one head's scores.
///
/// The first ten steps are averaged with growing memory: the old value weighs (n - 1) / 10 in the n-th
/// update. A step is whitened with what earlier steps left, and only then counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Running {
    updates: u64,
    mean: f64,
    std: f64,
}

impl Running {
    fn whitening(&self) -> Option<Whitening> {
        (self.updates > 0).then_some(Whitening {
            mean: self.mean,
            std: self.std,
        })
    }

    fn update(&mut self, step: &Whitening) {
        let old = (self.updates as f64 * MOMENTUM).min(1.0 - MOMENTUM);
        self.mean = old * self.mean + (1.0 - old) * step.mean;
        self.std = old * self.std + (1.0 - old) * step.std;
        self.updates += 1;
    }
}

/// Running statistics in the resume state; floats as text, exact.
#[derive(Debug, Serialize, Deserialize)]
struct RunningState {
    updates: u64,
    mean: String,
    std: String,
}

/// What one head's targets scored and weighed in the present step.
#[derive(Debug, Clone, Default)]
struct HeadStep {
    scores: Vec<f64>,
    made: Gathered,
    excess: ExcessStats,
}

/// Rho-1: excess of the policy's cross-entropy over a tuned reference's, per head, normalised over each micro-batch or
/// each sequence.
#[derive(Debug, Clone)]
pub struct Rho1Scorer {
    reference: Arc<TokenScores>,
    rho1: Rho1Settings,
    settings: WeightSettings,
    scope: Scope,
    rows: Vec<StepRow>,
    running: BTreeMap<usize, Running>,
    heads: BTreeMap<usize, HeadStep>,
}

impl Rho1Scorer {
    /// Over the stored cross-entropies of the reference.
    pub fn new(reference: Arc<TokenScores>, rho1: Rho1Settings, settings: WeightSettings) -> Self {
        Self {
            reference,
            rho1,
            settings,
            scope: Scope::default(),
            rows: Vec::new(),
            running: BTreeMap::new(),
            heads: BTreeMap::new(),
        }
    }

    /// With other targets whitened and normalised together.
    #[must_use]
    pub fn within(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Weights of scores that are normalised together, and how many of them were selected, where some are.
    fn weights(&self, horizon: Horizon, scores: &[f64]) -> Result<(TokenWeights, Option<usize>)> {
        if self.rho1.weighting == Rho1Weighting::Topk {
            let selection = &self.rho1.selection;
            let made = rho1::topk(scores, selection, &self.settings)?;
            let selected = selection.num_selected(scores.len(), self.settings.w_max);
            return Ok((made, Some(selected)));
        }
        let running = self
            .running
            .get(&horizon.get())
            .filter(|_| !self.scope.own_whitening)
            .and_then(Running::whitening);
        let whitening = running.unwrap_or_else(|| Whitening::of(scores));
        Ok((token_weights(scores, &whitening, &self.settings)?, None))
    }

    /// How many targets of a micro-batch are normalised together, group after group.
    fn group_sizes(&self, targets: &[Target]) -> Vec<usize> {
        if !self.scope.per_sequence {
            return vec![targets.len()];
        }
        let sequences = targets.chunk_by(|one, next| one.slot == next.slot);
        sequences.map(<[Target]>::len).collect()
    }

    fn reference_ce(&self, targets: &[Target]) -> Result<Vec<f64>> {
        let of = |target: &Target| {
            let row = self.rows[target.slot];
            Ok(f64::from(
                self.reference.of_row(row.row, row.targets)?[target.index],
            ))
        };
        targets.iter().map(of).collect()
    }
}

impl Scorer for Rho1Scorer {
    fn begin_step(&mut self, _step: u64, rows: &[StepRow]) -> Result<()> {
        self.rows = rows.to_vec();
        self.heads.clear();
        Ok(())
    }

    fn needs_policy_ce(&self) -> bool {
        true
    }

    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        policy_ce: Option<&[f64]>,
    ) -> Result<Vec<f64>> {
        let policy_ce = policy_ce
            .ok_or_else(|| Error::BadData("Rho-1 needs the policy's cross-entropies".to_owned()))?;
        let reference_ce = self.reference_ce(targets)?;
        let rho1 = self.rho1;
        let scores = rho1::excess(policy_ce, &reference_ce, rho1.mode, rho1.min_ce_diff)?;
        let mut step = self.heads.remove(&horizon.get()).unwrap_or_default();
        let mut weights = Vec::with_capacity(targets.len());
        let mut rest = &scores[..];
        for size in self.group_sizes(targets) {
            let (group, after) = rest.split_at(size);
            let (made, selected) = self.weights(horizon, group)?;
            step.made.add(&made);
            if let Some(selected) = selected {
                *step.excess.selected.get_or_insert(0) += selected;
            }
            weights.extend(made.weights);
            rest = after;
        }
        step.scores.extend(&scores);
        let excess = &mut step.excess;
        excess.targets += targets.len();
        excess.policy_ce += policy_ce.iter().sum::<f64>();
        excess.reference_ce += reference_ce.iter().sum::<f64>();
        excess.score += scores.iter().sum::<f64>();
        self.heads.insert(horizon.get(), step);
        Ok(weights)
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        let heads = std::mem::take(&mut self.heads);
        let finish = |(head, step): (usize, HeadStep)| {
            let running = self.running.entry(head).or_default();
            running.update(&Whitening::of(&step.scores));
            StepStats {
                head: Some(head),
                stats: step.made.stats(&self.settings),
                excess: Some(step.excess),
            }
        };
        heads.into_iter().map(finish).collect()
    }

    fn state(&self) -> serde_json::Value {
        let exact = |running: &Running| RunningState {
            updates: running.updates,
            mean: running.mean.to_string(),
            std: running.std.to_string(),
        };
        let heads = self
            .running
            .iter()
            .map(|(head, running)| (head.to_string(), serde_json::json!(exact(running))));
        serde_json::Value::Object(heads.collect())
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        let bad = |error: &dyn std::fmt::Display| {
            Error::BadData(format!(
                "the running statistics of a checkpoint are unreadable: {error}"
            ))
        };
        let heads: BTreeMap<usize, RunningState> =
            serde_json::from_value(state.clone()).map_err(|error| bad(&error))?;
        self.running.clear();
        for (head, state) in heads {
            let running = Running {
                updates: state.updates,
                mean: state.mean.parse::<f64>().map_err(|error| bad(&error))?,
                std: state.std.parse::<f64>().map_err(|error| bad(&error))?,
            };
            self.running.insert(head, running);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wmtp_weighting::{check, check_selected};

    const SOFT: Selection = Selection {
        ratio: 0.6,
        hard: false,
    };

    const ROWS: [StepRow; 3] = [
        StepRow { row: 2, targets: 4 },
        StepRow { row: 0, targets: 3 },
        StepRow { row: 5, targets: 6 },
    ];

    fn scores() -> Arc<TokenScores> {
        let rows = [(0usize, 3usize), (2, 4), (5, 6)];
        let values = rows.map(|(row, targets)| {
            let value = |index: usize| ((row * 7 + index * 5) % 11) as f32 / 4.0 - 1.0;
            (row, (0..targets).map(value).collect())
        });
        Arc::new(TokenScores::new(values))
    }

    fn whitening() -> Whitening {
        Whitening {
            mean: 0.25,
            std: 0.8,
        }
    }

    fn targets(rows: &[StepRow]) -> Vec<Target> {
        let of = |(slot, row): (usize, &StepRow)| {
            (0..row.targets)
                .map(move |index| Target { slot, index })
                .collect::<Vec<_>>()
        };
        rows.iter().enumerate().flat_map(of).collect()
    }

    fn weights(scorer: &mut dyn Scorer, step: u64, rows: &[StepRow]) -> Vec<f64> {
        scorer.begin_step(step, rows).unwrap();
        let targets = targets(rows);
        let ce: Vec<f64> = (0..targets.len())
            .map(|index| (index % 5) as f64 / 2.0)
            .collect();
        let ce = scorer.needs_policy_ce().then_some(ce);
        scorer
            .weigh(Horizon::NEXT, &targets, ce.as_deref())
            .unwrap()
    }

    fn all_scorers() -> Vec<Box<dyn Scorer>> {
        let baseline = StepScorer::baseline(WeightSettings::default());
        let mut all = scorers_within(Scope::default());
        all.push(Box::new(baseline));
        all
    }

    #[test]
    fn every_scorer_holds_the_invariants_in_every_step() {
        for mut scorer in all_scorers() {
            for step in 0..4 {
                let weights = weights(scorer.as_mut(), step, &ROWS);
                check(&weights, &WeightSettings::default()).unwrap();
                assert_eq!(weights.len(), 13);
                let stats = scorer.end_step();
                assert_eq!(stats.len(), 1);
                assert!((stats[0].stats.mean - 1.0).abs() < 1e-9);
            }
        }
    }

    /// Every scorer but the baseline.
    fn scorers_within(scope: Scope) -> Vec<Box<dyn Scorer>> {
        let settings = WeightSettings::default();
        let seeds: BTreeMap<usize, u64> = [(0, 1), (2, 2), (5, 3)].into();
        let rho1 = |weighting| Rho1Settings {
            mode: ExcessMode::SignedExcess,
            weighting,
            selection: SOFT,
            min_ce_diff: 0.01,
        };
        let random = StepScorer::random_matched(scores(), whitening(), settings, 42);
        let verifiable = StepScorer::verifiable(scores(), whitening(), settings);
        let shuffled = StepScorer::shuffled(scores(), whitening(), settings, seeds);
        let soft = Rho1Scorer::new(scores(), rho1(Rho1Weighting::Continuous), settings);
        let topk = Rho1Scorer::new(scores(), rho1(Rho1Weighting::Topk), settings);
        vec![
            Box::new(verifiable.within(scope)),
            Box::new(shuffled.within(scope)),
            Box::new(random.within(scope)),
            Box::new(soft.within(scope)),
            Box::new(topk.within(scope)),
        ]
    }

    #[test]
    fn within_sequences_every_sequence_has_mean_one() {
        let scope = Scope {
            per_sequence: true,
            ..Scope::default()
        };
        for mut scorer in scorers_within(scope) {
            for step in 0..3 {
                let made = weights(scorer.as_mut(), step, &ROWS);
                for bounds in offsets(&ROWS).windows(2) {
                    check(&made[bounds[0]..bounds[1]], &WeightSettings::default()).unwrap();
                }
                let told = scorer.end_step().remove(0);
                assert_eq!(told.stats.count, 13);
                if let Some(selected) = told.excess.and_then(|excess| excess.selected) {
                    // 0.6 of 4, of 3 and of 6, each rounded.
                    assert_eq!(selected, 2 + 2 + 4);
                }
            }
        }
    }

    #[test]
    fn own_whitening_is_of_the_scores_that_are_normalised_together() {
        let settings = WeightSettings::default();
        let alone = |row: StepRow| -> Vec<f64> {
            let table = scores();
            let row = table.of_row(row.row, row.targets).unwrap();
            let row: Vec<f64> = row.iter().map(|&score| f64::from(score)).collect();
            let made = token_weights(&row, &Whitening::of(&row), &settings);
            made.unwrap().weights
        };
        let scope = Scope {
            own_whitening: true,
            per_sequence: true,
        };
        let mut scorer = StepScorer::verifiable(scores(), whitening(), settings).within(scope);
        assert_eq!(weights(&mut scorer, 0, &ROWS), ROWS.map(alone).concat());
        let of_step = Scope {
            per_sequence: false,
            ..scope
        };
        let mut scorer = StepScorer::verifiable(scores(), whitening(), settings).within(of_step);
        let together = weights(&mut scorer, 0, &ROWS);
        assert_ne!(together, ROWS.map(alone).concat());
        let mut dataset = StepScorer::verifiable(scores(), whitening(), settings);
        assert_ne!(together, weights(&mut dataset, 0, &ROWS));
    }

    #[test]
    fn with_its_own_whitening_rho1_forgets_earlier_steps() {
        let made = |scope: Scope, before: u64| {
            let scorer = &mut scorers_within(scope)[3];
            for step in 0..before {
                weights(scorer.as_mut(), step, &ROWS[..2]);
                scorer.end_step();
            }
            weights(scorer.as_mut(), before, &ROWS)
        };
        let own = Scope {
            own_whitening: true,
            ..Scope::default()
        };
        assert_eq!(made(own, 0), made(own, 2));
        assert_ne!(made(Scope::default(), 0), made(Scope::default(), 2));
    }

    #[test]
    fn the_baseline_weighs_every_token_one() {
        let mut scorer = StepScorer::baseline(WeightSettings::default());
        let made = weights(&mut scorer, 0, &ROWS);
        assert!(made.iter().all(|weight| (weight - 1.0).abs() < 1e-15));
    }

    #[test]
    fn verifiable_weights_follow_the_normative_procedure_over_the_whole_step() {
        let settings = WeightSettings::default();
        let mut scorer = StepScorer::verifiable(scores(), whitening(), settings);
        let found = weights(&mut scorer, 0, &ROWS);
        let table = scores();
        let flat: Vec<f64> = ROWS
            .iter()
            .flat_map(|row| table.of_row(row.row, row.targets).unwrap().to_vec())
            .map(f64::from)
            .collect();
        assert_eq!(
            found,
            token_weights(&flat, &whitening(), &settings)
                .unwrap()
                .weights
        );
    }

    #[test]
    fn shuffling_keeps_the_weights_of_each_sequence_and_moves_some() {
        let settings = WeightSettings::default();
        let seeds: BTreeMap<usize, u64> = [(0, 1), (2, 2), (5, 3)].into();
        let mut plain = StepScorer::verifiable(scores(), whitening(), settings);
        let mut shuffled = StepScorer::shuffled(scores(), whitening(), settings, seeds);
        let (plain, shuffled) = (
            weights(&mut plain, 0, &ROWS),
            weights(&mut shuffled, 0, &ROWS),
        );
        assert_ne!(plain, shuffled);
        for bounds in offsets(&ROWS).windows(2) {
            let sorted = |weights: &[f64]| {
                let mut weights = weights[bounds[0]..bounds[1]].to_vec();
                weights.sort_by(f64::total_cmp);
                weights
            };
            assert_eq!(sorted(&plain), sorted(&shuffled));
        }
    }

    #[test]
    fn random_weights_differ_between_steps_and_repeat_between_runs() {
        let settings = WeightSettings::default();
        let make = || StepScorer::random_matched(scores(), whitening(), settings, 42);
        let (mut one, mut two) = (make(), make());
        assert_eq!(weights(&mut one, 3, &ROWS), weights(&mut two, 3, &ROWS));
        assert_ne!(weights(&mut one, 3, &ROWS), weights(&mut one, 4, &ROWS));
    }

    #[test]
    fn heads_pick_the_weights_of_their_own_targets() {
        let mut scorer = StepScorer::verifiable(scores(), whitening(), WeightSettings::default());
        let all = weights(&mut scorer, 0, &ROWS);
        let some = [Target { slot: 2, index: 5 }, Target { slot: 0, index: 1 }];
        let picked = scorer.weigh(Horizon::new(3).unwrap(), &some, None).unwrap();
        assert_eq!(picked, [all[12], all[1]].as_slice());
    }

    #[test]
    fn running_statistics_start_with_the_first_step_and_keep_ninety_percent() {
        let mut running = Running::default();
        assert_eq!(running.whitening(), None);
        running.update(&Whitening {
            mean: 2.0,
            std: 1.0,
        });
        assert_eq!(
            running.whitening(),
            Some(Whitening {
                mean: 2.0,
                std: 1.0
            })
        );
        running.update(&Whitening {
            mean: 0.0,
            std: 3.0,
        });
        assert!((running.mean - 0.2).abs() < 1e-12 && (running.std - 2.8).abs() < 1e-12);
        running.updates = 500;
        running.update(&Whitening {
            mean: 10.2,
            std: 2.8,
        });
        assert!((running.mean - 1.2).abs() < 1e-12);
    }

    #[test]
    fn rho1_tells_what_it_compared_and_how_many_it_selected() {
        let of = |weighting| {
            let rho1 = Rho1Settings {
                mode: ExcessMode::SignedExcess,
                weighting,
                selection: SOFT,
                min_ce_diff: 0.0,
            };
            let mut scorer = Rho1Scorer::new(scores(), rho1, WeightSettings::default());
            weights(&mut scorer, 0, &ROWS);
            scorer.end_step()[0].excess.unwrap()
        };
        let found = of(Rho1Weighting::Topk);
        let table = scores();
        let reference: f64 = table.values().iter().map(|&ce| f64::from(ce)).sum();
        // The policy's are (index % 5) / 2 of 13 targets: two rounds of 0 to 4, then 0, 1, 2.
        let policy = 0.5 * f64::from(2 * (1 + 2 + 3 + 4) + (1 + 2));
        assert_eq!(found.targets, 13);
        assert!((found.policy_ce - policy).abs() < 1e-9, "{found:?}");
        assert!((found.reference_ce - reference).abs() < 1e-6, "{found:?}");
        assert!(
            (found.score - (policy - reference)).abs() < 1e-6,
            "{found:?}"
        );
        assert_eq!(found.selected, Some(8));
        assert_eq!(of(Rho1Weighting::Continuous).selected, None);
    }

    #[test]
    fn a_hard_selection_trains_the_selected_targets_alone() {
        let rho1 = Rho1Settings {
            mode: ExcessMode::SignedExcess,
            weighting: Rho1Weighting::Topk,
            selection: Selection { hard: true, ..SOFT },
            min_ce_diff: 0.01,
        };
        let mut scorer = Rho1Scorer::new(scores(), rho1, WeightSettings::default());
        let made = weights(&mut scorer, 0, &ROWS);
        let is_selected = |index: usize| made[index] > 0.0;
        check_selected(&made, &WeightSettings::default(), is_selected).unwrap();
        assert_eq!(made.iter().filter(|weight| **weight == 0.0).count(), 5);
        let step = scorer.end_step().remove(0);
        assert_eq!(step.excess.and_then(|excess| excess.selected), Some(8));
        let stats = step.stats;
        assert!((stats.mean - 1.0).abs() < 1e-9 && (stats.clip_low - 5.0 / 13.0).abs() < 1e-12);
        assert!((stats.entropy - 8f64.ln() / 13f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn rho1_resumes_with_its_running_statistics() {
        let make = || {
            let rho1 = Rho1Settings {
                mode: ExcessMode::AbsExcess,
                weighting: Rho1Weighting::Continuous,
                selection: SOFT,
                min_ce_diff: 0.01,
            };
            Rho1Scorer::new(scores(), rho1, WeightSettings::default())
        };
        let mut straight = make();
        for step in 0..3 {
            weights(&mut straight, step, &ROWS);
            straight.end_step();
        }
        let mut resumed = make();
        resumed.restore(&straight.state()).unwrap();
        assert_eq!(resumed.running, straight.running);
        assert_eq!(
            weights(&mut resumed, 3, &ROWS),
            weights(&mut straight, 3, &ROWS)
        );
    }

    #[test]
    fn a_row_without_scores_is_an_error() {
        let mut scorer = StepScorer::verifiable(scores(), whitening(), WeightSettings::default());
        let error = scorer
            .begin_step(0, &[StepRow { row: 1, targets: 2 }])
            .unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
        assert!(
            scorer
                .begin_step(0, &[StepRow { row: 2, targets: 9 }])
                .is_err()
        );
    }
}
