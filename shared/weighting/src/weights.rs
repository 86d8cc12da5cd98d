//! From scores to weights: the normative procedure and its invariants.

use serde::{Deserialize, Serialize};

/// Standard deviation below which scores count as all equal.
const FLAT_STD: f64 = 1e-6;
/// The highest temperature that the entropy floor may choose.
const MAX_TEMPERATURE: f64 = 100.0;
/// How far the mean of weights may lie from 1.
const MEAN_TOLERANCE: f64 = 1e-9;

/// Why weights could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A score is NaN or infinite.
    #[error("score {index} of {count} is {value}: scores must be finite")]
    NotFinite {
        /// 0-based position.
        index: usize,
        /// Number of scores.
        count: usize,
        /// What was found.
        value: f64,
    },
    /// A setting is outside its range.
    #[error("{key} is {value}, but it must be {rule}")]
    Setting {
        /// Its key in a recipe.
        key: &'static str,
        /// Its value.
        value: f64,
        /// The range in words.
        rule: &'static str,
    },
    /// Two inputs that belong together differ in length.
    #[error("{what} has {found} entries, expected {expected}")]
    Length {
        /// Which input.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        expected: usize,
    },
    /// Weights break an invariant; a defect of the scorer.
    #[error("token weights are invalid: {0}")]
    Invariant(String),
}

/// Settings of the normative procedure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightSettings {
    /// Divides the whitened scores; above 0. Larger is flatter.
    pub temperature: f64,
    /// The smallest weight, in (0, 1].
    pub eps: f64,
    /// The largest weight, at least 1.
    pub w_max: f64,
    /// Normalised entropy below which the temperature is raised, in [0, 1).
    pub entropy_floor: f64,
    /// Share of the weighting in the blend with uniform weights, in [0, 1].
    pub blend: f64,
}

impl Default for WeightSettings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            eps: 0.1,
            w_max: 3.0,
            entropy_floor: 0.01,
            blend: 1.0,
        }
    }
}

impl WeightSettings {
    /// Checks every range.
    pub fn validate(&self) -> Result<(), Error> {
        let rules = [
            (
                "weights.temperature",
                self.temperature,
                self.temperature > 0.0 && self.temperature.is_finite(),
                "above 0",
            ),
            (
                "weights.eps",
                self.eps,
                self.eps > 0.0 && self.eps <= 1.0,
                "in (0, 1]",
            ),
            (
                "weights.w_max",
                self.w_max,
                self.w_max >= 1.0 && self.w_max.is_finite(),
                "at least 1",
            ),
            (
                "weights.entropy_floor",
                self.entropy_floor,
                (0.0..1.0).contains(&self.entropy_floor),
                "in [0, 1)",
            ),
            (
                "weights.blend",
                self.blend,
                (0.0..=1.0).contains(&self.blend),
                "in [0, 1]",
            ),
        ];
        for (key, value, holds, rule) in rules {
            if !holds {
                return Err(Error::Setting { key, value, rule });
            }
        }
        Ok(())
    }

    /// What weights at the lower and at the upper bound become when they are blended with 1.
    pub fn blended_bounds(&self) -> (f64, f64) {
        let blended = |bound: f64| self.blend * bound + (1.0 - self.blend);
        (blended(self.eps), blended(self.w_max))
    }
}

/// Mean and population standard deviation that scores are whitened with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Whitening {
    /// Mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
}

impl Whitening {
    /// The statistics of these scores; mean 0 and std 0 for none.
    pub fn of(scores: &[f64]) -> Self {
        if scores.is_empty() {
            return Self {
                mean: 0.0,
                std: 0.0,
            };
        }
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let variance = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / count;
        Self {
            mean,
            std: variance.sqrt(),
        }
    }

    /// The z-score of one score.
    pub fn apply(&self, score: f64) -> f64 {
        (score - self.mean) / (self.std + 1e-8)
    }
}

