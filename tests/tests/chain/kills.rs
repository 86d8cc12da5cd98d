//! A job killed at any instant leaves nothing that another could mistake for a result.

use std::os::unix::process::ExitStatusExt as _;

use crate::place::Place;
use crate::steps::{Step, all};

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
