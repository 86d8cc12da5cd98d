//! Reads: checkpoint or base model, processed data. Writes: samples, verdicts, scores.

use std::process::ExitCode;

use evaluate::{Complete, Evaluate, External, Grade, Infer};
use wmtp_job_kit::{Job, Mode};

fn main() -> ExitCode {
    if let Some(failed) = wmtp_grading::launched() {
        return failed;
    }
    wmtp_job_kit::main_with_modes(
        "evaluate",
        Evaluate::ABOUT,
        vec![
            Mode::job::<Infer>("infer"),
            Mode::job::<External>("external"),
            Mode::store_tool::<Complete>("complete"),
            Mode::file_tool::<Grade>("grade"),
        ],
        Some(Mode::job::<Evaluate>("evaluate")),
    )
}
