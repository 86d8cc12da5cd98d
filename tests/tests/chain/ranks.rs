//! A training whose steps several processes share.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::{Step, beginning, training};
use crate::under_way::{Started, signal};

/// Two processes, for each of which there is a micro-batch in every step.
const TWO_RANKS: [&str; 2] = ["--ranks=2", "--set=optim.micro_batch_sequences=2"];

const POLICY: [&str; 3] = ["--data=d", "--base=base", "--recipe=tiny.yaml"];

/// Long enough to be met in the middle.
const LONG: &str = "--set=optim.epochs=400";

fn arguments<'a>(common: &[&'a str], own: &[&'a str]) -> Vec<&'a str> {
    [common, own].concat()
}

/// The losses of every step of a stored checkpoint.
fn losses(place: &Place, prefix: &str, name: &str) -> Vec<f64> {
    let lines = place.file(prefix, "checkpoint", name, "metrics.jsonl");
    let loss = |line: &String| {
        let line: Value = serde_json::from_str(line).expect("a line of metrics");
        line["train_loss"].as_f64().expect("a loss")
    };
    lines.iter().map(loss).collect()
}

/// The id of the checkpoint that a job ended with.
fn checkpoint(ended: &Ended) -> String {
    ended.result()["outputs"]["checkpoint"]
        .as_str()
        .expect("a checkpoint")
        .to_owned()
}

/// The processes that another started and that still run.
fn children(of: u32) -> Vec<u32> {
    let parent = |status: &str| -> Option<u32> {
        let line = status.lines().find(|line| line.starts_with("PPid:"))?;
        line["PPid:".len()..].trim().parse().ok()
    };
    let processes = std::fs::read_dir("/proc").expect("the list of processes");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        // It may have ended meanwhile.
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        parent(&status) == Some(of)
    })
    .collect()
}

