//! What the store knows of a version's training: its checkpoints, token weights, attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wmtp_artifacts::{ArtifactId, RunView};
use wmtp_job_kit::{Exit, JobError, Manifest, StoreHandle};
use wmtp_recipe::Recipe;
use wmtp_stats::leaderboard::{LeaderboardRow, RunSource};

/// What is known of a version's training; parts may be missing, as where the checkpoint lies in another store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    /// Statistics of the token weights, means over seeds and over the second half of the steps.
    pub weights: Option<WeightFacts>,
    /// Share of held-out pairs that the value model behind the weights ranks right.
    pub value_accuracy: Option<f64>,
    /// Optimiser steps made.
    pub last_step: Option<u64>,
    /// The step whose weights were kept, mean over seeds.
    pub best_step: Option<f64>,
    /// Attempts at training, one list per seed.
    pub attempts: Vec<Attempt>,
    /// The first seed's checkpoint.
    pub checkpoint: Option<CheckpointFacts>,
    /// The recipe that it was trained with.
    #[serde(skip)]
    pub recipe: Option<Recipe>,
    /// Wall seconds of the attempts that finished, all seeds, where the store knows one.
    #[serde(skip)]
    pub train_secs: Option<u64>,
    /// Where it computed.
    #[serde(skip)]
    pub device: Option<String>,
}

/// What a checkpoint says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFacts {
    /// Its files: path, bytes and SHA-256.
    pub files: Vec<(String, u64, String)>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
}

/// Statistics of token weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightFacts {
    /// Population standard deviation; the mean is 1.
    pub std: f64,
    /// Normalised entropy.
    pub entropy: f64,
    /// Share at the lower bound.
    pub clip_low: f64,
    /// Share at the upper bound.
    pub clip_high: f64,
}

/// One attempt at a training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Training seed.
    pub seed: Option<u64>,
    /// Its number, from 1.
    pub number: u64,
    /// How it ended.
    pub state: String,
    /// Its exit code, where it said one.
    pub exit_code: Option<u64>,
    /// What it said.
    pub message: String,
    /// The saved step that it went on from.
    pub resumed_from: Option<u64>,
    /// Fallbacks that it took.
    pub fallbacks: usize,
}

impl Attempt {
    /// An attempt of which nothing is known but that it was begun: killed, or lost with its machine.
    fn silent(seed: Option<u64>, number: u64) -> Self {
        Self {
            seed,
            number,
            state: "ended without a word".to_owned(),
            exit_code: None,
            message: String::new(),
            resumed_from: None,
            fallbacks: 0,
        }
    }
}

/// One line of `weights.jsonl`.
#[derive(Deserialize)]
struct WeightLine {
    step: u64,
    std: f64,
    entropy: f64,
    clip_low: f64,
    clip_high: f64,
}

impl TrainingFacts {
    /// Reads the small files of every seed's checkpoint, and the histories of their runs.
    ///
    /// # Errors
    /// A store that cannot be reached; damage. What is merely not there is left out.
    pub(crate) fn load(row: &LeaderboardRow, store: &StoreHandle) -> Result<Self, JobError> {
        let mut facts = Self::default();
        let mut weights = Vec::new();
        let mut best_steps = Vec::new();
        for (run, id) in checkpoints(row)? {
            let Some(manifest) = present(store.manifest(&id))? else {
                continue;
            };
            weights.extend(weight_facts(&manifest, store)?);
            let number = |name| manifest.attribute(name)?.parse::<u64>().ok();
            best_steps.extend(number("best_step"));
            let summary = json_file(&manifest, "summary.json", store)?;
            facts.last_step = summary["last_step"].as_u64().or(facts.last_step);
            if let Some(history) = store.history(&manifest.provenance.run_id)? {
                facts.add_history(run.seed, &history);
            }
            if facts.checkpoint.is_none() {
                facts.value_accuracy = value_accuracy(&manifest, store)?;
                facts.recipe = Recipe::from_stored(&manifest.provenance.recipe).ok();
                facts.checkpoint = Some(CheckpointFacts::of(&manifest));
            }
        }
        facts.weights = mean_weights(&weights);
        let count = best_steps.len() as f64;
        facts.best_step = (count > 0.0).then(|| best_steps.iter().sum::<u64>() as f64 / count);
        Ok(facts)
    }

    fn add_history(&mut self, seed: Option<u64>, history: &RunView) {
        self.attempts.extend(attempts(seed, history));
        let result = history.result.as_ref();
        if let Some(secs) = result.and_then(|result| result.summary["elapsed_secs"].as_u64()) {
            *self.train_secs.get_or_insert(0) += secs;
        }
        let mut devices = history
            .events
            .iter()
            .filter(|event| event["type"] == "device");
        if let Some(device) = devices.next_back() {
            self.device = device["data"]["device"].as_str().map(str::to_owned);
        }
    }

