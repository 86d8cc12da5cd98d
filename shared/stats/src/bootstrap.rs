//! Bootstrap over tasks, alone and paired.

use std::collections::BTreeMap;

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
    Resampler::new(task_scores.len(), draws, seed)?.mean(&[task_scores])
}

/// Difference of two score vectors over the same tasks in the same order, resampling tasks.
///
/// `None` without tasks or draws, or when the lengths differ. Versions with several seeds go through
/// [`Resampler::difference`], which resamples the seeds too.
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
    Resampler::new(first.len(), draws, seed)?.difference(&[first], &[second], Seeds::Independent)
}

/// How the seeds of two versions belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeds {
    /// Row by row the same training seed, which shares data order and initial weights: a draw takes both or none.
    Paired,
    /// Each side's seeds are drawn for themselves.
    Independent,
}

/// Resamples of tasks, drawn once and used for every number over the same tasks.
///
/// A version's scores are rows of tasks, one row per training seed. Tasks and seeds are crossed: each draw takes tasks with
/// replacement and, where there are several, seeds with replacement, and averages over what it took (Owen's pigeonhole
/// bootstrap). An interval over tasks alone would hold only for the very seeds that were trained.
#[derive(Debug, Clone)]
pub struct Resampler {
    num_tasks: usize,
    seed: u64,
    /// The tasks of every draw, one draw after the other.
    tasks: Vec<u32>,
}

/// Streams of one seed, so that the draws of tasks are the same with one training seed and with several.
const FIRST_SEEDS: u64 = 1;
const SECOND_SEEDS: u64 = 2;

