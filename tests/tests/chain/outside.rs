//! Models from outside through the chain: judged on the versions' problems, on the board beside them, never a winner.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use trial::Ended;

use crate::place::Place;
use crate::steps::beginning;

/// Asks nobody: answers with the references beside it, and fails where it sees what is none of its business.
const INFER: &str = r#"#!/usr/bin/env python3
import json, os, sys
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "asked"), "a") as file:
    file.write("once\n")
leaked = [name for name in os.environ if name.startswith(("AWS_", "WMTP_"))]
if leaked:
    sys.exit(f"sees {leaked}")
references = json.load(open("references.json"))
for line in sys.stdin:
    task = json.loads(line)
    texts = [{"text": references[task["task_id"]], "num_tokens": 9, "finished": True}] * task["num_samples"]
    print(json.dumps({"task_id": task["task_id"], "completions": texts, "prompt": task["prompt"]}))
"#;

/// The problems that are judged, as the data set has them.
pub(crate) fn problems(place: &Place, prefix: &str) -> Vec<Value> {
    let lines = place.file(prefix, "processed-data", "d", "problems/validation.jsonl");
    let rows = lines.iter().take(3).map(|line| serde_json::from_str(line));
    rows.collect::<Result<_, _>>().expect("problems")
}

/// Two of the reference of each problem, as `evaluate grade` reads them; the solutions of some are spoiled.
pub(crate) fn samples(problems: &[Value], is_right: impl Fn(usize) -> bool) -> String {
    let row = |index: usize, problem: &Value| {
        let reference = problem["reference"].as_str().expect("a reference");
        let text = if is_right(index) { reference } else { "pass" };
        json!({"task_id": problem["problem_id"], "completion": text}).to_string()
    };
    let rows = problems
        .iter()
        .enumerate()
        .flat_map(|(index, problem)| [row(index, problem), row(index, problem)]);
    rows.collect::<Vec<_>>().join("\n")
}

fn external(place: &Place, folder: &str, own: &[&str]) -> Ended {
    let folder = format!("--folder=external/{folder}");
    let common = ["external", "--data=d", "--recipe=tiny.yaml", &folder];
    place.run("here", "evaluate", &[&common, own].concat())
}

fn json_of(place: &Place, kind: &str, name: &str, file: &str) -> Value {
    let lines = place.file("here", kind, name, file);
    serde_json::from_str(&lines.concat()).expect("JSON")
}

/// Adds a model that asks a program.
fn add_program(place: &Place, name: &str, script: &str) {
    let path = place.write(&format!("external/{name}/infer"), script);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, executable).expect("a program");
}

#[test]
fn a_model_from_outside_stands_beside_the_versions_and_wins_nothing() {
    let place = Place::new();
    place.chain("here", beginning());
    let problems = problems(&place, "here");
    place.write("external/big/samples.jsonl", &samples(&problems, |_| true));

    let dry = external(&place, "big", &["--dry-run"]).expect(0);
    assert!(
        dry.stdout.contains("big on the validation split"),
        "{}",
        dry.stdout
    );
    external(&place, "big", &["--name=big"]).expect(0);
    let score = json_of(&place, "scores", "big", "eval_score.json");
    assert_eq!(score["latency_ms"], Value::Null);
    let metrics = score["metrics"].as_array().expect("metrics");
    let metric = |name: &str| {
        let found = metrics.iter().find(|metric| metric["name"] == name);
        found.and_then(|metric| metric["value"].as_f64())
    };
    assert_eq!(metric("pass_at_1"), Some(1.0));
    assert_eq!(metric("strict_pass_at_1"), Some(1.0));
    assert_eq!((metric("mean_tokens"), metric("ce_head_1")), (None, None));
    let summary = json_of(&place, "scores", "big", "summary.json");
    assert_eq!(
        (
            &summary["version_id"],
            &summary["algo"],
            &summary["parent"],
            &summary["seed"]
        ),
        (
            &"big".into(),
            &"external".into(),
            &Value::Null,
            &Value::Null
        )
    );
    assert_eq!(summary["checkpoint"], Value::Null);
    assert!(
        summary["protocol"]["num_samples"] == "2" && summary["protocol"]["temperature"].is_null()
    );
    // The same programs again are done, whatever the order of their rows.
    let turned = samples(&problems, |_| true)
        .lines()
        .rev()
        .collect::<Vec<_>>()
        .join("\n");
    place.write("external/big/samples.jsonl", &turned);
    external(&place, "big", &[])
        .expect(0)
        .says(&["already done"]);
    // Others are others.
    place.write(
        "external/half/samples.jsonl",
        &samples(&problems, |index| index == 0),
    );
    external(&place, "half", &["--name=half"]).expect(0);

    // Beside a version.
    let step = |job: &str, arguments: &[&str]| {
        place
            .run("here", job, &[arguments, &["--recipe=tiny.yaml"]].concat())
            .expect(0)
    };
    step("train-stage2", &["--data=d", "--base=base", "--name=v001"]);
    step(
        "evaluate",
        &["--data=d", "--checkpoint=v001", "--name=v001"],
    );
    step("evaluate", &["--data=d", "--base=base", "--name=untrained"]);
    let board = [
        "--scores=untrained,v001,big,half",
        "--report-dir=report",
        "--name=b",
    ];
    step("build-leaderboard", &board).says(&["not trained here, for comparison only: big, half"]);
    let board = json_of(&place, "leaderboard", "b", "leaderboard.json");
    let rows = board["rows"].as_array().expect("rows");
    assert_eq!(
        (&rows[0]["version_id"], &rows[0]["rank"]),
        (&"big".into(), &1.into())
    );
    for row in rows.iter().filter(|row| row["algo"] == "external") {
        assert!(row["parent"].is_null() && row["seeds"] == json!([]));
        assert!(row["runs"][0]["checkpoint"].is_null() && row["latency_ms"].is_null());
    }
    let v001 = rows
        .iter()
        .find(|row| row["version_id"] == "v001")
        .expect("v001");
    assert_eq!(v001["against_leader"]["other"], "big");
    assert!(v001["against_leader"]["p_holm"].is_number());
    let end = place
        .file("here", "leaderboard", "b", "final-analysis.md")
        .join("\n");
    assert!(end.contains("\n## Models from outside\n"), "{end}");
    assert!(end.contains("v001 has the highest pass_at_1"), "{end}");
    let winner = place
        .run("here", "build-leaderboard", &["winner", "--leaderboard=b"])
        .expect(0);
    assert_eq!(winner.stdout.trim(), "v001");
    let promote = [
        "promote",
        "--leaderboard=b",
        "--version=big",
        "--to=staging",
        "--name=d",
    ];
    place
        .run("here", "build-leaderboard", &promote)
        .expect(77)
        .says(&["it is trained and ranked"]);
    // The site reads it from the store: no checkpoint is asked for.
    place
        .run("here", "build-site", &["--leaderboard=b", "--out=site"])
        .expect(0);
    let read = |page: &str| std::fs::read_to_string(place.path("site").join(page)).expect("a page");
    assert!(read("index.html").contains("big, a model from outside, leads with"));
    assert!(read("v/big/index.html").contains("comes from outside and has no lineage here"));
}

