//! Holding a run: one process works on it at a time, and another takes over when it dies.
//!
//! A claim saves work and is never needed for correctness: everything it guards is create-only.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::commit::create_only;
use crate::holder::Holder;
use crate::manifest::new_write_id;
use crate::{
    ArtifactId, CacheEntry, CheckpointEntry, Digest, Error, Outcome, Result, RunId, RunRequest,
    RunResult, RunView, Status, Store, fault, layout,
};

/// A holder that was not heard of for so long has lost its claim.
const HEARTBEAT_TTL: Duration = Duration::from_secs(90);
/// Races for an attempt after which the run counts as held.
const MAX_ROUNDS: usize = 8;

/// A record with the mark of the one write that created it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored<T> {
    #[serde(flatten)]
    pub(crate) value: T,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write_id: Option<String>,
}

impl<T: Serialize> Stored<T> {
    pub(crate) fn bytes(value: T) -> Vec<u8> {
        let stored = Self {
            value,
            write_id: Some(new_write_id()),
        };
        serde_json::to_vec(&stored).expect("records hold only JSON types")
    }
}

/// One attempt at a run, held by this process.
#[derive(Debug, Clone)]
pub struct Claim {
    store: Store,
    run_id: RunId,
    attempt: u32,
    mark: Digest,
}

impl Claim {
    /// Claims the next attempt at a run.
    ///
    /// The attempt before it must be over: by its own word, because it was silent for 90 s by the store's
    /// clock, or because its process ran on this machine and is gone.
    ///
    /// # Errors
    /// [`Error::Held`] when another process is at work.
    pub async fn take(store: &Store, request: &RunRequest) -> Result<Self> {
        let run_id = request.run_id.clone();
        let key = layout::run_request(&run_id);
        let bytes = Stored::bytes(request);
        let (_, found) = create_only(&store.bucket, &key, bytes, |_| true).await?;
        for _ in 0..MAX_ROUNDS {
            let last = store.attempts(&run_id).await?.last().copied().unwrap_or(0);
            if last > 0 {
                refuse_if_held(store, &run_id, last).await?;
            }
            let attempt = last + 1;
            let key = layout::claim(&run_id, attempt);
            let holder = Stored::bytes(Holder::this_process(&request.host));
            let (outcome, _) = create_only(&store.bucket, &key, holder, |_| false).await?;
            if outcome != Outcome::TheirsDifferent {
                fault::point("run:after-claim");
                return Ok(Self {
                    store: store.clone(),
                    run_id,
                    attempt,
                    mark: Digest::of(&found),
                });
            }
        }
        Err(held(&run_id, "others, who took every attempt first"))
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.run_id
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What tells this run from one of the same id in another store, wherever the two are reached: the digest of its request,
    /// which holds the random mark of the write that created it.
    pub fn mark(&self) -> &Digest {
        &self.mark
    }

    /// Says how the attempt stands, and that it lives. Due every 15 s.
    pub async fn heartbeat(&self, status: &Status) -> Result<()> {
        let key = layout::status(&self.run_id, self.attempt);
        let bytes = serde_json::to_vec(status).expect("a status holds only JSON types");
        self.store.bucket.put(&key, Bytes::from(bytes)).await
    }

    /// Checks that no newer attempt was begun, as happens after a long pause of this process.
    ///
    /// # Errors
    /// [`Error::Held`] when one was: then nothing more is to be committed.
    pub async fn still_mine(&self) -> Result<()> {
        let last = self
            .store
            .attempts(&self.run_id)
            .await?
            .last()
            .copied()
            .unwrap_or(0);
        if last > self.attempt {
            return Err(held(
                &self.run_id,
                &format!("attempt {last}, which took over from this one"),
            ));
        }
        Ok(())
    }

    /// Writes a batch of events; the number counts batches from 0 without holes.
    pub async fn events(&self, seq: u64, lines: &[String]) -> Result<()> {
        self.lines("events", seq, lines).await
    }

    /// Writes a batch of log lines; numbered as events are.
    pub async fn logs(&self, seq: u64, lines: &[String]) -> Result<()> {
        self.lines("logs", seq, lines).await
    }

    async fn lines(&self, what: &str, seq: u64, lines: &[String]) -> Result<()> {
        let key = format!(
            "{}{seq:08}.jsonl",
            layout::lines(&self.run_id, self.attempt, what)
        );
        let mut text = lines.join("\n");
        text.push('\n');
        let (outcome, _) =
            create_only(&self.store.bucket, &key, text.into_bytes(), |_| false).await?;
        match outcome {
            Outcome::TheirsDifferent => Err(Error::corrupt(
                key,
                "this batch was written before, with other lines",
            )),
            _ => Ok(()),
        }
    }

    /// Records a checkpoint whose artifact is committed. A metric that is not finite is left out.
    /// `keep_last` is how many of the run's states a collection keeps at least, from now on.
    pub async fn checkpoint(
        &self,
        step: u64,
        id: &ArtifactId,
        metric: Option<f64>,
        keep_last: u32,
    ) -> Result<()> {
        let key = layout::checkpoint(&self.run_id, step, self.attempt);
        let entry = Stored::bytes(CheckpointEntry {
            step,
            attempt: self.attempt,
            id: id.clone(),
            metric: metric.filter(|value| value.is_finite()),
            keep_last,
        });
        let mut turns = self.store.turns_for([id], format!("run {}", self.run_id));
        loop {
            let look = turns.next().await?;
            create_only(&self.store.bucket, &key, entry.clone(), |_| true).await?;
            if look.is_valid() {
                return Ok(());
            }
        }
    }

    /// Checkpoints of all attempts, newest step first. Whoever resumes walks back past damaged ones.
    pub async fn checkpoints(&self) -> Result<Vec<CheckpointEntry>> {
        let mut entries: Vec<CheckpointEntry> = Vec::new();
        for key in self
            .store
            .bucket
            .list(&layout::checkpoints(&self.run_id))
            .await?
        {
            match self.store.read_json::<CheckpointEntry>(&key).await {
                Ok(entry) => entries.extend(entry),
                Err(error @ (Error::BadInput { .. } | Error::Corrupt { .. })) => {
                    tracing::warn!(key, %error, "a checkpoint entry is skipped");
                }
                Err(error) => return Err(error),
            }
        }
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.step, entry.attempt)));
        Ok(entries)
    }

    /// Writes the run's result, once and for all. An equal result of another attempt is as good as ours.
    pub async fn finish(&self, result: &RunResult) -> Result<Outcome> {
        self.store.finish(&self.run_id, result).await
    }
}

