//! `evaluate infer`: generation alone, whole or a shard of it, and the shards read back.

use wmtp_artifacts::Digest;
use wmtp_grading::files::Shard;
use wmtp_job_kit::{Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run};
use wmtp_recipe::{Evaluation, Recipe};
use wmtp_records::{Completion, CompletionTiming, completion_files, jsonl};

use crate::inputs::{self, Computing, DATA, Inputs};
use crate::latency;
use crate::subject::{self, Subject};
use crate::texts::{Text, Texts};

/// Role of the output.
const COMPLETIONS: &str = "completions";
/// Settings that decide what is generated; the others of the section decide how it is judged.
const SETTINGS: [&str; 11] = [
    "data.max_length",
    "evaluation.split",
    "evaluation.temperature",
    "evaluation.top_k",
    "evaluation.top_p",
    "evaluation.beams",
    "evaluation.length_penalty",
    "evaluation.num_samples",
    "evaluation.max_new_tokens",
    "evaluation.max_problems",
    "seed",
];

/// Generates programs and leaves their execution to `evaluate --merge`.
#[derive(Debug, clap::Args)]
pub struct Infer {
    #[command(flatten)]
    inputs: Inputs,
    /// Generate for a part of the problems: 3/8 is every eighth problem from the third on
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL)]
    shard: Shard,
}

/// What the plan hands to the run.
#[derive(Debug)]
pub struct Work {
    subject: Subject,
    evaluation: Evaluation,
    shard: Shard,
    origin: Origin,
    computing: Computing,
}

/// What shards must share to be parts of one whole, as their artifacts carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    data: String,
    model: String,
    protocol: String,
}

impl Job for Infer {
    type Work = Work;
    const NAME: &'static str = "evaluate-infer";
    const ABOUT: &'static str = "Generates programs for a shard of the problems; `evaluate --merge` executes and scores them.";
    const EXAMPLES: &'static str = "\
  evaluate infer --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --shard 3/8 --name v002-s42-3
  evaluate --recipe v002.yaml --store s3://wmtp/demo --data micropy --checkpoint v002-s42 --merge v002-s42-1 v002-s42-2";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let (data, subject) = self.inputs.register(cx)?;
        let recipe = cx.recipe()?;
        let evaluation = recipe.evaluation.clone();
        let options = recipe.section_options(&SETTINGS);
        let note = format!(
            "{} on the {} split, {} samples a problem, shard {}",
            subject.version_id, evaluation.split, evaluation.num_samples, self.shard
        );
        let computing = self.inputs.computing(&subject);
        let origin = Origin::of(recipe, &data, &subject.manifest, computing);
        let plan = Plan::new(Work {
            subject,
            evaluation,
            shard: self.shard,
            origin,
            computing,
        })
        .options(options)
        .option("shard", self.shard.to_string())
        .output(COMPLETIONS, Kind::Completions)
        .note(note);
        Ok(match computing.option() {
            Some(device) => plan.option("device", device),
            None => plan,
        })
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let data = run.input(DATA)?;
        let problems = inputs::read_problems(&data, &work.evaluation)?;
        let own = inputs::of_shard(&problems, work.shard);
        let (params, store) = work.subject.load(&run.input(subject::ROLE)?)?;
        let setup = work.computing.open(run)?;
        let generation = inputs::generate(&own, &data, &params, &store, &setup, run)?;
        let (completions, timings): (Vec<_>, Vec<_>) =
            generation.texts.into_iter().map(Text::into_parts).unzip();
        latency::tell(&latency::summary(&timings), run);
        let dir = run.output_dir(COMPLETIONS)?;
        jsonl::write(&dir.join(completion_files::COMPLETIONS), &completions)?;
        jsonl::write(&dir.join(completion_files::TIMINGS), &timings)?;
        jsonl::write_json(&dir.join(completion_files::USAGE), &run.usage())?;
        let output = Output::new(COMPLETIONS, Kind::Completions, dir);
        Ok(vec![
            work.origin
                .mark(output)
                .attribute("shard", work.shard)
                .attribute("version_id", &work.subject.version_id),
        ])
    }
}

impl Origin {
    const DATA: &str = "data";
    const MODEL: &str = "model";
    const PROTOCOL: &str = "protocol_sha256";

    /// Of what is generated with this recipe.
    pub(crate) fn of(
        recipe: &Recipe,
        data: &Manifest,
        model: &Manifest,
        computing: Computing,
    ) -> Self {
        let settings = recipe.section_options(&SETTINGS).to_string();
        // Texts of the CPU and of a device are not parts of one whole.
        let settings = settings + computing.option().unwrap_or_default();
        Self {
            data: data.id.to_string(),
            model: model.id.to_string(),
            protocol: Digest::of(settings.as_bytes()).to_string(),
        }
    }

    fn mark(&self, output: Output) -> Output {
        output
            .attribute(Self::DATA, &self.data)
            .attribute(Self::MODEL, &self.model)
            .attribute(Self::PROTOCOL, &self.protocol)
    }

    /// Refuses a shard of another whole.
    fn require(&self, shard: &Manifest) -> Result<(), JobError> {
        for (key, own) in [
            (Self::DATA, &self.data),
            (Self::MODEL, &self.model),
            (Self::PROTOCOL, &self.protocol),
        ] {
            let theirs = shard.attribute(key).unwrap_or("unknown");
            if own != theirs {
                return Err(JobError::usage(format!(
                    "{} was generated with another {key}: {theirs}, not {own}",
                    shard.id
                ))
                .hint("merge shards of the same data, model, seed and sampling settings"));
            }
        }
        Ok(())
    }
}

/// Registers the shards of `origin` as inputs; returns their roles. Each of I/N must be there once.
pub(crate) fn register_shards(
    references: &[String],
    origin: &Origin,
    cx: &mut PlanCx<'_>,
) -> Result<Vec<String>, JobError> {
    let mut missing: Vec<String> = (1..=references.len())
        .map(|number| format!("{number}/{}", references.len()))
        .collect();
    let mut roles = Vec::new();
    for (number, reference) in (1..).zip(references) {
        let role = format!("shard-{number:05}");
        let shard = cx.input(&role, Kind::Completions, reference)?;
        origin.require(&shard)?;
        let label = shard.attribute("shard").unwrap_or("unknown");
        let place = missing.iter().position(|one| one == label);
        let place = place.ok_or_else(|| {
            let total = references.len();
            JobError::usage(format!(
                "{reference} is shard {label}, which {total} shards do not have or have already"
            ))
            .hint("give every shard once")
        })?;
        missing.remove(place);
        roles.push(role);
    }
    Ok(roles)
}

/// The texts of all shards.
pub(crate) fn merge(roles: &[String], run: &Run) -> Result<Texts, JobError> {
    let mut texts = Texts::new();
    for role in roles {
        let dir = run.input(role)?;
        let completions: Vec<Completion> = jsonl::read(&dir.join(completion_files::COMPLETIONS))?;
        let timings: Vec<CompletionTiming> = jsonl::read(&dir.join(completion_files::TIMINGS))?;
        if completions.len() != timings.len() {
            return Err(JobError::bad_input(format!(
                "{role} holds {} completions and {} timings",
                completions.len(),
                timings.len()
            )));
        }
        for (completion, timing) in completions.into_iter().zip(timings) {
            let text = Text::from_parts(completion, timing);
            texts.insert(text.key(), text);
        }
    }
    Ok(texts)
}
