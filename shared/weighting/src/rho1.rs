//! Rho-1: how much worse the policy predicts a token than a tuned reference does.

use serde::{Deserialize, Serialize};

use crate::weights::{
    Error, TokenWeights, WeightSettings, WeightStats, check, project, require_finite,
};

/// How the two cross-entropies become a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExcessMode {
    /// Policy minus reference: tokens still to be learned score high, solved and unlearnable ones low.
    SignedExcess,
    /// The absolute difference.
    AbsExcess,
}

/// Scores of one head: excess cross-entropy per target, differences below `min_ce_diff` set to 0.
///
/// Both slices run over the same target tokens.
///
/// # Errors
/// [`Error::Length`] if they do not.
pub fn excess(
    policy_ce: &[f64],
    reference_ce: &[f64],
    mode: ExcessMode,
    min_ce_diff: f64,
) -> Result<Vec<f64>, Error> {
    if policy_ce.len() != reference_ce.len() {
        return Err(Error::Length {
            what: "the reference's cross-entropy",
            found: reference_ce.len(),
            expected: policy_ce.len(),
        });
    }
    let scores = policy_ce
        .iter()
        .zip(reference_ce)
        .map(|(policy, reference)| {
            let difference = policy - reference;
            match mode {
                _ if difference.abs() < min_ce_diff => 0.0,
                ExcessMode::SignedExcess => difference,
                ExcessMode::AbsExcess => difference.abs(),
            }
        });
    Ok(scores.collect())
}

/// How many of `count` targets a `ratio` of them is: one at least, where there are any.
pub fn num_selected(count: usize, ratio: f64) -> usize {
    ((ratio * count as f64).round() as usize).clamp(1.min(count), count)
}

/// Binary weighting: the highest `ratio` of scores are selected, the rest sit at the lower bound unless the
/// upper bound leaves some mass over; the projection restores mean 1.
///
/// At least one target is selected; equal scores are taken in order.
pub fn topk(scores: &[f64], ratio: f64, settings: &WeightSettings) -> Result<TokenWeights, Error> {
    settings.validate()?;
    require_finite(scores)?;
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(Error::Setting {
            name: "ratio",
            value: ratio,
            rule: "in (0, 1]",
        });
    }
    let count = scores.len();
    let selected = num_selected(count, ratio);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut weights = vec![settings.eps; count];
    for &index in &order[..selected] {
        weights[index] = count as f64 / selected as f64;
    }
    let c = project(&mut weights, settings.eps, settings.w_max);
    check(&weights, settings)?;
    let stats = WeightStats::of(&weights, settings, c, settings.temperature);
    Ok(TokenWeights { weights, stats })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tests::assert_close;
    use proptest::prelude::*;

    #[test]
    fn excess_keeps_or_drops_the_sign_and_ignores_noise() {
        let (policy, reference) = ([2.0, 1.0, 0.505], [1.5, 3.0, 0.5]);
        let signed = excess(&policy, &reference, ExcessMode::SignedExcess, 0.01).unwrap();
        assert_close(&signed, &[0.5, -2.0, 0.0], 1e-12);
        let absolute = excess(&policy, &reference, ExcessMode::AbsExcess, 0.01).unwrap();
        assert_close(&absolute, &[0.5, 2.0, 0.0], 1e-12);
    }

    #[test]
    fn lengths_must_agree() {
        let error = excess(&[1.0], &[], ExcessMode::SignedExcess, 0.0);
        assert!(matches!(
            error,
            Err(Error::Length {
                found: 0,
                expected: 1,
                ..
            })
        ));
    }

    #[test]
    fn six_of_ten_selected_weigh_1_6() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let made = topk(&scores, 0.6, &WeightSettings::default()).unwrap();
        assert_close(
            &made.weights,
            &[[0.1; 4].as_slice(), &[1.6; 6]].concat(),
            1e-9,
        );
    }

    #[test]
    fn two_of_ten_selected_meet_the_upper_bound() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let made = topk(&scores, 0.2, &WeightSettings::default()).unwrap();
        assert_close(
            &made.weights,
            &[[0.5; 8].as_slice(), &[3.0; 2]].concat(),
            1e-9,
        );
    }

    proptest! {
        #[test]
        fn topk_holds_the_invariants(
            scores in prop::collection::vec(-3f64..3.0, 0..80),
            ratio in 0.01f64..=1.0,
        ) {
            let settings = WeightSettings::default();
            let made = topk(&scores, ratio, &settings).unwrap();
            prop_assert!(check(&made.weights, &settings).is_ok());
        }
    }
}
