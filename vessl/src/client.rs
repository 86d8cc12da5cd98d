//! VESSL's own client, `vessl`: what it is asked and how its replies are read.
//!
//! It is written for people: it colours its words, and it ends with success when it did not submit anything. So nothing
//! counts here but what a reply holds: the number of a run, a state, an exit code that the job itself printed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use wmtp_job_kit::{Exit, JobError};

use crate::spec::RunSpec;

/// Longest time that one call may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// Time between two looks at a call.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of a run's log that may hold its exit code: what stands behind it is the error for people.
const TAIL: &str = "200";

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits, starts, works or ends.
    UnderWay,
    /// It ended with 0.
    Completed,
    /// It ended otherwise, or was ended.
    Ended,
}

/// What came of a submission.
pub(crate) enum Created {
    /// The run's number.
    Run(u64),
    /// There is no run.
    Refused(JobError),
    /// The call broke off: the run may or may not be there.
    Unclear(JobError),
}

/// What the client printed, and what went wrong with the call.
struct Reply {
    text: String,
    trouble: Option<JobError>,
}

/// The program `vessl`.
pub(crate) struct Client {
    program: PathBuf,
    /// Outside every git repository: the client looks for one and fails in a worktree.
    folder: tempfile::TempDir,
}

impl Client {
    pub(crate) fn new(program: PathBuf) -> Result<Self, JobError> {
        let folder = tempfile::tempdir()?;
        Ok(Self { program, folder })
    }

    /// Submits a run.
    pub(crate) fn create(&self, spec: &RunSpec) -> Created {
        let reply = match self.send(spec) {
            Ok(reply) => reply,
            Err(error) => return Created::Refused(error),
        };
        // A call may break off behind what it did.
        match (run_number(&reply.text), reply.trouble) {
            (Some(run), _) => Created::Run(run),
            (None, Some(trouble)) => Created::Unclear(trouble),
            (None, None) => Created::Refused(
                JobError::unavailable(format!(
                    "VESSL did not take the run: no number of a run in the reply\n{}",
                    reply.text.trim()
                ))
                .hint("the client says above what it wants; `vessl configure` sets account and project"),
            ),
        }
    }

    fn send(&self, spec: &RunSpec) -> Result<Reply, JobError> {
        let path = self.folder.path().join(format!("{}.yaml", spec.name));
        std::fs::write(&path, spec.to_yaml().map_err(JobError::internal)?)?;
        self.call(&["run", "create", "-f", &path.to_string_lossy()])
    }

    /// Where a run is.
    pub(crate) fn state(&self, run: u64) -> Result<State, JobError> {
        let reply = self.told(&["run", "read", &run.to_string()])?;
        let Some(word) = status(&reply) else {
            // The reply holds the run's variables, so it is not shown.
            return Err(JobError::unavailable(format!(
                "run {run}: no status in the client's reply"
            )));
        };
        match word {
            "completed" => Ok(State::Completed),
            "failed" | "terminated" | "stopped" => Ok(State::Ended),
            "queued" | "pending" | "initializing" | "running" | "idle" | "stopping"
            | "waitToBeKilled" => Ok(State::UnderWay),
            other => Err(JobError::internal(format!(
                "run {run} is {other:?}, a state that is not known here"
            ))
            .hint("look at the run on VESSL's page; the same command goes on from here")),
        }
    }

    /// The exit code that the job wrote into its log before it ended.
    pub(crate) fn exit_code(&self, run: u64) -> Result<Option<u8>, JobError> {
        let reply = self.told(&["run", "logs", &run.to_string(), "--tail", TAIL])?;
        Ok(exit_code(&reply))
    }

    /// What the client prints to a call that changes nothing.
    fn told(&self, arguments: &[&str]) -> Result<String, JobError> {
        let reply = self.call(arguments)?;
        reply.trouble.map_or(Ok(reply.text), Err)
    }

