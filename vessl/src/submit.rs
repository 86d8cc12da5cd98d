//! Submits a chain, one run after another, and follows the runs until all have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wmtp_artifacts::Digest;
use wmtp_job_kit::{Exit, JobError};

use crate::client::{Client, Created, State, is_retryable};
use crate::ledger::{Entry, Ledger, Stand};
use crate::render::Planned;

/// Looks in a row at a run that may bring nothing before it is given up.
const MOST_MISSES: u32 = 10;
/// Looks at the log of a run that has ended before its exit code counts as unknown: logs arrive late.
const MOST_LOOKS: u32 = 4;
/// Time between two looks at the stop flag.
const BLINK: Duration = Duration::from_millis(50);

/// How patient to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Runs at a time.
    pub(crate) at_once: usize,
    /// Evaluations at a time, where they are not counted among all runs.
    pub(crate) evaluations: Option<usize>,
    /// Time between two looks at the runs.
    pub(crate) every: Duration,
    /// Runs of one step, the first included.
    pub(crate) tries: u32,
    /// Time before the second run of a step; doubled with each further one.
    pub(crate) pause: Duration,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not submitted; not before this time.
    Waiting(Option<Instant>),
    /// Under way as this run.
    UnderWay(u64),
    Done,
    /// Failed, with the job's exit code where it is known.
    Failed(Option<u8>),
    /// A step that it waits for failed.
    Skipped,
}

impl Place {
    fn is_settled(self) -> bool {
        matches!(self, Self::Done | Self::Failed(_) | Self::Skipped)
    }
}

/// A step on its way.
struct Walker<'a> {
    planned: &'a Planned,
    spec: Digest,
    place: Place,
    /// Runs that this call submitted.
    tries: u32,
    /// Looks at the log since the run ended.
    looks: u32,
    /// Looks at the run, since the last that told something.
    misses: u32,
}

/// A chain on its way.
pub(crate) struct Course<'a> {
    walkers: Vec<Walker<'a>>,
    client: Client,
    ledger: Ledger,
    pace: Pace,
    say: &'a dyn Fn(String),
}

fn digest(planned: &Planned) -> Result<Digest, JobError> {
    let yaml = planned.spec.to_yaml().map_err(JobError::internal)?;
    Ok(Digest::of(yaml.as_bytes()))
}

/// Where a step is that the ledger knows as this, or does not know; what is made from something that is not done is not
/// current.
fn place_of(entry: Option<&Entry>, is_current: bool) -> Place {
    let known = entry.map(|entry| (entry.stand, entry.runs.last()));
    match known {
        Some((Stand::Done, _)) if is_current => Place::Done,
        Some((Stand::UnderWay, Some(run))) if is_current => Place::UnderWay(*run),
        _ => Place::Waiting(None),
    }
}

/// How many runs each step of a chain takes in all: those that were submitted before, whatever became of them, and one more
/// where it is not done or under way.
pub(crate) fn runs_in_all<'a>(
    chain: &'a [Planned],
    ledger: &Ledger,
) -> Result<BTreeMap<&'a str, usize>, JobError> {
    let (mut done, mut runs) = (BTreeSet::new(), BTreeMap::new());
    for planned in chain {
        let (id, after) = (planned.step.id.as_str(), &planned.step.after);
        let is_current = after.iter().all(|before| done.contains(before.as_str()));
        let place = place_of(ledger.step(id, &digest(planned)?), is_current);
        if place == Place::Done {
            done.insert(id);
        }
        let more = usize::from(matches!(place, Place::Waiting(_)));
        runs.insert(id, ledger.num_runs(id) + more);
    }
    Ok(runs)
}

impl<'a> Course<'a> {
    /// A chain, where an earlier call left it.
    pub(crate) fn new(
        chain: &'a [Planned],
        client: Client,
        ledger: Ledger,
        pace: Pace,
        say: &'a dyn Fn(String),
    ) -> Result<Self, JobError> {
        let mut course = Self {
            walkers: Vec::new(),
            client,
            ledger,
            pace,
            say,
        };
        for planned in chain {
            let spec = digest(planned)?;
            let place = course.place_before(planned, &spec)?;
            course.walkers.push(Walker {
                planned,
                spec,
                place,
                tries: 0,
                looks: 0,
                misses: 0,
            });
        }
        Ok(course)
    }

