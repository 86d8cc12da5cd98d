//! The report folder: a copy for people, named after the newest score, so that a rerun writes the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wmtp_job_kit::JobError;
use wmtp_records::{EvalScore, jsonl, score_files};
use wmtp_stats::leaderboard::{Leaderboard, LeaderboardRow, files};

/// The score artifact whose samples go into the report: the best version's, lowest seed.
pub fn best_scores_id(board: &Leaderboard) -> Option<&str> {
    best(board)?.runs.first().map(|run| run.scores.as_str())
}

/// Writes `root/YYYY-MM-DD_HH-MM/` and returns it.
///
/// It holds the tables, every analysis, and for the best version its pooled `eval_score.json` and the shown
/// samples of its lowest seed.
///
/// # Errors
/// A bad-input error when the leaderboard's time is no timestamp; those of the file system otherwise.
pub fn write(
    root: &Path,
    board: &Leaderboard,
    leaderboard_dir: &Path,
    best_scores: Option<&Path>,
) -> Result<PathBuf, JobError> {
    let target = root.join(folder_name(&board.created_at)?);
    for name in [files::CSV, files::JSON, files::PARQUET] {
        copy(&leaderboard_dir.join(name), &target.join(name))?;
    }
    for row in &board.rows {
        let analysis = files::analysis(&row.version_id);
        copy(&leaderboard_dir.join(&analysis), &target.join(&analysis))?;
    }
    if let (Some(best), Some(scores)) = (best(board), best_scores) {
        let version = target.join(files::version_dir(&best.version_id));
        jsonl::write_json(&version.join(score_files::EVAL_SCORE), &pooled_score(best))?;
        let samples = scores.join(score_files::INFER_SAMPLES);
        if samples.is_dir() {
            copy_tree(&samples, &version.join(score_files::INFER_SAMPLES))?;
        }
    }
    Ok(target)
}

fn best(board: &Leaderboard) -> Option<&LeaderboardRow> {
    board.rows.first().filter(|row| row.estimate.is_some())
}

fn pooled_score(row: &LeaderboardRow) -> EvalScore {
    EvalScore {
        dataset_id: row.dataset_id.clone(),
        created_at: row.created_at.clone(),
        num_samples: row.num_samples,
        metrics: row.metrics.clone(),
        latency_ms: row.latency_ms,
    }
}

/// `2026-11-21T12:05:31Z` becomes `2026-11-21_12-05`.
fn folder_name(created_at: &str) -> Result<String, JobError> {
    let bytes = created_at.as_bytes();
    let shaped = created_at.is_ascii()
        && bytes.len() >= 16
        && bytes[..16]
            .iter()
            .enumerate()
            .all(|(index, byte)| match index {
                4 | 7 => *byte == b'-',
                10 => *byte == b'T',
                13 => *byte == b':',
                _ => byte.is_ascii_digit(),
            });
    if !shaped {
        return Err(JobError::bad_input(format!(
            "created_at is {created_at:?}, expected an ISO 8601 time such as 2026-11-21T12:05:31Z"
        )));
    }
    Ok(format!(
        "{}_{}-{}",
        &created_at[..10],
        &created_at[11..13],
        &created_at[14..16]
    ))
}

/// Copies contents only: what a store's mirror hands out is read-only, a report is not.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(to, fs::read(from)?)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_named_by_the_minute_of_its_newest_score() {
        assert_eq!(
            folder_name("2026-11-21T12:05:31.5Z").unwrap(),
            "2026-11-21_12-05"
        );
        assert!(folder_name("../../etc/passwd").is_err());
        assert!(folder_name("").is_err());
    }
}
