//! `leaderboard.json`: what build-leaderboard writes and the site reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wmtp_records::{EXTERNAL, ErrorClass, HeadLoss, Metric, Split};

use crate::{Difference, Estimate, Interval, Resolution};

/// Name of the metric that orders a leaderboard.
pub const PRIMARY_METRIC: &str = "pass_at_1";

/// Seeds that a claim of improvement needs on both sides.
pub const SEEDS_FOR_A_CLAIM: usize = 3;

/// Paths inside a leaderboard artifact; one place for writer and readers.
pub mod files {
    /// The founding table.
    pub const CSV: &str = "leaderboard.csv";
    /// [`super::Leaderboard`].
    pub const JSON: &str = "leaderboard.json";
    /// The table with ranks, intervals and differences.
    pub const PARQUET: &str = "leaderboard.parquet";

    /// What the whole board says, for people.
    pub const FINAL_ANALYSIS: &str = "final-analysis.md";
    /// The card of the best trained version.
    pub const MODEL_CARD: &str = "model-card.md";
    /// What a loop found in its first recipe, and changed.
    pub const BASELINE_REPORT: &str = "baseline_patch_report.md";
    /// [`super::HeldOut`], where the winner was scored once on the test split.
    pub const HELD_OUT: &str = "held-out.json";

    /// Folder of one version, as `artifact_relpath` names it.
    pub fn version_dir(version_id: &str) -> String {
        format!("versions/{version_id}")
    }

    /// The computed analysis of one version.
    pub fn analysis(version_id: &str) -> String {
        format!("versions/{version_id}/result-analysis.md")
    }

    /// The figures behind it.
    pub fn figures(version_id: &str) -> String {
        format!("versions/{version_id}/result-analysis.json")
    }

    /// The one action that was selected after a version was judged.
    pub fn action(version_id: &str) -> String {
        format!("versions/{version_id}/action-extract.md")
    }

    /// How often a version's training had to be begun, where that was more than once.
    pub fn retry_report(version_id: &str) -> String {
        format!("versions/{version_id}/train_retry_report.md")
    }
}

/// All versions on one evaluation set, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leaderboard {
    /// Evaluation set, for example `micropy-test`.
    pub dataset_id: String,
    /// Evaluated split.
    pub split: Split,
    /// Metric that orders the rows.
    pub primary_metric: String,
    /// Its direction.
    pub higher_is_better: bool,
    /// Time of the newest score, ISO 8601, UTC.
    pub created_at: String,
    /// Processed-data artifact of the problems.
    pub data: String,
    /// Number of tasks.
    pub num_tasks: usize,
    /// Sampling settings and limits, the same for every version; models from outside share number of samples and limits.
    pub protocol: BTreeMap<String, String>,
    /// What the sandbox could enforce: layer to state.
    pub sandbox: BTreeMap<String, String>,
    /// What this set of tasks can resolve, from the two best trained versions.
    pub resolution: Option<Resolution>,
    /// One row per version.
    pub rows: Vec<LeaderboardRow>,
    /// What a reader must know: missing metrics, missing controls.
    pub warnings: Vec<String>,
    /// The best version of each other algorithm against the best baseline.
    #[serde(default)]
    pub algorithm_bests: Vec<AlgorithmBest>,
}

/// The best version of an algorithm against the best baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlgorithmBest {
    /// The version.
    pub this: String,
    /// Against the best baseline.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// `held-out.json`: the one score of the winner on the test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The winner on validation.
    pub version_id: String,
    /// The test set.
    pub dataset_id: String,
    /// Its split.
    pub split: Split,
    /// Its tasks.
    pub num_tasks: usize,
    /// Training seeds, rising.
    pub seeds: Vec<u64>,
    /// The metric.
    pub primary_metric: String,
    /// Its value on the test set.
    pub estimate: Estimate,
    /// Its value on the set that chose the winner.
    pub validation: Estimate,
    /// Where the numbers come from, one artifact per seed.
    pub scores: Vec<String>,
}

/// One version with its seeds pooled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaderboardRow {
    /// `v001`, `base`, or the name of a model from outside.
    pub version_id: String,
    /// Evaluation set.
    pub dataset_id: String,
    /// Time of the newest of its scores.
    pub created_at: String,
    /// Mean wall time of one generated sample in milliseconds, where it is known.
    pub latency_ms: Option<f64>,
    /// Folder of the version beside the table.
    pub artifact_relpath: String,
    /// Means over seeds.
    pub metrics: Vec<Metric>,
    /// Rank that the noise allows; `None` without the primary metric.
    pub rank: Option<u32>,
    /// Algorithm key of the recipe, or `base`, or [`EXTERNAL`].
    pub algo: String,
    /// Version that this one was derived from.
    pub parent: Option<String>,
    /// The one change against the parent, in words.
    pub change: Option<String>,
    /// Training seeds, rising; empty for the base and for models from outside.
    pub seeds: Vec<u64>,
    /// Graded samples of all seeds.
    pub num_samples: u64,
    /// The primary metric with its interval over tasks.
    pub estimate: Option<Estimate>,
    /// Tasks that the greedy sample solves; with one seed only.
    #[serde(default)]
    pub greedy_passed: Option<u64>,
    /// Wilson's interval of their share.
    #[serde(default)]
    pub greedy_interval: Option<Interval>,
    /// Paired difference to the first row.
    pub against_leader: Option<Comparison>,
    /// Paired difference to the parent.
    pub against_parent: Option<Comparison>,
    /// Paired difference to the unweighted baseline that it descends from.
    pub against_baseline: Option<Comparison>,
    /// Paired differences to the control versions.
    pub against_controls: Vec<Comparison>,
    /// Prediction heads on the reference solutions, means over seeds.
    pub heads: Vec<HeadLoss>,
    /// Share of sampled programs per error class, means over seeds.
    pub error_shares: BTreeMap<ErrorClass, f64>,
    /// Mean pass rate per problem family.
    pub families: Vec<FamilyScore>,
    /// Where the numbers come from, one per seed.
    pub runs: Vec<RunSource>,
}