impl Store {
    /// Writes the result of a run that ended between recording what it made and saying so. Returns whether it lacked one.
    /// A run that is still held, or that this store does not know, is left alone.
    pub async fn make_up_result(&self, entry: &CacheEntry) -> Result<bool> {
        let run_id = &entry.run_id;
        let key = layout::run_result(run_id);
        if self.bucket.head(&key).await?.is_some() {
            return Ok(false);
        }
        let view = match self.run(run_id).await {
            Ok(view) if view.attempt > 0 => view,
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        match refuse_if_held(self, run_id, view.attempt).await {
            Err(Error::Held { .. }) => return Ok(false),
            other => other?,
        }
        let result = RunResult {
            outputs: entry.outputs.clone(),
            attempt: view.attempt,
            finished_at: entry.created_at,
            summary: elapsed(&view, entry.created_at),
        };
        self.finish(run_id, &result).await?;
        Ok(true)
    }

    async fn finish(&self, run_id: &RunId, result: &RunResult) -> Result<Outcome> {
        fault::point("run:before-result");
        let key = layout::run_result(run_id);
        let is_equal = |found: &[u8]| {
            serde_json::from_slice::<Stored<RunResult>>(found)
                .is_ok_and(|theirs| theirs.value.outputs == result.outputs)
        };
        let bytes = Stored::bytes(result);
        let mut turns = self.turns_for(result.outputs.values(), format!("run {run_id}"));
        loop {
            let look = turns.next().await?;
            let (outcome, _) = create_only(&self.bucket, &key, bytes.clone(), is_equal).await?;
            if look.is_valid() {
                return Ok(outcome);
            }
        }
    }

    /// How long a silent holder keeps its claim.
    pub(crate) fn heartbeat_ttl(&self) -> Duration {
        self.bucket.options.heartbeat_ttl.unwrap_or(HEARTBEAT_TTL)
    }
}

/// What the events tell of the time that the last attempt took until then.
fn elapsed(view: &RunView, until: Timestamp) -> Value {
    let begun = view.events.iter().rev();
    let mut begun = begun.filter(|event| event["type"] == "started");
    let begun: Option<Timestamp> = begun
        .next()
        .and_then(|event| event["ts"].as_str()?.parse().ok());
    match begun {
        Some(begun) => json!({"elapsed_secs": until.duration_since(begun).as_secs().max(0)}),
        None => json!({}),
    }
}

/// Fails when the attempt is alive.
async fn refuse_if_held(store: &Store, run_id: &RunId, attempt: u32) -> Result<()> {
    let status: Option<Status> = store.read_json(&layout::status(run_id, attempt)).await?;
    if status.is_some_and(|status| status.state.is_terminal()) {
        return Ok(());
    }
    let claim_key = layout::claim(run_id, attempt);
    let holder: Option<Holder> = store.read_json(&claim_key).await?;
    if holder.as_ref().is_some_and(Holder::is_gone) {
        return Ok(());
    }
    let head = match store.bucket.head(&layout::status(run_id, attempt)).await? {
        Some(head) => Some(head),
        None => store.bucket.head(&claim_key).await?,
    };
    // A store without a clock in its answers gives no age: then the holder counts as alive.
    let age = head.and_then(|head| head.age);
    if age.is_some_and(|age| age >= store.heartbeat_ttl()) {
        return Ok(());
    }
    let host = holder.map_or_else(|| "an unknown host".to_owned(), |holder| holder.host);
    let heard = age.map_or_else(String::new, |age| {
        format!(", heard of {} s ago", age.as_secs())
    });
    Err(held(run_id, &format!("attempt {attempt} on {host}{heard}")))
}

fn held(run_id: &RunId, holder: &str) -> Error {
    Error::Held {
        run: format!("run {run_id}"),
        holder: holder.to_owned(),
    }
}
