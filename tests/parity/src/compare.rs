//! Distances between two tensors and the gates they must pass (`spec/parity.md` 4.5 and 4.9).

use crate::Values;

/// Largest distance from the golden, as a multiple of the reference's own distance at that precision.
const MAX_NOISE_RATIO: f64 = 3.0;

/// What a key must satisfy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// Every element equal.
    Exact,
    /// Every element within this absolute distance.
    Absolute(f64),
    /// Relative distances.
    Relative {
        /// Bound on `‖a−b‖ / ‖b‖`.
        rel_l2: f64,
        /// Bound on `max|a−b| / max|b|`.
        scaled_max: f64,
        /// Whether elements that are 0 in the golden must be 0.
        zeros_exact: bool,
    },
}

/// One key compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// `‖a−b‖ / ‖b‖`; 0 when both are 0.
    pub rel_l2: f64,
    /// `max|a−b| / max|b|`.
    pub scaled_max: f64,
    /// `rel_l2` over the reference's own distance, where one applies.
    pub noise_ratio: Option<f64>,
    /// Elements outside the gate, or 1 for a tensor that fails as a whole.
    pub mismatch_count: usize,
    /// The first element outside the gate.
    pub first_mismatch: Option<usize>,
    /// The gate that failed first: name, value, bound.
    pub failed: Option<(&'static str, f64, f64)>,
}

impl Comparison {
    /// Compares `actual` with `expected` of the same shape. `floor` is the reference's own distance.
    pub fn of(actual: &Values, expected: &Values, gate: Gate, floor: Option<f64>) -> Self {
        debug_assert_eq!(
            actual.shape, expected.shape,
            "the caller compares shapes first"
        );
        let (a, b) = (&actual.data, &expected.data);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let top = b.iter().fold(0f64, |m, x| m.max(x.abs()));
        let rel_l2 = ratio(
            norm(&mut a.iter().zip(b).map(|(a, b)| a - b)),
            norm(&mut b.iter().copied()),
        );
        let largest = a.iter().zip(b).fold(0f64, |m, (a, b)| {
            if (a - b).is_nan() {
                f64::NAN
            } else {
                m.max((a - b).abs())
            }
        });
        let scaled_max = ratio(largest, top);
        let outside: Vec<usize> = (0..a.len())
            .filter(|i| !element_passes(a[*i], b[*i], top, gate))
            .collect();
        // One scalar's own distance is luck, and a distance of 0 bounds nothing.
        let noise_ratio = floor
            .filter(|floor| *floor > 0.0 && a.len() > 1)
            .map(|floor| rel_l2 / floor);
        let mut failed = first_failure(rel_l2, scaled_max, noise_ratio, gate);
        if failed.is_none() && !outside.is_empty() {
            let bound = if let Gate::Absolute(bound) = gate {
                bound
            } else {
                0.0
            };
            failed = Some(("largest difference", largest, bound));
        }
        let mismatch_count = if failed.is_some() {
            outside.len().max(1)
        } else {
            0
        };
        Self {
            rel_l2,
            scaled_max,
            noise_ratio,
            mismatch_count,
            first_mismatch: outside.first().copied(),
            failed,
        }
    }
}

/// Distance over size; an expected 0 demands 0.
fn ratio(distance: f64, size: f64) -> f64 {
    if distance == 0.0 {
        0.0
    } else if size == 0.0 {
        f64::INFINITY
    } else {
        distance / size
    }
}

fn element_passes(a: f64, b: f64, top: f64, gate: Gate) -> bool {
    if a.to_bits() == b.to_bits() {
        return true;
    }
    if !a.is_finite() || !b.is_finite() {
        return false;
    }
    let distance = (a - b).abs();
    match gate {
        Gate::Exact => distance == 0.0,
        Gate::Absolute(bound) => distance <= bound,
        Gate::Relative {
            zeros_exact: true, ..
        } if b == 0.0 => a == 0.0,
        Gate::Relative { scaled_max, .. } => distance <= scaled_max * top,
    }
}

fn first_failure(
    rel_l2: f64,
    scaled: f64,
    noise_ratio: Option<f64>,
    gate: Gate,
) -> Option<(&'static str, f64, f64)> {
    let Gate::Relative {
        rel_l2: bound,
        scaled_max,
        ..
    } = gate
    else {
        return None;
    };
    let passes = |value: f64, bound: f64| value <= bound;
    let gates = [
        ("rel_l2", rel_l2, bound),
        ("scaled_max", scaled, scaled_max),
        ("noise_ratio", noise_ratio.unwrap_or(0.0), MAX_NOISE_RATIO),
    ];
    gates
        .into_iter()
        .find(|(_, value, bound)| !passes(*value, *bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(data: &[f64]) -> Values {
        Values {
            shape: vec![data.len()],
            data: data.to_vec(),
        }
    }

    const LOOSE: Gate = Gate::Relative {
        rel_l2: 0.1,
        scaled_max: 0.1,
        zeros_exact: false,
    };

    #[test]
    fn distances_follow_their_definitions() {
        let got = Comparison::of(
            &values(&[3.0, 4.5]),
            &values(&[3.0, 4.0]),
            LOOSE,
            Some(0.05),
        );
        assert!((got.rel_l2 - 0.1).abs() < 1e-12 && (got.scaled_max - 0.125).abs() < 1e-12);
        assert!((got.noise_ratio.unwrap() - 2.0).abs() < 1e-9);
        assert_eq!((got.mismatch_count, got.first_mismatch), (1, Some(1)));
        assert_eq!(got.failed.unwrap().0, "scaled_max");
    }

    #[test]
    fn the_noise_gate_fails_what_the_table_would_pass() {
        let (a, b) = (values(&[1.0001, 1.0]), values(&[1.0, 1.0]));
        assert_eq!(Comparison::of(&a, &b, LOOSE, None).mismatch_count, 0);
        let strict = Comparison::of(&a, &b, LOOSE, Some(1e-6));
        assert_eq!(
            (strict.failed.unwrap().0, strict.mismatch_count),
            ("noise_ratio", 1)
        );
    }

    #[test]
    fn a_golden_of_zeros_demands_zeros() {
        let zero = values(&[0.0, 0.0]);
        assert!(Comparison::of(&zero, &zero, LOOSE, None).failed.is_none());
        assert!(
            Comparison::of(&values(&[0.0, 1e-30]), &zero, LOOSE, None)
                .failed
                .is_some()
        );
    }

    #[test]
    fn nan_on_one_side_is_a_mismatch_under_every_gate() {
        for gate in [Gate::Exact, Gate::Absolute(1.0), LOOSE] {
            let got = Comparison::of(&values(&[f64::NAN, 1.0]), &values(&[1.0, 1.0]), gate, None);
            assert!(
                got.failed.is_some() && got.first_mismatch == Some(0),
                "{gate:?}"
            );
        }
    }

    #[test]
    fn exact_zeros_are_kept_where_the_gate_says_so() {
        let gate = Gate::Relative {
            rel_l2: 0.1,
            scaled_max: 0.1,
            zeros_exact: true,
        };
        let got = Comparison::of(&values(&[1.0, 1e-9]), &values(&[1.0, 0.0]), gate, None);
        assert_eq!(got.first_mismatch, Some(1));
    }
}
