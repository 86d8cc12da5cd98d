//! Unweighted cross-entropy and accuracy of each prediction head on reference solutions.

use rayon::prelude::*;
use wmtp_data_sets::{PaddedBatch, TokenFile, pad_batch};
use wmtp_model::{Device, Horizon, MtpModel, ParamStore, Params};
use wmtp_records::HeadLoss;
use wmtp_training::Result;
use wmtp_training::heads::{HeadTargets, ids_tensor};

/// Sequences read together; bounds memory, not results.
const BATCH_SEQUENCES: usize = 32;

/// Sums over the targets of one head.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    ce_nats: f64,
    correct: u64,
    targets: u64,
}

/// Scores every head on the correct rows of a split.
///
/// Head k at position j − k predicts target j of the response (specification, section 1.3). The means are over
/// targets, not over rows.
pub(crate) fn score(
    params: &Params,
    store: &ParamStore,
    rows: &TokenFile,
) -> Result<Vec<HeadLoss>> {
    let model = MtpModel::frozen(params, store)?;
    let horizons: Vec<Horizon> = params.horizons().collect();
    let correct = rows.correct_rows();
    let per_batch = correct
        .par_chunks(BATCH_SEQUENCES)
        .map(|chunk| batch_sums(&model, &horizons, &pad_batch(rows, chunk)))
        .collect::<Result<Vec<_>>>()?;
    let total = |head: usize| {
        per_batch.iter().fold(Sums::default(), |sum, heads| Sums {
            ce_nats: sum.ce_nats + heads[head].ce_nats,
            correct: sum.correct + heads[head].correct,
            targets: sum.targets + heads[head].targets,
        })
    };
    Ok(horizons
        .iter()
        .enumerate()
        .map(|(head, horizon)| (horizon, total(head)))
        .filter(|(_, sums)| sums.targets > 0)
        .map(|(horizon, sums)| HeadLoss {
            horizon: horizon.get() as u32,
            ce_nats: sums.ce_nats / sums.targets as f64,
            accuracy: sums.correct as f64 / sums.targets as f64,
            num_targets: sums.targets,
        })
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
        sums.correct += u64::from(own >= highest);
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
        assert_eq!((sums.targets, sums.correct), (2, 1));
        assert!((sums.ce_nats - ((4.0_f64 / 3.0).ln() + 4.0_f64.ln())).abs() < 1e-6);
    }
}
