//! Paired comparisons and what may be claimed from them.

use wmtp_stats::leaderboard::{
    Comparison, Discordance, LeaderboardRow, SEEDS_FOR_A_CLAIM, Verdict, files,
};
use wmtp_stats::{DRAWS, Difference, Estimate, Resampler, Seeds, holm, mcnemar_exact, wilson};

use super::pool::Pooled;

/// Seed of every bootstrap of a report.
pub(crate) const SEED: u64 = 42;

/// Compares pooled versions that stand best first.
pub(super) struct Comparer<'a> {
    versions: &'a [Pooled],
    resampler: Resampler,
    /// Holm-corrected p-value against the first version; `None` for it and for versions without the metric.
    p_holm: Vec<Option<f64>>,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(versions: &'a [Pooled]) -> Self {
        let mut comparer = Self {
            versions,
            resampler: Resampler::new(versions[0].task_scores.len(), DRAWS, SEED)
                .expect("there is a task at least"),
            p_holm: vec![None; versions.len()],
        };
        let has_primary = |index: &usize| versions[*index].primary().is_some();
        let tested: Vec<usize> = (1..versions.len()).filter(has_primary).collect();
        for (&index, p) in tested.iter().zip(comparer.corrected(0, &tested)) {
            comparer.p_holm[index] = Some(p);
        }
        comparer
    }

    /// Holm-corrected p-values of some versions against one.
    pub(super) fn corrected(&self, leader: usize, others: &[usize]) -> Vec<f64> {
        let p = |&other: &usize| {
            let (this, leader) = (&self.versions[other], &self.versions[leader]);
            self.paired(this, leader).p_value
        };
        holm(&others.iter().map(p).collect::<Vec<f64>>())
    }

    /// The row of one version, still without its rank.
    pub(super) fn row(&self, index: usize) -> LeaderboardRow {
        let version = &self.versions[index];
        let has_primary = version.primary().is_some();
        let against = |other: Option<&Pooled>| {
            other
                .filter(|other| has_primary && other.primary().is_some())
                .map(|other| self.compare(version, other))
        };
        let against_leader =
            against(self.versions.first().filter(|_| index > 0)).map(|comparison| Comparison {
                p_holm: self.p_holm[index],
                ..comparison
            });
        let greedy_passed = (version.greedy.as_ref())
            .map(|outcomes| outcomes.iter().filter(|passed| **passed).count() as u64);
        let tasks = version.tasks.len() as u64;
        LeaderboardRow {
            version_id: version.version_id.clone(),
            dataset_id: version.dataset_id.clone(),
            created_at: version.created_at.clone(),
            latency_ms: version.latency_ms,
            artifact_relpath: files::version_dir(&version.version_id),
            metrics: version.metrics.clone(),
            rank: None,
            algo: version.algo.clone(),
            parent: version.parent.clone(),
            change: version.change.clone(),
            seeds: version.seeds.clone(),
            num_samples: version.num_samples,
            estimate: has_primary.then(|| self.level(version)).flatten(),
            greedy_passed,
            greedy_interval: greedy_passed.and_then(|passed| wilson(passed, tasks)),
            against_leader,
            against_parent: against(self.named(version.parent.as_deref())),
            against_baseline: against(self.baseline_of(version)),
            against_controls: self
                .controls()
                // A control says something of how a version was trained.
                .filter(|_| !version.is_external())
                .filter(|control| control.version_id != version.version_id)
                .filter_map(|control| against(Some(control)))
                .collect(),
            heads: version.heads.clone(),
            error_shares: version.error_shares.clone(),
            families: version.families.clone(),
            runs: version.runs.clone(),
        }
    }

    /// The primary metric with its interval: Wilson's for one sample a task, else from resamples of tasks and seeds.
    fn level(&self, version: &Pooled) -> Option<Estimate> {
        if let [only] = version.counts.as_slice()
            && only.iter().all(|(samples, _)| *samples == 1)
        {
            let passed: u64 = only.iter().map(|(_, passed)| passed).sum();
            return Some(Estimate {
                mean: passed as f64 / only.len() as f64,
                interval: wilson(passed, only.len() as u64)?,
            });
        }
        self.resampler.mean(&version.rows())
    }

    pub(super) fn compare(&self, this: &Pooled, other: &Pooled) -> Comparison {
        let difference = self.paired(this, other);
        let (verdict, reason) = self.judge(this, other, &difference);
        Comparison {
            other: other.version_id.clone(),
            difference,
            p_holm: None,
            greedy: discordance(this, other),
            verdict,
            reason,
        }
    }

    /// The rule for claims. Against the untrained base the interval alone decides: nothing is claimed there but
    /// that training works. So it does against a model from outside, which has no seeds to draw from: two given models
    /// differ on these tasks.
    fn judge(&self, this: &Pooled, other: &Pooled, difference: &Difference) -> (Verdict, String) {
        let no = |reason: String| (Verdict::NoDifference, reason);
        if !difference.is_significant() {
            return no("the interval includes 0".to_owned());
        }
        let direction = if difference.difference > 0.0 {
            Verdict::Better
        } else {
            Verdict::Worse
        };
        if !this.is_trained() || !other.is_trained() {
            return (direction, "the interval excludes 0".to_owned());
        }
        let seeds = this.seeds.len().min(other.seeds.len());
        if seeds < SEEDS_FOR_A_CLAIM {
            return no(Comparison::too_few_seeds(seeds));
        }
        let weighted = matches!(this.algo.as_str(), "verifiable" | "rho1");
        if direction == Verdict::Better
            && weighted
            && !is_control(other)
            && let Some(reason) = self.lost_to_controls(this)
        {
            return no(reason);
        }
        (direction, "the interval excludes 0".to_owned())
    }

    /// Why a weighted version has not won over both controls; `None` if it has.
    fn lost_to_controls(&self, this: &Pooled) -> Option<String> {
        for algo in ["random_matched", "shuffled"] {
            if !self
                .controls()
                .any(|control| control.algo == algo && control.primary().is_some())
            {
                return Some(format!(
                    "the interval excludes 0, but the control {algo} is missing"
                ));
            }
        }
        self.controls()
            .filter(|control| control.primary().is_some())
            .find(|control| self.paired(this, control).interval.low <= 0.0)
            .map(|control| {
                format!(
                    "the interval excludes 0, but so little separates it from the control {} that the weights' placement explains nothing",
                    control.version_id
                )
            })
    }

    fn paired(&self, this: &Pooled, other: &Pooled) -> Difference {
        self.resampler
            .difference(&this.rows(), &other.rows(), pairing(this, other))
            .expect("all versions have the same tasks, and there is one at least")
    }

    fn named(&self, id: Option<&str>) -> Option<&'a Pooled> {
        self.versions
            .iter()
            .find(|version| Some(version.version_id.as_str()) == id)
    }

    fn controls(&self) -> impl Iterator<Item = &'a Pooled> {
        self.versions.iter().filter(|version| is_control(version))
    }

    /// The nearest ancestor with the baseline algorithm, or the first baseline by name.
    fn baseline_of(&self, version: &Pooled) -> Option<&'a Pooled> {
        if version.algo == "baseline" || !version.is_trained() {
            return None;
        }
        let mut ancestor = self.named(version.parent.as_deref());
        for _ in 0..self.versions.len() {
            match ancestor {
                Some(found) if found.algo == "baseline" => return Some(found),
                Some(found) => ancestor = self.named(found.parent.as_deref()),
                None => break,
            }
        }
        self.versions
            .iter()
            .filter(|version| version.algo == "baseline")
            .min_by(|a, b| a.version_id.cmp(&b.version_id))
    }
}

/// The same training seeds on both sides are pairs: they share data order and initial weights.
pub(crate) fn pairing(this: &Pooled, other: &Pooled) -> Seeds {
    if this.seeds.len() == this.pass_rates.len() && this.seeds == other.seeds {
        Seeds::Paired
    } else {
        Seeds::Independent
    }
}

fn is_control(version: &Pooled) -> bool {
    matches!(version.algo.as_str(), "random_matched" | "shuffled")
}

/// Greedy outcomes side by side, where both sides have one per task.
fn discordance(this: &Pooled, other: &Pooled) -> Option<Discordance> {
    let (this, other) = (this.greedy.as_ref()?, other.greedy.as_ref()?);
    let count = |wanted: (bool, bool)| {
        this.iter()
            .zip(other)
            .filter(|(a, b)| (**a, **b) == wanted)
            .count() as u64
    };
    let (only_this, only_other) = (count((true, false)), count((false, true)));
    Some(Discordance {
        only_this,
        only_other,
        p_value: mcnemar_exact(only_this, only_other),
    })
}
