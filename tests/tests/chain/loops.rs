//! The version loop: one change after the other, unattended, by the rules, and the same end after any kill.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::outside;
use trial::Ended;

use crate::place::Place;
use crate::steps::TINY;

const RULES: &str = r#"{
  "seed": 42,
  "loop_config": {"max_versions": 3},
  "dataset_config": {"dataset_id": "micropy"},
  "training_config": {"optim": {"lr": 0.004}},
  "eval_config": {"primary_metric": "pass_at_1", "metrics": ["pass_at_1", "pass_at_2"], "infer_samples": 2}
}"#;

impl Place {
    /// The loop on the smallest recipe; its folder is `PREFIX-loop`.
    fn looped(&self, prefix: &str) -> Command {
        self.write("recipes/v001.yaml", TINY);
        self.write("recipes/user_defined_rules.json", RULES);
        let mut command = self.script(prefix, "loop.sh", &["recipes", "d"]);
        command
            .env("OUT", self.folder_of(prefix))
            .env("PAUSE", "1")
            .process_group(0);
        command
    }

    fn folder_of(&self, prefix: &str) -> PathBuf {
        self.path(&format!("{prefix}-loop"))
    }
}

/// What tells of times, of attempts, or of files that do: everything else must be the same whatever happened on the way.
const TIMES: [&str; 6] = [
    "created_at",
    "latency_ms",
    "scores",
    "attempts",
    "elapsed_secs",
    "last.ckpt",
];

/// A JSON text without what tells of times and attempts.
fn timeless_json(text: &str) -> String {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.retain(|name, _| !TIMES.contains(&name.as_str()));
                members.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_str(text).expect("JSON");
    strip(&mut value);
    format!("{value:#}")
}

/// A table without the columns of times.
fn timeless_table(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text.lines().map(|row| row.split(',').collect()).collect();
    let kept = |column: &usize| !TIMES.contains(&rows[0][*column]);
    let columns: Vec<usize> = (0..rows[0].len()).filter(kept).collect();
    let line = |row: &Vec<&str>| {
        columns
            .iter()
            .map(|&column| row[column])
            .collect::<Vec<_>>()
            .join(",")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A report without the lines that tell of attempts and times.
fn timeless_report(text: &str) -> String {
    // The result of a run that was killed behind its cache entry is made up later: its events may not tell the time.
    let told = [
        "was begun more than once or fell back",
        "Training took ",
        "Not recorded in this store. ",
    ];
    let lines = text
        .lines()
        .filter(|line| !told.iter().any(|words| line.contains(words)));
    lines.collect::<Vec<_>>().join("\n")
}

/// The files of a loop but its site, without what tells of times and attempts: path to text. The report is called `report`.
fn timeless(folder: &Path) -> BTreeMap<String, String> {
    let report = report(folder);
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = match path.strip_prefix(&report) {
                Ok(rest) => Path::new("report").join(rest),
                Err(_) => path.strip_prefix(folder).expect("below").to_owned(),
            };
            let name = name.display().to_string();
            let ending = |ending: &str| name.ends_with(ending);
            if path.is_dir() {
                // Reports of a loop that was stopped meanwhile may be there, too.
                let is_older = path.parent() == report.parent() && path != report;
                if name != "site" && !is_older {
                    folders.push(path);
                }
                continue;
            }
            if ending("train_retry_report.md") || ending(".parquet") {
                continue;
            }
            let bytes = std::fs::read(&path).expect("a file");
            if ending("best.ckpt") || ending("tokenizer.json") {
                files.insert(name, wmtp_artifacts::Digest::of(&bytes).to_string());
                continue;
            }
            let text = String::from_utf8(bytes).expect("a text");
            let text = text.replace("calm", "X").replace("killed", "X");
            let text = if ending(".json") {
                timeless_json(&text)
            } else if ending("leaderboard.csv") {
                timeless_table(&text)
            } else if ending(".md") {
                timeless_report(&text)
            } else {
                text
            };
            files.insert(name, text);
        }
    }
    files
}

/// The newest report of a loop.
fn report(folder: &Path) -> PathBuf {
    let reports = std::fs::read_dir(folder.join("reports")).expect("reports");
    let mut reports: Vec<PathBuf> = reports
        .map(|entry| entry.expect("an entry").path())
        .collect();
    reports.sort();
    reports.pop().expect("a report")
}

