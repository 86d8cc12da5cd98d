//! What a score says beside pass@k: looks at the test set, loss beside the reference, what the model has seen, what it took.

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::{beginning, training};

/// A place with a data set, a tuned reference and the checkpoint of v001.
fn trained() -> Place {
    let place = Place::new();
    place.chain("here", beginning());
    let is_wanted = |arguments: &[&str]| {
        arguments.contains(&"reference") || arguments.ends_with(&["v001", "--recipe", "tiny.yaml"])
    };
    let wanted = training().into_iter();
    place.chain(
        "here",
        wanted.filter(|step| is_wanted(&step.arguments)).collect(),
    );
    place
}

fn evaluate(place: &Place, own: &[&str]) -> Ended {
    let common = ["--data=d", "--recipe=tiny.yaml"];
    place.run("here", "evaluate", &[own, &common].concat())
}

fn json(place: &Place, name: &str, file: &str) -> Value {
    let lines = place.file("here", "scores", name, file);
    serde_json::from_str(&lines.concat()).expect("JSON")
}

fn metric(place: &Place, name: &str, metric: &str) -> Option<f64> {
    let score = json(place, name, "eval_score.json");
    let metrics = score["metrics"].as_array().expect("metrics");
    metrics.iter().find(|one| one["name"] == metric)?["value"].as_f64()
}

#[test]
fn a_second_look_at_the_test_set_is_recorded_and_the_same_look_again_is_none() {
    let place = trained();
    let test = ["--checkpoint=v001", "--set=evaluation.split=test"];
    let look = |own: &[&str]| evaluate(&place, &[&test, own].concat());
    let dry = look(&["--dry-run"]).expect(0);
    assert!(
        dry.stdout
            .contains("first look of v001-s42 at this test set"),
        "{}",
        dry.stdout
    );
    // Killed when it has begun to generate, it has looked; begun again, it is the same look.
    let mut killed = place.job(
        "here",
        "evaluate",
        &["--data=d", "--recipe=tiny.yaml", test[0], test[1]],
    );
    killed.env("WMTP_FAULT_POINT", "evaluate:text:2");
    assert!(!killed.status().expect("the job starts").success());
    look(&["--name=first"])
        .expect(0)
        .says(&["first look of v001-s42"]);
    look(&["--name=first"]).expect(0).says(&["already done"]);
    assert_eq!(
        json(&place, "first", "summary.json")["test_touch"],
        serde_json::json!({"number": 1, "earlier": []})
    );
    assert_eq!(metric(&place, "first", "test_touch"), Some(1.0));

    // Other k are read off the same programs, and are a second look all the same.
    let dry = look(&["--set=evaluation.ks=[1]", "--dry-run"]).expect(0);
    assert!(
        dry.stdout
            .contains("touch 2 under this protocol, and 0 under others")
    );
    look(&["--name=second", "--set=evaluation.ks=[1]"])
        .expect(0)
        .says(&[
            "\"warning\"",
            "no first look of v001-s42",
            "touch 2 under this protocol",
        ]);
    let touch = json(&place, "second", "summary.json")["test_touch"].clone();
    assert_eq!(touch["number"], 2);
    assert_eq!(touch["earlier"][0]["same_protocol"], true);
    let first = touch["earlier"][0]["run_id"]
        .as_str()
        .expect("a run")
        .to_owned();
    look(&[]).expect(0).says(&[&format!("(run {first})")]);
    assert_eq!(metric(&place, "second", "test_touch"), Some(2.0));

    look(&["--name=hot", "--set=evaluation.temperature=1"]).expect(0);
    let touch = json(&place, "hot", "summary.json")["test_touch"].clone();
    assert_eq!(
        (&touch["number"], touch["earlier"].as_array().map(Vec::len)),
        (&1.into(), Some(2))
    );
    assert_eq!(touch["earlier"][1]["same_protocol"], false);

    // Another model's look and validation are other matters.
    evaluate(&place, &["--base=base", test[1], "--name=untrained"]).expect(0);
    assert_eq!(
        json(&place, "untrained", "summary.json")["test_touch"]["number"],
        1
    );
    evaluate(&place, &["--checkpoint=v001", "--name=validation"]).expect(0);
    assert_eq!(
        json(&place, "validation", "summary.json")["test_touch"],
        Value::Null
    );
    assert_eq!(metric(&place, "validation", "test_touch"), None);

    // The table of the final report says so.
    let board = |scores: &str| {
        let arguments = ["--recipe=tiny.yaml", scores];
        place.run("here", "build-leaderboard", &arguments).expect(0)
    };
    board("--scores=untrained,second").says(&["v001 seed 42 is no first look at the test set"]);
    let first = board("--scores=untrained,first");
    assert!(!first.stderr.contains("no first look"), "{}", first.stderr);
}

