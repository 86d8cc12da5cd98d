//! What a run tells the store while it works: events, logs, heartbeat. One thread sends; the job never waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Handle;
use wmtp_artifacts::{Claim, RunProgress, RunState, Status};
use wmtp_tracking::{Missing, Sink};

use crate::JobError;
use crate::secrets::redact;

const HEARTBEAT: Duration = Duration::from_secs(15);
const FLUSH_AFTER: Duration = Duration::from_secs(10);
const FLUSH_LOG_LINES: usize = 50;
const FLUSH_EVENT_BYTES: usize = 64 << 10;
/// Lines kept while the store cannot be reached; the oldest go first.
const MOST_LINES: usize = 10_000;
const LONGEST_LINE: usize = 8 << 10;
const SCHEMA: u32 = 1;

/// Lines that wait to be sent. A batch that was begun is sent unchanged until it arrives: batches are create-only.
#[derive(Default)]
struct Buffer {
    waiting: VecDeque<String>,
    bytes: usize,
    /// Number of the next line.
    next_line: u64,
    dropped: u64,
    batch: Option<Vec<String>>,
    batch_number: u64,
}

impl Buffer {
    fn push(&mut self, line: String) {
        self.next_line += 1;
        self.bytes += line.len();
        self.waiting.push_back(line);
        if self.waiting.len() > MOST_LINES {
            let oldest = self.waiting.pop_front().unwrap_or_default();
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }

    /// The batch to send: the one that has not arrived yet, else all that waits.
    fn batch(&mut self) -> Option<(u64, Vec<String>)> {
        if self.batch.is_none() && !self.waiting.is_empty() {
            self.batch = Some(self.waiting.drain(..).collect());
            self.bytes = 0;
        }
        self.batch.clone().map(|lines| (self.batch_number, lines))
    }

    fn arrived(&mut self) {
        self.batch = None;
        self.batch_number += 1;
    }
}

struct State {
    events: Buffer,
    logs: Buffer,
    status: Status,
    urgent: bool,
    closing: bool,
}

struct Shared {
    claim: Claim,
    job: String,
    runtime: Handle,
    state: Mutex<State>,
    wake: Condvar,
}

/// The sender of one attempt.
pub(crate) struct Journal {
    shared: Arc<Shared>,
    /// Is told the events that the store is sent.
    tracking: Option<Sink>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The thread of a journal to come, asked for before there is a claim: one that the system does not give must not leave a
/// claim behind without a heartbeat.
pub(crate) struct Sender {
    begin: mpsc::Sender<Arc<Shared>>,
    thread: JoinHandle<()>,
}

impl Sender {
    /// Starts the thread, which waits; dropped, it ends.
    pub(crate) fn ready() -> Result<Self, JobError> {
        let (begin, begun) = mpsc::channel::<Arc<Shared>>();
        let work = move || {
            if let Ok(shared) = begun.recv() {
                shared.work();
            }
        };
        let thread = std::thread::Builder::new().name("journal".to_owned());
        let thread = thread.spawn(work).map_err(|error| {
            JobError::no_room(error)
                .context("starting the thread that tells the store how the run goes")
                .hint("give the job more memory, or the user more processes (ulimit -u)")
        })?;
        Ok(Self { begin, thread })
    }
}

impl Journal {
    /// Starts to send; the first heartbeat goes out at once.
    pub(crate) fn start(
        sender: Sender,
        claim: Claim,
        job: &str,
        runtime: Handle,
        tracking: Option<Sink>,
    ) -> Self {
        let status = Status {
            state: RunState::Running,
            phase: "starting".to_owned(),
            last_event_seq: 0,
            progress: None,
            metrics: BTreeMap::new(),
            heartbeat_at: jiff::Timestamp::now(),
        };
        let shared = Arc::new(Shared {
            claim,
            job: job.to_owned(),
            runtime,
            state: Mutex::new(State {
                events: Buffer::default(),
                logs: Buffer::default(),
                status,
                urgent: false,
                closing: false,
            }),
            wake: Condvar::new(),
        });
        let Sender { begin, thread } = sender;
        // It waits for this, and ends on nothing else.
        let _ = begin.send(Arc::clone(&shared));
        Self {
            shared,
            tracking,
            thread: Mutex::new(Some(thread)),
        }
    }

    /// Queues an event; all but progress and metrics are sent at once.
    pub(crate) fn event(&self, kind: &str, data: &Value) {
        let mut state = self.shared.lock();
        let seq = state.events.next_line;
        let line = json!({
            "schema": SCHEMA,
            "run_id": self.shared.claim.run_id(),
            "attempt": self.shared.claim.attempt(),
            "seq": seq,
            "ts": jiff::Timestamp::now(),
            "type": kind,
            "job": self.shared.job,
            "data": data,
        });
        let line = redact(&line.to_string());
        if let Some(tracking) = &self.tracking {
            tracking.event(kind, &line);
        }
        state.events.push(line);
        state.status.last_event_seq = seq;
        if !matches!(kind, "progress" | "metrics") {
            self.shared.hurry(state);
        }
    }

    /// Queues a log line; errors are sent at once with what stands before them.
    pub(crate) fn log(&self, level: &str, message: &str) {
        let mut state = self.shared.lock();
        let message: String = redact(message).chars().take(LONGEST_LINE).collect();
        let line = json!({
            "seq": state.logs.next_line,
            "ts": jiff::Timestamp::now(),
            "level": level,
            "message": message,
        });
        state.logs.push(line.to_string());
        if level == "error" {
            self.shared.hurry(state);
        }
    }