/// A machine without the folder, such as a container, judges the same programs from the store.
#[test]
fn a_model_that_was_pushed_is_judged_as_its_folder_is() {
    let place = Place::new();
    place.chain("here", beginning());
    let problems = problems(&place, "here");
    let push = |name: &str, file: &str, text: &str| {
        let path = place.write(&format!("external/{name}/{file}"), text);
        let folder = path.parent().expect("a folder").display().to_string();
        let folder = format!("--folder={folder}");
        let name = format!("--name={name}");
        let push = ["push", "--kind=raw-data", &folder, &name];
        place.run("here", "sync-storage", &push).expect(0);
    };
    let stored = |own: &[&str]| {
        let common = ["external", "--data=d", "--recipe=tiny.yaml"];
        place.run("here", "evaluate", &[&common, own].concat())
    };
    let rows = samples(&problems, |index| index != 1);
    push("half", "samples.jsonl", &rows);
    external(&place, "half", &["--name=from-folder"]).expect(0);
    let dry = stored(&["--stored=half", "--dry-run"]).expect(0);
    assert!(
        dry.stdout.contains("half on the validation split"),
        "{}",
        dry.stdout
    );
    stored(&["--stored=half", "--name=from-store"]).expect(0);
    let of = |name: &str, file: &str| json_of(&place, "scores", name, file);
    for key in ["version_id", "algo", "protocol", "num_problems"] {
        let (folder, store) = (
            &of("from-folder", "summary.json")[key],
            &of("from-store", "summary.json")[key],
        );
        assert_eq!(folder, store, "{key}");
    }
    assert_eq!(
        place.texts("here", "from-folder"),
        place.texts("here", "from-store")
    );
    assert_eq!(
        of("from-store", "eval_score.json")["metrics"],
        of("from-folder", "eval_score.json")["metrics"]
    );
    // What was judged is an input, so it is never collected beside its scores.
    let lineage = place.run("here", "wmtp-store", &["lineage", "from-store"]);
    let lineage = lineage.expect(0);
    assert!(
        lineage.stdout.contains("model: raw-data-"),
        "{}",
        lineage.stdout
    );

    push("asks", "infer", "#!/bin/sh\ntouch ran\n");
    stored(&["--stored=asks"]).expect(65).says(&[
        "asks in the store (raw-data-",
        "holds no samples.jsonl",
        "hint: programs of a model are not run from the store",
    ]);
    stored(&["--stored=nobody"])
        .expect(65)
        .says(&["nobody", "the names of raw-data artifacts are asks, half"]);
    stored(&["--stored=v001"])
        .expect(2)
        .says(&["its name is that of a version trained here"]);
    stored(&[])
        .expect(2)
        .says(&["<--folder <DIR>|--stored <NAME>>"]);
    stored(&["--stored=half", "--folder=external/half"])
        .expect(2)
        .says(&["cannot be used with"]);
}

