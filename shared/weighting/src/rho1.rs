//! Rho-1: how much worse the policy predicts a token than a tuned reference does.

use serde::{Deserialize, Serialize};

use crate::weights::{
    Error, TokenWeights, WeightSettings, WeightStats, blend, check, check_selected, project,
    require_finite,
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

/// Which targets [`topk`] selects, and what the others weigh.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    /// Share of the targets that is selected.
    pub ratio: f64,
    /// Whether the others weigh nothing, as in the paper (Lin et al. 2024); else they sit at the lower bound.
    pub hard: bool,
}

impl Selection {
    /// Checks the share, that the selected targets can carry the weight of all, and that the others weigh what was asked for.
    pub fn validate(&self, settings: &WeightSettings) -> Result<(), Error> {
        let value = self.ratio;
        let fail = |rule| {
            Err(Error::Setting {
                key: "rho1.ratio",
                value,
                rule,
            })
        };
        if !(value > 0.0 && value <= 1.0) {
            return fail("in (0, 1]");
        }
        if self.hard && value * settings.w_max < 1.0 {
            return fail("at least 1 / w_max where the others weigh nothing");
        }
        if self.hard && settings.blend < 1.0 {
            return Err(Error::Setting {
                key: "weights.blend",
                value: settings.blend,
                rule: "1 where the others weigh nothing",
            });
        }
        Ok(())
    }

    /// How many of `count` targets are selected: the share of them, one at least where there are any; and where the others
    /// weigh nothing, so many that none weighs more than `w_max`, which rounding alone would miss among a few.
    pub fn num_selected(&self, count: usize, w_max: f64) -> usize {
        let share = (self.ratio * count as f64).round();
        let least = if self.hard {
            (count as f64 / w_max).ceil()
        } else {
            1.0
        };
        (share.max(least) as usize).clamp(1.min(count), count)
    }
}

