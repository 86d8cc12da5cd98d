//! Errors of jobs: an exit code, a cause chain and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use wmtp_artifacts::ExitClass;
use wmtp_records::{Lack, jsonl};

use crate::Exit;
use crate::secrets::redact;

type Cause = Box<dyn StdError + Send + Sync>;

/// Why a job or tool ended without a result.
#[derive(Debug)]
pub struct JobError {
    exit: Exit,
    contexts: Vec<String>,
    cause: Cause,
    hint: Option<String>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $exit:ident;)+) => {
        impl JobError {
            $($(#[$doc])* pub fn $name(cause: impl Into<Cause>) -> Self {
                Self::new(Exit::$exit, cause)
            })+
        }
    };
}

constructors! {
    /// Wrong arguments or a broken recipe: [`Exit::Usage`].
    usage = Usage;
    /// Input data missing or malformed: [`Exit::BadInput`].
    bad_input = BadInput;
    /// Store or device unreachable: [`Exit::Unavailable`].
    unavailable = Unavailable;
    /// A mistake of the program: [`Exit::Internal`].
    internal = Internal;
    /// No room on disk or in memory: [`Exit::NoRoom`].
    no_room = NoRoom;
    /// Held by another process: [`Exit::Held`].
    held = Held;
    /// A digest does not match: [`Exit::Integrity`].
    integrity = Integrity;
    /// A gate refuses: [`Exit::Refused`].
    refused = Refused;
    /// Numeric failure after the fallbacks: [`Exit::Numeric`].
    numeric = Numeric;
}

impl JobError {
    /// An error that ends a run with this code.
    pub fn new(exit: Exit, cause: impl Into<Cause>) -> Self {
        Self {
            exit,
            contexts: Vec::new(),
            cause: cause.into(),
            hint: None,
        }
    }

    /// Stopped by a signal after saving what resuming needs: [`Exit::Preempted`].
    pub fn preempted() -> Self {
        Self::new(Exit::Preempted, "stopped by a signal")
            .hint("run the same command again: it goes on from the last saved state")
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what was being done, in front of the cause.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.contexts.insert(0, context.into());
        self
    }

    /// The exit code: [`Exit::NoRoom`] whenever a full disk stands anywhere in the cause chain.
    pub fn exit(&self) -> Exit {
        if is_out_of_room(&*self.cause) {
            Exit::NoRoom
        } else {
            self.exit
        }
    }

    /// Messages from the outermost context to the innermost cause, without repetitions.
    pub fn messages(&self) -> Vec<String> {
        let mut messages = self.contexts.clone();
        let mut cause: Option<&dyn StdError> = Some(&*self.cause);
        while let Some(error) = cause {
            let message = error.to_string();
            let said = messages
                .last()
                .is_some_and(|last: &String| last.ends_with(&message));
            if !said {
                messages.push(message);
            }
            cause = error.source();
        }
        messages.iter().map(|message| redact(message)).collect()
    }

    /// What a person reads: `error: …`, one line per cause, a blank line, `hint: …`; no secrets.
    pub fn render(&self) -> String {
        let messages = self.messages();
        let mut text = format!("error: {}\n", messages[0].trim_end());
        for message in &messages[1..] {
            text.push_str("  caused by: ");
            text.push_str(&message.trim_end().replace('\n', "\n    "));
            text.push('\n');
        }
        let hint = self.hint.clone().or_else(|| {
            (self.exit() == Exit::NoRoom).then(|| {
                "free some space, or point --scratch and WMTP_CACHE at a larger disk".to_owned()
            })
        });
        if let Some(hint) = hint {
            text.push_str("\nhint: ");
            text.push_str(&redact(&hint));
            text.push('\n');
        }
        text
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.messages().join(": "))
    }
}

impl StdError for JobError {}

/// Whether a full disk stands anywhere in a cause chain, also within what `io::Error` wraps, which its `source` skips.
pub fn is_out_of_room(error: &(dyn StdError + 'static)) -> bool {
    if let Some(io) = error.downcast_ref::<io::Error>() {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&io.kind()) {
            return true;
        }
        if let Some(inner) = io.get_ref() {
            return is_out_of_room(inner);
        }
    }
    error.source().is_some_and(is_out_of_room)
}

impl From<wmtp_artifacts::Error> for JobError {
    fn from(error: wmtp_artifacts::Error) -> Self {
        let exit = match error.exit_class() {
            ExitClass::Usage => Exit::Usage,
            ExitClass::BadInput => Exit::BadInput,
            ExitClass::Unavailable => Exit::Unavailable,
            ExitClass::Internal => Exit::Internal,
            ExitClass::NoRoom => Exit::NoRoom,
            ExitClass::Held => Exit::Held,
            ExitClass::Integrity => Exit::Integrity,
        };
        let hint = error.hint();
        let mut job_error = Self::new(exit, error);
        job_error.hint = hint;
        job_error
    }
}

impl From<wmtp_recipe::Error> for JobError {
    fn from(error: wmtp_recipe::Error) -> Self {
        Self::usage(error).hint("`--explain` lists every setting, its value and its source")
    }
}

impl From<jsonl::Error> for JobError {
    fn from(error: jsonl::Error) -> Self {
        Self::new(Exit::from(&error), error)
    }
}

impl From<Lack> for JobError {
    fn from(lack: Lack) -> Self {
        match lack {
            Lack::Vocabulary { .. } => Self::bad_input(lack),
            // Settings ask for heads, data do not.
            Lack::Heads { .. } => Self::usage(lack),
        }
    }
}

impl From<io::Error> for JobError {
    fn from(error: io::Error) -> Self {
        Self::internal(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the checkpoint")]
    struct Wrapped {
        #[source]
        source: io::Error,
    }

    #[test]
    fn a_full_disk_anywhere_in_the_chain_is_no_room() {
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(JobError::from(full()).exit(), Exit::NoRoom);
        let wrapped = JobError::bad_input(Wrapped { source: full() });
        assert_eq!(wrapped.exit(), Exit::NoRoom);
        let inside = io::Error::other(Wrapped { source: full() });
        assert_eq!(JobError::internal(inside).exit(), Exit::NoRoom);
        assert_eq!(
            JobError::internal("no disk involved").exit(),
            Exit::Internal
        );
    }

    #[test]
    fn errors_render_as_message_causes_and_hint() {
        let source = io::Error::other("the cable is unplugged");
        let error = JobError::unavailable(Wrapped { source })
            .context("publishing the outputs")
            .hint("plug it in");
        insta::assert_snapshot!(error.render(), @r"
        error: publishing the outputs
          caused by: cannot write the checkpoint
          caused by: the cable is unplugged

        hint: plug it in
        ");
    }

    #[test]
    fn every_constructor_has_its_code() {
        let errors = [
            JobError::usage("x"),
            JobError::bad_input("x"),
            JobError::unavailable("x"),
            JobError::internal("x"),
            JobError::no_room("x"),
            JobError::held("x"),
            JobError::integrity("x"),
            JobError::refused("x"),
            JobError::numeric("x"),
            JobError::preempted(),
        ];
        let exits: Vec<Exit> = errors.iter().map(JobError::exit).collect();
        assert_eq!(exits, Exit::ALL[1..]);
    }
}
