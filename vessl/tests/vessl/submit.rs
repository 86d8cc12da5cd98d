//! Chains on the double: order, retries, failures, resuming.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::Child;

use serde_json::Value;
use trial::Ended;

use crate::place::{Place, home};

/// Looks at once and tries again at once.
const QUICK: [&str; 4] = ["--every", "0.02", "--pause", "0.01"];

/// Steps of the experiment `verifiable`, in the order of the chain.
const STEPS: [&str; 10] = [
    "data-set",
    "policy",
    "value-model",
    "evaluate-base",
    "train-v001-s42",
    "evaluate-v001-s42",
    "train-v002-s42",
    "evaluate-v002-s42",
    "leaderboard",
    "site",
];

impl Place {
    fn submit(&self, more: &[&str]) -> Ended {
        let arguments = [&QUICK[..], &["--json"], more].concat();
        self.with("submit", "verifiable", "profile.yaml", &arguments)
    }

    /// What the runs of a step will end with.
    fn outcomes(&self, step: &str, lines: &str) {
        self.write(&format!("outcomes/wmtp-verifiable-{step}"), lines);
    }

    /// Steps in the order in which the double took them.
    fn created(&self) -> Vec<String> {
        self.created_of("verifiable")
    }

    fn created_of(&self, experiment: &str) -> Vec<String> {
        let before = format!(" wmtp-{experiment}-");
        self.read("created")
            .lines()
            .map(|line| line.split_once(&before).expect("run and name").1.to_owned())
            .collect()
    }

    /// Starts to submit.
    fn start(&self, experiment: &str, more: &[&str]) -> Child {
        let inputs = ["--experiment", experiment, "--profile", "profile.yaml"];
        self.command(&[&["submit"], &inputs[..], &QUICK, more].concat())
            .spawn()
            .expect("the program starts")
    }

    /// Waits while a child submits and looks until `holds`.
    #[track_caller]
    fn until(&self, child: &mut Child, holds: impl Fn() -> bool) {
        while !holds() {
            let ended = child.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended: {}", self.read("created"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Starts to submit and waits until stderr says `words`.
    fn submitting(&self, words: &str) -> Child {
        let mut child = self.start(&verifiable(), &[]);
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(
                stderr.read_line(&mut line).expect("a line"),
                0,
                "it ended before {words:?}"
            );
        }
        // Somebody must read on, or the program would lose its stderr.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        child
    }
}

fn verifiable() -> String {
    let path = home().join("experiments/verifiable.yaml");
    path.display().to_string()
}

fn stand<'a>(report: &'a Value, step: &str) -> &'a str {
    report["steps"][step]["stand"]
        .as_str()
        .expect("every step has a stand")
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
}

/// What is submitted again behind a value model that was not made.
const FROM_THE_VALUE_MODEL_ON: [&str; 5] = [
    "value-model",
    "train-v002-s42",
    "evaluate-v002-s42",
    "leaderboard",
    "site",
];

#[test]
fn every_step_is_submitted_after_what_it_waits_for_and_only_once() {
    let place = Place::new();
    let ended = place.submit(&[]).expect(0);
    assert_eq!(place.created(), STEPS);
    assert!(
        STEPS
            .iter()
            .all(|step| stand(&report(&ended), step) == "done")
    );
    let first = place
        .read("calls")
        .lines()
        .next()
        .map(str::to_owned)
        .expect("a call");
    assert!(first.ends_with("opt-out true"), "{first}");
    assert!(
        !first.contains(&format!("in {}", place.path("").display())),
        "outside the working folder: {first}"
    );
    place.submit(&[]).expect(0).says(&["data-set: done before"]);
    assert_eq!(place.created().len(), STEPS.len());
}