/// What happened on the way from scores to weights; logged at every step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightStats {
    /// Number of weights.
    pub count: usize,
    /// Mean; 1 up to rounding.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Smallest weight.
    pub min: f64,
    /// Largest weight.
    pub max: f64,
    /// Entropy of the weights over ln N, in [0, 1]; 1 is uniform.
    pub entropy: f64,
    /// Share of weights that were at the lower bound before they were blended with 1, those of 0 that a hard selection gives
    /// among them; none where nothing is left of them (a blend of 0).
    pub clip_low: f64,
    /// Share of weights that were at the upper bound before they were blended with 1.
    pub clip_high: f64,
    /// Factor of the projection; 1 when nothing was clipped.
    pub projection_c: f64,
    /// Temperature in use, after the entropy floor.
    pub temperature: f64,
}

impl WeightStats {
    /// Describes finished weights; shares at the bounds are exact comparisons with a small tolerance.
    pub fn of(
        weights: &[f64],
        settings: &WeightSettings,
        projection_c: f64,
        temperature: f64,
    ) -> Self {
        let count = weights.len();
        let Whitening { mean, std } = Whitening::of(weights);
        let (low, high) = settings.blended_bounds();
        let share = |holds: &dyn Fn(f64) -> bool| {
            let at = |w: &&f64| settings.blend > 0.0 && holds(**w);
            weights.iter().filter(at).count() as f64 / count.max(1) as f64
        };
        Self {
            count,
            mean,
            std,
            min: weights.iter().copied().reduce(f64::min).unwrap_or(1.0),
            max: weights.iter().copied().reduce(f64::max).unwrap_or(1.0),
            entropy: normalised_entropy(weights),
            clip_low: share(&|w| w <= low * (1.0 + 1e-9)),
            clip_high: share(&|w| w >= high * (1.0 - 1e-9)),
            projection_c,
            temperature,
        }
    }
}

/// Weights with their statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenWeights {
    /// One per score, in order.
    pub weights: Vec<f64>,
    /// What happened on the way.
    pub stats: WeightStats,
}

/// The baseline: every weight is 1.
pub fn uniform(count: usize, settings: &WeightSettings) -> TokenWeights {
    let weights = vec![1.0; count];
    let stats = WeightStats::of(&weights, settings, 1.0, settings.temperature);
    TokenWeights { weights, stats }
}

/// The normative procedure: whitened scores, exponential at a temperature, entropy floor, projection to
/// mean 1 within the bounds, blend with uniform weights.
///
/// `scores` are all scores of the normalisation scope (one optimizer step, or one micro-batch and head for
/// Rho-1); `whitening` comes from the whole data set or from [`Whitening::of`] the same scores. No score,
/// one score or scores that are all equal give uniform weights.
///
/// # Errors
/// [`Error::NotFinite`] for a NaN or infinite score, [`Error::Setting`] for a setting out of range.
pub fn token_weights(
    scores: &[f64],
    whitening: &Whitening,
    settings: &WeightSettings,
) -> Result<TokenWeights, Error> {
    settings.validate()?;
    require_finite(scores)?;
    if scores.len() < 2 || whitening.std < FLAT_STD {
        return Ok(uniform(scores.len(), settings));
    }
    let whitened: Vec<f64> = scores.iter().map(|&score| whitening.apply(score)).collect();
    let temperature = floored_temperature(&whitened, settings);
    let mut logs = log_softmax_mean_one(&whitened, temperature);
    let c = project_logs(&mut logs, settings.eps, settings.w_max);
    let mut weights = logs;
    blend(&mut weights, settings);
    check(&weights, settings)?;
    let stats = WeightStats::of(&weights, settings, c, temperature);
    Ok(TokenWeights { weights, stats })
}