#[test]
#[ignore = "some minutes; `make test-full` runs it"]
fn a_loop_ends_the_same_whenever_it_is_killed() {
    let place = Place::new();
    let began = Instant::now();
    let calm = Ended::of(&mut place.looped("calm")).expect(0);
    let whole = began.elapsed();
    let folder = place.folder_of("calm");
    let expected = timeless(&folder);
    for version in ["v001", "v002", "v003"] {
        assert!(
            expected.contains_key(&format!("recipes/{version}.yaml")),
            "{}",
            calm.stdout
        );
        assert!(expected.contains_key(&format!("versions/{version}/action-extract.md")));
    }
    assert!(
        !expected.contains_key("recipes/v004.yaml"),
        "the rules allow three"
    );
    for file in [
        "held-out",
        "report/leaderboard.csv",
        "report/leaderboard.json",
        "report/final-analysis.md",
        "report/model-card.md",
        "report/held-out.json",
        "versions/v003/eval_score.json",
        "versions/v003/spec.json",
        "versions/v003/infer_samples/0001/output.txt",
    ] {
        assert!(expected.contains_key(file), "{file} is not compared");
    }

    // At seeded instants of the time that it takes, and where files are about to be there.
    for share in [2, 17, 31, 44, 58, 73, 86] {
        let mut child = place
            .looped("killed")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the loop starts");
        std::thread::sleep(
            whole
                .mul_f64(f64::from(share) / 100.0 / 3.0)
                .max(Duration::from_millis(300)),
        );
        let group = format!("-{}", child.id());
        // It may have ended before.
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        child.wait().expect("an end");
    }
    for point in [
        "file:before-rename",
        "file:after-rename",
        "file:before-rename:2",
        "file:after-rename:2",
    ] {
        let _ = Ended::of(place.looped("killed").env("WMTP_FAULT_POINT", point));
    }
    Ended::of(&mut place.looped("killed")).expect(0);
    let found = timeless(&place.folder_of("killed"));
    for (name, text) in &expected {
        assert_eq!(found.get(name), Some(text), "{name}");
    }
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));

    // A folder that is lost is made again from the store.
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    Ended::of(&mut place.looped("calm")).expect(0);
    assert_eq!(timeless(&folder), expected);
}

