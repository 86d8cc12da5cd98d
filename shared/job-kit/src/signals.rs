//! SIGTERM and Ctrl-C: the first asks the job to stop at its next step, the second ends it. Before there is work to
//! finish the first ends it, too: a job that waits for a silent store would else be killed at the end of its launcher's
//! patience, and 137 is not tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::{Exit, life};

/// Time between two looks at the flag.
const PERIOD: Duration = Duration::from_millis(100);

/// The first signal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Rises with it.
    pub(crate) flag: Arc<AtomicBool>,
    /// When it came.
    pub(crate) since: Arc<OnceLock<Instant>>,
}

/// Waits until the flag of a signal rises.
pub async fn raised(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        tokio::time::sleep(PERIOD).await;
    }
}

/// Starts to listen for the first signal. `at_work` says whether a stop has something to finish.
pub(crate) fn listen(
    runtime: &tokio::runtime::Runtime,
    name: &str,
    at_work: &Arc<AtomicBool>,
) -> Stop {
    let stop = Stop::default();
    let raised = stop.clone();
    let (name, at_work) = (name.to_owned(), Arc::clone(at_work));
    // Here and not in the task, which a busy machine may start late: a first process of a container that has said nothing
    // of a signal never sees it.
    let entered = runtime.enter();
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    drop(entered);
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::warn!("signals cannot be caught: a stopped run starts from its last checkpoint");
        return stop;
    };
    runtime.spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            raised.since.get_or_init(Instant::now);
            if raised.flag.swap(true, Ordering::SeqCst) || !at_work.load(Ordering::SeqCst) {
                stop_now(&name);
            }
        }
    });
    stop
}

#[expect(
    clippy::exit,
    reason = "the main thread waits for something that may never come"
)]
fn stop_now(name: &str) -> ! {
    life::print_exit(name, Exit::Preempted);
    std::process::exit(i32::from(Exit::Preempted.code()))
}
