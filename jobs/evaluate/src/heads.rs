//! Unweighted cross-entropy and accuracy of each prediction head on reference solutions.

use rayon::prelude::*;
use wmtp_data_sets::{PaddedBatch, TokenFile, pad_batch};
use wmtp_model::{Device, Horizon, MtpModel, ParamStore, Params};
use wmtp_records::HeadLoss;
use wmtp_training::Result;
use wmtp_training::heads::{HeadTargets, ids_tensor};

/// Sequences read together; bounds memory, not results.
const BATCH_SEQUENCES: usize = 32;

/// Equal parts of 0…1 into which the calibration error sorts predictions by their probability.
const BINS: usize = 10;

/// How one head does on the targets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadScore {
    pub(crate) loss: HeadLoss,
    /// Expected calibration error: how far the probability of the likeliest token is from the share of times that it is right,
    /// averaged over predictions in ten bins; 0 is calibrated.
    pub(crate) calibration_error: f64,
}

/// Predictions of like probability.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    probability: f64,
    correct: u64,
}

/// Sums over the targets of one head.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    ce_nats: f64,
    targets: u64,
    bins: [Bin; BINS],
}

impl Sums {
    fn add(mut self, other: &Self) -> Self {
        self.ce_nats += other.ce_nats;
        self.targets += other.targets;
        for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
            bin.probability += more.probability;
            bin.correct += more.correct;
        }
        self
    }

    fn score(&self, horizon: Horizon) -> HeadScore {
        let targets = self.targets as f64;
        let correct: u64 = self.bins.iter().map(|bin| bin.correct).sum();
        let gaps = self
            .bins
            .iter()
            .map(|bin| (bin.probability - bin.correct as f64).abs());
        HeadScore {
            loss: HeadLoss {
                horizon: horizon.get() as u32,
                ce_nats: self.ce_nats / targets,
                accuracy: correct as f64 / targets,
                num_targets: self.targets,
            },
            calibration_error: gaps.sum::<f64>() / targets,
        }
    }
}

/// Scores every head on the correct rows of a split.
///
/// Head k at position j − k predicts target j of the response (specification, section 1.3). The means are over
/// targets, not over rows.
pub(crate) fn score(
    params: &Params,
    store: &ParamStore,
    rows: &TokenFile,
) -> Result<Vec<HeadScore>> {
    let model = MtpModel::frozen(params, store)?;
    let horizons: Vec<Horizon> = params.horizons().collect();
    let correct = rows.correct_rows();
    let per_batch = correct
        .par_chunks(BATCH_SEQUENCES)
        .map(|chunk| batch_sums(&model, &horizons, &pad_batch(rows, chunk)))
        .collect::<Result<Vec<_>>>()?;
    let total = |head: usize| {
        per_batch
            .iter()
            .fold(Sums::default(), |sum, heads| sum.add(&heads[head]))
    };
    Ok(horizons
        .iter()
        .enumerate()
        .map(|(head, horizon)| (horizon, total(head)))
        .filter(|(_, sums)| sums.targets > 0)
        .map(|(&horizon, sums)| sums.score(horizon))
        .collect())
}

fn batch_sums(model: &MtpModel, horizons: &[Horizon], batch: &PaddedBatch) -> Result<Vec<Sums>> {
    let trunk_bsd = model.trunk(&ids_tensor(batch, &Device::Cpu)?)?;
    horizons
        .iter()
        .map(|&horizon| {
            let targets = HeadTargets::of(batch, horizon, 0);
            if targets.ids.is_empty() {
                return Ok(Sums::default());
            }
            let hidden_nd = model.head_hidden_at(horizon, &trunk_bsd, &targets.sources)?;
            let logits_nv = model.logits(&hidden_nd)?.to_vec2::<f32>()?;
            Ok(sum_up(&logits_nv, &targets.ids))
        })
        .collect::<Result<_>>()
}

fn sum_up(logits_nv: &[Vec<f32>], targets: &[u32]) -> Sums {
    let mut sums = Sums {
        targets: targets.len() as u64,
        ..Sums::default()
    };
    for (logits_v, &target) in logits_nv.iter().zip(targets) {
        let highest = logits_v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = logits_v
            .iter()
            .map(|&logit| f64::from(logit - highest).exp())
            .sum();
        let own = logits_v[target as usize];
        sums.ce_nats += mass.ln() - f64::from(own - highest);
        let probability = 1.0 / mass;
        let bin = &mut sums.bins[((probability * BINS as f64) as usize).min(BINS - 1)];
        bin.probability += probability;
        bin.correct += u64::from(own >= highest);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rows_give_the_hand_computed_sums() {
        // softmax([0, ln 3]) = [1/4, 3/4]: the targets 1 and 0 cost ln 4/3 and ln 4.
        let logits = [vec![0.0, 3.0_f32.ln()], vec![0.0, 3.0_f32.ln()]];
        let sums = sum_up(&logits, &[1, 0]);
        assert!((sums.ce_nats - ((4.0_f64 / 3.0).ln() + 4.0_f64.ln())).abs() < 1e-6);
        let score = sums.score(Horizon::new(1).unwrap());
        assert_eq!((score.loss.num_targets, score.loss.accuracy), (2, 0.5));
        // Twice sure by 3/4, right once.
        assert!((score.calibration_error - 0.25).abs() < 1e-6);
        let sure = sum_up(&[vec![30.0, 0.0], vec![30.0, 0.0]], &[0, 0]);
        assert!(sure.score(Horizon::new(1).unwrap()).calibration_error < 1e-6);
        // Over- and underconfidence in different bins do not cancel.
        let both = sums.add(&sum_up(&[vec![30.0, 0.0]], &[1]));
        assert!(
            (both.score(Horizon::new(1).unwrap()).calibration_error - (0.5 + 1.0) / 3.0).abs()
                < 1e-6
        );
    }
}
