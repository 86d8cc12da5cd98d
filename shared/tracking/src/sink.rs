//! A run that works, followed live: a bounded queue, a thread that empties it, and an end that does not wait long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use wmtp_artifacts::{RunRequest, Store};

use crate::line::{Line, TOLD};
use crate::recorder::Recorder;
use crate::server::jittered;
use crate::{Error, Server};

/// Lines that wait for the server at most; the oldest go first, and the store has them all.
const MOST_LINES: usize = 10_000;
/// Lines that are sent at once, and that are worth a request before it is time.
const LINES_AT_ONCE: usize = 500;
const DUE_LINES: usize = 50;
const PERIOD: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long the end of a run waits for a server that answers.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// And for one that has not answered to anything.
const LAST_TRY: Duration = Duration::from_secs(3);

/// Tells a level (`info`, `warning`) and a sentence to people.
type Say = dyn Fn(&str, &str) + Send + Sync;

/// What did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Events that were dropped or not sent.
    pub lines: u64,
    /// Why, in the words of the last failure.
    pub reason: String,
}

/// The follower of one run.
pub struct Sink {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something is due, or the end has come.
    wake: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    lost: u64,
    is_closing: bool,
    reason: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// Starts to follow a run. `io` is where the store's requests run. None where the run belongs to no experiment, or,
    /// which is told, this machine gives no thread.
    pub fn start(
        server: Server,
        store: Store,
        io: Handle,
        request: RunRequest,
        say: Arc<Say>,
    ) -> Option<Self> {
        let recorder = Recorder::new(store, io, request)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Notify::new(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            server,
            recorder,
            say,
            batch: Vec::new(),
            num_failures: 0,
            has_answered: false,
        };
        let tell = Arc::clone(&worker.say);
        let thread = std::thread::Builder::new()
            .name("tracking".to_owned())
            .spawn(move || worker.run())
            .inspect_err(|error| {
                tell(
                    "warning",
                    &format!("this run is not tracked: starting the thread for it: {error}"),
                );
            })
            .ok()?;
        Some(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Takes an event of the log, as the store is sent it. It is only put into a queue.
    pub fn event(&self, kind: &str, line: &str) {
        if !TOLD.contains(&kind) {
            return;
        }
        let is_due = {
            let mut state = self.shared.lock();
            state.waiting.push_back(line.to_owned());
            if state.waiting.len() > MOST_LINES {
                state.waiting.pop_front();
                state.lost += 1;
            }
            kind != "metrics" || state.waiting.len() == DUE_LINES
        };
        if is_due {
            self.shared.wake.notify_one();
        }
    }

    /// Sends what waits, but not for long, and ends. Returns what did not arrive.
    pub fn close(&self) -> Option<Missing> {
        self.shared.lock().is_closing = true;
        self.shared.wake.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let has_panicked = thread.is_some_and(|thread| thread.join().is_err());
        let mut state = self.shared.lock();
        let lines = state.lost + state.waiting.len() as u64;
        let reason = state.reason.take().or_else(|| {
            has_panicked.then(|| "the thread that sends ended by a mistake".to_owned())
        });
        (lines > 0).then(|| Missing {
            lines,
            reason: reason.unwrap_or_else(|| "the server was too slow".to_owned()),
        })
    }
}

struct Worker {
    shared: Arc<Shared>,
    server: Server,
    recorder: Recorder,
    say: Arc<Say>,
    /// Lines under way. Sent again after a failure: what arrived is stored once.
    batch: Vec<String>,
    num_failures: u32,
    has_answered: bool,
}

impl Worker {
    fn run(mut self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return;
        };
        runtime.block_on(self.work());
        // A look-up of a name that hangs must not hold the job.
        runtime.shutdown_background();
    }

    async fn work(&mut self) {
        let mut pause = Duration::ZERO;
        loop {
            self.wait(pause).await;
            if self.shared.lock().is_closing {
                break;
            }
            let shared = Arc::clone(&self.shared);
            let sent = tokio::select! {
                sent = self.send() => sent,
                () = closing(&shared) => break,
            };
            pause = self.pause_after(sent);
        }
        let patience = if self.has_answered || self.num_failures == 0 {
            LAST_WORDS
        } else {
            LAST_TRY
        };
        self.server.silence = self.server.silence.min(LAST_TRY);
        let ended = tokio::time::timeout(patience, async {
            while self.send().await? {}
            Ok::<(), Error>(())
        })
        .await;
        let mut state = self.shared.lock();
        // What is left counts as lost.
        state.lost += self.batch.len() as u64;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => state.reason = Some(error.to_string()),
            Err(_) => {
                let secs = patience.as_secs();
                state
                    .reason
                    .get_or_insert(format!("not everything was taken within {secs} s"));
            }
        }
    }

    /// Until something is due; after a failure, no sooner than the pause is over.
    async fn wait(&self, pause: Duration) {
        if self.num_failures > 0 {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = closing(&self.shared) => {}
            }
        } else {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shared.wake.notified() => {}
            }
        }
    }

    /// Sends a batch; returns whether there was one.
    async fn send(&mut self) -> Result<bool, Error> {
        if self.batch.is_empty() {
            let mut state = self.shared.lock();
            let count = state.waiting.len().min(LINES_AT_ONCE);
            self.batch = state.waiting.drain(..count).collect();
        }
        if self.batch.is_empty() {
            return Ok(false);
        }
        let lines: Vec<Line> = self
            .batch
            .iter()
            .filter_map(|line| Line::parse(line))
            .collect();
        let is_first = !self.has_answered;
        let recorded = self.recorder.record(&self.server, &lines).await;
        if let Err(error) = &recorded
            && !error.is_transient()
        {
            self.drop_batch(error);
        }
        recorded?;
        self.has_answered = true;
        self.batch.clear();
        if is_first {
            let (experiment, place) = (self.recorder.experiment(), self.server.endpoint());
            (self.say)(
                "info",
                &format!("tracked in experiment {experiment} at {place}"),
            );
        }
        Ok(true)
    }

    /// What the server refuses it would refuse again.
    fn drop_batch(&mut self, error: &Error) {
        self.recorder.forget();
        self.shared.lock().lost += self.batch.len() as u64;
        self.batch.clear();
        tracing::debug!("tracking: {error}");
    }

    /// How long to wait, and a word about the first failure of a row.
    fn pause_after(&mut self, sent: Result<bool, Error>) -> Duration {
        let Err(error) = sent else {
            self.num_failures = 0;
            return PERIOD;
        };
        if self.num_failures == 0 {
            let message = format!(
                "tracking: {error}; the run goes on, and what the server misses can be replayed"
            );
            (self.say)("warning", &message);
        }
        self.shared.lock().reason = Some(error.to_string());
        let pause = Duration::from_secs(1 << self.num_failures.min(6)).min(LONGEST_PAUSE);
        self.num_failures += 1;
        jittered(pause)
    }
}

/// Waits for the end. Whoever wakes for another reason sleeps again.
async fn closing(shared: &Shared) {
    while !shared.lock().is_closing {
        shared.wake.notified().await;
    }
}