impl Resampler {
    /// Draws the tasks; `None` without tasks or draws.
    pub fn new(num_tasks: usize, draws: usize, seed: u64) -> Option<Self> {
        // u32, so that the draws are the same on every platform.
        let count = u32::try_from(num_tasks).ok()?;
        if count == 0 || draws == 0 {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tasks = (0..draws * num_tasks)
            .map(|_| rng.random_range(0..count))
            .collect();
        Some(Self {
            num_tasks,
            seed,
            tasks,
        })
    }

    /// Mean over seeds and tasks with its interval; see [`bootstrap_mean`]. `None` where a row has not as many tasks as
    /// were drawn from.
    pub fn mean(&self, seeds: &[&[f64]]) -> Option<Estimate> {
        let pooled = self.pooled(seeds)?;
        let trials = self.num_tasks as u64;
        let extreme = |share: f64, successes| {
            pooled
                .iter()
                .all(|score| score.to_bits() == share.to_bits())
                .then(|| wilson(successes, trials))
                .flatten()
        };
        let interval = extreme(0.0, 0)
            .or_else(|| extreme(1.0, trials))
            .unwrap_or_else(|| {
                let drawn = self.drawn_seeds(seeds.len(), FIRST_SEEDS);
                percentile_interval(&self.sorted_means(&Rows::new(seeds), &drawn))
            });
        Some(Estimate {
            mean: mean(&pooled),
            interval,
        })
    }

    /// First minus second over the same tasks, tasks and seeds resampled. `None` where a row has not as many tasks as were
    /// drawn from, or paired sides have not as many seeds.
    pub fn difference(
        &self,
        first: &[&[f64]],
        second: &[&[f64]],
        seeds: Seeds,
    ) -> Option<Difference> {
        let pooled: Vec<f64> = (self.pooled(first)?.iter())
            .zip(self.pooled(second)?)
            .map(|(a, b)| a - b)
            .collect();
        let means = match seeds {
            Seeds::Paired if first.len() == second.len() => {
                let rows: Vec<Vec<f64>> = (first.iter())
                    .zip(second)
                    .map(|(a, b)| a.iter().zip(*b).map(|(a, b)| a - b).collect())
                    .collect();
                let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
                let drawn = self.drawn_seeds(rows.len(), FIRST_SEEDS);
                self.sorted_means(&Rows::new(&rows), &drawn)
            }
            Seeds::Paired => return None,
            Seeds::Independent => {
                let of_first = self.drawn_seeds(first.len(), FIRST_SEEDS);
                let of_second = self.drawn_seeds(second.len(), SECOND_SEEDS);
                let drawn: Vec<_> = of_first.into_iter().zip(of_second).collect();
                let rows = Sides(Rows::new(first), Rows::new(second));
                self.sorted_means(&rows, &drawn)
            }
        };
        let not_above = means.iter().filter(|m| **m <= 0.0).count();
        let not_below = means.iter().filter(|m| **m >= 0.0).count();
        let tail = (not_above.min(not_below) + 1) as f64 / (means.len() + 1) as f64;
        Some(Difference {
            difference: mean(&pooled),
            interval: percentile_interval(&means),
            p_value: (2.0 * tail).min(1.0),
        })
    }

    /// Means over seeds, one per task.
    fn pooled(&self, seeds: &[&[f64]]) -> Option<Vec<f64>> {
        let whole = !seeds.is_empty() && seeds.iter().all(|row| row.len() == self.num_tasks);
        whole.then(|| Rows::new(seeds).of(&vec![1; seeds.len()]))
    }

    /// How often every draw takes each seed; the one seed once.
    fn drawn_seeds(&self, seeds: usize, stream: u64) -> Vec<Vec<u32>> {
        let draws = self.tasks.len() / self.num_tasks;
        if seeds == 1 {
            return vec![vec![1]; draws];
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        let count = seeds as u32;
        (0..draws)
            .map(|_| {
                let mut times = vec![0; seeds];
                for _ in 0..seeds {
                    times[rng.random_range(0..count) as usize] += 1;
                }
                times
            })
            .collect()
    }

    /// The mean of every draw, in rising order.
    fn sorted_means<D: Ord + Clone>(&self, values: &impl TaskValues<D>, drawn: &[D]) -> Vec<f64> {
        // Few seeds can be drawn in few ways: each way's values per task are made once.
        let mut ways: BTreeMap<D, Vec<f64>> = BTreeMap::new();
        let mut means: Vec<f64> = (self.tasks.chunks(self.num_tasks))
            .zip(drawn)
            .map(|(tasks, seeds)| {
                let values = ways
                    .entry(seeds.clone())
                    .or_insert_with(|| values.of(seeds));
                let total: f64 = tasks.iter().map(|&task| values[task as usize]).sum();
                total / self.num_tasks as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        means
    }
}

/// Values per task, given how often each seed was drawn.
trait TaskValues<D> {
    fn of(&self, seeds: &D) -> Vec<f64>;
}

/// One side: a row per seed.
struct Rows<'a>(Vec<&'a [f64]>);

impl<'a> Rows<'a> {
    fn new(seeds: &[&'a [f64]]) -> Self {
        Self(seeds.to_vec())
    }
}

impl TaskValues<Vec<u32>> for Rows<'_> {
    fn of(&self, times: &Vec<u32>) -> Vec<f64> {
        let drawn: u32 = times.iter().sum();
        let tasks = self.0.first().map_or(0, |row| row.len());
        (0..tasks)
            .map(|task| {
                let terms = self.0.iter().zip(times);
                let total: f64 = terms
                    .map(|(row, &times)| row[task] * f64::from(times))
                    .sum();
                total / f64::from(drawn)
            })
            .collect()
    }
}

/// Two sides whose seeds are drawn apart.
struct Sides<'a>(Rows<'a>, Rows<'a>);

impl TaskValues<(Vec<u32>, Vec<u32>)> for Sides<'_> {
    fn of(&self, (first, second): &(Vec<u32>, Vec<u32>)) -> Vec<f64> {
        let (first, second) = (self.0.of(first), self.1.of(second));
        first.iter().zip(second).map(|(a, b)| a - b).collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
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
    fn seeds_that_disagree_widen_the_interval_and_pairing_them_narrows_it() {
        let seed_of =
            |shift: f64| -> Vec<f64> { (0..60).map(|i| f64::from(i % 5) / 10.0 + shift).collect() };
        let rows = [seed_of(0.0), seed_of(0.2), seed_of(0.4)];
        let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
        let resampler = Resampler::new(60, DRAWS, 42).unwrap();
        let crossed = resampler.mean(&rows).unwrap();
        let pooled = bootstrap_mean(&seed_of(0.2), DRAWS, 42).unwrap();
        assert!((crossed.mean - pooled.mean).abs() < 1e-12);
        // The seeds' own spread: 0.2 * sqrt(2 / 3) of three, over the root of 3.
        let seeds_alone = Z_95 * 0.2 * (2.0f64 / 3.0 / 3.0).sqrt();
        assert!(crossed.interval.half_width() > seeds_alone * 0.9);
        assert!(crossed.interval.half_width() > pooled.interval.half_width() * 3.0);

        let shifted: Vec<Vec<f64>> = [0.05, 0.25, 0.45].map(seed_of).to_vec();
        let shifted: Vec<&[f64]> = shifted.iter().map(Vec::as_slice).collect();
        let of = |seeds| resampler.difference(&shifted, &rows, seeds).unwrap();
        assert!(of(Seeds::Paired).is_significant());
        assert!(!of(Seeds::Independent).is_significant());
        assert!((of(Seeds::Paired).difference - 0.05).abs() < 1e-12);
    }

    #[test]
    fn sides_that_do_not_fit_are_none() {
        let resampler = Resampler::new(2, 100, 1).unwrap();
        assert!(resampler.mean(&[]).is_none());
        assert!(resampler.mean(&[&[1.0, 0.0], &[1.0]]).is_none());
        let (one, two) = ([1.0, 0.0], [0.0, 0.0]);
        let paired = resampler.difference(&[&one], &[&one, &two], Seeds::Paired);
        assert!(paired.is_none());
        assert!(
            resampler
                .difference(&[&one], &[&one, &two], Seeds::Independent)
                .is_some()
        );
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
