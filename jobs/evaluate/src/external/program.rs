//! The program of a model from outside: started with the problems, watched, ended when its time is over.
//!
//! It is the user's own program and needs files, a network or a device, so no sandbox holds it. It gets none of this
//! process's environment but what finds programs and a device, and what it writes is read as data from a stranger.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use wmtp_job_kit::JobError;

/// Variables that it may see. Credentials, stores and settings are not among them.
const ENVIRONMENT: [&str; 6] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
];
/// Between two looks at it.
const EVERY: Duration = Duration::from_millis(20);
/// Bytes that it may write.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes of its last words that an error tells.
const LAST_WORDS: u64 = 2000;

/// One asking of a program.
pub(crate) struct Asking<'a> {
    pub(crate) program: &'a Path,
    /// What it reads on stdin.
    pub(crate) questions: &'a Path,
    /// Where its stdout goes.
    pub(crate) answers: &'a Path,
    /// Time that it may take.
    pub(crate) limit: Duration,
}

/// Refuses a file that the system would not start.
pub(crate) fn require_executable(path: &Path) -> Result<(), JobError> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o111 != 0 {
        return Ok(());
    }
    let path = path.display();
    Err(JobError::bad_input(format!("{path} is not executable")).hint(format!("chmod +x {path}")))
}

impl Asking<'_> {
    /// Runs the program to its end. `elapsed` is the time of the run, `stopped` whether a signal asked to stop.
    ///
    /// # Errors
    /// Bad input where it cannot be started, fails or writes too much; unavailable when its time is over.
    pub(crate) fn wait(
        &self,
        elapsed: &dyn Fn() -> Duration,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), JobError> {
        let began = elapsed();
        let mut child = self.start()?;
        let broken_off = loop {
            if let Some(status) = child.try_wait()? {
                return self.ended(status);
            }
            if stopped() {
                break JobError::preempted();
            }
            if elapsed().saturating_sub(began) > self.limit {
                let what = format!("took longer than {} s", self.limit.as_secs());
                break self
                    .error(JobError::unavailable(what))
                    .hint("give it more time with --infer-secs");
            }
            if fs::metadata(self.answers)?.len() > MOST_BYTES {
                let what = format!("wrote more than {} MiB", MOST_BYTES >> 20);
                break self.error(JobError::bad_input(what));
            }
            std::thread::sleep(EVERY);
        };
        end(&mut child)?;
        Err(broken_off)
    }

    fn start(&self) -> Result<Child, JobError> {
        let kept = ENVIRONMENT.into_iter();
        let mut command = Command::new(self.program);
        command
            .env_clear()
            .envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(File::open(self.questions)?)
            .stdout(File::create(self.answers)?)
            .stderr(File::create(self.words())?)
            .process_group(0);
        if let Some(folder) = self.program.parent() {
            command.current_dir(folder);
        }
        command.spawn().map_err(|error| {
            self.error(JobError::bad_input(error))
                .context("it cannot be started")
                .hint("its first line names its interpreter, such as `#!/usr/bin/env python3`")
        })
    }

    /// Where its stderr goes.
    fn words(&self) -> PathBuf {
        self.answers.with_extension("stderr")
    }

    fn ended(&self, status: ExitStatus) -> Result<(), JobError> {
        if status.success() {
            return Ok(());
        }
        let words = last_words(&self.words()).unwrap_or_default();
        let said = if words.is_empty() {
            "and said nothing".to_owned()
        } else {
            format!("and said last:\n{words}")
        };
        let what = format!("ended with {status} {said}");
        Err(self.error(JobError::bad_input(what)))
    }

    fn error(&self, error: JobError) -> JobError {
        error.context(self.program.display().to_string())
    }
}

/// Ends a program with all that it started.
fn end(child: &mut Child) -> io::Result<()> {
    // It may have ended in this moment.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait().map(|_| ())
}

