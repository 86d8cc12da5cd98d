//! How fast a run is, in numbers that mean something: real and padded tokens, arithmetic against what this machine
//! can do, percentiles of steps, memory.

use std::fmt;

use serde::Serialize;
use wmtp_data_sets::PaddedBatch;
use wmtp_model::{Device, Params};

/// What one optimizer step had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Tokens that went through the model, padding not counted.
    pub tokens: u64,
    /// Positions that went through the model, padding counted.
    pub positions: u64,
    /// Sequences that went through the model.
    pub sequences: u64,
    /// Floating-point operations by formula, forward and backward.
    pub flops: f64,
}

/// What a step makes of the weights that its positions go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learning {
    /// They learn: forward, the gradient of what went in, that of the weights.
    Trained,
    /// They are frozen, and something before or beside them learns: no gradient of the weights.
    Through,
    /// They are frozen, and so is all before them: nothing goes back.
    Frozen,
}

impl Learning {
    /// Operations of a step on products with weights for each one forward.
    pub(crate) fn of_products(self) -> f64 {
        match self {
            Self::Trained => 3.0,
            Self::Through => 2.0,
            Self::Frozen => 1.0,
        }
    }

    /// The same of attention, both of whose factors are results: going back takes the gradients of both.
    fn of_attention(self) -> f64 {
        match self {
            Self::Trained | Self::Through => 3.0,
            Self::Frozen => 1.0,
        }
    }
}

impl Work {
    /// With a batch that goes through so many blocks of the trunk and back. What is computed again on the way is not counted.
    pub(crate) fn with_batch(
        self,
        batch: &PaddedBatch,
        (blocks, learning): (usize, Learning),
        params: &Params,
    ) -> Self {
        let tokens: usize = batch.lengths.iter().sum();
        let positions = batch.rows * batch.width;
        let of_block = learning.of_products() * params.block_product_flops(positions, positions)
            + learning.of_attention() * params.block_attention_flops(batch.rows, batch.width);
        Self {
            tokens: self.tokens + tokens as u64,
            positions: self.positions + positions as u64,
            sequences: self.sequences + batch.rows as u64,
            flops: self.flops + blocks as f64 * of_block,
        }
    }

    /// With a head of so many targets upon such a batch: its block, which goes on behind attention where it predicts alone,
    /// and the unembedding. A head without a target does not run.
    pub(crate) fn with_head(
        self,
        batch: &PaddedBatch,
        targets: usize,
        learning: Learning,
        params: &Params,
    ) -> Self {
        if targets == 0 {
            return self;
        }
        let products = params.block_product_flops(batch.rows * batch.width, targets)
            + params.unembedding_flops(targets);
        let attention = params.block_attention_flops(batch.rows, batch.width);
        let flops = learning.of_products() * products + learning.of_attention() * attention;
        Self {
            flops: self.flops + flops,
            ..self
        }
    }

    /// With adapters that learn, of so many operations forward.
    pub(crate) fn with_adapters(self, forward: f64) -> Self {
        Self {
            flops: self.flops + Learning::Trained.of_products() * forward,
            ..self
        }
    }
}

/// What is done in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Real tokens.
    pub tokens: f64,
    /// Positions, padding counted.
    pub positions: f64,
    /// Sequences.
    pub sequences: f64,
    /// Floating-point operations.
    pub flops: f64,
}

impl Rates {
    /// Of work that took so many seconds.
    pub fn of(work: Work, secs: f64) -> Self {
        let secs = secs.max(1e-9);
        Self {
            tokens: work.tokens as f64 / secs,
            positions: work.positions as f64 / secs,
            sequences: work.sequences as f64 / secs,
            flops: work.flops / secs,
        }
    }
}

/// Counters of a run since it was started or continued.
#[derive(Debug, Clone, Default)]
pub struct Throughput {
    total: Work,
    secs: f64,
    step_secs: Vec<f64>,
}

impl Throughput {
    /// Counts one step that took so many seconds, those of a validation behind it included, which are no part of its work;
    /// a checkpoint is in neither. Returns the seconds of the work.
    pub fn add(&mut self, work: Work, secs: f64, validation_secs: f64) -> f64 {
        let secs = (secs - validation_secs).max(0.0);
        self.total.tokens += work.tokens;
        self.total.positions += work.positions;
        self.total.sequences += work.sequences;
        self.total.flops += work.flops;
        self.secs += secs;
        self.step_secs.push(secs);
        secs
    }

