//! Reads: the bake file, the Dockerfile, images. Makes: images, and a verdict on them.

use std::process::ExitCode;

use job_images::{Build, Conform, Lint, Release, Run, Traces};
use wmtp_job_kit::{Mode, main_with_modes};

fn main() -> ExitCode {
    main_with_modes(
        "wmtp-images",
        "Builds the jobs' images and holds them against the job contract.",
        vec![
            Mode::file_tool::<Build>("build"),
            Mode::file_tool::<Lint>("lint"),
            Mode::file_tool::<Conform>("conform"),
            Mode::file_tool::<Run>("run"),
            Mode::file_tool::<Release>("release"),
            Mode::file_tool::<Traces>("traces"),
        ],
        None,
    )
}
