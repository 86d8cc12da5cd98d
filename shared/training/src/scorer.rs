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

/// How the weights of a step are made from the rows alone, before any forward pass.
#[derive(Debug, Clone)]
enum Rule {
    Uniform,
    Verifiable,
    RandomMatched { seed: u64 },
    Shuffled { row_seeds: BTreeMap<usize, u64> },
}

/// Weights per target token, the same for all heads, normalised over the whole optimizer step.
#[derive(Debug)]
pub struct StepScorer {
    rule: Rule,
    settings: WeightSettings,
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
            advantages,
            weights: Vec::new(),
            offsets: vec![0],
            stats: None,
        }
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

    fn verifiable_weights(&self, rows: &[StepRow]) -> Result<TokenWeights> {
        let (advantages, whitening) = self
            .advantages
            .as_ref()
            .ok_or_else(|| Error::BadData("this scorer needs stored advantages".to_owned()))?;
        let mut scores = Vec::new();
        for row in rows {
            let values = advantages.of_row(row.row, row.targets)?;
            scores.extend(values.iter().map(|&value| f64::from(value)));
        }
        Ok(token_weights(&scores, whitening, &self.settings)?)
    }

    fn make(&self, step: u64, rows: &[StepRow], offsets: &[usize]) -> Result<TokenWeights> {
        let count = offsets[rows.len()];
        match &self.rule {
            Rule::Uniform => Ok(uniform(count, &self.settings)),
            Rule::Verifiable => self.verifiable_weights(rows),
            Rule::RandomMatched { seed } => {
                let observed = self.verifiable_weights(rows)?;
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(step);
                let settings = &self.settings;
                let seed = rng.next_u64();
                Ok(control::random_matched(
                    &observed.weights,
                    count,
                    seed,
                    settings,
                )?)
            }
            Rule::Shuffled { row_seeds } => {
                let mut made = self.verifiable_weights(rows)?;
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
    weights: Vec<f64>,
    c_times_count: f64,
    temperature: f64,
    excess: ExcessStats,
}

/// Rho-1: excess of the policy's cross-entropy over a tuned reference's, per head, normalised over each
/// micro-batch.
#[derive(Debug, Clone)]
pub struct Rho1Scorer {
    reference: Arc<TokenScores>,
    rho1: Rho1Settings,
    settings: WeightSettings,
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
            rows: Vec::new(),
            running: BTreeMap::new(),
            heads: BTreeMap::new(),
        }
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
        let made = match rho1.weighting {
            Rho1Weighting::Topk => rho1::topk(&scores, &rho1.selection, &self.settings)?,
            Rho1Weighting::Continuous => {
                let running = self
                    .running
                    .get(&horizon.get())
                    .and_then(Running::whitening);
                let whitening = running.unwrap_or_else(|| Whitening::of(&scores));
                token_weights(&scores, &whitening, &self.settings)?
            }
        };
        let head = self.heads.entry(horizon.get()).or_default();
        head.scores.extend(&scores);
        head.weights.extend(&made.weights);
        head.c_times_count += made.stats.projection_c * scores.len() as f64;
        head.temperature = head.temperature.max(made.stats.temperature);
        let excess = &mut head.excess;
        excess.targets += targets.len();
        excess.policy_ce += policy_ce.iter().sum::<f64>();
        excess.reference_ce += reference_ce.iter().sum::<f64>();
        excess.score += scores.iter().sum::<f64>();
        if rho1.weighting == Rho1Weighting::Topk {
            let w_max = self.settings.w_max;
            let selected = rho1.selection.num_selected(targets.len(), w_max);
            excess.selected = Some(excess.selected.unwrap_or(0) + selected);
        }
        Ok(made.weights)
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        let heads = std::mem::take(&mut self.heads);
        let finish = |(head, step): (usize, HeadStep)| {
            let running = self.running.entry(head).or_default();
            running.update(&Whitening::of(&step.scores));
            let c = step.c_times_count / step.scores.len().max(1) as f64;
            let stats = WeightStats::of(&step.weights, &self.settings, c, step.temperature);
            StepStats {
                head: Some(head),
                stats,
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
            .weigh(Horizon::new(1).unwrap(), &targets, ce.as_deref())
            .unwrap()
    }

    fn all_scorers() -> Vec<Box<dyn Scorer>> {
        let settings = WeightSettings::default();
        let seeds: BTreeMap<usize, u64> = [(0, 1), (2, 2), (5, 3)].into();
        let rho1 = |weighting| Rho1Settings {
            mode: ExcessMode::SignedExcess,
            weighting,
            selection: SOFT,
            min_ce_diff: 0.01,
        };
        vec![
            Box::new(StepScorer::baseline(settings)),
            Box::new(StepScorer::verifiable(scores(), whitening(), settings)),
            Box::new(StepScorer::random_matched(
                scores(),
                whitening(),
                settings,
                42,
            )),
            Box::new(StepScorer::shuffled(scores(), whitening(), settings, seeds)),
            Box::new(Rho1Scorer::new(
                scores(),
                rho1(Rho1Weighting::Continuous),
                settings,
            )),
            Box::new(Rho1Scorer::new(
                scores(),
                rho1(Rho1Weighting::Topk),
                settings,
            )),
        ]
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