#[test]
fn steps_that_wait_for_nothing_more_run_beside_each_other() {
    let place = Place::new();
    place.outcomes("value-model", "-\n");
    let mut child = place.submitting("value-model: submitted");
    // One at a time: while the value model is looked at again and again, nothing else is submitted.
    place.until(&mut child, || {
        place.read("calls").matches("run read 102").count() >= 3
    });
    assert_eq!(place.created(), STEPS[..3]);
    terminate(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(143));
    let mut child = place.start(&verifiable(), &["--at-once", "2"]);
    place.until(&mut child, || {
        place.created().contains(&"evaluate-v001-s42".to_owned())
    });
    assert!(!place.created().contains(&"train-v002-s42".to_owned()));
    place.write("runs/102", "0");
    assert_eq!(
        Ended::from(child.wait_with_output().expect("an end")).code,
        Some(0)
    );
    assert_eq!(place.created().len(), STEPS.len());
}

/// One other run at a time, and three evaluations beside it; a call that was stopped goes on with the same runs.
#[test]
fn shards_run_beside_each_other_as_many_as_was_asked() {
    let place = Place::new();
    let text = std::fs::read_to_string(home().join("experiments/sharded.yaml"));
    let recipes = home().join("../storage").display().to_string();
    let text = text
        .expect("the experiment")
        .replace("../../storage", &recipes);
    place.write("three.yaml", &text.replace("at_once: 4", "at_once: 3"));
    for step in ["base-1-of-2", "base-2-of-2", "v001-s42-1-of-2"] {
        place.write(&format!("outcomes/wmtp-sharded-evaluate-{step}"), "-\n");
    }
    let begun = [
        "data-set",
        "policy",
        "evaluate-base-1-of-2",
        "evaluate-base-2-of-2",
        "train-v001-s42",
        "evaluate-v001-s42-1-of-2",
    ];
    let mut child = place.start("three.yaml", &[]);
    place.until(&mut child, || {
        place.read("calls").matches("run read 105").count() >= 3
    });
    assert_eq!(place.created_of("sharded"), begun);
    terminate(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(143));
    // One shard is lost; what puts the shards together does not run without it, and the other model's does.
    place.write("runs/102", "65");
    for run in [103, 105] {
        place.write(&format!("runs/{run}"), "0");
    }
    let again = |code| {
        let child = place.start("three.yaml", &["--json"]);
        Ended::from(child.wait_with_output().expect("an end")).expect(code)
    };
    let report = report(&again(65));
    for (step, expected) in [
        ("evaluate-base-1-of-2", "failed"),
        ("evaluate-base-2-of-2", "done"),
        ("evaluate-base", "skipped"),
        ("evaluate-v001-s42", "done"),
        ("leaderboard", "skipped"),
    ] {
        assert_eq!(stand(&report, step), expected, "{step}");
    }
    again(0);
    let more = [
        "evaluate-v001-s42-2-of-2",
        "evaluate-v001-s42",
        "evaluate-base-1-of-2",
        "evaluate-base",
        "leaderboard",
        "site",
    ];
    assert_eq!(place.created_of("sharded"), [&begun[..], &more].concat());
}

#[test]
fn exit_codes_69_75_and_143_are_tried_again_and_no_others() {
    let place = Place::new();
    place.outcomes("data-set", "75\n69\n");
    place.outcomes("policy", "143\n");
    let done = place.submit(&[]).expect(0);
    assert_eq!(
        place.created()[..5],
        ["data-set", "data-set", "data-set", "policy", "policy"]
    );
    assert_eq!(
        report(&done)["steps"]["data-set"]["runs"],
        serde_json::json!([100, 101, 102])
    );
    for code in [1, 2, 65, 70, 73, 76, 77, 78, 137] {
        let place = Place::new();
        place.outcomes("data-set", &format!("{code}\n"));
        let ended = place.submit(&[]);
        assert_eq!(place.created(), ["data-set"], "after {code}");
        assert_eq!(report(&ended)["steps"]["data-set"]["exit_code"], code);
        // A code of ours is passed on; any other is a failure without a name.
        let expected = if [1, 137].contains(&code) { 70 } else { code };
        ended.expect(expected);
    }
}

