//! How well values tell right solutions from wrong ones.

use std::collections::BTreeMap;

use serde::Serialize;

/// A solution with what the value model thinks of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The problem that it answers.
    pub problem: String,
    /// Whether it is correct.
    pub correct: bool,
    /// Values at its value positions.
    pub values: Vec<f64>,
}

impl Judged {
    fn mean(&self) -> f64 {
        mean(&self.values).unwrap_or(0.0)
    }
}

/// Upper edges of the bins in which two solutions count as equally long.
const LENGTH_EDGES: [usize; 16] = [
    50, 100, 125, 150, 175, 200, 250, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000,
];

/// Quality of a value model on held-out problems. A figure that is undefined for want of data is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ValueQuality {
    /// Solutions judged.
    pub solutions: usize,
    /// Pairs of a correct and an incorrect solution of the same problem.
    pub pairs: usize,
    /// Share of pairs in which the correct one has the higher mean value; a tie counts half.
    pub pairwise_accuracy: Option<f64>,
    /// Pairs whose members lie in the same bin of length.
    pub same_length_pairs: usize,
    /// The accuracy over those.
    pub same_length_accuracy: Option<f64>,
    /// Chance that a correct solution has a higher mean value than an incorrect one, over all problems.
    pub auc: Option<f64>,
    /// 1 - Var(R - V) / Var(R) over value positions.
    pub explained_variance: Option<f64>,
    /// Mean value of correct solutions minus that of incorrect ones.
    pub margin: Option<f64>,
    /// Mean over all value positions.
    pub mean_value: Option<f64>,
    /// Population deviation over all value positions.
    pub std_value: Option<f64>,
    /// Correlation of mean value and length.
    pub length_correlation: Option<f64>,
    /// Expected calibration error over value positions: how far values lie from how often solutions are correct, in
    /// [`CALIBRATION_BINS`] bins of value.
    pub calibration_error: Option<f64>,
}

/// Bins of equal width between the values 0 and 1; what lies outside counts with the nearest.
const CALIBRATION_BINS: usize = 10;

/// Fewer pairs of similar length say too little: of thirty, one coin in four wins 0.58.
const LEAST_PAIRS: usize = 30;

/// What a value model has to be good at before anything is made of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// Share of pairs in which the correct solution has the higher mean value.
    pub accuracy: f64,
    /// How many pairs there are.
    pub pairs: usize,
    /// Whether they are those of similar length alone.
    pub same_length: bool,
}

impl ValueQuality {
    /// Judges the judgements.
    pub fn of(judged: &[Judged]) -> Self {
        let flat: Vec<f64> = judged
            .iter()
            .flat_map(|one| one.values.iter().copied())
            .collect();
        let residuals: Vec<f64> = judged
            .iter()
            .flat_map(|one| one.values.iter().map(|value| reward(one.correct) - value))
            .collect();
        let rewards: Vec<f64> = judged
            .iter()
            .flat_map(|one| one.values.iter().map(|_| reward(one.correct)))
            .collect();
        let means: Vec<f64> = judged.iter().map(Judged::mean).collect();
        let lengths: Vec<f64> = judged.iter().map(|one| one.values.len() as f64).collect();
        let of_label = |correct: bool| -> Vec<f64> {
            let of = judged.iter().filter(|one| one.correct == correct);
            of.map(Judged::mean).collect()
        };
        let (right, wrong) = (of_label(true), of_label(false));
        let (all, same_length) = pairs(judged);
        Self {
            solutions: judged.len(),
            pairs: all.len(),
            pairwise_accuracy: mean(&all),
            same_length_pairs: same_length.len(),
            same_length_accuracy: mean(&same_length),
            auc: auc(&right, &wrong),
            explained_variance: explained_variance(&rewards, &residuals),
            margin: mean(&right)
                .zip(mean(&wrong))
                .map(|(right, wrong)| right - wrong),
            mean_value: mean(&flat),
            std_value: variance(&flat).map(f64::sqrt),
            length_correlation: correlation(&means, &lengths),
            calibration_error: calibration_error(&flat, &rewards),
        }
    }

