//! What things are called on the server: experiments, metrics, parameters, tags.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wmtp_artifacts::{Digest, RunRequest, canonical_json, decimals_as_strings};

/// Longest name of a metric, parameter or tag.
const LONGEST_NAME: usize = 250;
/// Longest value of a parameter: the server would cut it without a word.
pub(crate) const LONGEST_PARAM: usize = 6000;
/// Longest value of a tag, likewise.
pub(crate) const LONGEST_TAG: usize = 8000;

/// Tags by which runs and versions of models are found again.
pub(crate) const RUN_ID: &str = "wmtp.run_id";
pub(crate) const STORE: &str = "storage_sync";
pub(crate) const CHECKPOINT: &str = "wmtp.checkpoint";
pub(crate) const NON_FINITE: &str = "non_finite_metrics";
pub(crate) const ERROR: &str = "error";

/// `mtp/{algo}/{dataset}`; a run without a recipe belongs to no experiment.
pub(crate) fn experiment(recipe: &Value) -> Option<String> {
    let of = |key: &str| {
        recipe["experiment"][key]
            .as_str()
            .filter(|text| !text.is_empty())
    };
    Some(plain(&format!("mtp/{}/{}", of("algo")?, of("dataset")?)))
}

/// First words of live metrics that are groups of their own, and the groups; what has none belongs to training.
const GROUPS: [(&str, &str); 6] = [
    ("weight", "weight"),
    ("td", "td"),
    ("value", "value"),
    ("rho1", "rho1"),
    ("validation", "val"),
    ("system", "system"),
];

/// A live metric of a job, as MLflow's users call it.
pub(crate) fn metric(name: &str) -> String {
    let known = match name {
        "train_loss" => "train/loss",
        "train_loss_unweighted" => "train/loss_unweighted",
        "tokens_per_second" => "perf/tokens_per_sec",
        "padded_tokens_per_second" => "perf/padded_tokens_per_sec",
        "samples_per_second" => "perf/samples_per_sec",
        "epoch_secs" => "perf/epoch_time_sec",
        "step_secs" => "perf/step_time_sec",
        "mfu" => "perf/mfu",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let group = GROUPS.iter().find_map(|(word, group)| {
        let rest = name.strip_prefix(word)?.strip_prefix('_')?;
        Some(format!("{group}/{rest}"))
    });
    plain(&group.unwrap_or_else(|| format!("train/{name}")))
}

/// A name that the server takes: `@` becomes `_at_`, other characters that it refuses `_`.
pub(crate) fn plain(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-. :/".contains(c);
    name.replace('@', "_at_")
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .take(LONGEST_NAME)
        .collect()
}

/// The store as a tag: a filter quotes it.
pub(crate) fn store_tag(uri: &impl ToString) -> String {
    uri.to_string().replace('\'', "%27")
}

/// What determined a run: every setting of its recipe under its own key, and what else its result depends on.
pub(crate) fn params(request: &RunRequest) -> BTreeMap<String, String> {
    let mut params = BTreeMap::new();
    flatten(&request.recipe, "", &mut params);
    let mut add = |name: &str, value: String| params.insert(name.to_owned(), value);
    if let Some(heads) = request.recipe["model"]["horizon"].as_u64() {
        add("n_heads", heads.to_string());
    }
    if let Some(hash) = config_hash(&request.recipe) {
        add("config_hash", hash);
    }
    if request.job.starts_with("train-") {
        add("optimizer", "adamw".to_owned());
    }
    // Older runs know no commit, and what they were tracked with is to stay.
    let revision = request.code_revision.as_ref();
    add(
        "code_revision",
        revision.unwrap_or(&request.code_version).clone(),
    );
    add("cache_key", request.cache_key.to_string());
    for input in &request.inputs {
        let id = input.id.to_string();
        if input.role == "data" {
            let hash = id.rsplit('-').next().unwrap_or_default().to_owned();
            params.insert("data_hash".to_owned(), hash);
        }
        params.insert(plain(&format!("input.{}", input.role)), id);
    }
    params.retain(|_, value| value.chars().count() <= LONGEST_PARAM);
    params
}

fn flatten(value: &Value, key: &str, params: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(member, &key, params);
            }
        }
        _ if key.is_empty() => {}
        Value::String(text) => {
            params.insert(plain(key), text.clone());
        }
        other => {
            params.insert(plain(key), other.to_string());
        }
    }
}

/// The digest of the resolved recipe, as manifests hold it.
fn config_hash(recipe: &Value) -> Option<String> {
    let canonical = canonical_json(&decimals_as_strings(recipe)).ok()?;
    Some(Digest::of(&canonical).to_string())
}

/// What a run is found by and read by.
pub(crate) fn tags(request: &RunRequest, store: &impl ToString) -> BTreeMap<String, String> {
    let recipe = &request.recipe;
    let of = |section: &str, key: &str| recipe[section][key].as_str().map(str::to_owned);
    let optional = [
        ("algo", of("experiment", "algo")),
        ("dataset", of("experiment", "dataset")),
        ("model_version", of("version", "id")),
        ("parent_version", of("version", "parent")),
        ("change", of("version", "change")),
    ];
    let known = [
        ("stage", stage(&request.job).to_owned()),
        (STORE, store_tag(store)),
        (RUN_ID, request.run_id.to_string()),
        ("wmtp.job", request.job.clone()),
        ("wmtp.host", request.host.clone()),
        ("mlflow.source.name", request.job.clone()),
        ("mlflow.source.type", "JOB".to_owned()),
    ];
    let optional = optional
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    known
        .into_iter()
        .chain(optional)
        .map(|(name, value)| (name.to_owned(), cut(&value)))
        .collect()
}

