//! Scores of one run on one evaluation set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Audit, AuditOutcome, Contamination, ErrorClass, Split};

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
    /// `None` for a model from outside that does not say.
    pub latency_ms: Option<f64>,
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
    /// What of the problem was among the rows that the model was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contamination: Option<Contamination>,
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

/// Loss against a next-token reference on the same targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceLoss {
    /// The reference-ce artifact whose tuned model is the reference.
    pub reference: String,
    /// Mean cross-entropy of the reference per target of the first head, nats.
    pub ce_nats: f64,
    /// Mean excess of each head over the reference, in the order of horizons, nats: below 0 the head predicts better.
    pub excess_nats: Vec<f64>,
}

/// How often a version with one training seed was judged on the test set, which serves the final report once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestTouch {
    /// 1 for the first judgement under this protocol, 2 for the second, which is no first look any more.
    pub number: usize,
    /// Every earlier one, the oldest first.
    pub earlier: Vec<EarlierTouch>,
}

/// A judgement on the test set before the present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierTouch {
    /// The run that judged.
    pub run_id: String,
    /// When it began: ISO 8601, UTC.
    pub begun_at: String,
    /// Whether sampling settings and limits were the present ones.
    pub same_protocol: bool,
}

/// What one attempt of a run took, in its `usage` event and the summary of its result; also `usage.json` of scores and
/// completions. Times, so it stands outside what decides a result; what a killed attempt took before is not in it, nor what
/// shards took, which have a record of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds on the wall from the claim of the run to this record.
    pub wall_secs: f64,
    /// Seconds of processor time of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_secs: Option<f64>,
    /// Where it computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<UsedDevice>,
    /// The most memory of the process that led it, resident at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Bytes of the inputs that it read, from the store or from a copy on its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<u64>,
    /// Bytes of the artifacts that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Tokens that were trained on or generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Energy of the machine meanwhile, whatever else it did.
    pub energy: Option<Energy>,
    /// Price of the machine meanwhile.
    pub cost: Option<Cost>,
    /// What is not stated, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedDevice {
    /// As it was asked for: `cpu`, `cuda:0`.
    pub place: String,
    /// The maker's name of it, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version of its driver, where that tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// How many processes shared the work: on GPUs, one each.
    pub ranks: usize,
}

/// Energy, and how it is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// Whether counters of the processor were read; else power was stated and multiplied by time.
    pub is_measured: bool,
    /// The counters, or where the stated power comes from.
    pub source: String,
}

/// A price, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// In units of the currency.
    pub amount: f64,
    /// ISO 4217 code.
    pub currency: String,
    /// Who asks that price of an hour, and when it was looked up.
    pub source: String,
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

/// What stands in place of an algorithm for a model that was not trained here.
pub const EXTERNAL: &str = "external";

/// What the untrained model is called in place of a version.
pub const BASE: &str = "base";

/// Why a model that was not trained here must not be called so; `None` where it may.
pub fn bad_external_name(name: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Some("its name is no plain one (letters, digits, . _ -)");
    }
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    if name == BASE || name.strip_prefix('v').is_some_and(is_number) {
        return Some("its name is that of a version trained here");
    }
    None
}

/// `summary.json` of a scores artifact: all that identifies and explains the scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreSummary {
    /// Version that was evaluated: `v001`, `base` for the untrained model, or the name of a model from outside.
    pub version_id: String,
    /// Algorithm key of the recipe, or `base`, or [`EXTERNAL`].
    pub algo: String,
    /// Version that this one was derived from.
    pub parent: Option<String>,
    /// The one change against the parent, in words.
    pub change: Option<String>,
    /// Training seed; `None` for the base and for models from outside.
    pub seed: Option<u64>,
    /// Data set name.
    pub dataset: String,
    /// Evaluated split.
    pub split: Split,
    /// Digest of all that runs on one leaderboard must share; see the recipe crate.
    pub shared_digest: String,
    /// Checkpoint (or base model) artifact that generated the samples; a model from outside has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Processed-data artifact that the problems come from.
    pub data: String,
    /// Sampling settings and limits, as resolved; of a model from outside, the part that judging decides.
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
    /// Loss against a reference, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_loss: Option<ReferenceLoss>,
    /// The data that the model was trained on, against which problems were held; `None` where it is not known or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<String>,
    /// Number of problems by what of them was among the training rows; the others are clean.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contaminated: BTreeMap<Contamination, usize>,
    /// Of a judgement on the test split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_touch: Option<TestTouch>,
}

/// Paths inside a scores artifact.
pub mod score_files {
    /// [`super::EvalScore`].
    pub const EVAL_SCORE: &str = "eval_score.json";
    /// [`super::ScoreSummary`].
    pub const SUMMARY: &str = "summary.json";
    /// [`super::Latency`].
    pub const LATENCY: &str = "latency.json";
    /// [`super::Usage`].
    pub const USAGE: &str = "usage.json";
    /// JSON lines of [`crate::GradedSample`].
    pub const SAMPLES: &str = "samples.jsonl";
    /// JSON lines of [`super::ProblemCount`].
    pub const PROBLEMS: &str = "problems.jsonl";
    /// Folder of shown samples: `0001/{input.txt, output.txt, gt.txt, meta.json}`.
    pub const INFER_SAMPLES: &str = "infer_samples";
}