#[test]
fn a_step_is_tried_as_often_as_was_asked() {
    let place = Place::new();
    place.outcomes("data-set", "75\n75\n75\n75\n");
    place
        .submit(&["--tries", "3"])
        .expect(75)
        .says(&["failed: data-set; not submitted after them: 9"]);
    assert_eq!(place.created(), ["data-set"; 3]);
}

#[test]
fn a_run_without_an_exit_code_is_not_tried_again() {
    let place = Place::new();
    place.outcomes("data-set", "lost\n");
    place
        .submit(&[])
        .expect(70)
        .says(&["ended without an exit code"]);
    assert_eq!(place.created(), ["data-set"]);
}

#[test]
fn a_failure_stops_what_waits_for_it_and_the_next_call_goes_on_there() {
    let place = Place::new();
    place.outcomes("value-model", "65\n");
    let ended = place
        .submit(&[])
        .expect(65)
        .says(&["train-v002-s42: not submitted, since value-model was not done"]);
    let report = report(&ended);
    assert_eq!(stand(&report, "value-model"), "failed");
    for step in ["train-v002-s42", "evaluate-v002-s42", "leaderboard", "site"] {
        assert_eq!(stand(&report, step), "skipped");
    }
    // The baseline does not wait for the value model.
    assert_eq!(stand(&report, "evaluate-v001-s42"), "done");
    let before = place.created().len();
    place.submit(&[]).expect(0);
    assert_eq!(place.created()[before..], FROM_THE_VALUE_MODEL_ON);
}

#[test]
fn success_without_the_number_of_a_run_is_a_failure() {
    let place = Place::new();
    place.write("refuse-wmtp-verifiable-policy", "");
    place
        .submit(&[])
        .expect(69)
        .says(&["VESSL did not take the run"])
        .says(&["Field image does not exist!"]);
    assert_eq!(place.created(), ["data-set"]);
    std::fs::remove_file(place.path("refuse-wmtp-verifiable-policy")).expect("the file is there");
    place.submit(&[]).expect(0);
    assert_eq!(place.created(), STEPS);
}

#[test]
fn a_call_that_was_stopped_follows_the_same_run_again() {
    let place = Place::new();
    place.outcomes("data-set", "-\n");
    let mut child = place.submitting("data-set: submitted as run 100");
    // A second call at the same time would submit everything twice.
    place
        .submit(&[])
        .expect(75)
        .says(&["is being submitted already"]);
    terminate(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(143));
    place.write("runs/100", "0");
    place
        .submit(&[])
        .expect(0)
        .says(&["data-set: under way as run 100"]);
    assert_eq!(place.created(), STEPS);
}

#[test]
fn another_spec_is_another_run_with_all_that_follows() {
    let place = Place::new();
    place.submit(&[]).expect(0);
    let text =
        place
            .read("profile.yaml")
            .replacen("train-stage1: sha256:0", "train-stage1: sha256:1", 1);
    place.write("profile.yaml", &text);
    place.submit(&[]).expect(0);
    let again = [
        "value-model",
        "train-v002-s42",
        "evaluate-v002-s42",
        "leaderboard",
        "site",
    ];
    assert_eq!(place.created()[STEPS.len()..], again);
}

/// 1.2 hours of GPUs are expected of the chain, 0.6 of what is made anew behind another value model; 2 are granted.
#[test]
fn a_budget_holds_for_what_was_spent_and_what_is_still_to_be_submitted() {
    let place = Place::new();
    place.outcomes("value-model", "78\n");
    place.submit(&[]).expect(78);
    // Spent 0.2 on the failure and 0.6 on what does not wait for it: 1.4 in all, and again nothing is left to submit.
    place.submit(&[]).expect(0);
    let before = place.created();
    place.submit(&[]).expect(0);
    assert_eq!(place.created(), before);
    // 0.6 more are 2.0.
    let anew = |digit: char| {
        let text = place.read("profile.yaml");
        let at =
            text.find("train-stage1: sha256:").expect("its digest") + "train-stage1: sha256:".len();
        let (head, tail) = text.split_at(at);
        place.write("profile.yaml", &format!("{head}{digit}{}", &tail[1..]));
    };
    anew('1');
    place.submit(&[]).expect(0);
    let before = place.created();
    anew('2');
    place
        .submit(&[])
        .expect(77)
        .says(&["2.60 hours of GPUs are expected, and its budget is 2.00"]);
    assert_eq!(place.created(), before, "nothing was submitted");
}

