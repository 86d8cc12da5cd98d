//! Raw rows or micropy become records, token ids, splits and statistics.
//!
//! Read or make problems, keep training clear of evaluation, label every program by execution, train or take a
//! tokenizer, apply the length rule, write. The result depends on the recipe's `data` section, the execution
//! limits and the inputs only.

mod splits;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use wmtp_artifacts::{Digest, FileEntry, Kind};
use wmtp_data_sets::{
    DataSet, Description, Error, Labelled, SourceProblem, by_shares, codecontests, label, mbpp,
    micropy, separate, tokenizer_texts,
};
use wmtp_execution::SandboxConsent;
use wmtp_grading::{GraderConfig, Limits};
use wmtp_job_kit::{Job, JobError, Output, Plan, PlanCx, Run, TOKENIZER_SHA256};
use wmtp_recipe::{Data, DataSource, SplitBy};
use wmtp_records::{Split, data_files};
use wmtp_tokens::Tokenizer;

/// Role of the only output.
const DATA: &str = "data";
/// Role of the raw rows.
const RAW: &str = "raw";
/// Role of the bundle whose tokenizer is taken.
const TOKENIZER: &str = "tokenizer";
/// Its file in the bundle.
const TOKENIZER_FILE: &str = "tokenizer/tokenizer.json";

/// Attribute that tells who decided the splits.
const SPLIT_LEVEL: &str = "split_level";

/// Arguments of the job's own.
#[derive(Debug, clap::Args)]
pub struct PrepareData {
    /// Raw data set with *.jsonl rows (id or name); needed where data.source is mbpp or codecontests
    #[arg(long, value_name = "ID|NAME")]
    raw: Option<String>,

    /// Take the tokenizer of this base model (id or name) instead of training one; a model that was not created on the data
    /// set can be trained on it in no other way
    #[arg(long, value_name = "ID|NAME")]
    tokenizer: Option<String>,

    #[command(flatten)]
    consent: SandboxConsent,
}

/// What [`PrepareData`] resolved.
#[derive(Debug)]
pub struct Work {
    data: Data,
    limits: Limits,
    accept_degraded: bool,
    own_tokenizer: bool,
    /// Who decides the splits.
    split_level: String,
}

impl Job for PrepareData {
    type Work = Work;

