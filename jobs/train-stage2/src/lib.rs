//! Stage 2: the policy, trained with weighted multi-token prediction.
//!
//! The recipe's `experiment.algo` chooses the scorer; all else (data order, optimiser, steps, validation)
//! is the same for every algorithm.

mod checkpoint;
mod scorer;

use std::sync::Arc;

use serde_json::Value;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{
    Exit, Follower, Inputs, Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run, StoreHandle,
    check_tokenizers,
};
use wmtp_model::{Adapters, Device, Dropout, ParamStore, Params};
use wmtp_recipe::seed::stream;
use wmtp_recipe::{Algo, Recipe};
use wmtp_records::Split;
use wmtp_training::session::{
    Adapted, Compute, Drive, Team, adapters, drive, follow, load_adapted, load_tokens, products,
};
use wmtp_training::{OptimSettings, PolicySettings, PolicyTrainer, Ranks, Rows, Weights};

/// Trains the policy with weighted multi-token prediction.
#[derive(Debug, clap::Args)]
pub struct TrainStage2 {
    /// The data set: a name, or an id.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// The model to start from: a name, or an id.
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// Advantages of stage 1, for the algorithms verifiable, random_matched and shuffled.
    #[arg(long, value_name = "ADVANTAGES")]
    advantages: Option<String>,
    /// Cross-entropies of the tuned reference, for the algorithm rho1.
    #[arg(long, value_name = "REFERENCE")]
    reference_ce: Option<String>,
    #[command(flatten)]
    compute: Compute,
}

/// What the plan found out.
#[derive(Debug, Clone)]
pub struct Work {
    /// The settings that were hashed.
    options: Value,
    compute: Compute,
    /// What the recipe may not have meant.
    doubt: Option<String>,
}

/// Adapters at the rate of every weight: nobody chose it, and they learn about ten times slower than they could.
fn slow_adapters(recipe: &Recipe, is_chosen: bool) -> Option<String> {
    (recipe.lora.r > 0 && !is_chosen).then(|| {
        format!(
            "lora.r is {} and optim.lr is not set: it is {}, a rate for training every weight; adapters are usually trained \
             at 1e-4",
            recipe.lora.r, recipe.optim.lr
        )
    })
}

impl TrainStage2 {
    /// Registers the scores that the algorithm needs; tells about those that it does not.
    fn scores(
        &self,
        cx: &mut PlanCx<'_>,
        algo: Algo,
        data: &Manifest,
    ) -> Result<Vec<String>, JobError> {
        let inputs = [
            (
                "advantages",
                Kind::Advantages,
                &self.advantages,
                algo.needs_advantages(),
                "value",
            ),
            (
                "reference-ce",
                Kind::ReferenceCe,
                &self.reference_ce,
                algo.needs_reference(),
                "reference",
            ),
        ];
        let mut notes = Vec::new();
        for (role, kind, given, needed, objective) in inputs {
            match (given, needed) {
                (Some(reference), true) => {
                    let scores = cx.input(role, kind, reference)?;
                    check_tokenizers((role, &scores), ("data", data))?;
                    check_made_for(role, &scores, data)?;
                }
                (None, true) => {
                    let error = format!("the algorithm {algo} needs --{role}");
                    let hint = format!("make them with train-stage1 --objective {objective}");
                    return Err(JobError::usage(error).hint(hint));
                }
                (Some(_), false) => {
                    notes.push(format!("--{role} is not used: the algorithm is {algo}"));
                }
                (None, false) => {}
            }
        }
        Ok(notes)
    }
}

/// Scores are bound to the rows of one data set.
fn check_made_for(role: &str, scores: &Manifest, data: &Manifest) -> Result<(), JobError> {
    let made_for = scores.attribute("data").unwrap_or("an unknown data set");
    if made_for == data.id.to_string() {
        return Ok(());
    }
    let error = format!("{role} were made for {made_for}, not for {}", data.id);
    Err(JobError::bad_input(error).hint("run train-stage1 on this data set"))
}

