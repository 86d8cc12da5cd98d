//! Exact McNemar, Holm's correction, shared ranks, and what a test set can resolve.

use serde::{Deserialize, Serialize};

use crate::Z_95;

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
    // Terms C(n, i) / 2^n in logarithms, which 2^-n alone would leave the range of a float.
    let mut log_term = -(discordant as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for i in 1..=smaller {
        log_term += ((discordant - i + 1) as f64 / i as f64).ln();
        tail += log_term.exp();
    }
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

/// Ranks that the noise allows, for rows sorted best first.
///
/// `level_with_leader[i]` says whether row `i` cannot be told from row 0; all those share rank 1. The rest
/// follow in order, counting everybody before them, and exactly equal scores share a rank.
pub fn shared_ranks(scores: &[f64], level_with_leader: &[bool]) -> Vec<u32> {
    let leads = |index: usize| index == 0 || level_with_leader.get(index).copied().unwrap_or(false);
    let leaders = (0..scores.len()).filter(|&index| leads(index)).count();
    let mut ranks = Vec::with_capacity(scores.len());
    let mut followers = 0;
    let mut previous: Option<(f64, u32)> = None;
    for (index, &score) in scores.iter().enumerate() {
        if leads(index) {
            ranks.push(1);
            continue;
        }
        followers += 1;
        let rank = match previous {
            Some((value, rank)) if value.total_cmp(&score).is_eq() => rank,
            _ => (leaders + followers) as u32,
        };
        previous = Some((score, rank));
        ranks.push(rank);
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
        let ranks = shared_ranks(
            &[0.9, 0.88, 0.5, 0.5, 0.1],
            &[true, true, false, false, false],
        );
        assert_eq!(ranks, [1, 1, 3, 3, 5]);
        assert_eq!(shared_ranks(&[0.9, 0.8], &[false, false]), [1, 2]);
        assert_eq!(
            shared_ranks(&[0.9, 0.8, 0.7], &[true, false, true]),
            [1, 3, 1]
        );
        assert!(shared_ranks(&[], &[]).is_empty());
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