    const NAME: &'static str = "prepare-data";
    const ABOUT: &'static str =
        "Make a processed data set: records, token ids, splits, tests and statistics.";
    const EXAMPLES: &'static str = "prepare-data --recipe storage/recipes/micropy/v001.yaml --store s3://wmtp/demo --name micropy\n\
         prepare-data --recipe storage/recipes/mbpp/v001.yaml --raw mbpp --store s3://wmtp/demo --name mbpp\n\
         prepare-data --recipe storage/recipes/mbpp-7b/v001.yaml --raw mbpp --tokenizer meta-llama-mtp --store s3://bucket/wmtp --name mbpp";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let recipe = cx.recipe()?.clone();
        let raw = match (recipe.data.source, &self.raw) {
            (DataSource::Mbpp | DataSource::CodeContests, Some(raw)) => {
                Some(cx.input(RAW, Kind::RawData, raw)?)
            }
            (source @ (DataSource::Mbpp | DataSource::CodeContests), None) => {
                return Err(JobError::usage(format!(
                    "data.source is {}, but no raw rows are given",
                    source.as_str()
                ))
                .hint("push them with `sync-storage push --kind raw-data`, then pass --raw NAME"));
            }
            (DataSource::Micropy, Some(_)) => {
                return Err(JobError::usage(
                    "--raw is given, but data.source is micropy, which is made by rule",
                )
                .hint("leave --raw out, or --set data.source=mbpp"));
            }
            (DataSource::Micropy, None) => None,
        };
        let set = splits::SHARES.into_iter().find(|share| cx.is_set(share));
        let levels = splits::levels(&recipe.data, raw.as_ref(), set)?;
        let split_level = splits::told(&levels);
        if let Some(bundle) = &self.tokenizer {
            cx.input(TOKENIZER, Kind::BaseModel, bundle)?;
        }
        let options = recipe.section_options(&[
            "data",
            "evaluation.cpu_secs",
            "evaluation.wall_secs",
            "evaluation.memory_mib",
        ]);
        let work = Work {
            data: recipe.data,
            limits: wmtp_execution::limits(&recipe.evaluation),
            accept_degraded: self.consent.holds_for(&recipe.evaluation),
            own_tokenizer: self.tokenizer.is_none(),
            split_level: split_level.clone(),
        };
        let plan = Plan::new(work)
            .options(options)
            .output(DATA, Kind::ProcessedData)
            .note(format!("splits as the level {split_level} decides"));
        // micropy has no other rule than the shares; its data sets had their ids before there were levels.
        Ok(match raw {
            Some(_) => plan.option(SPLIT_LEVEL, split_level),
            None => plan,
        })
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let problems = read_problems(work, run)?;
        let (problems, separation) = separate(problems);
        let labelled = execute(work, problems, run)?;
        let stored = (!work.own_tokenizer).then(|| stored_tokenizer(run));
        let stored = stored.transpose()?;
        let tokenizer = tokenizer(work, &labelled, stored.as_deref())?;
        let set = DataSet::assemble(
            description(work.data.source),
            &labelled,
            separation,
            tokenizer,
            work.data.max_length,
        )
        .map_err(job_error)?;
        let folder = run.output_dir(DATA)?;
        set.write(&folder).map_err(job_error)?;
        if let Some(stored) = stored {
            // To the byte: models and data sets know their tokenizer by the digest of its file.
            std::fs::copy(stored, folder.join(data_files::TOKENIZER))?;
        }
        run.log(format!("splits: decided by level {}", work.split_level));
        log_summary(&set, run);
        Ok(vec![output(work, &set, folder)?])
    }
}

/// Wrong programs per problem: as many as there may be right ones, less one.
fn incorrect_per_problem(data: &Data) -> usize {
    data.solutions_per_problem.saturating_sub(1).max(1)
}

fn read_problems(work: &Work, run: &Run) -> Result<Vec<SourceProblem>, JobError> {
    let data = &work.data;
    let incorrect_per_problem = incorrect_per_problem(data);
    let problems = match data.source {
        DataSource::Micropy => Ok(micropy::generate(&micropy::Settings {
            num_problems: data.num_problems,
            validation_share: data.validation_share,
            test_share: data.test_share,
            solutions_per_problem: data.solutions_per_problem,
            incorrect_per_problem,
            seed: data.split_seed,
        })),
        DataSource::Mbpp => mbpp::read(&run.input(RAW)?, incorrect_per_problem, data.split_seed),
        DataSource::CodeContests => {
            let settings = codecontests::Settings {
                shares: splits::shares(data),
                solutions_per_problem: data.solutions_per_problem,
                incorrect_per_problem,
            };
            codecontests::read(&run.input(RAW)?, &settings)
        }
    };
    let mut problems = problems.map_err(job_error)?;
    if data.split_by == SplitBy::Shares && data.source != DataSource::Micropy {
        by_shares(&mut problems, &splits::shares(data));
    }
    Ok(problems)
}

fn execute(work: &Work, problems: Vec<SourceProblem>, run: &Run) -> Result<Labelled, JobError> {
    let config = GraderConfig {
        workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        limits: work.limits,
        accept_degraded: work.accept_degraded,
        ..GraderConfig::default()
    };
    let grader = wmtp_execution::start(config)?;
    run.log(format!("sandbox: {}", grader.sandbox()));
    let programs: usize = problems
        .iter()
        .map(|problem| problem.solutions.len() + problem.mutants.len())
        .sum();
    let progress = run.progress("executing programs", "programs", programs as u64);
    let mut shown = 0;
    label(
        problems,
        incorrect_per_problem(&work.data),
        &grader,
        |done, total| {
            let share = programs as u64 * done as u64 / total.max(1) as u64;
            progress.inc(share - shown);
            shown = share;
            run.flow()
        },
    )
    .map_err(job_error)
}