#[test]
#[ignore = "some minutes; `make test-full` runs it"]
fn a_loop_keeps_to_the_rules_and_to_actions_of_people() {
    let place = Place::new();
    // A model from outside that solves everything wins nothing.
    place.write("recipes/v001.yaml", TINY);
    let data = ["--recipe=recipes/v001.yaml", "--name=d"];
    place.run("here", "prepare-data", &data).expect(0);
    let answers = outside::samples(&outside::problems(&place, "here"), |_| true);
    place.write("external/perfect/samples.jsonl", &answers);
    Ended::of(&mut place.looped("here")).expect(0);
    let folder = place.folder_of("here");
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    // The rules' value went into the first recipe, and the audit says so.
    assert!(read("recipes/v001.yaml").contains("lr: 0.004"));
    let audit = read("_tests/baseline_patch_report.md");
    assert!(audit.contains("`optim.lr`: 0.002 became 0.004"), "{audit}");
    assert!(audit.contains("ran without a fallback"), "{audit}");

    let report = report(&folder);
    let table = std::fs::read_to_string(report.join("leaderboard.csv")).expect("the table");
    let header = table.lines().next().expect("a header");
    assert_eq!(
        header,
        "version_id,dataset_id,created_at,latency_ms,artifact_relpath,metric__pass_at_1,metric__pass_at_2"
    );
    let winner = read("held-out").trim().to_owned();
    for file in [
        "final-analysis.md",
        "model-card.md",
        "held-out.json",
        "leaderboard.json",
        "leaderboard.parquet",
        "baseline_patch_report.md",
        "versions/v001/action-extract.md",
        "versions/v003/result-analysis.md",
    ] {
        assert!(report.join(file).is_file(), "{file}");
    }
    let best: Value = serde_json::from_str(
        &std::fs::read_to_string(report.join("leaderboard.json")).expect("the board"),
    )
    .expect("JSON");
    assert_eq!(best["rows"][0]["version_id"], "perfect");
    let end = std::fs::read_to_string(report.join("final-analysis.md")).expect("the analysis");
    assert!(end.contains("- perfect: Rank 1: "), "{end}");
    let analysed = read("versions/v002/result-analysis.md");
    assert!(!analysed.contains("perfect"), "{analysed}");
    let first = best["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["algo"] != "base" && row["algo"] != "external")
        .expect("a trained version")["version_id"]
        .as_str()
        .expect("a name")
        .to_owned();
    assert_eq!(winner, first);
    for file in [
        "best.ckpt",
        "spec.json",
        "eval_score.json",
        "logs/version_0/metrics.csv",
        "logs/version_0/hparams.yaml",
        "additional_assets/tokenizer.json",
        "infer_samples/0001/output.txt",
    ] {
        assert!(
            report.join("versions").join(&first).join(file).is_file(),
            "{file}"
        );
    }
    assert!(
        !report
            .join("versions")
            .join(&first)
            .join("infer_samples/0003")
            .exists()
    );

    // The last state that training saved is named, and can be had.
    let spec: Value = serde_json::from_str(&read("versions/v002/spec.json")).expect("JSON");
    let last = &spec["last.ckpt"];
    assert!(last["step"].as_u64().is_some_and(|step| step > 0), "{last}");
    let id = last["artifact"].as_str().expect("an id");
    let pull = ["pull", id, "--kind", "checkpoint", "--to", "last"];
    place.run("here", "sync-storage", &pull).expect(0);
    let weights = place
        .path("last")
        .join(last["file"].as_str().expect("a file"));
    let weights = std::fs::read(weights).expect("the weights");
    assert_eq!(
        last["sha256"],
        wmtp_artifacts::Digest::of(&weights).to_string()
    );

    // A second change cannot be put upon a version that is there.
    let action = read("versions/v002/action-extract.md");
    let tool = |arguments: &[&str]| {
        let folder = folder.to_str().expect("a plain name");
        place.run(
            "here",
            "build-leaderboard",
            &[arguments, &["--loop", folder]].concat(),
        )
    };
    let other = |text: &str| {
        std::fs::write(folder.join("versions/v002/action-extract.md"), text).expect("written");
        tool(&["next-version", "--after", "v002"])
    };
    let by_hand = "From: v002\nNext: v003\n\n## Selected Action\n\n- Goal: g\n- Change: weights.eps: 0.1 -> 0.2\n\
                   - Where: v003.yaml\n- Expected impact: i\n- Risk: r\n- Verification: v\n";
    other(by_hand)
        .expect(77)
        .says(&["v003.yaml is there with another change"]);
    let twice = format!("{by_hand}- Change: weights.w_max: 3 -> 2\n");
    other(&twice).expect(77).says(&["a second change"]);
    other(&by_hand.replace("v003", "v004"))
        .expect(77)
        .says(&["the rules allow 3"]);
    other(&by_hand.replace("weights.eps: 0.1 -> 0.2", "optim.lr: 0.004 -> 0.1"))
        .expect(77)
        .says(&["begin another loop"]);
    let of_baseline = by_hand.replace("From: v002", "From: v001");
    other(&of_baseline.replace("weights.eps: 0.1 -> 0.2", "weights.blend: 1 -> 0.5"))
        .expect(77)
        .says(&["weights.blend", "sets no scores"]);
    other(&action).expect(0);

    // Another data set under the same loop.
    place
        .run(
            "here",
            "prepare-data",
            &[
                "--recipe",
                "tiny.yaml",
                "--set=data.split_seed=7",
                "--name",
                "other",
            ],
        )
        .expect(0);
    place
        .run(
            "here",
            "sync-storage",
            &[
                "create",
                "--recipe",
                "tiny.yaml",
                "--model",
                "micro-mtp",
                "--data",
                "other",
                "--name",
                "other",
            ],
        )
        .expect(0);
    tool(&[
        "audit-baseline",
        "--recipe",
        "tiny.yaml",
        "--rules",
        "recipes",
        "--data",
        "other",
        "--base",
        "other",
    ])
    .expect(77)
    .says(&["this loop was begun with other inputs"]);

    // The gates: staging first, and production asks for more than this can show.
    let promote = |to| {
        place.run(
            "here",
            "build-leaderboard",
            &[
                "promote",
                "--leaderboard",
                "d-loop",
                "--to",
                to,
                "--name",
                "d",
            ],
        )
    };
    promote("production").expect(77).says(&["it is in staging"]);
    promote("staging");
    let asked = place
        .run("here", "wmtp-store", &["promotions", "d"])
        .expect(0);
    assert!(asked.stdout.ends_with("2 promotions\n"), "{}", asked.stdout);
}

#[test]
#[ignore = "some minutes; `make test-full` runs it"]
fn a_training_that_fails_ends_the_loop_and_is_told() {
    let place = Place::new();
    let folder = place.folder_of("here");
    let report_of_v001 = folder.join("versions/v001/_tests/train_retry_report.md");
    let read = |path: &Path| std::fs::read_to_string(path).expect("the report");
    // Its first step is the only one of the smoke run, too: the training of v001 dies at its third.
    let failed = Ended::of(place.looped("here").env("WMTP_FAULT_POINT", "train:step:3"));
    assert_ne!(failed.code, Some(0), "{}", failed.stdout);
    assert!(
        failed.stderr.contains("the training of v001 failed"),
        "{}",
        failed.stderr
    );
    assert!(read(&report_of_v001).contains("| 42 | 1 | ended without a word |"));
    assert!(
        !folder.join("recipes/v002.yaml").exists(),
        "no version is skipped"
    );

    Ended::of(&mut place.looped("here")).expect(0);
    let told = read(&report_of_v001);
    assert!(told.contains("| 42 | 1 | ended without a word |"), "{told}");
    assert!(told.contains("| 42 | 2 | completed |"), "{told}");
    let report = report(&folder);
    assert!(report.join("versions/v001/train_retry_report.md").is_file());
    let end = read(&report.join("final-analysis.md"));
    assert!(
        end.contains("The training of v001 was begun more than once"),
        "{end}"
    );
}
