//! What a job works with while it runs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use wmtp_artifacts::{Claim, Draft, Kind, Manifest, Provenance};
use wmtp_recipe::Recipe;

use crate::report::{Progress, Reporter};
use crate::signals::Stop;
use crate::usage::Account;
use crate::{Crew, Exit, JobError, Links, StoreHandle};

/// One output of a job, made in a folder; the kit publishes it.
#[derive(Debug, Clone)]
pub struct Output {
    /// Role that the plan gave it.
    pub role: String,
    /// What it is.
    pub kind: Kind,
    /// Folder with its files and nothing else.
    pub dir: PathBuf,
    /// Small facts about it that readers need without fetching it.
    pub attributes: BTreeMap<String, String>,
}

impl Output {
    /// An output without attributes.
    pub fn new(role: &str, kind: Kind, dir: impl Into<PathBuf>) -> Self {
        Self {
            role: role.to_owned(),
            kind,
            dir: dir.into(),
            attributes: BTreeMap::new(),
        }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, key: &str, value: impl ToString) -> Self {
        self.attributes.insert(key.to_owned(), value.to_string());
        self
    }
}

/// A claimed run: inputs, scratch space, progress, checkpoints.
pub struct Run {
    pub(crate) recipe: Recipe,
    pub(crate) inputs: BTreeMap<String, Manifest>,
    pub(crate) fetched: RefCell<BTreeMap<String, PathBuf>>,
    pub(crate) store: StoreHandle,
    pub(crate) claim: Claim,
    pub(crate) provenance: Provenance,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) scratch: PathBuf,
    pub(crate) kept: PathBuf,
    pub(crate) stop: Stop,
    /// Time between the signal to stop and the kill behind it.
    pub(crate) grace: Duration,
    pub(crate) started: Instant,
    /// What this attempt has taken.
    pub(crate) account: Account,
    /// Whether saved states of earlier attempts count.
    pub(crate) may_resume: bool,
}

impl Run {
    /// The resolved recipe; defaults where the job was started without one.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The files of an input: a read-only folder, every file verified.
    pub fn input(&self, role: &str) -> Result<PathBuf, JobError> {
        if let Some(dir) = self.fetched.borrow().get(role) {
            return Ok(dir.clone());
        }
        let id = &self.manifest(role)?.id;
        let dir = self
            .store
            .fetch(id)
            .map_err(|error| error.context(format!("input {role}: fetching {id}")))?;
        self.fetched
            .borrow_mut()
            .insert(role.to_owned(), dir.clone());
        Ok(dir)
    }

    /// The manifest of an input.
    pub fn manifest(&self, role: &str) -> Result<&Manifest, JobError> {
        self.inputs
            .get(role)
            .ok_or_else(|| JobError::internal(format!("the plan registered no input {role:?}")))
    }

    /// An attribute of an input.
    pub fn attribute(&self, role: &str, key: &str) -> Result<&str, JobError> {
        let manifest = self.manifest(role)?;
        manifest
            .attribute(key)
            .ok_or_else(|| JobError::bad_input(format!("{} has no attribute {key:?}", manifest.id)))
    }

    /// Starts the other processes of this run, `ranks` with this one, each with so many threads. They get this one's command
    /// line and inputs and go to [`crate::Job::follow`].
    ///
    /// # Errors
    /// A process that cannot be started, or ends before it is connected to the others.
    pub fn crew(&self, ranks: usize, threads: usize) -> Result<(Crew, Links), JobError> {
        self.account.has_ranks(ranks);
        Crew::start(self, ranks, threads)
    }

    /// The store, for what this run reads or records beside its inputs and outputs.
    pub fn store(&self) -> &StoreHandle {
        &self.store
    }

    /// A folder of this attempt, removed when it ends.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A folder of this run on this disk that outlives a killed attempt and goes when the run is done. The next attempt
    /// on the same disk finds it again; on another it is empty, so what must not be lost is saved to the store too.
    pub fn kept_dir(&self) -> Result<PathBuf, JobError> {
        std::fs::create_dir_all(&self.kept).map_err(|error| {
            JobError::from(error).context(format!("creating {}", self.kept.display()))
        })?;
        Ok(self.kept.clone())
    }

    /// A fresh, empty folder for an output.
    pub fn output_dir(&self, role: &str) -> Result<PathBuf, JobError> {
        let dir = self.scratch.join("outputs").join(role);
        remove_folder(&dir)?;
        std::fs::create_dir_all(&dir).map_err(|error| {
            JobError::from(error).context(format!("creating {}", dir.display()))
        })?;
        Ok(dir)
    }

    /// Starts a part of the work; a total of 0 is unknown.
    pub fn progress(&self, label: &str, unit: &str, total: u64) -> Progress {
        Progress::new(&self.reporter, label, unit, total)
    }

    /// Reports values of a step.
    pub fn metrics(&self, step: u64, values: &[(&str, f64)]) {
        self.reporter.metrics(step, values);
    }