    /// Accuracy over pairs of similar length, since wrong solutions are longer and a value that falls with length alone
    /// tells them apart; over all pairs where those are too few. `None` without any pair.
    pub fn judgement(&self) -> Option<Judgement> {
        let same_length = self.same_length_pairs >= LEAST_PAIRS;
        let (accuracy, pairs) = if same_length {
            (self.same_length_accuracy, self.same_length_pairs)
        } else {
            (self.pairwise_accuracy, self.pairs)
        };
        accuracy.map(|accuracy| Judgement {
            accuracy,
            pairs,
            same_length,
        })
    }
}

/// Mean distance of value and reward within each bin, weighed by how much lies there (Guo et al. 2017, equation 3).
fn calibration_error(values: &[f64], rewards: &[f64]) -> Option<f64> {
    let mut bins = [(0.0, 0.0); CALIBRATION_BINS];
    for (value, reward) in values.iter().zip(rewards) {
        let bin = (value.clamp(0.0, 1.0) * CALIBRATION_BINS as f64) as usize;
        let (of_values, of_rewards) = &mut bins[bin.min(CALIBRATION_BINS - 1)];
        *of_values += value;
        *of_rewards += reward;
    }
    let distances = bins
        .iter()
        .map(|(of_values, of_rewards)| (of_values - of_rewards).abs());
    (!values.is_empty()).then(|| distances.sum::<f64>() / values.len() as f64)
}

fn reward(correct: bool) -> f64 {
    f64::from(u8::from(correct))
}

/// Wins of every same-problem pair, and of those of similar length.
fn pairs(judged: &[Judged]) -> (Vec<f64>, Vec<f64>) {
    let mut by_problem: BTreeMap<&str, (Vec<&Judged>, Vec<&Judged>)> = BTreeMap::new();
    for one in judged {
        let (right, wrong) = by_problem.entry(&one.problem).or_default();
        if one.correct {
            right.push(one);
        } else {
            wrong.push(one);
        }
    }
    let bin = |one: &Judged| LENGTH_EDGES.partition_point(|&edge| edge <= one.values.len());
    let (mut all, mut same_length) = (Vec::new(), Vec::new());
    for (right, wrong) in by_problem.values() {
        for right in right {
            for wrong in wrong {
                let win = win(right.mean(), wrong.mean());
                all.push(win);
                if bin(right) == bin(wrong) {
                    same_length.push(win);
                }
            }
        }
    }
    (all, same_length)
}

