//! How a fork server comes to be: who puts its walls up, and as what it then starts.
//!
//! A binary whose `main` calls [`launched`] first starts itself anew for each server; that small process puts the walls up around
//! itself and becomes the interpreter. A job that holds a model in memory, or a GPU, is never forked. Anywhere else, as in
//! tests, the walls go up in a forked child.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::confine::{Confinement, Plan, SPARE_ID};

const SOURCE: &str = concat!(include_str!("apart.py"), include_str!("server.py"));
/// First argument of a process that is to become a server; the second says how.
const MARK: &str = "--wmtp-become-server";
/// This binary, even when another was put in its place since it started.
const OWN_BINARY: &str = "/proc/self/exe";
/// Exit status of a launcher that could not become a server; what was wrong stands on its standard error.
const FAILED: u8 = 70;

/// Whether this binary's `main` has asked what it was started for.
static CAN_BECOME_SERVER: AtomicBool = AtomicBool::new(false);

/// How servers are started; the same for every worker and restart.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) python: PathBuf,
    pub(crate) walls: Arc<Confinement>,
    /// Change to the spare user.
    pub(crate) drop_user: bool,
}

/// A [`Launch`] on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    python: PathBuf,
    walls: Plan,
    drop_user: bool,
}

/// Becomes a fork server if that is what this process was started for; then it returns only when that failed.
///
/// To be called first in `main`, while the process has one thread.
#[must_use]
pub fn launched() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != MARK) {
        CAN_BECOME_SERVER.store(true, Ordering::Relaxed);
        return None;
    }
    let order = arguments.next().unwrap_or_default();
    let error = become_server(&order.to_string_lossy());
    // Standard error is the pipe on which the grader listens; there is nobody else to tell.
    let _ = io::Write::write_all(&mut io::stderr(), format!("{error}\n").as_bytes());
    Some(FAILED.into())
}

fn become_server(order: &str) -> io::Error {
    let walls = serde_json::from_str(order)
        .map_err(io::Error::from)
        .and_then(|order: Order| {
            let walls = Confinement::of_plan(order.walls).map_err(io::Error::other)?;
            Ok(Launch {
                python: order.python,
                walls: Arc::new(walls),
                drop_user: order.drop_user,
            })
        });
    match walls {
        Ok(launch) => launch.interpreter().exec(),
        Err(error) => error,
    }
}

/// Whether servers are started by way of this binary.
pub(crate) fn is_own_binary() -> bool {
    CAN_BECOME_SERVER.load(Ordering::Relaxed)
}

impl Launch {
    /// The command that ends up as a server; streams are the caller's.
    pub(crate) fn command(&self) -> io::Result<Command> {
        if !is_own_binary() {
            return Ok(self.interpreter());
        }
        let order = Order {
            python: self.python.clone(),
            walls: self.walls.plan().clone(),
            drop_user: self.drop_user,
        };
        let mut command = Command::new(OWN_BINARY);
        command
            .args([MARK, &serde_json::to_string(&order)?])
            .env_clear()
            .current_dir("/");
        Ok(command)
    }

    /// The interpreter behind its walls, which go up in the process that turns into it.
    fn interpreter(&self) -> Command {
        let mut command = Command::new(&self.python);
        // `-I` is `-E -P -s`; with an emptied environment and the search path cleaned by the server only
        // `-s` is left to ask for, and without `-E` the hash seed can be fixed: verdicts repeat.
        command
            .args(["-s", "-S", "-B", "-c", SOURCE])
            .env_clear()
            .envs([
                ("LANG", "C.UTF-8"),
                ("PATH", "/usr/bin:/bin"),
                ("PYTHONHASHSEED", "0"),
                ("TZ", "UTC"),
            ])
            .current_dir("/");
        if self.drop_user {
            command.uid(SPARE_ID).gid(SPARE_ID);
        }
        self.walls.apply(&mut command);
        command
    }
}
