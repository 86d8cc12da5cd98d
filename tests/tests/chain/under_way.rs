//! A job that a test meets in the middle of its work.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use trial::Ended;

/// Sends a process a signal by its name.
pub(crate) fn signal(name: &str, process: u32) {
    let done = Command::new("sh")
        .args(["-c", &format!("kill -{name} {process}")])
        .status();
    assert!(done.expect("a shell").success());
}

/// A job under way and what it has said so far.
pub(crate) struct Started {
    pub(crate) job: Child,
    said: String,
}

impl Started {
    /// Starts a job and waits until it has done a step.
    pub(crate) fn at_work(mut command: Command) -> Self {
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
        // What is told of a step once it is done.
        while !started.said.contains(r#""type":"metrics""#) {
            let read = lines.read_line(&mut started.said).expect("text");
            assert!(read > 0, "it ended before its first step: {}", started.said);
        }
        started
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
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
