//! Programs and stores as tests use them: how a command ended, and a way to the embedded server. What does not hold is a
//! panic.

use std::process::{Command, Output};

use dev_store::TestServer;
use serde_json::Value;
use wmtp_artifacts::{Credentials, Store, StoreOptions};

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it told people.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("programs print text");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

#[expect(
    clippy::return_self_not_must_use,
    reason = "a check is often the last word on a command"
)]
impl Ended {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output();
        output
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
            .into()
    }

    /// Unless it ended with `code`, shows what it said.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// It told people every one of `words`.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in:\n{}",
                self.stderr
            );
        }
        self
    }

    /// What it printed, which is JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.parsed(&self.stdout)
    }

    /// The last line that it printed, with which a job under `--json` says what it wrote.
    #[track_caller]
    pub fn result(&self) -> Value {
        self.parsed(self.stdout.lines().last().unwrap_or_default())
    }

    #[track_caller]
    fn parsed(&self, text: &str) -> Value {
        let parsed = serde_json::from_str(text);
        parsed.unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.stdout, self.stderr))
    }

    /// The error as people see it, without the JSON lines before it.
    #[track_caller]
    pub fn error(&self) -> &str {
        let start = self.stderr.find("error: ");
        let start = start.unwrap_or_else(|| panic!("no error in {}", self.stderr));
        self.stderr[start..].trim_end()
    }
}

/// The variables that lead a program to a server.
pub fn variables(server: &TestServer) -> [(&'static str, &str); 4] {
    [
        ("AWS_ENDPOINT_URL_S3", server.endpoint()),
        ("AWS_ACCESS_KEY_ID", server.access_key()),
        ("AWS_SECRET_ACCESS_KEY", server.secret_key()),
        ("AWS_REGION", server.region()),
    ]
}

/// The options that lead a store to a server.
pub fn options(server: &TestServer) -> StoreOptions {
    StoreOptions {
        endpoint: Some(server.endpoint().to_owned()),
        region: Some(server.region().to_owned()),
        credentials: Some(Credentials::new(server.access_key(), server.secret_key())),
        ..StoreOptions::default()
    }
}

/// A store on a server.
pub async fn connect(server: &TestServer, uri: &str) -> Store {
    let uri = uri.parse().expect("an address");
    let store = Store::connect(&uri, options(server)).await;
    store.expect("a store on the server")
}
