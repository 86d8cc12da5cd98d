//! Runs: what was asked for, how it goes, what came of it. Written by claim holders, read by the site.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::claim::Stored;
use crate::manifest::parse_strict;
use crate::{ArtifactId, Digest, Error, Input, Remark, Result, RunId, Store, layout};

/// `run.json`: what a run was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The run.
    pub run_id: RunId,
    /// The job.
    pub job: String,
    /// Digest of all that determines the result.
    pub cache_key: Digest,
    /// Inputs by role.
    pub inputs: Vec<Input>,
    /// The resolved recipe, or null.
    pub recipe: Value,
    /// Version of the program.
    pub code_version: String,
    /// The commit that it was built from, followed by `-dirty` where its checkout had changes of its own, or `unknown`;
    /// none where an older program wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_revision: Option<String>,
    /// A label of the machine, for people.
    pub host: String,
    /// Anything the site wants to group by, such as the recipe's version.
    pub labels: BTreeMap<String, String>,
    /// When the run was first started.
    pub started_at: Timestamp,
}

/// How an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It works, or was killed: see [`RunView::is_lost`].
    Running,
    /// It has its result.
    Completed,
    /// It ended with an error.
    Failed,
    /// It was asked to stop and can be resumed.
    Preempted,
}

impl RunState {
    /// Whether the attempt is over, by its own word.
    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }
}

/// `status.json`: how an attempt stands now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// State.
    pub state: RunState,
    /// What it is doing, in a word or two.
    pub phase: String,
    /// Number of the last batch of events.
    pub last_event_seq: u64,
    /// How far it is.
    pub progress: Option<RunProgress>,
    /// The last value of each metric; none is not a number.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// When the holder last wrote, by its own clock.
    pub heartbeat_at: Timestamp,
}

/// How far an attempt is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunProgress {
    /// Units done.
    pub done: u64,
    /// Units in all, when known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: String,
    /// Units per second.
    pub rate: Option<f64>,
    /// Seconds left.
    pub eta_secs: Option<f64>,
}

/// `result.json`: what came of a run. Written once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Artifacts by role.
    pub outputs: BTreeMap<String, ArtifactId>,
    /// The attempt that finished.
    pub attempt: u32,
    /// When.
    pub finished_at: Timestamp,
    /// Times, rates and other facts that are no part of any artifact.
    pub summary: Value,
}

/// A checkpoint of a run, to resume from or to look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointEntry {
    /// Optimiser steps done.
    pub step: u64,
    /// Attempt that wrote it.
    pub attempt: u32,
    /// The state.
    pub id: ArtifactId,
    /// Value of the metric that chooses the best, if it was measured and finite.
    pub metric: Option<f64>,
    /// How many states of the run a collection keeps; the newest entry decides.
    #[serde(default = "default_keep_last")]
    pub keep_last: u32,
}

/// Two, should the newest be damaged.
fn default_keep_last() -> u32 {
    2
}

/// All that is known about a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    /// What was asked for.
    pub request: RunRequest,
    /// The newest attempt; 0 when none was begun.
    pub attempt: u32,
    /// Its status, once it wrote one.
    pub status: Option<Status>,
    /// Whether it says it is running but was not heard of for 90 s, by the store's clock.
    pub is_lost: bool,
    /// The result, once there is one.
    pub result: Option<RunResult>,
    /// Events of all attempts in order.
    pub events: Vec<Value>,
    /// Log lines of all attempts in order.
    pub logs: Vec<Value>,
    /// What people noted, the oldest first.
    pub remarks: Vec<Remark>,
    /// Lines that were no JSON, and remarks that are none; they were left out.
    pub num_bad_lines: u64,
}

/// How a run stands, all attempts considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunLife {
    /// It has its result.
    Completed,
    /// An attempt is at work.
    Running,
    /// The last attempt was asked to stop, and can be resumed.
    Preempted,
    /// The last attempt ended with an error.
    Failed,
    /// The last attempt says that it works, and was not heard of for long.
    Lost,
    /// No attempt has begun.
    Waiting,
}

