//! One score artifact as the table needs it.

use std::path::Path;

use wmtp_records::{EvalScore, ProblemCount, ScoreSummary, jsonl, score_files};

/// The scores of one run: one version, one seed.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRun {
    /// Id of the scores artifact.
    pub id: String,
    /// Who was evaluated, how, on what.
    pub summary: ScoreSummary,
    /// The founding score file.
    pub score: EvalScore,
    /// Passes per task.
    pub problems: Vec<ProblemCount>,
}

impl ScoredRun {
    /// Reads the files of a scores artifact.
    ///
    /// # Errors
    /// A missing file, or a row that is not what it should be, named by file and line.
    pub fn load(dir: &Path, id: &str) -> Result<Self, jsonl::Error> {
        Ok(Self {
            id: id.to_owned(),
            summary: jsonl::read_json(&dir.join(score_files::SUMMARY))?,
            score: jsonl::read_json(&dir.join(score_files::EVAL_SCORE))?,
            problems: jsonl::read(&dir.join(score_files::PROBLEMS))?,
        })
    }

    /// `v002 seed 42`, for messages.
    pub fn label(&self) -> String {
        match self.summary.seed {
            Some(seed) => format!("{} seed {seed}", self.summary.version_id),
            None => self.summary.version_id.clone(),
        }
    }

    /// Whether the untrained model was evaluated.
    pub fn is_base(&self) -> bool {
        self.summary.algo == "base"
    }
}
