//! What a score says of the way its texts were generated.

use serde_json::Value;

use crate::place::Place;
use crate::steps::beginning;

fn json(place: &Place, name: &str, file: &str) -> Value {
    let lines = place.file("here", "scores", name, file);
    serde_json::from_str(&lines.concat()).expect("JSON")
}

#[test]
fn a_search_and_a_cut_are_in_the_protocol_and_a_sample_is_timed_as_the_score_says() {
    let place = Place::new();
    place.chain("here", beginning());
    let run = |name: &'static str, settings: &[&str]| {
        let common = [
            "--data=d",
            "--base=base",
            "--recipe=tiny.yaml",
            "--name",
            name,
        ];
        place
            .run("here", "evaluate", &[&common, settings].concat())
            .expect(0);
    };
    run(
        "searched",
        &[
            "--set=evaluation.temperature=0",
            "--set=evaluation.num_samples=1",
            "--set=evaluation.ks=[1]",
            "--set=evaluation.beams=3",
        ],
    );
    run(
        "cut",
        &["--set=evaluation.temperature=1", "--set=evaluation.top_k=1"],
    );
    let protocol = json(&place, "searched", "summary.json")["protocol"].clone();
    assert_eq!(
        [&protocol["beams"], &protocol["length_penalty"]],
        ["3", "1"]
    );
    assert_eq!(protocol["top_k"], Value::Null);
    let protocol = json(&place, "cut", "summary.json")["protocol"].clone();
    assert_eq!(
        [&protocol["top_k"], &protocol["beams"]],
        [&"1".into(), &Value::Null]
    );

    // Of three problems the greedy text and the one that was found; of one token to choose from, the greedy one.
    assert_eq!(place.texts("here", "searched").len(), 6);
    let cut = place.texts("here", "cut");
    let raw = |sample: &Value| sample["raw"].as_str().expect("a text").to_owned();
    for samples in cut.chunks(3) {
        assert_eq!(raw(&samples[1]), raw(&samples[0]));
        assert_eq!(raw(&samples[2]), raw(&samples[0]));
    }

    let latency = json(&place, "cut", "latency.json");
    assert_eq!(latency["num_samples"], 9);
    for kind in ["prefill_ms", "token_ms", "sample_ms"] {
        let at = |percent: &str| latency[kind][percent].as_f64().expect("milliseconds");
        assert!(0.0 < at("p50"), "{kind}: {latency}");
        assert!(
            at("p50") <= at("p90") && at("p90") <= at("p99"),
            "{kind}: {latency}"
        );
    }
    let score = json(&place, "cut", "eval_score.json");
    assert_eq!(score["latency_ms"], latency["sample_ms"]["p50"]);
}