/// The recipe's horizon is the bundle's number of heads; it cannot be overridden.
fn check_base(
    recipe: &Recipe,
    base: &Manifest,
    data: &Manifest,
    store: &StoreHandle,
) -> Result<(), JobError> {
    let horizon = recipe.model.horizon;
    let checked = store.check_model(base, data, Some(horizon));
    checked.map_err(|error| match error.exit() {
        Exit::Usage => error
            .context(format!("model.horizon is {horizon}"))
            .hint("set it to the number of the model's heads, or choose another base"),
        _ => error,
    })
}

/// Settings that can change a byte of the checkpoint: those that the algorithm reads, and those of adapters where
/// there are any.
fn sections(recipe: &Recipe) -> Vec<&'static str> {
    let algo = recipe.experiment.algo;
    let mut sections = vec!["version", "seed", "experiment", "model", "optim"];
    if recipe.lora.r > 0 {
        sections.push("lora");
    }
    if algo != Algo::Baseline {
        sections.push("weights");
    }
    if algo == Algo::Rho1 {
        sections.push("rho1");
    }
    sections
}

impl Job for TrainStage2 {
    type Work = Work;

    const NAME: &'static str = "train-stage2";
    const ABOUT: &'static str = "Trains the policy with weighted multi-token prediction.";
    const EXAMPLES: &'static str = "\
train-stage2 --data micropy --base micro-mtp --recipe v001.yaml --store s3://bucket/wmtp --name v001-s42
train-stage2 --data micropy --base micro-mtp --advantages v002 --recipe v002.yaml --store s3://bucket/wmtp --name v002-s42
train-stage2 --data micropy --base micro-mtp --reference-ce v003 --recipe v003.yaml --store s3://bucket/wmtp --name v003-s42
train-stage2 --device cuda --ranks 4 --data mbpp --base big-mtp --recipe v001.yaml --store s3://bucket/wmtp --name v001-s42";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let recipe = cx.recipe()?.clone();
        let algo = recipe.experiment.algo;
        let data = cx.input("data", Kind::ProcessedData, &self.data)?;
        let base = cx.input("base", Kind::BaseModel, &self.base)?;
        check_tokenizers(("data", &data), ("base", &base))?;
        let doubt = slow_adapters(&recipe, cx.is_set("optim.lr"));
        let mut notes = self.scores(cx, algo, &data)?;
        notes.extend(doubt.clone());
        check_base(&recipe, &base, &data, cx.store()?)?;
        let batch = ("optim.batch_sequences", recipe.optim.batch_sequences);
        self.compute.check(batch, &recipe.optim)?;
        self.compute.check_dropout(recipe.lora.dropout)?;
        let options = recipe.section_options(&sections(&recipe));
        let work = Work {
            options: options.clone(),
            compute: self.compute,
            doubt,
        };
        let plan = Plan::new(work)
            .options(options)
            .options(self.compute.options())
            .output("checkpoint", Kind::Checkpoint);
        Ok(notes.into_iter().fold(plan, Plan::note))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        if let Some(doubt) = &work.doubt {
            run.warning(doubt);
        }
        let device = work.compute.open(run)?;
        let team = Team::start(run, work.compute)?;
        let loaded = Loaded::of(run, &device)?;
        let mut trainer = loaded.trainer(run, &team.ranks)?;
        let label = format!("policy ({})", run.recipe().experiment.algo);
        let how = Drive {
            device: &device,
            label: &label,
            is_scored: false,
        };
        let best_step = drive(&mut trainer, run, how)?;
        let written = checkpoint::Checkpoint {
            params: &loaded.params,
            store: &loaded.store,
            adapters: loaded.adapters.as_ref(),
            trainer: &trainer,
            train: &loaded.train,
            best_step,
        };
        Ok(vec![written.write(run, &work.options)?])
    }

    fn follow(&self, mut follower: Follower) -> Result<(), JobError> {
        let ranks = Ranks::linked(follower.take_links());
        let device = self.compute.open_for(ranks.rank())?;
        let loaded = Loaded::of(&follower, &device)?;
        follow(&mut loaded.trainer(&follower, &ranks)?)
    }
}

