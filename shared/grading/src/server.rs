//! One fork server: its process and its protocol.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::confine::Confinement;
use crate::launch::Launch;

/// Replies hold a report, the end of a stream, and the output that was asked for; more is a broken server.
const MAX_FRAME_BYTES: usize = 1 << 20;
/// What one byte takes in JSON at most.
const ESCAPED_BYTES: usize = 6;
/// A frame begins with the length of what follows.
const LENGTH_BYTES: usize = 4;
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// What a server gets beyond the program's wall limit before it counts as stuck.
const GRACE: Duration = Duration::from_secs(15);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One program with its limits, as the server reads it.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) source: &'a str,
    /// Random per program; a report without it is not the server's.
    pub(crate) token: &'a str,
    pub(crate) cpu_secs: u64,
    pub(crate) wall_secs: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) output_bytes: u64,
    /// For a program that is judged by what it prints.
    pub(crate) stdin: Option<&'a str>,
    /// Bytes of standard output to send back; one that is longer is cut.
    pub(crate) keep_stdout: usize,
}

/// How a fork ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Reply {
    /// Wait status.
    pub(crate) status: i32,
    /// Whether the server killed it at the wall limit.
    pub(crate) timed_out: bool,
    pub(crate) cpu_secs: f64,
    pub(crate) wall_secs: f64,
    /// What the fork wrote into its private file: `token kind`, then the message from the second line on.
    pub(crate) report: String,
    pub(crate) stderr: String,
    pub(crate) stdout: String,
}

/// A candidate whose tests run in another process, as the server reads it. It must not learn the tests.
#[derive(Debug, Serialize)]
pub(crate) struct ApartRequest<'a> {
    pub(crate) candidate: &'a str,
    /// For each of the two processes.
    pub(crate) cpu_secs: u64,
    pub(crate) wall_secs: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) output_bytes: u64,
}

/// The tests, as the process that runs them reads them.
#[derive(Debug, Serialize)]
pub(crate) struct JudgeRequest<'a> {
    pub(crate) tests: &'a str,
    pub(crate) token: &'a str,
}

/// How candidate and tests ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ApartReply {
    /// Wait status of the process that ran the tests.
    pub(crate) status: i32,
    /// Wait status of the candidate's; killed when the tests had ended.
    pub(crate) candidate_status: i32,
    /// Whether the server killed them at the wall limit.
    pub(crate) timed_out: bool,
    /// Of both.
    pub(crate) cpu_secs: f64,
    pub(crate) wall_secs: f64,
    /// As of [`Reply`].
    pub(crate) report: String,
}

#[derive(Serialize)]
struct Hello {
    fork_filter: String,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
}

/// A running fork server. Dropping it ends the process and whatever it was running.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    control: UnixStream,
    /// How long the stream waits for the other side.
    patience: Option<Duration>,
}

impl Server {
    /// Starts a server behind its walls and waits until it is warm.
    ///
    /// Must be called on the thread that will own it: the kernel kills the server when that thread ends.
    pub(crate) fn start(launch: &Launch) -> io::Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        let mut command = launch.command()?;
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn()?;
        // The kernel's choice when memory runs out should be a program, never the job; best effort.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "900");
        let mut server = Self {
            child,
            control,
            patience: None,
        };
        server.greet(&launch.walls).map_err(|error| {
            let said = server.last_words();
            io::Error::new(error.kind(), format!("{error}; it said: {said}"))
        })?;
        Ok(server)
    }

    fn greet(&mut self, walls: &Confinement) -> io::Result<()> {
        self.set_patience(START_TIMEOUT)?;
        self.send(&Hello {
            fork_filter: walls.fork_filter_hex(),
        })?;
        let Ready { ready } = self.receive(MAX_FRAME_BYTES)?;
        if ready {
            Ok(())
        } else {
            Err(io::Error::other("the server is not ready"))
        }
    }

    /// Ends a server that did not come up and returns the last line of its standard error.
    fn last_words(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(1 << 16).read_to_string(&mut said);
        }
        said.lines().last().unwrap_or("nothing").to_owned()
    }

    /// Runs one program. An error means that the server is broken or stuck and must be replaced.
    pub(crate) fn run(&mut self, request: &Request<'_>) -> io::Result<Reply> {
        self.set_patience(Duration::from_secs(request.wall_secs) + GRACE)?;
        self.send(request)?;
        self.receive(MAX_FRAME_BYTES + ESCAPED_BYTES * request.keep_stdout)
    }

    /// Runs a candidate and its tests in processes of their own; errors as of [`Self::run`].
    pub(crate) fn run_apart(
        &mut self,
        candidate: &ApartRequest<'_>,
        judge: &JudgeRequest<'_>,
    ) -> io::Result<ApartReply> {
        self.set_patience(Duration::from_secs(candidate.wall_secs) + GRACE)?;
        self.send(candidate)?;
        self.send(judge)?;
        self.receive(MAX_FRAME_BYTES)
    }

    fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        let patience = Some(patience);
        if self.patience != patience {
            self.control.set_read_timeout(patience)?;
            self.control.set_write_timeout(patience)?;
            self.patience = patience;
        }
        Ok(())
    }

    fn send<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut frame = vec![0; LENGTH_BYTES];
        serde_json::to_writer(&mut frame, value)?;
        let length = u32::try_from(frame.len() - LENGTH_BYTES)
            .map_err(|_| io::Error::other("a program of more than 4 GiB"))?;
        frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.control.write_all(&frame)
    }

    fn receive<T: DeserializeOwned>(&mut self, limit: usize) -> io::Result<T> {
        let mut length = [0; LENGTH_BYTES];
        self.control.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > limit {
            return Err(io::Error::other("a reply over the size limit"));
        }
        let mut body = vec![0; length];
        self.control.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    #[cfg(test)]
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    /// Hangs up, on which the server kills and reaps its fork and leaves; one that does not is killed.
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both);
        let asked = Instant::now();
        while asked.elapsed() < LEAVE_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
