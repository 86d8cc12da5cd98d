//! Stage 2: the policy, trained with weighted multi-token prediction.
//!
//! The recipe's `experiment.algo` chooses the scorer; all else (data order, optimiser, steps, validation)
//! is the same for every algorithm.

mod checkpoint;
mod scorer;

use serde_json::Value;
use wmtp_job_kit::{Job, JobError, Kind, Manifest, Output, Plan, PlanCx, Run};
use wmtp_model::{Params, Place};
use wmtp_recipe::seed::stream;
use wmtp_recipe::{Algo, Recipe};
use wmtp_records::Split;
use wmtp_training::session::{
    adapters, bundle, check_tokenizers, check_vocabulary, device_option, drive, dtype, load_bundle,
    load_tokens, open_device, products,
};
use wmtp_training::{Error, OptimSettings, PolicySettings, PolicyTrainer, Rows};

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
    /// Where to compute: cpu, cuda, or cuda:1 for the second device.
    #[arg(long, value_name = "DEVICE", env = "WMTP_DEVICE", default_value_t = Place::BUILT_FOR)]
    device: Place,
}

/// What the plan found out.
#[derive(Debug, Clone)]
pub struct Work {
    /// The settings that were hashed.
    options: Value,
    place: Place,
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
fn check_horizon(recipe: &Recipe, params: &Params) -> Result<(), JobError> {
    let (horizon, heads) = (recipe.model.horizon, params.n_future_tokens);
    if horizon == heads {
        return Ok(());
    }
    let error =
        format!("model.horizon is {horizon}, but the base model has n_future_tokens {heads}");
    Err(JobError::usage(error).hint(format!(
        "set model.horizon to {heads}, or choose another base"
    )))
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
train-stage2 --data micropy --base micro-mtp --reference-ce v003 --recipe v003.yaml --store s3://bucket/wmtp --name v003-s42";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let recipe = cx.recipe()?.clone();
        let algo = recipe.experiment.algo;
        let data = cx.input("data", Kind::ProcessedData, &self.data)?;
        let base = cx.input("base", Kind::BaseModel, &self.base)?;
        check_tokenizers(("data", &data), ("base", &base))?;
        let notes = self.scores(cx, algo, &data)?;
        let params =
            Params::load(&cx.fetch(&base.id)?.join(bundle::PARAMS)).map_err(Error::from)?;
        check_horizon(&recipe, &params)?;
        check_vocabulary(&params, &data)?;
        let options = recipe.section_options(&sections(&recipe));
        let work = Work {
            options: options.clone(),
            place: self.device,
        };
        let plan = Plan::new(work)
            .options(options)
            .options(device_option(self.device))
            .output("checkpoint", Kind::Checkpoint);
        Ok(notes.into_iter().fold(plan, Plan::note))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let device = open_device(work.place, run)?;
        let recipe = run.recipe();
        let data_dir = run.input("data")?;
        let train = load_tokens(&data_dir, Split::Train)?;
        let validation = load_tokens(&data_dir, Split::Validation)?;
        let dtype = dtype(recipe.model.dtype);
        let (params, store) = load_bundle(&run.input("base")?, dtype, &device)?;
        let adapters = adapters(recipe, &params, &device)?;
        let scorer = scorer::build(run, &train)?;
        let (rows, held_out) = (Rows::correct(&train), Rows::correct(&validation));
        let settings = settings(recipe);
        let mut trainer = match &adapters {
            Some(adapters) => {
                PolicyTrainer::adapted(&params, &store, adapters, rows, held_out, scorer, settings)
            }
            None => PolicyTrainer::new(&params, &store, rows, held_out, scorer, settings),
        }?;
        let label = format!("policy ({})", recipe.experiment.algo);
        drive(&mut trainer, run, &device, &label)?;
        let best_step = trainer.finish()?;
        let written = checkpoint::Checkpoint {
            params: &params,
            store: &store,
            adapters: adapters.as_ref(),
            trainer: &trainer,
            train: &train,
            best_step,
        };
        Ok(vec![written.write(run, &work.options)?])
    }
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
        assert_ne!(options(&recipe, Algo::Baseline), baseline);
        recipe.lora.r = 0;
        recipe.optim.lr *= 2.0;
        assert_ne!(options(&recipe, Algo::Baseline), baseline);
    }

    #[test]
    fn a_horizon_that_is_not_the_models_is_a_usage_error() {
        let mut recipe = Recipe::default();
        let params = Params::micro_mtp(64);
        assert!(check_horizon(&recipe, &params).is_ok());
        recipe.model.horizon = 2;
        let error = check_horizon(&recipe, &params).unwrap_err();
        assert_eq!(error.exit(), wmtp_job_kit::Exit::Usage);
    }
}
