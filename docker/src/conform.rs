//! The job contract, promise by promise, as an image keeps it or breaks it.
//!
//! In: the name of an image, and the programs of this machine, which make what its job reads in an embedded store. Out:
//! one line a promise. Nothing here knows how the image was made.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dev_store::TestServer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use wmtp_artifacts::SCHEMA;

use crate::engine::{Engine, Start, output};
use crate::error::Error;
use crate::image::Image;

/// One promise, and whether it was kept.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Verdict {
    pub(crate) promise: &'static str,
    pub(crate) is_kept: bool,
    /// What shows it, or what broke it.
    pub(crate) said: String,
}

type Promise = (&'static str, fn(&Trial<'_>) -> Result<String, String>);

/// In the order in which they build on each other.
const PROMISES: [Promise; 10] = [
    ("says what it is", described),
    (
        "a plain user on a root that nobody writes, with a shell",
        confined,
    ),
    ("help and version", told),
    ("runs as root, too", as_root),
    ("a dry run touches nothing", dry),
    ("exit codes 2, 65 and 69", refusals),
    ("a signal ends it with 143", stopped),
    (AT_WORK, goes_on),
    ("work leaves verified artifacts", works),
    ("the same command again has nothing to do", repeats),
];

/// Of jobs whose work is long enough to be met.
const AT_WORK: &str = "stopped at work it saves, and goes on from there";

/// A recipe of seconds, the same that the chain's tests use.
const RECIPE: &str = include_str!("../../tests/tiny.yaml");

/// The user that an image must be able to run as; any folder that it writes is open to all.
const OPEN: u32 = 0o777;

/// How each job is called, and on what.
struct Call {
    job: &'static str,
    arguments: &'static [&'static str],
    /// The argument that names an input, in a form that names one that is absent.
    absent: &'static [&'static str],
    /// Name of what it makes, for those that come later.
    name: &'static str,
    /// Settings with which its work is long enough to be met; none where it is done before one could meet it.
    long: &'static [&'static str],
}

/// In the order of the chain: what a job reads was made by those before it.
const CALLS: [Call; 7] = [
    Call {
        job: "prepare-data",
        arguments: &[],
        absent: &["--set=data.source=mbpp", "--raw=absent"],
        name: "d",
        long: &[],
    },
    Call {
        job: "sync-storage",
        arguments: &["create", "--model=micro-mtp", "--data=d"],
        absent: &["create", "--model=micro-mtp", "--data=absent"],
        name: "base",
        long: &[],
    },
    Call {
        job: "train-stage1",
        arguments: &["--objective=value", "--data=d", "--base=base"],
        absent: &["--objective=value", "--data=absent", "--base=base"],
        name: "v",
        long: &["--set=stage1.epochs=20", SAVED_WHEN_STOPPED],
    },
    Call {
        job: "train-stage2",
        arguments: &["--data=d", "--base=base"],
        absent: &["--data=absent", "--base=base"],
        name: "t",
        long: &["--set=optim.epochs=20", SAVED_WHEN_STOPPED],
    },
    Call {
        job: "evaluate",
        arguments: &["--data=d", "--base=base"],
        absent: &["--data=absent", "--base=base"],
        name: "s",
        long: &["--set=evaluation.num_samples=1000"],
    },
    Call {
        job: "build-leaderboard",
        arguments: &["--scores=s"],
        absent: &["--scores=absent"],
        name: "b",
        long: &[],
    },
    Call {
        job: "build-site",
        arguments: &["--leaderboard=b", "--out=site"],
        absent: &["--leaderboard=absent", "--out=site"],
        name: "",
        long: &[],
    },
];

/// Of states that were saved before, the trial would see no more than that.
const SAVED_WHEN_STOPPED: &str = "--set=optim.checkpoint_every_steps=1000000";

/// Jobs whose results no later job of the chain needs here.
const LEAVES: [&str; 2] = ["train-stage1", "train-stage2"];