impl RunView {
    /// How the run stands.
    pub fn life(&self) -> RunLife {
        match self.status.as_ref().map(|status| status.state) {
            _ if self.result.is_some() => RunLife::Completed,
            _ if self.is_lost => RunLife::Lost,
            None => RunLife::Waiting,
            Some(RunState::Running) => RunLife::Running,
            Some(RunState::Completed) => RunLife::Completed,
            Some(RunState::Failed) => RunLife::Failed,
            Some(RunState::Preempted) => RunLife::Preempted,
        }
    }
}

impl Store {
    /// All runs.
    pub async fn runs(&self) -> Result<Vec<RunId>> {
        let folders = self.bucket.list_folders(layout::RUNS).await?;
        Ok(folders
            .iter()
            .filter_map(|folder| folder.parse().ok())
            .collect())
    }

    /// All that is known about a run.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such run.
    pub async fn run(&self, id: &RunId) -> Result<RunView> {
        let request = self.read_json(&layout::run_request(id)).await?;
        let request = request.ok_or_else(|| self.no_run(id))?;
        let attempts = self.attempts(id).await?;
        let attempt = attempts.last().copied().unwrap_or(0);
        let key = layout::status(id, attempt);
        let status: Option<Status> = self.read_json(&key).await?;
        let is_running = status
            .as_ref()
            .is_some_and(|status| !status.state.is_terminal());
        let age = self.bucket.head(&key).await?.and_then(|head| head.age);
        let is_lost = is_running && age.is_some_and(|age| age >= self.heartbeat_ttl());
        let (remarks, mut num_bad_lines) = self.remarks(id).await?;
        let events = self
            .lines(id, &attempts, "events", &mut num_bad_lines)
            .await?;
        let logs = self
            .lines(id, &attempts, "logs", &mut num_bad_lines)
            .await?;
        Ok(RunView {
            request,
            attempt,
            status,
            is_lost,
            result: self.read_json(&layout::run_result(id)).await?,
            events,
            logs,
            remarks,
            num_bad_lines,
        })
    }

    pub(crate) fn no_run(&self, id: &RunId) -> Error {
        Error::NotFound {
            what: format!("run {id}"),
            store: self.bucket.place(),
            hint: None,
        }
    }

    /// The events of a run as they were written, in order: [`RunView::events`] for whoever needs the text of a number.
    pub async fn event_lines(&self, id: &RunId) -> Result<Vec<String>> {
        let attempts = self.attempts(id).await?;
        let lines = self.texts(id, &attempts, "events").await?;
        let texts = lines.into_iter().map(String::from_utf8);
        Ok(texts.filter_map(std::result::Result::ok).collect())
    }

    /// Numbers of a run's attempts, lowest first.
    pub(crate) async fn attempts(&self, id: &RunId) -> Result<Vec<u32>> {
        let folders = self.bucket.list_folders(&layout::attempts(id)).await?;
        let mut numbers: Vec<u32> = folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// A stored JSON object, or none.
    pub(crate) async fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>> {
        let Some(bytes) = self.bucket.get(key).await? else {
            return Ok(None);
        };
        let value = parse_strict(&bytes)?;
        serde_json::from_value::<Stored<T>>(value)
            .map(|stored| Some(stored.value))
            .map_err(|error| {
                Error::bad_input(
                    format!("{key} in {}", self.bucket.place()),
                    error.to_string(),
                )
            })
    }

    /// The JSON lines of all batches of all attempts, in order.
    async fn lines(
        &self,
        id: &RunId,
        attempts: &[u32],
        what: &str,
        num_bad: &mut u64,
    ) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        for line in self.texts(id, attempts, what).await? {
            match serde_json::from_slice(&line) {
                Ok(value) => lines.push(value),
                Err(_) => *num_bad += 1,
            }
        }
        Ok(lines)
    }

    /// The same lines as they were written.
    async fn texts(&self, id: &RunId, attempts: &[u32], what: &str) -> Result<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        for &attempt in attempts {
            for key in self.bucket.list(&layout::lines(id, attempt, what)).await? {
                let bytes = self.bucket.get(&key).await?.unwrap_or_default();
                let whole = bytes.split(|&byte| byte == b'\n');
                lines.extend(whole.filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
            }
        }
        Ok(lines)
    }
}