fn win(right: f64, wrong: f64) -> f64 {
    match right.total_cmp(&wrong) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn variance(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    let squares: Vec<f64> = values
        .iter()
        .map(|value| (value - centre).powi(2))
        .collect();
    mean(&squares)
}

fn explained_variance(rewards: &[f64], residuals: &[f64]) -> Option<f64> {
    let total = variance(rewards).filter(|total| *total > 0.0)?;
    Some(1.0 - variance(residuals)? / total)
}

/// Area under the ROC curve by ranks; ties share theirs.
fn auc(right: &[f64], wrong: &[f64]) -> Option<f64> {
    if right.is_empty() || wrong.is_empty() {
        return None;
    }
    let mut sorted = wrong.to_vec();
    sorted.sort_by(f64::total_cmp);
    let beaten = |value: &f64| {
        let below = sorted.partition_point(|other| other < value);
        let not_above = sorted.partition_point(|other| other <= value);
        f64::midpoint(below as f64, not_above as f64)
    };
    let wins: f64 = right.iter().map(beaten).sum();
    Some(wins / (right.len() * wrong.len()) as f64)
}

fn correlation(left: &[f64], right: &[f64]) -> Option<f64> {
    let (left_mean, right_mean) = (mean(left)?, mean(right)?);
    let products: Vec<f64> = left
        .iter()
        .zip(right)
        .map(|(left, right)| (left - left_mean) * (right - right_mean))
        .collect();
    let spread = (variance(left)? * variance(right)?).sqrt();
    (spread > 0.0).then_some(mean(&products)? / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(problem: &str, correct: bool, values: &[f64]) -> Judged {
        Judged {
            problem: problem.to_owned(),
            correct,
            values: values.to_vec(),
        }
    }

    fn close(found: Option<f64>, expected: f64) {
        assert!(
            found.is_some_and(|found| (found - expected).abs() < 1e-12),
            "{found:?} {expected}"
        );
    }

    #[test]
    fn pairs_stay_within_their_problem() {
        let quality = ValueQuality::of(&[
            judged("a", true, &[0.9, 0.7]),
            judged("a", false, &[0.1]),
            judged("a", false, &[0.8]),
            judged("b", true, &[0.2]),
            judged("b", false, &[0.4]),
            judged("c", true, &[1.0]),
        ]);
        assert_eq!((quality.solutions, quality.pairs), (6, 3));
        close(quality.pairwise_accuracy, 0.5);
        close(quality.auc, (2.5 + 1.0 + 3.0) / 9.0);
        close(
            quality.margin,
            (0.8 + 0.2 + 1.0) / 3.0 - (0.1 + 0.8 + 0.4) / 3.0,
        );
    }

    #[test]
    fn perfect_and_constant_values() {
        let perfect =
            ValueQuality::of(&[judged("a", true, &[1.0; 3]), judged("a", false, &[0.0; 3])]);
        close(perfect.explained_variance, 1.0);
        close(perfect.auc, 1.0);
        let constant =
            ValueQuality::of(&[judged("a", true, &[0.5; 3]), judged("a", false, &[0.5; 3])]);
        close(constant.explained_variance, 0.0);
        close(constant.pairwise_accuracy, 0.5);
        assert_eq!(constant.length_correlation, None);
    }

    #[test]
    fn without_both_labels_there_is_no_accuracy() {
        let quality = ValueQuality::of(&[judged("a", true, &[0.3])]);
        assert_eq!(
            (quality.pairs, quality.pairwise_accuracy, quality.auc),
            (0, None, None)
        );
        assert_eq!(quality.explained_variance, None);
        assert_eq!(ValueQuality::of(&[]).mean_value, None);
    }

    #[test]
    fn the_calibration_error_is_the_worked_one() {
        // 0.8 and 0.85 share a bin: 1.65 of value against one reward. 0.3 is alone, and 1.2 is with those near 1.
        let quality = ValueQuality::of(&[
            judged("a", true, &[0.8, 1.2]),
            judged("a", false, &[0.85, 0.3]),
        ]);
        close(quality.calibration_error, (0.65 + 0.3 + 0.2) / 4.0);
        let sure = ValueQuality::of(&[judged("a", true, &[1.0; 3]), judged("a", false, &[0.0; 3])]);
        close(sure.calibration_error, 0.0);
        assert_eq!(ValueQuality::of(&[]).calibration_error, None);
    }

    #[test]
    fn a_value_that_only_falls_with_length_is_not_judged_by_it() {
        // Wrong solutions are longer; of those that are as long, half have the higher value.
        let mut solutions = Vec::new();
        for problem in 0..40 {
            let name = format!("p{problem}");
            let ahead = if problem % 2 == 0 { 0.91 } else { 0.89 };
            solutions.push(judged(&name, true, &[0.9; 20]));
            solutions.push(judged(&name, false, &[ahead; 30]));
            solutions.push(judged(&name, false, &[0.2; 120]));
        }
        let quality = ValueQuality::of(&solutions);
        close(quality.pairwise_accuracy, 0.75);
        let judged = quality.judgement().unwrap();
        assert_eq!((judged.pairs, judged.same_length), (40, true));
        close(Some(judged.accuracy), 0.5);

        let few = ValueQuality::of(&solutions[..30]).judgement().unwrap();
        assert_eq!((few.pairs, few.same_length), (20, false));
        assert_eq!(ValueQuality::of(&[]).judgement(), None);
    }

    #[test]
    fn similar_length_is_a_bin_of_tokens() {
        let quality = ValueQuality::of(&[
            judged("a", true, &[0.9; 40]),
            judged("a", false, &[0.1; 49]),
            judged("a", false, &[0.95; 50]),
        ]);
        assert_eq!((quality.pairs, quality.same_length_pairs), (2, 1));
        close(quality.same_length_accuracy, 1.0);
    }
}
