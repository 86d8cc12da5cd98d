//! SIGTERM and Ctrl-C: the first asks the job to stop at its next step, the second ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::Exit;

/// Starts to listen; the flag rises with the first signal.
pub(crate) fn listen(runtime: &tokio::runtime::Runtime) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    runtime.spawn(async move {
        let terminate = signal(SignalKind::terminate());
        let interrupt = signal(SignalKind::interrupt());
        let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
            tracing::warn!(
                "signals cannot be caught: a stopped run starts from its last checkpoint"
            );
            return;
        };
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if raised.swap(true, Ordering::SeqCst) {
                stop_now();
            }
        }
    });
    flag
}

#[expect(clippy::exit, reason = "a second signal asks for exactly this")]
fn stop_now() -> ! {
    std::process::exit(i32::from(Exit::Preempted.code()))
}
