//! Intervals, bootstrap, paired tests, pass@k, and the leaderboard they make up.
//!
//! Pure functions of counts and per-task scores. Random draws come from a seed that the caller gives, so that
//! a report is the same whenever it is made. The unit of resampling is always the *task*: samples of one task
//! are not independent, and intervals over samples come out two to four times too narrow.

mod bootstrap;
mod differences;
pub mod leaderboard;
mod pass_at_k;
pub mod wording;

pub use bootstrap::{
    DRAWS, Difference, Estimate, Resampler, Seeds, bootstrap_mean, paired_bootstrap,
};
pub use differences::{Resolution, holm, mcnemar_exact, resolution, shared_ranks};
pub use pass_at_k::{mean_pass_at_k, pass_at_k};

use serde::{Deserialize, Serialize};

/// The 97.5 % point of the normal distribution: two-sided 95 % intervals.
pub const Z_95: f64 = 1.959_963_984_540_054;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the interval leaves out a value.
    pub fn excludes(&self, value: f64) -> bool {
        value < self.low || value > self.high
    }

    /// Half of its width.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// Wilson's 95 % interval for a share of independent trials; `None` without trials.
///
/// ```
/// let interval = wmtp_stats::wilson(209, 500).unwrap(); // 41.8 %
/// assert!((interval.low - 0.376).abs() < 5e-4 && (interval.high - 0.462).abs() < 5e-4);
/// ```
pub fn wilson(successes: u64, trials: u64) -> Option<Interval> {
    if trials == 0 || successes > trials {
        return None;
    }
    let n = trials as f64;
    let share = successes as f64 / n;
    let z2 = Z_95 * Z_95;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Interval {
        low: (centre - half).max(0.0),
        high: (centre + half).min(1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_stays_inside_the_unit_interval_at_the_ends() {
        // 0 of 10: upper end z^2 / (n + z^2).
        let none = wilson(0, 10).unwrap();
        assert!(none.low.abs() < 1e-12);
        assert!((none.high - 0.277_532_799_9).abs() < 1e-9, "{}", none.high);
        let all = wilson(10, 10).unwrap();
        assert!((all.low - (1.0 - none.high)).abs() < 1e-12);
        assert!((all.high - 1.0).abs() < 1e-12);
    }

    #[test]
    fn wilson_needs_trials() {
        assert_eq!(wilson(0, 0), None);
        assert_eq!(wilson(3, 2), None);
    }

    #[test]
    fn an_interval_knows_what_it_excludes() {
        let interval = Interval {
            low: -0.01,
            high: 0.05,
        };
        assert!(!interval.excludes(0.0));
        assert!(interval.excludes(0.051));
        assert!((interval.half_width() - 0.03).abs() < 1e-12);
    }
}