    /// Reports something that a person should know and that stops nothing.
    pub fn warning(&self, message: impl Into<String>) {
        let message = message.into();
        self.reporter.say("warning", &message);
        if let Some(journal) = self.reporter.journal() {
            journal.event("warning", &json!({"message": message}));
        }
    }

    /// Reports something with numbers for programs; [`Run::warning`] or [`Run::log`] tells people.
    pub fn event(&self, kind: &str, data: &serde_json::Value) {
        self.reporter.event(kind, data);
    }

    /// Reports something for people.
    pub fn log(&self, message: impl Into<String>) {
        self.reporter.say("info", &message.into());
    }

    /// Whether a signal asked to stop: save a checkpoint and return [`JobError::preempted`].
    pub fn should_stop(&self) -> bool {
        self.stop.flag.load(Ordering::SeqCst)
    }

    /// What is left of the time between a signal to stop and the kill behind it; all of it as long as there was none.
    pub fn grace_left(&self) -> Duration {
        let since = self.stop.since.get();
        self.grace
            .saturating_sub(since.map_or(Duration::ZERO, Instant::elapsed))
    }

    /// [`Run::should_stop`] as the error that the run ends with.
    ///
    /// # Errors
    /// [`JobError::preempted`].
    pub fn go_on(&self) -> Result<(), JobError> {
        if self.should_stop() {
            return Err(JobError::preempted());
        }
        Ok(())
    }

    /// [`Run::should_stop`] as what a loop of somebody else's asks for after each round.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.should_stop() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// The flag behind [`Run::should_stop`], for worker threads.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop.flag)
    }

    /// Stores a folder as the state that a later attempt goes on from. Of older states a collection of the store keeps
    /// as many as `optim.keep_last` says.
    ///
    /// # Errors
    /// 143 where the grace of a stop is over before the store has it: the older states stay as they are.
    pub fn save_checkpoint(
        &self,
        step: u64,
        dir: &Path,
        metric: Option<f64>,
    ) -> Result<(), JobError> {
        let draft = Draft {
            kind: Kind::Checkpoint,
            root: dir.to_owned(),
            attributes: BTreeMap::from([
                ("run_id".to_owned(), self.run_id().to_owned()),
                ("state_of_step".to_owned(), step.to_string()),
            ]),
        };
        let store = self.store.store();
        let keep_last = u32::try_from(self.recipe.optim.keep_last).unwrap_or(u32::MAX);
        let saved = self.store.unless_stopped(self.grace_left(), async {
            let manifest = store.publish(&draft, &self.provenance).await?;
            self.claim
                .checkpoint(step, &manifest.id, metric, keep_last)
                .await?;
            Ok(manifest.id)
        });
        let id = saved.inspect_err(|error| {
            if error.exit() == Exit::Preempted {
                self.tell_unsaved(step);
            }
        })?;
        let metric = metric.filter(|metric| metric.is_finite());
        let data = json!({"step": step, "artifact": id, "metric": metric});
        self.reporter.event("checkpoint", &data);
        Ok(())
    }

    fn tell_unsaved(&self, step: u64) {
        let secs = self.grace.as_secs();
        self.warning(format!(
            "the state of step {step} is not saved: the store has not taken it {secs} s after the signal; the next start \
             goes on from the state before it, or begins with the first step where there is none"
        ));
        self.event("not_saved", &json!({"step": step}));
    }

    /// The newest saved state of this run that is whole: its step and a read-only folder. Damaged ones are skipped
    /// with a warning.
    pub fn latest_checkpoint(&self) -> Result<Option<(u64, PathBuf)>, JobError> {
        if !self.may_resume {
            return Ok(None);
        }
        let saved = async { Ok(self.claim.checkpoints().await?) };
        for entry in self.store.unless_stopped(Duration::ZERO, saved)? {
            match self.store.fetch(&entry.id) {
                Ok(dir) => {
                    self.log(format!("going on from step {} ({})", entry.step, entry.id));
                    let data = json!({"step": entry.step, "artifact": entry.id});
                    self.reporter.event("resumed", &data);
                    return Ok(Some((entry.step, dir)));
                }
                // The state is no worse for it.
                Err(error) if matches!(error.exit(), Exit::Unavailable | Exit::Preempted) => {
                    return Err(error);
                }
                Err(error) => {
                    self.warning(format!(
                        "saved state of step {} skipped: {error}",
                        entry.step
                    ));
                }
            }
        }
        Ok(None)
    }

    /// The present time, for records that stand outside what ids hash.
    pub fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    /// Time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The run's id: the job and the start of its cache key.
    pub fn run_id(&self) -> &str {
        self.claim.run_id().as_str()
    }
}

/// Removes a folder if it is there.
pub(crate) fn remove_folder(dir: &Path) -> Result<(), JobError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(JobError::from(error).context(format!("removing {}", dir.display())))
        }
        _ => Ok(()),
    }
}
