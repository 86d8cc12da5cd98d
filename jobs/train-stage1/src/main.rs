//! Reads: a data set and a base model. Writes: a value model and advantages, or a reference's cross-entropies.

use std::process::ExitCode;

fn main() -> ExitCode {
    wmtp_job_kit::main::<train_stage1::TrainStage1>()
}
