//! The life of a run against a real store: cache, claims, signals, kills, exit codes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use dev_store::{Faults, TestServer};
use mlflow_double::{Double, Fault};
use serde_json::Value;
use tempfile::TempDir;
use trial::Ended;

/// A store and a working directory.
struct Place {
    // Dropped first: it stops before its folder goes.
    server: TestServer,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::with(TestServer::start)
    }

    fn with(start: impl FnOnce(&Path) -> TestServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = start(&folder.path().join("store"));
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Self { server, folder }
    }

    fn work(&self) -> std::path::PathBuf {
        self.folder.path().join("work")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tiny-job"));
        command
            .args(args)
            .current_dir(self.work())
            .env_clear()
            .envs(trial::variables(&self.server))
            .env("WMTP_STORE", "s3://wmtp/test")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::of(&mut self.command(args))
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.work().join(name), text).unwrap();
    }

    /// Names of all files below the working directory and the store.
    fn listing(&self) -> Vec<String> {
        let mut files = Vec::new();
        list(self.folder.path(), &mut files);
        files.sort();
        files
    }
}

fn list(dir: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path.display().to_string());
        }
    }
}

/// The artifact that a run wrote.
fn id(ended: &Ended) -> String {
    ended.result()["outputs"]["count"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Starts a job that waits in the middle of its work.
fn waiting(place: &Place, args: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut args = args.to_vec();
    args.extend(["--end", "wait"]);
    let mut child = place
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "waiting for a signal");
    (child, stderr)
}

/// Reads what a job says until it says this.
fn read_until(stderr: &mut BufReader<std::process::ChildStderr>, words: &str) {
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert_ne!(
            stderr.read_line(&mut line).unwrap(),
            0,
            "the job ended instead of {words}"
        );
    }
}

fn terminate(child: Child, stderr: BufReader<std::process::ChildStderr>) -> Option<i32> {
    told_to_stop(child, stderr).code
}

/// Sends a job SIGTERM and tells how it ended, and what it said from then on.
fn told_to_stop(mut child: Child, mut stderr: BufReader<std::process::ChildStderr>) -> Ended {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    Ended {
        code: child.wait().unwrap().code(),
        stdout: String::new(),
        stderr: said,
    }
}

