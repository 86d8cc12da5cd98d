//! Bootstrap over tasks, alone and paired.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Interval, wilson};

/// Number of draws of every bootstrap in a report.
pub const DRAWS: usize = 10_000;

/// A mean over tasks with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Percentile interval over tasks.
    pub interval: Interval,
}

/// A paired difference of two means over the same tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// First minus second.
    pub difference: f64,
    /// Percentile interval over tasks.
    pub interval: Interval,
    /// Two-sided p-value: twice the smaller share of draws on either side of 0, at least `2 / (draws + 1)`.
    pub p_value: f64,
}

impl Difference {
    /// Whether the interval excludes 0.
    pub fn is_significant(&self) -> bool {
        self.interval.excludes(0.0)
    }
}

/// Mean of per-task scores with a percentile interval from `draws` resamples of the tasks.
///
/// Where no task is ever solved, or every one always, all resamples are alike and their interval would be a point;
/// it is Wilson's then, with one trial per task. `None` without tasks or draws.
///
/// ```
/// let none_solved = wmtp_stats::bootstrap_mean(&[0.0; 40], 10_000, 42).unwrap();
/// assert!(none_solved.mean == 0.0 && (none_solved.interval.high - 0.0876).abs() < 1e-4);
/// ```
pub fn bootstrap_mean(task_scores: &[f64], draws: usize, seed: u64) -> Option<Estimate> {
    let means = resampled_means(task_scores, draws, seed)?;
    let mean = mean(task_scores);
    let trials = task_scores.len() as u64;
    let extreme = |share: f64, successes| {
        task_scores
            .iter()
            .all(|score| score.to_bits() == share.to_bits())
            .then(|| wilson(successes, trials))
            .flatten()
    };
    let interval = extreme(0.0, 0)
        .or_else(|| extreme(1.0, trials))
        .unwrap_or_else(|| percentile_interval(&means));
    Some(Estimate { mean, interval })
}

/// Difference of two score vectors over the same tasks in the same order, resampling tasks.
///
/// Scores of several seeds are averaged per task before they come here. `None` without tasks or draws, or
/// when the lengths differ.
///
/// ```
/// let better = [1.0, 0.9, 0.8, 1.0, 0.7, 0.9];
/// let worse = [0.1, 0.2, 0.0, 0.1, 0.3, 0.2];
/// let difference = wmtp_stats::paired_bootstrap(&better, &worse, 10_000, 42).unwrap();
/// assert!((difference.difference - 4.4 / 6.0).abs() < 1e-12 && difference.is_significant());
/// ```
pub fn paired_bootstrap(
    first: &[f64],
    second: &[f64],
    draws: usize,
    seed: u64,
) -> Option<Difference> {
    if first.len() != second.len() {
        return None;
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let means = resampled_means(&differences, draws, seed)?;
    let not_above = means.iter().filter(|m| **m <= 0.0).count();
    let not_below = means.iter().filter(|m| **m >= 0.0).count();
    let tail = (not_above.min(not_below) + 1) as f64 / (draws + 1) as f64;
    Some(Difference {
        difference: mean(&differences),
        interval: percentile_interval(&means),
        p_value: (2.0 * tail).min(1.0),
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Means of resamples, in rising order.
fn resampled_means(values: &[f64], draws: usize, seed: u64) -> Option<Vec<f64>> {
    if values.is_empty() || draws == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // u32, so that the draws are the same on every platform.
    let count = u32::try_from(values.len()).ok()?;
    let mut means: Vec<f64> = (0..draws)
        .map(|_| {
            let total: f64 = (0..count)
                .map(|_| values[rng.random_range(0..count) as usize])
                .sum();
            total / f64::from(count)
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Some(means)
}

/// The 2.5 % and 97.5 % points of sorted values, linear between neighbours.
fn percentile_interval(sorted: &[f64]) -> Interval {
    let at = |share: f64| {
        let position = share * (sorted.len() - 1) as f64;
        let below = sorted[position.floor() as usize];
        let above = sorted[position.ceil() as usize];
        below + (above - below) * position.fract()
    };
    Interval {
        low: at(0.025),
        high: at(0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Z_95;
    use proptest::prelude::*;

    #[test]
    fn half_of_a_hundred_tasks_gives_the_normal_width() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let estimate = bootstrap_mean(&scores, DRAWS, 42).unwrap();
        let half = Z_95 * (0.25f64 / 100.0).sqrt();
        assert!((estimate.mean - 0.5).abs() < 1e-12);
        assert!(
            (estimate.interval.half_width() - half).abs() < 0.005,
            "{estimate:?}"
        );
    }

    #[test]
    fn percentiles_interpolate() {
        let sorted: Vec<f64> = (0..=1000).map(f64::from).collect();
        let interval = percentile_interval(&sorted);
        assert!((interval.low - 25.0).abs() < 1e-9 && (interval.high - 975.0).abs() < 1e-9);
    }

    #[test]
    fn pairing_finds_a_small_but_steady_gain_that_levels_would_hide() {
        let parent: Vec<f64> = (0..50).map(|i| f64::from(i) / 50.0).collect();
        let child: Vec<f64> = parent.iter().map(|s| s + 0.02).collect();
        let difference = paired_bootstrap(&child, &parent, DRAWS, 1).unwrap();
        assert!(difference.is_significant());
        assert!(difference.p_value < 0.001);
        let levels = [&child, &parent].map(|s| bootstrap_mean(s, DRAWS, 1).unwrap().interval);
        assert!(
            levels[0].low < levels[1].high,
            "the intervals of the levels overlap"
        );
    }

    #[test]
    fn equal_scores_are_no_difference() {
        let scores = [0.0, 0.5, 1.0];
        let difference = paired_bootstrap(&scores, &scores, 100, 7).unwrap();
        assert!(difference.difference.abs() < 1e-12 && !difference.is_significant());
        assert!((difference.p_value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_to_compare_is_none() {
        assert!(bootstrap_mean(&[], 100, 1).is_none());
        assert!(paired_bootstrap(&[1.0], &[], 100, 1).is_none());
    }

    proptest! {
        #[test]
        fn the_interval_stays_within_the_scores_and_repeats(
            scores in prop::collection::vec(0f64..1.0, 1..40),
            seed in any::<u64>(),
        ) {
            let estimate = bootstrap_mean(&scores, 200, seed).unwrap();
            let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
            let high = scores.iter().copied().fold(0.0, f64::max);
            prop_assert!(estimate.interval.low >= low - 1e-12);
            prop_assert!(estimate.interval.high <= high + 1e-12);
            prop_assert_eq!(bootstrap_mean(&scores, 200, seed).unwrap(), estimate);
        }

        #[test]
        fn swapping_sides_mirrors_the_difference(
            pairs in prop::collection::vec((0f64..1.0, 0f64..1.0), 1..40),
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let forward = paired_bootstrap(&a, &b, 200, 3).unwrap();
            let backward = paired_bootstrap(&b, &a, 200, 3).unwrap();
            prop_assert!((forward.difference + backward.difference).abs() < 1e-12);
            prop_assert!((forward.interval.low + backward.interval.high).abs() < 1e-12);
            prop_assert!((forward.p_value - backward.p_value).abs() < 1e-12);
        }
    }
}
