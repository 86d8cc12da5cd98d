//! The recipe's algorithm as a scorer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Inputs, JobError};
use wmtp_recipe::seed::stream;
use wmtp_recipe::{Algo, ExcessScore, Normalise, Recipe, Rho1Weighting as RecipeWeighting, Whiten};
use wmtp_records::{Record, Split, data_files, jsonl};
use wmtp_training::{
    Rho1Scorer, Rho1Settings, Rho1Weighting, Scope, Scorer, StepScorer, TokenScores,
};
use wmtp_weighting::rho1::{ExcessMode, Selection};
use wmtp_weighting::{WeightSettings, Whitening};

/// What stage 1 says about its advantages.
#[derive(Deserialize)]
struct Description {
    mean: f64,
    std: f64,
}

/// Builds the scorer that the recipe asks for.
pub(crate) fn build(inputs: &impl Inputs, train: &TokenFile) -> Result<Box<dyn Scorer>, JobError> {
    let recipe = inputs.recipe();
    let settings = weight_settings(recipe);
    let scope = scope(recipe);
    Ok(match recipe.experiment.algo {
        Algo::Baseline => Box::new(StepScorer::baseline(settings)),
        Algo::Verifiable => {
            let (advantages, whitening) = advantages(inputs)?;
            Box::new(StepScorer::verifiable(advantages, whitening, settings).within(scope))
        }
        Algo::RandomMatched => {
            let (advantages, whitening) = advantages(inputs)?;
            let seed = stream(recipe.seed, "random_matched");
            let scorer = StepScorer::random_matched(advantages, whitening, settings, seed);
            Box::new(scorer.within(scope))
        }
        Algo::Shuffled => {
            let (advantages, whitening) = advantages(inputs)?;
            let seeds = row_seeds(recipe.seed, &inputs.input("data")?, train)?;
            let scorer = StepScorer::shuffled(advantages, whitening, settings, seeds);
            Box::new(scorer.within(scope))
        }
        Algo::Rho1 => {
            let path = inputs
                .input("reference-ce")?
                .join("reference_ce.safetensors");
            let reference = Arc::new(TokenScores::load(&path, "ce")?);
            let scorer = Rho1Scorer::new(reference, rho1_settings(recipe), settings);
            Box::new(scorer.within(scope))
        }
    })
}

fn advantages(inputs: &impl Inputs) -> Result<(Arc<TokenScores>, Whitening), JobError> {
    let dir = inputs.input("advantages")?;
    let scores = TokenScores::load(&dir.join("advantages.safetensors"), "advantage")?;
    let Description { mean, std } = jsonl::read_json(&dir.join("advantages.json"))?;
    Ok((Arc::new(scores), Whitening { mean, std }))
}

/// A seed per correct row, from the run's seed and the row's own name.
fn row_seeds(seed: u64, data: &Path, train: &TokenFile) -> Result<BTreeMap<usize, u64>, JobError> {
    let records: Vec<Record> = jsonl::read(&data.join(data_files::records(Split::Train)))?;
    let seed_of = |row: usize| {
        let record = records.get(row).ok_or_else(|| {
            JobError::bad_input(format!(
                "row {row} of the training split has token ids but no record"
            ))
        })?;
        Ok((row, stream(seed, &format!("shuffled/{}", record.task_id))))
    };
    train.correct_rows().into_iter().map(seed_of).collect()
}

fn weight_settings(recipe: &Recipe) -> WeightSettings {
    let weights = &recipe.weights;
    WeightSettings {
        temperature: weights.temperature,
        eps: weights.eps,
        w_max: weights.w_max,
        entropy_floor: weights.entropy_floor,
        blend: weights.blend,
    }
}

/// What `auto` stands for and its name say the same: the recipe's rules refuse a name that belongs to another algorithm.
fn scope(recipe: &Recipe) -> Scope {
    Scope {
        own_whitening: recipe.weights.whiten == Whiten::Own,
        per_sequence: recipe.weights.normalise == Normalise::Sequence,
    }
}

fn rho1_settings(recipe: &Recipe) -> Rho1Settings {
    let rho1 = &recipe.rho1;
    Rho1Settings {
        mode: match rho1.score {
            ExcessScore::SignedExcess => ExcessMode::SignedExcess,
            ExcessScore::AbsExcess => ExcessMode::AbsExcess,
        },
        weighting: match rho1.weighting {
            RecipeWeighting::Continuous => Rho1Weighting::Continuous,
            RecipeWeighting::Topk => Rho1Weighting::Topk,
        },
        selection: Selection {
            ratio: rho1.ratio,
            hard: rho1.hard,
        },
        min_ce_diff: rho1.min_ce_diff,
    }
}
