//! The unbiased estimate of pass@k.

/// Chance that at least one of `k` samples drawn without replacement from `n` graded ones passes, when `c`
/// of the `n` pass: `1 - C(n-c, k) / C(n, k)`.
///
/// `None` where it is not defined: `k` is 0 or above `n`, or `c` is above `n`. The product form keeps the
/// error below 1e-15 for every `n` up to 200.
///
/// ```
/// assert_eq!(wmtp_stats::pass_at_k(10, 3, 5), Some(11.0 / 12.0));
/// assert_eq!(wmtp_stats::pass_at_k(5, 0, 10), None);
/// ```
pub fn pass_at_k(n: u64, c: u64, k: u64) -> Option<f64> {
    if k == 0 || k > n || c > n {
        return None;
    }
    if n - c < k {
        return Some(1.0);
    }
    let none_passes: f64 = (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - none_passes)
}

/// Mean of [`pass_at_k`] over problems given as (graded samples, passing samples).
///
/// `None` without problems, or as soon as one problem has fewer than `k` samples.
pub fn mean_pass_at_k(counts: &[(u64, u64)], k: u64) -> Option<f64> {
    if counts.is_empty() {
        return None;
    }
    let total: Option<f64> = counts.iter().map(|&(n, c)| pass_at_k(n, c, k)).sum();
    total.map(|total| total / counts.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worked_values_hold_to_the_last_digits() {
        let worked = [
            (1, 0, 1, 0.0),
            (1, 1, 1, 1.0),
            (2, 1, 1, 0.5),
            (2, 1, 2, 1.0),
            (5, 2, 2, 0.7),
            (10, 3, 1, 0.3),
            (10, 3, 5, 11.0 / 12.0),
            (10, 3, 7, 119.0 / 120.0),
            (10, 3, 8, 1.0),
            (10, 5, 2, 7.0 / 9.0),
            (20, 1, 1, 0.05),
            (20, 1, 10, 0.5),
            (20, 1, 20, 1.0),
            (20, 7, 10, 645.0 / 646.0),
            (100, 1, 10, 0.1),
            (100, 3, 10, 67.0 / 245.0),
            (100, 50, 10, 2_969_153.0 / 2_970_916.0),
            (200, 13, 10, 0.497_551_114_730_606_15),
            (200, 1, 100, 0.5),
            (200, 5, 100, 38_039.0 / 39_203.0),
            (1000, 7, 100, 0.522_822_944_162_167_5),
            (1000, 500, 10, 0.999_066_812_197_815_5),
            (10_000, 37, 100, 0.311_015_706_030_803_64),
        ];
        for (n, c, k, expected) in worked {
            let found = pass_at_k(n, c, k).unwrap();
            assert!(
                (found - expected).abs() < 2e-14,
                "{n} {c} {k}: {found} is not {expected}"
            );
        }
    }

    #[test]
    fn four_problems_average_as_worked() {
        let counts = [(20, 0), (20, 1), (20, 5), (20, 20)];
        let expected = [
            (1, 0.325),
            (5, 0.514_077_012_383_900_9),
            (10, 0.620_936_532_507_74),
            (20, 0.75),
        ];
        for (k, value) in expected {
            let found = mean_pass_at_k(&counts, k).unwrap();
            assert!((found - value).abs() < 1e-14, "k {k}: {found}");
        }
    }

    #[test]
    fn a_k_above_n_is_left_out_instead_of_reported_as_one() {
        assert_eq!(pass_at_k(5, 0, 10), None);
        assert_eq!(mean_pass_at_k(&[(20, 3), (5, 5)], 10), None);
        assert_eq!(mean_pass_at_k(&[], 1), None);
        assert_eq!(pass_at_k(5, 6, 1), None);
        assert_eq!(pass_at_k(5, 1, 0), None);
    }

    proptest! {
        #[test]
        fn pass_at_k_rises_with_c_and_with_k(n in 1u64..200, c in 0u64..200, k in 1u64..200) {
            prop_assume!(c < n && k < n);
            let here = pass_at_k(n, c, k).unwrap();
            prop_assert!((0.0..=1.0).contains(&here));
            prop_assert!(pass_at_k(n, c + 1, k).unwrap() >= here - 1e-12);
            prop_assert!(pass_at_k(n, c, k + 1).unwrap() >= here - 1e-12);
        }

        #[test]
        fn pass_at_1_is_the_share_of_passes(n in 1u64..300, c in 0u64..300) {
            prop_assume!(c <= n);
            prop_assert!((pass_at_k(n, c, 1).unwrap() - c as f64 / n as f64).abs() < 1e-12);
        }
    }
}
