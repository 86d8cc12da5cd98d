//! Reads: scores of every version and seed. Writes: leaderboard tables, analyses and a report folder.

use std::process::ExitCode;

fn main() -> ExitCode {
    wmtp_job_kit::main::<build_leaderboard::BuildLeaderboard>()
}