/// What every rank learns from and begins with.
struct Loaded {
    train: TokenFile,
    validation: TokenFile,
    params: Params,
    store: ParamStore,
    adapters: Option<Adapters>,
}

impl Loaded {
    fn of(inputs: &impl Inputs, device: &Device) -> Result<Self, JobError> {
        let recipe = inputs.recipe();
        let data = inputs.input("data")?;
        let (params, store) =
            load_adapted(&inputs.input("base")?, recipe, Adapted::Policy, device)?;
        Ok(Self {
            train: load_tokens(&data, Split::Train)?,
            validation: load_tokens(&data, Split::Validation)?,
            adapters: adapters(recipe, Adapted::Policy, &params, device)?,
            params,
            store,
        })
    }

    fn trainer(
        &self,
        inputs: &impl Inputs,
        ranks: &Arc<Ranks>,
    ) -> Result<PolicyTrainer<'_>, JobError> {
        let weights = Weights {
            params: &self.params,
            store: &self.store,
            adapters: self.adapters.as_ref(),
        };
        let (rows, held_out) = (Rows::correct(&self.train), Rows::correct(&self.validation));
        let scorer = scorer::build(inputs, &self.train)?;
        let settings = settings(inputs.recipe());
        Ok(PolicyTrainer::new(
            weights, rows, held_out, scorer, settings, ranks,
        )?)
    }
}

fn dropout(recipe: &Recipe) -> Option<Dropout> {
    let share = recipe.lora.dropout;
    (share > 0.0).then(|| Dropout {
        share,
        seed: stream(recipe.seed, "stage2/dropout"),
    })
}

fn settings(recipe: &Recipe) -> PolicySettings {
    let optim = &recipe.optim;
    PolicySettings {
        lr: optim.lr,
        optim: OptimSettings::of(optim),
        epochs: optim.epochs,
        batch_sequences: optim.batch_sequences,
        products: products(recipe.model.dtype),
        activation_bytes: optim.activation_bytes(),
        dropout: dropout(recipe),
        w_max: recipe.weights.w_max,
        order_seed: stream(recipe.seed, "stage2/order"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_settings_of_the_algorithm_are_hashed() {
        let mut recipe = Recipe::default();
        let options = |recipe: &Recipe, algo| {
            let mut recipe = recipe.clone();
            recipe.experiment.algo = algo;
            recipe.section_options(&sections(&recipe))
        };
        let (baseline, rho1) = (
            options(&recipe, Algo::Baseline),
            options(&recipe, Algo::Rho1),
        );
        recipe.rho1.ratio = 0.7;
        recipe.stage1.epochs = 9.0;
        recipe.optim.checkpoint_every_steps += 1;
        recipe.lora.alpha = 8.0;
        assert_eq!(options(&recipe, Algo::Baseline), baseline);
        assert_ne!(options(&recipe, Algo::Rho1), rho1);
        recipe.lora.r = 4;
        let adapted = options(&recipe, Algo::Baseline);
        assert_ne!(adapted, baseline);
        recipe.lora.dropout = 0.05;
        assert_ne!(options(&recipe, Algo::Baseline), adapted);
        recipe.lora.dropout = 0.0;
        recipe.lora.r = 0;
        recipe.optim.lr *= 2.0;
        assert_ne!(options(&recipe, Algo::Baseline), baseline);
    }

    #[test]
    fn a_rate_for_every_weight_that_nobody_chose_for_adapters_is_doubted() {
        let mut recipe = Recipe::default();
        assert_eq!(slow_adapters(&recipe, false), None);
        recipe.lora.r = 16;
        assert_eq!(slow_adapters(&recipe, true), None);
        let doubt = slow_adapters(&recipe, false).unwrap_or_default();
        assert!(
            doubt.contains("lora.r is 16") && doubt.contains("0.00001"),
            "{doubt}"
        );
    }
}