impl LeaderboardRow {
    /// The value of a metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics
            .iter()
            .find(|m| m.name == name)
            .map(|m| m.value)
    }

    /// What the draws of its interval take with replacement.
    pub fn resampled(&self) -> &'static str {
        match self.seeds.len() {
            0 | 1 => "tasks",
            _ => "tasks and seeds",
        }
    }

    /// Whether the version is the untrained model.
    pub fn is_base(&self) -> bool {
        self.algo == "base"
    }

    /// Whether the row is a model that was not trained here: it is compared like a version, and has neither recipe nor parent.
    pub fn is_external(&self) -> bool {
        self.algo == EXTERNAL
    }

    /// Whether the version was trained here, so that it can win, be promoted and lead to a next one.
    pub fn is_trained(&self) -> bool {
        !self.is_base() && !self.is_external()
    }

    /// Whether the version is a control: weights that say nothing about the tokens.
    pub fn is_control(&self) -> bool {
        matches!(self.algo.as_str(), "random_matched" | "shuffled")
    }

    /// Whether the version weights tokens by a scorer that is meant to matter.
    pub fn is_weighted(&self) -> bool {
        matches!(self.algo.as_str(), "verifiable" | "rho1")
    }
}

/// Mean pass rate on the tasks of one family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FamilyScore {
    /// Problem family; empty where the data set has none.
    pub family: String,
    /// Tasks in it.
    pub num_tasks: usize,
    /// Mean over its tasks.
    pub mean: f64,
}

/// Artifacts behind one seed of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSource {
    /// Training seed; `None` for the base and for models from outside.
    pub seed: Option<u64>,
    /// Scores artifact.
    pub scores: String,
    /// Checkpoint (or base model) artifact; a model from outside has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// One version against another, over the same tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The other version.
    pub other: String,
    /// This minus the other.
    pub difference: Difference,
    /// Holm-corrected p-value; only for comparisons with the leader.
    pub p_holm: Option<f64>,
    /// Exact McNemar on the greedy samples; only with one seed on both sides.
    pub greedy: Option<Discordance>,
    /// What may be said.
    pub verdict: Verdict,
    /// Why no more may be said, or what the verdict rests on.
    pub reason: String,
}

/// What a reason says where only seeds are missing.
const SEEDS_MISSING: &str = "seeds on both sides";

impl Comparison {
    /// Why a difference is not claimed although its interval excludes 0: a side has too few seeds.
    pub fn too_few_seeds(seeds: usize) -> String {
        format!(
            "the interval excludes 0, but a claim needs {SEEDS_FOR_A_CLAIM} {SEEDS_MISSING}, not {seeds}"
        )
    }

    /// Whether the interval excludes 0 and nothing but the number of seeds keeps it from being claimed.
    pub fn lacks_seeds(&self) -> bool {
        self.is_held_back() && self.reason.contains(SEEDS_MISSING)
    }

    /// Whether the interval excludes 0 and the rule for claims holds it back all the same.
    pub fn is_held_back(&self) -> bool {
        self.verdict == Verdict::NoDifference && self.difference.is_significant()
    }

    /// The verdict in the words of report and site. Beside an interval that excludes 0, "no difference detected" would read
    /// as a mistake, so the words say what is missing; they claim no more.
    pub fn words(&self) -> &'static str {
        if self.lacks_seeds() {
            "too few seeds to tell"
        } else if self.is_held_back() && self.reason.contains("control") {
            "not told from the controls"
        } else {
            self.verdict.words()
        }
    }
}

/// Tasks on which two versions disagree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Discordance {
    /// Solved by this version alone.
    pub only_this: u64,
    /// Solved by the other alone.
    pub only_other: u64,
    /// Exact two-sided McNemar p-value.
    pub p_value: f64,
}

/// What the evidence allows to say about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// An improvement that meets the rule for claims.
    Better,
    /// A loss, by the same rule.
    Worse,
    /// Anything less.
    NoDifference,
}

impl Verdict {
    /// The words of report and site.
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "no difference detected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interval;

    fn comparison(high: f64, verdict: Verdict, reason: &str) -> Comparison {
        Comparison {
            other: "v001".to_owned(),
            difference: Difference {
                difference: -0.249,
                interval: Interval { low: -0.334, high },
                p_value: 0.01,
            },
            p_holm: None,
            greedy: None,
            verdict,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn what_is_held_back_says_what_a_claim_lacks() {
        let seeds = comparison(-0.166, Verdict::NoDifference, &Comparison::too_few_seeds(1));
        assert_eq!(
            seeds.reason,
            "the interval excludes 0, but a claim needs 3 seeds on both sides, not 1"
        );
        assert_eq!(seeds.words(), "too few seeds to tell");
        let controls = "the interval excludes 0, but the control shuffled is missing";
        let controls = comparison(-0.166, Verdict::NoDifference, controls);
        assert_eq!(controls.words(), "not told from the controls");
        let level = comparison(0.03, Verdict::NoDifference, "the interval includes 0");
        assert_eq!(level.words(), "no difference detected");
        assert!(!level.is_held_back() && !level.lacks_seeds());
        let worse = comparison(-0.166, Verdict::Worse, "the interval excludes 0");
        assert_eq!(worse.words(), "worse");
    }
}
