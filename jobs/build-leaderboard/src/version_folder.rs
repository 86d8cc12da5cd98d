//! A version's files laid out for people: `spec.json`, score, samples, logs, assets, and the weights of the best.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use wmtp_artifacts::{ArtifactId, Kind};
use wmtp_job_kit::{JobError, Manifest, StoreHandle};
use wmtp_records::{EvalScore, jsonl, score_files};
use wmtp_stats::leaderboard::LeaderboardRow;

use crate::report::{copy, copy_tree};
use crate::training::{checkpoints, present};

/// The best weights under their founding name; in the store they are `model.safetensors`.
const BEST: &str = "best.ckpt";
const WEIGHTS: &str = "model.safetensors";
/// The weights of the newest saved state; it stays in the store.
const LAST: &str = "last.ckpt";
const LAST_WEIGHTS: &str = "parameters.safetensors";
/// What a model needs beside its weights.
const ASSETS: [&str; 2] = ["tokenizer.json", "params.json"];

/// What becomes of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weights {
    /// They are copied.
    Copied,
    /// They stay in the store, and `spec.json` names them.
    Named,
}

/// Writes the folder of one version; the checkpoint is the one of its first seed.
///
/// # Errors
/// Those of the file system, a store that cannot be reached, damage. A checkpoint that is not in the store leaves its files
/// out, and `spec.json` says so.
pub(crate) fn write(
    dir: &Path,
    row: &LeaderboardRow,
    weights: Weights,
    store: &StoreHandle,
) -> Result<(), JobError> {
    jsonl::write_json(&dir.join(score_files::EVAL_SCORE), &pooled_score(row))?;
    if let Some(first) = row.runs.first() {
        let scores = store.fetch(&store.resolve(Kind::Scores, &first.scores)?)?;
        let samples = scores.join(score_files::INFER_SAMPLES);
        if samples.is_dir() {
            copy_tree(&samples, &dir.join(score_files::INFER_SAMPLES))?;
        }
    }
    let mut checkpoint = None;
    for (index, (_, id)) in checkpoints(row)?.into_iter().enumerate() {
        let Some(manifest) = present(store.manifest(&id))? else {
            continue;
        };
        write_logs(&dir.join(format!("logs/version_{index}")), &manifest, store)?;
        checkpoint.get_or_insert(manifest);
    }
    if let Some(manifest) = &checkpoint {
        for name in ASSETS {
            if let Some(bytes) = store.read(manifest, name)? {
                save(&dir.join("additional_assets").join(name), &bytes)?;
            }
        }
        if weights == Weights::Copied {
            copy(&store.fetch(&manifest.id)?.join(WEIGHTS), &dir.join(BEST))?;
        }
    }
    let last = match &checkpoint {
        Some(manifest) => last_state(manifest, store)?,
        None => None,
    };
    let spec = spec(row, checkpoint.as_ref(), weights, last);
    Ok(jsonl::write_json(&dir.join("spec.json"), &spec)?)
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), JobError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(path, bytes)?)
}

fn pooled_score(row: &LeaderboardRow) -> EvalScore {
    EvalScore {
        dataset_id: row.dataset_id.clone(),
        created_at: row.created_at.clone(),
        num_samples: row.num_samples,
        metrics: row.metrics.clone(),
        latency_ms: row.latency_ms,
    }
}

/// `metrics.csv` and `hparams.yaml` of one seed.
fn write_logs(dir: &Path, manifest: &Manifest, store: &StoreHandle) -> Result<(), JobError> {
    let lines = store.read(manifest, "metrics.jsonl")?.unwrap_or_default();
    let rows: Vec<serde_json::Map<String, Value>> = lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<Result<_, _>>()
        .map_err(|error| {
            JobError::bad_input(format!("metrics.jsonl of {}: {error}", manifest.id))
        })?;
    save(&dir.join("metrics.csv"), metrics_csv(&rows).as_bytes())?;
    let recipe = match store.read(manifest, "recipe.json")? {
        None => Value::Null,
        Some(bytes) => recipe(&bytes, &manifest.id)?,
    };
    save(&dir.join("hparams.yaml"), hparams(&recipe).as_bytes())
}

/// The settings that a checkpoint was trained with: a version without settings would be believed.
fn recipe(bytes: &[u8], id: &ArtifactId) -> Result<Value, JobError> {
    let recipe = serde_json::from_slice::<serde_json::Map<String, Value>>(bytes);
    recipe
        .map(Value::Object)
        .map_err(|error| JobError::bad_input(format!("recipe.json of {id}: {error}")))
}

