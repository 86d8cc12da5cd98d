//! The way of a version into production: what the gate was told is in the store, so that any machine can ask it next.

use serde_json::{Value, json};
use wmtp_artifacts::{ArtifactId, Digest, Kind};

use trial::Ended;

use crate::place::Place;

/// A version of a board, with a checkpoint of one file.
fn row(version: &str, algo: &str, rank: u32, mean: f64, checkpoint: Option<&ArtifactId>) -> Value {
    let interval = json!({"low": mean - 0.05, "high": mean + 0.05});
    json!({
        "version_id": version, "dataset_id": "d-validation", "created_at": "2026-11-21T10:00:00Z",
        "latency_ms": null, "artifact_relpath": format!("versions/{version}"), "metrics": [], "rank": rank, "algo": algo,
        "parent": null, "change": null, "seeds": [42], "num_samples": 10,
        "estimate": {"mean": mean, "interval": interval}, "against_leader": null, "against_parent": null,
        "against_baseline": null, "against_controls": [], "heads": [], "error_shares": {}, "families": [],
        "runs": [{"seed": 42, "scores": "scores-of-a-test", "checkpoint": checkpoint}],
    })
}

/// A board of baselines, the first of which was scored on the test split and fell by nothing.
fn board(place: &Place, name: &str, rows: &[Value]) {
    let best = &rows[0];
    let held_out = json!({
        "version_id": best["version_id"], "dataset_id": "d-test", "split": "test", "num_tasks": 10, "seeds": [42],
        "primary_metric": "pass_at_1", "estimate": best["estimate"], "validation": best["estimate"], "scores": [],
    });
    let board = json!({
        "dataset_id": "d-validation", "split": "validation", "primary_metric": "pass_at_1", "higher_is_better": true,
        "created_at": "2026-11-21T10:00:00Z", "data": "data", "num_tasks": 10, "protocol": {}, "sandbox": {},
        "resolution": null, "rows": rows, "warnings": [],
    });
    let path = place.write(&format!("{name}/leaderboard.json"), &board.to_string());
    place.write(&format!("{name}/held-out.json"), &held_out.to_string());
    let folder = path.parent().expect("a folder");
    place.publish_folder("here", Kind::Leaderboard, folder, name);
}

fn promote(place: &Place, board: &str, version: &str, to: &str, more: &[&str]) -> Ended {
    let version = format!("--version={version}");
    let to = format!("--to={to}");
    let arguments = ["promote", "--leaderboard", board, &version, &to];
    place.run(
        "here",
        "build-leaderboard",
        &[&arguments[..], more].concat(),
    )
}

#[test]
fn production_takes_what_was_staged_scores_no_less_and_is_whole() {
    let mut place = Place::new();
    let checkpoint = |version: &str| {
        let path = place.write(&format!("{version}/weights"), version);
        let folder = path.parent().expect("a folder");
        place.publish_folder("here", Kind::Checkpoint, folder, version)
    };
    let [first, second, third] = ["v001", "v002", "v003"].map(checkpoint);
    let base = row("base", "base", 3, 0.1, None);
    let of = |version, rank, mean, id| row(version, "baseline", rank, mean, Some(id));
    board(&place, "one", &[of("v001", 1, 0.7, &first), base.clone()]);
    board(&place, "two", &[of("v002", 1, 0.9, &second), base.clone()]);
    let worse = [
        of("v002", 1, 0.6, &second),
        of("v001", 1, 0.7, &first),
        base.clone(),
    ];
    board(&place, "worse", &worse);
    let better = [
        of("v002", 1, 0.8, &second),
        of("v001", 1, 0.7, &first),
        base.clone(),
    ];
    board(&place, "better", &better);
    board(&place, "three", &[of("v003", 1, 0.9, &third), base]);
    let d = ["--name=d"];

    promote(&place, "one", "v001", "staging", &[])
        .expect(2)
        .says(&["--name"]);
    promote(&place, "one", "v001", "production", &d)
        .expect(77)
        .says(&["it is in staging"]);
    promote(&place, "one", "v001", "staging", &["--name=d", "--dry-run"]).expect(0);
    promote(&place, "one", "v001", "production", &d)
        .expect(77)
        .says(&["it is in staging"]);
    promote(&place, "one", "v001", "staging", &["--name=other"]).expect(0);
    promote(&place, "one", "v001", "production", &d)
        .expect(77)
        .says(&["it is in staging"]);
    promote(&place, "one", "v001", "staging", &d).expect(0);
    promote(&place, "one", "v001", "production", &d).expect(0);

    let names = |place: &Place| {
        place
            .run("here", "wmtp-store", &["names", "--kind=checkpoint"])
            .expect(0)
            .stdout
    };
    assert!(names(&place).contains(&format!("d-production  {first}")));
    // What is relied on is on the board, and scores more.
    promote(&place, "two", "v002", "staging", &d).expect(0);
    let no_less = ["it scores no less than what is in production"];
    promote(&place, "two", "v002", "production", &d)
        .expect(77)
        .says(&no_less);
    promote(&place, "worse", "v002", "production", &d)
        .expect(77)
        .says(&no_less);
    assert!(names(&place).contains(&format!("d-production  {first}")));
    promote(&place, "better", "v002", "production", &d).expect(0);
    assert!(names(&place).contains(&format!("d-production  {second}")));

    // A checkpoint of which a file is gone goes nowhere.
    let digest = Digest::of(b"v003").to_string();
    place.lose(
        &format!("here/v1/blobs/sha256/{}/{digest}", &digest[..2]),
        1,
    );
    promote(&place, "three", "v003", "staging", &d)
        .expect(77)
        .says(&["its files are in this store"]);

    let asked = place
        .run("here", "wmtp-store", &["promotions", "d", "--json"])
        .expect(0);
    let asked: Value = serde_json::from_str(&asked.stdout).expect("one object");
    let rows = asked["promotions"].as_array().expect("rows").iter();
    let granted: Vec<bool> = rows
        .map(|row| row["promotion"]["granted"].as_bool().expect("an answer"))
        .collect();
    let expected = [
        false, false, false, true, true, true, false, false, true, false,
    ];
    assert_eq!(granted, expected);
}
