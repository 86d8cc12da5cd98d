//! What `wmtp-vessl` renders, run here: the same commands and variables, with an embedded store in place of a cluster.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::outside;
use trial::Ended;

use crate::place::Place;
use crate::steps::TINY;

/// Training on the CPU, and the names of secrets; digests are of no image, since none is pulled.
fn profile(place: &Place) -> String {
    let digest = "0123456789abcdef".repeat(4);
    let jobs = [
        "sync-storage",
        "prepare-data",
        "train-stage1",
        "train-stage2",
        "evaluate",
        "build-leaderboard",
        "build-site",
    ];
    let digests: BTreeMap<&str, String> = jobs
        .iter()
        .map(|job| (*job, format!("sha256:{digest}")))
        .collect();
    serde_json::json!({
        "cluster": "here",
        "presets": {"cpu": {"name": "cpu-small", "gpus": 0}},
        "jobs": {"train-stage1": "cpu", "train-stage2": "cpu", "evaluate": "cpu"},
        "images": {"registry": "registry.example.com/wmtp", "digests": digests},
        "store": "s3://wmtp/vessl",
        "secrets": {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "key"},
        "env": {"AWS_REGION": "us-east-1", "WMTP_ACCEPT_DEGRADED_SANDBOX": "1"},
        "scratch": place.path("machine").display().to_string(),
        "site": "s3://wmtp/site",
    })
    .to_string()
}

/// The steps of a plan, in the order in which they would be submitted.
fn plan(place: &Place) -> Vec<Value> {
    place.write("v001.yaml", TINY);
    place.write(
        "v002.yaml",
        "{extends: v001.yaml, version: {id: v002, parent: v001, change: token weights}, experiment: {algo: verifiable}}",
    );
    place.write(
        "v003.yaml",
        "{extends: v001.yaml, version: {id: v003, parent: v001, change: token weights}, experiment: {algo: rho1}}",
    );
    place.write(
        "experiment.yaml",
        "{name: three, data: d, policy: {create: micro-mtp}, reference: {create: micro-ref},
          external: [big], recipes: [v001.yaml, v002.yaml, v003.yaml], seeds: [7],
          evaluation: {shards: 2, at_once: 4}}",
    );
    plan_of(place, "experiment.yaml")
}

/// The steps of an experiment's plan.
pub(crate) fn plan_of(place: &Place, experiment: &str) -> Vec<Value> {
    place.write("profile.yaml", &profile(place));
    place.write(
        "prices.yaml",
        "{as_of: 2026-03-31, currency: USD, source: none, per_hour: {}}",
    );
    let arguments = [
        "plan",
        "--experiment",
        experiment,
        "--profile",
        "profile.yaml",
        "--prices",
        "prices.yaml",
        "--json",
    ];
    let ended = place.run("vessl", "wmtp-vessl", &arguments).expect(0);
    let plan: Value = serde_json::from_str(&ended.stdout).expect("an object");
    plan["steps"].as_array().expect("steps").clone()
}

/// Runs a spec as a container would: its command, its variables, the secrets that it names, and nothing else.
pub(crate) fn run(place: &Place, spec: &Value) -> Ended {
    let command = spec["run"][0]["command"].as_str().expect("a command");
    let words: Vec<&str> = command.split(' ').collect();
    let like = place.job("vessl", words[0], &words[1..]);
    let given = |name: &str| {
        like.get_envs()
            .find(|(known, _)| *known == name)
            .and_then(|(_, value)| value)
            .expect("the place sets it")
            .to_owned()
    };
    let mut container = Command::new(like.get_program());
    container
        .args(like.get_args())
        .current_dir(place.path(""))
        .env_clear()
        .env("PATH", given("PATH"))
        .env("AWS_ENDPOINT_URL_S3", given("AWS_ENDPOINT_URL_S3"));
    for (name, value) in spec["env"].as_object().expect("variables") {
        match value.as_str() {
            Some(text) => container.env(name, text),
            None => container.env(name, given(name)),
        };
    }
    Ended::of(&mut container)
}

/// Stores the model from outside, as a person does from a disk that no run sees.
fn push_outsider(place: &Place) {
    let rows = outside::samples(&outside::problems(place, "vessl"), |_| true);
    let path = place.write("elsewhere/big/samples.jsonl", &rows);
    let folder = path.parent().expect("a folder").display().to_string();
    let push = ["push", "--kind=raw-data", "--name=big", "--folder", &folder];
    place.run("vessl", "sync-storage", &push).expect(0);
}

#[test]
fn rendered_runs_make_the_whole_chain_to_the_site() {
    let place = Place::new();
    let steps = plan(&place);
    let names: Vec<&str> = steps
        .iter()
        .map(|step| step["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(
        names,
        [
            "data-set",
            "policy",
            "value-model",
            "reference-model",
            "reference",
            "evaluate-base-1-of-2",
            "evaluate-base-2-of-2",
            "evaluate-base",
            "evaluate-external-big",
            "train-v001-s7",
            "evaluate-v001-s7-1-of-2",
            "evaluate-v001-s7-2-of-2",
            "evaluate-v001-s7",
            "train-v002-s7",
            "evaluate-v002-s7-1-of-2",
            "evaluate-v002-s7-2-of-2",
            "evaluate-v002-s7",
            "train-v003-s7",
            "evaluate-v003-s7-1-of-2",
            "evaluate-v003-s7-2-of-2",
            "evaluate-v003-s7",
            "leaderboard",
            "site",
        ]
    );
    for (index, step) in steps.iter().enumerate() {
        for before in step["after"].as_array().expect("steps before") {
            assert!(
                names[..index].contains(&before.as_str().expect("an id")),
                "{before} comes before {}",
                names[index]
            );
        }
        if step["id"] == "evaluate-external-big" {
            push_outsider(&place);
        }
        run(&place, &step["spec"]).expect(0);
    }
    let page = place.page("site", "index.html");
    for version in ["v001", "v002", "v003", "big"] {
        assert!(page.contains(version), "{version} is on the leaderboard");
    }
    // A machine that was lost and a run that was submitted again: there is nothing to do, and it says so.
    let train = names.iter().position(|name| *name == "train-v002-s7");
    let train = &steps[train.expect("the step")]["spec"];
    let again = run(&place, train).expect(0);
    again.says(&["already done"]);
}
