//! The job: model and problems in, scores out.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use serde_json::json;
use wmtp_data_sets::TokenFile;
use wmtp_decoding::{Generator, InferenceModel, Sampling, Tally};
use wmtp_grading::{Grader, GraderConfig, Limits, Program};
use wmtp_job_kit::{Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run};
use wmtp_model::{ParamStore, Params};
use wmtp_recipe::{Evaluation, SandboxTier, seed};
use wmtp_records::{
    AuditOutcome, Completion, EvalScore, GradedSample, Problem, ProblemCount, ScoreSummary, Split,
    data_files, jsonl, score_files,
};
use wmtp_tokens::Tokenizer;

use crate::generate::{self, Drawing, Generation};
use crate::heads::{self, HeadScore};
use crate::matches::{self, Matches};
use crate::subject::{self, Subject};
use crate::{sandbox_error, score};

/// Role of the data set among the inputs.
const DATA: &str = "data";
/// Role of the output.
const SCORES: &str = "scores";
/// Problems whose samples are laid out for people.
const SHOWN_PROBLEMS: usize = 10;

/// Generates programs for one model, executes them and scores them.
#[derive(Debug, clap::Args)]
pub struct Evaluate {
    /// Processed data set: artifact id or name
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Checkpoint of train-stage2: artifact id or name
    #[arg(
        long,
        value_name = "CHECKPOINT",
        required_unless_present = "base",
        conflicts_with = "base"
    )]
    checkpoint: Option<String>,
    /// Untrained base model: artifact id or name
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Go on where the platform cannot enforce every layer of the sandbox
    #[arg(long, env = "WMTP_ACCEPT_DEGRADED_SANDBOX", value_parser = clap::builder::BoolishValueParser::new())]
    accept_degraded_sandbox: bool,
}

/// What the plan hands to the run.
#[derive(Debug)]
pub struct Work {
    subject: Subject,
    evaluation: Evaluation,
    data_id: String,
    accept_degraded: bool,
}

impl Job for Evaluate {
    type Work = Work;
    const NAME: &'static str = "evaluate";
    const ABOUT: &'static str = "Generates programs, executes them in the sandbox and scores them.";
    const EXAMPLES: &'static str = "\
  evaluate --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --name v002-s42
  evaluate --recipe v001.yaml --store s3://wmtp/demo --data micropy --base micro-mtp --name base
  evaluate grade --problems HumanEval.jsonl --samples samples.jsonl --out results.jsonl";
    const VERSION: u32 = 3;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let data = cx.input(DATA, Kind::ProcessedData, &self.data)?;
        let subject = match (&self.checkpoint, &self.base) {
            (Some(checkpoint), _) => Subject::checkpoint(cx, checkpoint)?,
            (None, Some(base)) => Subject::base(cx, base)?,
            (None, None) => return Err(JobError::usage("give --checkpoint or --base")),
        };
        require_same_tokenizer(&data, &subject)?;
        let recipe = cx.recipe()?;
        let evaluation = recipe.evaluation.clone();
        let note = format!(
            "{} on the {} split, {} samples a problem",
            subject.version_id, evaluation.split, evaluation.num_samples
        );
        let options = recipe.section_options(&["data.max_length", "evaluation", "seed"]);
        // The summary states data set and shared digest, so they decide bytes of the output.
        let shared = subject.recipe.shared_digest().to_string();
        let accept_degraded =
            self.accept_degraded_sandbox || evaluation.sandbox == SandboxTier::Degraded;
        let sandbox_option = if accept_degraded { "degraded" } else { "full" };
        let data_id = data.id.to_string();
        Ok(Plan::new(Work {
            subject,
            evaluation,
            data_id,
            accept_degraded,
        })
        .options(options)
        .option("shared", shared)
        .option("sandbox", sandbox_option)
        .output(SCORES, Kind::Scores)
        .note(note))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let evaluation = &work.evaluation;
        let data = run.input(DATA)?;
        let problems = read_problems(&data, evaluation)?;
        let tokenizer =
            Tokenizer::load(&data.join(data_files::TOKENIZER)).map_err(JobError::bad_input)?;
        let (params, store) = work.subject.load(&run.input(subject::ROLE)?)?;
        // Before any generation: what the sandbox cannot hold must not be found out afterwards.
        let grader = Grader::start(grader_config(evaluation, work.accept_degraded)?)
            .map_err(sandbox_error)?;