#[test]
fn two_ranks_train_what_one_trains() {
    let place = Place::new();
    place.chain("here", beginning());
    for Step { job, arguments } in training() {
        let given = [&arguments[..], &["--set=optim.micro_batch_sequences=2"]].concat();
        place.run("here", job, &given).expect(0);
        // The same names, so that what needs stage 1 takes that of two ranks.
        let given = [&given[..], &["--ranks=2"]].concat();
        let made = place.run("here", job, &given).expect(0);
        assert!(made.stderr.contains(r#""ranks":2"#), "{}", made.stderr);
        place
            .run("here", job, &given)
            .expect(0)
            .says(&["already done"]);
    }
    for name in ["v001", "v002", "v003"] {
        let two = losses(&place, "here", name);
        let own = [
            POLICY.as_slice(),
            &["--name=one", "--set=optim.micro_batch_sequences=2"],
        ];
        if name == "v001" {
            place.run("here", "train-stage2", &own.concat()).expect(0);
            let one = losses(&place, "here", "one");
            assert_eq!(one.len(), two.len());
            for (one, two) in one.iter().zip(&two) {
                assert!((one / two - 1.0).abs() < 1e-4, "{one} and {two}");
            }
        }
        assert!(two.iter().all(|loss| loss.is_finite()), "{name}: {two:?}");
    }
}

/// The data of the last event of one type that a job told.
fn event(stderr: &str, kind: &str) -> Value {
    let lines = stderr.lines().rev();
    let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = events.find(|event| event["type"] == kind);
    event.unwrap_or_else(|| panic!("no event {kind}: {stderr}"))["data"].clone()
}

#[test]
fn what_a_training_takes_is_recorded_and_decides_nothing() {
    let place = Place::new();
    place.chain("here", beginning());
    let given = arguments(&POLICY, &TWO_RANKS);
    let price = ["--hour-price=3.6 USD", "--hour-price-source=a list"];
    let watts = ["--watts=100", "--watts-source=a meter"];
    let priced = [&given[..], &price, &watts].concat();
    let made = place.run("here", "train-stage2", &priced).expect(0);
    let usage = event(&made.stderr, "usage");
    let of = |pointer: &str| {
        let value = usage.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no {pointer}: {usage}"))
    };
    assert!((of("/cost/amount") - of("/wall_secs") / 1000.0).abs() < 1e-9);
    assert!((of("/device/ranks") - 2.0).abs() < 1e-9);
    assert_eq!(usage["device"]["place"], "cpu");
    assert_eq!(usage["left_out"], serde_json::json!([]));
    for pointer in [
        "/cpu_secs",
        "/peak_memory_bytes",
        "/input_bytes",
        "/output_bytes",
        "/tokens",
        "/energy/joules",
    ] {
        assert!(of(pointer) > 0.0, "{pointer}: {usage}");
    }

    // The result of the run holds the same record.
    let results = place.data_files("result.json").into_iter().map(|path| {
        let stored = std::fs::read_to_string(path).expect("a record and its body");
        let body = stored.lines().last().expect("a line").to_owned();
        serde_json::from_str::<Value>(&body).expect("a result")
    });
    let results: Vec<Value> = results
        .map(|result| result["summary"]["usage"].clone())
        .collect();
    assert!(results.contains(&usage), "{usage} in {results:?}");
    assert!(results.iter().all(|usage| usage["wall_secs"].is_number()));

    // Another price is no other run.
    place
        .run("here", "train-stage2", &given)
        .expect(0)
        .says(&["already done"]);
}

#[test]
fn ranks_without_a_micro_batch_are_refused() {
    let place = Place::new();
    place.chain("here", beginning());
    let given = arguments(&POLICY, &["--ranks=2"]);
    place.run("here", "train-stage2", &given).expect(2).says(&[
        "2 ranks share the micro-batches of a step, and there are 1",
        "set optim.micro_batch_sequences to 2",
    ]);
    let given = arguments(&POLICY, &["--ranks=0"]);
    place.run("here", "train-stage2", &given).expect(2);
    let mut tool = place.job("here", "wmtp-store", &["fsck"]);
    let refused = Ended::of(tool.env("WMTP_RANK", "1")).expect(2);
    refused.says(&["WMTP_RANK is 1", "give --ranks"]);
}

#[test]
fn several_ranks_stopped_or_killed_end_as_if_nothing_had_happened() {
    let place = Place::new();
    place.chain("calm", beginning());
    place.chain("here", beginning());
    let given = arguments(&POLICY, &[&TWO_RANKS[..], &["--json"]].concat());
    let expected = checkpoint(&place.run("calm", "train-stage2", &given).expect(0));

    // The leader dies, and the other with it.
    let mut job = place.job("here", "train-stage2", &given);
    let killed = job.env("WMTP_FAULT_POINT", "train:step:3").output();
    assert_eq!(killed.expect("the job starts").status.code(), None);
    let again = place.run("here", "train-stage2", &given).expect(0);
    assert!(
        again.stderr.contains("going on from step 2"),
        "{}",
        again.stderr
    );
    assert_eq!(checkpoint(&again), expected);
}

#[test]
fn ranks_without_room_end_between_two_steps_and_go_on_as_if_nothing_had_happened() {
    let place = Place::new();
    place.chain("calm", beginning());
    place.chain("here", beginning());
    // One sequence at a time cannot be halved.
    let own = ["--ranks=2", "--set=optim.micro_batch_sequences=1", "--json"];
    let given = arguments(&POLICY, &own);
    let expected = checkpoint(&place.run("calm", "train-stage2", &given).expect(0));
    let without_room = |fault: &str| {
        let mut job = place.job("here", "train-stage2", &given);
        let failed = Ended::of(job.env("WMTP_FAULT_POINT", fault)).expect(73);
        failed.says(&["an allocator had nothing to give"])
    };

    // Two micro-batches of each rank make a step, two steps a saved state: the fourth step does not begin, and its
    // beginning is saved.
    without_room("train:allocator:7");
    // The validation after the fourth step: what that step lacks is in no saved state.
    without_room("train:inference").says(&["going on from step 3"]);
    let again = place.run("here", "train-stage2", &given).expect(0);
    let again = again.says(&["going on from step 3"]);
    assert_eq!(checkpoint(&again), expected);
}

#[test]
fn a_lost_rank_ends_the_run_for_now_and_a_signal_saves_it() {
    let place = Place::new();
    place.chain("here", beginning());
    let given = arguments(&POLICY, &[&TWO_RANKS[..], &[LONG]].concat());

    let started = Started::at_work(place.job("here", "train-stage2", &given));
    let leader = started.job.id();
    let [other] = children(leader)[..] else {
        panic!("one process beside the leader: {:?}", children(leader));
    };
    signal("KILL", other);
    started.end().expect(69).says(&["rank 1 of 2 is lost"]);

    let started = Started::at_work(place.job("here", "train-stage2", &given));
    let leader = started.job.id();
    let others = children(leader);
    // To all of them, as who stops a whole machine does.
    for process in others.iter().copied().chain([leader]) {
        signal("TERM", process);
    }
    let ended = started.end().expect(143);
    assert!(
        ended.stderr.contains(r#""type":"checkpoint""#),
        "{}",
        ended.stderr
    );
    let asked = Instant::now();
    while others
        .iter()
        .any(|id| Path::new(&format!("/proc/{id}")).exists())
    {
        assert!(
            asked.elapsed() < Duration::from_secs(30),
            "a rank is left behind"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
