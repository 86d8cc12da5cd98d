//! moto: a double of S3 in Python, one process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::skipped;

/// A server on a port of its own choice, empty.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    endpoint: String,
}

impl Moto {
    /// Starts the program that `WMTP_MOTO` names; where it names none, says that the test is skipped.
    ///
    /// # Panics
    /// If the program does not start: whoever names it means to test with it.
    pub fn start_named() -> Option<Self> {
        if let Ok(program) = std::env::var("WMTP_MOTO") {
            return Some(Self::start(&program));
        }
        skipped("moto; WMTP_MOTO does not name its program");
        None
    }

    fn start(program: &str) -> Self {
        let started = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process =
            started.unwrap_or_else(|error| panic!("{program}, which WMTP_MOTO names: {error}"));
        let log = process.stderr.take().expect("its messages are piped");
        let lines = BufReader::new(log).lines();
        let mut lines = lines.map(|line| line.expect("moto writes text"));
        let endpoint = lines.find_map(|line| {
            let (_, address) = line.split_once("http://")?;
            Some(format!("http://{}", address.trim_end_matches('/')))
        });
        let endpoint = endpoint.expect("moto says where it listens");
        // What it has to say must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, endpoint }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Access key and secret key; moto takes any.
    pub fn key(&self) -> &'static str {
        "test"
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