    /// What the next heartbeat says about progress.
    pub(crate) fn progress(&self, phase: &str, progress: RunProgress) {
        let mut state = self.shared.lock();
        phase.clone_into(&mut state.status.phase);
        state.status.progress = Some(progress);
    }

    /// What the next heartbeat says about metrics; values that are no finite number become null.
    pub(crate) fn metrics(&self, values: &[(&str, f64)]) {
        let mut state = self.shared.lock();
        for (name, value) in values {
            let value = value.is_finite().then_some(*value);
            state.status.metrics.insert((*name).to_owned(), value);
        }
    }

    /// Sends what waits, writes the last status and ends the thread. Returns what a tracking server did not take: it is
    /// asked last, when the store has everything.
    pub(crate) fn close(&self, end: RunState) -> Option<Missing> {
        {
            let mut state = self.shared.lock();
            state.status.state = end;
            state.closing = true;
        }
        self.shared.wake.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic of the sender is no reason to fail a run whose result stands.
            let _ = thread.join();
        }
        self.tracking.as_ref()?.close()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hurry(&self, mut state: MutexGuard<'_, State>) {
        state.urgent = true;
        drop(state);
        self.wake.notify_all();
    }

    fn work(&self) {
        let mut last_flush = Instant::now();
        let mut last_beat: Option<Instant> = None;
        loop {
            let (due, closing) = self.wait(last_flush.elapsed() >= FLUSH_AFTER);
            if due || closing {
                self.flush();
                last_flush = Instant::now();
            }
            if closing || last_beat.is_none_or(|beat| beat.elapsed() >= HEARTBEAT) {
                self.beat();
                last_beat = Some(Instant::now());
            }
            if closing {
                return;
            }
        }
    }

    /// Waits up to a second; returns whether lines are due and whether the journal closes.
    fn wait(&self, is_time: bool) -> (bool, bool) {
        let state = self.lock();
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, Duration::from_secs(1), |state| {
                !state.urgent && !state.closing
            })
            .unwrap_or_else(PoisonError::into_inner);
        let due = state.urgent
            || is_time
            || state.logs.waiting.len() >= FLUSH_LOG_LINES
            || state.events.bytes >= FLUSH_EVENT_BYTES;
        state.urgent = false;
        (due, state.closing)
    }

    /// Sends what waits; what does not arrive is sent again with the next flush.
    fn flush(&self) {
        self.send(
            |state| &mut state.events,
            |number, lines| self.runtime.block_on(self.claim.events(number, lines)),
        );
        note_losses(&mut self.lock());
        self.send(
            |state| &mut state.logs,
            |number, lines| self.runtime.block_on(self.claim.logs(number, lines)),
        );
    }

    fn send(
        &self,
        buffer: impl Fn(&mut State) -> &mut Buffer,
        send: impl Fn(u64, &[String]) -> wmtp_artifacts::Result<()>,
    ) {
        loop {
            // The lock is not held while the store answers: a job never waits for it.
            let Some((number, lines)) = buffer(&mut self.lock()).batch() else {
                return;
            };
            if let Err(error) = send(number, &lines) {
                tracing::debug!("batch {number} not written: {error}");
                return;
            }
            buffer(&mut self.lock()).arrived();
        }
    }

    fn beat(&self) {
        let mut status = self.lock().status.clone();
        status.heartbeat_at = jiff::Timestamp::now();
        if let Err(error) = self.runtime.block_on(self.claim.heartbeat(&status)) {
            tracing::warn!("heartbeat not written: {error}");
        }
    }
}

/// Says how many lines an unreachable store has cost.
fn note_losses(state: &mut State) {
    let events = std::mem::take(&mut state.events.dropped);
    let logs = std::mem::take(&mut state.logs.dropped);
    if events + logs > 0 {
        let line = json!({
            "seq": state.logs.next_line,
            "ts": jiff::Timestamp::now(),
            "level": "warning",
            "message": format!("{events} events and {logs} log lines dropped while the store was unreachable"),
        });
        state.logs.push(line.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, MOST_LINES};

    #[test]
    fn a_full_buffer_drops_the_oldest_lines_and_counts_them() {
        let mut buffer = Buffer::default();
        for line in 0..MOST_LINES + 3 {
            buffer.push(line.to_string());
        }
        assert_eq!(buffer.dropped, 3);
        let (number, lines) = buffer.batch().unwrap();
        assert_eq!(
            (number, lines.len(), lines[0].as_str()),
            (0, MOST_LINES, "3")
        );
        assert_eq!(buffer.next_line, MOST_LINES as u64 + 3);
    }

    #[test]
    fn a_batch_is_sent_unchanged_until_it_arrives() {
        let mut buffer = Buffer::default();
        let batch = |number: u64, lines: &[&str]| {
            Some((
                number,
                lines
                    .iter()
                    .map(|line| (*line).to_owned())
                    .collect::<Vec<_>>(),
            ))
        };
        buffer.push("a".to_owned());
        assert_eq!(buffer.batch(), batch(0, &["a"]));
        buffer.push("b".to_owned());
        assert_eq!(buffer.batch(), batch(0, &["a"]));
        buffer.arrived();
        assert_eq!(buffer.batch(), batch(1, &["b"]));
        buffer.arrived();
        assert_eq!((buffer.batch(), buffer.bytes), (None, 0));
    }
}
