//! The job: model and problems in, scores out.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use serde_json::json;
use wmtp_data_sets::TokenFile;
use wmtp_decoding::Tally;
use wmtp_grading::{Grader, GraderConfig, Limits, Program};
use wmtp_job_kit::{Exit, Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run};
use wmtp_model::{Device, ParamStore, Params};
use wmtp_recipe::{Evaluation, SandboxTier};
use wmtp_records::{
    AuditOutcome, Completion, EvalScore, GradedSample, Latency, Problem, ProblemCount,
    ScoreSummary, TestTouch, data_files, jsonl, score_files,
};

use crate::contamination::{self, Flags};
use crate::generate::{self, Generation};
use crate::heads::{self, HeadScore, Weights};
use crate::infer::{self, Origin};
use crate::inputs::{self, Computing, DATA, Inputs};
use crate::looks::Look;
use crate::matches::{self, Matches};
use crate::score::Beside;
use crate::subject::{self, Subject};
use crate::texts::Text;
use crate::usage::{Meter, Rates};
use crate::{latency, sandbox_error, score};

/// Role of the output.
const SCORES: &str = "scores";
/// Role of the reference.
const REFERENCE: &str = "reference-ce";
/// Role of the data that the model was trained on, where they are not those of the problems.
const TRAINED_ON: &str = "trained-on";

/// Generates programs for one model, executes them and scores them.
#[derive(Debug, clap::Args)]
pub struct Evaluate {
    #[command(flatten)]
    inputs: Inputs,
    /// Generate nothing; execute and score what these shards of `evaluate infer` hold: artifact ids or names
    #[arg(long, value_name = "SHARD", num_args = 1..)]
    merge: Vec<String>,
    /// Tuned reference of train-stage1, artifact id or name: each head's loss is told beside the reference's
    #[arg(long, value_name = "REFERENCE")]
    reference_ce: Option<String>,
    #[command(flatten)]
    rates: Rates,
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
    /// Roles of the shards; none where the texts are generated here.
    shards: Vec<String>,
    /// Id of the reference, where one was given.
    reference: Option<String>,
    /// Where the training data are known: their id, and the role that they have among the inputs.
    trained_on: Option<(String, &'static str)>,
    look: Option<Look>,
    computing: Computing,
    rates: Rates,
}

impl Job for Evaluate {
    type Work = Work;
    const NAME: &'static str = "evaluate";
    const ABOUT: &'static str = "Generates programs, executes them in the sandbox and scores them.\n\n\
        Checkpoint and temperature are chosen on the validation split. The test split (evaluation.split=test) serves the final \
        report, once per version and protocol: each look of a version at it is registered in the store before a program is \
        judged, and a second one is recorded as such in the score.";
    const EXAMPLES: &'static str = "\
  evaluate --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --name v002-s42
  evaluate --recipe v001.yaml --store s3://wmtp/demo --data micropy --base micro-mtp --name base
  evaluate --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --reference-ce micropy --name v002-s42
  evaluate --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --set evaluation.split=test --dry-run
  evaluate infer --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --shard 3/8 --name v002-s42-3
  evaluate grade --problems HumanEval.jsonl --samples samples.jsonl --out results.jsonl";
    const VERSION: u32 = 4;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let (data, subject) = self.inputs.register(cx)?;
        let reference = Inputs::reference(cx, REFERENCE, self.reference_ce.as_deref(), &data)?;
        let trained_on = trained_on(cx, &data, &subject)?;
        let computing = self.inputs.computing(&subject);
        let origin = Origin::of(cx.recipe()?, &data, &subject.manifest, computing);
        // What decides the scores, however the texts were generated: shards come to it last.
        let judged = cx.inputs();
        let shards = infer::register_shards(&self.merge, &origin, cx)?;
        let recipe = cx.recipe()?;
        let evaluation = recipe.evaluation.clone();
        let accept_degraded =
            self.accept_degraded_sandbox || evaluation.sandbox == SandboxTier::Degraded;
        let sandbox_option = if accept_degraded { "degraded" } else { "full" };
        let known = trained_on.as_ref().map_or("unknown", |(id, _)| id);
        let note = format!(
            "{} on the {} split, {} samples a problem",
            subject.version_id, evaluation.split, evaluation.num_samples
        );
        let plan = Plan::new(())
            .options(recipe.section_options(&["data.max_length", "evaluation", "seed"]))
            // The summary states data set and shared digest, so they decide bytes of the output.
            .option("shared", subject.recipe.shared_digest().to_string())
            .option("sandbox", sandbox_option)
            .option("trained_on", known)
            .output(SCORES, Kind::Scores)
            .note(note);
        let plan = match computing.option() {
            Some(device) => plan.option("device", device),
            None => plan,
        };
        let version = (Self::NAME, Self::VERSION);
        let look = Look::planned(recipe, &data, &subject, version, &judged, &plan.options)?;
        let plan = match &look {
            Some(look) => plan.note(look.note(cx)?),
            None => plan,
        };
        Ok(plan.with_work(Work {
            subject,
            evaluation,
            data_id: data.id.to_string(),
            accept_degraded,
            shards,
            reference: reference.map(|manifest| manifest.id.to_string()),
            trained_on,
            look,
            computing,
            rates: self.rates.clone(),
        }))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let evaluation = &work.evaluation;
        let meter = Meter::start();
        let data = run.input(DATA)?;
        let problems = inputs::read_problems(&data, evaluation)?;
        let (params, store) = work.subject.load(&run.input(subject::ROLE)?)?;
        // Before any generation: what the sandbox cannot hold must not be found out afterwards.
        let grader = Grader::start(grader_config(evaluation, work.accept_degraded)?)
            .map_err(sandbox_error)?;
        let setup = work.computing.open(run)?;
        let touch = work.look.as_ref().map(|look| look.register(run));
        let touch = touch.transpose()?;

