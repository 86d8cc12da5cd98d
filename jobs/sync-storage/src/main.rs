//! Reads: folders of raw data and model bundles, a data set's tokenizer. Writes: raw-data and base-model artifacts.

use std::process::ExitCode;

fn main() -> ExitCode {
    wmtp_artifacts::without_huge_pages();
    wmtp_job_kit::main_with_modes(
        sync_storage::NAME,
        sync_storage::ABOUT,
        sync_storage::modes(),
        None,
    )
}