        let generator = generator(run, &params, &store, &tokenizer)?;
        let started = run.elapsed();
        let drawing = drawing(evaluation, run.recipe().seed);
        let Generation { completions, tally } =
            generate::all(&problems, &tokenizer, &generator, drawing, run)?;
        let generation_secs = run.elapsed().saturating_sub(started).as_secs_f64();

        let samples = execute(&problems, completions, &grader, run)?;
        let heads = head_scores(&data, evaluation.split, &params, &store)?;
        let matches = matches::of(&problems, &samples, &grader);
        let report = Report {
            counts: score::count(&problems, &samples),
            problems,
            tally,
            heads,
            matches,
            latency_ms: 1000.0 * generation_secs / samples.len().max(1) as f64,
            samples,
            sandbox: grader.sandbox().to_map(),
        };
        let dir = run.output_dir(SCORES)?;
        report.write(&dir, work, run)?;
        report.tell(run);
        Ok(vec![
            Output::new(SCORES, Kind::Scores, dir)
                .attribute("version_id", &work.subject.version_id)
                .attribute("algo", &work.subject.algo)
                .attribute("split", evaluation.split)
                .attribute("dataset", &work.subject.recipe.experiment.dataset),
        ])
    }
}

/// A model reads ids; ids of another tokenizer would give scores of noise.
fn require_same_tokenizer(data: &Manifest, subject: &Subject) -> Result<(), JobError> {
    const KEY: &str = "tokenizer_sha256";
    let (own, theirs) = (data.attribute(KEY), subject.manifest.attribute(KEY));
    if own.is_some() && own == theirs {
        return Ok(());
    }
    Err(JobError::usage(format!(
        "{} and {} do not share a tokenizer ({} and {})",
        data.id,
        subject.manifest.id,
        own.unwrap_or("unknown"),
        theirs.unwrap_or("unknown"),
    ))
    .hint("evaluate a model on the data set that its tokenizer was made with"))
}

fn read_problems(data: &Path, evaluation: &Evaluation) -> Result<Vec<Problem>, JobError> {
    let path = data.join(data_files::problems(evaluation.split));
    let mut problems: Vec<Problem> = jsonl::read(&path)?;
    problems.truncate(evaluation.max_problems.unwrap_or(usize::MAX));
    if problems.is_empty() {
        return Err(JobError::bad_input(format!(
            "the {} split holds no problem",
            evaluation.split
        )));
    }
    Ok(problems)
}

fn grader_config(evaluation: &Evaluation, accept_degraded: bool) -> Result<GraderConfig, JobError> {
    let whole = |secs: f64| secs.ceil().max(1.0) as u64;
    Ok(GraderConfig {
        workers: NonZeroUsize::new(rayon::current_num_threads())
            .ok_or_else(|| JobError::internal("the thread pool has no thread"))?,
        limits: Limits {
            cpu_secs: whole(evaluation.cpu_secs),
            wall_secs: whole(evaluation.wall_secs),
            memory_bytes: evaluation.memory_mib << 20,
            ..Limits::default()
        },
        accept_degraded,
        audit: true,
        python: None,
    })
}

fn generator(
    run: &Run,
    params: &Params,
    store: &ParamStore,
    tokenizer: &Tokenizer,
) -> Result<Generator, JobError> {
    let recipe = run.recipe();
    let max_new_tokens = recipe.evaluation.max_new_tokens;
    // Prompts are as long as in training; the continuation comes on top.
    let max_tokens = recipe.data.max_length + max_new_tokens;
    let model = if recipe.evaluation.speculate {
        InferenceModel::speculative(params, store, max_tokens)
    } else {
        InferenceModel::new(params, store, max_tokens)
    };
    let model = model.map_err(JobError::bad_input)?;
    Ok(Generator::new(model, tokenizer.eos(), max_new_tokens))
}

fn drawing(evaluation: &Evaluation, run_seed: u64) -> Drawing {
    Drawing {
        sampling: Sampling {
            temperature: evaluation.temperature,
            top_p: evaluation.top_p,
        },
        num_samples: evaluation.num_samples,
        seed: seed::stream(run_seed, "evaluate.sampling"),
    }
}

