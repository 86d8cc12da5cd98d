//! Reads: a leaderboard and everything it rests on. Writes: a folder of static pages.

use std::process::ExitCode;

use build_site::BuildSite;
use wmtp_job_kit::{Mode, main_with_modes};

fn main() -> ExitCode {
    main_with_modes(
        "build-site",
        "Renders a leaderboard, its versions, tasks, comparisons and runs to static HTML.",
        vec![],
        Some(Mode::tool::<BuildSite>("build")),
    )
}
