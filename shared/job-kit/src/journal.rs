//! What a run tells the store while it works: events, logs, heartbeat. One thread sends; the job never waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;
use wmtp_artifacts::{Claim, RunProgress, RunState, Status};
use wmtp_tracking::{Missing, Sink};

use crate::JobError;
use crate::secrets::redact;

/// When the journal speaks, and how long it waits for an answer.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Time between two heartbeats.
    heartbeat: Duration,
    /// Age of the oldest line that waits.
    flush_after: Duration,
    /// For a heartbeat, and for all batches of a flush together. With both and a period between two heartbeats the claim,
    /// which lapses after 90 s, is safe from a request that is never answered.
    patience: Duration,
    /// For all that is left to say at the end of a run. A launcher kills 30 s behind its signal, and tracking has its own last
    /// words.
    last_words: Duration,
}

const PACE: Pace = Pace {
    heartbeat: Duration::from_secs(15),
    flush_after: Duration::from_secs(10),
    patience: Duration::from_secs(20),
    last_words: Duration::from_secs(12),
};
/// Share of the last words for a request that is under way, and for the last status.
const LAST_SHARE: u32 = 3;
const FLUSH_LOG_LINES: usize = 50;
const FLUSH_EVENT_BYTES: usize = 64 << 10;
/// Lines of a batch end behind so many bytes, which a slow line carries within the patience.
const BATCH_BYTES: usize = 256 << 10;
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

    /// The batch to send: the one that has not arrived yet, else the oldest lines that wait.
    fn batch(&mut self) -> Option<(u64, Vec<String>)> {
        if self.batch.is_none() && !self.waiting.is_empty() {
            let (mut lines, mut bytes) = (Vec::new(), 0);
            while bytes < BATCH_BYTES
                && let Some(line) = self.waiting.pop_front()
            {
                bytes += line.len();
                lines.push(line);
            }
            self.bytes -= bytes;
            self.batch = Some(lines);
        }
        self.batch.clone().map(|lines| (self.batch_number, lines))
    }

    /// Lines that have not arrived.
    fn unsent(&self) -> usize {
        self.waiting.len() + self.batch.as_ref().map_or(0, Vec::len)
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
    /// Since the end came: until when the store is waited for.
    closing: Option<Instant>,
}

/// How long the store is waited for.
#[derive(Debug, Clone, Copy)]
struct Limit {
    until: Instant,
    /// Whether these are the last words: any other request has to give way to them.
    is_last: bool,
}