#[test]
fn without_a_terminal_the_exit_code_stands_before_the_error() {
    let place = Place::new();
    for args in [
        &["--wrong-flag"][..],
        &["--data", "absent"],
        &["--end", "numeric"],
    ] {
        let ended = place.run(args);
        let code = ended.code.unwrap();
        let said = ended.stderr.lines().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["type"] == "ended").then(|| line["data"]["exit_code"].clone())
        });
        assert_ne!(code, 0, "{args:?}");
        assert_eq!(
            said,
            Some(serde_json::json!(code)),
            "{args:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn a_name_that_promotion_gives_is_refused_before_anything_is_done() {
    let place = Place::new();
    let before = place.listing();
    for more in [&[] as &[&str], &["--dry-run"], &["--force"]] {
        let ended = place.run(&[&["--name", "ten-production"], more].concat());
        assert_eq!(ended.code, Some(77), "{more:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("promote --to production --name ten"),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(place.listing(), before);
}

#[test]
fn the_second_call_does_no_work_and_says_why() {
    let place = Place::new();
    let first = place.run(&["--json", "--name", "ten"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert_eq!(first.result()["cached"], false);
    let second = place.run(&["--json", "--name", "ten"]);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(second.result()["cached"], true);
    assert_eq!(id(&second), id(&first));
    assert!(
        second.stderr.contains("already done: raw-data-"),
        "{}",
        second.stderr
    );
    // Another text is other work; the name of the first serves as input.
    let third = place.run(&["--json", "--text", "other", "--data", "ten"]);
    assert_eq!(third.result()["cached"], false, "{}", third.stderr);
    assert_ne!(id(&third), id(&first));
    let forced = place.run(&["--json", "--force"]);
    assert_eq!(forced.result()["cached"], false, "{}", forced.stderr);
    assert_eq!(id(&forced), id(&first));
}

#[test]
fn a_dry_run_touches_nothing() {
    let place = Place::new();
    place.file("r.yaml", "version: {id: v001}\n");
    let before = place.listing();
    let dry = place.run(&["--dry-run"]);
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(
        dry.stdout.contains("would write:\n  count        raw-data"),
        "{}",
        dry.stdout
    );
    let explained = place.run(&["--explain", "--recipe", "r.yaml", "--set", "optim.lr=0.5"]);
    assert_eq!(explained.code, Some(0), "{}", explained.stderr);
    assert!(
        explained.stdout.contains("work is needed"),
        "{}",
        explained.stdout
    );
    let has_line = |words: &[&str]| {
        explained
            .stdout
            .lines()
            .any(|line| line.split_whitespace().eq(words.iter().copied()))
    };
    assert!(
        has_line(&["optim.lr", "0.5", "--set"]),
        "{}",
        explained.stdout
    );
    assert!(
        has_line(&["version.id", "\"v001\"", "r.yaml"]),
        "{}",
        explained.stdout
    );
    let trial = [
        "--explain",
        "--recipe",
        "r.yaml",
        "--set=experiment.algo=verifiable",
        "--set=rho1.min_ce_diff=0.5",
    ];
    let unread = place.run(&trial).stdout;
    let words = "--set (no effect: verifiable has no excess loss, and does not read it)";
    assert!(unread.contains(words), "{unread}");
    assert_eq!(unread.matches("no effect").count(), 1);
    assert_eq!(place.listing(), before);
}

#[test]
fn every_failure_has_its_code_and_message() {
    let place = Place::new();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--end", "panic"], 70, "planned panic"),
        (&["--end", "numeric"], 78, "error: loss is NaN at step 4"),
        (
            &["--end", "refused"],
            77,
            "error: the gate is closed\n\nhint: open it",
        ),
        (&["--end", "full"], 73, "hint: free some space"),
        (
            &["--data", "absent"],
            65,
            "error: input data: raw-data \"absent\"",
        ),
        (&["--wrong-flag"], 2, "--wrong-flag"),
    ];
    for (args, code, message) in cases {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(message), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
    // None of them left a result: the work is still to do.
    let after = place.run(&["--json"]);
    assert_eq!(after.result()["cached"], false, "{}", after.stderr);
}

#[test]
fn a_broken_recipe_is_usage_and_names_the_key() {
    let place = Place::new();
    let recipe = |text: &str| {
        place.file("r.yaml", &format!("version: {{id: v001}}\n{text}\n"));
        let ended = place.run(&["--recipe", "r.yaml"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        ended.error().to_owned()
    };
    insta::assert_snapshot!(recipe("optim: {lrr: 1}"), @r"
    error: unknown key `optim.lrr` in r.yaml; did you mean `optim.lr`?

    hint: `--explain` lists every setting, its value and its source
    ");
    insta::assert_snapshot!(recipe("optim: {lr: fast}"), @r#"
    error: `optim.lr` in r.yaml: found the text "fast", expected a number

    hint: `--explain` lists every setting, its value and its source
    "#);
    let unset = Ended::from(
        place
            .command(&[])
            .env_remove("WMTP_STORE")
            .output()
            .unwrap(),
    );
    assert_eq!(unset.code, Some(2));
    insta::assert_snapshot!(unset.error(), @r"
    error: no store given

    hint: add --store s3://BUCKET/PREFIX or set WMTP_STORE
    ");
}

#[test]
fn a_recipe_lies_in_a_bucket_with_the_one_that_it_extends_beside_it() {
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = trial::connect(&place.server, "s3://wmtp/recipes").await;
        for (name, text) in [
            ("v001.yaml", "version: {id: v001}\noptim: {lr: 0.25}\n"),
            (
                "loop/v002.yaml",
                "extends: ../v001.yaml\noptim: {beta1: 0.5}\n",
            ),
            ("lost.yaml", "extends: v000.yaml\n"),
        ] {
            let put = store.put_page(name, text.into(), "application/yaml", "no-cache");
            put.await.unwrap();
        }
    });
    let explain = |recipe: &str| place.run(&["--explain", "--recipe", recipe]);
    let found = explain("s3://wmtp/recipes/loop/v002.yaml");
    assert_eq!(found.code, Some(0), "{}", found.stderr);
    for words in [
        ["optim.lr", "0.25", "s3://wmtp/recipes/v001.yaml"],
        ["optim.beta1", "0.5", "s3://wmtp/recipes/loop/v002.yaml"],
    ] {
        let mut lines = found.stdout.lines();
        assert!(
            lines.any(|line| line.split_whitespace().eq(words)),
            "{words:?}: {}",
            found.stdout
        );
    }
    let lost = explain("s3://wmtp/recipes/lost.yaml");
    assert_eq!(lost.code, Some(2), "{}", lost.stderr);
    insta::assert_snapshot!(lost.error(), @r"
    error: recipe s3://wmtp/recipes/v000.yaml: cannot be read
      caused by: there is no such object

    hint: `--explain` lists every setting, its value and its source
    ");
    // What a store cannot tell now it may tell later.
    let mut refused = place.command(&["--recipe", "s3://wmtp/recipes/v001.yaml"]);
    refused.env("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret");
    let refused = Ended::from(refused.output().unwrap());
    assert_eq!(refused.code, Some(69), "{}", refused.stderr);
    assert!(
        refused
            .error()
            .starts_with("error: reading recipe s3://wmtp/recipes/v001.yaml"),
        "{}",
        refused.stderr
    );
}

/// The ids of their runs are the same, and each of them removes what its own run leaves behind.
#[test]
fn two_stores_share_a_scratch_folder_and_leave_each_other_alone() {
    let places = [Place::new(), Place::new()];
    let scratch = places[0].folder.path().join("scratch");
    let args = ["--scratch", scratch.to_str().unwrap()];
    let (child, stderr) = waiting(&places[0], &args);
    let folders = || {
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&scratch).unwrap() {
            folders.push(entry.unwrap().path().join("attempt-1"));
        }
        folders
    };
    let held = folders();
    assert!(held.len() == 1 && held[0].is_dir(), "{held:?}");
    let beside = places[1].run(&args);
    assert_eq!(beside.code, Some(0), "{}", beside.stderr);
    assert_eq!(folders(), held);
    assert!(held[0].is_dir());
    assert_eq!(terminate(child, stderr), Some(143));
    assert!(folders().is_empty());
}

#[test]
fn a_store_that_refuses_or_is_silent_is_unavailable_and_no_secret_is_printed() {
    let place = Place::new();
    let wrong = Ended::from(
        place
            .command(&[])
            .env("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret")
            .output()
            .unwrap(),
    );
    assert_eq!(wrong.code, Some(69), "{}", wrong.stderr);
    assert!(
        !wrong.stderr.contains("planted-wrong-secret"),
        "{}",
        wrong.stderr
    );
    let silent = Ended::from(
        place
            .command(&[])
            .env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
            .output()
            .unwrap(),
    );
    assert_eq!(silent.code, Some(69), "{}", silent.stderr);
}

#[test]
fn a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_bytes() {
    let place = Place::new();
    let (child, stderr) = waiting(&place, &[]);
    assert_eq!(terminate(child, stderr), Some(143));
    let resumed = place.run(&["--json"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert!(
        resumed.stderr.contains("counted from 5"),
        "{}",
        resumed.stderr
    );
    let elsewhere = Place::new();
    assert_eq!(id(&elsewhere.run(&["--json"])), id(&resumed));
}

/// The store falls silent before a stop asks for a save, and while a save is under way that a stop meets.
#[test]
fn a_stop_waits_no_longer_than_its_grace_for_a_store_that_fell_silent() {
    let faults = Arc::new(Faults::seeded(0, 0.0));
    let place = Place::with(|root| TestServer::start_faulty(root, Arc::clone(&faults)));
    let (child, stderr) = waiting(&place, &[]);
    assert_eq!(terminate(child, stderr), Some(143));
    for is_under_way in [false, true] {
        let (child, mut stderr) = waiting(&place, &["--grace-secs=1"]);
        faults.fall_silent();
        if is_under_way {
            place.file("go", "");
            read_until(&mut stderr, "saving");
        }
        let ended = told_to_stop(child, stderr);
        assert_eq!(ended.code, Some(143), "{}", ended.stderr);
        for words in [
            "the state of step 6 is not saved",
            r#""type":"not_saved""#,
            r#""exit_code":143"#,
        ] {
            assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
        }
        faults.calm();
    }
    let resumed = place.run(&["--json"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert!(
        resumed.stderr.contains("counted from 5"),
        "{}",
        resumed.stderr
    );
    assert_eq!(id(&Place::new().run(&["--json"])), id(&resumed));
}

#[test]
fn a_signal_before_there_is_work_ends_a_job_that_waits_for_a_silent_store() {
    let place = Place::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let child = place
        .command(&[])
        .env("AWS_ENDPOINT_URL_S3", endpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The job is connected and waits for an answer.
    let (connection, _) = silent.accept().unwrap();
    let pid = child.id().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(kill.success());
    let ended = Ended::from(child.wait_with_output().unwrap());
    drop(connection);
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(r#""exit_code":143"#),
        "{}",
        ended.stderr
    );
}

/// How many states a collection keeps stands in the entry of each.
#[test]
fn a_saved_state_says_how_many_are_kept() {
    let place = Place::new();
    place.file("r.yaml", "version: {id: v001}\noptim: {keep_last: 5}\n");
    let (child, stderr) = waiting(&place, &["--recipe", "r.yaml"]);
    assert_eq!(terminate(child, stderr), Some(143));
    // A small object's bytes lie behind the line of its record.
    let stored = place.folder.path().join("store/buckets/wmtp");
    let texts = std::fs::read_dir(stored)
        .unwrap()
        .filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok());
    let entries: Vec<serde_json::Value> = texts
        .filter_map(|text| serde_json::from_str(text.split_once('\n')?.1).ok())
        .filter(|value: &serde_json::Value| value.get("keep_last").is_some())
        .collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["keep_last"], 5);
}

#[test]
fn work_that_another_process_holds_is_left_to_it() {
    let place = Place::new();
    let (child, stderr) = waiting(&place, &[]);
    let second = place.run(&[]);
    assert_eq!(second.code, Some(75), "{}", second.stderr);
    assert_eq!(terminate(child, stderr), Some(143));
}

#[test]
fn a_job_killed_anywhere_ends_with_the_same_bytes_when_run_again() {
    let expected = id(&Place::new().run(&["--json"]));
    let points = [
        "job:early",
        "job:middle",
        "publish:after-blob",
        "publish:after-manifest",
        "publish:after-cache",
        "run:before-result",
    ];
    for point in points {
        let place = Place::new();
        let killed = Ended::from(
            place
                .command(&["--json"])
                .env("WMTP_FAULT_POINT", point)
                .output()
                .unwrap(),
        );
        assert_eq!(
            killed.code, None,
            "{point} was not passed: {}",
            killed.stderr
        );
        assert_eq!(killed.stdout, "");
        let again = place.run(&["--json", "--name", "ten"]);
        assert_eq!(again.code, Some(0), "{point}: {}", again.stderr);
        assert_eq!(id(&again), expected, "{point}");
        // Behind the cache entry nothing is computed again, and the run still gets its result.
        let is_cached = matches!(point, "publish:after-cache" | "run:before-result");
        let made_up = |ended: &Ended| ended.stderr.contains("had not said how it ended");
        assert_eq!(made_up(&again), is_cached, "{point}: {}", again.stderr);
        let third = place.run(&["--json"]);
        assert!(!made_up(&third), "{point}: {}", third.stderr);
    }
}

/// A recipe, without which a run belongs to no experiment.
const RECIPE: &str = "version: {id: v001}\nexperiment: {algo: rho1, dataset: micropy}\n";

impl Place {
    /// A job whose runs are tracked.
    fn tracked(&self, uri: &str, args: &[&str]) -> Command {
        self.file("r.yaml", RECIPE);
        let mut command = self.command(&[&["--recipe", "r.yaml", "--json"], args].concat());
        command.env("MLFLOW_TRACKING_URI", uri);
        command
    }
}

/// The one run that a server holds.
fn only_run(double: &Double) -> Value {
    let holds = double.holds();
    let runs = holds["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{holds}");
    runs[0].clone()
}

#[test]
fn a_tracked_run_is_on_the_server_and_its_artifacts_are_the_same() {
    let (place, double) = (Place::new(), Double::start());
    let tracked = Ended::from(
        place
            .tracked(double.endpoint(), &["--name=ten"])
            .env("WMTP_REVISION", "0123abcd-dirty")
            .output()
            .unwrap(),
    );
    assert_eq!(tracked.code, Some(0), "{}", tracked.stderr);
    assert!(
        tracked
            .stderr
            .contains("tracked in experiment mtp/rho1/micropy"),
        "{}",
        tracked.stderr
    );
    let run = only_run(&double);
    assert_eq!(run["info"]["status"], "FINISHED");
    assert_eq!(run["info"]["run_name"], "ten");
    let params = run["data"]["params"].as_array().unwrap();
    let revision = serde_json::json!({"key": "code_revision", "value": "0123abcd-dirty"});
    assert!(params.contains(&revision), "{params:?}");
    let counts: Vec<&Value> = run["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| &point["value"])
        .collect();
    assert_eq!(counts.len(), 10);
    assert_eq!(run["history"][9]["key"], "train/count");
    assert_eq!(run["history"][9]["step"], 9);

    let elsewhere = Place::new();
    elsewhere.file("r.yaml", RECIPE);
    let untracked = elsewhere.run(&["--recipe", "r.yaml", "--json"]);
    assert_eq!(id(&untracked), id(&tracked));
    assert_eq!(untracked.result()["run_id"], tracked.result()["run_id"]);
    // Done already: there is nothing to tell.
    let before = double.asked().len();
    let again = Ended::from(place.tracked(double.endpoint(), &[]).output().unwrap());
    assert_eq!(again.result()["cached"], true);
    assert_eq!(double.asked().len(), before);
}

#[test]
fn no_tracking_server_can_fail_a_run() {
    let double = Double::start();
    let nowhere = Double::nowhere();
    let cases = [
        (Some(Fault::Hang), double.endpoint(), "no answer within"),
        (Some(Fault::Status(500)), double.endpoint(), "500"),
        (Some(Fault::Status(401)), double.endpoint(), "401"),
        (
            Some(Fault::Garbage),
            double.endpoint(),
            "no reply of MLflow",
        ),
        (None, nowhere.as_str(), "refused"),
    ];
    let expected = {
        let place = Place::new();
        place.file("r.yaml", RECIPE);
        id(&place.run(&["--recipe", "r.yaml", "--json"]))
    };
    for (fault, uri, reason) in cases {
        double.fail_always(fault);
        let place = Place::new();
        let mut job = place.tracked(uri, &[]);
        let ended = Ended::from(
            job.env("MLFLOW_TRACKING_TOKEN", "planted-token")
                .output()
                .unwrap(),
        );
        assert_eq!(ended.code, Some(0), "{fault:?}: {}", ended.stderr);
        assert_eq!(id(&ended), expected, "{fault:?}");
        let run = ended.result()["run_id"].as_str().unwrap().to_owned();
        let told = ended
            .stderr
            .lines()
            .filter(|line| line.contains("tracking: "))
            .collect::<Vec<_>>();
        let last = told
            .last()
            .unwrap_or_else(|| panic!("{fault:?}: {}", ended.stderr));
        assert!(last.contains(reason), "{fault:?}: {last}");
        assert!(
            last.contains(&format!("`wmtp-store mlflow replay {run}`")),
            "{last}"
        );
        assert!(told.len() <= 2, "{told:?}");
        assert!(!ended.stderr.contains("planted-token"), "{}", ended.stderr);
    }
    for uri in [
        "sqlite:///mlflow.db",
        "http://mlflow.example.org",
        "https://me:planted-token@host",
    ] {
        let place = Place::new();
        let mut job = place.tracked(uri, &[]);
        let ended = Ended::from(
            job.env("MLFLOW_TRACKING_TOKEN", "planted-token")
                .output()
                .unwrap(),
        );
        assert_eq!(ended.code, Some(0), "{uri}: {}", ended.stderr);
        assert!(
            ended
                .stderr
                .contains("this run is not tracked: MLFLOW_TRACKING_URI"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("planted-token"), "{}", ended.stderr);
    }
}

#[test]
fn a_stopped_and_resumed_run_is_one_run_on_the_server() {
    let (place, double) = (Place::new(), Double::start());
    place.file("r.yaml", RECIPE);
    let mut job = place.tracked(double.endpoint(), &["--end", "wait"]);
    let mut child = job
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "waiting for a signal");
    assert_eq!(terminate(child, stderr), Some(143));
    assert_eq!(only_run(&double)["info"]["status"], "KILLED");

    // The flag decides the end of an attempt and nothing of the work.
    let resumed = Ended::from(place.tracked(double.endpoint(), &[]).output().unwrap());
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    let run = only_run(&double);
    assert_eq!(run["info"]["status"], "FINISHED");
    let tags = run["data"]["tags"].as_array().unwrap();
    let attempt = tags
        .iter()
        .find(|tag| tag["key"] == "wmtp.attempt")
        .unwrap();
    assert_eq!(attempt["value"], "2");
    let steps: Vec<i64> = run["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["step"].as_i64().unwrap())
        .collect();
    assert_eq!(steps, (0..10).collect::<Vec<_>>());
}

#[test]
fn an_attempt_that_fails_tells_what_it_took_as_well() {
    let place = Place::new();
    let price = ["--hour-price=36 USD", "--hour-price-source=a list"];
    let ended = place.run(&["--end=numeric", price[0], price[1]]);
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    let usages: Vec<Value> = ended
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["type"] == "usage")
        .map(|line| line["data"].clone())
        .collect();
    let [usage] = usages.as_slice() else {
        panic!("told once: {}", ended.stderr);
    };
    let cost = usage["cost"]["amount"].as_f64().unwrap();
    assert!((cost - usage["wall_secs"].as_f64().unwrap() / 100.0).abs() < 1e-9);
    // A price without its source would be nobody's.
    assert_eq!(place.run(&["--hour-price=36 USD"]).code, Some(2));
}

#[test]
fn a_filter_of_log_lines_that_cannot_be_read_ends_the_job() {
    let place = Place::new();
    let mut command = place.command(&[]);
    let ended = Ended::from(
        command
            .env("WMTP_LOG", "wmtp_artifacts=loud")
            .output()
            .unwrap(),
    );
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("WMTP_LOG is"), "{}", ended.stderr);
}

#[test]
fn help_shows_flags_and_examples() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(
        help.stdout.starts_with("Counts to ten.\n"),
        "{}",
        help.stdout
    );
    let parts = [
        "Usage: tiny-job",
        "--text <TEXT>",
        "Common options:",
        "What the run takes:",
        "--hour-price <PRICE>",
        "--store <s3://BUCKET/PREFIX>",
        "--dry-run",
        "Examples:\n  tiny-job --text hello --store s3://bucket/prefix",
        "Tracking with MLflow:\n  MLFLOW_TRACKING_URI ",
    ];
    for part in parts {
        assert!(help.stdout.contains(part), "{part}: {}", help.stdout);
    }
}

#[test]
fn the_processes_of_a_run_have_the_recipe_that_the_first_one_read() {
    let place = Place::new();
    // A pipe: what one process has read of it is there for no other.
    let mut job = place
        .command(&["--end", "crew", "--recipe", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = job.stdin.take().unwrap();
    let recipe = "{version: {id: v001}, seed: 7, optim: {lr: 3.1622776601683795e-5}}";
    pipe.write_all(recipe.as_bytes()).unwrap();
    drop(pipe);
    let ended = Ended::from(job.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