/// Scales positive weights by the one `c` for which `clip(c * w, eps, w_max)` has mean 1, and clips them.
///
/// Returns `c`, which is 1 when the weights already have mean 1 and nothing clips. Weights of 0 count as
/// the smallest positive number, so a solution exists for every `eps <= 1 <= w_max`.
pub fn project(weights: &mut [f64], eps: f64, w_max: f64) -> f64 {
    for weight in weights.iter_mut() {
        *weight = weight.max(f64::MIN_POSITIVE).ln();
    }
    project_logs(weights, eps, w_max)
}

/// Leaves that share of the weights that the settings say; the rest is 1, and the mean stays.
pub(crate) fn blend(weights: &mut [f64], settings: &WeightSettings) {
    for weight in weights {
        *weight = 1.0 + settings.blend * (*weight - 1.0);
    }
}

/// Checks mean 1, finiteness and bounds.
pub fn check(weights: &[f64], settings: &WeightSettings) -> Result<(), Error> {
    check_selected(weights, settings, |_| true)
}

/// [`check`] where some targets count for nothing: the weights of those that are selected keep the bounds, all others are 0,
/// and the mean over both is 1.
pub fn check_selected(
    weights: &[f64],
    settings: &WeightSettings,
    is_selected: impl Fn(usize) -> bool,
) -> Result<(), Error> {
    let (low, high) = (
        settings.eps - MEAN_TOLERANCE,
        settings.w_max + MEAN_TOLERANCE,
    );
    for (index, weight) in weights.iter().enumerate() {
        let selected = is_selected(index);
        if selected && !(low..=high).contains(weight) {
            return Err(Error::Invariant(format!(
                "weight {index} is {weight}, outside [{}, {}]",
                settings.eps, settings.w_max
            )));
        }
        if !selected && *weight != 0.0 {
            return Err(Error::Invariant(format!(
                "weight {index} is {weight}, but its target is not selected"
            )));
        }
    }
    let mean = Whitening::of(weights).mean;
    if !weights.is_empty() && (mean - 1.0).abs() > MEAN_TOLERANCE {
        return Err(Error::Invariant(format!("their mean is {mean}, not 1")));
    }
    Ok(())
}

pub(crate) fn require_finite(scores: &[f64]) -> Result<(), Error> {
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            index,
            count: scores.len(),
            value: scores[index],
        }),
    }
}

/// Logarithms of `exp(z / T)` divided by its mean. Logarithms, because the ratio of two weights can leave
/// the range of a float while the projection still has a solution.
fn log_softmax_mean_one(whitened: &[f64], temperature: f64) -> Vec<f64> {
    let top = whitened.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut logs: Vec<f64> = whitened.iter().map(|z| (z - top) / temperature).collect();
    let mean = logs.iter().map(|log| log.exp()).sum::<f64>() / logs.len() as f64;
    let log_mean = mean.ln();
    for log in &mut logs {
        *log -= log_mean;
    }
    logs
}

/// The configured temperature, or the lowest one that reaches the entropy floor.
fn floored_temperature(whitened: &[f64], settings: &WeightSettings) -> f64 {
    let entropy_at = |temperature: f64| {
        let weights: Vec<f64> = log_softmax_mean_one(whitened, temperature)
            .into_iter()
            .map(f64::exp)
            .collect();
        normalised_entropy(&weights)
    };
    let start = settings.temperature;
    if entropy_at(start) >= settings.entropy_floor || start >= MAX_TEMPERATURE {
        return start;
    }
    if entropy_at(MAX_TEMPERATURE) < settings.entropy_floor {
        return MAX_TEMPERATURE;
    }
    bisect(start, MAX_TEMPERATURE, |temperature| {
        entropy_at(temperature) >= settings.entropy_floor
    })
}

