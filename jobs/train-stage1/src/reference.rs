//! The tuned reference and its cross-entropies.

use serde::Serialize;
use wmtp_job_kit::{JobError, Kind, Output, Run};
use wmtp_model::{Device, Horizon, MtpModel, Params};
use wmtp_recipe::Recipe;
use wmtp_recipe::seed::stream;
use wmtp_records::{Split, jsonl};
use wmtp_training::inference::{head_cross_entropies, mean};
use wmtp_training::session::{
    TOKENIZER_SHA256, check_vocabulary, drive, dtype, load_bundle, load_tokens, products,
};
use wmtp_training::{
    Error, OptimSettings, PolicySettings, PolicyTrainer, Rows, StepScorer, TokenScores, Trainer,
};
use wmtp_weighting::WeightSettings;

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

pub(crate) fn run(run: &Run, device: &Device) -> Result<Vec<Output>, JobError> {
    let recipe = run.recipe();
    let data_dir = run.input("data")?;
    let train = load_tokens(&data_dir, Split::Train)?;
    let validation = load_tokens(&data_dir, Split::Validation)?;
    let dtype = dtype(recipe.model.dtype);
    let (params, store) = load_bundle(&run.input("base")?, dtype, device)?;
    check_vocabulary(&params, run.manifest("data")?)?;
    let next_token = only_head(&params)?;

    let rows = Rows::correct(&train);
    let train_rows = rows.rows.clone();
    let scorer = Box::new(StepScorer::baseline(WeightSettings::default()));
    let held_out = Rows::correct(&validation);
    let mut trainer =
        PolicyTrainer::new(&params, &store, rows, held_out, scorer, settings(recipe))?;
    drive(&mut trainer, run, device, "reference")?;
    let best_step = trainer.finish()?;

    run.log(format!(
        "cross-entropies of {} correct rows",
        train_rows.len()
    ));
    let model = MtpModel::frozen(&params, &store).map_err(Error::from)?;
    let size = recipe.optim.micro_batch_sequences;
    let losses = head_cross_entropies(&model, &train, &train_rows, size, next_token)?;
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
    store
        .save(&dir.join("model.safetensors"))
        .map_err(Error::from)?;
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

/// The head of a next-token model.
fn only_head(params: &Params) -> Result<Horizon, JobError> {
    let mut horizons = params.horizons();
    match (horizons.next(), horizons.next()) {
        (Some(first), None) => Ok(first),
        _ => Err(JobError::usage(format!(
            "the reference must predict the next token only, but this model has n_future_tokens {}",
            params.n_future_tokens
        ))
        .hint("give a plain next-token model with --base, such as micro-ref")),
    }
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
        w_max: WeightSettings::default().w_max,
        order_seed: stream(recipe.seed, "stage1/order"),
    }
}
