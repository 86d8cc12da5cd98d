//! Ending early when a signal asks for it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wmtp_job_kit::{JobError, ToolCx, raised};

/// Waits for work that only reads, and drops it where it stands when a signal asks to stop.
pub(crate) fn unless_stopped<T>(
    cx: &ToolCx<'_>,
    work: impl Future<Output = Result<T, wmtp_artifacts::Error>>,
) -> Result<T, JobError> {
    unless_stopped_with(cx, work, "nothing was changed; run the same command again")
}

/// [`unless_stopped`] for work that writes: `hint` says what stopping leaves behind.
pub(crate) fn unless_stopped_with<T>(
    cx: &ToolCx<'_>,
    work: impl Future<Output = Result<T, wmtp_artifacts::Error>>,
    hint: &str,
) -> Result<T, JobError> {
    cx.store()?.block_on(race(cx.stop_flag(), work, hint))
}

async fn race<T>(
    stop: Arc<AtomicBool>,
    work: impl Future<Output = Result<T, wmtp_artifacts::Error>>,
    hint: &str,
) -> Result<T, JobError> {
    tokio::select! {
        done = work => Ok(done?),
        () = raised(&stop) => Err(JobError::preempted().hint(hint)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::Ordering;

    use wmtp_job_kit::Exit;

    use super::*;

    #[tokio::test]
    async fn a_raised_flag_ends_work_that_never_ends() {
        let flag = Arc::new(AtomicBool::new(false));
        assert_eq!(race(Arc::clone(&flag), ready(Ok(1)), "").await.unwrap(), 1);
        flag.store(true, Ordering::SeqCst);
        let error = race::<()>(flag, pending(), "").await.unwrap_err();
        assert_eq!(error.exit(), Exit::Preempted);
    }
}
