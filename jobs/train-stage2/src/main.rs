//! Reads: a data set, a base model, advantages or reference cross-entropies. Writes: a checkpoint.

use std::process::ExitCode;

fn main() -> ExitCode {
    wmtp_job_kit::main::<train_stage2::TrainStage2>()
}
