//! The learning rate over a run.

use std::f64::consts::PI;

/// Linear warm-up, then a cosine down to a floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    total: u64,
    warmup: u64,
    floor: f64,
}

impl Schedule {
    /// For `total` optimizer steps: the share `warmup_ratio` of them (rounded up) warms up, the last
    /// step runs at `min_lr_ratio` of the peak. A step that is the first and the last runs at the peak.
    pub fn new(total: u64, warmup_ratio: f64, min_lr_ratio: f64) -> Self {
        // Rounded first where only the last bit is above a whole number: 7 % of 100 steps are 7.
        let warmup = (total as f64 * warmup_ratio * (1.0 - 1e-12)).ceil() as u64;
        Self {
            total,
            warmup: warmup.min(total),
            floor: min_lr_ratio,
        }
    }

    /// Share of the peak learning rate in the 0-based `step`.
    ///
    /// Warm-up step `s` of `w` runs at `(s + 1) / w`, so that no step is wasted at a rate of zero.
    pub fn factor(&self, step: u64) -> f64 {
        let step = step + 1;
        if step <= self.warmup {
            return step as f64 / self.warmup as f64;
        }
        if self.total == 1 {
            return 1.0;
        }
        let past = (step - self.warmup) as f64;
        let span = (self.total - self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (PI * (past / span).min(1.0)).cos());
        self.floor + (1.0 - self.floor) * cosine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn worked_values() {
        let schedule = Schedule::new(12, 0.3, 0.1);
        close(schedule.factor(0), 0.25);
        close(schedule.factor(3), 1.0);
        close(schedule.factor(7), 0.1 + 0.9 * 0.5);
        close(
            schedule.factor(5),
            0.1 + 0.9 * 0.5 * (1.0 + (PI / 4.0).cos()),
        );
        close(schedule.factor(11), 0.1);
        close(schedule.factor(50), 0.1);
    }

    #[test]
    fn without_warmup_the_cosine_starts_at_once() {
        close(Schedule::new(2, 0.0, 0.0).factor(0), 0.5);
        close(Schedule::new(1, 1.0, 0.0).factor(0), 1.0);
    }

    #[test]
    fn the_only_step_of_a_run_learns() {
        for floor in [0.0, 0.005] {
            close(Schedule::new(1, 0.0, floor).factor(0), 1.0);
        }
    }

    #[test]
    fn a_share_that_is_a_whole_number_of_steps_is_not_rounded_up() {
        // 100 * 0.07 is 7.000000000000001.
        let schedule = Schedule::new(100, 0.07, 0.0);
        close(schedule.factor(5), 6.0 / 7.0);
        close(schedule.factor(6), 1.0);
        assert!(schedule.factor(7) < 1.0);
    }

    proptest! {
        #[test]
        fn rises_then_falls_within_its_bounds(total in 1u64..400, ratio in 0.0f64..=1.0, floor in 0.0f64..1.0) {
            let schedule = Schedule::new(total, ratio, floor);
            let factors: Vec<f64> = (0..total).map(|step| schedule.factor(step)).collect();
            let warm = schedule.warmup as usize;
            prop_assert!((warm as f64 - total as f64 * ratio).abs() < 1.0);
            for (step, pair) in factors.windows(2).enumerate() {
                if total > 1 && step + 1 < warm {
                    prop_assert!(pair[1] > pair[0]);
                } else {
                    prop_assert!(pair[1] <= pair[0] + 1e-12);
                }
            }
            prop_assert!(factors.iter().all(|factor| *factor > -1e-12 && *factor <= 1.0 + 1e-12));
        }
    }
}
