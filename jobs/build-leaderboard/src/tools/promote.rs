//! `promote`: a version moves to staging or production through a gate; every question and answer is logged.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use wmtp_artifacts::ArtifactId;
use wmtp_job_kit::tracking::{self, Alias, Server};
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_stats::leaderboard::{Comparison, LeaderboardRow, Verdict};

use super::Standing;
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

    fn alias(self) -> Alias {
        match self {
            Self::Staging => Alias::Staging,
            Self::Production => Alias::Production,
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
        let board = Standing::load(&self.leaderboard, cx.store()?)?;
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
            .and_then(|run| run.checkpoint.clone())
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
                name_it(&entry, cx)?;
            }
        }
        tell(&entry, cx)
    }
}

/// `NAME-staging` points to the checkpoint, and so does the alias of model NAME on a tracking server.
fn name_it(entry: &Entry, cx: &ToolCx<'_>) -> Result<(), JobError> {
    let Some(model) = cx.name() else {
        return Ok(());
    };
    let id: ArtifactId = entry.checkpoint.parse()?;
    let name = entry.to.alias().name_in_store(model);
    let store = cx.store()?;
    store.block_on(store.store().set_name(id.kind(), &name, &id))?;
    register(model, entry.to.alias(), &id, cx)
}

/// A tracking server is told what the store knows; that it cannot be is no reason to refuse.
fn register(
    model: &str,
    alias: Alias,
    checkpoint: &ArtifactId,
    cx: &ToolCx<'_>,
) -> Result<(), JobError> {
    let handle = cx.store()?;
    let told = Server::from_environment().and_then(|server| {
        let Some(server) = server else {
            return Ok(None);
        };
        let promoted = tracking::promote(&server, handle.store(), model, alias, checkpoint);
        handle.block_on(promoted).map(Some)
    });
    match told {
        Ok(None) => {}
        Ok(Some(version)) => cx.log(format!(
            "{} of model {model} is version {version} on the tracking server",
            alias.as_str()
        )),
        Err(error) => cx.warning(format!(
            "the tracking server has no {} of model {model}: {error}; `wmtp-store mlflow replay` gives it",
            alias.as_str()
        )),
    }
    Ok(())
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
fn gate(board: &Standing, row: &LeaderboardRow, to: Stage, from: Option<Stage>) -> Vec<Check> {
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
            row.rank.is_some() && row.is_trained(),
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
        let trained = rows.iter().filter(|other| other.is_trained());
        let first = trained.filter_map(|other| other.rank).min();
        gate.push(check(
            "it shares the first rank of the versions trained here",
            row.rank.is_some() && row.rank == first,
            rank,
        ));
        gate.push(claim(row));
        gate.push(held_out(board, row));
    }
    gate
}

