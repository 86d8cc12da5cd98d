//! A training run that falls back goes on, and says what happened in numbers: on stderr and in the store.

use serde_json::{Value, json};

use crate::place::{Place, ended};
use crate::steps::beginning;

/// Trains a policy while something goes wrong; the `fallback` events that it told.
fn train(place: &Place, fault: &str, seed: &str, code: i32) -> Vec<Value> {
    let arguments = [
        "--data=d",
        "--base=base",
        "--recipe=tiny.yaml",
        "--set=optim.epochs=0.7",
        seed,
    ];
    let mut job = place.job("here", "train-stage2", &arguments);
    let stderr = ended(job.env("WMTP_FAULT_POINT", fault))
        .expect(code)
        .stderr;
    let lines = stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["type"] == "fallback")
        .map(|line| line["data"].clone())
        .collect()
}

#[test]
fn every_fallback_is_an_event_with_its_numbers() {
    let place = Place::new();
    place.chain("here", beginning());
    let out_of_memory = train(&place, "train:memory", "--set=seed=1", 0);
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

    let not_finite = train(&place, "train:loss:2", "--set=seed=2", 0);
    let expected = json!({
        "cause": "not_finite", "step": 2, "in_a_row": 1, "most_in_a_row": 3, "lr_factor": 0.5,
    });
    assert_eq!(not_finite, [expected]);

    let stored: String = place
        .segments(".jsonl")
        .iter()
        .map(|path| String::from_utf8_lossy(&std::fs::read(path).expect("a segment")).into_owned())
        .collect();
    for cause in ["out_of_memory", "not_finite"] {
        let event = format!(r#""cause":"{cause}""#);
        assert_eq!(stored.matches(&event).count(), 1, "{cause} in the store");
    }
}
