//! A training that is stopped, dies or is refused goes on from what it saved, and a plan reads no weights.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::beginning;
use crate::under_way::{Started, signal};

/// Long enough to be met in the middle, and saved on a signal alone.
const LONG: [&str; 7] = [
    "--data=d",
    "--base=base",
    "--recipe=tiny.yaml",
    "--set=optim.epochs=400",
    "--set=optim.eval_every_steps=1000000",
    "--set=optim.checkpoint_every_steps=1000000",
    "--set=optim.checkpoint_minutes=null",
];

/// The data of the events of one type.
pub(crate) fn of(ended: &Ended, kind: &str) -> Vec<Value> {
    let lines = ended.stderr.lines();
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let chosen = events.filter(|event| event["type"] == kind);
    chosen.map(|event| event["data"].clone()).collect()
}

#[test]
fn a_stop_saves_the_state_where_the_grace_is_enough_and_says_what_is_lost_where_it_is_not() {
    let place = Place::new();
    place.chain("here", beginning());
    // Stops a training in the middle of its steps.
    let stopped = |grace: &str| {
        let mut job = place.job("here", "train-stage2", &LONG);
        job.env("WMTP_GRACE_SECS", grace);
        let started = Started::at_work(job);
        signal("TERM", started.job.id());
        started.end().expect(143)
    };
    let first = stopped("0");
    first_step_is_next(&first);

    let second = stopped("20");
    let [saved] = &of(&second, "checkpoint")[..] else {
        panic!("one saved state: {}", second.stderr);
    };
    assert!(of(&second, "resumed").is_empty() && of(&second, "not_saved").is_empty());

    let third = stopped("0");
    assert_eq!(of(&third, "resumed")[0]["step"], saved["step"]);
    assert!(of(&third, "checkpoint").is_empty());
    let lost = &of(&third, "not_saved")[0];
    assert_eq!(lost["saved_step"], saved["step"]);
    assert!(lost["step"].as_u64() > saved["step"].as_u64());
    let words = format!("the next start goes on from step {}", saved["step"]);
    third.says(&["0.0 s of the grace are left", &words]);
}

#[test]
fn a_stop_within_the_last_step_saves_it_too_and_leaves_the_result_to_the_next_start() {
    let place = Place::new();
    place.chain("calm", beginning());
    place.chain("here", beginning());
    // Two steps of all rows each. On a busy machine the signal may come before the second begins: then another seed is stopped.
    let met = (1..=8).find_map(|seed| {
        let seed = format!("--set=seed={seed}");
        let arguments = [
            "--data=d",
            "--base=base",
            "--recipe=tiny.yaml",
            "--set=optim.epochs=2",
            "--set=optim.batch_sequences=256",
            "--set=optim.checkpoint_every_steps=1000000",
            "--json",
            &seed,
        ];
        let started = Started::at_work(place.job("here", "train-stage2", &arguments));
        signal("TERM", started.job.id());
        let stopped = started.end().expect(143);
        let is_met = of(&stopped, "checkpoint")[0]["step"] == 2;
        is_met.then(|| arguments.map(str::to_owned))
    });
    let arguments = met.expect("a signal within the second step");
    let arguments = arguments.each_ref().map(String::as_str);
    let expected = place.run("calm", "train-stage2", &arguments).expect(0);
    let again = place.run("here", "train-stage2", &arguments).expect(0);
    assert_eq!(of(&again, "resumed")[0]["step"], 2);
    assert_eq!(again.result()["outputs"], expected.result()["outputs"]);
}

fn first_step_is_next(ended: &Ended) {
    assert!(of(ended, "checkpoint").is_empty());
    let lost = &of(ended, "not_saved")[0];
    assert!(lost["step"].as_u64() > Some(0) && lost["saved_step"].is_null());
    assert!(
        ended
            .stderr
            .contains("the next start begins with the first step")
    );
}

#[test]
fn what_dies_while_it_scores_has_its_last_step_behind_it() {
    let place = Place::new();
    place.chain("calm", beginning());
    place.chain("here", beginning());
    for (objective, base) in [("value", "base"), ("reference", "ref")] {
        let arguments = [
            "--objective",
            objective,
            "--data=d",
            "--base",
            base,
            "--recipe=tiny.yaml",
            "--set=stage1.lr_trunk=0",
            "--json",
        ];
        let expected = place.run("calm", "train-stage1", &arguments).expect(0);
        let job = || place.job("here", "train-stage1", &arguments);
        let killed = Ended::of(job().env("WMTP_FAULT_POINT", "train:score"));
        assert_eq!(killed.code, None, "{}", killed.stderr);
        let saved = of(&killed, "checkpoint");
        let last = &saved.last().expect("a saved state")["step"];

        // No step is left to do: the next attempt would die at its first one.
        let again = Ended::of(job().env("WMTP_FAULT_POINT", "train:step")).expect(0);
        assert_eq!(&of(&again, "resumed")[0]["step"], last);
        assert!(of(&again, "checkpoint").is_empty(), "nothing new to save");
        assert_eq!(
            again.result()["outputs"],
            expected.result()["outputs"],
            "{objective}"
        );
    }
}

#[test]
fn a_value_model_below_its_gate_is_made_again_where_the_gate_no_longer_holds() {
    let place = Place::new();
    place.chain("here", beginning());
    let train = |enforced: &str| {
        let gate = format!("--set=stage1.enforce_gate={enforced}");
        let arguments = [
            "--objective=value",
            "--data=d",
            "--base=base",
            "--recipe=tiny.yaml",
            "--set=stage1.gate=1",
            &gate,
        ];
        place.run("here", "train-stage1", &arguments)
    };
    let refused = train("true").expect(77);
    assert!(of(&refused, "resumed").is_empty());
    let refused = refused.says(&["set stage1.enforce_gate to false", "from its first step"]);
    let last = of(&refused, "checkpoint").last().expect("a saved state")["step"].clone();
    // The same command judges the same model; the other one is another run.
    let same = train("true").expect(77);
    assert_eq!(of(&same, "resumed")[0]["step"], last);
    let kept = train("false").expect(0);
    assert!(of(&kept, "resumed").is_empty());
}

/// Files of weights under a folder.
fn weights(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(weights(&path));
        } else if path.ends_with("model.safetensors") {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_plan_reads_the_settings_of_a_model_and_not_its_weights() {
    let place = Place::new();
    place.chain("here", beginning());
    let common = ["--data=d", "--recipe=tiny.yaml"];
    let train = [&common[..], &["--base=base", "--name=v001"]].concat();
    let judge = [&common[..], &["--checkpoint=v001"]].concat();
    let cache = place.path("fresh");
    let fresh = |mut job: Command| {
        let ended = Ended::of(job.env("WMTP_CACHE", &cache)).expect(0);
        assert_eq!(weights(&cache), Vec::<String>::new());
        ended
    };
    let dry = [&train[..], &["--dry-run"]].concat();
    fresh(place.job("here", "train-stage2", &dry));
    place.run("here", "train-stage2", &train).expect(0);
    assert!(
        !weights(&place.path("here-cache")).is_empty(),
        "a run reads them"
    );
    fresh(place.job("here", "train-stage2", &train)).says(&["already done"]);
    let dry = [&judge[..], &["--dry-run"]].concat();
    fresh(place.job("here", "evaluate", &dry));
}
