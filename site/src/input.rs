//! What pages are made of, read from local folders of verified artifacts.

mod runs;
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wmtp_artifacts::FileEntry;
use wmtp_records::{
    Capabilities, Completion, ErrorClass, GradedSample, ModelSizes, Problem, ProblemCount, Verdict,
    data_files, jsonl, score_files,
};
use wmtp_stats::Estimate;
use wmtp_stats::leaderboard::{Leaderboard, LeaderboardRow, files};

use crate::Error;
use crate::metrics::Metrics;

pub use runs::{Attempt, Event, LogLine, Note, RunInfo, RunLife, seconds};
pub use samples::SampleFile;

/// Paths inside a checkpoint artifact that pages show.
mod checkpoint_files {
    pub(super) const PARAMS: &str = "params.json";
    pub(super) const RECIPE: &str = "recipe.json";
    pub(super) const SUMMARY: &str = "summary.json";
    pub(super) const METRICS: &str = "metrics.jsonl";
    pub(super) const WEIGHT_STATS: &str = "weights.jsonl";
    pub(super) const HISTOGRAM: &str = "weight_histogram.json";
    pub(super) const TOKEN_WEIGHTS: &str = "token_weights.jsonl";
}

/// Paths inside a leaderboard artifact that only a version loop writes.
mod loop_files {
    pub(super) const FINAL_ANALYSIS: &str = "final-analysis.md";
    pub(super) const MODEL_CARD: &str = "model-card.md";
    pub(super) const BASELINE_REPORT: &str = "baseline_patch_report.md";
    pub(super) const HELD_OUT: &str = "held-out.json";

    pub(super) fn action(version_id: &str) -> String {
        format!("versions/{version_id}/action-extract.md")
    }

    pub(super) fn retry_report(version_id: &str) -> String {
        format!("versions/{version_id}/train_retry_report.md")
    }
}

/// Programs of one task and one kind of outcome that pages can show.
const KEPT_PER_OUTCOME: usize = 1;

/// Whether pages need a file of an artifact: everything but weights, optimizer states and the tokens of a data set.
pub fn is_shown(file: &FileEntry) -> bool {
    let heavy = ["safetensors", "npy", "bin"];
    let extension = Path::new(&file.path).extension();
    extension.is_none_or(|extension| !heavy.iter().any(|heavy| extension == *heavy))
        && !file.path.starts_with("records/")
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
    /// What was written about the whole.
    pub documents: Documents,
    /// Runs of the store; none where the site is made without one.
    pub runs: Option<Vec<RunInfo>>,
    /// Bytes of the checkpoints by artifact id, where a store tells them.
    pub stored_bytes: BTreeMap<String, u64>,
    /// What a reader must know besides the leaderboard's own warnings.
    pub warnings: Vec<String>,
}

/// Markdown beside the table; each may be absent.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// What should be done next, and why.
    pub final_analysis: Option<String>,
    /// Card of the best version.
    pub model_card: Option<String>,
    /// What was found before the first version.
    pub baseline_report: Option<String>,
    /// The winner's score on tasks that chose nothing.
    pub held_out: Option<HeldOut>,
}

/// The winner on the test split, once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct HeldOut {
    /// The version.
    pub version_id: String,
    /// The set that chose nothing.
    pub dataset_id: String,
    /// Its tasks.
    pub num_tasks: usize,
    /// The primary metric there.
    pub estimate: Estimate,
}

/// One version.
#[derive(Debug, Clone)]
pub struct VersionInput {
    /// Its row.
    pub row: LeaderboardRow,
    /// Its computed analysis, Markdown.
    pub analysis: String,
    /// The action selected after it was judged, Markdown.
    pub action: Option<String>,
    /// Which trainings had to be repeated, Markdown.
    pub retry_report: Option<String>,
    /// One per seed.
    pub runs: Vec<RunInput>,
}

/// One seed of a version.
#[derive(Debug, Clone)]
pub struct RunInput {
    /// Training seed.
    pub seed: Option<u64>,
    /// Programs to show: of the lowest seed, one of each outcome per task.
    pub samples: Vec<GradedSample>,
    /// What became of every program.
    pub outcomes: Vec<Outcome>,
    /// Generated tokens; 0 where samples do not tell them.
    pub num_tokens: u64,
    /// Passes per task.
    pub problems: Vec<ProblemCount>,
    /// Files of the samples laid out for people that no page can show; of the lowest seed.
    pub files: Vec<SampleFile>,
    /// What training left; empty for models that were not trained here.
    pub training: Training,
}