/// Executes every program against the tests of its problem.
fn execute(
    problems: &[Problem],
    completions: Vec<Completion>,
    grader: &Grader,
    run: &Run,
) -> Result<Vec<GradedSample>, JobError> {
    // All programs of a problem share its tests, which can be large.
    let empty: BTreeMap<&str, Program> = problems
        .iter()
        .map(|problem| {
            let program = Program::from_tests("", &problem.tests);
            (problem.problem_id.as_str(), program)
        })
        .collect();
    let programs: Vec<Program> = completions
        .iter()
        .map(|completion| empty[completion.problem_id.as_str()].with_candidate(&completion.program))
        .collect();
    let progress = run.progress("execute", "programs", programs.len() as u64);
    let verdicts = grader.grade_all(&programs, |_, _| {
        progress.inc(1);
        run.flow()
    });
    if run.should_stop() {
        return Err(JobError::preempted());
    }
    Ok(completions
        .into_iter()
        .zip(verdicts)
        .map(|(completion, verdict)| GradedSample {
            completion,
            verdict,
        })
        .collect())
}

fn head_scores(
    data: &Path,
    split: Split,
    params: &Params,
    store: &ParamStore,
) -> Result<Vec<HeadScore>, JobError> {
    let rows =
        TokenFile::load(&data.join(data_files::tokens(split))).map_err(JobError::bad_input)?;
    heads::score(params, store, &rows).map_err(JobError::internal)
}

/// Everything that one run found out.
struct Report {
    problems: Vec<Problem>,
    samples: Vec<GradedSample>,
    counts: Vec<ProblemCount>,
    tally: Tally,
    heads: Vec<HeadScore>,
    matches: Option<Matches>,
    latency_ms: f64,
    sandbox: BTreeMap<String, String>,
}

impl Report {
    fn write(&self, dir: &Path, work: &Work, run: &Run) -> Result<(), JobError> {
        let metrics = score::metrics(
            &self.counts,
            &self.samples,
            &self.heads,
            self.matches,
            &work.evaluation.ks,
        );
        let score = EvalScore {
            dataset_id: format!(
                "{}-{}",
                work.subject.recipe.experiment.dataset, work.evaluation.split
            ),
            created_at: run.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            num_samples: (self.samples.len() - score::num_ungraded(&self.samples)) as u64,
            metrics,
            latency_ms: self.latency_ms,
        };
        jsonl::write_json(&dir.join(score_files::EVAL_SCORE), &score)?;
        jsonl::write_json(&dir.join(score_files::SUMMARY), &self.summary(work))?;
        jsonl::write(&dir.join(score_files::SAMPLES), &self.samples)?;
        jsonl::write(&dir.join(score_files::PROBLEMS), &self.counts)?;
        self.write_shown(&dir.join(score_files::INFER_SAMPLES), run.recipe().seed)
    }

    fn summary(&self, work: &Work) -> ScoreSummary {
        let subject = &work.subject;
        ScoreSummary {
            version_id: subject.version_id.clone(),
            algo: subject.algo.clone(),
            parent: subject.parent.clone(),
            change: subject.change.clone(),
            seed: subject.seed,
            dataset: subject.recipe.experiment.dataset.clone(),
            split: work.evaluation.split,
            shared_digest: subject.recipe.shared_digest().to_string(),
            checkpoint: subject.manifest.id.to_string(),
            data: work.data_id.clone(),
            protocol: protocol(&work.evaluation, self.problems.len()),
            heads: self.heads.iter().map(|head| head.loss.clone()).collect(),
            error_shares: score::error_shares(&self.samples),
            pass_at_1_spread: score::spread(&self.counts),
            audits: score::audits(&self.samples),
            doubtful: score::doubtful(&self.samples),
            sandbox: self.sandbox.clone(),
        }
    }