/// Entropy of weights as shares, over ln N.
fn normalised_entropy(weights: &[f64]) -> f64 {
    if weights.len() < 2 {
        return 1.0;
    }
    let total: f64 = weights.iter().sum();
    let entropy: f64 = weights
        .iter()
        .map(|weight| weight / total)
        .filter(|share| *share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    entropy / (weights.len() as f64).ln()
}

/// [`project`] on logarithms: replaces each by its projected weight.
fn project_logs(logs: &mut [f64], eps: f64, w_max: f64) -> f64 {
    if logs.is_empty() {
        return 1.0;
    }
    let clipped = |log: f64, shift: f64| (log + shift).exp().clamp(eps, w_max);
    let mean_at =
        |shift: f64| logs.iter().map(|log| clipped(*log, shift)).sum::<f64>() / logs.len() as f64;
    let shift = if (mean_at(0.0) - 1.0).abs() < 1e-12 {
        0.0
    } else {
        let smallest = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Below the first everything sits at eps, above the second everything sits at w_max.
        bisect(
            eps.ln() - largest - 1.0,
            w_max.ln() - smallest + 1.0,
            |shift| mean_at(shift) >= 1.0,
        )
    };
    for log in logs.iter_mut() {
        *log = clipped(*log, shift);
    }
    shift.exp()
}

/// The smallest argument at which a condition that is false at `low` and true at `high` holds, to the last bit.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return high;
        }
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The worked advantages of a right solution.
    const RIGHT: [f64; 4] = [0.435_462_5, 0.405_75, 0.585, 0.3];
    /// The worked advantages of a wrong solution.
    const WRONG: [f64; 4] = [-0.421_912_5, -0.496_75, -0.365, -0.7];

    pub(crate) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance, "{found:?} is not {expected:?}");
        }
    }

    fn at(temperature: f64) -> WeightSettings {
        WeightSettings {
            temperature,
            eps: 0.05,
            ..WeightSettings::default()
        }
    }

    fn entropy_before_projection(scores: &[f64], temperature: f64) -> f64 {
        let whitening = Whitening::of(scores);
        let z: Vec<f64> = scores.iter().map(|s| whitening.apply(*s)).collect();
        let raw: Vec<f64> = log_softmax_mean_one(&z, temperature)
            .into_iter()
            .map(f64::exp)
            .collect();
        normalised_entropy(&raw)
    }

    #[test]
    fn whitening_gives_the_worked_z_scores() {
        let whitening = Whitening::of(&RIGHT);
        assert_close(
            &[whitening.mean, whitening.std],
            &[0.431_553, 0.101_899],
            1e-6,
        );
        assert_close(
            &RIGHT.map(|s| whitening.apply(s)),
            &[0.038_365, -0.253_224, 1.505_879, -1.291_021],
            2e-6,
        );
        let whitening = Whitening::of(&WRONG);
        assert_close(
            &[whitening.mean, whitening.std],
            &[-0.495_916, 0.126_754],
            1e-6,
        );
        assert_close(
            &WRONG.map(|s| whitening.apply(s)),
            &[0.583_832, -0.006_583, 1.032_831, -1.610_080],
            2e-6,
        );
    }

    #[test]
    fn a_right_solution_gives_the_worked_weights() {
        let cold = token_weights(&RIGHT, &Whitening::of(&RIGHT), &at(0.7)).unwrap();
        assert_close(&cold.weights, &[0.552_787, 0.364_460, 3.0, 0.082_752], 2e-6);
        assert_close(&[cold.stats.projection_c], &[1.374_537], 2e-6);
        // The table's H is that of the projected weights; the floor (step 3) looks at w⁰, whose q is
        // [0.100541, 0.066288, 0.818121, 0.015051] here: H = 0.638221 / ln 4.
        assert_close(&[cold.stats.entropy], &[0.568_259], 2e-6);
        assert_close(
            &[entropy_before_projection(&RIGHT, 0.7)],
            &[0.460_394],
            2e-6,
        );
        assert_close(
            &[cold.stats.clip_high, cold.stats.clip_low],
            &[0.25, 0.0],
            0.0,
        );

        let warm = token_weights(&RIGHT, &Whitening::of(&RIGHT), &at(1.0)).unwrap();
        assert_close(
            &warm.weights,
            &[0.629_906, 0.470_588, 2.732_808, 0.166_698],
            2e-6,
        );
        assert_close(
            &[warm.stats.projection_c, warm.stats.entropy],
            &[1.0, 0.674_876],
            2e-6,
        );
    }

    #[test]
    fn weights_at_a_bound_are_counted_before_they_are_blended() {
        let blended = WeightSettings {
            blend: 0.5,
            ..at(0.7)
        };
        let made = token_weights(&RIGHT, &Whitening::of(&RIGHT), &blended).unwrap();
        assert_close(&made.weights, &[0.776_393, 0.682_230, 2.0, 0.541_376], 2e-6);
        assert_close(
            &[made.stats.clip_high, made.stats.clip_low],
            &[0.25, 0.0],
            0.0,
        );
        let raw = [0.01, 0.01, 0.02, 0.1, 8.0, 0.5, 0.2, 0.3].map(f64::ln);
        let whitening = Whitening {
            mean: 0.0,
            std: 1.0,
        };
        let of = |blend| {
            let settings = WeightSettings { blend, ..at(1.0) };
            let stats = token_weights(&raw, &whitening, &settings).unwrap().stats;
            [stats.clip_low, stats.clip_high]
        };
        assert_eq!([of(1.0), of(0.5), of(0.1)], [[0.25, 0.125]; 3]);
        // Nothing is left of them.
        assert_close(&of(0.0), &[0.0, 0.0], 0.0);
    }

    #[test]
    fn a_wrong_solution_gives_the_worked_weights() {
        let cold = token_weights(&WRONG, &Whitening::of(&WRONG), &at(0.7)).unwrap();
        assert_close(
            &cold.weights,
            &[1.185_906, 0.510_205, 2.252_259, 0.051_630],
            2e-6,
        );
        assert_close(&[cold.stats.entropy], &[0.723_266], 2e-6);
        let warm = token_weights(&WRONG, &Whitening::of(&WRONG), &at(1.0)).unwrap();
        assert_close(
            &warm.weights,
            &[1.237_501, 0.685_696, 1.938_846, 0.137_956],
            2e-6,
        );
        assert_close(&[warm.stats.entropy], &[0.816_885], 2e-6);
    }

    #[test]
    fn projection_binds_on_both_sides_as_worked() {
        let mut weights = [0.01, 0.01, 0.02, 0.1, 8.0, 0.5, 0.2, 0.3].map(|w| w / 1.1425);
        let c = project(&mut weights, 0.05, 3.0);
        assert_close(
            &weights,
            &[0.05, 0.05, 0.0875, 0.4375, 3.0, 2.1875, 0.875, 1.3125],
            1e-9,
        );
        assert_close(&[c], &[4.998_438], 1e-6);
    }

    #[test]
    fn the_exponential_keeps_the_worked_ratios() {
        let raw = [0.2f64, -0.5, 0.1].map(|delta| (delta / 0.9).exp());
        assert_close(&raw, &[1.25, 0.57, 1.12], 0.005);
        let logs = log_softmax_mean_one(&[0.2, -0.5, 0.1], 0.9);
        assert!(((logs[0] - logs[1]).exp() - raw[0] / raw[1]).abs() < 1e-12);
    }

    #[test]
    fn the_entropy_floor_raises_the_temperature_to_meet_it() {
        let settings = WeightSettings {
            temperature: 0.1,
            entropy_floor: 0.5,
            ..WeightSettings::default()
        };
        assert!(entropy_before_projection(&RIGHT, 0.1) < 0.5);
        let weights = token_weights(&RIGHT, &Whitening::of(&RIGHT), &settings).unwrap();
        let reached = entropy_before_projection(&RIGHT, weights.stats.temperature);
        assert!((reached - 0.5).abs() < 1e-9, "{reached}");
    }

    #[test]
    fn flat_single_and_missing_scores_give_uniform_weights() {
        for scores in [vec![], vec![7.0], vec![0.25; 9]] {
            let whitening = Whitening::of(&scores);
            let weights = token_weights(&scores, &whitening, &WeightSettings::default()).unwrap();
            assert_eq!(weights.weights, vec![1.0; scores.len()]);
        }
    }

    #[test]
    fn bad_scores_and_settings_are_named() {
        let whitening = Whitening {
            mean: 0.0,
            std: 1.0,
        };
        let error = token_weights(&[0.0, f64::NAN], &whitening, &WeightSettings::default());
        assert!(matches!(error, Err(Error::NotFinite { index: 1, .. })));
        let settings = WeightSettings {
            eps: 0.0,
            ..WeightSettings::default()
        };
        let error = token_weights(&[0.0, 1.0], &whitening, &settings);
        assert!(matches!(
            error,
            Err(Error::Setting {
                key: "weights.eps",
                ..
            })
        ));
    }

    fn settings() -> impl Strategy<Value = WeightSettings> {
        (
            0.05f64..5.0,
            0.001f64..1.0,
            1.0f64..20.0,
            0.0f64..0.95,
            0.0f64..=1.0,
        )
            .prop_map(
                |(temperature, eps, w_max, entropy_floor, blend)| WeightSettings {
                    temperature,
                    eps,
                    w_max,
                    entropy_floor,
                    blend,
                },
            )
    }

    proptest! {
        /// Mean 1 within 1e-9, finite and within bounds, however wild the scores are.
        #[test]
        fn weights_hold_their_invariants(
            scores in prop::collection::vec(-1e4f64..1e4, 0..200),
            settings in settings(),
        ) {
            let made = token_weights(&scores, &Whitening::of(&scores), &settings).unwrap();
            prop_assert_eq!(made.weights.len(), scores.len());
            prop_assert!(check(&made.weights, &settings).is_ok());
        }

        /// A higher score never weighs less.
        #[test]
        fn weights_follow_the_order_of_scores(
            scores in prop::collection::vec(-3f64..3.0, 2..60),
            settings in settings(),
        ) {
            let made = token_weights(&scores, &Whitening::of(&scores), &settings).unwrap();
            for (a, x) in scores.iter().zip(&made.weights) {
                for (b, y) in scores.iter().zip(&made.weights) {
                    prop_assert!(a > b || x <= &(y + 1e-12));
                }
            }
        }

        #[test]
        fn permuting_the_scores_permutes_the_weights(
            scores in prop::collection::vec(-3f64..3.0, 2..60),
            turn in 0usize..60,
        ) {
            let settings = WeightSettings::default();
            let mut turned = scores.clone();
            turned.rotate_left(turn % scores.len());
            let mut made = token_weights(&scores, &Whitening::of(&scores), &settings).unwrap().weights;
            made.rotate_left(turn % scores.len());
            let other = token_weights(&turned, &Whitening::of(&turned), &settings).unwrap().weights;
            for (a, b) in made.iter().zip(&other) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }

        /// Runs without a blend have the bounds of their settings, to the bit.
        #[test]
        fn a_share_of_one_leaves_the_bounds(eps in 1e-9f64..=1.0, w_max in 1f64..1e6) {
            let settings = WeightSettings { eps, w_max, ..WeightSettings::default() };
            prop_assert_eq!(settings.blended_bounds(), (eps, w_max));
        }

        #[test]
        fn the_projection_meets_mean_one_from_any_positive_weights(
            mut weights in prop::collection::vec(0f64..1e6, 1..100),
            eps in 0.001f64..=1.0,
            w_max in 1.0f64..50.0,
        ) {
            project(&mut weights, eps, w_max);
            let settings = WeightSettings { eps, w_max, ..WeightSettings::default() };
            prop_assert!(check(&weights, &settings).is_ok());
        }
    }
}
