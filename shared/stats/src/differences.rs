//! Exact McNemar, Holm's correction, shared ranks, and what a test set can resolve.

use serde::{Deserialize, Serialize};

use crate::Z_95;

/// Up to this power one half is a normal float, and so are all terms of the tail.
const EXACT_POWERS: u64 = 1000;

/// Exact two-sided McNemar p-value from the tasks that only one of two versions solves.
///
/// Twice the smaller binomial tail at one half, at most 1; 1 without discordant tasks.
///
/// ```
/// assert_eq!(wmtp_stats::mcnemar_exact(1, 9), 22.0 / 1024.0);
/// ```
pub fn mcnemar_exact(only_first: u64, only_second: u64) -> f64 {
    let discordant = only_first + only_second;
    let smaller = only_first.min(only_second);
    let ratio = |i: u64| (discordant - i + 1) as f64 / i as f64;
    let tail: f64 = if discordant <= EXACT_POWERS {
        let first = 0.5f64.powi(discordant as i32);
        let terms = (1..=smaller).scan(first, |term, i| {
            *term *= ratio(i);
            Some(*term)
        });
        first + terms.sum::<f64>()
    } else {
        // Terms C(n, i) / 2^n in logarithms: 2^-n alone leaves the range of a float.
        let first = -(discordant as f64) * std::f64::consts::LN_2;
        let terms = (1..=smaller).scan(first, |term, i| {
            *term += ratio(i).ln();
            Some(term.exp())
        });
        first.exp() + terms.sum::<f64>()
    };
    (2.0 * tail).min(1.0)
}

/// Holm's adjusted p-values, in the order given; each may be compared with the level directly.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let count = p_values.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]).then(a.cmp(&b)));
    let mut adjusted = vec![0.0; count];
    let mut largest = 0.0f64;
    for (place, &index) in order.iter().enumerate() {
        largest = largest.max((p_values[index] * (count - place) as f64).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

/// Ranks that the noise allows, for `count` rows sorted best first.
///
/// The first row leads rank 1; all rows that cannot be told from it share the rank. The best of the rest leads the
/// next one, and so on; a rank counts everybody placed before. `level_with(leader, others)` says of each of the others
/// whether it cannot be told from the leader.
pub fn shared_ranks(
    count: usize,
    mut level_with: impl FnMut(usize, &[usize]) -> Vec<bool>,
) -> Vec<u32> {
    let mut ranks = vec![0; count];
    let mut rest: Vec<usize> = (0..count).collect();
    while let Some((&leader, others)) = rest.split_first() {
        let rank = (count - others.len()) as u32;
        let level = level_with(leader, others);
        ranks[leader] = rank;
        let mut behind = Vec::new();
        for (&row, level) in others.iter().zip(level) {
            if level {
                ranks[row] = rank;
            } else {
                behind.push(row);
            }
        }
        rest = behind;
    }
    ranks
}

/// Smallest differences that a set of tasks can show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resolution {
    /// A measured gap of this size is called significant.
    pub significant: f64,
    /// A true gap of this size is found four times out of five.
    pub reliable: f64,
}

/// What `tasks` tasks can resolve, when the mean square of per-task differences is `mean_square`.
///
/// With one sample a task, `mean_square` is the share of tasks on which two versions disagree. The gaps are
/// `1.96 * sqrt(q / n)` and `2.8 * sqrt(q / n)`. `None` without tasks.
pub fn resolution(mean_square: f64, tasks: usize) -> Option<Resolution> {
    if tasks == 0 {
        return None;
    }
    let std_error = (mean_square / tasks as f64).sqrt();
    Some(Resolution {
        significant: Z_95 * std_error,
        reliable: 2.8 * std_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mcnemar_matches_counted_tails() {
        assert!((mcnemar_exact(0, 0) - 1.0).abs() < 1e-12);
        assert!((mcnemar_exact(5, 5) - 1.0).abs() < 1e-12);
        assert!((mcnemar_exact(0, 6) - 2.0 / 64.0).abs() < 1e-12);
        assert!((mcnemar_exact(2, 8) - 112.0 / 1024.0).abs() < 1e-12);
        assert!(mcnemar_exact(400, 1000) < 1e-50);
    }

    #[test]
    fn holm_adjusts_as_in_the_textbook() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn ranks_are_shared_within_noise_and_count_everybody_before() {
        let within = |scores: &'static [f64], noise: f64| {
            shared_ranks(scores.len(), move |leader, others| {
                let level = |&row: &usize| scores[leader] - scores[row] < noise;
                others.iter().map(level).collect()
            })
        };
        assert_eq!(within(&[0.9, 0.88, 0.5, 0.49, 0.1], 0.05), [1, 1, 3, 3, 5]);
        assert_eq!(within(&[0.9, 0.8], 0.05), [1, 2]);
        // Each is level with the next, yet only those level with the leader of a rank share it.
        assert_eq!(within(&[0.9, 0.8, 0.7, 0.6], 0.15), [1, 1, 3, 3]);
        assert!(within(&[], 0.05).is_empty());
        // The third cannot be told from the first, because few tasks decide about it; the second can.
        let uneven = shared_ranks(3, |leader, others| {
            others.iter().map(|&row| (leader, row) == (0, 2)).collect()
        });
        assert_eq!(uneven, [1, 3, 1]);
    }

    #[test]
    fn known_test_sets_resolve_as_worked() {
        let worked = [
            (164, 0.051, 0.073),
            (374, 0.034, 0.048),
            (500, 0.029, 0.042),
            (974, 0.021, 0.030),
        ];
        for (tasks, significant, reliable) in worked {
            let found = resolution(0.11, tasks).unwrap();
            assert!(
                (found.significant - significant).abs() < 6e-4,
                "{tasks}: {found:?}"
            );
            assert!(
                (found.reliable - reliable).abs() < 6e-4,
                "{tasks}: {found:?}"
            );
        }
        assert_eq!(resolution(0.11, 0), None);
    }

    proptest! {
        #[test]
        fn holm_never_lowers_a_p_value_and_keeps_their_order(
            p_values in prop::collection::vec(0f64..1.0, 1..20),
        ) {
            let adjusted = holm(&p_values);
            for (p, a) in p_values.iter().zip(&adjusted) {
                prop_assert!(a >= p && *a <= 1.0);
                for (other, b) in p_values.iter().zip(&adjusted) {
                    prop_assert!(p > other || a <= b);
                }
            }
        }

        #[test]
        fn mcnemar_is_symmetric(a in 0u64..300, b in 0u64..300) {
            prop_assert!((mcnemar_exact(a, b) - mcnemar_exact(b, a)).abs() < 1e-12);
        }
    }
}
