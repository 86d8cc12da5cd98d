//! Unweighted cross-entropy and accuracy of each prediction head on reference solutions, alone and beside a reference model.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use wmtp_data_sets::{PaddedBatch, TokenFile, pad_batch};
use wmtp_model::{Device, Horizon, MtpModel, ParamStore, Params};
use wmtp_records::HeadLoss;
use wmtp_training::Result;
use wmtp_training::heads::{HeadTargets, Target, ids_tensor};
use wmtp_training::inference::head_cross_entropies;

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
    /// Mean cross-entropy of the reference on the same targets, nats, where there is one.
    pub(crate) reference_nats: Option<f64>,
}

/// A model with its weights.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) params: &'a Params,
    pub(crate) store: &'a ParamStore,
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
    /// Of the reference, on the same targets.
    reference_nats: f64,
    targets: u64,
    bins: [Bin; BINS],
}

impl Sums {
    fn add(mut self, other: &Self) -> Self {
        self.ce_nats += other.ce_nats;
        self.reference_nats += other.reference_nats;
        self.targets += other.targets;
        for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
            bin.probability += more.probability;
            bin.correct += more.correct;
        }
        self
    }

    fn score(&self, horizon: Horizon, has_reference: bool) -> HeadScore {
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
            reference_nats: has_reference.then(|| self.reference_nats / targets),
        }
    }
}

/// Scores every head on the correct rows of a split.
///
/// Head k at position j − k predicts target j of the response (specification, section 1.3). The means are over
/// targets, not over rows. The reference predicts the same target from position j − 1 (section 1.10). None once `stop`
/// has risen.
pub(crate) fn score(
    policy: Weights<'_>,
    reference: Option<Weights<'_>>,
    rows: &TokenFile,
    stop: &AtomicBool,
) -> Result<Option<Vec<HeadScore>>> {
    let frozen = |weights: Weights<'_>| MtpModel::frozen(weights.params, weights.store);
    let (model, reference) = (frozen(policy)?, reference.map(frozen).transpose()?);
    let horizons: Vec<Horizon> = policy.params.horizons().collect();
    let correct = rows.correct_rows();
    let device = policy.store.device();
    let sums = |chunk: &[usize]| {
        if stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let beside = match &reference {
            Some(reference) => {
                head_cross_entropies(reference, rows, chunk, chunk.len(), Horizon::NEXT)?
            }
            None => Vec::new(),
        };
        batch_sums(&model, &beside, &horizons, &pad_batch(rows, chunk), device).map(Some)
    };
    // A device serves one thread.
    let per_batch: Vec<Option<_>> = if device.is_cpu() {
        let chunks = correct.par_chunks(BATCH_SEQUENCES);
        chunks.map(sums).collect::<Result<_>>()?
    } else {
        let chunks = correct.chunks(BATCH_SEQUENCES);
        chunks.map(sums).collect::<Result<_>>()?
    };
    let Some(per_batch) = per_batch.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let total = |head: usize| {
        per_batch
            .iter()
            .fold(Sums::default(), |sum, heads| sum.add(&heads[head]))
    };
    let scored = horizons
        .iter()
        .enumerate()
        .map(|(head, horizon)| (horizon, total(head)))
        .filter(|(_, sums)| sums.targets > 0)
        .map(|(&horizon, sums)| sums.score(horizon, reference.is_some()));
    Ok(Some(scored.collect()))
}

