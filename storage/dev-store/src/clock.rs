//! The time by which objects are dated. A test may set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::{SignedDuration, Timestamp};
use s3s::config::{HotReloadConfigProvider, S3Config};

/// The system's clock, and how far it is ahead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    ahead_secs: Arc<AtomicI64>,
    /// How the service checks requests.
    config: Arc<HotReloadConfigProvider>,
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.ahead_secs.load(Ordering::SeqCst));
        Timestamp::now()
            .saturating_add(ahead)
            .unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn advance(&self, by: SignedDuration) {
        // Clients sign by the clock that they see, the service checks by the system's.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        self.config.update(Arc::new(config));
        self.ahead_secs.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    pub(crate) fn config(&self) -> Arc<HotReloadConfigProvider> {
        Arc::clone(&self.config)
    }

    /// For the `Date` header; none while the clock is the system's.
    pub(crate) fn date(&self) -> Option<String> {
        if self.ahead_secs.load(Ordering::SeqCst) == 0 {
            return None;
        }
        DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&self.now())
            .ok()
    }
}
