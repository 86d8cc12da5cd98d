//! Reads: raw rows, or nothing for micropy. Writes: processed data (rows, token ids, splits, statistics).

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(failed) = wmtp_grading::launched() {
        return failed;
    }
    wmtp_job_kit::main::<prepare_data::PrepareData>()
}
