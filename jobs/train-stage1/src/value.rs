//! The value model and the advantages that it gives.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use wmtp_artifacts::Digest;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Inputs, JobError, Kind, Output, Run, TOKENIZER_SHA256};
use wmtp_model::{Device, HeadKind, ParamStore, Params};
use wmtp_recipe::seed::stream;
use wmtp_recipe::{Recipe, ValueHeadKind, ValueObjective};
use wmtp_records::{Record, Split, data_files, jsonl};
use wmtp_training::session::{
    Adapted, Drive, adapters, drive, dtype, load_adapted, load_tokens, products, score,
};
use wmtp_training::{
    Error, Judged, Judgement, Lines, Objective, OptimSettings, Ranks, Rows, Side, Trainer,
    ValueParameters, ValueQuality, ValueSettings, ValueTrainer, advantages, balanced_rows,
};
use wmtp_weighting::{Whitening, td_errors};

use crate::save_merged;

/// The reward of a row that passes its tests.
const REWARD: f64 = 1.0;

/// `summary.json` of the value model.
#[derive(Serialize)]
struct Summary {
    objective: ValueObjective,
    head: ValueHeadKind,
    train_rows: usize,
    steps: u64,
    best_step: u64,
    /// The step after which training stopped early, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_early_at: Option<u64>,
    best_validation_loss: Option<f64>,
    gate: f64,
    gate_passed: Option<bool>,
    #[serde(flatten)]
    validation: ValueQuality,
}

/// `advantages.json` beside the advantages.
#[derive(Serialize)]
struct Description<'a> {
    mean: f64,
    std: f64,
    gamma: f64,
    lambda: f64,
    /// SHA-256 of the value model's trunk.
    value_model: &'a str,
}

/// One split: token ids and the problem of every row.
pub(crate) struct Labelled {
    tokens: TokenFile,
    problems: Vec<String>,
}

impl Labelled {
    fn load(dir: &Path, split: Split) -> Result<Self, JobError> {
        let path = dir.join(data_files::records(split));
        let records: Vec<Record> = jsonl::read(&path)?;
        let tokens = load_tokens(dir, split)?;
        if records.len() != tokens.len() {
            return Err(JobError::bad_input(format!(
                "the {split} split has {} records but token ids of {} rows",
                records.len(),
                tokens.len()
            )));
        }
        let problems = records
            .into_iter()
            .map(|record| record.problem_id)
            .collect();
        Ok(Self { tokens, problems })
    }
}

/// What every rank learns from and begins with.
pub(crate) struct Loaded {
    train: Labelled,
    validation: Labelled,
    params: Params,
    store: ValueParameters,
}

impl Loaded {
    pub(crate) fn of(inputs: &impl Inputs, device: &Device) -> Result<Self, JobError> {
        let recipe = inputs.recipe();
        let data = inputs.input("data")?;
        let dtype = dtype(recipe.model.dtype);
        let adapted = Adapted::ValueTrunk;
        let (params, base) = load_adapted(&inputs.input("base")?, recipe, adapted, device)?;
        let seed = stream(recipe.seed, "stage1/value-head");
        let bias = objective(recipe).bias();
        let trunk = ParamStore::value_trunk_from(&params, &base).map_err(Error::from)?;
        let head = ParamStore::init_value_head(head(recipe), &params, seed, bias, dtype, device)
            .map_err(Error::from)?;
        Ok(Self {
            train: Labelled::load(&data, Split::Train)?,
            validation: Labelled::load(&data, Split::Validation)?,
            store: ValueParameters {
                trunk,
                adapters: adapters(recipe, adapted, &params, device)?,
                head,
            },
            params,
        })
    }

    fn train_rows(&self, recipe: &Recipe) -> Vec<usize> {
        let Labelled { tokens, problems } = &self.train;
        balanced_rows(tokens, problems, stream(recipe.seed, "stage1/balance"))
    }

    pub(crate) fn trainer(
        &self,
        recipe: &Recipe,
        ranks: &Arc<Ranks>,
    ) -> Result<ValueTrainer<'_>, JobError> {
        let rows = Rows {
            file: &self.train.tokens,
            rows: self.train_rows(recipe),
        };
        let held_out = Rows {
            file: &self.validation.tokens,
            rows: self.validation.tokens.labelled_rows(),
        };
        let settings = settings(recipe);
        Ok(ValueTrainer::new(
            &self.params,
            &self.store,
            rows,
            held_out,
            settings,
            ranks,
        )?)
    }
}

