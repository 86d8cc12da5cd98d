//! `promote`: a version moves to staging or production through a gate; every question and answer is logged.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use wmtp_artifacts::ArtifactId;
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_stats::leaderboard::{Comparison, LeaderboardRow, Verdict};

use super::Board;
use crate::loop_folder::read_if_any;
use crate::report::best;

/// Where a version is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// For those who try it.
    Staging,
    /// For those who rely on it.
    Production,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }
}

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct Promote {
    /// The leaderboard: a name or an id
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
    /// Where the version is to be used
    #[arg(long, value_enum)]
    to: Stage,
    /// The version; the best trained one when left out
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// The log, JSON lines, appended to
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
}

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    at: String,
    version_id: String,
    checkpoint: String,
    from: Option<Stage>,
    to: Stage,
    granted: bool,
    gate: Vec<Check>,
    leaderboard: String,
}

/// One condition of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    condition: String,
    holds: bool,
    found: String,
}

impl Tool for Promote {
    const ABOUT: &'static str = "Moves a version to staging or production, if the gate lets it through, and appends question and answer to a log.";
    const EXAMPLES: &'static str = "\
build-leaderboard promote --leaderboard micropy-loop --to staging --name micropy --log promotions.jsonl
build-leaderboard promote --leaderboard micropy-loop --to production --name micropy --log promotions.jsonl";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let board = Board::load(&self.leaderboard, cx.store()?)?;
        let row = match &self.version {
            Some(id) => board.board.rows.iter().find(|row| row.version_id == *id),
            None => best(&board.board),
        };
        let row = row.ok_or_else(|| {
            JobError::bad_input("the leaderboard has no such trained version")
                .hint("`build-leaderboard winner` prints the best one")
        })?;
        let checkpoint = row
            .runs
            .first()
            .map(|run| run.checkpoint.clone())
            .unwrap_or_default();
        let from = stage_of(&self.log, &checkpoint)?;
        let gate = gate(&board, row, self.to, from);
        let entry = Entry {
            at: cx.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            version_id: row.version_id.clone(),
            checkpoint,
            from,
            to: self.to,
            granted: gate.iter().all(|check| check.holds),
            gate,
            leaderboard: board.id.clone(),
        };
        if !cx.is_dry_run() {
            // The log comes before the name: a name that no line explains would be worse than a line without its name.
            append(&self.log, &entry)?;
            if entry.granted {
                self.name_it(&entry, cx)?;
            }
        }
        tell(&entry, cx)
    }
}

impl Promote {
    /// `NAME-staging` points to the checkpoint.
    fn name_it(&self, entry: &Entry, cx: &ToolCx<'_>) -> Result<(), JobError> {
        let Some(name) = cx.name() else {
            return Ok(());
        };
        let id: ArtifactId = entry.checkpoint.parse()?;
        let name = format!("{name}-{}", entry.to.as_str());
        let store = cx.store()?;
        Ok(store.block_on(store.store().set_name(id.kind(), &name, &id))?)
    }
}

fn tell(entry: &Entry, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
    for check in &entry.gate {
        let mark = if check.holds {
            "holds"
        } else {
            "does not hold"
        };
        cx.print(format!("{}: {mark}: {}", check.condition, check.found));
    }
    cx.json_result(json!(entry));
    if entry.granted {
        cx.print(format!(
            "{} is in {} now",
            entry.version_id,
            entry.to.as_str()
        ));
        return Ok(());
    }
    let missing: Vec<&str> = entry
        .gate
        .iter()
        .filter(|check| !check.holds)
        .map(|check| check.condition.as_str())
        .collect();
    Err(JobError::refused(format!(
        "{} does not go to {}: {}",
        entry.version_id,
        entry.to.as_str(),
        missing.join("; ")
    ))
    .hint("the log says what was found for each condition"))
}

