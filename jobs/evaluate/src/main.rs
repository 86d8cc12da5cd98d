//! Reads: checkpoint or base model, processed data. Writes: samples, verdicts, scores.

use std::process::ExitCode;

use evaluate::{Evaluate, Grade, Infer};
use wmtp_job_kit::Mode;

fn main() -> ExitCode {
    if let Some(failed) = wmtp_grading::launched() {
        return failed;
    }
    wmtp_job_kit::main_with_modes(
        "evaluate",
        "Generates programs, executes them in the sandbox and scores them.",
        vec![Mode::job::<Infer>("infer"), Mode::tool::<Grade>("grade")],
        Some(Mode::job::<Evaluate>("evaluate")),
    )
}
