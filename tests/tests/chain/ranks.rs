//! A training whose steps several processes share.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::{Ended, Place, ended};
use crate::steps::{Step, beginning, training};

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
    let result: Value = serde_json::from_str(&ended.stdout).expect("the result as JSON");
    result["outputs"]["checkpoint"]
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

fn signal(name: &str, process: u32) {
    let done = Command::new("sh")
        .args(["-c", &format!("kill -{name} {process}")])
        .status();
    assert!(done.expect("a shell").success());
}

/// A job under way and what it has said so far.
struct Started {
    job: Child,
    said: String,
}

impl Started {
    /// Starts a job and waits until it has done a step.
    fn at_work(mut command: Command) -> Self {
        let spawned = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut started = Self {
            job: spawned.expect("the job starts"),
            said: String::new(),
        };
        let stderr = started.job.stderr.as_mut().expect("it is piped");
        let mut lines = BufReader::new(stderr);
        while !started.said.contains(r#""type":"progress""#) {
            let read = lines.read_line(&mut started.said).expect("text");
            assert!(read > 0, "it ended before its first step: {}", started.said);
        }
        started
    }

    fn end(mut self) -> Ended {
        let status = self.job.wait().expect("it ends");
        let mut stdout = String::new();
        let (mut out, mut err) = (self.job.stdout.take(), self.job.stderr.take());
        let pipes = (out.as_mut().expect("piped"), err.as_mut().expect("piped"));
        pipes.0.read_to_string(&mut stdout).expect("text");
        pipes.1.read_to_string(&mut self.said).expect("text");
        Ended {
            code: status.code(),
            stdout,
            stderr: self.said,
        }
    }
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
    let refused = ended(tool.env("WMTP_RANK", "1")).expect(2);
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
        let failed = ended(job.env("WMTP_FAULT_POINT", fault)).expect(73);
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