    /// Over all steps.
    pub fn rates(&self) -> Rates {
        Rates::of(self.total, self.secs)
    }

    /// All in all; `None` before the first step. `peak_flops` is the machine's measured rate, `memory_bytes` the most that
    /// was used.
    pub fn summary(&self, peak_flops: f64, memory_bytes: Option<u64>) -> Option<Summary> {
        let mut sorted = self.step_secs.clone();
        sorted.sort_by(f64::total_cmp);
        let rates = self.rates();
        Some(Summary {
            steps: sorted.len(),
            tokens_per_second: rates.tokens,
            padded_tokens_per_second: rates.positions,
            flops_per_second: rates.flops,
            mfu: rates.flops / peak_flops.max(1.0),
            step_secs_p50: percentile(&sorted, 0.5)?,
            step_secs_p90: percentile(&sorted, 0.9)?,
            step_secs_p99: percentile(&sorted, 0.99)?,
            peak_memory_bytes: memory_bytes,
        })
    }
}

/// The smallest of rising numbers that a share of them does not exceed (nearest rank); `None` of none.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// How fast the steps of an attempt were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Steps.
    pub steps: usize,
    /// Real tokens.
    pub tokens_per_second: f64,
    /// Positions, padding counted.
    pub padded_tokens_per_second: f64,
    /// Floating-point operations by formula.
    pub flops_per_second: f64,
    /// Their share of the measured peak.
    pub mfu: f64,
    /// Half of the steps took no longer.
    pub step_secs_p50: f64,
    /// Nine in ten took no longer.
    pub step_secs_p90: f64,
    /// Ninety-nine in a hundred took no longer.
    pub step_secs_p99: f64,
    /// The most memory that this process has used, or tensors on its device.
    pub peak_memory_bytes: Option<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} tokens/s ({:.0} with padding), {:.1} GFLOP/s, {:.0}% of the measured peak; steps of {} (half), {} \
             (9 in 10), {} (99 in 100)",
            self.tokens_per_second,
            self.padded_tokens_per_second,
            self.flops_per_second / 1e9,
            100.0 * self.mfu,
            Millis(self.step_secs_p50),
            Millis(self.step_secs_p90),
            Millis(self.step_secs_p99),
        )?;
        match self.peak_memory_bytes {
            Some(bytes) => write!(f, "; {} MiB of memory at most", bytes >> 20),
            None => Ok(()),
        }
    }
}

/// The time of each whole pass over the training rows.
#[derive(Debug, Clone)]
pub(crate) struct Epochs {
    steps_per_epoch: u64,
    /// Seconds of the pass under way; none where its beginning was not seen.
    secs: Option<f64>,
}

impl Epochs {
    /// From a step on, which is the first of a pass or is not.
    pub(crate) fn new(steps_per_epoch: u64, step: u64) -> Self {
        let steps_per_epoch = steps_per_epoch.max(1);
        Self {
            steps_per_epoch,
            secs: step.is_multiple_of(steps_per_epoch).then_some(0.0),
        }
    }

    /// Counts a step; the seconds of the pass that it ends, where all of it was seen.
    pub(crate) fn add(&mut self, step: u64, secs: f64) -> Option<f64> {
        let whole = self.secs.map(|before| before + secs);
        let has_ended = step.is_multiple_of(self.steps_per_epoch);
        self.secs = if has_ended { Some(0.0) } else { whole };
        whole.filter(|_| has_ended)
    }
}

struct Millis(f64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 10.0 {
            write!(f, "{:.0} ms", 1000.0 * self.0)
        } else {
            write!(f, "{:.1} s", self.0)
        }
    }
}