pub(crate) fn run(run: &Run, device: &Device, ranks: &Arc<Ranks>) -> Result<Vec<Output>, JobError> {
    let recipe = run.recipe();
    let loaded = Loaded::of(run, device)?;
    let mut trainer = loaded.trainer(recipe, ranks)?;
    let how = Drive {
        device,
        label: "value model",
        is_scored: true,
    };
    let best_step = drive(&mut trainer, run, how)?;
    let judged = judge(run, &mut trainer, &loaded.validation)?;
    let quality = ValueQuality::of(&judged);
    tell_squared_error(run, trainer.step(), &judged);
    let gate_passed = gate(run, recipe, &quality)?;

    let summary = Summary {
        objective: recipe.stage1.objective,
        head: recipe.stage1.head,
        train_rows: loaded.train_rows(recipe).len(),
        steps: trainer.total_steps(),
        best_step,
        stopped_early_at: trainer.stopped_early().map(|stop| stop.step),
        best_validation_loss: trainer.best_loss(),
        gate: recipe.stage1.gate,
        gate_passed,
        validation: quality,
    };
    let (params, store) = (&loaded.params, &loaded.store);
    let model = write_model(run, params, store, trainer.metrics(), &summary)?;
    let weights = Digest::of_file(&model.dir.join("model.safetensors"))?.to_string();
    let advantages = write_advantages(run, &mut trainer, &loaded.train.tokens, &weights)?;
    Ok(vec![model, advantages])
}

fn objective(recipe: &Recipe) -> Objective {
    match recipe.stage1.objective {
        ValueObjective::MseMc => Objective::MseMc,
        ValueObjective::Bce => Objective::Bce,
    }
}

fn head(recipe: &Recipe) -> HeadKind {
    match recipe.stage1.head {
        ValueHeadKind::Linear => HeadKind::Linear,
        ValueHeadKind::Mlp => HeadKind::Mlp,
    }
}

fn settings(recipe: &Recipe) -> ValueSettings {
    let (stage1, optim) = (&recipe.stage1, &recipe.optim);
    ValueSettings {
        objective: objective(recipe),
        head: head(recipe),
        lr_trunk: stage1.lr_trunk,
        lr_head: stage1.lr_head,
        optim: OptimSettings::of(optim),
        epochs: stage1.epochs,
        batch_sequences: stage1.batch_sequences,
        products: products(recipe.model.dtype),
        activation_bytes: optim.activation_bytes(),
        order_seed: stream(recipe.seed, "stage1/order"),
    }
}

fn judge(
    run: &Run,
    trainer: &mut ValueTrainer<'_>,
    split: &Labelled,
) -> Result<Vec<Judged>, JobError> {
    let rows = split.tokens.labelled_rows();
    let values = score(trainer, run, Side::Validation, &rows)?;
    let judged = rows.iter().zip(values);
    Ok(judged
        .map(|(&row, values)| Judged {
            problem: split.problems[row].clone(),
            correct: split.tokens.row(row).is_correct == Some(true),
            values,
        })
        .collect())
}

/// The held-out mean squared distance of values to the reward, as a live metric: with another objective than that the loss
/// does not tell it.
fn tell_squared_error(run: &Run, step: u64, judged: &[Judged]) {
    let distances = judged.iter().flat_map(|solution| {
        let reward = if solution.correct { REWARD } else { 0.0 };
        solution.values.iter().map(move |value| value - reward)
    });
    let squares: Vec<f64> = distances.map(|distance| distance * distance).collect();
    if !squares.is_empty() {
        let mse = squares.iter().sum::<f64>() / squares.len() as f64;
        run.metrics(step, &[("value_mse", mse)]);
    }
}