fn tokenizer(
    work: &Work,
    labelled: &Labelled,
    stored: Option<&Path>,
) -> Result<Tokenizer, JobError> {
    let tokenizer = match stored {
        None => Tokenizer::train(&tokenizer_texts(labelled), work.data.vocab_size),
        Some(file) => Tokenizer::load(file),
    };
    tokenizer.map_err(|error| job_error(error.into()))
}

/// The file of the bundle's tokenizer, fetched without the weights beside it.
fn stored_tokenizer(run: &Run) -> Result<PathBuf, JobError> {
    let bundle = &run.manifest(TOKENIZER)?.id;
    let wanted = |file: &FileEntry| file.path == TOKENIZER_FILE;
    Ok(run
        .store()
        .fetch_files(bundle, wanted)?
        .join(TOKENIZER_FILE))
}

fn description(source: DataSource) -> Description {
    let (description, origin) = match source {
        DataSource::Micropy => (
            "Small Python problems made by rule, with right programs in several styles and wrong ones by one edit; \
             every label established by execution.",
            "procedural generator of this project",
        ),
        DataSource::Mbpp => (
            "Mostly Basic Python Problems with their reference programs and wrong ones by one edit; every label \
             established by execution.",
            "google-research/google-research, mbpp (CC-BY-4.0)",
        ),
        DataSource::CodeContests => (
            "Problems of programming contests with Python 3 programs that were accepted and refused there; every label \
             established by execution on all tests, compared by DeepMind's rule.",
            "deepmind/code_contests (CC-BY-4.0)",
        ),
    };
    Description {
        dataset: source.as_str().to_owned(),
        description: description.to_owned(),
        source: origin.to_owned(),
    }
}

fn log_summary(set: &DataSet, run: &Run) {
    let summary = set.summary();
    for (split, rows) in &summary.splits {
        run.log(format!(
            "{split}: {} problems, {} rows ({} correct), {:.1} tokens a row, longest {}",
            rows.num_problems,
            rows.count,
            rows.correct_count,
            rows.avg_total_tokens,
            rows.max_total_tokens
        ));
    }
    for (reason, count) in &summary.dropped {
        run.log(format!("left out, {reason}: {count}"));
    }
    if summary.labels.solutions_failed > 0 {
        run.warning(format!(
            "{} programs given as right do not pass their tests and are labelled incorrect",
            summary.labels.solutions_failed
        ));
    }
}

fn output(work: &Work, set: &DataSet, folder: PathBuf) -> Result<Output, JobError> {
    let tokenizer = Digest::of_file(&folder.join(data_files::TOKENIZER))?;
    let summary = set.summary();
    let mut output = Output::new(DATA, Kind::ProcessedData, folder)
        .attribute("dataset", work.data.source.as_str())
        .attribute(TOKENIZER_SHA256, tokenizer)
        .attribute("vocab_size", summary.vocab_size)
        .attribute("max_length", work.data.max_length);
    if work.data.source != DataSource::Micropy {
        output = output.attribute(SPLIT_LEVEL, &work.split_level);
    }
    for split in Split::ALL {
        let rows = set.split(split).records.len();
        output = output.attribute(&format!("rows_{split}"), rows);
    }
    Ok(output)
}

fn job_error(error: Error) -> JobError {
    if matches!(error, Error::Stopped) {
        return JobError::preempted();
    }
    if error.is_bad_input() {
        return JobError::bad_input(error);
    }
    match error {
        Error::Io { path, source } => JobError::from(source).context(path.display().to_string()),
        Error::Rows(error) => error.into(),
        Error::Ungraded { .. } => JobError::unavailable(error)
            .hint("the machine did not let the program run in time; run again with less beside it"),
        other => JobError::internal(other),
    }
}
