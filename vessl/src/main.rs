//! Reads: an experiment, a profile, prices, recipes. Makes: run specs, and runs on VESSL through its client.

use std::process::ExitCode;

use vessl_chain::{Check, Plan, Render, Submit};
use wmtp_job_kit::{Mode, main_with_modes};

fn main() -> ExitCode {
    main_with_modes(
        "wmtp-vessl",
        "Runs experiments on VESSL, one run after another.",
        vec![
            Mode::tool::<Plan>("plan"),
            Mode::tool::<Render>("render"),
            Mode::tool::<Check>("check"),
            Mode::tool::<Submit>("submit"),
        ],
        None,
    )
}
