//! What a leaderboard artifact holds, and the report folder: a copy for people, named after the newest score, so that a
//! rerun writes the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use wmtp_job_kit::{JobError, StoreHandle};
use wmtp_records::{Split, jsonl};
use wmtp_stats::leaderboard::{HeldOut, Leaderboard, LeaderboardRow, files};

use crate::figures::{Comparison, Figures};
use crate::source::ScoredRun;
use crate::table::{self, Judged};
use crate::training::TrainingFacts;
use crate::version_folder::{self, Weights};
use crate::{Work, analysis, card, final_analysis, frame, history};

/// Everything that a leaderboard artifact says.
pub(crate) struct Report {
    pub(crate) board: Leaderboard,
    /// Figures by version.
    pub(crate) figures: BTreeMap<String, Figures>,
    /// What is known of training, by version.
    pub(crate) training: BTreeMap<String, TrainingFacts>,
    /// The winner on the test split.
    pub(crate) held_out: Option<HeldOut>,
    /// Files of a loop by their path.
    pub(crate) notes: BTreeMap<String, String>,
    /// Metrics of the table; all where there are none.
    pub(crate) metrics: Vec<String>,
}

impl Report {
    /// Compares every version with its parent.
    ///
    /// # Errors
    /// Samples that cannot be read; held-out scores that are no scores of one ranked version on the test split.
    pub(crate) fn new(
        judged: Judged,
        training: BTreeMap<String, TrainingFacts>,
        held_out: &[ScoredRun],
        work: &Work,
    ) -> Result<Self, JobError> {
        let Judged {
            mut board,
            versions,
        } = judged;
        let mut comparison = Comparison::default();
        let mut figures = BTreeMap::new();
        for version in &versions {
            let parent = versions
                .iter()
                .find(|other| Some(&other.version_id) == version.parent.as_ref());
            let found = comparison.figures(version, parent, &training)?;
            figures.insert(version.version_id.clone(), found);
        }
        for wanted in &work.metrics {
            let known = board.rows.iter().any(|row| row.metric(wanted).is_some());
            if !known {
                let warning =
                    format!("the metric {wanted}, which the rules ask for, is in no score");
                board.warnings.push(warning);
            }
        }
        Ok(Self {
            held_out: self::held_out(held_out, &board)?,
            board,
            figures,
            training,
            notes: work.notes.clone(),
            metrics: work.metrics.clone(),
        })
    }

    /// Writes every file of a leaderboard artifact.
    ///
    /// # Errors
    /// Internal or no-room errors of the file system; a table that polars refuses is internal.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), JobError> {
        let board = &self.board;
        let csv = frame::csv(board, &self.metrics).map_err(JobError::internal)?;
        fs::write(dir.join(files::CSV), csv)?;
        jsonl::write_json(&dir.join(files::JSON), board)?;
        let parquet = frame::parquet(board).map_err(JobError::internal)?;
        fs::write(dir.join(files::PARQUET), parquet)?;
        for row in &board.rows {
            let id = &row.version_id;
            fs::create_dir_all(dir.join(files::version_dir(id)))?;
            let Some(figures) = self.figures.get(id) else {
                continue;
            };
            let text = analysis::render(board, row, figures);
            fs::write(dir.join(files::analysis(id)), text)?;
            jsonl::write_json(&dir.join(files::figures(id)), figures)?;
            if figures.training.was_repeated() {
                let text = history::render(id, &figures.training.attempts);
                fs::write(dir.join(files::retry_report(id)), text)?;
            }
        }
        fs::write(
            dir.join(files::FINAL_ANALYSIS),
            final_analysis::render(self),
        )?;
        if let Some(best) = best(board) {
            fs::write(dir.join(files::MODEL_CARD), card::render(self, best))?;
        }
        if let Some(held_out) = &self.held_out {
            jsonl::write_json(&dir.join(files::HELD_OUT), held_out)?;
        }
        for (path, text) in &self.notes {
            let path = dir.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, text)?;
        }
        Ok(())
    }
}

/// Pools the held-out scores of the winner.
fn held_out(runs: &[ScoredRun], board: &Leaderboard) -> Result<Option<HeldOut>, JobError> {
    if runs.is_empty() {
        return Ok(None);
    }
    let judged = table::judge(runs).map_err(|error| JobError::from(error).context("--held-out"))?;
    let refused = |reason: String| Err(JobError::usage(reason).context("--held-out"));
    let [row] = judged.board.rows.as_slice() else {
        return refused("these are scores of several versions, and one is asked once".to_owned());
    };
    if judged.board.split != Split::Test {
        let split = judged.board.split;
        return refused(format!(
            "these are scores on the {split} split, not on test"
        ));
    }
    let on_board = board
        .rows
        .iter()
        .find(|other| other.version_id == row.version_id);
    let (Some(estimate), Some(validation)) = (row.estimate, on_board.and_then(|row| row.estimate))
    else {
        return refused(format!("{} is not ranked on this board", row.version_id));
    };
    Ok(Some(HeldOut {
        version_id: row.version_id.clone(),
        dataset_id: row.dataset_id.clone(),
        split: judged.board.split,
        num_tasks: judged.board.num_tasks,
        seeds: row.seeds.clone(),
        primary_metric: judged.board.primary_metric.clone(),
        estimate,
        validation,
        scores: row.runs.iter().map(|run| run.scores.clone()).collect(),
    }))
}

/// Copies a leaderboard artifact into `root/YYYY-MM-DD_HH-MM/` and returns it, the best version's files beside it.
///
/// # Errors
/// A bad-input error when the leaderboard's time is no timestamp; those of store and file system otherwise.
pub(crate) fn deliver(
    root: &Path,
    board: &Leaderboard,
    leaderboard_dir: &Path,
    store: &StoreHandle,
) -> Result<PathBuf, JobError> {
    let target = root.join(folder_name(&board.created_at)?);
    copy_tree(leaderboard_dir, &target)?;
    if let Some(best) = best(board) {
        let version = target.join(files::version_dir(&best.version_id));
        version_folder::write(&version, best, Weights::Copied, store)?;
    }
    Ok(target)
}

/// The best trained version.
pub(crate) fn best(board: &Leaderboard) -> Option<&LeaderboardRow> {
    let mut rows = board.rows.iter();
    rows.find(|row| row.estimate.is_some() && row.is_trained())
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

/// Copies contents only: what a store's mirror hands out is read-only, a report is not. Weights may be larger than memory,
/// so they pass through none of ours.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    io::copy(&mut File::open(from)?, &mut File::create(to)?)?;
    Ok(())
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
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
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn a_copy_of_a_read_only_file_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::write(&from, "weights").unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o444)).unwrap();
        let to = folder.path().join("below/to");
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"weights");
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        assert_eq!(mode & 0o200, 0o200);
    }
}
