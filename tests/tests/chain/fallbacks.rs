//! A training run that falls back or stops early says what happened in numbers: on stderr and in the store.

use serde_json::{Value, json};

use trial::Ended;

use crate::place::Place;
use crate::steps::beginning;
use crate::stops::of;

/// Trains a policy while something goes wrong; the data of the events of one type that it told.
fn train(place: &Place, fault: &str, settings: &[&str], event: &str) -> Vec<Value> {
    let arguments = ["--data=d", "--base=base", "--recipe=tiny.yaml"];
    let arguments = [arguments.as_slice(), settings].concat();
    let mut job = place.job("here", "train-stage2", &arguments);
    let stderr = Ended::of(job.env("WMTP_FAULT_POINT", fault))
        .expect(0)
        .stderr;
    let lines = stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["type"] == event)
        .map(|line| line["data"].clone())
        .collect()
}

#[test]
fn every_fallback_is_an_event_with_its_numbers() {
    let place = Place::new();
    place.chain("here", beginning());
    let out_of_memory = train(&place, "train:memory", &["--set=seed=1"], "fallback");
    let [event] = out_of_memory.as_slice() else {
        panic!("one event: {out_of_memory:?}");
    };
    assert_eq!(event["cause"], "out_of_memory");
    assert_eq!(event["step"], 1);
    assert_eq!(event["micro_batch_sequences_before"], 4);
    assert_eq!(event["micro_batch_sequences"], 2);
    assert_eq!(event["available_bytes"], 0);
    assert!(
        event["needed_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 1 << 20)
    );

    let not_finite = train(&place, "train:loss:2", &["--set=seed=2"], "fallback");
    let expected = json!({
        "cause": "not_finite", "step": 2, "in_a_row": 1, "most_in_a_row": 3, "lr_factor": 0.5,
    });
    assert_eq!(not_finite, [expected]);

    let stored: String = place
        .data_files(".jsonl")
        .iter()
        .map(|path| {
            String::from_utf8_lossy(&std::fs::read(path).expect("a data file")).into_owned()
        })
        .collect();
    for cause in ["out_of_memory", "not_finite"] {
        let event = format!(r#""cause":"{cause}""#);
        assert_eq!(stored.matches(&event).count(), 1, "{cause} in the store");
    }
}

#[test]
fn what_uses_up_the_fallbacks_is_told_saved_and_tried_once_more() {
    let place = Place::new();
    place.chain("here", beginning());
    // Every loss from the third step's on is no number.
    let train = || {
        let arguments = [
            "--data=d",
            "--base=base",
            "--recipe=tiny.yaml",
            "--set=seed=3",
            "--set=optim.epochs=3",
        ];
        let mut job = place.job("here", "train-stage2", &arguments);
        job.env("WMTP_FAULT_POINT", "train:loss:3+");
        Ended::of(&mut job)
    };
    let ended = train().expect(78);
    let counts = |ended: &Ended| -> Vec<Value> {
        let told = of(ended, "fallback").into_iter();
        told.map(|data| data["in_a_row"].clone()).collect()
    };
    assert_eq!(counts(&ended), [json!(1), json!(2), json!(3)]);
    let saved = of(&ended, "checkpoint").pop().expect("a saved state");
    assert_eq!(saved["step"], 4);
    let speed = of(&ended, "throughput").pop().expect("how fast it was");
    assert_eq!(speed["steps"], 4);
    assert!(speed["step_secs_p90"].as_f64() >= speed["step_secs_p50"].as_f64());
    let ended = ended.says(&[
        "steps in a row had a loss or gradient that is not finite",
        "lower optim.lr",
    ]);
    assert!(!ended.stderr.contains("not_saved"));

    // Goes on behind the last step that was done, and fails alike.
    let again = train().expect(78);
    assert_eq!(of(&again, "resumed")[0]["step"], 4);
    assert_eq!(counts(&again), [json!(1), json!(2), json!(3)]);
}

#[test]
fn without_rows_to_validate_on_the_last_weights_count_and_an_early_stop_is_refused() {
    let place = Place::new();
    let mut steps = beginning();
    for step in &mut steps {
        step.arguments.push("--set=data.validation_share=0");
    }
    place.chain("here", steps);
    let train = |settings: &[&str]| {
        let arguments = ["--data=d", "--base=base", "--recipe=tiny.yaml"];
        let arguments = [arguments.as_slice(), settings].concat();
        Ended::of(&mut place.job("here", "train-stage2", &arguments))
    };
    let what = "the validation split holds no row to validate on";
    train(&["--set=optim.early_stop_patience=1"])
        .expect(65)
        .says(&[what, "data.validation_share above 0"]);
    train(&[])
        .expect(0)
        .says(&[what, "the weights of the last step count as the best ones"]);
}

#[test]
fn an_early_stop_is_an_event_and_stands_in_the_summary() {
    let place = Place::new();
    place.chain("here", beginning());
    // No loss falls by a hundred nats: the second validation is the first without an improvement.
    let settings = [
        "--set=optim.epochs=2",
        "--set=optim.eval_every_steps=2",
        "--set=optim.early_stop_patience=1",
        "--set=optim.early_stop_min_delta=100",
        "--name=v001",
    ];
    let events = train(&place, "", &settings, "stopped_early");
    let [event] = events.as_slice() else {
        panic!("one event: {events:?}");
    };
    assert_eq!(
        (&event["step"], &event["validations"]),
        (&json!(4), &json!(1))
    );
    assert!(event["total_steps"].as_u64() > Some(4));
    let to = place.path("v001");
    let pull = ["pull", "v001", "--kind", "checkpoint", "--to"];
    let pull = [pull.as_slice(), &[to.to_str().expect("a plain name")]].concat();
    place.run("here", "sync-storage", &pull).expect(0);
    let summary = std::fs::read_to_string(to.join("summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(
        (&summary["stopped_early_at"], &summary["last_step"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(summary["best_step"], event["best_step"]);
}