/// Binary weighting: the targets with the highest scores are selected. The others sit at the lower bound, unless the upper
/// one leaves some mass over, the projection restores mean 1, and the blend moves both towards 1; or, with a hard selection,
/// they weigh nothing and the selected ones N/|selected|. Temperature and entropy floor play no part.
///
/// At least one target is selected; equal scores are taken in order.
///
/// ```
/// use wmtp_weighting::rho1::{Selection, topk};
/// let paper = Selection { ratio: 0.5, hard: true };
/// let made = topk(&[0.3, -0.1, 0.0, 0.7], &paper, &Default::default())?;
/// assert_eq!(made.weights, [2.0, 0.0, 0.0, 2.0]);
/// # Ok::<(), wmtp_weighting::Error>(())
/// ```
pub fn topk(
    scores: &[f64],
    selection: &Selection,
    settings: &WeightSettings,
) -> Result<TokenWeights, Error> {
    settings.validate()?;
    selection.validate(settings)?;
    require_finite(scores)?;
    let count = scores.len();
    let selected = selection.num_selected(count, settings.w_max);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut is_selected = vec![false; count];
    for &index in &order[..selected] {
        is_selected[index] = true;
    }
    let each = count as f64 / selected as f64;
    let other = if selection.hard { 0.0 } else { settings.eps };
    let weight = |&selected: &bool| if selected { each } else { other };
    let mut weights: Vec<f64> = is_selected.iter().map(weight).collect();
    let c = if selection.hard {
        check_selected(&weights, settings, |index| is_selected[index])?;
        1.0
    } else {
        let c = project(&mut weights, settings.eps, settings.w_max);
        // Not by a share of 1: it would round.
        if settings.blend < 1.0 {
            blend(&mut weights, settings);
        }
        check(&weights, settings)?;
        c
    };
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

    fn soft(ratio: f64) -> Selection {
        Selection { ratio, hard: false }
    }

    fn hard(ratio: f64) -> Selection {
        Selection { ratio, hard: true }
    }

    #[test]
    fn six_of_ten_weigh_five_thirds_where_the_others_weigh_nothing() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let made = topk(&scores, &hard(0.6), &WeightSettings::default()).unwrap();
        assert_eq!(
            made.weights,
            [[0.0; 4].as_slice(), &[10.0 / 6.0; 6]].concat()
        );
        // Six equal shares of ten: ln 6 / ln 10. Nothing is projected.
        let stats = made.stats;
        assert_close(
            &[stats.mean, stats.entropy, stats.projection_c],
            &[1.0, 0.778_151, 1.0],
            1e-6,
        );
        // √(0.6 · (10/6)² - 1)
        assert_close(&[stats.std], &[0.816_497], 1e-6);
        assert_close(
            &[stats.min, stats.max, stats.clip_low, stats.clip_high],
            &[0.0, 10.0 / 6.0, 0.4, 0.0],
            1e-12,
        );
    }

    #[test]
    fn a_share_that_cannot_carry_the_weight_of_all_is_refused() {
        let settings = WeightSettings::default();
        let error = topk(&[1.0; 10], &hard(0.2), &settings).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rho1.ratio is 0.2, but it must be at least 1 / w_max where the others weigh nothing"
        );
        let wider = WeightSettings {
            w_max: 5.0,
            ..settings
        };
        let made = topk(&[1.0; 10], &hard(0.2), &wider).unwrap();
        assert_eq!(made.weights, [[5.0; 2].as_slice(), &[0.0; 8]].concat());
        assert_close(
            &[made.stats.clip_low, made.stats.clip_high],
            &[0.8, 0.2],
            1e-12,
        );
    }

    #[test]
    fn among_a_few_one_more_is_selected_rather_than_the_upper_bound_broken() {
        // 0.34 of 4 rounds to one, which would weigh 4.
        let made = topk(
            &[0.0, 2.0, 1.0, 0.0],
            &hard(0.34),
            &WeightSettings::default(),
        )
        .unwrap();
        assert_eq!(made.weights, [0.0, 2.0, 2.0, 0.0]);
        for count in [0, 1] {
            let made = topk(&vec![1.0; count], &hard(0.34), &WeightSettings::default()).unwrap();
            assert_eq!(made.weights, vec![1.0; count]);
        }
    }

    #[test]
    fn zeros_are_those_of_the_targets_left_out_and_no_others() {
        let settings = WeightSettings::default();
        let said = |weights: &[f64]| {
            check_selected(weights, &settings, |index| index < 2).map_err(|error| error.to_string())
        };
        assert_eq!(said(&[2.0, 2.0, 0.0, 0.0]), Ok(()));
        for (weights, reason) in [
            ([4.0, 0.0, 0.0, 0.0], "weight 0 is 4, outside [0.1, 3]"),
            ([3.0, 0.0, 0.0, 0.0], "weight 1 is 0, outside [0.1, 3]"),
            ([f64::NAN, 2.0, 0.0, 0.0], "weight 0 is NaN"),
            (
                [1.9, 2.0, 0.1, 0.0],
                "weight 2 is 0.1, but its target is not selected",
            ),
            ([1.9, 2.0, 0.0, 0.0], "their mean is 0.975, not 1"),
        ] {
            let error = said(&weights).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(check(&[2.0, 2.0, 0.0, 0.0], &settings).is_err());
    }

    #[test]
    fn six_of_ten_selected_weigh_1_6() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let made = topk(&scores, &soft(0.6), &WeightSettings::default()).unwrap();
        assert_close(
            &made.weights,
            &[[0.1; 4].as_slice(), &[1.6; 6]].concat(),
            1e-9,
        );
    }

    #[test]
    fn a_blend_moves_the_selected_and_the_others_towards_one() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let settings = |blend| WeightSettings {
            blend,
            ..WeightSettings::default()
        };
        let made = topk(&scores, &soft(0.6), &settings(0.5)).unwrap();
        // 1 + (0.1 - 1) / 2 and 1 + (1.6 - 1) / 2.
        assert_close(
            &made.weights,
            &[[0.55; 4].as_slice(), &[1.3; 6]].concat(),
            1e-9,
        );
        let stats = made.stats;
        assert_close(
            &[stats.mean, stats.clip_low, stats.clip_high],
            &[1.0, 0.4, 0.0],
            1e-12,
        );
        let none = topk(&scores, &soft(0.6), &settings(0.0)).unwrap();
        assert_eq!(none.weights, [1.0; 10]);
        let error = topk(&scores, &hard(0.6), &settings(0.5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weights.blend is 0.5, but it must be 1 where the others weigh nothing"
        );
    }

    #[test]
    fn two_of_ten_selected_meet_the_upper_bound() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        let made = topk(&scores, &soft(0.2), &WeightSettings::default()).unwrap();
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
            let made = topk(&scores, &soft(ratio), &settings).unwrap();
            prop_assert!(check(&made.weights, &settings).is_ok());
        }

        /// Whatever the upper bound, the weights are N/|selected| and 0, and no score that is left out is higher.
        #[test]
        fn a_hard_selection_holds_the_invariants(
            scores in prop::collection::vec(-3f64..3.0, 0..80),
            w_max in 1f64..20.0,
            share in 0f64..=1.0,
        ) {
            let settings = WeightSettings { w_max, ..WeightSettings::default() };
            let selection = hard((1.0 / w_max + share * (1.0 - 1.0 / w_max)).min(1.0));
            prop_assume!(selection.validate(&settings).is_ok());
            let made = topk(&scores, &selection, &settings).unwrap();
            let count = selection.num_selected(scores.len(), w_max);
            let weighs = |index: usize| made.weights[index] > 0.0;
            prop_assert!(check_selected(&made.weights, &settings, weighs).is_ok());
            let (taken, left): (Vec<usize>, Vec<usize>) = (0..scores.len()).partition(|&i| weighs(i));
            prop_assert_eq!(taken.len(), count);
            let each = scores.len() as f64 / count as f64;
            for &index in &taken {
                prop_assert!((made.weights[index] - each).abs() < 1e-12);
                prop_assert!(left.iter().all(|&other| scores[other] <= scores[index]));
            }
            prop_assert!((0.0..=1.0 + 1e-12).contains(&made.stats.entropy));
            prop_assert!(made.stats.std.is_finite());
        }
    }
}
