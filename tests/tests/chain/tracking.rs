//! A chain that is tracked on a real MLflow server: it says what the store holds, also after it was killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::place::{Ended, Place, ended};
use crate::steps::{Step, beginning, judging, training};

/// MLflow with its workers; they end with the test.
struct Mlflow {
    server: Child,
    endpoint: String,
}

impl Mlflow {
    /// Starts it on a database that may be there already, and waits until it answers.
    fn start(environment: &Path, place: &Place, port: u16) -> Self {
        let folder = place.path("mlflow");
        std::fs::create_dir_all(&folder).expect("a folder");
        let database = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let mut command = place.tool("here", &environment.join("bin/mlflow"));
        let server = command
            .args(["server", "--host", "127.0.0.1", "--workers", "1", "--port"])
            .arg(port.to_string())
            .args(["--backend-store-uri", &database])
            .current_dir(&folder)
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("MLflow starts");
        let mlflow = Self {
            server,
            endpoint: format!("http://127.0.0.1:{port}"),
        };
        for _ in 0..600 {
            if is_healthy(port).unwrap_or(false) {
                return mlflow;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("MLflow does not answer on port {port}");
    }

    /// As a machine that loses its power: no worker says a last word.
    fn kill(&mut self) {
        let group = format!("-{}", self.server.id());
        let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
        assert!(killed.expect("kill runs").success());
        self.server.wait().expect("it was started here");
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        if self.server.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// It listens before it answers.
fn is_healthy(port: u16) -> std::io::Result<bool> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut head = String::new();
    BufReader::new(stream).read_line(&mut head)?;
    Ok(head.contains("200"))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

#[expect(clippy::print_stderr, reason = "what is not tested must be seen")]
fn installed() -> Option<PathBuf> {
    let environment = std::env::var_os("WMTP_MLFLOW").map(PathBuf::from);
    if environment.is_none() {
        eprintln!("SKIPPED: MLflow; WMTP_MLFLOW does not name its environment");
    }
    environment
}

impl Place {
    fn tracked(&self, step: &Step, mlflow: &Mlflow) -> Command {
        let mut command = self.job("here", step.job, &step.arguments);
        command.env("MLFLOW_TRACKING_URI", &mlflow.endpoint);
        command
    }

    fn replay(&self, mlflow: &Mlflow) -> Value {
        let arguments = [
            "mlflow",
            "replay",
            "--json",
            "--tracking-uri",
            &mlflow.endpoint,
        ];
        let ended = self.run("here", "wmtp-store", &arguments).expect(0);
        serde_json::from_str(ended.stdout.trim()).expect("one object")
    }

    /// Has MLflow's own client and the store's own objects compared.
    fn compare(&self, environment: &Path, mlflow: &Mlflow, prefix: &str) -> Ended {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mlflow/compare.py");
        let mut command = self.tool(prefix, &environment.join("bin/python"));
        let store = format!("s3://wmtp/{prefix}");
        ended(
            command
                .arg(script)
                .args([&mlflow.endpoint, &store])
                .env("PYTHONDONTWRITEBYTECODE", "1"),
        )
    }

    fn promote(&self, board: &str, mlflow: &Mlflow) -> Ended {
        let arguments = [
            "promote",
            "--leaderboard",
            board,
            "--to=staging",
            "--name=d",
            "--log=promotions.jsonl",
        ];
        let mut command = self.job("here", "build-leaderboard", &arguments);
        ended(command.env("MLFLOW_TRACKING_URI", &mlflow.endpoint))
    }

    /// The leaderboard `b` as it would be had the best trained version solved nearly everything: what a gate lets through.
    fn better_board(&self) {
        let folder = self.path("better");
        let to = folder.to_str().expect("temporary folders have plain names");
        let pull = ["pull", "b", "--kind", "leaderboard", "--to", to];
        self.run("here", "sync-storage", &pull).expect(0);
        let path = folder.join("leaderboard.json");
        let text = std::fs::read_to_string(&path).expect("the leaderboard");
        let mut board: Value = serde_json::from_str(&text).expect("JSON");
        for row in board["rows"].as_array_mut().expect("rows") {
            if row["algo"] != "base" {
                row["estimate"] = json!({"mean": 0.9, "interval": {"low": 0.8, "high": 1.0}});
            }
        }
        std::fs::write(&path, board.to_string()).expect("the leaderboard");
        self.publish_leaderboard("here", &folder, "better");
    }
}

/// Runs a step and kills the server when the first of its metrics is there; the step must not mind.
fn killed_meanwhile(place: &Place, step: &Step, mlflow: &mut Mlflow) {
    let mut job = place
        .tracked(step, mlflow)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the job starts");
    let stderr = BufReader::new(job.stderr.take().expect("it is piped"));
    let mut said = Vec::new();
    for line in stderr.lines() {
        let line = line.expect("text");
        if line.contains("\"type\":\"metrics\"")
            && said
                .iter()
                .all(|old: &String| !old.contains("\"type\":\"metrics\""))
        {
            mlflow.kill();
        }
        said.push(line);
    }
    assert!(job.wait().expect("it ends").success(), "{said:?}");
    let warned = |line: &String| line.contains("wmtp-store mlflow replay");
    assert!(said.iter().any(warned), "{said:?}");
}

#[test]
#[ignore = "it needs MLflow, which `make test-full` installs"]
#[expect(
    clippy::print_stderr,
    reason = "what was compared belongs into the log"
)]
fn mlflow_says_what_the_store_holds_also_after_it_was_killed() {
    let Some(environment) = installed() else {
        return;
    };
    let place = Place::new();
    let port = free_port();
    let mut mlflow = Mlflow::start(&environment, &place, port);
    let run = |step: &Step, mlflow: &Mlflow| {
        let ended = ended(&mut place.tracked(step, mlflow)).expect(0);
        assert!(
            !ended
                .stderr
                .contains("\"level\":\"warning\",\"message\":\"tracking"),
            "{}",
            ended.stderr
        );
    };
    for step in beginning() {
        run(&step, &mlflow);
    }
    let (last, others) = {
        let mut steps = training();
        (steps.pop().expect("training has steps"), steps)
    };
    for step in others {
        run(&step, &mlflow);
    }
    place.compare(&environment, &mlflow, "here").expect(0);

    killed_meanwhile(&place, &last, &mut mlflow);
    mlflow = Mlflow::start(&environment, &place, port);
    for step in judging() {
        run(&step, &mlflow);
    }
    // The gate refuses, so no alias moves; then it does not.
    place.promote("b", &mlflow).expect(77);
    place
        .compare(&environment, &mlflow, "here")
        .expect(1)
        .says(&["train-stage2-"]);
    place.better_board();
    place
        .promote("better", &mlflow)
        .expect(0)
        .says(&["staging of model d is version 1"]);

    let first = place.replay(&mlflow);
    let compared = place.compare(&environment, &mlflow, "here").expect(0);
    eprintln!("compared: {}", compared.stdout.trim());
    let second = place.replay(&mlflow);
    assert_eq!(second["totals"]["created"], 0);
    assert_eq!(second["totals"]["points"], first["totals"]["points"]);
    assert_eq!(second["aliases"], first["aliases"]);
    place.compare(&environment, &mlflow, "here").expect(0);

    // What was not the last state of a name follows the name.
    let again = [
        "--data=d",
        "--base=base",
        "--recipe=tiny.yaml",
        "--name=d-production",
    ];
    place.run("here", "train-stage2", &again).expect(0);
    place
        .compare(&environment, &mlflow, "here")
        .expect(1)
        .says(&["aliases of d"]);
    place.replay(&mlflow);
    place.compare(&environment, &mlflow, "here").expect(0);

    // Another store with a run of the same id is another run of the same experiment.
    let first = &beginning()[0];
    let mut there = place.job("there", first.job, &first.arguments);
    ended(there.env("MLFLOW_TRACKING_URI", &mlflow.endpoint)).expect(0);
    place.compare(&environment, &mlflow, "there").expect(0);
    place.compare(&environment, &mlflow, "here").expect(0);
}