    /// Where an earlier call left a step. What comes after a step that is made anew is made anew, too, and the ledger says so
    /// from now on: the next call may find that step done.
    fn place_before(&mut self, planned: &Planned, spec: &Digest) -> Result<Place, JobError> {
        let id = &planned.step.id;
        let Some(entry) = self.ledger.step(id, spec) else {
            return Ok(Place::Waiting(None));
        };
        let place = place_of(Some(entry), self.inputs_are_done(planned));
        match place {
            Place::Done => self.tell(id, "done before"),
            Place::UnderWay(run) => self.tell(id, format!("under way as run {run}")),
            _ => {}
        }
        if !matches!(place, Place::Waiting(_)) {
            return Ok(place);
        }
        match (entry.stand, entry.runs.last()) {
            (Stand::UnderWay, Some(run)) => self.tell(
                id,
                format!(
                    "run {run} reads what is made anew now: it goes on at VESSL, and another follows; `vessl run \
                     terminate {run}` ends it"
                ),
            ),
            (Stand::Submitting, _) => self.tell(
                id,
                "submitted before without an answer: it may run already, and then the second run ends with 75",
            ),
            _ => {}
        }
        if matches!(entry.stand, Stand::Done | Stand::UnderWay) {
            self.ledger.record(id, spec, Stand::Failed, None)?;
        }
        Ok(Place::Waiting(None))
    }

    fn inputs_are_done(&self, planned: &Planned) -> bool {
        planned
            .step
            .after
            .iter()
            .all(|before| self.place(before) == Some(Place::Done))
    }

    fn place(&self, id: &str) -> Option<Place> {
        let walker = self
            .walkers
            .iter()
            .find(|walker| walker.planned.step.id == id);
        walker.map(|walker| walker.place)
    }

    fn tell(&self, id: &str, message: impl AsRef<str>) {
        (self.say)(format!("{id}: {}", message.as_ref()));
    }

    /// Submits and follows until every step has settled.
    pub(crate) fn walk(&mut self, stop: &AtomicBool) -> Result<(), JobError> {
        loop {
            self.submit_ready(stop)?;
            self.skip();
            if self
                .walkers
                .iter()
                .all(|walker| walker.place == Place::Done)
            {
                return Ok(());
            }
            // A step that failed while a signal came may have failed by it.
            let is_settled = self.walkers.iter().all(|walker| walker.place.is_settled());
            let has_stopped = if is_settled {
                stop.load(Ordering::SeqCst)
            } else {
                self.rest(stop)
            };
            if has_stopped {
                return Err(JobError::preempted().hint(
                    "runs that were submitted go on at VESSL; the same command follows them again",
                ));
            }
            if is_settled {
                return self.verdict();
            }
            self.look()?;
        }
    }

    /// Gives up what waits for a step that failed.
    fn skip(&mut self) {
        for index in 0..self.walkers.len() {
            let walker = &self.walkers[index];
            if !matches!(walker.place, Place::Waiting(_)) {
                continue;
            }
            let step = &walker.planned.step;
            let lost = step.after.iter().find(|before| {
                matches!(self.place(before), Some(Place::Failed(_) | Place::Skipped))
            });
            if let Some(before) = lost {
                self.tell(
                    &step.id,
                    format!("not submitted, since {before} was not done"),
                );
                self.walkers[index].place = Place::Skipped;
            }
        }
    }

    fn submit_ready(&mut self, stop: &AtomicBool) -> Result<(), JobError> {
        for index in 0..self.walkers.len() {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let walker = &self.walkers[index];
            let Place::Waiting(not_before) = walker.place else {
                continue;
            };
            let is_due = not_before.is_none_or(|then| then <= Instant::now());
            if is_due && self.inputs_are_done(walker.planned) && self.has_room(walker.planned) {
                self.submit(index)?;
            }
        }
        Ok(())
    }