        let all: Vec<&Problem> = problems.iter().collect();
        let Generation { texts, tally } = if work.shards.is_empty() {
            inputs::generate(&all, &data, &params, &store, &setup, run)?
        } else {
            let texts = infer::merge(&work.shards, run)?;
            let drawing = inputs::drawing(evaluation, run.recipe().seed);
            Generation {
                texts: generate::in_order(&all, drawing, texts)?,
                tally: Tally::default(),
            }
        };
        let (completions, timings): (Vec<_>, Vec<_>) =
            texts.into_iter().map(Text::into_parts).unzip();

        let flags = work.flags(&problems, &data, run)?;
        let samples = execute(&problems, completions, &flags, &grader, run)?;
        let heads = work.head_scores(&data, (&params, store), &setup.device, run)?;
        let matches = matches::of(&problems, &samples, &grader);
        let report = Report {
            counts: score::count(&problems, &samples, &flags),
            problems,
            touch,
            tally,
            heads,
            matches,
            latency: latency::summary(&timings),
            samples,
            sandbox: grader.sandbox().to_map(),
        };
        let dir = run.output_dir(SCORES)?;
        report.write(&dir, work, run)?;
        report.tell(run);
        let usage = meter.usage(&work.rates, run);
        jsonl::write_json(&dir.join(score_files::USAGE), &usage)?;
        let output = Output::new(SCORES, Kind::Scores, dir)
            .attribute("version_id", &work.subject.version_id)
            .attribute("algo", &work.subject.algo)
            .attribute("split", evaluation.split)
            .attribute("dataset", &work.subject.recipe.experiment.dataset);
        Ok(vec![match &report.touch {
            Some(touch) => output.attribute("test_touch", touch.number),
            None => output,
        }])
    }
}

/// The data that a checkpoint was trained on, by id and role; `None` for a base model, or where the store has them no more.
fn trained_on(
    cx: &mut PlanCx<'_>,
    data: &Manifest,
    subject: &Subject,
) -> Result<Option<(String, &'static str)>, JobError> {
    let Some(id) = subject.trained_on().map(ToString::to_string) else {
        return Ok(None);
    };
    if id == data.id.to_string() {
        return Ok(Some((id, DATA)));
    }
    match cx.input(TRAINED_ON, Kind::ProcessedData, &id) {
        Ok(_) => Ok(Some((id, TRAINED_ON))),
        Err(error) if error.exit() == Exit::BadInput => Ok(None),
        Err(error) => Err(error),
    }
}

impl Work {
    /// What the model has seen of the problems.
    fn flags(&self, problems: &[Problem], data: &Path, run: &Run) -> Result<Flags, JobError> {
        let Some((id, role)) = &self.trained_on else {
            if let Some(id) = self.subject.trained_on() {
                run.warning(format!(
                    "the store has no {id}, which the model was trained on: what it has seen of the problems is not known"
                ));
            }
            return Ok(Flags::new());
        };
        let flags = contamination::flags(problems, self.evaluation.split, data, &run.input(role)?)?;
        if !flags.is_empty() {
            run.warning(format!(
                "{} of {} problems hold something of {id}, which the model was trained on; pass@k stands without them too",
                flags.len(),
                problems.len()
            ));
        }
        Ok(flags)
    }