/// A weighted version must be better than its baseline by the rule for claims; a baseline has nothing to claim.
fn claim(row: &LeaderboardRow) -> Check {
    let condition = "it is a baseline, or better than its own by the rule for claims".to_owned();
    let found = |against: &Comparison| format!("{}; {}", against.words(), against.reason);
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
fn held_out(board: &Standing, row: &LeaderboardRow) -> Check {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wmtp_records::Split;
    use wmtp_stats::leaderboard::HeldOut;
    use wmtp_stats::{Estimate, Interval};

    use super::*;
    use crate::source::ScoredRun;
    use crate::table::build;
    use crate::table::tests::{run, tasks};

    fn runs() -> Vec<ScoredRun> {
        let mut runs = vec![run("base", "base", None, None, &tasks(0))];
        for seed in 1..=3 {
            runs.push(run("v001", "baseline", None, Some(seed), &tasks(8)));
            let of = |id, algo, level| run(id, algo, Some("v001"), Some(seed), &tasks(level));
            runs.push(of("v002", "verifiable", 12));
            runs.push(of("v003", "rho1", 4));
            runs.push(of("v004", "random_matched", 7));
            runs.push(of("v005", "shuffled", 8));
        }
        runs
    }

    fn board() -> Standing {
        Standing {
            board: build(&runs()).unwrap(),
            figures: BTreeMap::new(),
            held_out: None,
            id: "leaderboard-1".to_owned(),
        }
    }

    fn missing(board: &Standing, version: &str, to: Stage, from: Option<Stage>) -> Vec<String> {
        let mut rows = board.board.rows.iter();
        let row = rows.find(|row| row.version_id == version).unwrap();
        gate(board, row, to, from)
            .into_iter()
            .filter(|check| !check.holds)
            .map(|check| check.condition)
            .collect()
    }

    fn estimate(low: f64, high: f64) -> Estimate {
        Estimate {
            mean: f64::midpoint(low, high),
            interval: Interval { low, high },
        }
    }

    /// The winner's score on tasks that chose nothing, with this interval.
    fn scored_once(low: f64, high: f64) -> HeldOut {
        HeldOut {
            version_id: "v002".to_owned(),
            dataset_id: "micropy-test".to_owned(),
            split: Split::Test,
            num_tasks: 60,
            seeds: vec![1, 2, 3],
            primary_metric: "pass_at_1".to_owned(),
            estimate: estimate(low, high),
            validation: estimate(0.6, 0.8),
            scores: Vec::new(),
        }
    }

    #[test]
    fn a_model_from_outside_is_never_promoted_and_keeps_no_version_from_it() {
        let mut board = board();
        board.held_out = Some(scored_once(0.6, 0.8));
        let outside = run("big-model", "external", None, None, &tasks(16));
        board.board = build(&[runs(), vec![outside]].concat()).unwrap();
        assert_eq!(board.board.rows[0].version_id, "big-model");
        assert_eq!(board.board.rows[1].rank, Some(2));
        assert_eq!(best(&board.board).unwrap().version_id, "v002");
        let staged = Some(Stage::Staging);
        assert!(missing(&board, "v002", Stage::Production, staged).is_empty());
        let outside = missing(&board, "big-model", Stage::Staging, None);
        assert_eq!(outside, ["it is trained and ranked"]);
    }

    #[test]
    fn production_asks_for_staging_rank_claim_and_held_out_score() {
        let mut board = board();
        assert!(missing(&board, "v002", Stage::Staging, None).is_empty());
        assert_eq!(missing(&board, "base", Stage::Staging, None).len(), 2);
        let staged = Some(Stage::Staging);
        let held_out = "its held-out interval meets the one that chose it";
        assert_eq!(
            missing(&board, "v002", Stage::Production, staged),
            [held_out]
        );
        board.held_out = Some(scored_once(0.5, 0.7));
        assert!(missing(&board, "v002", Stage::Production, staged).is_empty());
        assert_eq!(
            missing(&board, "v002", Stage::Production, None),
            ["it is in staging"]
        );
        let worse = missing(&board, "v003", Stage::Production, staged);
        let claim = "it is a baseline, or better than its own by the rule for claims";
        assert_eq!(
            worse,
            [
                "it shares the first rank of the versions trained here",
                claim,
                held_out
            ]
        );
        let fallen = board.held_out.as_mut().unwrap();
        fallen.estimate = estimate(0.1, 0.3);
        assert_eq!(
            missing(&board, "v002", Stage::Production, staged),
            [held_out]
        );
    }

    #[test]
    fn the_log_only_grows_and_a_cut_line_counts_for_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let log = scratch.path().join("promotions.jsonl");
        let entry = |to, granted| Entry {
            at: "2026-11-21T12:00:00Z".to_owned(),
            version_id: "v002".to_owned(),
            checkpoint: "checkpoint-1".to_owned(),
            from: None,
            to,
            granted,
            gate: Vec::new(),
            leaderboard: "leaderboard-1".to_owned(),
        };
        assert_eq!(stage_of(&log, "checkpoint-1").unwrap(), None);
        append(&log, &entry(Stage::Staging, true)).unwrap();
        append(&log, &entry(Stage::Production, false)).unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, format!("{text}{{\"at\": \"cut")).unwrap();
        assert_eq!(
            stage_of(&log, "checkpoint-1").unwrap(),
            Some(Stage::Staging)
        );
        append(&log, &entry(Stage::Production, true)).unwrap();
        assert_eq!(
            stage_of(&log, "checkpoint-1").unwrap(),
            Some(Stage::Production)
        );
        assert_eq!(stage_of(&log, "checkpoint-2").unwrap(), None);
        assert!(std::fs::read_to_string(&log).unwrap().starts_with(&text));
    }
}
