//! The two controls: weights that look like the verifiable run's but say nothing about the tokens.

use rand::Rng;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::weights::{
    Error, TokenWeights, WeightSettings, WeightStats, check, project, require_finite,
};

/// Permutes weights among the response tokens of each sequence.
///
/// Sequence `i` is `weights[offsets[i]..offsets[i + 1]]` and is shuffled with `seeds[i]`, which the caller
/// derives from the run's seed and the sample's id, so that batching does not change the outcome. The
/// multiset of weights of every sequence stays, hence mean and bounds of the whole do too.
///
/// # Errors
/// [`Error::Length`] unless there are `seeds.len() + 1` offsets that rise to `weights.len()`.
pub fn shuffled(weights: &[f64], offsets: &[usize], seeds: &[u64]) -> Result<Vec<f64>, Error> {
    if offsets.len() != seeds.len() + 1 {
        return Err(Error::Length {
            what: "offsets",
            found: offsets.len(),
            expected: seeds.len() + 1,
        });
    }
    let end = offsets.last().copied().unwrap_or(0);
    if end != weights.len() || !offsets.is_sorted() {
        return Err(Error::Length {
            what: "weights",
            found: weights.len(),
            expected: end,
        });
    }
    let mut shuffled = weights.to_vec();
    for (bounds, &seed) in offsets.windows(2).zip(seeds) {
        shuffled[bounds[0]..bounds[1]].shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }
    Ok(shuffled)
}

/// Draws `count` weights from the distribution of `observed` ones (with replacement) and projects them, so
/// that they have the same histogram up to the projection but no relation to the tokens.
///
/// No observed weight gives uniform weights. The observed ones are those of the verifiable algorithm, which are within the
/// bounds; a 0, which only Rho-1's hard selection gives, would be drawn as the lower bound.
pub fn random_matched(
    observed: &[f64],
    count: usize,
    seed: u64,
    settings: &WeightSettings,
) -> Result<TokenWeights, Error> {
    settings.validate()?;
    require_finite(observed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights: Vec<f64> = (0..count)
        .map(|_| match observed {
            [] => 1.0,
            _ => observed[rng.random_range(0..observed.len())],
        })
        .collect();
    // The observed weights are blended: beyond what their bounds became, the control would be wider than they are.
    let (low, high) = settings.blended_bounds();
    let c = project(&mut weights, low, high);
    check(&weights, settings)?;
    let stats = WeightStats::of(&weights, settings, c, settings.temperature);
    Ok(TokenWeights { weights, stats })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Whitening, token_weights};
    use proptest::prelude::*;

    fn sorted(values: &[f64]) -> Vec<f64> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    }

    #[test]
    fn drawn_weights_stay_where_the_blend_left_the_observed_ones() {
        let settings = WeightSettings {
            blend: 0.5,
            ..WeightSettings::default()
        };
        // 0.1 and 3 by half.
        let observed = [0.55, 0.55, 0.55, 0.55, 0.55, 0.55, 0.7, 2.0, 2.0, 2.0];
        let made = random_matched(&observed, 500, 7, &settings).unwrap();
        let stats = made.stats;
        assert!(
            stats.min >= 0.55 - 1e-12 && stats.max <= 2.0 + 1e-12,
            "{stats:?}"
        );
        assert!((stats.projection_c - 1.0).abs() > 1e-6, "{stats:?}");
        assert!(stats.clip_low + stats.clip_high > 0.2, "{stats:?}");
    }

    #[test]
    fn a_sequence_shuffles_alike_in_any_batch() {
        let weights: Vec<f64> = (0..20).map(f64::from).collect();
        let together = shuffled(&weights, &[0, 8, 20], &[1, 2]).unwrap();
        let alone = shuffled(&weights[8..], &[0, 12], &[2]).unwrap();
        assert_eq!(together[8..], alone);
        assert_ne!(together[8..], weights[8..]);
    }

    #[test]
    fn offsets_must_cover_the_weights() {
        assert!(shuffled(&[1.0, 1.0], &[0, 1], &[7]).is_err());
        assert!(shuffled(&[1.0, 1.0], &[0, 2], &[]).is_err());
    }

    #[test]
    fn random_weights_match_the_observed_spread() {
        let scores: Vec<f64> = (0..2000).map(|i| f64::from(i % 97) / 20.0).collect();
        let settings = WeightSettings::default();
        let observed = token_weights(&scores, &Whitening::of(&scores), &settings).unwrap();
        let random = random_matched(&observed.weights, 20_000, 42, &settings).unwrap();
        assert!((random.stats.std - observed.stats.std).abs() < 0.05);
        assert!((random.stats.projection_c - 1.0).abs() < 0.05);
    }

    proptest! {
        #[test]
        fn shuffling_keeps_the_weights_of_every_sequence(
            lengths in prop::collection::vec(0usize..12, 1..8),
            seed in any::<u64>(),
        ) {
            let mut offsets = vec![0];
            for length in &lengths {
                offsets.push(offsets.last().unwrap() + length);
            }
            let weights: Vec<f64> = (0..*offsets.last().unwrap()).map(|i| i as f64).collect();
            let seeds: Vec<u64> = (0..lengths.len() as u64).map(|i| seed.wrapping_add(i)).collect();
            let after = shuffled(&weights, &offsets, &seeds).unwrap();
            for bounds in offsets.windows(2) {
                let range = bounds[0]..bounds[1];
                prop_assert_eq!(sorted(&after[range.clone()]), weights[range].to_vec());
            }
        }

        #[test]
        fn random_weights_hold_the_invariants(
            observed in prop::collection::vec(0.1f64..3.0, 0..50),
            count in 0usize..100,
            seed in any::<u64>(),
        ) {
            let settings = WeightSettings::default();
            let made = random_matched(&observed, count, seed, &settings).unwrap();
            prop_assert!(check(&made.weights, &settings).is_ok());
            prop_assert_eq!(made.weights.len(), count);
        }
    }
}
