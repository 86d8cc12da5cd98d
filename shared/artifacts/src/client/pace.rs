//! How many requests may be under way at a store at a time.
//!
//! The SDK spaces the attempts of one request out when a store says that it is overrun; the others go on as before.
//! Here all of them give way together: what may be under way is halved, and grows again one by one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use tokio::sync::Notify;

/// Requests for contents under way at a time, where the store does not ask for less.
pub(super) const MOST: usize = 64;
/// Answers that were sent off together complain together: further ones within this time change nothing.
const BURST: Duration = Duration::from_millis(500);
/// Good answers, per request that may be under way, after which one more may.
const GOOD_ANSWERS: usize = 4;

/// Counts the requests under way and learns from their answers how many may be. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    most: usize,
    good: usize,
    cut: Option<Instant>,
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Pace);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.0.freed.notify_one();
    }
}

impl Pace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                under_way: 0,
                most: MOST,
                good: 0,
                cut: None,
            }),
            freed: Notify::new(),
        }))
    }

    /// Waits until one more request may be under way.
    pub(super) async fn slot(&self) -> Slot {
        loop {
            if let Some(slot) = self.try_slot() {
                return slot;
            }
            // Whoever ends meanwhile leaves a note; and each that is woken wakes the next when it ends.
            self.0.freed.notified().await;
        }
    }

    fn try_slot(&self) -> Option<Slot> {
        let mut state = self.state();
        if state.under_way >= state.most {
            return None;
        }
        state.under_way += 1;
        Some(Slot(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the status of an answer.
    fn answered(&self, status: u16, now: Instant) {
        let mut state = self.state();
        if matches!(status, 429 | 503) {
            state.slow_down(now);
        } else if status < 400 && state.went_well() {
            self.0.freed.notify_one();
        }
    }
}

impl State {
    fn slow_down(&mut self, now: Instant) {
        self.good = 0;
        if self
            .cut
            .is_some_and(|cut| now.saturating_duration_since(cut) < BURST)
        {
            return;
        }
        self.cut = Some(now);
        self.most = (self.most / 2).max(1);
        tracing::warn!(most = self.most, "the store asks for fewer requests");
    }

    /// True when one more may be under way from now on.
    fn went_well(&mut self) -> bool {
        if self.most == MOST {
            return false;
        }
        self.good += 1;
        if self.good < GOOD_ANSWERS * self.most {
            return false;
        }
        (self.good, self.most) = (0, self.most + 1);
        true
    }
}

impl Intercept for Pace {
    fn name(&self) -> &'static str {
        "the pace that the store allows"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        self.answered(context.response().status().as_u16(), Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_complaints_halves_once_and_good_answers_bring_it_back() {
        let (pace, now) = (Pace::new(), Instant::now());
        for status in [503, 503, 429] {
            pace.answered(status, now);
        }
        assert_eq!(pace.state().most, MOST / 2);
        pace.answered(503, now + BURST);
        assert_eq!(pace.state().most, MOST / 4);
        pace.answered(404, now + BURST);
        let mut answers = 0;
        while pace.state().most < MOST {
            pace.answered(200, now + BURST);
            answers += 1;
        }
        let expected: usize = (MOST / 4..MOST).map(|most| GOOD_ANSWERS * most).sum();
        assert_eq!(answers, expected);
        for step in 1..20 {
            pace.answered(503, now + BURST * (2 + step));
        }
        assert_eq!(pace.state().most, 1, "one request is always allowed");
    }

    #[tokio::test]
    async fn who_waits_for_a_slot_gets_it_when_one_ends() {
        let pace = Pace::new();
        pace.state().most = 1;
        let first = pace.slot().await;
        assert!(pace.try_slot().is_none());
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move { drop(pace.slot().await) })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(first);
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(pace.state().under_way, 0);
    }
}
