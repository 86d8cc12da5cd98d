//! Named points at which a test kills the process as `kill -9` does, to prove that a kill anywhere does no harm, or
//! makes something fail that rarely does.
//!
//! `WMTP_FAULT_POINT=publish:after-blobs` kills the process when it passes that point; a number at the
//! end (`train:step:7`) means its n-th passage, and with a plus (`train:loss:7+`) every one from there on. Without the
//! variable a point does nothing.
//!
//! Points of this crate, in the order in which a job passes them:
//!
//! | point | passed |
//! |---|---|
//! | `run:after-claim` | when the attempt is claimed |
//! | `fetch:after-part` | after each part of a content that is on this disk |
//! | `publish:before-blobs` | when all files are hashed, nothing uploaded |
//! | `upload:after-part` | after each part of a large content that the store has |
//! | `publish:after-blob` | after each uploaded blob |
//! | `publish:after-blobs` | when all blobs are there, the manifest is not |
//! | `publish:after-manifest` | when the artifact is committed |
//! | `publish:after-cache` | when the cache entry is committed |
//! | `publish:after-name` | when a name points to the artifact |
//! | `run:before-result` | before the run's result is written |
//!
//! Training dies at `train:step` (a step is done) and `train:score` (a piece of the rows is about to be scored); it goes
//! on, as it does when the thing happens by itself, after `train:memory` (none is left for a micro-batch),
//! `train:allocator` (a device's gives none to a micro-batch), `train:inference` (nor to rows that only pass through the
//! model) and `train:loss` (a step's loss is no number).

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the environment variable.
pub const VARIABLE: &str = "WMTP_FAULT_POINT";

/// A point at which the process shall die.
#[derive(Debug)]
struct Target {
    name: String,
    passage: u64,
    /// All passages behind that one count, too.
    and_later: bool,
    passed: AtomicU64,
}

impl Target {
    fn parse(text: &str) -> Self {
        let (rest, and_later) = match text.strip_suffix('+') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (name, passage) = match rest.rsplit_once(':') {
            Some((name, number)) if number.parse::<u64>().is_ok() => {
                (name, number.parse().unwrap_or(1))
            }
            _ => (rest, 1),
        };
        Self {
            name: name.to_owned(),
            passage,
            and_later,
            passed: AtomicU64::new(0),
        }
    }

    /// Counts a passage; true when it is the one to die at.
    fn is_hit(&self, name: &str) -> bool {
        if self.name != name {
            return false;
        }
        let passage = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        passage == self.passage || (self.and_later && passage > self.passage)
    }
}

/// Whether the environment asks for a failure at this point; its caller then does what it does when it really fails.
pub fn fails(name: &str) -> bool {
    static TARGET: OnceLock<Option<Target>> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        std::env::var(VARIABLE)
            .ok()
            .map(|text| Target::parse(&text))
    });
    let is_hit = |target: &Option<Target>| target.as_ref().is_some_and(|it| it.is_hit(name));
    is_hit(target) || ON_THIS_THREAD.with_borrow(is_hit)
}

thread_local! {
    static ON_THIS_THREAD: RefCell<Option<Target>> = const { RefCell::new(None) };
}

/// A failure planned for the thread that keeps this, until it is dropped.
#[derive(Debug)]
#[must_use = "the failure is planned for as long as this lives"]
pub struct Planned(PhantomData<*const ()>);

/// Asks for a failure on this thread alone, as [`VARIABLE`] does for the process: tests run, and ranks of tests are, threads of
/// one process.
pub fn plan(text: &str) -> Planned {
    ON_THIS_THREAD.set(Some(Target::parse(text)));
    Planned(PhantomData)
}

impl Drop for Planned {
    fn drop(&mut self) {
        ON_THIS_THREAD.set(None);
    }
}

/// Kills the process if the environment asks for it at this point.
pub fn point(name: &str) {
    if fails(name) {
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("a process may always kill itself, and SIGKILL does not return: {killed:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_at_the_end_counts_passages() {
        let target = Target::parse("train:step:3");
        let hits: Vec<_> = (0..4).map(|_| target.is_hit("train:step")).collect();
        assert_eq!(hits, [false, false, true, false]);
        assert!(!target.is_hit("train"));
        let target = Target::parse("train:loss:2+");
        let hits: Vec<_> = (0..4).map(|_| target.is_hit("train:loss")).collect();
        assert_eq!(hits, [false, true, true, true]);
    }

    #[test]
    fn a_planned_failure_is_this_threads_and_ends_with_its_plan() {
        let planned = plan("tests:planned:2");
        let elsewhere = std::thread::spawn(|| (0..2).any(|_| fails("tests:planned"))).join();
        assert!(!elsewhere.unwrap());
        assert!(!fails("tests:planned"));
        assert!(fails("tests:planned"));
        drop(planned);
        let again = plan("tests:planned");
        assert!(fails("tests:planned"));
        drop(again);
        assert!(!fails("tests:planned"));
    }

    #[test]
    fn a_point_without_a_number_is_hit_at_its_first_passage() {
        let target = Target::parse("publish:after-blobs");
        assert!(!target.is_hit("publish:before-blobs"));
        assert!(target.is_hit("publish:after-blobs"));
    }
}
