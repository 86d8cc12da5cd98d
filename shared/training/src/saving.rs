//! When the state of a run is saved, and whether there is time for it once the run was told to stop.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use wmtp_recipe::Optim;

/// Bytes per second at which a state is written, hashed and uploaded, as long as this process has saved none: a slow
/// store far away. A model of ten million weights, with moments and the best ones, takes less than twenty seconds then.
const UNMEASURED_RATE: f64 = (16 << 20) as f64;

/// A save is reckoned to take so many times what the last one did: the rates of networks vary.
const MARGIN: f64 = 1.5;

/// Saves of a run.
#[derive(Debug)]
pub(crate) struct Saving {
    every_steps: u64,
    every: Option<Duration>,
    /// When that was done last; at first, when the run began.
    last: Duration,
    /// The step whose state the store has; none as long as it has none.
    step: Option<u64>,
    /// Bytes per second of the last save.
    rate: f64,
}

impl Saving {
    /// Of a run that begins now, or goes on from the state of a step.
    pub(crate) fn new(optim: &Optim, step: Option<u64>, now: Duration) -> Self {
        let minutes = |minutes: usize| Duration::from_secs(60 * minutes as u64);
        Self {
            every_steps: optim.checkpoint_every_steps as u64,
            every: optim.checkpoint_minutes.map(minutes),
            last: now,
            step,
            rate: UNMEASURED_RATE,
        }
    }

    /// Whether the state is to be saved after this step.
    pub(crate) fn is_due(&self, step: u64, now: Duration) -> bool {
        step.is_multiple_of(self.every_steps)
            || self
                .every
                .is_some_and(|every| now.saturating_sub(self.last) >= every)
    }

    /// Counts a save of so many bytes that began then and is done now.
    pub(crate) fn count(&mut self, step: u64, bytes: u64, began: Duration, now: Duration) {
        let secs = now.saturating_sub(began).as_secs_f64().max(1e-3);
        self.rate = bytes.max(1) as f64 / secs;
        self.step = Some(step);
        self.last = now;
    }

    /// The time that saving so many bytes is reckoned to take.
    fn time_for(&self, bytes: u64) -> Duration {
        let secs = MARGIN * bytes as f64 / self.rate;
        Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX)
    }

    /// What stays unsaved of a run that stops after this step, with a state of so many bytes and so much time; none where
    /// the time is enough, or the store has that state already.
    pub(crate) fn unsaved(&self, step: u64, bytes: u64, left: Duration) -> Option<Unsaved> {
        let needed = self.time_for(bytes);
        (self.step != Some(step) && needed > left).then_some(Unsaved {
            step,
            saved_step: self.step,
            bytes,
            needed_secs: needed.as_secs_f64(),
            left_secs: left.as_secs_f64(),
        })
    }

    /// The step whose state the store has.
    pub(crate) fn step(&self) -> Option<u64> {
        self.step
    }
}

/// A state that there is no time to save.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Unsaved {
    step: u64,
    /// The step that the next start goes on from.
    saved_step: Option<u64>,
    bytes: u64,
    needed_secs: f64,
    left_secs: f64,
}

impl fmt::Display for Unsaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            step,
            bytes,
            needed_secs,
            left_secs,
            ..
        } = self;
        let mib = bytes >> 20;
        write!(
            f,
            "the state of step {step} is not saved: its {mib} MiB are reckoned to take {needed_secs:.1} s, and \
             {left_secs:.1} s of the grace are left; the next start "
        )?;
        match self.saved_step {
            Some(saved) => write!(f, "goes on from step {saved}"),
            None => f.write_str("begins with the first step"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_state_is_saved_after_so_many_steps_and_after_so_many_minutes() {
        let optim = Optim {
            checkpoint_every_steps: 100,
            checkpoint_minutes: Some(15),
            ..Optim::default()
        };
        let mut saving = Saving::new(&optim, None, secs(60));
        assert!(!saving.is_due(99, secs(60 + 899)));
        assert!(saving.is_due(100, secs(61)));
        assert!(saving.is_due(7, secs(60 + 900)));
        saving.count(7, MIB, secs(950), secs(960));
        assert!(!saving.is_due(8, secs(960 + 899)));
        saving.every = None;
        assert!(!saving.is_due(8, secs(1_000_000)));
    }

    fn saving(step: Option<u64>) -> Saving {
        Saving::new(&Optim::default(), step, secs(0))
    }

    #[test]
    fn a_save_is_reckoned_by_the_one_before_it() {
        let mut saving = saving(Some(3));
        assert_eq!(saving.step(), Some(3));
        // As long as nothing was measured, the state of the micro model fits any grace, that of 7B none.
        assert!(saving.time_for(8 * MIB) < secs(1));
        assert!(saving.time_for(4 * 4 * 6_738_415_616) > secs(7200));

        // A slow store: 10 MiB took 20 s.
        saving.count(4, 10 * MIB, secs(100), secs(120));
        assert_eq!(saving.step(), Some(4));
        assert_eq!(saving.time_for(20 * MIB), secs(60));
        // A fast one: 4 GiB took 4 s. What was measured last counts.
        saving.count(5, 4096 * MIB, secs(200), secs(204));
        assert_eq!(saving.time_for(4096 * MIB), secs(6));
        // Nothing that took no time.
        saving.count(6, 0, secs(300), secs(300));
        assert_eq!(saving.time_for(0), secs(0));
        assert!(saving.time_for(u64::MAX) > secs(1));
    }

    #[test]
    fn a_stop_saves_what_fits_the_rest_of_the_grace() {
        let mut saving = saving(None);
        assert_eq!(saving.unsaved(2, 8 * MIB, secs(20)), None);
        let anew = saving.unsaved(2, 8 * MIB, secs(0)).expect("no time");
        assert!(
            anew.to_string()
                .ends_with("the next start begins with the first step")
        );

        // The store is slow: at half a MiB a second, with half as much again, 12 MiB take 36 s.
        saving.count(100, 10 * MIB, secs(100), secs(120));
        assert_eq!(saving.unsaved(130, 12 * MIB, secs(36)), None);
        let unsaved = saving.unsaved(130, 12 * MIB, secs(20)).expect("no time");
        assert_eq!(
            unsaved.to_string(),
            "the state of step 130 is not saved: its 12 MiB are reckoned to take 36.0 s, and 20.0 s of the grace are \
             left; the next start goes on from step 100"
        );
        // What the store has need not be saved, however slow it is.
        assert_eq!(saving.unsaved(100, 12 * MIB, secs(0)), None);
    }
}