/// What became of one program.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The task.
    pub problem_id: String,
    /// Number of the sample; none for the greedy one.
    pub sample: Option<u32>,
    /// Whether every test passed.
    pub passed: bool,
    /// What went wrong.
    pub class: ErrorClass,
    /// Tests run, where the program reads its tests' inputs.
    pub tests: Option<u32>,
    /// CPU seconds of running it.
    pub cpu_secs: f64,
}

/// What a checkpoint says about its training; each part may be absent.
#[derive(Debug, Clone, Default)]
pub struct Training {
    /// What the model can do.
    pub capabilities: Option<Capabilities>,
    /// The resolved recipe.
    pub recipe: Option<Value>,
    /// Sizes and steps.
    pub summary: Option<TrainingSummary>,
    /// Numbers per step.
    pub metrics: Metrics,
    /// Weight statistics, one object per step.
    pub weight_stats: Vec<BTreeMap<String, Value>>,
    /// Weights of the whole run.
    pub histogram: Option<Histogram>,
    /// A few programs with the weight of every token.
    pub token_weights: Vec<TokenWeightRow>,
}

/// What pages read of a checkpoint's summary.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TrainingSummary {
    /// Target tokens of one pass over the training data.
    pub train_targets: u64,
    /// Parameters of the model.
    pub n_params: u64,
    /// Parameters of the adapters, with LoRA.
    pub adapter_params: Option<u64>,
    /// Steps that were planned.
    pub steps: u64,
    /// Step whose weights were kept.
    pub best_step: u64,
    /// Step at which training ended.
    pub last_step: u64,
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
        let mut warnings = Vec::new();
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
        for version in &versions {
            warnings.extend(version.missing_headings());
        }
        Ok(Self {
            leaderboard_id: leaderboard_id.to_owned(),
            problems: problems
                .into_iter()
                .map(|problem| (problem.problem_id.clone(), problem))
                .collect(),
            board,
            downloads,
            versions,
            documents: Documents::load(&dir)?,
            runs: None,
            stored_bytes: BTreeMap::new(),
            warnings,
        })
    }

    /// The table alone: what the leaderboard's page shows besides tasks and costs.
    ///
    /// # Errors
    /// As [`SiteInput::load`].
    pub fn table(leaderboard_id: &str, dir: &Path) -> Result<Self, Error> {
        let board: Leaderboard = json(&dir.join(files::JSON))?;
        let versions = board.rows.iter().map(|row| VersionInput {
            row: row.clone(),
            analysis: String::new(),
            action: None,
            retry_report: None,
            runs: Vec::new(),
        });
        Ok(Self {
            leaderboard_id: leaderboard_id.to_owned(),
            versions: versions.collect(),
            downloads: vec![(files::CSV, read(&dir.join(files::CSV))?)],
            problems: BTreeMap::new(),
            documents: Documents::load(dir)?,
            runs: None,
            stored_bytes: BTreeMap::new(),
            warnings: Vec::new(),
            board,
        })
    }

    /// The version of a name.
    pub fn version(&self, id: &str) -> Option<&VersionInput> {
        self.versions
            .iter()
            .find(|version| version.row.version_id == id)
    }
}

impl Documents {
    fn load(dir: &Path) -> Result<Self, Error> {
        let held_out = dir.join(loop_files::HELD_OUT);
        Ok(Self {
            final_analysis: text_if_any(&dir.join(loop_files::FINAL_ANALYSIS))?,
            model_card: text_if_any(&dir.join(loop_files::MODEL_CARD))?,
            baseline_report: text_if_any(&dir.join(loop_files::BASELINE_REPORT))?,
            held_out: json_if_any(&held_out)?,
        })
    }
}

impl VersionInput {
    fn load<E: From<Error>>(
        row: &LeaderboardRow,
        leaderboard_dir: &Path,
        folder: &impl Fn(&str) -> Result<PathBuf, E>,
    ) -> Result<Self, E> {
        let id = &row.version_id;
        let text = |path: String| text_if_any(&leaderboard_dir.join(path));
        let mut runs = Vec::new();
        for source in &row.runs {
            let scores = folder(&source.scores)?;
            let training = match source.checkpoint.as_ref().filter(|_| row.is_trained()) {
                Some(checkpoint) => Training::load(&folder(checkpoint)?)?,
                None => Training::default(),
            };
            runs.push(RunInput::load(
                source.seed,
                &scores,
                training,
                runs.is_empty(),
            )?);
        }
        Ok(Self {
            row: row.clone(),
            analysis: text(files::analysis(id))?.unwrap_or_default(),
            action: text(loop_files::action(id))?,
            retry_report: text(loop_files::retry_report(id))?,
            runs,
        })
    }