    fn head_scores(
        &self,
        data: &Path,
        (params, store): (&Params, ParamStore),
        device: &Device,
        run: &Run,
    ) -> Result<Vec<HeadScore>, JobError> {
        let path = data.join(data_files::tokens(self.evaluation.split));
        let rows = TokenFile::load(&path).map_err(JobError::bad_input)?;
        let there = |store: ParamStore| match device {
            Device::Cpu => Ok(store),
            device => store.to_device(device).map_err(JobError::internal),
        };
        let store = there(store)?;
        let policy = Weights {
            params,
            store: &store,
        };
        let reference = match &self.reference {
            Some(_) => {
                let (params, store) = subject::load_reference(&run.input(REFERENCE)?)?;
                Some((params, there(store)?))
            }
            None => None,
        };
        let reference = reference
            .as_ref()
            .map(|(params, store)| Weights { params, store });
        heads::score(policy, reference, &rows).map_err(JobError::internal)
    }
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

/// Executes every program against the tests of its problem.
fn execute(
    problems: &[Problem],
    completions: Vec<Completion>,
    flags: &Flags,
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
            contamination: flags.get(&completion.problem_id).copied(),
            completion,
            verdict,
        })
        .collect())
}

/// Everything that one run found out.
struct Report {
    problems: Vec<Problem>,
    samples: Vec<GradedSample>,
    counts: Vec<ProblemCount>,
    tally: Tally,
    heads: Vec<HeadScore>,
    matches: Option<Matches>,
    latency: Latency,
    sandbox: BTreeMap<String, String>,
    touch: Option<TestTouch>,
}

impl Report {
    fn write(&self, dir: &Path, work: &Work, run: &Run) -> Result<(), JobError> {
        let beside = Beside {
            heads: &self.heads,
            matches: self.matches,
            knows_training: work.trained_on.is_some(),
            touch: self.touch.as_ref(),
        };
        let metrics = score::metrics(&self.counts, &self.samples, &beside, &work.evaluation.ks);
        let score = EvalScore {
            dataset_id: format!(
                "{}-{}",
                work.subject.recipe.experiment.dataset, work.evaluation.split
            ),
            created_at: run.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            num_samples: (self.samples.len() - score::num_ungraded(&self.samples)) as u64,
            metrics,
            latency_ms: self.latency.sample_ms.p50,
        };
        jsonl::write_json(&dir.join(score_files::EVAL_SCORE), &score)?;
        jsonl::write_json(&dir.join(score_files::SUMMARY), &self.summary(work))?;
        jsonl::write_json(&dir.join(score_files::LATENCY), &self.latency)?;
        jsonl::write(&dir.join(score_files::SAMPLES), &self.samples)?;
        jsonl::write(&dir.join(score_files::PROBLEMS), &self.counts)?;
        let shown = work.evaluation.infer_samples;
        self.write_shown(
            &dir.join(score_files::INFER_SAMPLES),
            shown,
            run.recipe().seed,
        )
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
            reference_loss: work
                .reference
                .as_ref()
                .and_then(|id| score::reference_loss(&self.heads, id)),
            trained_on: work.trained_on.as_ref().map(|(id, _)| id.clone()),
            contaminated: score::contaminated(&self.counts),
            test_touch: self.touch.clone(),
        }
    }

    /// `0001/{input.txt, output.txt, gt.txt, meta.json}`: a few problems as a person reads them.
    fn write_shown(&self, folder: &Path, most: usize, seed: u64) -> Result<(), JobError> {
        for (number, problem) in score::shown(&self.problems, most, seed)
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
                "contamination": sample.contamination,
            });
            jsonl::write_json(&dir.join("meta.json"), &meta)?;
        }
        Ok(())
    }

    fn tell(&self, run: &Run) {
        latency::tell(&self.latency, run);
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
    // Left out where they decide nothing, so that scores made before there was a choice compare with those made since.
    let top_k = evaluation.top_k.map(|most| ("top_k", most.to_string()));
    let beams = (evaluation.beams > 1).then(|| {
        let penalty = evaluation.length_penalty.to_string();
        [
            ("beams", evaluation.beams.to_string()),
            ("length_penalty", penalty),
        ]
    });
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
    .chain(top_k)
    .chain(beams.into_iter().flatten())
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
