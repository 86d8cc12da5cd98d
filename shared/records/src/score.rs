//! Scores of one run on one evaluation set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Audit, AuditOutcome, ErrorClass, Split};

/// `eval_score.json` in the founding schema. Made by evaluate; read by build-leaderboard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalScore {
    /// Evaluation set, for example `micropy-test`.
    pub dataset_id: String,
    /// ISO 8601, UTC.
    pub created_at: String,
    /// Graded samples.
    pub num_samples: u64,
    /// Named values. Names never hold `@`.
    pub metrics: Vec<Metric>,
    /// Median wall time of one sample in milliseconds, from taking up its prompt to its end; [`Latency`] has the rest.
    pub latency_ms: f64,
}

/// `latency.json`: how long generation took, with as many texts beside each other as the job generates at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Samples that were timed.
    pub num_samples: usize,
    /// From taking up a prompt to the first token.
    pub prefill_ms: Percentiles,
    /// A token after the first, the mean of each sample.
    pub token_ms: Percentiles,
    /// From taking up a prompt to the sample's end.
    pub sample_ms: Percentiles,
    /// Most texts that one thread writes on at once.
    pub texts_at_once: usize,
    /// Threads that generate.
    pub threads: usize,
    /// Number format of weights and arithmetic.
    pub dtype: String,
}

/// Milliseconds that a half, nine in ten and 99 in 100 did not exceed (nearest rank); 0 where nothing was timed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
}

impl Percentiles {
    /// The percentiles of some values.
    ///
    /// ```
    /// let percentiles = wmtp_records::Percentiles::of((1..=200).map(f64::from));
    /// assert_eq!((percentiles.p50, percentiles.p90, percentiles.p99), (100.0, 180.0, 198.0));
    /// ```
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (percent * sorted.len()).div_ceil(100);
            sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        Self {
            p50: at(50),
            p90: at(90),
            p99: at(99),
        }
    }
}

/// One named value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// For example `pass_at_1`.
    pub name: String,
    /// The value; shares are in 0…1.
    pub value: f64,
    /// Direction in which a value is better.
    pub higher_is_better: bool,
}

/// How one problem went: one line of `problems.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemCount {
    /// The problem.
    pub problem_id: String,
    /// Problem family or empty.
    #[serde(default)]
    pub family: String,
    /// Graded samples (n).
    pub num_samples: u32,
    /// Passing samples (c).
    pub num_passed: u32,
    /// Whether the greedy sample passed.
    pub greedy_passed: Option<bool>,
}

/// Unweighted cross-entropy of one prediction head on the reference solutions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadLoss {
    /// 1-based distance to the target.
    pub horizon: u32,
    /// Mean cross-entropy per target token, nats.
    pub ce_nats: f64,
    /// Share of targets that the head's argmax predicts.
    pub accuracy: f64,
    /// Number of targets.
    pub num_targets: u64,
}

/// How sure a mean over problems is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Standard error of the mean; `None` with one problem.
    pub standard_error: Option<f64>,
    /// Lower end of the 95 % interval, by resampling problems.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// A program that passes beside its tests, and of which the audit did not say that it passes from a process of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtfulPass {
    /// The problem.
    pub problem_id: String,
    /// Number of the sample; `None` for the greedy one.
    pub sample: Option<u32>,
    /// What the audit said.
    pub audit: Audit,
}

/// `summary.json` of a scores artifact: all that identifies and explains the scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreSummary {
    /// Version that was evaluated: `v001`, or `base` for the untrained model.
    pub version_id: String,
    /// Algorithm key of the recipe, or `base`.
    pub algo: String,
    /// Version that this one was derived from.
    pub parent: Option<String>,
    /// The one change against the parent, in words.
    pub change: Option<String>,
    /// Training seed; `None` for the base.
    pub seed: Option<u64>,
    /// Data set name.
    pub dataset: String,
    /// Evaluated split.
    pub split: Split,
    /// Digest of all that runs on one leaderboard must share; see the recipe crate.
    pub shared_digest: String,
    /// Checkpoint (or base model) artifact that generated the samples.
    pub checkpoint: String,
    /// Processed-data artifact that the problems come from.
    pub data: String,
    /// Sampling settings and limits, as resolved.
    pub protocol: BTreeMap<String, String>,
    /// Prediction heads on the reference solutions.
    pub heads: Vec<HeadLoss>,
    /// Share of sampled programs per error class.
    pub error_shares: BTreeMap<ErrorClass, f64>,
    /// How sure pass@1 is.
    #[serde(default)]
    pub pass_at_1_spread: Option<Spread>,
    /// Number of passing programs per outcome of their audit, the greedy ones too.
    #[serde(default)]
    pub audits: BTreeMap<AuditOutcome, u64>,
    /// Passes that their audit did not confirm.
    #[serde(default)]
    pub doubtful: Vec<DoubtfulPass>,
    /// What the sandbox could enforce: layer to state.
    pub sandbox: BTreeMap<String, String>,
}

/// Paths inside a scores artifact.
pub mod score_files {
    /// [`super::EvalScore`].
    pub const EVAL_SCORE: &str = "eval_score.json";
    /// [`super::ScoreSummary`].
    pub const SUMMARY: &str = "summary.json";
    /// [`super::Latency`].
    pub const LATENCY: &str = "latency.json";
    /// JSON lines of [`crate::GradedSample`].
    pub const SAMPLES: &str = "samples.jsonl";
    /// JSON lines of [`super::ProblemCount`].
    pub const PROBLEMS: &str = "problems.jsonl";
    /// Folder of shown samples: `0001/{input.txt, output.txt, gt.txt, meta.json}`.
    pub const INFER_SAMPLES: &str = "infer_samples";
}