/// The conditions of a stage with what was found.
fn gate(board: &Board, row: &LeaderboardRow, to: Stage, from: Option<Stage>) -> Vec<Check> {
    let check = |condition: &str, holds: bool, found: String| Check {
        condition: condition.to_owned(),
        holds,
        found,
    };
    let level = row.estimate.map_or_else(
        || "no primary metric".to_owned(),
        |estimate| format!("{:.4}", estimate.mean),
    );
    let rows = &board.board.rows;
    let base = rows
        .iter()
        .find(|row| row.is_base())
        .and_then(|row| row.estimate);
    let over_base = match (row.estimate, base) {
        (Some(own), Some(base)) => check(
            "it solves more than the untrained model",
            own.interval.low > base.interval.high,
            format!(
                "{:.4} and more against {:.4} and less",
                own.interval.low, base.interval.high
            ),
        ),
        _ => check(
            "it solves more than the untrained model",
            false,
            "not both are scored".to_owned(),
        ),
    };
    let mut gate = vec![
        check(
            "it is trained and ranked",
            row.rank.is_some() && !row.is_base(),
            level,
        ),
        over_base,
    ];
    if to == Stage::Production {
        let stage = from.map_or("nowhere", Stage::as_str).to_owned();
        gate.push(check(
            "it is in staging",
            from == Some(Stage::Staging),
            stage,
        ));
        let rank = row
            .rank
            .map_or_else(|| "none".to_owned(), |rank| rank.to_string());
        gate.push(check("it shares the first rank", row.rank == Some(1), rank));
        gate.push(claim(row));
        gate.push(held_out(board, row));
    }
    gate
}

/// A weighted version must be better than its baseline by the rule for claims; a baseline has nothing to claim.
fn claim(row: &LeaderboardRow) -> Check {
    let condition = "it is a baseline, or better than its own by the rule for claims".to_owned();
    let found = |against: &Comparison| format!("{}; {}", against.verdict.words(), against.reason);
    match &row.against_baseline {
        _ if row.algo == "baseline" => Check {
            condition,
            holds: true,
            found: "a baseline".to_owned(),
        },
        Some(against) => Check {
            condition,
            holds: against.verdict == Verdict::Better,
            found: found(against),
        },
        None => Check {
            condition,
            holds: false,
            found: "there is no baseline".to_owned(),
        },
    }
}

/// The held-out score must not fall out of the interval of the one that chose the version.
fn held_out(board: &Board, row: &LeaderboardRow) -> Check {
    let condition = "its held-out interval meets the one that chose it".to_owned();
    match &board.held_out {
        Some(score) if score.version_id == row.version_id => {
            let (held_out, validation) = (score.estimate.interval, score.validation.interval);
            Check {
                condition,
                holds: held_out.high >= validation.low,
                found: format!(
                    "{:.4} to {:.4} against {:.4} to {:.4}",
                    held_out.low, held_out.high, validation.low, validation.high
                ),
            }
        }
        _ => Check {
            condition,
            holds: false,
            found: "it was not asked".to_owned(),
        },
    }
}

/// Where the log says that a checkpoint is; a line that a kill cut short counts for nothing.
fn stage_of(log: &Path, checkpoint: &str) -> Result<Option<Stage>, JobError> {
    let text = read_if_any(log)?.unwrap_or_default();
    let mut stage = None;
    for entry in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Entry>(line).ok())
    {
        if entry.granted && entry.checkpoint == checkpoint {
            stage = Some(entry.to);
        }
    }
    Ok(stage)
}

/// Appends one whole line.
fn append(log: &Path, entry: &Entry) -> Result<(), JobError> {
    let told = |error: std::io::Error| JobError::from(error).context(log.display().to_string());
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).map_err(told)?;
    }
    let cut = read_if_any(log)?.is_some_and(|text| !text.is_empty() && !text.ends_with('\n'));
    let line = serde_json::to_string(entry).map_err(JobError::internal)?;
    let line = if cut {
        format!("\n{line}\n")
    } else {
        format!("{line}\n")
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(told)?;
    file.write_all(line.as_bytes()).map_err(told)?;
    file.sync_all().map_err(told)
}