#[test]
fn prompts_of_a_file_are_completed_as_evaluation_does_and_a_killed_run_goes_on() {
    let place = trained();
    evaluate(&place, &["--checkpoint=v001", "--name=scored"]).expect(0);
    let greedy: Vec<Value> = place
        .texts("here", "scored")
        .into_iter()
        .filter(|sample| sample["sample"].is_null())
        .collect();
    let problems = place.file("here", "processed-data", "d", "problems/validation.jsonl");
    let prompts: Vec<String> = problems
        .iter()
        .map(|line| {
            let problem: Value = serde_json::from_str(line).expect("a problem");
            serde_json::json!({"id": problem["problem_id"], "prompt": problem["prompt"]})
                .to_string()
        })
        .collect();
    assert!(greedy.len() > 1 && greedy.len() <= prompts.len());
    let file = |name: &str| place.path(name).to_str().expect("a plain name").to_owned();
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(place.path(name)).expect("the file");
        let rows = text.lines().map(serde_json::from_str);
        rows.collect::<Result<_, _>>().expect("rows")
    };
    std::fs::write(file("prompts.jsonl"), prompts.join("\n")).expect("a file");
    let complete = |out: &str, own: &[&str]| {
        let (prompts, out) = (file("prompts.jsonl"), file(out));
        let common = [
            "complete",
            "--prompts",
            &prompts,
            "--out",
            &out,
            "--max-new-tokens=12",
        ];
        place.run("here", "evaluate", &[&common, own].concat())
    };
    complete("greedy.jsonl", &["--checkpoint=v001"]).expect(0);
    let done = lines("greedy.jsonl");
    assert_eq!(done.len(), prompts.len());
    for (row, sample) in done.iter().zip(&greedy) {
        assert_eq!(row["id"], sample["problem_id"]);
        assert_eq!(row["completions"][0]["text"], sample["raw"]);
        assert_eq!(row["completions"][0]["program"], sample["program"]);
    }

    // What a killed run left is taken up, with these settings and no others.
    let drawn = ["--checkpoint=v001", "--num-samples=2", "--temperature=1"];
    complete("drawn.jsonl", &drawn).expect(0);
    let whole = std::fs::read_to_string(file("drawn.jsonl")).expect("the file");
    let torn: String = whole.chars().take(whole.len() / 2).collect();
    std::fs::write(file("again.jsonl.part"), torn).expect("a file");
    let again = complete("again.jsonl", &drawn).expect(0);
    again.says(&["rows already; going on behind them"]);
    let again = std::fs::read_to_string(file("again.jsonl")).expect("the file");
    assert_eq!(again, whole);
    std::fs::write(file("other.jsonl.part"), &whole).expect("a file");
    complete("other.jsonl", &["--checkpoint=v001"])
        .expect(65)
        .says(&["other.jsonl.part, line 1: is of another prompt, model or setting"]);

    std::fs::write(
        file("prompts.jsonl"),
        "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n",
    )
    .expect("a file");
    complete("none.jsonl", &["--base=base"])
        .expect(65)
        .says(&["prompts.jsonl, line 2: found neither `prompt` nor `instruction`"]);
    assert!(!place.path("none.jsonl.part").exists());
}

#[test]
fn runs_are_listed_by_how_they_stand_and_their_logs_are_searched() {
    let place = trained();
    let mut killed = place.job(
        "here",
        "evaluate",
        &["--data=d", "--recipe=tiny.yaml", "--checkpoint=v001"],
    );
    killed.env("WMTP_FAULT_POINT", "evaluate:text:2");
    assert!(!killed.status().expect("the job starts").success());
    let tool = |arguments: &[&str]| place.run("here", "wmtp-store", arguments).expect(0).stdout;
    let found = |arguments: &[&str]| -> Value {
        serde_json::from_str(&tool(&[arguments, &["--json"]].concat())).expect("JSON")
    };
    let all = found(&["runs"]);
    let of_job = found(&["runs", "--job", "evaluate", "--state", "running,lost"]);
    assert_eq!(of_job["runs"].as_array().map(Vec::len), Some(1));
    assert_eq!(of_job["total"], all["total"]);
    let trainings = found(&["runs", "--job=train-stage2", "--state=completed"]);
    let run = trainings["runs"][0]["run_id"].as_str().expect("a run");
    assert!(trainings["runs"][0]["outputs"].is_object());
    let lines = |arguments: &[&str]| {
        let lines = found(&[&["log", &run[..run.len() - 6]], arguments].concat())["lines"].clone();
        lines.as_array().expect("lines").clone()
    };
    assert!(!lines(&[]).is_empty());
    let started = lines(&["--events", "started"]);
    assert_eq!(started.len(), 1);
    assert_eq!(started[0]["type"], "started");
    assert_eq!(lines(&["--events", "--last", "2"]).len(), 2);
    assert!(lines(&["--contains", "no line says this"]).is_empty());
    assert!(tool(&["log", run, "--events", "completed"]).contains("checkpoint-"));
    let model = |name: &str| found(&["model", name])["capabilities"].clone();
    let (base, trained) = (model("base-model/base"), model("checkpoint/v001"));
    assert_eq!(base["heads"], 4);
    assert_eq!(base["horizon"], 4);
    assert_eq!(base["speculative_decoding"], true);
    assert_eq!(base["dtype"], "float32");
    assert_eq!(base["context"], Value::Null);
    for same in ["heads", "vocab", "dtype"] {
        assert_eq!(trained[same], base[same], "{same}");
    }
    assert!(trained["context"].as_u64().is_some_and(|tokens| tokens > 0));
    place
        .run("here", "wmtp-store", &["log", "nothing"])
        .expect(65)
        .says(&["wmtp-store runs"]);
}