/// What people call the run: the name of its outputs, else its id.
pub(crate) fn run_name(request: &RunRequest) -> String {
    let name = request.labels.get("name");
    name.map_or_else(|| request.run_id.to_string(), Clone::clone)
}

fn stage(job: &str) -> &str {
    match job {
        "train-stage1" => "stage1",
        "train-stage2" => "stage2",
        other => other,
    }
}

/// A value that the server keeps whole.
pub(crate) fn cut(value: &str) -> String {
    value.chars().take(LONGEST_TAG).collect()
}

/// Names of metrics that were not finite, for a tag: the server keeps such values as something else.
pub(crate) fn non_finite(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cut(&names.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(recipe: Value) -> RunRequest {
        serde_json::from_value(json!({
            "run_id": "train-stage2-0123456789abcdef",
            "job": "train-stage2",
            "cache_key": "a".repeat(64),
            "inputs": [{"role": "data", "id": format!("processed-data-{}", "b".repeat(40))}],
            "recipe": recipe,
            "code_version": "0.1.0",
            "code_revision": "0123abcd-dirty",
            "host": "here",
            "labels": {"name": "v002-s42"},
            "started_at": "2026-11-21T10:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn the_names_are_those_of_the_specification() {
        for (ours, theirs) in [
            ("train_loss", "train/loss"),
            ("train_loss_unweighted", "train/loss_unweighted"),
            ("ce_head_3", "train/ce_head_3"),
            ("grad_norm", "train/grad_norm"),
            ("lr", "train/lr"),
            ("validation_loss", "val/loss"),
            ("validation_ce_head_2", "val/ce_head_2"),
            ("system_gpu_mem", "system/gpu_mem"),
            ("system_gpu_util", "system/gpu_util"),
            ("weight_entropy", "weight/entropy"),
            (
                "weight_clip_ratio_low_head_2",
                "weight/clip_ratio_low_head_2",
            ),
            ("weight_projection_c", "weight/projection_c"),
            ("tokens_per_second", "perf/tokens_per_sec"),
            ("samples_per_second", "perf/samples_per_sec"),
            ("epoch_secs", "perf/epoch_time_sec"),
            ("td_mean", "td/mean"),
            ("value_mse", "value/mse"),
            ("rho1_excess_mean", "rho1/excess_mean"),
            ("rho1_ref_ce", "rho1/ref_ce"),
            ("rho1_selected_ratio_head_4", "rho1/selected_ratio_head_4"),
            ("tdx", "train/tdx"),
        ] {
            assert_eq!(metric(ours), theirs);
        }
        assert_eq!(plain("contest_pass@1"), "contest_pass_at_1");
        assert_eq!(plain("a+b(ü)"), "a_b___");
        assert_eq!(plain(&"x".repeat(300)).len(), LONGEST_NAME);
    }

    #[test]
    fn an_experiment_is_an_algorithm_on_a_data_set() {
        let recipe = json!({"experiment": {"algo": "rho1", "dataset": "mbpp"}});
        assert_eq!(experiment(&recipe).unwrap(), "mtp/rho1/mbpp");
        assert_eq!(experiment(&Value::Null), None);
    }

    #[test]
    fn parameters_are_the_recipe_and_what_else_determines_the_run() {
        let recipe = json!({
            "version": {"id": "v002", "parent": null},
            "seed": 42,
            "model": {"horizon": 4},
            "optim": {"lr": 0.002},
            "evaluation": {"ks": [1, 5]},
        });
        let params = params(&request(recipe));
        for (name, value) in [
            ("version.id", "v002"),
            ("version.parent", "null"),
            ("seed", "42"),
            ("n_heads", "4"),
            ("optim.lr", "0.002"),
            ("evaluation.ks", "[1,5]"),
            ("optimizer", "adamw"),
            ("code_revision", "0123abcd-dirty"),
            ("data_hash", &"b".repeat(40)),
            ("input.data", &format!("processed-data-{}", "b".repeat(40))),
        ] {
            assert_eq!(params[name], value, "{name}");
        }
        assert_eq!(params["config_hash"].len(), 64);
        let mut older = request(Value::Null);
        older.code_revision = None;
        assert_eq!(super::params(&older)["code_revision"], "0.1.0");
    }

    #[test]
    fn what_is_too_long_is_left_out_or_cut_by_us_and_not_by_the_server() {
        let long = "x".repeat(LONGEST_TAG + 1);
        let request = request(json!({
            "experiment": {"algo": "rho1", "dataset": "d"},
            "version": {"id": "v1", "change": long},
        }));
        assert!(!params(&request).contains_key("version.change"));
        let tags = tags(&request, &"s3://b/it's");
        assert_eq!(tags["change"].len(), LONGEST_TAG);
        assert_eq!(tags["storage_sync"], "s3://b/it%27s");
        assert_eq!(tags["stage"], "stage2");
        assert!(!tags.contains_key("parent_version"));
        assert_eq!(run_name(&request), "v002-s42");
    }
}
