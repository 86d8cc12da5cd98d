//! A job killed at any instant leaves nothing that another could mistake for a result.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::{Step, all, beginning};

/// The signal of `kill -9`.
const KILL: i32 = 9;

/// Where a job dies before it is let through: early, in the middle, and at one of the points of publishing, which the
/// seed (the job's place in the chain) chooses.
fn points(job: &str, seed: usize) -> [&'static str; 3] {
    const PUBLISHING: [&str; 6] = [
        "publish:before-blobs",
        "publish:after-blob",
        "publish:after-blobs",
        "publish:after-manifest",
        "publish:after-cache",
        "run:before-result",
    ];
    let middle = if job.starts_with("train") {
        "train:step:3"
    } else {
        "job:middle"
    };
    ["job:early", middle, PUBLISHING[seed % PUBLISHING.len()]]
}

#[test]
#[ignore = "many minutes; `make test-full` runs it"]
fn every_job_killed_at_three_points_ends_with_the_same_leaderboard() {
    let place = Place::new();
    place.chain("calm", all());
    for (seed, Step { job, arguments }) in all().into_iter().enumerate() {
        for point in points(job, seed) {
            let status = place
                .job("killed", job, &arguments)
                .env("WMTP_FAULT_POINT", point)
                .output()
                .expect("the job starts")
                .status;
            assert_eq!(
                status.signal(),
                Some(KILL),
                "{job} {arguments:?} did not die at {point}: {status}"
            );
        }
        place.run("killed", job, &arguments).expect(0);
    }
    place.agree("killed", "calm");
    assert_eq!(place.leaderboard("killed"), place.leaderboard("calm"));
}

/// The events that a job tells without a terminal.
fn events(command: &mut Command) -> Vec<Value> {
    let ended = Ended::of(command);
    let lines = ended.stderr.lines();
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn of(events: &[Value], kind: &str) -> Vec<Value> {
    let chosen = events.iter().filter(|event| event["type"] == kind);
    chosen.map(|event| event["data"].clone()).collect()
}

/// Three problems, each with a greedy text and two drawn ones.
const TEXTS: u64 = 9;

#[test]
fn a_killed_evaluation_generates_no_finished_sample_again() {
    let place = Place::new();
    place.chain("here", beginning());
    let arguments = ["--data=d", "--base=base", "--recipe=tiny.yaml"];
    let attempt = |fault: &str| {
        let mut job = place.job("here", "evaluate", &arguments);
        events(job.env("WMTP_FAULT_POINT", fault))
    };
    // Each attempt dies when it has finished so many more; nothing of theirs is in the store.
    for texts in [1, 2, 3] {
        let killed = attempt(&format!("evaluate:text:{texts}"));
        assert!(of(&killed, "checkpoint").is_empty());
        assert!(of(&killed, "completed").is_empty());
    }
    // What they left is all that the next one needs; it dies when all programs are executed.
    let fourth = attempt("publish:before-blobs:2");
    let generated = &of(&fourth, "generated")[0];
    assert_eq!(generated["found"], 6);
    assert_eq!(generated["generated"], TEXTS - 6);
    assert_eq!(
        of(&fourth, "checkpoint")
            .last()
            .expect("saved when generated")["step"],
        TEXTS
    );
    assert!(of(&fourth, "completed").is_empty());

    // Another machine has the store alone.
    for entry in std::fs::read_dir(place.path("here-scratch")).expect("the scratch folder") {
        std::fs::remove_dir_all(entry.expect("an entry").path()).expect("a folder");
    }
    let fifth = attempt("");
    assert_eq!(of(&fifth, "resumed")[0]["step"], TEXTS);
    assert_eq!(of(&fifth, "generated")[0]["generated"], 0);
    assert!(of(&fifth, "checkpoint").is_empty(), "nothing new to save");
    assert_eq!(of(&fifth, "completed").len(), 1);
    let left = std::fs::read_dir(place.path("here-scratch")).expect("the scratch folder");
    assert_eq!(left.count(), 0, "a run that is done leaves nothing behind");

    // From nothing, without a kill: the same texts.
    place.chain("calm", beginning());
    place
        .run(
            "calm",
            "evaluate",
            &[&arguments[..], &["--name=s"]].concat(),
        )
        .expect(0);
    place
        .run(
            "here",
            "evaluate",
            &[&arguments[..], &["--name=s"]].concat(),
        )
        .expect(0);
    assert_eq!(place.texts("here", "s"), place.texts("calm", "s"));
}

#[test]
fn eight_shards_are_the_single_run_byte_for_byte() {
    let place = Place::new();
    place.chain("here", beginning());
    // Six problems, so that two of the eight shards are empty.
    let common = [
        "--data=d",
        "--base=base",
        "--recipe=tiny.yaml",
        "--set=evaluation.split=test",
        "--set=evaluation.max_problems=6",
    ];
    let run = |own: &[&str]| place.run("here", "evaluate", &[own, &common].concat());
    let infer = |own: &[&str]| run(&[&["infer"], own].concat());
    let names: Vec<String> = (1..=8).map(|number| format!("s{number}")).collect();
    for (number, name) in (1..).zip(&names) {
        infer(&["--shard", &format!("{number}/8"), "--name", name]).expect(0);
    }
    infer(&["--name", "whole"]).expect(0);
    let lines = |name: &str| place.file("here", "completions", name, "completions.jsonl");
    let shards: Vec<Vec<String>> = names.iter().map(|name| lines(name)).collect();
    assert_eq!(
        shards.iter().map(Vec::len).collect::<Vec<_>>(),
        [3, 3, 3, 3, 3, 3, 0, 0]
    );
    assert_eq!(shards.concat(), lines("whole"));

    // Shards in any order; the same texts, verdicts and counts as in one run.
    let reversed: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    run(&[&["--name=merged", "--merge"], &reversed[..]].concat()).expect(0);
    run(&["--name=single"]).expect(0);
    assert_eq!(place.texts("here", "merged"), place.texts("here", "single"));
    let scores = |name: &str| {
        ["summary.json", "problems.jsonl"].map(|file| place.file("here", "scores", name, file))
    };
    assert_eq!(scores("merged"), scores("single"));

    run(&[&["--merge"], &reversed[1..]].concat())
        .expect(2)
        .says(&["which 7 shards do not have", "give every shard once"]);
    run(&[&["--set=seed=7", "--merge"], &reversed[..]].concat())
        .expect(2)
        .says(&["another protocol_sha256", "same data, model, seed"]);
}