struct Shared {
    claim: Claim,
    job: String,
    runtime: Handle,
    pace: Pace,
    state: Mutex<State>,
    wake: Condvar,
    /// Wakes who waits for the store: whether the end has come.
    end: watch::Sender<bool>,
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
        Self::start_at(PACE, sender, claim, job, runtime, tracking)
    }

    fn start_at(
        pace: Pace,
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
            pace,
            state: Mutex::new(State {
                events: Buffer::default(),
                logs: Buffer::default(),
                status,
                urgent: false,
                closing: None,
            }),
            wake: Condvar::new(),
            end: watch::Sender::new(false),
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

    /// Writes the last status, sends what waits, but not for long, and ends the thread. Returns what a tracking server did
    /// not take: it is asked last, when the store has everything. With less patience than the last words have by themselves
    /// they have that, but time for the status in any case.
    pub(crate) fn close(&self, end: RunState, patience: Duration) -> Option<Missing> {
        {
            let mut state = self.shared.lock();
            let patience = patience.clamp(self.shared.last_share(), self.shared.pace.last_words);
            state.status.state = end;
            state.closing = Some(Instant::now() + patience);
        }
        self.shared.wake.notify_all();
        self.shared.end.send_replace(true);
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
            let (due, closing) = self.wait(last_flush.elapsed() >= self.pace.flush_after);
            if let Some(until) = closing {
                return self.end(until);
            }
            // First, since the claim hangs on it: lines can wait.
            if last_beat.is_none_or(|beat| beat.elapsed() >= self.pace.heartbeat) {
                last_beat = Some(Instant::now());
                if let Err(error) = self.beat(self.patience()) {
                    tracing::warn!("heartbeat not written: {error}");
                }
            }
            if due {
                self.flush(self.patience());
                last_flush = Instant::now();
            }
        }
    }

    /// Says how the run ended, sends what waits, and tells what the store did not take.
    fn end(&self, until: Instant) {
        let last = |until| Limit {
            until,
            is_last: true,
        };
        let beat = self.beat(last(until.min(Instant::now() + self.last_share())));
        self.flush(last(until));
        let (events, logs) = {
            let state = self.lock();
            (state.events.unsent(), state.logs.unsent())
        };
        let status = if beat.is_err() { "how it ended, " } else { "" };
        if beat.is_err() || events + logs > 0 {
            tracing::warn!(
                "the store did not take in time what this run had still to say: {status}{events} events, {logs} log lines"
            );
        }
    }

    fn last_share(&self) -> Duration {
        self.pace.last_words / LAST_SHARE
    }

    fn patience(&self) -> Limit {
        Limit {
            until: Instant::now() + self.pace.patience,
            is_last: false,
        }
    }

    /// Waits for the store up to a limit. A request that is under way when the end comes has a share of the last words left.
    fn within<T>(
        &self,
        limit: Limit,
        request: impl Future<Output = wmtp_artifacts::Result<T>>,
    ) -> Result<T, String> {
        let mut end = self.end.subscribe();
        if !limit.is_last && *end.borrow() {
            return Err("the end has come".to_owned());
        }
        let ended = async {
            if limit.is_last || end.wait_for(|has_ended| *has_ended).await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(self.last_share()).await;
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(limit.until.into()) => Err("no answer in time".to_owned()),
                () = ended => Err("no answer before the end".to_owned()),
                answer = request => answer.map_err(|error| error.to_string()),
            }
        })
    }

    /// Waits up to a second; returns whether lines are due, and where the end came, until when the store is waited for.
    fn wait(&self, is_time: bool) -> (bool, Option<Instant>) {
        let state = self.lock();
        let (mut state, _) = self
            .wake
            .wait_timeout_while(
                state,
                self.pace.heartbeat.min(Duration::from_secs(1)),
                |state| !state.urgent && state.closing.is_none(),
            )
            .unwrap_or_else(PoisonError::into_inner);
        let due = state.urgent
            || is_time
            || state.logs.waiting.len() >= FLUSH_LOG_LINES
            || state.events.bytes >= FLUSH_EVENT_BYTES;
        state.urgent = false;
        (due, state.closing)
    }

    /// Sends what waits; what does not arrive is sent again with the next flush.
    fn flush(&self, limit: Limit) {
        self.send(
            limit,
            |state| &mut state.events,
            async |number, lines| self.claim.events(number, lines).await,
        );
        note_losses(&mut self.lock());
        self.send(
            limit,
            |state| &mut state.logs,
            async |number, lines| self.claim.logs(number, lines).await,
        );
    }

    fn send(
        &self,
        limit: Limit,
        buffer: impl Fn(&mut State) -> &mut Buffer,
        send: impl AsyncFn(u64, &[String]) -> wmtp_artifacts::Result<()>,
    ) {
        loop {
            // The lock is not held while the store answers: a job never waits for it.
            let Some((number, lines)) = buffer(&mut self.lock()).batch() else {
                return;
            };
            if let Err(error) = self.within(limit, send(number, &lines)) {
                tracing::debug!("batch {number} not written: {error}");
                return;
            }
            buffer(&mut self.lock()).arrived();
        }
    }

    fn beat(&self, limit: Limit) -> Result<(), String> {
        let mut status = self.lock().status.clone();
        status.heartbeat_at = jiff::Timestamp::now();
        self.within(limit, self.claim.heartbeat(&status))
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
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use dev_store::TestServer;
    use serde_json::{Value, json};
    use wmtp_artifacts::{
        Claim, Digest, RunId, RunRequest, RunState, RunView, Store, StoreOptions,
    };

    use super::{BATCH_BYTES, Buffer, Journal, MOST_LINES, Pace, Sender};

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

    #[test]
    fn many_long_lines_are_several_batches() {
        let mut buffer = Buffer::default();
        let line = "x".repeat(BATCH_BYTES / 4);
        for _ in 0..9 {
            buffer.push(line.clone());
        }
        let mut counts = Vec::new();
        while let Some((_, lines)) = buffer.batch() {
            counts.push(lines.len());
            buffer.arrived();
        }
        assert_eq!((counts, buffer.bytes), (vec![4, 4, 1], 0));
    }

    /// Between a journal and a store. While it is silent, requests with the marker in them are not handed on.
    struct Way {
        endpoint: String,
        is_silent: Arc<AtomicBool>,
    }

    impl Way {
        fn to(server: &TestServer, marker: &'static str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let way = Self {
                endpoint: format!("http://{}", listener.local_addr().unwrap()),
                is_silent: Arc::default(),
            };
            let target = server.endpoint().trim_start_matches("http://").to_owned();
            let (marker, is_silent) = (marker.as_bytes(), Arc::clone(&way.is_silent));
            std::thread::spawn(move || {
                for client in listener.incoming().map_while(Result::ok) {
                    let server = TcpStream::connect(&target).unwrap();
                    let is_silent = Arc::clone(&is_silent);
                    let (back, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                    std::thread::spawn(move || carry(back, to, |_| false));
                    std::thread::spawn(move || {
                        carry(client, server, |bytes| {
                            is_silent.load(Ordering::SeqCst)
                                && bytes.windows(marker.len()).any(|part| part == marker)
                        });
                    });
                }
            });
            way
        }

        fn silence(&self, is_silent: bool) {
            self.is_silent.store(is_silent, Ordering::SeqCst);
        }
    }

    /// Hands bytes on until something is to be lost, and from then on loses all.
    fn carry(mut from: TcpStream, mut to: TcpStream, is_lost: impl Fn(&[u8]) -> bool) {
        let mut bytes = vec![0; 64 << 10];
        let mut is_open = true;
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            is_open &= !is_lost(&bytes[..count]);
            if is_open && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// A claimed run whose journal speaks through a way of its own.
    struct Place {
        // Dropped first: it stops before its folder goes.
        _server: TestServer,
        way: Way,
        store: Store,
        claim: Claim,
        runtime: tokio::runtime::Runtime,
        _folder: tempfile::TempDir,
    }

    impl Place {
        fn new(marker: &'static str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let server = TestServer::start(folder.path());
            let way = Way::to(&server, marker);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let connect = |endpoint: &str| {
                let options = StoreOptions {
                    endpoint: Some(endpoint.to_owned()),
                    ..trial::options(&server)
                };
                let uri = "s3://wmtp/test".parse().unwrap();
                runtime.block_on(Store::connect(&uri, options)).unwrap()
            };
            let key = Digest::of(b"work");
            let request = RunRequest {
                run_id: RunId::for_work("tiny-job", &key),
                job: "tiny-job".to_owned(),
                cache_key: key,
                inputs: Vec::new(),
                recipe: Value::Null,
                code_version: "0.1.0".to_owned(),
                code_revision: None,
                host: "here".to_owned(),
                labels: BTreeMap::new(),
                started_at: jiff::Timestamp::now(),
            };
            let through = connect(&way.endpoint);
            let claim = runtime.block_on(Claim::take(&through, &request)).unwrap();
            let store = connect(server.endpoint());
            Self {
                _server: server,
                way,
                store,
                claim,
                runtime,
                _folder: folder,
            }
        }

        fn journal(&self, pace: Pace) -> Journal {
            let runtime = self.runtime.handle().clone();
            let sender = Sender::ready().unwrap();
            Journal::start_at(pace, sender, self.claim.clone(), "tiny-job", runtime, None)
        }

        fn view(&self) -> RunView {
            let view = self.store.run(self.claim.run_id());
            self.runtime.block_on(view).unwrap()
        }

        /// Waits until the store has been told something.
        fn until(&self, is_told: impl Fn(&RunView) -> bool) -> RunView {
            let began = Instant::now();
            loop {
                let view = self.view();
                if is_told(&view) {
                    return view;
                }
                assert!(began.elapsed() < Duration::from_mins(1), "{view:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    const HASTY: Pace = Pace {
        heartbeat: Duration::from_millis(50),
        flush_after: Duration::from_millis(50),
        patience: Duration::from_secs(1),
        last_words: Duration::from_millis(900),
    };

    fn beat_of(view: &RunView) -> Option<jiff::Timestamp> {
        view.status.as_ref().map(|status| status.heartbeat_at)
    }

    #[test]
    fn hearts_beat_on_while_events_meet_silence_and_the_events_arrive_when_it_ends() {
        let place = Place::new("/events/");
        place.way.silence(true);
        let journal = place.journal(HASTY);
        journal.event("started", &json!({}));
        let first = beat_of(&place.until(|view| view.status.is_some()));
        let second = beat_of(&place.until(|view| beat_of(view) > first));
        let third = place.until(|view| beat_of(view) > second);
        assert!(third.events.is_empty(), "{third:?}");
        place.way.silence(false);
        let told = place.until(|view| !view.events.is_empty());
        assert_eq!((told.events.len(), told.num_bad_lines), (1, 0), "{told:?}");
        assert_eq!(journal.close(RunState::Completed, Duration::MAX), None);
    }

    #[test]
    fn the_end_of_a_run_does_not_wait_for_a_store_that_is_silent() {
        let place = Place::new("HTTP/1.1");
        // A request of this journal that nothing cuts short takes longer than the test may.
        let journal = place.journal(Pace {
            patience: Duration::from_hours(1),
            ..HASTY
        });
        journal.event("started", &json!({}));
        place.until(|view| !view.events.is_empty());
        place.way.silence(true);
        journal.event("warning", &json!({}));
        journal.log("error", "the last words");
        // It is on its way, and stays there.
        std::thread::sleep(HASTY.heartbeat);
        let began = Instant::now();
        assert_eq!(journal.close(RunState::Failed, Duration::MAX), None);
        assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
        let state = journal.shared.lock();
        assert_eq!((state.events.unsent(), state.logs.unsent()), (1, 1));
        let status = place.view().status.unwrap();
        assert_eq!(status.state, RunState::Running);
    }
}