    /// Whether one more run of a step's kind may be under way.
    fn has_room(&self, planned: &Planned) -> bool {
        let apart = |planned: &Planned| {
            let evaluations = self.pace.evaluations;
            evaluations.filter(|_| planned.step.is_evaluation())
        };
        let under_way = self
            .walkers
            .iter()
            .filter(|walker| matches!(walker.place, Place::UnderWay(_)))
            .filter(|walker| apart(walker.planned) == apart(planned));
        under_way.count() < apart(planned).unwrap_or(self.pace.at_once)
    }

    fn submit(&mut self, index: usize) -> Result<(), JobError> {
        let walker = &mut self.walkers[index];
        let id = walker.planned.step.id.clone();
        let spec = walker.spec;
        walker.tries += 1;
        (walker.looks, walker.misses) = (0, 0);
        self.ledger.record(&id, &spec, Stand::Submitting, None)?;
        let error = match self.client.create(&walker.planned.spec) {
            Created::Run(run) => {
                self.ledger.record(&id, &spec, Stand::UnderWay, Some(run))?;
                self.walkers[index].place = Place::UnderWay(run);
                self.tell(&id, format!("submitted as run {run}"));
                return Ok(());
            }
            Created::Refused(error) => {
                self.ledger.record(&id, &spec, Stand::Failed, None)?;
                error
            }
            // The ledger says so still; not tried again by this call.
            Created::Unclear(error) => error.hint(
                "the run may be there all the same: look at VESSL's page before the same command submits it again",
            ),
        };
        self.walkers[index].place = Place::Failed(Some(error.exit().code()));
        self.tell(&id, error.render().trim_end());
        Ok(())
    }

    /// Looks at every run that is under way.
    fn look(&mut self) -> Result<(), JobError> {
        for index in 0..self.walkers.len() {
            let Place::UnderWay(run) = self.walkers[index].place else {
                continue;
            };
            match self.ended(index, run) {
                Ok(end) => {
                    self.walkers[index].misses = 0;
                    if let Some(end) = end {
                        self.settle(index, run, end)?;
                    }
                }
                Err(error) if error.exit() == Exit::Unavailable => self.miss(index, run, &error)?,
                Err(error) => return Err(error.context(format!("following run {run}"))),
            }
        }
        Ok(())
    }

    /// Counts a look that brought nothing; the last of them gives the run up, so that a later call can submit another.
    fn miss(&mut self, index: usize, run: u64, error: &JobError) -> Result<(), JobError> {
        let walker = &mut self.walkers[index];
        let (id, spec) = (walker.planned.step.id.clone(), walker.spec);
        walker.misses += 1;
        let misses = walker.misses;
        self.tell(&id, error.to_string());
        if misses >= MOST_MISSES {
            self.ledger.record(&id, &spec, Stand::Failed, None)?;
            self.walkers[index].place = Place::Failed(Some(error.exit().code()));
            self.tell(
                &id,
                format!(
                    "run {run} is given up after {misses} looks in a row that told nothing; if it goes on at VESSL, \
                     `vessl run terminate {run}` ends it before the same command submits another"
                ),
            );
        }
        Ok(())
    }

    /// Whether a run has ended, and how.
    fn ended(&mut self, index: usize, run: u64) -> Result<Option<End>, JobError> {
        match self.client.state(run)? {
            State::UnderWay => return Ok(None),
            State::Completed => return Ok(Some(End::Done)),
            State::Ended => {}
        }
        let code = self.client.exit_code(run)?;
        let walker = &mut self.walkers[index];
        walker.looks += 1;
        if code.is_none() && walker.looks < MOST_LOOKS {
            return Ok(None);
        }
        Ok(Some(End::Failed(code)))
    }