/// The most memory that tensors have held on a device, or that this process has had resident; where the system says so.
pub(crate) fn peak_memory_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return wmtp_model::cuda::peak_memory(device).ok();
    }
    debug_assert!(device.is_cpu());
    wmtp_job_kit::peak_memory_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted() -> Throughput {
        let mut throughput = Throughput::default();
        // The second and the last step were validated, which took as long again.
        for (secs, validation_secs) in [(0.1, 0.0), (0.6, 0.3), (0.2, 0.0), (0.8, 0.4)] {
            let work = Work {
                tokens: 50,
                positions: 80,
                sequences: 4,
                flops: 2e9,
            };
            throughput.add(work, secs, validation_secs);
        }
        throughput
    }

    #[test]
    fn rates_are_totals_over_the_time_of_steps_without_validations() {
        let rates = counted().rates();
        assert!((rates.tokens - 200.0).abs() < 1e-9);
        assert!((rates.positions - 320.0).abs() < 1e-9);
        assert!((rates.sequences - 16.0).abs() < 1e-9);
        assert!((rates.flops - 8e9).abs() < 1e-3);
    }

    #[test]
    fn frozen_weights_cost_no_gradient_of_their_own() {
        let params = Params::micro_mtp(320);
        let batch = PaddedBatch {
            ids: vec![0; 48],
            rows: 3,
            width: 16,
            lengths: vec![16, 9, 11],
            prompt_lens: vec![4, 4, 4],
        };
        let of = |learning| Work::default().with_batch(&batch, (5, learning), &params);
        let (products, attention) = (
            5.0 * params.block_product_flops(48, 48),
            5.0 * params.block_attention_flops(3, 16),
        );
        let [trained, through, frozen] =
            [Learning::Trained, Learning::Through, Learning::Frozen].map(of);
        assert_eq!(
            (trained.tokens, trained.positions, trained.sequences),
            (36, 48, 3)
        );
        assert_eq!(
            (trained.flops, through.flops, frozen.flops),
            (
                3.0 * (products + attention),
                2.0 * products + 3.0 * attention,
                products + attention
            )
        );
        let twice = trained.with_batch(&batch, (5, Learning::Trained), &params);
        assert!((twice.flops / trained.flops - 2.0).abs() < 1e-12);

        // A head reads all 48 positions, and goes on at the 20 that predict.
        let head = Work::default().with_head(&batch, 20, Learning::Trained, &params);
        let (dim, kv) = (params.dim, params.n_kv_heads * params.head_dim());
        let read = 48 * dim * (dim + 2 * kv);
        let behind = 20 * dim * (dim + 3 * params.ffn_dim() + params.vocab_size);
        let products = 2.0 * (read + behind) as f64;
        let expected = 3.0 * (products + params.block_attention_flops(3, 16));
        assert!((head.flops / expected - 1.0).abs() < 1e-12);
        let none = Work::default().with_head(&batch, 0, Learning::Trained, &params);
        assert_eq!(none, Work::default());
    }

    #[test]
    fn the_time_of_a_pass_is_told_when_all_of_it_was_seen() {
        let told = |mut epochs: Epochs, steps: std::ops::RangeInclusive<u64>| {
            let secs = steps.map(|step| epochs.add(step, 0.5));
            secs.collect::<Vec<_>>()
        };
        assert_eq!(
            told(Epochs::new(3, 0), 1..=7),
            [None, None, Some(1.5), None, None, Some(1.5), None]
        );
        // Continued in mid-pass: what was left of it is no pass.
        assert_eq!(
            told(Epochs::new(3, 4), 5..=9),
            [None, None, None, None, Some(1.5)]
        );
        assert_eq!(told(Epochs::new(3, 3), 4..=6), [None, None, Some(1.5)]);
        assert_eq!(told(Epochs::new(1, 0), 1..=2), [Some(0.5), Some(0.5)]);
    }

    #[test]
    fn percentiles_are_steps_that_happened() {
        let secs = [0.1, 0.2, 0.3, 0.4];
        let at = |share| percentile(&secs, share);
        assert_eq!(
            [at(0.0), at(0.25), at(0.5)],
            [Some(0.1), Some(0.1), Some(0.2)]
        );
        assert_eq!([at(0.9), at(1.0)], [Some(0.4), Some(0.4)]);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(Throughput::default().summary(1e9, None), None);
    }

    #[test]
    fn the_summary_names_every_number() {
        let summary = counted().summary(32e9, Some(300 << 20)).unwrap();
        assert_eq!(
            summary.to_string(),
            "200 tokens/s (320 with padding), 8.0 GFLOP/s, 25% of the measured peak; steps of 200 ms (half), 400 ms (9 \
             in 10), 400 ms (99 in 100); 300 MiB of memory at most"
        );
        let numbers = serde_json::to_value(summary).unwrap();
        assert_eq!(
            (&numbers["steps"], &numbers["step_secs_p90"]),
            (&4.into(), &0.4.into())
        );
    }

    #[test]
    fn this_process_has_used_some_memory() {
        assert!(peak_memory_bytes(&Device::Cpu).is_some_and(|bytes| bytes > 1 << 20));
    }
}