/// An image on trial.
struct Trial<'a> {
    engine: &'a Engine,
    image: Image,
    tag: &'a str,
    call: &'static Call,
    programs: &'a Path,
    // Dropped first: it stops before its folder goes.
    server: TestServer,
    folder: TempDir,
}

/// How a container ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Holds an image against every promise. `programs` is a folder with the programs of all jobs and `wmtp-store`.
///
/// # Errors
/// Where the trial itself cannot be held: no such image, no such job, programs that fail.
pub(crate) fn conform(
    engine: &Engine,
    tag: &str,
    job: Option<&str>,
    programs: &Path,
) -> Result<Vec<Verdict>, Error> {
    let image = Image::of(&engine.inspect(tag)?);
    let job = job.unwrap_or_else(|| image.label("wmtp.job")).to_owned();
    let call = CALLS
        .iter()
        .find(|call| call.job == job)
        .ok_or_else(|| Error::Engine {
            command: format!("{} image inspect {tag}", engine.name()),
            ended: format!(
                "names the job {job:?} in label wmtp.job, which is none; say which with --job"
            ),
        })?;
    let trial = Trial::new(engine, image, tag, call, programs)?;
    trial.prepare()?;
    Ok(PROMISES
        .iter()
        .filter(|(promise, _)| *promise != AT_WORK || !call.long.is_empty())
        .map(|(promise, keeps)| {
            let kept = keeps(&trial);
            Verdict {
                promise,
                is_kept: kept.is_ok(),
                said: kept.unwrap_or_else(|why| why),
            }
        })
        .collect())
}

impl<'a> Trial<'a> {
    fn new(
        engine: &'a Engine,
        image: Image,
        tag: &'a str,
        call: &'static Call,
        programs: &'a Path,
    ) -> Result<Self, Error> {
        let in_file = |path: &Path, source| Error::File {
            path: path.to_owned(),
            source,
        };
        let folder = tempfile::tempdir().map_err(|error| in_file(&std::env::temp_dir(), error))?;
        let server = TestServer::start(&folder.path().join("store"));
        let trial = Self {
            engine,
            image,
            tag,
            call,
            programs,
            server,
            folder,
        };
        let work = trial.work();
        std::fs::create_dir(&work)
            .and_then(|()| std::fs::set_permissions(&work, std::fs::Permissions::from_mode(OPEN)))
            .and_then(|()| std::fs::write(work.join("tiny.yaml"), RECIPE))
            .map_err(|error| in_file(&work, error))?;
        Ok(trial)
    }

    /// The folder that both the image and this machine's programs work in.
    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn variables(&self, endpoint: &str) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL_S3", endpoint),
            ("AWS_ACCESS_KEY_ID", self.server.access_key()),
            ("AWS_SECRET_ACCESS_KEY", self.server.secret_key()),
            ("AWS_REGION", self.server.region()),
            ("WMTP_STORE", "s3://wmtp/trial"),
            // A program built for a GPU computes on the CPU only where it is told to.
            ("WMTP_DEVICE", "cpu"),
            // So that work is long enough to be met on any number of cores.
            ("RAYON_NUM_THREADS", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Makes what the job reads with the programs of this machine.
    fn prepare(&self) -> Result<(), Error> {
        let before = CALLS.iter().take_while(|call| call.job != self.call.job);
        for call in before.filter(|call| !LEAVES.contains(&call.job)) {
            let mut arguments: Vec<String> = call
                .arguments
                .iter()
                .map(|word| (*word).to_owned())
                .collect();
            arguments.extend([
                "--recipe=tiny.yaml".to_owned(),
                format!("--name={}", call.name),
            ]);
            self.here(call.job, &arguments)?;
        }
        Ok(())
    }

    /// Runs a program of this machine.
    fn here(&self, program: &str, arguments: &[String]) -> Result<String, Error> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .current_dir(self.work())
            .envs(self.variables(self.server.endpoint()))
            .env("WMTP_SCRATCH", self.folder.path().join("scratch"))
            .env("WMTP_CACHE", self.folder.path().join("cache"));
        Ok(String::from_utf8_lossy(&output(&mut command)?.stdout).into_owned())
    }