    /// Whether some training was begun more than once, or fell back.
    pub fn was_repeated(&self) -> bool {
        self.attempts
            .iter()
            .any(|attempt| attempt.number > 1 || attempt.fallbacks > 0)
    }
}

impl CheckpointFacts {
    fn of(manifest: &Manifest) -> Self {
        let files = manifest.content.files.iter();
        Self {
            files: files
                .map(|file| (file.path.clone(), file.size, file.sha256.to_string()))
                .collect(),
            attributes: manifest.content.attributes.clone(),
        }
    }
}

/// The checkpoints of a version, one a seed; a model that was not trained here has none.
pub(crate) fn checkpoints(row: &LeaderboardRow) -> Result<Vec<(&RunSource, ArtifactId)>, JobError> {
    let trained = row.runs.iter().filter(|_| row.is_trained());
    trained
        .filter_map(|run| Some((run, run.checkpoint.as_ref()?)))
        .map(|(run, id)| Ok((run, id.parse()?)))
        .collect()
}

/// What is not there is no error.
pub(crate) fn present<T>(found: Result<T, JobError>) -> Result<Option<T>, JobError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.exit() == Exit::BadInput => Ok(None),
        Err(error) => Err(error),
    }
}

fn json_file(manifest: &Manifest, path: &str, store: &StoreHandle) -> Result<Value, JobError> {
    match store.read(manifest, path)? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| JobError::bad_input(format!("{path} of {}: {error}", manifest.id))),
        None => Ok(Value::Null),
    }
}

/// Means over the second half of the steps: the first ones warm up.
fn weight_facts(manifest: &Manifest, store: &StoreHandle) -> Result<Option<WeightFacts>, JobError> {
    let bytes = store.read(manifest, "weights.jsonl")?.unwrap_or_default();
    let lines: Vec<WeightLine> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<Result<_, _>>()
        .map_err(|error| {
            JobError::bad_input(format!("weights.jsonl of {}: {error}", manifest.id))
        })?;
    let last = lines.last().map_or(0, |line| line.step);
    let late: Vec<WeightFacts> = lines
        .iter()
        .filter(|line| line.step * 2 > last)
        .map(|line| WeightFacts {
            std: line.std,
            entropy: line.entropy,
            clip_low: line.clip_low,
            clip_high: line.clip_high,
        })
        .collect();
    Ok(mean_weights(&late))
}

fn mean_weights(all: &[WeightFacts]) -> Option<WeightFacts> {
    let mean =
        |value: fn(&WeightFacts) -> f64| all.iter().map(value).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| WeightFacts {
        std: mean(|facts| facts.std),
        entropy: mean(|facts| facts.entropy),
        clip_low: mean(|facts| facts.clip_low),
        clip_high: mean(|facts| facts.clip_high),
    })
}

/// From the checkpoint to its advantages, to the run that made them, to the value model of that run.
fn value_accuracy(manifest: &Manifest, store: &StoreHandle) -> Result<Option<f64>, JobError> {
    let mut inputs = manifest.provenance.inputs.iter();
    let Some(input) = inputs.find(|input| input.role == "advantages") else {
        return Ok(None);
    };
    let Some(advantages) = present(store.manifest(&input.id))? else {
        return Ok(None);
    };
    let history = store.history(&advantages.provenance.run_id)?;
    let Some(model) = history
        .and_then(|history| history.result)
        .and_then(|result| result.outputs.get("value-model").cloned())
    else {
        return Ok(None);
    };
    let model = present(store.manifest(&model))?;
    Ok(model.and_then(|model| model.attribute("pairwise_accuracy")?.parse().ok()))
}

/// The attempts of a run, from its events.
pub(crate) fn attempts(seed: Option<u64>, history: &RunView) -> Vec<Attempt> {
    let mut attempts: BTreeMap<u64, Attempt> = BTreeMap::new();
    for event in &history.events {
        let number = event["attempt"].as_u64().unwrap_or(0);
        let attempt = attempts
            .entry(number)
            .or_insert_with(|| Attempt::silent(seed, number));
        let data = &event["data"];
        match event["type"].as_str().unwrap_or_default() {
            kind @ ("completed" | "failed" | "preempted") => {
                kind.clone_into(&mut attempt.state);
                attempt.exit_code = data["exit_code"].as_u64();
                let message = data["message"].as_str().unwrap_or_default();
                message.clone_into(&mut attempt.message);
            }
            "resumed" => attempt.resumed_from = data["step"].as_u64(),
            "fallback" => attempt.fallbacks += 1,
            _ => {}
        }
    }
    // Claims are counted even where a killed attempt sent no event.
    for number in 1..=u64::from(history.attempt) {
        attempts
            .entry(number)
            .or_insert_with(|| Attempt::silent(seed, number));
    }
    attempts.into_values().collect()
}
