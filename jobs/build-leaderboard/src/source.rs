//! One score artifact as the table needs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wmtp_records::{
    EXTERNAL, ErrorClass, EvalScore, GradedSample, ProblemCount, ScoreSummary, jsonl, score_files,
};

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
    /// How the programs of a task look and fail; empty where the samples are not known.
    pub samples: BTreeMap<String, SampleCounts>,
    /// Its files, for quoting samples.
    pub dir: Option<PathBuf>,
}

/// What the samples of one task add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleCounts {
    /// All samples, the greedy one too.
    pub samples: u32,
    /// Their tokens, of those that tell them: where one does not, no metric is made of them.
    pub tokens: u64,
    /// Those that are known to have ended by themselves.
    pub finished: u32,
    /// Drawn samples.
    pub drawn: u32,
    /// Drawn samples per class.
    pub classes: BTreeMap<ErrorClass, u32>,
}

impl SampleCounts {
    fn add(&mut self, sample: &GradedSample) {
        self.samples += 1;
        self.tokens += u64::from(sample.completion.num_tokens.unwrap_or(0));
        self.finished += u32::from(sample.completion.finished == Some(true));
        if sample.completion.sample.is_some() {
            self.drawn += 1;
            *self.classes.entry(sample.verdict.class).or_default() += 1;
        }
    }
}

impl ScoredRun {
    /// Reads the files of a scores artifact.
    ///
    /// # Errors
    /// A missing file, or a row that is not what it should be, named by file and line.
    pub fn load(dir: &Path, id: &str) -> Result<Self, jsonl::Error> {
        let mut samples: BTreeMap<String, SampleCounts> = BTreeMap::new();
        for row in jsonl::rows::<GradedSample>(&dir.join(score_files::SAMPLES))? {
            let (_, sample) = row?;
            let task = &sample.completion.problem_id;
            samples.entry(task.clone()).or_default().add(&sample);
        }
        Ok(Self {
            id: id.to_owned(),
            samples,
            dir: Some(dir.to_owned()),
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

    /// Whether a model that was not trained here was evaluated.
    pub fn is_external(&self) -> bool {
        self.summary.algo == EXTERNAL
    }

    /// Whether a version that was trained here was evaluated: neither the untrained model nor one from outside.
    pub fn is_trained(&self) -> bool {
        self.summary.algo != "base" && !self.is_external()
    }
}