#[test]
fn a_program_is_asked_once_and_sees_neither_store_nor_settings() {
    let place = Place::new();
    place.chain("here", beginning());
    let problems = problems(&place, "here");
    add_program(&place, "asked", INFER);
    let references: serde_json::Map<String, Value> = problems
        .iter()
        .map(|problem| {
            let id = problem["problem_id"].as_str().expect("an id").to_owned();
            (id, problem["reference"].clone())
        })
        .collect();
    place.write(
        "external/asked/references.json",
        &json!(references).to_string(),
    );
    // Killed when all is judged and nothing published: what was told is kept, and nobody is asked again.
    let common = [
        "external",
        "--data=d",
        "--recipe=tiny.yaml",
        "--folder=external/asked",
    ];
    let mut killed = place.job("here", "evaluate", &common);
    killed.env("WMTP_FAULT_POINT", "publish:before-blobs");
    assert!(!killed.status().expect("the job starts").success());
    external(&place, "asked", &["--name=asked"])
        .expect(0)
        .says(&["an earlier attempt has asked the model"]);
    external(&place, "asked", &[])
        .expect(0)
        .says(&["already done"]);
    let times = std::fs::read_to_string(place.path("asked")).expect("what it left");
    assert_eq!(times, "once\n");
    let score = json_of(&place, "scores", "asked", "eval_score.json");
    let metrics = score["metrics"].as_array().expect("metrics");
    for (name, value) in [
        ("pass_at_1", 1.0),
        ("mean_tokens", 9.0),
        ("finished_share", 1.0),
    ] {
        let wanted =
            json!({"name": name, "value": value, "higher_is_better": name != "mean_tokens"});
        assert!(metrics.contains(&wanted), "{name}");
    }
    // A look at the test set is registered as that of every model is.
    let dry = external(
        &place,
        "asked",
        &["--set=evaluation.split=test", "--dry-run"],
    )
    .expect(0);
    assert!(
        dry.stdout.contains("first look of asked at this test set"),
        "{}",
        dry.stdout
    );

    // What goes wrong with it.
    add_program(
        &place,
        "broken",
        "#!/bin/sh\necho no weights here >&2\nexit 9\n",
    );
    external(&place, "broken", &[]).expect(65).says(&[
        "external/broken/infer",
        "exit status: 9",
        "no weights here",
    ]);
    add_program(&place, "silent", "#!/bin/sh\nsleep 600\n");
    external(&place, "silent", &["--infer-secs=1"])
        .expect(69)
        .says(&[
            "took longer than 1 s",
            "hint: give it more time with --infer-secs",
        ]);
    add_program(&place, "chatty", "#!/bin/sh\necho Here you are:\n");
    external(&place, "chatty", &[]).expect(65).says(&[
        "what ",
        "external/chatty/infer wrote",
        "line 1: ",
    ]);
}

#[test]
fn what_is_no_model_from_outside_is_refused_with_what_to_do() {
    let place = Place::new();
    place.chain("here", beginning());
    let problems = problems(&place, "here");
    let right = samples(&problems, |_| true);
    let refused = |name: &str, rows: &str, code: i32, says: &[&str]| {
        place.write(&format!("external/{name}/samples.jsonl"), rows);
        let ended = external(&place, name, &[]).expect(code).says(says);
        assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
    };
    let unknown = format!(
        "{right}\n{}",
        json!({"task_id": "other/1", "solution": "x"})
    );
    let says = ["samples.jsonl, line 7: the validation split has no task \"other/1\""];
    refused("unknown", &unknown, 65, &says);
    let short: Vec<&str> = right.lines().skip(1).collect();
    let says = [
        "1 of 3 tasks have too few samples",
        "1 of 2",
        "evaluation.num_samples is 2",
    ];
    refused("short", &short.join("\n"), 65, &says);
    let missing: Vec<&str> = right.lines().skip(2).collect();
    refused(
        "missing",
        &missing.join("\n"),
        65,
        &["1 of 3 tasks of the validation split have no sample"],
    );
    let many = format!("{right}\n{right}");
    refused("many", &many, 65, &["line 7: ", "has more than 2 samples"]);
    refused(
        "v007",
        &right,
        2,
        &["its name is that of a version trained here"],
    );
    let cut = &right[..right.len() - 4];
    place.write("external/cut/samples.jsonl", cut);
    external(&place, "cut", &[])
        .expect(65)
        .says(&["samples.jsonl, line 6: "]);
    std::fs::create_dir_all(place.path("external/empty")).expect("a folder");
    external(&place, "empty", &[]).expect(65).says(&[
        "external/empty holds neither samples.jsonl nor a program infer",
        "hint: ",
    ]);
    place.write("external/plain/infer", "print(1)\n");
    external(&place, "plain", &[])
        .expect(65)
        .says(&["is not executable", "chmod +x"]);
    external(&place, "nowhere", &[])
        .expect(65)
        .says(&["external/nowhere is no folder"]);
}
