//! Reads: scores of every version and seed. Writes: leaderboard tables, analyses and a report folder.

use std::process::ExitCode;

use build_leaderboard::{
    AuditBaseline, BuildLeaderboard, NextVersion, Promote, RetryReport, SelectAction, Winner,
};
use wmtp_job_kit::{Job, Mode};

fn main() -> ExitCode {
    wmtp_job_kit::main_with_modes(
        BuildLeaderboard::NAME,
        BuildLeaderboard::ABOUT,
        vec![
            Mode::tool::<AuditBaseline>("audit-baseline"),
            Mode::tool::<SelectAction>("select-action"),
            Mode::tool::<NextVersion>("next-version"),
            Mode::tool::<RetryReport>("retry-report"),
            Mode::tool::<Winner>("winner"),
            Mode::tool::<Promote>("promote"),
        ],
        Some(Mode::job::<BuildLeaderboard>(BuildLeaderboard::NAME)),
    )
}