/// The end of what was said, as text that moves no terminal.
fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let inert = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    Ok(text.trim_end().chars().map(inert).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use wmtp_job_kit::Exit;

    use super::*;

    /// Runs a shell script; each look at the clock is a second later.
    fn asked(script: &str, limit: u64, stopped: bool) -> (tempfile::TempDir, Result<(), JobError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("questions"), "one\ntwo\n").unwrap();
        fs::write(path("infer"), script).unwrap();
        fs::set_permissions(path("infer"), fs::Permissions::from_mode(0o755)).unwrap();
        let clock = Cell::new(Duration::ZERO);
        let elapsed = || {
            clock.set(clock.get() + Duration::from_secs(1));
            clock.get()
        };
        let asking = Asking {
            program: &path("infer"),
            questions: &path("questions"),
            answers: &path("told.part"),
            limit: Duration::from_secs(limit),
        };
        let late = || stopped && clock.get() > Duration::from_secs(30);
        let done = asking.wait(&elapsed, &late);
        (folder, done)
    }

    #[test]
    fn it_reads_the_questions_and_sees_none_of_the_environment_that_is_not_its_own() {
        let (folder, done) = asked("#!/bin/sh\ncat\nenv\npwd\n", 1_000_000, false);
        done.unwrap();
        let told = fs::read_to_string(folder.path().join("told.part")).unwrap();
        let mut lines = told.lines();
        assert_eq!((lines.next(), lines.next()), (Some("one"), Some("two")));
        // The shell adds its own folder and its last command.
        let shell = ["PWD", "OLDPWD", "SHLVL", "_"];
        for line in lines {
            if let Some((name, _)) = line.split_once('=') {
                assert!(
                    ENVIRONMENT.contains(&name) || shell.contains(&name),
                    "{line}"
                );
            }
        }
        let own = folder.path().canonicalize().unwrap();
        assert!(told.ends_with(&format!("{}\n", own.display())), "{told}");
    }

    #[test]
    fn its_failure_is_told_with_its_last_words_without_terminal_codes() {
        let (_folder, done) = asked(
            "#!/bin/sh\nprintf '\\033[31mno model\\n' >&2\nexit 3\n",
            1_000_000,
            false,
        );
        let error = done.unwrap_err();
        assert_eq!(error.exit(), Exit::BadInput);
        let text = error.to_string();
        assert!(
            text.contains("infer") && text.contains("exit status: 3"),
            "{text}"
        );
        assert!(
            text.contains("no model") && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[test]
    fn it_is_ended_with_its_children_when_its_time_is_over_or_a_signal_comes() {
        let script = "#!/bin/sh\nsleep 1000 &\necho $! $$\nwait\n";
        for (limit, stopped, exit) in [
            (30, false, Exit::Unavailable),
            (1_000_000, true, Exit::Preempted),
        ] {
            let (folder, done) = asked(script, limit, stopped);
            assert_eq!(done.unwrap_err().exit(), exit);
            let told = fs::read_to_string(folder.path().join("told.part")).unwrap();
            assert_eq!(told.split_whitespace().count(), 2, "{told}");
            // Gone, or dead and not yet collected by the process that took it over.
            let lives = |process: &str| {
                let state = fs::read_to_string(format!("/proc/{process}/stat"));
                state.is_ok_and(|state| !state.contains(") Z "))
            };
            // A signal is there when it was sent, and works when the kernel comes to it.
            let mut looks = 0..3000;
            for process in told.split_whitespace() {
                while lives(process) && looks.next().is_some() {
                    std::thread::sleep(EVERY);
                }
                assert!(!lives(process), "{process}");
            }
        }
    }

    #[test]
    fn what_cannot_be_started_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("infer");
        fs::write(&path, "print(1)\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = require_executable(&path).unwrap_err();
        assert!(error.render().contains("chmod +x"), "{}", error.render());
        let (_folder, done) = asked("#!/no/such/interpreter\n", 1_000_000, false);
        let error = done.unwrap_err();
        assert_eq!(error.exit(), Exit::BadInput);
        assert!(
            error.render().contains("#!/usr/bin/env"),
            "{}",
            error.render()
        );
    }
}
