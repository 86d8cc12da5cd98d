//! What a tool works with: no claim, no cache, a store only where it asks for one.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use wmtp_artifacts::StoreUri;
use wmtp_recipe::Recipe;

use crate::args::refuse_alias;
use crate::life::{self, Session};
use crate::report::Progress;
use crate::{ArtifactId, Job, JobError, StoreHandle};

/// A mode that needs no claim and leaves no artifact.
pub trait Tool: clap::Args + Sized {
    /// One sentence for `--help`.
    const ABOUT: &'static str;
    /// Commands shown below the help, one a line.
    const EXAMPLES: &'static str;

    /// Does the work.
    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError>;
}

/// What a tool is given.
pub struct ToolCx<'a> {
    session: &'a Session,
    store: OnceCell<StoreHandle>,
    result: Option<Value>,
}

impl<'a> ToolCx<'a> {
    pub(crate) fn new(session: &'a Session, store: Option<StoreHandle>) -> Self {
        let cell = OnceCell::new();
        if let Some(store) = store {
            // A fresh cell takes its first value.
            let _ = cell.set(store);
        }
        Self {
            session,
            store: cell,
            result: None,
        }
    }

    /// One line of data on stdout; with `--json` nothing, so that the last line stays the only one.
    pub fn print(&mut self, line: impl AsRef<str>) {
        if !self.is_json() {
            to_stdout(line.as_ref());
        }
    }

    /// The object that ends stdout under `--json`, also where the tool ends with an error after it: a check tells
    /// what it found.
    pub fn json_result(&mut self, value: Value) {
        self.result = Some(value);
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.session.common.json
    }

    /// Whether `--dry-run` or `--explain` was given: print what would happen, touch nothing.
    pub fn is_dry_run(&self) -> bool {
        self.session.common.dry_run || self.session.common.explain
    }

    /// The name given with `--name`.
    pub fn name(&self) -> Option<&str> {
        self.session.common.name.as_deref()
    }

    /// Starts a part of the work; a total of 0 is unknown.
    pub fn progress(&self, label: &str, unit: &str, total: u64) -> Progress {
        Progress::new(&self.session.reporter, label, unit, total)
    }

    /// Tells people something that stops nothing.
    pub fn warning(&self, message: impl Into<String>) {
        self.session.reporter.say("warning", &message.into());
    }

    /// Tells people something.
    pub fn log(&self, message: impl Into<String>) {
        self.session.reporter.say("info", &message.into());
    }

    /// The resolved recipe.
    ///
    /// # Errors
    /// Exit code 2 when there is no `--recipe`.
    pub fn recipe(&self) -> Result<&Recipe, JobError> {
        crate::plan::recipe(self.session.resolved.as_ref())
    }

    /// Where the store is, which nobody asks.
    ///
    /// # Errors
    /// Exit code 2 without `--store`, or where it is no address.
    pub fn store_uri(&self) -> Result<StoreUri, JobError> {
        Ok(self.session.store_address()?.parse()?)
    }

    /// The store, connected with the first call.
    ///
    /// # Errors
    /// Exit code 2 without `--store`, 69 when it cannot be reached.
    pub fn store(&self) -> Result<&StoreHandle, JobError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = self.session.open_store(false)?;
        self.session.at_work.store(true, Ordering::SeqCst);
        Ok(self.store.get_or_init(|| store))
    }

    /// Runs a job as its own command would, but for the name of its outputs; says what they are, and whether they were
    /// there before.
    ///
    /// # Errors
    /// As the job's own command.
    pub fn run_job<J: Job>(
        &mut self,
        job: &J,
        name: &str,
    ) -> Result<(BTreeMap<String, ArtifactId>, bool), JobError> {
        refuse_alias(Some(name))?;
        let done = life::result_of(job, self.session, self.store()?, Some(name))?;
        job.deliver(&done.outputs, self)?;
        Ok((done.outputs, done.is_cached))
    }

    /// What a job would give without working: the result that the store has, whole.
    ///
    /// # Errors
    /// Those of the job's plan.
    pub fn stored_result_of<J: Job>(
        &self,
        job: &J,
    ) -> Result<Option<BTreeMap<String, ArtifactId>>, JobError> {
        life::stored_result_of(job, self.session, self.store()?)
    }

    /// Folder for temporary files; the tool creates what it needs below.
    pub fn scratch(&self) -> &Path {
        &self.session.common.scratch
    }

    /// The present time.
    pub fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    /// Rises when a signal asks to stop. Who asks for it is not ended by the first signal.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.session.at_work.store(true, Ordering::SeqCst);
        Arc::clone(&self.session.stop.flag)
    }

    /// Asked between parts of the work: whether a signal asks to stop.
    ///
    /// # Errors
    /// [`JobError::preempted`].
    pub fn go_on(&self) -> Result<(), JobError> {
        if self.session.stop.flag.load(Ordering::SeqCst) {
            return Err(JobError::preempted());
        }
        Ok(())
    }

    /// Prints the result of `--json`.
    pub(crate) fn end(self) {
        if let (true, Some(value)) = (self.session.common.json, self.result) {
            to_stdout(&value.to_string());
        }
    }
}

/// A line on stdout; nobody left to read it is no reason to fail.
pub(crate) fn to_stdout(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
