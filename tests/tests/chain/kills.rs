//! A job killed at any instant leaves nothing that another could mistake for a result.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::Value;

use crate::place::{Place, ended};
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

#[test]
fn a_killed_evaluation_generates_no_finished_sample_again() {
    let place = Place::new();
    place.chain("here", beginning());
    let arguments = ["--data=d", "--base=base", "--recipe=tiny.yaml"];
    let events = |fault: &str| -> Vec<Value> {
        let mut job = place.job("here", "evaluate", &arguments);
        let ended = ended(job.env("WMTP_FAULT_POINT", fault));
        let lines = ended.stderr.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let of = |events: &[Value], kind: &str| -> Vec<Value> {
        let chosen = events.iter().filter(|event| event["type"] == kind);
        chosen.map(|event| event["data"].clone()).collect()
    };
    // The first that is published is the state.
    let killed = events("publish:before-blobs:2");
    let saved = of(&killed, "checkpoint");
    // Three problems, each with a greedy text and two drawn ones.
    assert_eq!(saved.last().expect("a saved state")["step"], 9, "{saved:?}");
    assert!(of(&killed, "completed").is_empty());
    let second = events("");
    assert_eq!(of(&second, "resumed").len(), 1);
    assert_eq!(of(&second, "resumed")[0]["step"], 9);
    assert!(of(&second, "checkpoint").is_empty(), "nothing new to save");
    assert_eq!(of(&second, "completed").len(), 1);
}
