//! The checkpoint artifact: best weights, and what the site shows of the run.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{JobError, Kind, Output, Run, TOKENIZER_SHA256};
use wmtp_model::{Adapters, ParamStore, Params};
use wmtp_recipe::{Algo, Version};
use wmtp_records::{Record, Split, data_files, jsonl};
use wmtp_tokens::Tokenizer;
use wmtp_training::session::write_recipe;
use wmtp_training::{Error, PolicyTrainer, Trainer};

/// A finished run on its way into the store; the store, or the adapters upon it, holds the best weights.
pub(crate) struct Checkpoint<'a> {
    pub(crate) params: &'a Params,
    pub(crate) store: &'a ParamStore,
    pub(crate) adapters: Option<&'a Adapters>,
    pub(crate) trainer: &'a PolicyTrainer<'a>,
    pub(crate) train: &'a TokenFile,
    pub(crate) best_step: u64,
}

/// `summary.json`.
#[derive(Serialize)]
struct Summary<'a> {
    version: &'a Version,
    algo: Algo,
    seed: u64,
    train_rows: usize,
    train_targets: usize,
    n_params: usize,
    /// Parameters of the adapters, where those were trained in place of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter_params: Option<usize>,
    steps: u64,
    /// The step whose weights are in `model.safetensors`: the smallest validation loss of head 1.
    best_step: u64,
    last_step: u64,
    /// The step after which training stopped early, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_early_at: Option<u64>,
    best_validation_loss: Option<f64>,
}

/// One line of `token_weights.jsonl`.
#[derive(Serialize)]
struct ShownRow<'a> {
    task_id: &'a str,
    problem_id: &'a str,
    tokens: Vec<String>,
    weights: &'a [f64],
}

impl Checkpoint<'_> {
    /// Writes the files.
    pub(crate) fn write(&self, run: &Run, options: &Value) -> Result<Output, JobError> {
        let recipe = run.recipe();
        let dir = run.output_dir("checkpoint")?;
        let data = run.input("data")?;
        self.write_weights(&dir).map_err(Error::from)?;
        self.params
            .save(&dir.join("params.json"))
            .map_err(Error::from)?;
        std::fs::copy(data.join(data_files::TOKENIZER), dir.join("tokenizer.json"))?;
        write_recipe(&dir.join("recipe.json"), recipe, options)?;
        self.trainer.metrics().write(&dir.join("metrics.jsonl"))?;
        self.trainer
            .weight_lines()
            .write(&dir.join("weights.jsonl"))?;
        jsonl::write_json(&dir.join("weight_histogram.json"), self.trainer.histogram())?;
        self.write_token_weights(&data, &dir)?;
        let rows = self.train.correct_rows();
        let summary = Summary {
            version: &recipe.version,
            algo: recipe.experiment.algo,
            seed: recipe.seed,
            train_targets: rows
                .iter()
                .map(|&row| self.train.row(row).response_len())
                .sum(),
            train_rows: rows.len(),
            n_params: self.store.num_elements(),
            adapter_params: self.adapters.map(|one| one.store().num_elements()),
            steps: self.trainer.total_steps(),
            best_step: self.best_step,
            last_step: self.trainer.step(),
            stopped_early_at: self.trainer.stopped_early().map(|stop| stop.step),
            best_validation_loss: self.trainer.best_loss(),
        };
        jsonl::write_json(&dir.join("summary.json"), &summary)?;
        let output = Output::new("checkpoint", Kind::Checkpoint, dir)
            .attribute("version", &recipe.version.id)
            .attribute("algo", recipe.experiment.algo)
            .attribute("seed", recipe.seed)
            .attribute("best_step", self.best_step)
            .attribute("steps", summary.steps)
            .attribute("n_params", summary.n_params)
            .attribute("n_future_tokens", self.params.n_future_tokens)
            .attribute("data", &run.manifest("data")?.id)
            .attribute(TOKENIZER_SHA256, run.attribute("data", TOKENIZER_SHA256)?);
        Ok(match summary.stopped_early_at {
            Some(step) => output.attribute("stopped_early_at", step),
            None => output,
        })
    }

    /// `model.safetensors` for whoever evaluates; adapters are merged into it and lie beside it too.
    fn write_weights(&self, dir: &Path) -> wmtp_model::Result<()> {
        let path = dir.join("model.safetensors");
        match self.adapters {
            None => self.store.save(&path),
            Some(adapters) => {
                adapters.save(&dir.join("adapter.safetensors"))?;
                adapters.merge(self.store)?.save(&path)
            }
        }
    }

    /// A few rows with the weight of every response token, for readers of the site.
    fn write_token_weights(&self, data: &Path, dir: &Path) -> Result<(), JobError> {
        let tokenizer =
            Tokenizer::load(&data.join(data_files::TOKENIZER)).map_err(JobError::bad_input)?;
        let records: Vec<Record> = jsonl::read(&data.join(data_files::records(Split::Train)))?;
        let mut shown = Vec::new();
        for (row, weights) in self.trainer.shown_weights() {
            let ids = self.train.row(row);
            let record = records.get(row).ok_or_else(|| {
                JobError::bad_input(format!("row {row} of the training split has no record"))
            })?;
            let response = &ids.ids[ids.prompt_len..];
            shown.push(ShownRow {
                task_id: &record.task_id,
                problem_id: &record.problem_id,
                tokens: response
                    .iter()
                    .map(|&id| tokenizer.token_text(id))
                    .collect(),
                weights,
            });
        }
        Ok(jsonl::write(&dir.join("token_weights.jsonl"), &shown)?)
    }
}
