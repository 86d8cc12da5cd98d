//! The job: model and problems in, scores out.

use std::path::Path;

use wmtp_decoding::Tally;
use wmtp_execution::SandboxConsent;
use wmtp_job_kit::{Exit, Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run};
use wmtp_model::{Device, ParamStore, Params};
use wmtp_recipe::Evaluation;
use wmtp_records::{Problem, jsonl, score_files};
use wmtp_training::session::load_tokens;

use crate::contamination::{self, Flags};
use crate::execute::{execute, start_grader};
use crate::generate::{self, Generation, model_error};
use crate::heads::{self, HeadScore, Weights};
use crate::infer::{self, Origin};
use crate::inputs::{self, Computing, DATA, Inputs};
use crate::looks::Look;
use crate::report::{Case, Report, protocol};
use crate::subject::{self, Subject};
use crate::texts::Text;
use crate::{latency, matches, score};

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
    consent: SandboxConsent,
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
  evaluate external --recipe v001.yaml --store s3://wmtp/demo --data micropy --folder external/big-model --name big-model
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
        let accept_degraded = self.consent.holds_for(&evaluation);
        let known = trained_on.as_ref().map_or("unknown", |(id, _)| id);
        let note = format!(
            "{} on the {} split, {} samples a problem",
            subject.version_id, evaluation.split, evaluation.num_samples
        );
        let plan = Plan::new(())
            .options(recipe.section_options(&["data.max_length", "evaluation", "seed"]))
            // The summary states data set and shared digest, so they decide bytes of the output.
            .option("shared", subject.recipe.shared_digest().to_string())
            .option("sandbox", SandboxConsent::tier(accept_degraded))
            .option("trained_on", known)
            .output(SCORES, Kind::Scores)
            .note(note);
        let plan = match computing.option() {
            Some(device) => plan.option("device", device),
            None => plan,
        };
        let version = (Self::NAME, Self::VERSION);
        let look = Look::planned(
            recipe,
            &data,
            subject.stable_name(),
            version,
            &judged,
            &plan.options,
        )?;
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
        }))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let evaluation = &work.evaluation;
        let data = run.input(DATA)?;
        let problems = inputs::read_problems(&data, evaluation)?;
        let (params, store) = work.subject.load(&run.input(subject::ROLE)?)?;
        // Before any generation: what the sandbox cannot hold must not be found out afterwards.
        let grader = start_grader(evaluation, work.accept_degraded)?;
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
        let matches = matches::of(&problems, &samples, &grader, run)?;
        let latency = latency::summary(&timings);
        let report = Report {
            counts: score::count(&problems, &samples, &flags),
            touch,
            tally,
            heads,
            matches,
            latency_ms: Some(latency.sample_ms.p50),
            latency: Some(latency),
            samples,
            sandbox: grader.sandbox().to_map(),
            problems,
        };
        let who = work.subject.identity();
        let case = Case {
            who: &who,
            evaluation,
            protocol: protocol(evaluation, report.problems.len()),
            data: &work.data_id,
            reference: work.reference.as_deref(),
            trained_on: work.trained_on.as_ref().map(|(id, _)| id.as_str()),
        };
        let dir = run.output_dir(SCORES)?;
        report.write(&dir, &case, run)?;
        report.tell(run);
        jsonl::write_json(&dir.join(score_files::USAGE), &run.usage())?;
        Ok(vec![report.output(SCORES, dir, &case)])
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
        let rows = load_tokens(data, self.evaluation.split)?;
        let there = |store: ParamStore| match device {
            Device::Cpu => Ok(store),
            device => store.to_device(device).map_err(model_error),
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
        let scored = heads::score(policy, reference, &rows, &run.stop_flag());
        scored.map_err(model_error)?.ok_or_else(JobError::preempted)
    }
}