    fn settle(&mut self, index: usize, run: u64, end: End) -> Result<(), JobError> {
        let walker = &self.walkers[index];
        let (id, spec) = (walker.planned.step.id.clone(), walker.spec);
        let (place, stand, message) = match end {
            End::Done => (Place::Done, Stand::Done, format!("run {run} is done")),
            End::Failed(code) if is_retryable(code) && walker.tries < self.pace.tries => {
                let pause = self.pause(walker.tries);
                let place = Place::Waiting(Some(Instant::now() + pause));
                let secs = pause.as_secs();
                let message = format!("run {run} {}; again in {secs} s", told(code));
                (place, Stand::Failed, message)
            }
            End::Failed(code) => {
                let message = format!(
                    "run {run} {}; `vessl run logs {run}` has its words",
                    told(code)
                );
                (Place::Failed(code), Stand::Failed, message)
            }
        };
        self.ledger.record(&id, &spec, stand, None)?;
        self.walkers[index].place = place;
        self.tell(&id, message);
        Ok(())
    }

    fn pause(&self, tries: u32) -> Duration {
        self.pace.pause * 2_u32.saturating_pow(tries.saturating_sub(1).min(6))
    }

    /// Waits a while; true when a signal asks to stop.
    fn rest(&self, stop: &AtomicBool) -> bool {
        let began = Instant::now();
        while began.elapsed() < self.pace.every {
            if stop.load(Ordering::SeqCst) {
                return true;
            }
            std::thread::sleep(BLINK.min(self.pace.every));
        }
        stop.load(Ordering::SeqCst)
    }

    /// The exit code of the first step that failed, if one did.
    fn verdict(&self) -> Result<(), JobError> {
        let failed: Vec<&Walker<'_>> = self
            .walkers
            .iter()
            .filter(|walker| matches!(walker.place, Place::Failed(_)))
            .collect();
        let Some(Place::Failed(code)) = failed.first().map(|walker| walker.place) else {
            return Ok(());
        };
        let names: Vec<&str> = failed
            .iter()
            .map(|walker| walker.planned.step.id.as_str())
            .collect();
        let skipped = self
            .walkers
            .iter()
            .filter(|walker| walker.place == Place::Skipped)
            .count();
        let message = format!(
            "failed: {}; not submitted after them: {skipped}",
            names.join(", ")
        );
        Err(error_of(code, message)
            .hint("mend what the run's log names; the same command goes on from there"))
    }

    /// Every step and where it ended.
    pub(crate) fn report(&self) -> Value {
        let steps: BTreeMap<&str, Value> = self
            .walkers
            .iter()
            .map(|walker| {
                let id = walker.planned.step.id.as_str();
                let runs = self
                    .ledger
                    .step(id, &walker.spec)
                    .map(|entry| entry.runs.clone());
                let (stand, code) = match walker.place {
                    Place::Waiting(_) => ("waiting", None),
                    Place::UnderWay(_) => ("under_way", None),
                    Place::Done => ("done", None),
                    Place::Failed(code) => ("failed", code),
                    Place::Skipped => ("skipped", None),
                };
                (
                    id,
                    json!({"stand": stand, "exit_code": code, "runs": runs.unwrap_or_default()}),
                )
            })
            .collect();
        json!({"steps": steps})
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Done,
    Failed(Option<u8>),
}

fn told(code: Option<u8>) -> String {
    let known = Exit::ALL.into_iter().find(|exit| Some(exit.code()) == code);
    match (known, code) {
        (Some(exit), _) => format!("ended with {} ({})", exit.code(), exit.as_str()),
        (None, Some(code)) => format!("ended with {code}"),
        (None, None) => {
            "ended without an exit code: it was terminated, or killed for want of memory".to_owned()
        }
    }
}

/// An error that ends this program with a job's exit code.
fn error_of(code: Option<u8>, message: String) -> JobError {
    let exit = Exit::ALL.into_iter().find(|exit| Some(exit.code()) == code);
    match exit {
        Some(Exit::Usage) => JobError::usage(message),
        Some(Exit::BadInput) => JobError::bad_input(message),
        Some(Exit::Unavailable) => JobError::unavailable(message),
        Some(Exit::NoRoom) => JobError::no_room(message),
        Some(Exit::Held) => JobError::held(message),
        Some(Exit::Integrity) => JobError::integrity(message),
        Some(Exit::Refused) => JobError::refused(message),
        Some(Exit::Numeric) => JobError::numeric(message),
        Some(Exit::Preempted) => JobError::preempted().context(message),
        Some(Exit::Done | Exit::Internal) | None => JobError::internal(message),
    }
}