#[test]
fn losses_stand_beside_the_references_and_seen_problems_are_flagged() {
    let place = trained();
    evaluate(
        &place,
        &[
            "--checkpoint=v001",
            "--reference-ce=v",
            "--name=scored",
            "--hour-price=3.6 USD",
            "--hour-price-source=the list of 2026-03-31",
            "--watts=100",
            "--watts-source=a meter",
        ],
    )
    .expect(0);
    let of = |name: &str| metric(&place, "scored", name).unwrap_or_else(|| panic!("no {name}"));
    let reference = of("reference_ce");
    assert!(reference > 0.0);
    assert!((of("ce_head_1") - reference - of("excess_ce_head_1")).abs() < 1e-9);
    let summary = json(&place, "scored", "summary.json");
    let loss = &summary["reference_loss"];
    assert!(
        loss["reference"]
            .as_str()
            .is_some_and(|id| id.starts_with("reference-ce-"))
    );
    assert_eq!(loss["excess_nats"].as_array().map(Vec::len), Some(4));
    assert_eq!(
        loss["excess_nats"][3].as_f64(),
        Some(of("excess_ce_head_4"))
    );
    assert!(
        summary["trained_on"]
            .as_str()
            .is_some_and(|id| id.starts_with("processed-data-"))
    );
    // prepare-data leaves out the statements that evaluation has. One of the three problems is solved by a program that also
    // solves a training problem.
    assert_eq!(summary["contaminated"], serde_json::json!({"program": 1}));
    assert!((of("contaminated_problems") - 1.0).abs() < 1e-12);
    let with_flag = |name: &str, file: &str, flag: &str| {
        let flag = format!("\"contamination\":\"{flag}\"");
        let lines = place.file("here", "scores", name, file);
        lines.iter().filter(|line| line.contains(&flag)).count()
    };
    assert_eq!(with_flag("scored", "problems.jsonl", "program"), 1);
    // Its greedy and two drawn samples.
    assert_eq!(with_flag("scored", "samples.jsonl", "program"), 3);
    let counts: Vec<Value> = place
        .file("here", "scores", "scored", "problems.jsonl")
        .iter()
        .map(|line| serde_json::from_str(line).expect("a count"))
        .collect();
    let clean = counts
        .iter()
        .filter(|count| count["contamination"].is_null());
    let passed: f64 = clean.filter_map(|count| count["num_passed"].as_f64()).sum();
    assert!((of("clean_pass_at_1") - passed / 4.0).abs() < 1e-12);

    let usage = json(&place, "scored", "usage.json");
    let secs = usage["wall_secs"].as_f64().expect("seconds");
    let cost = usage["cost"]["amount"].as_f64().expect("a price");
    assert!(secs > 0.0 && (cost - secs / 1000.0).abs() < 1e-9);
    assert_eq!(usage["cost"]["currency"], "USD");
    // Measured where the machine shows it, else as stated.
    assert!(
        usage["energy"]["joules"]
            .as_f64()
            .is_some_and(|joules| joules > 0.0)
    );
    assert_eq!(usage["left_out"], serde_json::json!([]));

    // Of what it was trained on, it has seen everything.
    evaluate(
        &place,
        &[
            "--checkpoint=v001",
            "--set=evaluation.split=train",
            "--name=seen",
        ],
    )
    .expect(0)
    .says(&["3 of 3 problems hold something of processed-data-"]);
    assert_eq!(with_flag("seen", "problems.jsonl", "statement"), 3);
    assert_eq!(
        metric(&place, "seen", "clean_pass_at_1"),
        None,
        "none is clean"
    );

    // Problems of another data set are held against the rows of the training, too.
    let other = [
        "--recipe=tiny.yaml",
        "--set=data.split_seed=7",
        "--tokenizer=base",
        "--name=other",
    ];
    place.run("here", "prepare-data", &other).expect(0);
    let arguments = [
        "--data=other",
        "--recipe=tiny.yaml",
        "--checkpoint=v001",
        "--name=elsewhere",
    ];
    place.run("here", "evaluate", &arguments).expect(0);
    assert!(metric(&place, "elsewhere", "contaminated_problems").is_some());
    assert_eq!(
        json(&place, "elsewhere", "summary.json")["trained_on"],
        summary["trained_on"]
    );

    // Of an untrained model nothing is claimed.
    evaluate(&place, &["--base=base", "--name=untrained"]).expect(0);
    assert_eq!(metric(&place, "untrained", "contaminated_problems"), None);
    let usage = json(&place, "untrained", "usage.json");
    assert_eq!(usage["cost"], Value::Null);
    let left_out = usage["left_out"].as_array().expect("a list");
    assert!(
        left_out
            .iter()
            .any(|what| what.as_str().is_some_and(|what| what.starts_with("cost: ")))
    );
}