    fn start(&self) -> Start {
        Start {
            image: self.tag.to_owned(),
            mounts: vec![self.work()],
            folder: Some(self.work()),
            variables: self.variables(self.server.endpoint()),
            ..Start::default()
        }
    }

    fn run(&self, start: &Start, arguments: &[&str]) -> Result<Ended, String> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut command = self.engine.run_command(start, &arguments);
        let done = command
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        Ok(Ended {
            code: done.status.code(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// Starts the job on a store, and tells it to stop at a moment.
    fn stop(
        &self,
        endpoint: &str,
        arguments: &[&str],
        when: &Moment<'_>,
    ) -> Result<(Ended, Duration), String> {
        let name = format!("wmtp-trial-{}-{}", std::process::id(), self.call.job);
        let start = Start {
            name: Some(name.clone()),
            variables: self.variables(endpoint),
            ..self.start()
        };
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let engine = self.engine;
        Stop { engine, name }.told(engine.run_command(&start, &arguments), when)
    }

    /// The job's own call with its recipe and more.
    fn whole<'b>(&'b self, more: &[&'b str]) -> Vec<&'b str> {
        [self.call.arguments, &["--recipe=tiny.yaml"], more].concat()
    }

    /// Every object of the store, as its folder names them.
    fn objects(&self) -> BTreeSet<PathBuf> {
        let listed = std::fs::read_dir(self.folder.path().join("store/buckets/wmtp"));
        listed
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect()
    }

    fn version(&self) -> &str {
        self.image.label("org.opencontainers.image.version")
    }
}

impl Ended {
    fn expect(self, code: i32, what: &str) -> Result<Self, String> {
        if self.code == Some(code) {
            return Ok(self);
        }
        let said = last_lines(&self.stderr);
        Err(format!(
            "{what} ended with {:?}, expected {code}: {said}",
            self.code
        ))
    }

    fn says(self, words: &[&str], what: &str) -> Result<Self, String> {
        match words
            .iter()
            .find(|word| !self.stdout.contains(**word) && !self.stderr.contains(**word))
        {
            Some(word) => Err(format!(
                "{what} does not say {word:?}: {}",
                last_lines(&self.stderr)
            )),
            None => Ok(self),
        }
    }

    fn events(&self, kind: &str) -> Vec<Value> {
        events(&self.stderr, kind)
    }

    /// The object that ends stdout under `--json`.
    fn result(&self) -> Result<Value, String> {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .map_err(|error| format!("--json ends stdout with {line:?}: {error}"))
    }
}

/// The data of the events of one type among what a job has said.
fn events(said: &str, kind: &str) -> Vec<Value> {
    let lines = said.lines();
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let chosen = events.filter(|event| event["type"] == kind);
    chosen.map(|event| event["data"].clone()).collect()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

fn described(trial: &Trial<'_>) -> Result<String, String> {
    let image = &trial.image;
    let job = trial.call.job;
    let wrong = |what: &str, found: &dyn std::fmt::Debug, expected: &str| {
        Err(format!("{what} is {found:?}, expected {expected}"))
    };
    let is_plain = image
        .user
        .split(':')
        .all(|part| part.parse::<u32>().is_ok_and(|id| id > 0));
    if !is_plain {
        return wrong("the user", &image.user, "numbers that are not root's");
    }
    if image.entrypoint != [job] {
        return wrong("the entry point", &image.entrypoint, &format!("[{job:?}]"));
    }
    if !image.arguments.is_empty() {
        return wrong(
            "CMD",
            &image.arguments,
            "nothing: an image starts no work that nobody asked for",
        );
    }
    if !["SIGTERM", "15"].contains(&image.signal.as_str()) {
        return wrong("the stop signal", &image.signal, "SIGTERM");
    }
    if image.label("wmtp.schema") != SCHEMA {
        return wrong("label wmtp.schema", &image.label("wmtp.schema"), SCHEMA);
    }
    let revision = image.label("org.opencontainers.image.revision");
    if ["", "unknown"].contains(&revision) {
        return wrong(
            "the revision",
            &revision,
            "the commit that it was built from",
        );
    }
    if let Some(name) = image
        .variables
        .keys()
        .find(|name| name.starts_with("AWS_") || name.contains("TOKEN"))
    {
        return Err(format!(
            "the image carries the variable {name}: credentials come with the run"
        ));
    }
    Ok(format!(
        "{job} {}, revision {}, {SCHEMA}",
        trial.version(),
        revision.get(..12).unwrap_or(revision)
    ))
}

fn confined(trial: &Trial<'_>) -> Result<String, String> {
    let script = "id -u; command -v \"$0\"; touch /probe /usr/probe 2>&1; test -r \"$SSL_CERT_FILE\" && echo certificates; \
                  ls /usr/share/wmtp/sbom; touch \"/tmp/probe\" && echo scratch";
    let start = Start {
        entrypoint: Some("/bin/sh".to_owned()),
        ..trial.start()
    };
    let ended = trial
        .run(&start, &["-c", script, trial.call.job])?
        .expect(0, "a shell")?;
    let user = trial.image.user.split(':').next().unwrap_or_default();
    let sbom = format!("{}.cdx.json", trial.call.job);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    for wanted in [user, "certificates", &sbom, "scratch"] {
        if !lines.contains(&wanted) {
            return Err(format!(
                "a shell in it did not say {wanted:?}: {}",
                lines.join(" | ")
            ));
        }
    }
    let refused = lines
        .iter()
        .filter(|line| line.contains("Read-only file system"))
        .count();
    if refused != 2 {
        return Err(format!("its root can be written: {}", lines.join(" | ")));
    }
    Ok(format!(
        "user {user}, / and /usr read-only, {sbom} and CA bundle there"
    ))
}

fn told(trial: &Trial<'_>) -> Result<String, String> {
    trial
        .run(&trial.start(), &["--help"])?
        .expect(0, "--help")?
        .says(&["Usage:"], "--help")?;
    // A job that is one of several modes tells its flags and examples there.
    let mode = trial
        .call
        .arguments
        .iter()
        .filter(|word| !word.starts_with('-'));
    let help: Vec<&str> = mode.copied().chain(["--help"]).collect();
    trial
        .run(&trial.start(), &help)?
        .expect(0, "the job's --help")?
        .says(&["Usage:", "Examples:", "--recipe"], "the job's --help")?;
    let expected = format!("{} {}", trial.call.job, trial.version());
    let version = trial
        .run(&trial.start(), &["--version"])?
        .expect(0, "--version")?;
    if version.stdout.trim() != expected {
        return Err(format!(
            "--version says {:?}, its label {expected:?}",
            version.stdout.trim()
        ));
    }
    Ok(expected)
}

fn as_root(trial: &Trial<'_>) -> Result<String, String> {
    let start = Start {
        user: Some("0:0".to_owned()),
        ..trial.start()
    };
    trial
        .run(&start, &["--version"])?
        .expect(0, "--version as root")?;
    Ok("user 0:0".to_owned())
}

fn dry(trial: &Trial<'_>) -> Result<String, String> {
    let before = trial.objects();
    trial
        .run(&trial.start(), &trial.whole(&["--dry-run"]))?
        .expect(0, "--dry-run")?;
    let after = trial.objects();
    if before != after {
        return Err(format!(
            "the store had {} objects and has {}",
            before.len(),
            after.len()
        ));
    }
    if trial.work().join("site").exists() {
        return Err("--dry-run wrote the site".to_owned());
    }
    Ok(format!("{} objects before and after", after.len()))
}

fn refusals(trial: &Trial<'_>) -> Result<String, String> {
    let start = trial.start();
    trial
        .run(&start, &trial.whole(&["--wrong-flag"]))?
        .expect(2, "a wrong flag")?
        .says(&["--wrong-flag"], "a wrong flag")?;
    trial
        .run(&start, &trial.whole(&["--set=optim.lrr=1"]))?
        .expect(2, "an unknown setting")?
        .says(
            &["optim.lrr", "did you mean `optim.lr`"],
            "an unknown setting",
        )?;
    let absent = [trial.call.absent, &["--recipe=tiny.yaml"]].concat();
    trial
        .run(&start, &absent)?
        .expect(65, "an absent input")?
        .says(&["absent"], "an absent input")?;
    // A port that nobody listens on: it was bound and is free again.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .map_err(|error| error.to_string())?;
    let nobody = Start {
        variables: trial.variables(&format!("http://{port}")),
        ..start
    };
    trial
        .run(&nobody, &trial.whole(&[]))?
        .expect(69, "a store that is not there")?;
    Ok("2 (flag), 2 (setting), 65 (input), 69 (store)".to_owned())
}

/// The job waits for a store that takes the connection and never answers; then it is told to stop.
fn stopped(trial: &Trial<'_>) -> Result<String, String> {
    let silent = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let endpoint = silent.local_addr().map_err(|error| error.to_string())?;
    let (ended, took) = trial.stop(
        &format!("http://{endpoint}"),
        &trial.whole(&[]),
        &Moment::asks(&silent, GRACE),
    )?;
    ended
        .expect(143, "SIGTERM to its first process")?
        .says(&["\"exit_code\":143"], "its last event")?;
    Ok(format!(
        "143 after {:.1} s, as process 1, while it waited for a silent store",
        took.as_secs_f64()
    ))
}

/// The job is told to stop in the middle of its work; then the same command goes on to the end.
fn goes_on(trial: &Trial<'_>) -> Result<String, String> {
    let arguments = trial.whole(trial.call.long);
    let (first, took) = trial.stop(trial.server.endpoint(), &arguments, &Moment::works())?;
    let saved = saved(&first.expect(143, "SIGTERM at work")?)?;
    let second = trial
        .run(&trial.start(), &arguments)?
        .expect(0, "the same command again")?;
    went_on(saved, &second)?;
    Ok(format!(
        "143 after {:.1} s at work; the same command went on from {saved} to the end",
        took.as_secs_f64()
    ))
}

/// The step whose state a job that was told to stop has saved.
fn saved(first: &Ended) -> Result<u64, String> {
    let last = first.events("checkpoint").pop();
    last.and_then(|saved| saved["step"].as_u64())
        .filter(|step| *step > 0)
        .ok_or_else(|| {
            let said = last_lines(&first.stderr);
            format!("it ended with 143 and saved nothing of its work: {said}")
        })
}

/// Whether the next attempt begins where the last one ended.
fn went_on(saved: u64, second: &Ended) -> Result<(), String> {
    let resumed = second.events("resumed").pop();
    match resumed.and_then(|resumed| resumed["step"].as_u64()) {
        Some(step) if step == saved => Ok(()),
        Some(step) => Err(format!(
            "it saved the state of {saved} and went on from {step}"
        )),
        None => Err(format!("it saved the state of {saved} and began anew")),
    }
}

/// A job asks its store, and does a first step, long before that.
const PATIENCE: Duration = Duration::from_mins(1);
/// A job that waits for its store and is told to stop has ended by then.
const GRACE: Duration = Duration::from_secs(5);
/// A job at work has a step to finish and a state to save; then a launcher kills it.
const GRACE_AT_WORK: Duration = Duration::from_secs(30);

/// When a container is told to stop.
struct Moment<'a> {
    /// Whether it has come, seen from what the job has said.
    has_come: Box<dyn Fn(&str) -> bool + 'a>,
    /// What the job lacks where it never comes.
    lack: &'static str,
    /// How long it may take to come.
    patience: Duration,
    /// How long the job may take to end.
    grace: Duration,
}

impl<'a> Moment<'a> {
    /// When it asks a store, which never answers.
    fn asks(silent: &'a TcpListener, grace: Duration) -> Self {
        let connection = std::cell::OnceCell::new();
        Self {
            has_come: Box::new(move |_| {
                if connection.get().is_none()
                    && silent.set_nonblocking(true).is_ok()
                    && let Ok(accepted) = silent.accept()
                {
                    // Held open: a closed one would be an answer.
                    let _ = connection.set(accepted);
                }
                connection.get().is_some()
            }),
            lack: "asked no store",
            patience: PATIENCE,
            grace,
        }
    }

    /// When it has done a part of its work: a first step, which has its metrics, or some of what it counts.
    fn works() -> Self {
        Self {
            has_come: Box::new(|said| {
                let tells = |kind| events(said, kind);
                !tells("metrics").is_empty() || tells("progress").iter().any(has_done_some)
            }),
            lack: "told of no progress",
            patience: PATIENCE,
            grace: GRACE_AT_WORK,
        }
    }
}

/// Whether a `progress` event tells that a part is done and another is not.
fn has_done_some(progress: &Value) -> bool {
    let count = |key: &str| progress[key].as_u64().unwrap_or(0);
    let (done, total) = (count("done"), count("total"));
    0 < done && done < total
}

/// A container that is to be told to stop.
struct Stop<'a> {
    engine: &'a Engine,
    name: String,
}

impl Stop<'_> {
    /// Starts it, tells it to stop at that moment, and says how it ended and how long that took.
    fn told(&self, mut command: Command, when: &Moment<'_>) -> Result<(Ended, Duration), String> {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = Running::of(piped.spawn().map_err(|error| error.to_string())?);
        let client = running.client;
        // Either the moment comes, or it has ended without: both end the wait.
        let mut has_come = false;
        let is_met = within(when.patience, || {
            has_come = (when.has_come)(&running.said());
            has_come || running.waiter.is_finished()
        });
        if !is_met {
            self.kill(client);
            return Err(format!("it {} within {:?}", when.lack, when.patience));
        }
        let begun = Instant::now();
        if has_come && let Err(error) = self.engine.signal(&self.name, "TERM") {
            self.kill(client);
            return Err(error.to_string());
        }
        if !within(when.grace, || running.waiter.is_finished()) {
            self.kill(client);
            return Err(format!("it went on for {:?} after SIGTERM", when.grace));
        }
        let took = begun.elapsed();
        Ok((running.ended()?, took))
    }

    /// Ends the container, and the engine's client, which may wait for more than that.
    fn kill(&self, client: u32) {
        // What is gone already needs no end.
        let _ = self.engine.signal(&self.name, "KILL");
        if let Some(client) = i32::try_from(client).ok().and_then(Pid::from_raw) {
            let _ = kill_process(client, Signal::KILL);
        }
    }
}

/// The engine's client of a container under way, and what the job has said so far.
struct Running {
    client: u32,
    said: Arc<Mutex<String>>,
    waiter: JoinHandle<std::io::Result<std::process::Output>>,
}

impl Running {
    fn of(mut child: Child) -> Self {
        let said = Arc::new(Mutex::new(String::new()));
        let (client, heard) = (child.id(), Arc::clone(&said));
        let stderr = child.stderr.take();
        let waiter = std::thread::spawn(move || {
            let reader = std::thread::spawn(move || {
                for line in stderr
                    .into_iter()
                    .flat_map(|pipe| BufReader::new(pipe).lines())
                {
                    let Ok(line) = line else { break };
                    let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push_str(&line);
                    said.push('\n');
                }
            });
            let done = child.wait_with_output();
            // It ends with the pipe.
            let _ = reader.join();
            done
        });
        Self {
            client,
            said,
            waiter,
        }
    }

    fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    fn ended(self) -> Result<Ended, String> {
        let done = self
            .waiter
            .join()
            .map_err(|_| "the wait for it failed".to_owned())?
            .map_err(|error| error.to_string())?;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended {
            code: done.status.code(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: said.clone(),
        })
    }
}

/// Whether something comes to hold in time.
fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn works(trial: &Trial<'_>) -> Result<String, String> {
    let name = format!("--name={}", trial.call.name);
    let more = if trial.call.name.is_empty() {
        vec!["--json"]
    } else {
        vec!["--json", &name]
    };
    let ended = trial
        .run(&trial.start(), &trial.whole(&more))?
        .expect(0, "its work")?;
    let result = ended.result()?;
    if trial.call.job == "build-site" {
        return site(trial);
    }
    if result["cached"] != Value::Bool(false) {
        return Err(format!("it says that it had nothing to do: {result}"));
    }
    let outputs: Vec<&str> = result["outputs"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, id)| id.as_str())
        .collect();
    if outputs.is_empty() {
        return Err(format!("it names no artifact: {result}"));
    }
    for id in &outputs {
        trial
            .here("wmtp-store", &["lineage".to_owned(), (*id).to_owned()])
            .map_err(|error| error.to_string())?;
    }
    let checked = trial
        .here("wmtp-store", &["fsck".to_owned(), "--full".to_owned()])
        .map_err(|error| error.to_string())?;
    Ok(format!(
        "{}; fsck --full: {}",
        outputs.join(", "),
        checked.lines().last().unwrap_or_default()
    ))
}

/// The pages, and the list of files with their digests.
fn site(trial: &Trial<'_>) -> Result<String, String> {
    let folder = trial.work().join("site");
    for file in ["index.html", "data/manifest.json"] {
        let size = std::fs::metadata(folder.join(file))
            .map_err(|error| format!("site/{file}: {error}"))?
            .len();
        if size == 0 {
            return Err(format!("site/{file} is empty"));
        }
    }
    Ok("site/index.html and site/data/manifest.json".to_owned())
}

fn repeats(trial: &Trial<'_>) -> Result<String, String> {
    let run = || {
        trial
            .run(&trial.start(), &trial.whole(&["--json"]))?
            .expect(0, "the second run")?
            .result()
    };
    let (second, third) = (run()?, run()?);
    if trial.call.job == "build-site" {
        if third["written"] != 0 {
            return Err(format!("it wrote files anew: {third}"));
        }
        return Ok("0 files written".to_owned());
    }
    if second["cached"] != Value::Bool(true) {
        return Err(format!("it worked again: {second}"));
    }
    if second["outputs"] != third["outputs"] {
        return Err(format!("ids changed: {second} and {third}"));
    }
    Ok("already done, the same ids".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program in the place of a container, and an engine that sends signals to it and can nothing else.
    struct Fake {
        folder: TempDir,
        silent: TcpListener,
    }

    impl Fake {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let engine = folder.path().join("docker");
            let script = "#!/bin/sh\n[ \"$1\" = kill ] || exit 0\nexec kill -s \"$3\" \"$(cat \"$0.pid\")\"\n";
            std::fs::write(&engine, script).unwrap();
            std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
            let silent = TcpListener::bind("127.0.0.1:0").unwrap();
            Self { folder, silent }
        }

        /// How a program ends that does this at first and that on SIGTERM, and whether it is gone.
        fn told(
            &self,
            begins: &str,
            on_term: &str,
            when: &Moment<'_>,
        ) -> (Result<Ended, String>, bool) {
            let path = self.folder.path().join("docker");
            let pid = path.with_extension("pid");
            let script = format!(
                "trap '{on_term}' TERM; echo $$ >{}; {begins}; while :; do sleep 0.05; done",
                pid.display()
            );
            let mut command = Command::new("bash");
            command.args(["-c", &script]);
            let engine = Engine::find(path.to_str()).unwrap();
            let stop = Stop {
                engine: &engine,
                name: "container".to_owned(),
            };
            let told = stop.told(command, when).map(|(ended, _)| ended);
            let number = std::fs::read_to_string(&pid).unwrap();
            let process = PathBuf::from(format!("/proc/{}", number.trim()));
            // A killed process is reaped by the thread that waits for it.
            let is_gone = within(PATIENCE, || !process.exists());
            (told, is_gone)
        }
    }

    /// A moment that a program comes to at once or never, and a program that never ends.
    fn soon(when: Moment<'_>) -> Moment<'_> {
        let limit = Duration::from_secs(1);
        Moment {
            patience: limit,
            grace: limit,
            ..when
        }
    }

    #[test]
    fn a_job_that_hears_no_signal_or_asks_no_store_is_broken_and_ended() {
        let fake = Fake::new();
        let port = fake.silent.local_addr().unwrap().port();
        let asks = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
        let asking = || Moment::asks(&fake.silent, PATIENCE);
        let (heard, is_gone) = fake.told(&asks, "exit 143", &asking());
        assert_eq!((heard.unwrap().code, is_gone), (Some(143), true));
        let deaf = Moment {
            patience: PATIENCE,
            ..soon(asking())
        };
        let (deaf, is_gone) = fake.told(&asks, "", &deaf);
        assert!(deaf.err().unwrap().contains("after SIGTERM") && is_gone);
        let (idle, is_gone) = fake.told(":", "exit 143", &soon(asking()));
        assert!(idle.err().unwrap().contains("asked no store") && is_gone);
    }

    /// What jobs say of progress, a saved state and the state that they go on from.
    fn event(kind: &str, data: &str) -> String {
        format!(r#"echo "{{\"type\":\"{kind}\",\"data\":{{{data}}}}}" >&2"#)
    }

    #[test]
    fn a_job_that_is_stopped_at_work_saves_it_and_goes_on_from_there() {
        let fake = Fake::new();
        let works = event("progress", r#"\"done\":3,\"total\":9"#);
        let saves = event("checkpoint", r#"\"step\":4"#);
        let ends = |on_term: &str| {
            let (ended, is_gone) = fake.told(&works, on_term, &Moment::works());
            assert!(is_gone);
            ended.unwrap().expect(143, "SIGTERM at work")
        };
        assert_eq!(
            ends(&format!("{saves}; exit 143")).and_then(|first| saved(&first)),
            Ok(4)
        );
        let forgetful = ends("exit 143").and_then(|first| saved(&first));
        assert!(forgetful.unwrap_err().contains("saved nothing"));
        assert!(ends("exit 0").err().unwrap().contains("expected 143"));
        for (says, idle) in [
            (":".to_owned(), "told of no progress"),
            (
                event("progress", r#"\"done\":9,\"total\":9"#),
                "told of no progress",
            ),
        ] {
            let (idle_one, is_gone) = fake.told(&says, "exit 143", &soon(Moment::works()));
            assert!(idle_one.err().unwrap().contains(idle) && is_gone);
        }

        let again = |stderr: &str| {
            let second = Ended {
                code: Some(0),
                stdout: String::new(),
                stderr: stderr.to_owned(),
            };
            went_on(4, &second)
        };
        assert_eq!(again(r#"{"type":"resumed","data":{"step":4}}"#), Ok(()));
        let earlier = again(r#"{"type":"resumed","data":{"step":2}}"#);
        assert!(earlier.unwrap_err().contains("went on from 2"));
        assert!(again("").unwrap_err().contains("began anew"));
    }
}
