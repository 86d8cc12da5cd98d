//! What one row is: record, problem, sample, completion, verdict, score, leaderboard row.
//!
//! Every artifact holds rows of these types and nothing else; whoever writes or reads one uses the type,
//! so that a field has one name everywhere. Rows travel as JSON lines ([`jsonl`]).

mod action;
mod capabilities;
mod completion;
pub mod jsonl;
mod problem;
mod record;
mod score;

pub use action::{ACTION_PARTS, ActionForm, ActionPart};
pub use capabilities::{Capabilities, Lack, ModelSizes, Needs};
pub use completion::{
    Audit, AuditOutcome, CaseCounts, Completion, CompletionTiming, ErrorClass, GradedSample,
    Verdict, completion_files,
};
pub use problem::{Case, Contamination, Problem, Split, Tests};
pub use record::{DataSchema, Record, RecordMetadata, data_files};
pub use score::{
    BASE, Cost, DoubtfulPass, EXTERNAL, EarlierTouch, Energy, EvalScore, HeadLoss, Latency, Metric,
    Percentiles, ProblemCount, ReferenceLoss, ScoreSummary, Spread, TestTouch, Usage, UsedDevice,
    bad_external_name, score_files,
};
