//! Stage 1: the models that later tell which tokens matter.
//!
//! `--objective value` trains a value model on correct and incorrect rows and stores the advantages of every
//! correct row. `--objective reference` tunes a next-token model on the correct rows and stores its
//! cross-entropies. Both are frozen from then on, so that stage 2 is deterministic and can resume.

mod reference;
mod value;

use std::fmt;
use std::path::Path;

use wmtp_job_kit::{
    Exit, Follower, Inputs, Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run, StoreHandle,
    check_tokenizers,
};
use wmtp_model::{Adapters, ParamStore};
use wmtp_recipe::Recipe;
use wmtp_training::Ranks;
use wmtp_training::session::{Compute, Team, follow};

/// Settings that both objectives share with stage 2.
const SHARED: [&str; 9] = [
    "seed",
    "model.dtype",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.weight_decay",
    "optim.grad_clip",
    "optim.warmup_ratio",
    "optim.min_lr_ratio",
];

/// Settings of batches and validation that can change a byte.
const BATCHES: [&str; 4] = [
    "optim.micro_batch_sequences",
    "optim.eval_every_steps",
    "optim.early_stop_patience",
    "optim.early_stop_min_delta",
];

/// What adapters take from the policy's, where there are any.
const ADAPTERS: [&str; 2] = ["lora.alpha", "lora.targets"];

/// What stage 1 makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Objective {
    /// A value model and the advantages that it gives.
    Value,
    /// A tuned reference and its cross-entropies, for Rho-1.
    Reference,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value => "value",
            Self::Reference => "reference",
        })
    }
}

/// Trains the value model and stores advantages, or tunes the reference and stores its cross-entropies.
#[derive(Debug, clap::Args)]
pub struct TrainStage1 {
    /// What to make.
    #[arg(long, value_enum)]
    objective: Objective,
    /// The data set: a name, or an id.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// The model to start from: a name, or an id.
    #[arg(long, value_name = "MODEL")]
    base: String,
    #[command(flatten)]
    compute: Compute,
}

/// What the plan hands to the run.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    objective: Objective,
    compute: Compute,
}

/// Weights for whoever reads them, adapters merged into them.
fn save_merged(
    store: &ParamStore,
    adapters: Option<&Adapters>,
    path: &Path,
) -> wmtp_training::Result<()> {
    match adapters {
        None => store.save(path)?,
        Some(adapters) => adapters.merge(store)?.save(path)?,
    }
    Ok(())
}

impl TrainStage1 {
    fn check(&self, recipe: &Recipe) -> Result<(), JobError> {
        let batch = match self.objective {
            Objective::Value => ("stage1.batch_sequences", recipe.stage1.batch_sequences),
            Objective::Reference => (
                "reference.batch_sequences",
                recipe.reference.batch_sequences,
            ),
        };
        self.compute.check(batch, &recipe.optim)
    }

    fn check_base(
        &self,
        base: &Manifest,
        data: &Manifest,
        store: &StoreHandle,
    ) -> Result<(), JobError> {
        match self.objective {
            Objective::Value => store.check_model(base, data, None),
            Objective::Reference => {
                let checked = store.check_model(base, data, Some(1));
                checked.map_err(|error| match error.exit() {
                    Exit::Usage => error
                        .context("the reference predicts the next token only")
                        .hint("give a plain next-token model with --base, such as micro-ref"),
                    _ => error,
                })
            }
        }
    }
}

impl Job for TrainStage1 {
    type Work = Work;

    const NAME: &'static str = "train-stage1";
    const ABOUT: &'static str = "Trains the value model and stores advantages, or tunes the reference and stores its cross-entropies.";
    const EXAMPLES: &'static str = "\
train-stage1 --objective value --data micropy --base micro-mtp --recipe recipe.yaml --store s3://bucket/wmtp --name v002
train-stage1 --objective reference --data micropy --base micro-ref --recipe recipe.yaml --store s3://bucket/wmtp --name v003";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let recipe = cx.recipe()?.clone();
        self.check(&recipe)?;
        let data = cx.input("data", Kind::ProcessedData, &self.data)?;
        let base = cx.input("base", Kind::BaseModel, &self.base)?;
        check_tokenizers(("data", &data), ("base", &base))?;
        self.check_base(&base, &data, cx.store()?)?;
        let work = Work {
            objective: self.objective,
            compute: self.compute,
        };
        let plan = Plan::new(work)
            .option("objective", self.objective.to_string())
            .options(self.compute.options());
        let mut settings = [SHARED.as_slice(), &BATCHES].concat();
        Ok(match self.objective {
            Objective::Value => {
                settings.extend(["stage1", "score"]);
                if recipe.stage1.lora_r > 0 {
                    settings.extend(ADAPTERS);
                }
                plan.options(recipe.section_options(&settings))
                    .output("value-model", Kind::ValueModel)
                    .output("advantages", Kind::Advantages)
            }
            Objective::Reference => {
                settings.push("reference");
                if recipe.reference.lora_r > 0 {
                    settings.extend(ADAPTERS);
                }
                plan.options(recipe.section_options(&settings))
                    .output("reference-ce", Kind::ReferenceCe)
            }
        })
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let device = work.compute.open(run)?;
        let team = Team::start(run, work.compute)?;
        match work.objective {
            Objective::Value => value::run(run, &device, &team.ranks),
            Objective::Reference => reference::run(run, &device, &team.ranks),
        }
    }

    fn follow(&self, mut follower: Follower) -> Result<(), JobError> {
        let ranks = Ranks::linked(follower.take_links());
        let device = self.compute.open_for(ranks.rank())?;
        match self.objective {
            Objective::Value => {
                let loaded = value::Loaded::of(&follower, &device)?;
                follow(&mut loaded.trainer(follower.recipe(), &ranks)?)
            }
            Objective::Reference => {
                let loaded = reference::Loaded::of(&follower, &device)?;
                follow(&mut loaded.trainer(follower.recipe(), &ranks)?)
            }
        }
    }
}