/// Whether the value model is good enough; `None` where the data cannot say.
fn gate(run: &Run, recipe: &Recipe, quality: &ValueQuality) -> Result<Option<bool>, JobError> {
    let gate = recipe.stage1.gate;
    let judgement = quality.judgement();
    let passed = judgement.map(|judged| judged.accuracy >= gate);
    let found = match judgement {
        Some(Judgement {
            accuracy,
            pairs,
            same_length,
        }) => {
            let of = if same_length {
                "of similar length"
            } else {
                "of any length"
            };
            format!(
                "held-out pairwise accuracy {accuracy:.3} over {pairs} pairs {of} (gate {gate})"
            )
        }
        None => format!("no held-out problem has both labels: the gate {gate} cannot be checked"),
    };
    match passed {
        Some(true) => run.log(found),
        _ if recipe.stage1.enforce_gate => {
            return Err(JobError::refused(found).hint(
                "train longer, or set stage1.enforce_gate to false: that trains the same value model again, from its first \
                 step, and keeps it",
            ));
        }
        _ => run.warning(found),
    }
    Ok(passed)
}

fn write_model(
    run: &Run,
    params: &Params,
    store: &ValueParameters,
    metrics: &Lines,
    summary: &Summary,
) -> Result<Output, JobError> {
    let dir = run.output_dir("value-model")?;
    save_merged(
        &store.trunk,
        store.adapters.as_ref(),
        &dir.join("model.safetensors"),
    )?;
    store
        .head
        .save(&dir.join("value_head.safetensors"))
        .map_err(Error::from)?;
    params.save(&dir.join("params.json")).map_err(Error::from)?;
    metrics.write(&dir.join("metrics.jsonl"))?;
    jsonl::write_json(&dir.join("summary.json"), summary)?;
    let figure =
        |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |x| format!("{x:.6}"));
    Ok(Output::new("value-model", Kind::ValueModel, dir)
        .attribute(TOKENIZER_SHA256, run.attribute("data", TOKENIZER_SHA256)?)
        .attribute("data", &run.manifest("data")?.id)
        .attribute(
            "pairwise_accuracy",
            figure(summary.validation.pairwise_accuracy),
        )
        .attribute(
            "explained_variance",
            figure(summary.validation.explained_variance),
        ))
}

/// The TD errors that the advantages are made of, as live metrics: mean, deviation and ends over all their tokens.
fn tell_td_errors(run: &Run, step: u64, values: &[Vec<f64>], gamma: f64) {
    let of_row = |values: &Vec<f64>| td_errors(values, REWARD, gamma);
    let errors: Vec<f64> = values.iter().flat_map(of_row).collect();
    if errors.is_empty() {
        return;
    }
    let Whitening { mean, std } = Whitening::of(&errors);
    let min = errors.iter().copied().fold(f64::INFINITY, f64::min);
    let max = errors.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let figures = [
        ("td_mean", mean),
        ("td_std", std),
        ("td_min", min),
        ("td_max", max),
    ];
    run.metrics(step, &figures);
}

fn write_advantages(
    run: &Run,
    trainer: &mut ValueTrainer<'_>,
    train: &TokenFile,
    value_model: &str,
) -> Result<Output, JobError> {
    let settings = &run.recipe().score;
    let rows = train.correct_rows();
    run.log(format!("advantages of {} correct rows", rows.len()));
    let values = score(trainer, run, Side::Train, &rows)?;
    let scores = advantages(&rows, &values, REWARD, settings.gamma, settings.lambda_gae);
    tell_td_errors(run, trainer.step(), &values, settings.gamma);
    let flat: Vec<f64> = scores
        .values()
        .iter()
        .map(|&value| f64::from(value))
        .collect();
    let Whitening { mean, std } = Whitening::of(&flat);

    let dir = run.output_dir("advantages")?;
    scores.save(&dir.join("advantages.safetensors"), "advantage")?;
    let description = Description {
        mean,
        std,
        gamma: settings.gamma,
        lambda: settings.lambda_gae,
        value_model,
    };
    jsonl::write_json(&dir.join("advantages.json"), &description)?;
    Ok(Output::new("advantages", Kind::Advantages, dir)
        .attribute(TOKENIZER_SHA256, run.attribute("data", TOKENIZER_SHA256)?)
        .attribute("data", &run.manifest("data")?.id)
        .attribute("rows", scores.rows())
        .attribute("tokens", flat.len()))
}
