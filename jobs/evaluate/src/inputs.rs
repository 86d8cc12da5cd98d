//! What generation reads, the same for the job and for its shards.

use std::path::Path;

use wmtp_decoding::{Beam, Generator, InferenceModel, Sampling};
use wmtp_grading::files::Shard;
use wmtp_job_kit::{JobError, Kind, Manifest, PlanCx, Run, check_tokenizers};
use wmtp_model::{ParamStore, Params, Place, Products, RowSetup};
use wmtp_recipe::{Evaluation, seed};
use wmtp_records::{Problem, data_files, jsonl};
use wmtp_tokens::Tokenizer;
use wmtp_training::session;

use crate::generate::{self, Drawing, Generation};
use crate::subject::{self, Subject};

/// Role of the data set among the inputs.
pub(crate) const DATA: &str = "data";

/// A model, and where it computes.
#[derive(Debug, clap::Args)]
pub(crate) struct Model {
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
    /// Where the model computes: cpu, cuda, or cuda:1 for the second device
    #[arg(long, value_name = "DEVICE", env = "WMTP_DEVICE", default_value_t = Place::BUILT_FOR)]
    pub(crate) device: Place,
}

impl Model {
    /// Kind and name or id of the one that was given.
    pub(crate) fn reference(&self) -> Result<(Kind, &str), JobError> {
        match (&self.checkpoint, &self.base) {
            (Some(checkpoint), _) => Ok((Kind::Checkpoint, checkpoint)),
            (None, Some(base)) => Ok((Kind::BaseModel, base)),
            (None, None) => Err(JobError::usage("give --checkpoint or --base")),
        }
    }
}

/// A model and problems for it.
#[derive(Debug, clap::Args)]
pub(crate) struct Inputs {
    /// Processed data set: artifact id or name
    #[arg(long, value_name = "DATA")]
    data: String,
    #[command(flatten)]
    model: Model,
}

/// Where a model computes, and with what products: those of its training on a device, f32 on the CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Computing {
    place: Place,
    products: Products,
}

impl Computing {
    /// What it adds to the settings that decide texts and scores: nothing on the CPU, whose bits others do not have.
    pub(crate) fn option(self) -> Option<&'static str> {
        match (self.place, self.products) {
            (Place::Cpu, _) => None,
            (Place::Cuda(_), Products::F32) => Some("cuda"),
            (Place::Cuda(_), Products::Bf16) => Some("cuda, bf16 products"),
        }
    }

    /// Opens the device.
    pub(crate) fn open(self, run: &Run) -> Result<RowSetup, JobError> {
        Ok(RowSetup {
            device: session::open_device(self.place, run)?,
            products: self.products,
        })
    }
}

impl Inputs {
    /// Where the model computes.
    pub(crate) fn computing(&self, subject: &Subject) -> Computing {
        Computing {
            place: self.model.device,
            products: match self.model.device {
                Place::Cpu => Products::F32,
                Place::Cuda(_) => session::products(subject.recipe.model.dtype),
            },
        }
    }

    /// The data set and the model, which must belong together.
    pub(crate) fn register(&self, cx: &mut PlanCx<'_>) -> Result<(Manifest, Subject), JobError> {
        let data = cx.input(DATA, Kind::ProcessedData, &self.data)?;
        let subject = match self.model.reference()? {
            (Kind::Checkpoint, checkpoint) => Subject::checkpoint(cx, checkpoint)?,
            (_, base) => Subject::base(cx, base)?,
        };
        check_tokenizers((DATA, &data), (subject::ROLE, &subject.manifest))?;
        cx.store()?.check_model(&subject.manifest, &data, None)?;
        Ok((data, subject))
    }

    /// The reference whose losses stand beside the model's.
    pub(crate) fn reference(
        cx: &mut PlanCx<'_>,
        role: &str,
        reference: Option<&str>,
        data: &Manifest,
    ) -> Result<Option<Manifest>, JobError> {
        let Some(reference) = reference else {
            return Ok(None);
        };
        let manifest = cx.input(role, Kind::ReferenceCe, reference)?;
        check_tokenizers((DATA, data), (role, &manifest))?;
        Ok(Some(manifest))
    }
}

pub(crate) fn read_problems(
    data: &Path,
    evaluation: &Evaluation,
) -> Result<Vec<Problem>, JobError> {
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

/// The problems of a shard.
pub(crate) fn of_shard(problems: &[Problem], shard: Shard) -> Vec<&Problem> {
    let numbered = problems.iter().enumerate();
    numbered
        .filter(|(index, _)| shard.holds(*index))
        .map(|(_, problem)| problem)
        .collect()
}

/// Generates what the recipe asks for.
pub(crate) fn generate(
    problems: &[&Problem],
    data: &Path,
    params: &Params,
    store: &ParamStore,
    setup: &RowSetup,
    run: &Run,
) -> Result<Generation, JobError> {
    let tokenizer =
        Tokenizer::load(&data.join(data_files::TOKENIZER)).map_err(JobError::bad_input)?;
    let generator = generator(run, params, store, setup, &tokenizer)?;
    let drawing = drawing(&run.recipe().evaluation, run.recipe().seed);
    generate::all(problems, &tokenizer, &generator, drawing, run)
}

fn generator(
    run: &Run,
    params: &Params,
    store: &ParamStore,
    setup: &RowSetup,
    tokenizer: &Tokenizer,
) -> Result<Generator, JobError> {
    let recipe = run.recipe();
    let max_new_tokens = recipe.evaluation.max_new_tokens;
    // Prompts are as long as in training; the continuation comes on top.
    let max_tokens = recipe.data.max_length + max_new_tokens;
    let model = if recipe.evaluation.speculate {
        InferenceModel::speculative(params, store, max_tokens, setup)
    } else {
        InferenceModel::new(params, store, max_tokens, setup)
    };
    let model = model.map_err(generate::error)?;
    Ok(Generator::new(model, tokenizer.eos(), max_new_tokens))
}

pub(crate) fn drawing(evaluation: &Evaluation, run_seed: u64) -> Drawing {
    Drawing {
        sampling: Sampling {
            temperature: evaluation.temperature,
            top_k: evaluation.top_k,
            top_p: evaluation.top_p,
        },
        beam: (evaluation.beams > 1).then_some(Beam {
            width: evaluation.beams,
            length_penalty: evaluation.length_penalty,
        }),
        num_samples: evaluation.num_samples,
        seed: seed::stream(run_seed, "evaluate.sampling"),
    }
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;
    use wmtp_records::{Split, Tests};

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
    fn every_problem_is_in_one_shard() {
        let problems: Vec<Problem> = (0..5).map(problem).collect();
        let of = |shard: &str| -> Vec<&str> {
            let own = of_shard(&problems, shard.parse().unwrap());
            own.iter()
                .map(|problem| problem.problem_id.as_str())
                .collect()
        };
        assert_eq!(
            [of("1/2"), of("2/2")],
            [vec!["p0", "p2", "p4"], vec!["p1", "p3"]]
        );
        assert!(of("6/6").is_empty());
    }
}