    /// A sentence for the warnings where the analysis lacks what every analysis has.
    fn missing_headings(&self) -> Option<String> {
        const REQUIRED: &str = "Metric deltas";
        let id = &self.row.version_id;
        if self.analysis.trim().is_empty() {
            return Some(format!("{id}: there is no analysis"));
        }
        let has = self
            .analysis
            .lines()
            .any(|line| line.trim_start_matches('#').trim() == REQUIRED && line.starts_with("##"));
        (!has).then(|| format!("{id}: its analysis lacks the heading {REQUIRED}"))
    }
}

impl RunInput {
    fn load(
        seed: Option<u64>,
        scores: &Path,
        training: Training,
        shown: bool,
    ) -> Result<Self, Error> {
        let path = scores.join(score_files::SAMPLES);
        let mut run = Self {
            seed,
            samples: Vec::new(),
            outcomes: Vec::new(),
            num_tokens: 0,
            problems: rows(&scores.join(score_files::PROBLEMS))?,
            files: if shown {
                samples::files(&scores.join(score_files::INFER_SAMPLES))?
            } else {
                Vec::new()
            },
            training,
        };
        let mut kept: BTreeMap<(String, ErrorClass), usize> = BTreeMap::new();
        for row in jsonl::rows::<GradedSample>(&path)? {
            let (_, sample) = row?;
            run.num_tokens += u64::from(sample.completion.num_tokens.unwrap_or(0));
            run.outcomes
                .push(Outcome::of(&sample.completion, &sample.verdict));
            if shown {
                let key = (sample.completion.problem_id.clone(), sample.verdict.class);
                let times = kept.entry(key).or_insert(0);
                *times += 1;
                if *times <= KEPT_PER_OUTCOME {
                    run.samples.push(sample);
                }
            }
        }
        Ok(run)
    }
}

impl Outcome {
    fn of(completion: &Completion, verdict: &Verdict) -> Self {
        Self {
            problem_id: completion.problem_id.clone(),
            sample: completion.sample,
            passed: verdict.passed,
            class: verdict.class,
            tests: verdict.cases.map(|cases| cases.total),
            cpu_secs: verdict.cpu_secs,
        }
    }
}

impl Training {
    fn load(dir: &Path) -> Result<Self, Error> {
        let mut token_weights: Vec<TokenWeightRow> =
            rows_if_any(&dir.join(checkpoint_files::TOKEN_WEIGHTS))?;
        token_weights.retain(|row| row.tokens.len() == row.weights.len());
        let recipe: Option<Value> = json_if_any(&dir.join(checkpoint_files::RECIPE))?;
        Ok(Self {
            capabilities: capabilities(&dir.join(checkpoint_files::PARAMS), recipe.as_ref())?,
            recipe,
            summary: json_if_any(&dir.join(checkpoint_files::SUMMARY))?,
            metrics: Metrics::load(&dir.join(checkpoint_files::METRICS))?,
            weight_stats: rows_if_any(&dir.join(checkpoint_files::WEIGHT_STATS))?,
            histogram: json_if_any(&dir.join(checkpoint_files::HISTOGRAM))?,
            token_weights,
        })
    }
}

/// What a checkpoint can do, where it has the file that says so.
fn capabilities(params: &Path, recipe: Option<&Value>) -> Result<Option<Capabilities>, Error> {
    let sizes: Option<ModelSizes> = json_if_any(params)?;
    let dtype = recipe.and_then(|recipe| recipe.pointer("/model/dtype")?.as_str());
    Ok(sizes.map(|sizes| {
        let found = Capabilities::from(sizes);
        match dtype {
            Some(dtype) => found.trained_as(dtype),
            None => found,
        }
    }))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// Text that people may have written: bytes that are no UTF-8 become a sign, since a report is still worth reading.
fn text_if_any(path: &Path) -> Result<Option<String>, Error> {
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&read(path)?).into_owned()))
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
