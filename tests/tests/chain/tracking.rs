//! A chain that is tracked on a real MLflow server behind TLS and a login: it says what the store holds, also after it was
//! killed.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use wmtp_artifacts::Kind;

use trial::Ended;

use crate::place::Place;
use crate::steps::{Step, beginning, judging, training};

/// Of the user `admin`; it must be found nowhere afterwards.
const PASSWORD: &str = "planted-tracking-password";

/// The commit that the jobs are told they are of.
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567-dirty";

/// MLflow with its workers; they end with the test.
struct Mlflow {
    server: Child,
    endpoint: String,
    /// The authority that vouches for it, which no machine knows.
    authority: PathBuf,
}

impl Mlflow {
    /// Starts it on a database that may be there already, and waits until it answers.
    fn start(environment: &Path, place: &Place, port: u16) -> Self {
        let folder = place.path("mlflow");
        let authority = folder.join("ca.pem");
        if !authority.exists() {
            std::fs::create_dir_all(&folder).expect("a folder");
            let python = place.tool("here", &environment.join("bin/python"));
            tls(python, &["make", text(&folder)]);
        }
        let keys = format!(
            "--ssl-keyfile {0}/server.key --ssl-certfile {0}/server.pem",
            folder.display()
        );
        let users = format!(
            "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{}/users.db\nadmin_username = admin\n\
             authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n",
            folder.display()
        );
        std::fs::write(folder.join("auth.ini"), users).expect("a file");
        let database = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let mut command = place.tool("here", &environment.join("bin/mlflow"));
        let server = command
            .args(["server", "--host", "127.0.0.1", "--workers", "1", "--port"])
            .arg(port.to_string())
            .args(["--backend-store-uri", &database])
            .args(["--app-name", "basic-auth", "--uvicorn-opts", &keys])
            .current_dir(&folder)
            .env("MLFLOW_AUTH_CONFIG_PATH", folder.join("auth.ini"))
            .env("MLFLOW_AUTH_ADMIN_PASSWORD", PASSWORD)
            .env("MLFLOW_FLASK_SERVER_SECRET_KEY", "of a test")
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("MLflow starts");
        let mlflow = Self {
            server,
            endpoint: format!("https://127.0.0.1:{port}"),
            authority,
        };
        let mut python = place.tool("here", &environment.join("bin/python"));
        mlflow.lead(&mut python);
        tls(python, &["wait"]);
        mlflow
    }

    /// Leads a command here, with the login that it wants.
    fn lead<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("MLFLOW_TRACKING_URI", &self.endpoint)
            .env("MLFLOW_TRACKING_SERVER_CERT_PATH", &self.authority)
            .env("MLFLOW_TRACKING_USERNAME", "admin")
            .env("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            .env("WMTP_REVISION", REVISION)
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

/// Calls the helper for certificates under MLflow's own interpreter.
fn tls(mut python: Command, arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mlflow/tls.py");
    Ended::of(python.arg(script).args(arguments)).expect(0);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
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
        mlflow.lead(&mut command);
        command
    }

    fn replay(&self, mlflow: &Mlflow) -> Value {
        let mut command = self.job("here", "wmtp-store", &["mlflow", "replay", "--json"]);
        let ended = Ended::of(mlflow.lead(&mut command)).expect(0);
        serde_json::from_str(ended.stdout.trim()).expect("one object")
    }

    /// Has MLflow's own client and the store's own objects compared.
    fn compare(&self, environment: &Path, mlflow: &Mlflow, prefix: &str) -> Ended {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mlflow/compare.py");
        let mut command = self.tool(prefix, &environment.join("bin/python"));
        let store = format!("s3://wmtp/{prefix}");
        Ended::of(
            mlflow
                .lead(&mut command)
                .arg(script)
                .args([mlflow.endpoint.as_str(), &store, REVISION])
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
        ];
        let mut command = self.job("here", "build-leaderboard", &arguments);
        Ended::of(mlflow.lead(&mut command))
    }

    /// Files of store, scratch and caches that hold the password in any of the forms in which it travels.
    fn files_with_the_password(&self) -> Vec<PathBuf> {
        // printf 'admin:planted-tracking-password' | base64
        let forms = [PASSWORD, "YWRtaW46cGxhbnRlZC10cmFja2luZy1wYXNzd29yZA=="];
        let mut found = Vec::new();
        let mut open = vec![self.path("")];
        while let Some(path) = open.pop() {
            // What the server keeps of its users is its own.
            if path == self.path("mlflow") {
                continue;
            }
            if path.is_dir() {
                let entries = std::fs::read_dir(&path).expect("a folder");
                open.extend(entries.map(|entry| entry.expect("an entry").path()));
                continue;
            }
            let bytes = std::fs::read(&path).expect("a file");
            let holds = |form: &&str| {
                let form = form.as_bytes();
                bytes.windows(form.len()).any(|part| part == form)
            };
            if forms.iter().any(holds) {
                found.push(path);
            }
        }
        found
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
        self.publish_folder("here", Kind::Leaderboard, &folder, "better");
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
    assert!(!said.concat().contains(PASSWORD), "{said:?}");
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
        let ended = Ended::of(&mut place.tracked(step, mlflow)).expect(0);
        assert!(
            !ended
                .stderr
                .contains("\"level\":\"warning\",\"message\":\"tracking"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
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
    let job = [
        "--data=d",
        "--base=base",
        "--recipe=tiny.yaml",
        "--name=d-production",
    ];
    place.run("here", "train-stage2", &job).expect(77);
    place.rename("here", "v001", "d-production");
    place
        .compare(&environment, &mlflow, "here")
        .expect(1)
        .says(&["aliases of d"]);
    place.replay(&mlflow);
    place.compare(&environment, &mlflow, "here").expect(0);

    // Another store with a run of the same id is another run of the same experiment.
    let first = &beginning()[0];
    let mut there = place.job("there", first.job, &first.arguments);
    Ended::of(mlflow.lead(&mut there)).expect(0);
    place.compare(&environment, &mlflow, "there").expect(0);
    place.compare(&environment, &mlflow, "here").expect(0);

    // Neither a wrong password nor a server that nobody vouches for fails a run; both are told, and nothing is sent.
    let elsewhere = |prefix: &str, change: &dyn Fn(&mut Command)| {
        let mut job = place.job(prefix, first.job, &first.arguments);
        change(mlflow.lead(&mut job));
        let ended = Ended::of(&mut job).expect(0);
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
        place.compare(&environment, &mlflow, prefix).expect(1);
        ended
    };
    let wrong = |job: &mut Command| {
        job.env("MLFLOW_TRACKING_PASSWORD", "planted-wrong-password");
    };
    let ended = elsewhere("wrong-password", &wrong).says(&["401"]);
    assert!(!ended.stderr.contains("planted-wrong"), "{}", ended.stderr);
    let unknown = |job: &mut Command| {
        job.env_remove("MLFLOW_TRACKING_SERVER_CERT_PATH");
    };
    elsewhere("unknown-server", &unknown).says(&["certificate"]);
    assert_eq!(place.files_with_the_password(), Vec::<PathBuf>::new());
}
