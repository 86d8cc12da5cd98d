//! The tuned reference and its cross-entropies.

use std::sync::Arc;

use serde::Serialize;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Inputs, JobError, Kind, Output, Run, TOKENIZER_SHA256};
use wmtp_model::{Adapters, Device, ParamStore, Params};
use wmtp_recipe::Recipe;
use wmtp_recipe::seed::stream;
use wmtp_records::{Split, jsonl};
use wmtp_training::inference::mean;
use wmtp_training::session::{
    Adapted, Drive, adapters, drive, load_adapted, load_tokens, products, score,
};
use wmtp_training::{
    Error, OptimSettings, PolicySettings, PolicyTrainer, Ranks, Rows, Side, StepScorer,
    TokenScores, Trainer, Weights,
};
use wmtp_weighting::WeightSettings;

use crate::save_merged;

/// `summary.json` beside the cross-entropies.
#[derive(Serialize)]
struct Summary {
    train_rows: usize,
    steps: u64,
    best_step: u64,
    /// The step after which training stopped early, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_early_at: Option<u64>,
    best_validation_loss: Option<f64>,
    mean_train_ce: Option<f64>,
}

/// What every rank learns from and begins with.
pub(crate) struct Loaded {
    train: TokenFile,
    validation: TokenFile,
    params: Params,
    store: ParamStore,
    adapters: Option<Adapters>,
}

impl Loaded {
    pub(crate) fn of(inputs: &impl Inputs, device: &Device) -> Result<Self, JobError> {
        let (recipe, data) = (inputs.recipe(), inputs.input("data")?);
        let adapted = Adapted::Reference;
        let (params, store) = load_adapted(&inputs.input("base")?, recipe, adapted, device)?;
        Ok(Self {
            train: load_tokens(&data, Split::Train)?,
            validation: load_tokens(&data, Split::Validation)?,
            adapters: adapters(recipe, adapted, &params, device)?,
            params,
            store,
        })
    }

    pub(crate) fn trainer(
        &self,
        recipe: &Recipe,
        ranks: &Arc<Ranks>,
    ) -> Result<PolicyTrainer<'_>, JobError> {
        let weights = Weights {
            params: &self.params,
            store: &self.store,
            adapters: self.adapters.as_ref(),
        };
        let (rows, held_out) = (Rows::correct(&self.train), Rows::correct(&self.validation));
        let scorer = Box::new(StepScorer::baseline(WeightSettings::default()));
        let settings = settings(recipe);
        Ok(PolicyTrainer::new(
            weights, rows, held_out, scorer, settings, ranks,
        )?)
    }
}

pub(crate) fn run(run: &Run, device: &Device, ranks: &Arc<Ranks>) -> Result<Vec<Output>, JobError> {
    let recipe = run.recipe();
    let loaded = Loaded::of(run, device)?;
    let Loaded {
        params,
        store,
        adapters,
        ..
    } = &loaded;
    let mut trainer = loaded.trainer(recipe, ranks)?;
    let how = Drive {
        device,
        label: "reference",
        is_scored: true,
    };
    let best_step = drive(&mut trainer, run, how)?;

    let train_rows = loaded.train.correct_rows();
    run.log(format!(
        "cross-entropies of {} correct rows",
        train_rows.len()
    ));
    let losses = score(&mut trainer, run, Side::Train, &train_rows)?;
    let summary = Summary {
        train_rows: train_rows.len(),
        steps: trainer.total_steps(),
        best_step,
        stopped_early_at: trainer.stopped_early().map(|stop| stop.step),
        best_validation_loss: trainer.best_loss(),
        mean_train_ce: mean(&losses),
    };
    let narrow = |losses: Vec<f64>| losses.into_iter().map(|loss| loss as f32).collect();
    let scores = TokenScores::new(train_rows.into_iter().zip(losses.into_iter().map(narrow)));

    let dir = run.output_dir("reference-ce")?;
    scores.save(&dir.join("reference_ce.safetensors"), "ce")?;
    save_merged(store, adapters.as_ref(), &dir.join("model.safetensors"))?;
    params.save(&dir.join("params.json")).map_err(Error::from)?;
    trainer.metrics().write(&dir.join("metrics.jsonl"))?;
    jsonl::write_json(&dir.join("summary.json"), &summary)?;
    let output = Output::new("reference-ce", Kind::ReferenceCe, dir)
        .attribute(TOKENIZER_SHA256, run.attribute("data", TOKENIZER_SHA256)?)
        .attribute("data", &run.manifest("data")?.id)
        .attribute("rows", scores.rows())
        .attribute("tokens", scores.values().len());
    Ok(vec![output])
}

fn settings(recipe: &Recipe) -> PolicySettings {
    let (reference, optim) = (&recipe.reference, &recipe.optim);
    PolicySettings {
        lr: reference.lr,
        optim: OptimSettings::of(optim),
        epochs: reference.epochs,
        batch_sequences: reference.batch_sequences,
        products: products(recipe.model.dtype),
        activation_bytes: optim.activation_bytes(),
        dropout: None,
        w_max: WeightSettings::default().w_max,
        order_seed: stream(recipe.seed, "stage1/order"),
    }
}