    /// `0001/{input.txt, output.txt, gt.txt, meta.json}`: a few problems as a person reads them.
    fn write_shown(&self, folder: &Path, seed: u64) -> Result<(), JobError> {
        for (number, problem) in score::shown(&self.problems, SHOWN_PROBLEMS, seed)
            .into_iter()
            .enumerate()
        {
            let Some(sample) = self.samples.iter().find(|sample| {
                sample.completion.problem_id == problem.problem_id
                    && sample.completion.sample == Some(0)
            }) else {
                continue;
            };
            let dir = folder.join(format!("{:04}", number + 1));
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("input.txt"), &problem.prompt)?;
            std::fs::write(dir.join("output.txt"), &sample.completion.program)?;
            std::fs::write(
                dir.join("gt.txt"),
                problem.reference.as_deref().unwrap_or_default(),
            )?;
            let meta = json!({
                "problem_id": problem.problem_id,
                "family": problem.family,
                "sample": sample.completion.sample,
                "passed": sample.verdict.passed,
                "class": sample.verdict.class,
                "message": sample.verdict.message,
                "num_tokens": sample.completion.num_tokens,
            });
            jsonl::write_json(&dir.join("meta.json"), &meta)?;
        }
        Ok(())
    }

    fn tell(&self, run: &Run) {
        let proposals: BTreeMap<_, _> = score::proposals(&self.tally).into_iter().collect();
        if !proposals.is_empty() {
            run.event("proposals", &serde_json::json!(proposals));
        }
        let ungraded = score::num_ungraded(&self.samples);
        if ungraded > 0 {
            run.warning(format!(
                "{ungraded} samples could not be graded and count for nothing"
            ));
        }
        let audits = score::audits(&self.samples);
        if let Some(refuted) = audits.get(&AuditOutcome::Refuted) {
            run.warning(format!(
                "{refuted} samples pass beside their tests and not from a process of their own; summary.json lists them"
            ));
        }
    }
}

/// The protocol as it stands beside every number.
fn protocol(evaluation: &Evaluation, num_problems: usize) -> BTreeMap<String, String> {
    [
        ("temperature", evaluation.temperature.to_string()),
        ("top_p", evaluation.top_p.to_string()),
        ("num_samples", evaluation.num_samples.to_string()),
        ("num_problems", num_problems.to_string()),
        ("max_new_tokens", evaluation.max_new_tokens.to_string()),
        ("prompt_style", "template".to_owned()),
        ("stops", "end token, next header, closing fence".to_owned()),
        ("cpu_secs", evaluation.cpu_secs.to_string()),
        ("wall_secs", evaluation.wall_secs.to_string()),
        ("memory_mib", evaluation.memory_mib.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;
    use wmtp_records::Tests;

    use super::*;

    fn problem(number: usize) -> Problem {
        Problem {
            problem_id: format!("p{number}"),
            instruction: String::new(),
            input: String::new(),
            prompt: String::new(),
            tests: Tests::Asserts {
                setup: String::new(),
                asserts: Vec::new(),
            },
            reference: None,
            family: String::new(),
            difficulty: 0,
        }
    }

    fn limited_to(max_problems: Option<usize>) -> Evaluation {
        Evaluation {
            split: Split::Validation,
            max_problems,
            ..Evaluation::default()
        }
    }

    #[test]
    fn the_first_problems_of_the_split_are_taken_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(data_files::problems(Split::Validation));
        jsonl::write(&path, &[problem(0), problem(1), problem(2)]).unwrap();
        let ids = |max_problems| -> Vec<String> {
            let problems = read_problems(folder.path(), &limited_to(max_problems)).unwrap();
            problems
                .into_iter()
                .map(|problem| problem.problem_id)
                .collect()
        };
        assert_eq!(ids(None), ["p0", "p1", "p2"]);
        assert_eq!(ids(Some(2)), ["p0", "p1"]);
        let error = read_problems(folder.path(), &limited_to(Some(0))).unwrap_err();
        assert_eq!(error.exit(), Exit::BadInput);
    }

    #[test]
    fn fractions_of_a_second_are_rounded_up_to_what_the_kernel_counts() {
        let evaluation = Evaluation {
            cpu_secs: 0.2,
            wall_secs: 2.5,
            memory_mib: 3,
            ..Evaluation::default()
        };
        let limits = grader_config(&evaluation, false).unwrap().limits;
        assert_eq!(
            (limits.cpu_secs, limits.wall_secs, limits.memory_bytes),
            (1, 3, 3 << 20)
        );
    }
}