#[test]
fn a_run_under_way_on_inputs_that_are_made_anew_does_not_count() {
    let place = Place::new();
    place.outcomes("train-v002-s42", "-\n");
    let mut child = place.submitting("train-v002-s42: submitted as run 106");
    terminate(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(143));
    let before = place.created();
    let text =
        place
            .read("profile.yaml")
            .replacen("train-stage1: sha256:0", "train-stage1: sha256:1", 1);
    place.write("profile.yaml", &text);
    place.outcomes("value-model", "-\n");
    let mut child = place.submitting("train-v002-s42: run 106 reads what is made anew now");
    place.until(&mut child, || place.created().len() > before.len());
    terminate(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(143));
    // The next call finds that all of its inputs are done, and the old run as well.
    for run in [106, 107] {
        place.write(&format!("runs/{run}"), "0");
    }
    place.submit(&[]).expect(0);
    let again = [
        "value-model",
        "train-v002-s42",
        "evaluate-v002-s42",
        "leaderboard",
        "site",
    ];
    assert_eq!(place.created()[before.len()..], again);
}

#[test]
fn a_run_that_nobody_can_read_is_given_up_alone_and_the_next_call_submits_another() {
    let place = Place::new();
    place.outcomes("value-model", "gone\n");
    let ended = place
        .submit(&["--at-once", "2"])
        .expect(69)
        .says(&["value-model: run 102 is given up after 10 looks"]);
    assert_eq!(stand(&report(&ended), "evaluate-v001-s42"), "done");
    assert_eq!(stand(&report(&ended), "train-v002-s42"), "skipped");
    let before = place.created().len();
    place.submit(&[]).expect(0);
    assert_eq!(place.created()[before..], FROM_THE_VALUE_MODEL_ON);
}

/// Ctrl-C on a terminal reaches the whole group: not the client, which is in the middle of a submission.
#[test]
fn a_submission_that_broke_off_is_said_to_be_unclear() {
    let place = Place::new();
    place.write("break-wmtp-verifiable-policy", "");
    let mut command = place.command(
        &[
            &[
                "submit",
                "--experiment",
                &verifiable(),
                "--profile",
                "profile.yaml",
            ][..],
            &QUICK,
        ]
        .concat(),
    );
    let stopped = Ended::of(command.process_group(0));
    stopped
        .expect(143)
        .says(&["policy: error: vessl run create ended with exit status: 130"])
        .says(&["the run may be there all the same"]);
    let ledger = place.read(".wmtp/vessl/verifiable.json");
    let ledger: Value = serde_json::from_str(&ledger).expect("JSON");
    assert_eq!(ledger["steps"]["policy"]["stand"], "submitting");
    std::fs::remove_file(place.path("break-wmtp-verifiable-policy")).expect("the file is there");
    place
        .submit(&[])
        .expect(0)
        .says(&["policy: submitted before without an answer"]);
}

#[test]
fn the_digests_of_the_example_are_not_submitted() {
    let place = Place::new();
    place
        .with("submit", "verifiable", "example.yaml", &QUICK)
        .expect(2)
        .says(&["images.digests.evaluate: is the example's"]);
    assert_eq!(place.read("calls"), "");
}

#[test]
fn a_missing_client_is_named() {
    let place = Place::new();
    place
        .submit(&["--client", "no-such-program"])
        .expect(69)
        .says(&["pip install vessl==0.1.199"]);
}

fn terminate(child: &Child) {
    let pid = child.id().to_string();
    let status = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status();
    assert!(status.expect("kill is there").success());
}
