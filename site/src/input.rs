//! What pages are made of, read from local folders of verified artifacts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wmtp_records::{GradedSample, Problem, ProblemCount, data_files, jsonl, score_files};
use wmtp_stats::leaderboard::{Leaderboard, LeaderboardRow, files};

use crate::Error;

/// Paths inside a checkpoint artifact that pages show.
mod checkpoint_files {
    pub(super) const RECIPE: &str = "recipe.json";
    pub(super) const METRICS: &str = "metrics.jsonl";
    pub(super) const WEIGHT_STATS: &str = "weights.jsonl";
    pub(super) const HISTOGRAM: &str = "weight_histogram.json";
    pub(super) const TOKEN_WEIGHTS: &str = "token_weights.jsonl";
}

/// Everything a site shows.
#[derive(Debug, Clone)]
pub struct SiteInput {
    /// Id of the leaderboard artifact.
    pub leaderboard_id: String,
    /// The table.
    pub board: Leaderboard,
    /// Files offered for download: name and content, as the leaderboard artifact holds them.
    pub downloads: Vec<(&'static str, Vec<u8>)>,
    /// Problems by id.
    pub problems: BTreeMap<String, Problem>,
    /// One per row of the table, in its order.
    pub versions: Vec<VersionInput>,
}

/// One version.
#[derive(Debug, Clone)]
pub struct VersionInput {
    /// Its row.
    pub row: LeaderboardRow,
    /// Its computed analysis, Markdown.
    pub analysis: String,
    /// One per seed.
    pub runs: Vec<RunInput>,
}

/// One seed of a version.
#[derive(Debug, Clone)]
pub struct RunInput {
    /// Training seed.
    pub seed: Option<u64>,
    /// Graded samples.
    pub samples: Vec<GradedSample>,
    /// Passes per task.
    pub problems: Vec<ProblemCount>,
    /// What training left; empty for the base.
    pub training: Training,
}

/// What a checkpoint says about its training; each part may be absent.
#[derive(Debug, Clone, Default)]
pub struct Training {
    /// The resolved recipe.
    pub recipe: Option<Value>,
    /// One object of numbers per step.
    pub metrics: Vec<BTreeMap<String, Value>>,
    /// Weight statistics, one object per step.
    pub weight_stats: Vec<BTreeMap<String, Value>>,
    /// Weights of the whole run.
    pub histogram: Option<Histogram>,
    /// A few programs with the weight of every token.
    pub token_weights: Vec<TokenWeightRow>,
}

/// Counts in equal bins.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub low: f64,
    /// Upper edge of the last bin.
    pub high: f64,
    /// Values per bin.
    pub counts: Vec<u64>,
}

/// One training program with its weights.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TokenWeightRow {
    /// The row of the data set.
    #[serde(default)]
    pub task_id: String,
    /// Texts of the response tokens.
    pub tokens: Vec<String>,
    /// One weight per token.
    pub weights: Vec<f64>,
}

impl SiteInput {
    /// Reads a leaderboard and what it names. `folder` gives the local folder of an artifact id.
    ///
    /// # Errors
    /// A file that is missing or does not parse, named; a version id that cannot name a page; whatever `folder`
    /// says.
    pub fn load<E: From<Error>>(
        leaderboard_id: &str,
        folder: impl Fn(&str) -> Result<PathBuf, E>,
    ) -> Result<Self, E> {
        let dir = folder(leaderboard_id)?;
        let board: Leaderboard = json(&dir.join(files::JSON))?;
        let data = folder(&board.data)?;
        let mut versions = Vec::new();
        let mut shown = BTreeSet::new();
        for row in &board.rows {
            if !is_plain_name(&row.version_id) || !shown.insert(row.version_id.as_str()) {
                return Err(Error::VersionId(row.version_id.clone()).into());
            }
            versions.push(VersionInput::load(row, &dir, &folder)?);
        }
        let mut downloads = Vec::new();
        for name in [files::CSV, files::JSON, files::PARQUET] {
            downloads.push((name, read(&dir.join(name))?));
        }
        let problems: Vec<Problem> = rows(&data.join(data_files::problems(board.split)))?;
        Ok(Self {
            leaderboard_id: leaderboard_id.to_owned(),
            problems: problems
                .into_iter()
                .map(|problem| (problem.problem_id.clone(), problem))
                .collect(),
            board,
            downloads,
            versions,
        })
    }
}

impl VersionInput {
    fn load<E: From<Error>>(
        row: &LeaderboardRow,
        leaderboard_dir: &Path,
        folder: &impl Fn(&str) -> Result<PathBuf, E>,
    ) -> Result<Self, E> {
        let analysis = read(&leaderboard_dir.join(files::analysis(&row.version_id)))?;
        let mut runs = Vec::new();
        for source in &row.runs {
            let scores = folder(&source.scores)?;
            let training = if row.is_base() {
                Training::default()
            } else {
                Training::load(&folder(&source.checkpoint)?)?
            };
            runs.push(RunInput {
                seed: source.seed,
                samples: rows(&scores.join(score_files::SAMPLES))?,
                problems: rows(&scores.join(score_files::PROBLEMS))?,
                training,
            });
        }
        Ok(Self {
            row: row.clone(),
            analysis: String::from_utf8_lossy(&analysis).into_owned(),
            runs,
        })
    }
}

impl Training {
    fn load(dir: &Path) -> Result<Self, Error> {
        let mut token_weights: Vec<TokenWeightRow> =
            rows_if_any(&dir.join(checkpoint_files::TOKEN_WEIGHTS))?;
        token_weights.retain(|row| row.tokens.len() == row.weights.len());
        Ok(Self {
            recipe: json_if_any(&dir.join(checkpoint_files::RECIPE))?,
            metrics: rows_if_any(&dir.join(checkpoint_files::METRICS))?,
            weight_stats: rows_if_any(&dir.join(checkpoint_files::WEIGHT_STATS))?,
            histogram: json_if_any(&dir.join(checkpoint_files::HISTOGRAM))?,
            token_weights,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    Ok(jsonl::read_json(path)?)
}

fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    Ok(jsonl::read(path)?)
}

fn json_if_any<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    path.is_file().then(|| json(path)).transpose()
}

fn rows_if_any<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    if path.is_file() {
        rows(path)
    } else {
        Ok(Vec::new())
    }
}

fn is_plain_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !id.is_empty() && !id.starts_with('.') && id.chars().all(plain)
}
