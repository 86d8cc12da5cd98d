//! Every setting of the schema is one that some job reads.

use std::collections::BTreeSet;

use wmtp_recipe::{Affects, leaves};

use crate::place::Place;
use crate::steps::beginning;

/// Whose results a setting can change, with what brings it into their keys: settings that came later are there only where
/// they are not the default.
const KEYS: [(&str, &[&str]); 10] = [
    ("prepare-data", &["data.split_by=shares"]),
    ("value", &["stage1.lora_r=2"]),
    ("reference", &["reference.lora_r=2"]),
    (
        "policy",
        &[
            "lora.r=2",
            "lora.dropout=0.05",
            "optim.early_stop_patience=3",
            "optim.early_stop_min_delta=0.01",
        ],
    ),
    (
        "policy",
        &[
            "experiment.algo=rho1",
            "weights.whiten=own",
            "weights.normalise=sequence",
        ],
    ),
    (
        "policy",
        &[
            "experiment.algo=rho1",
            "rho1.weighting=topk",
            "rho1.hard=true",
        ],
    ),
    ("policy", &["experiment.algo=verifiable"]),
    ("evaluate", &["evaluation.top_k=5"]),
    ("evaluate", &["evaluation.infer_samples=2"]),
    (
        "evaluate",
        &[
            "evaluation.temperature=0",
            "evaluation.num_samples=1",
            "evaluation.ks=[1]",
            "evaluation.beams=4",
            "evaluation.length_penalty=0.6",
        ],
    ),
];

/// A job as it is called, but for its recipe.
fn call(what: &str) -> (&str, &'static [&'static str]) {
    match what {
        "value" => (
            "train-stage1",
            &["--objective=value", "--data=d", "--base=base", "--name=v"],
        ),
        "reference" => (
            "train-stage1",
            &[
                "--objective=reference",
                "--data=d",
                "--base=ref",
                "--name=v",
            ],
        ),
        "policy" => (
            "train-stage2",
            &[
                "--data=d",
                "--base=base",
                "--advantages=v",
                "--reference-ce=v",
            ],
        ),
        "evaluate" => ("evaluate", &["--data=d", "--base=base"]),
        job => (job, &[]),
    }
}

#[test]
fn every_setting_that_can_change_a_result_is_in_the_key_of_some_job() {
    let place = Place::new();
    place.chain("here", beginning());
    for objective in ["value", "reference"] {
        let (job, arguments) = call(objective);
        let train = [arguments, &["--recipe=tiny.yaml"]].concat();
        place.run("here", job, &train).expect(0);
    }
    let mut keys = BTreeSet::new();
    for (what, settings) in KEYS {
        let (job, arguments) = call(what);
        let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
        let look = ["--recipe=tiny.yaml", "--dry-run"];
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain(look)
            .chain(settings)
            .collect();
        let told = place.run("here", job, &arguments).expect(0).stdout;
        // `  KEY = VALUE`, each option of the plan.
        let options = told.lines().filter_map(|line| line.split_once(" = "));
        keys.extend(options.map(|(key, _)| key.trim().to_owned()));
    }
    let unread: Vec<&str> = leaves()
        .filter(|leaf| leaf.affects == Affects::Output && !keys.contains(leaf.key))
        .map(|leaf| leaf.key)
        .collect();
    assert_eq!(unread, [""; 0], "a setting that no job reads");
}