/// Columns in the order in which rows bring them; what a row lacks is an empty cell.
fn metrics_csv(rows: &[serde_json::Map<String, Value>]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(serde_json::Map::keys) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut csv = format!("{}\n", columns.join(","));
    for row in rows {
        let cells = columns.iter().map(|name| match row.get(*name) {
            None | Some(Value::Null) => String::new(),
            Some(value) => value.to_string(),
        });
        let _ = writeln!(csv, "{}", cells.collect::<Vec<_>>().join(","));
    }
    csv
}

/// Sections of settings as YAML; JSON's scalars and lists are YAML too.
fn hparams(recipe: &Value) -> String {
    let mut yaml = String::new();
    for (name, value) in recipe.as_object().into_iter().flatten() {
        match value.as_object() {
            None => {
                let _ = writeln!(yaml, "{name}: {value}");
            }
            Some(settings) => {
                let _ = writeln!(yaml, "{name}:");
                for (name, value) in settings {
                    let _ = writeln!(yaml, "  {name}: {value}");
                }
            }
        }
    }
    yaml
}

/// The newest state that the training of a checkpoint saved, as long as the store keeps it: its weights are those of a later step
/// than the best ones, or the same.
fn last_state(checkpoint: &Manifest, store: &StoreHandle) -> Result<Option<Value>, JobError> {
    let Some(history) = store.history(&checkpoint.provenance.run_id)? else {
        return Ok(None);
    };
    let states = history.events.iter().filter_map(|event| {
        let saved = event["type"] == "checkpoint";
        let data = Some(&event["data"]).filter(|_| saved)?;
        Some((data["step"].as_u64()?, data["artifact"].as_str()?))
    });
    let Some((step, id)) = states.max_by_key(|(step, _)| *step) else {
        return Ok(None);
    };
    let Some(manifest) = present(store.manifest(&id.parse()?))? else {
        return Ok(None);
    };
    let weights = manifest.file(LAST_WEIGHTS).map(|entry| {
        json!({
            "artifact": id,
            "step": step,
            "file": LAST_WEIGHTS,
            "bytes": entry.size,
            "sha256": entry.sha256.to_string(),
            "format": "safetensors",
            "here": false,
        })
    });
    Ok(weights)
}

fn spec(
    row: &LeaderboardRow,
    checkpoint: Option<&Manifest>,
    weights: Weights,
    last: Option<Value>,
) -> Value {
    let file = |path: &str| {
        let entry = checkpoint?.file(path)?;
        Some(json!({"file": path, "bytes": entry.size, "sha256": entry.sha256.to_string()}))
    };
    let best = file(WEIGHTS).map(|mut best| {
        best["format"] = json!("safetensors");
        best["here"] = json!(weights == Weights::Copied);
        best
    });
    json!({
        "version_id": row.version_id,
        "parent": row.parent,
        "change": row.change,
        "algo": row.algo,
        "seeds": row.seeds,
        "dataset_id": row.dataset_id,
        "checkpoint": checkpoint.map(|manifest| manifest.id.to_string()),
        "attributes": checkpoint.map(|manifest| &manifest.content.attributes),
        BEST: best,
        LAST: last,
        "additional_assets": ASSETS.map(file),
        "not_kept": {
            LAST: "weights are chosen by the smallest validation loss; the last state that training saved is named above as long as the store keeps it",
            "generation_config": "decoding settings are the evaluation's, in hparams and the leaderboard's protocol",
            "optimizer state": "it belongs to states to resume from",
        },
        "runs": row.runs,
    })
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;

    use super::*;

    #[test]
    fn metrics_keep_their_columns_and_leave_blanks() {
        let rows: Vec<serde_json::Map<String, Value>> = serde_json::from_str(
            r#"[{"step": 1, "loss": 0.5}, {"step": 2, "loss": null, "validation_loss": 0.25}]"#,
        )
        .unwrap();
        let expected = "step,loss,validation_loss\n1,0.5,\n2,,0.25\n";
        assert_eq!(metrics_csv(&rows), expected);
    }

    #[test]
    fn settings_stand_below_their_section() {
        let recipe =
            json!({"seed": 7, "optim": {"lr": 0.004, "x": [1, 2]}, "version": {"change": "a: b"}});
        let expected = "seed: 7\noptim:\n  lr: 0.004\n  x: [1,2]\nversion:\n  change: \"a: b\"\n";
        assert_eq!(hparams(&recipe), expected);
    }

    #[test]
    fn a_broken_recipe_is_an_error_and_no_empty_one() {
        let id: ArtifactId = format!("checkpoint-{}", "5".repeat(40)).parse().unwrap();
        assert_eq!(recipe(b"{\"seed\": 7}", &id).unwrap(), json!({"seed": 7}));
        for broken in ["", "{\"seed\": 7", "[]"] {
            let error = recipe(broken.as_bytes(), &id).unwrap_err();
            assert_eq!(error.exit(), Exit::BadInput);
            assert!(
                error.to_string().contains(&format!("recipe.json of {id}")),
                "{error}"
            );
        }
    }
}