    /// Calls the client.
    ///
    /// # Errors
    /// A client that cannot be started: nothing was asked.
    fn call(&self, arguments: &[&str]) -> Result<Reply, JobError> {
        let what = format!("{} {}", self.program.display(), arguments[..2].join(" "));
        let mut printed = tempfile::tempfile()?;
        let mut child = Command::new(&self.program)
            .args(arguments)
            .current_dir(self.folder.path())
            .env("VESSL_DATA_COLLECTION_OPT_OUT", "true")
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(printed.try_clone()?)
            // A terminal's Ctrl-C is for this program: a call that it broke off may have submitted a run all the same.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                JobError::unavailable(error)
                    .context(format!("starting {}", self.program.display()))
                    .hint("`pip install vessl==0.1.199` under Python 3.9 to 3.12, or --client FILE")
            })?;
        let waited = wait(&mut child);
        let text = read_back(&mut printed).unwrap_or_default();
        let trouble = match waited {
            Ok(Some(status)) if status.success() => None,
            Ok(Some(status)) => {
                let message = format!("{what} ended with {status}\n{}", text.trim());
                Some(JobError::unavailable(message))
            }
            Ok(None) => {
                let message = format!("{what}: no reply within {} s", PATIENCE.as_secs());
                Some(JobError::unavailable(message))
            }
            Err(error) => Some(JobError::from(error).context(what)),
        };
        Ok(Reply { text, trouble })
    }
}

/// Waits for a call; one that takes too long is ended.
fn wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// What was printed, without colours.
fn read_back(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(plain(&String::from_utf8_lossy(&bytes)))
}

/// Text without the escapes that colour a terminal.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|letter: char| letter.is_ascii_alphabetic());
        plain.push_str(end.map_or("", |end| &part[end + 1..]));
    }
    plain
}

/// The number at the end of the link to a run.
fn run_number(reply: &str) -> Option<u64> {
    let link = reply
        .split_whitespace()
        .rfind(|word| word.starts_with("http") && word.contains("/runs/"))?;
    link.rsplit('/').next()?.parse().ok()
}

fn status(reply: &str) -> Option<&str> {
    reply
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Status "))
        .find(|word| !word.starts_with("reason"))
        .map(str::trim)
}

fn exit_code(log: &str) -> Option<u8> {
    log.lines().rev().find_map(|line| {
        let (_, json) = line.split_once('{')?;
        let line: Value = serde_json::from_str(&format!("{{{json}")).ok()?;
        let is_end = line["type"] == "ended";
        let code = line["data"]["exit_code"].as_u64().filter(|_| is_end)?;
        u8::try_from(code).ok()
    })
}

/// Whether a launcher should start the same command again.
pub(crate) fn is_retryable(code: Option<u8>) -> bool {
    Exit::ALL
        .iter()
        .any(|exit| Some(exit.code()) == code && exit.is_retryable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_run_is_that_of_its_link() {
        // As client 0.1.199 prints it.
        let reply = "\u{1b}[38;5;244m[2026-11-27 20:07:33]\u{1b}[0m\u{1b}[96m Check your Run at: \
                     https://app.vessl.ai/acme/runs/wmtp/369367\u{1b}[0m\n";
        assert_eq!(run_number(&plain(reply)), Some(369_367));
        let refusal = "\u{1b}[38;5;244m[2026-11-27 20:07:33]\u{1b}[0m\u{1b}[91m Field image does not exist! \
                       Please specify them in your yaml.\u{1b}[0m\n";
        assert_eq!(run_number(&plain(refusal)), None);
        assert_eq!(run_number("https://app.vessl.ai/acme/runs/wmtp/"), None);
    }

    #[test]
    fn the_status_is_not_its_reason() {
        let reply = " \u{1b}[32mID\u{1b}[0m 12\n \u{1b}[32mStatus reason\u{1b}[0m none\n \
                     \u{1b}[32mStatus\u{1b}[0m running\n";
        assert_eq!(status(&plain(reply)), Some("running"));
        assert_eq!(status("nothing"), None);
    }

    #[test]
    fn the_last_exit_code_of_a_log_counts() {
        let log = "[00:00:01.5] {\"type\":\"ended\",\"data\":{\"exit_code\":75}}\n\
                   [00:00:02.5] {\"type\":\"ended\",\"data\":{\"exit_code\":143}}\n\
                   [00:00:02.6] error: stopped by a signal\n";
        assert_eq!(exit_code(log), Some(143));
        assert_eq!(
            exit_code("[00:00:02.6] {\"type\":\"failed\",\"data\":{\"exit_code\":65}}"),
            None
        );
        let again: Vec<u8> = (0..=255).filter(|code| is_retryable(Some(*code))).collect();
        assert_eq!(again, [69, 75, 143]);
        assert!(!is_retryable(None));
    }
}