fn batch_sums(
    model: &MtpModel,
    beside: &[Vec<f64>],
    horizons: &[Horizon],
    batch: &PaddedBatch,
    device: &Device,
) -> Result<Vec<Sums>> {
    let trunk_bsd = model.trunk(&ids_tensor(batch, device)?)?;
    horizons
        .iter()
        .map(|&horizon| {
            let targets = HeadTargets::of(batch, horizon, 0);
            if targets.ids.is_empty() {
                return Ok(Sums::default());
            }
            let hidden_nd = model.head_hidden_at(horizon, &trunk_bsd, &targets.sources)?;
            let logits_nv = model.logits(&hidden_nd)?.to_vec2::<f32>()?;
            let of_reference =
                |target: &Target| beside.get(target.slot).map(|row| row[target.index]);
            Ok(Sums {
                reference_nats: targets.targets.iter().filter_map(of_reference).sum(),
                ..sum_up(&logits_nv, &targets.ids)
            })
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
    use wmtp_model::DType;
    use wmtp_tokens::TokenizedSample;

    use super::*;

    #[test]
    fn two_rows_give_the_hand_computed_sums() {
        // softmax([0, ln 3]) = [1/4, 3/4]: the targets 1 and 0 cost ln 4/3 and ln 4.
        let logits = [vec![0.0, 3.0_f32.ln()], vec![0.0, 3.0_f32.ln()]];
        let sums = sum_up(&logits, &[1, 0]);
        assert!((sums.ce_nats - ((4.0_f64 / 3.0).ln() + 4.0_f64.ln())).abs() < 1e-6);
        let score = sums.score(Horizon::NEXT, false);
        assert_eq!((score.loss.num_targets, score.loss.accuracy), (2, 0.5));
        // Twice sure by 3/4, right once.
        assert!((score.calibration_error - 0.25).abs() < 1e-6);
        let sure = sum_up(&[vec![30.0, 0.0], vec![30.0, 0.0]], &[0, 0]);
        assert!(sure.score(Horizon::NEXT, false).calibration_error < 1e-6);
        // Over- and underconfidence in different bins do not cancel.
        let both = sums.add(&sum_up(&[vec![30.0, 0.0]], &[1]));
        assert!(
            (both.score(Horizon::NEXT, false).calibration_error - (0.5 + 1.0) / 3.0).abs() < 1e-6
        );
    }

    #[test]
    fn a_model_beside_itself_has_no_excess_and_every_head_the_references_loss_on_its_own_targets() {
        let params = Params::micro_mtp(16);
        let store = ParamStore::init(&params, 7, DType::F32, &Device::Cpu).unwrap();
        let mut rows = TokenFile::default();
        for (length, prompt_len) in [(9, 3), (5, 1), (12, 6)] {
            let ids = (0..length).map(|place| (place * 5 + length) % 16).collect();
            rows.push(&TokenizedSample { ids, prompt_len }, Some(true));
        }
        let own = Weights {
            params: &params,
            store: &store,
        };
        let stop = AtomicBool::new(false);
        let alone = score(own, None, &rows, &stop).unwrap().unwrap();
        let beside = score(own, Some(own), &rows, &stop).unwrap().unwrap();
        assert_eq!(alone.len(), 4);
        assert!(alone.iter().all(|head| head.reference_nats.is_none()));
        // Losses of the first head by row and target, from the library that trains against them.
        let model = MtpModel::frozen(&params, &store).unwrap();
        let losses = head_cross_entropies(&model, &rows, &[0, 1, 2], 8, Horizon::NEXT).unwrap();
        for (head, alone) in beside.iter().zip(&alone) {
            assert_eq!(head.loss, alone.loss);
            let horizon = head.loss.horizon as usize;
            // Head k has no target before position k, and the responses begin at 3, 1 and 6.
            let missing = [3, 1, 6].map(|start| horizon.saturating_sub(start));
            let expected: Vec<f64> = losses
                .iter()
                .zip(missing)
                .flat_map(|(losses, missing)| losses[missing..].to_vec())
                .collect();
            assert_eq!(head.loss.num_targets, expected.len() as u64);
            let mean = expected.iter().sum::<f64>() / expected.len() as f64;
            let reference = head.reference_nats.unwrap();
            assert!((reference - mean).abs() < 1e-5, "{reference} {mean}");
        }
        stop.store(true, Ordering::SeqCst);
        assert_eq!(score(own, None, &rows, &stop).unwrap(), None);
        let first = &beside[0];
        assert!((first.reference_nats.unwrap() - first.loss.ce_nats).abs() < 1e-5);
    }
}
