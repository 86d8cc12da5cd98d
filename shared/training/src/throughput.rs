//! How fast a run is, in numbers that mean something: real and padded tokens, arithmetic against what this machine
//! can do, percentiles of steps, memory.

use std::fmt;

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

impl Work {
    /// A step costs three times the forward pass: backward computes the gradients of inputs and of weights.
    pub(crate) const TRAINING: f64 = 3.0;

    /// With a batch that goes through so many blocks and back.
    pub(crate) fn with_batch(self, batch: &PaddedBatch, blocks: usize, params: &Params) -> Self {
        let tokens: usize = batch.lengths.iter().sum();
        Self {
            tokens: self.tokens + tokens as u64,
            positions: self.positions + (batch.rows * batch.width) as u64,
            sequences: self.sequences + batch.rows as u64,
            flops: self.flops
                + Self::TRAINING * blocks as f64 * params.block_flops(batch.rows, batch.width),
        }
    }
}

/// Counters of a run since it was started or continued.
#[derive(Debug, Clone, Default)]
pub struct Throughput {
    total: Work,
    step_secs: Vec<f64>,
}

impl Throughput {
    /// Counts one step; a validation that belongs to it is in its time, a checkpoint is not.
    pub fn add(&mut self, work: Work, secs: f64) {
        self.total.tokens += work.tokens;
        self.total.positions += work.positions;
        self.total.sequences += work.sequences;
        self.total.flops += work.flops;
        self.step_secs.push(secs);
    }

    fn secs(&self) -> f64 {
        self.step_secs.iter().sum::<f64>().max(1e-9)
    }

    /// Real tokens per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.total.tokens as f64 / self.secs()
    }

    /// Positions per second, padding counted.
    pub fn positions_per_second(&self) -> f64 {
        self.total.positions as f64 / self.secs()
    }

    /// Sequences per second.
    pub fn sequences_per_second(&self) -> f64 {
        self.total.sequences as f64 / self.secs()
    }

    /// Floating-point operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.total.flops / self.secs()
    }

    /// Seconds that a share of the steps did not exceed (nearest rank); `None` before the first step.
    pub fn step_secs(&self, share: f64) -> Option<f64> {
        let mut sorted = self.step_secs.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }

    /// One line for people; `peak_flops` is the machine's measured rate, `memory_bytes` the most that was used.
    pub fn summary(&self, peak_flops: f64, memory_bytes: Option<u64>) -> String {
        let millis = |share| Millis(self.step_secs(share).unwrap_or(0.0));
        let memory = memory_bytes.map_or_else(String::new, |bytes| {
            format!("; {} MiB of memory at most", bytes >> 20)
        });
        format!(
            "{:.0} tokens/s ({:.0} with padding), {:.1} GFLOP/s, {:.0}% of the measured peak; steps of {} (half), {} \
             (9 in 10), {} (99 in 100){memory}",
            self.tokens_per_second(),
            self.positions_per_second(),
            self.flops_per_second() / 1e9,
            100.0 * self.flops_per_second() / peak_flops.max(1.0),
            millis(0.5),
            millis(0.9),
            millis(0.99),
        )
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
        for secs in [0.1, 0.3, 0.2, 0.4] {
            let work = Work {
                tokens: 50,
                positions: 80,
                sequences: 4,
                flops: 2e9,
            };
            throughput.add(work, secs);
        }
        throughput
    }

    #[test]
    fn rates_are_totals_over_the_time_of_steps() {
        let throughput = counted();
        assert!((throughput.tokens_per_second() - 200.0).abs() < 1e-9);
        assert!((throughput.positions_per_second() - 320.0).abs() < 1e-9);
        assert!((throughput.sequences_per_second() - 16.0).abs() < 1e-9);
        assert!((throughput.flops_per_second() - 8e9).abs() < 1e-3);
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
        let throughput = counted();
        let at = |share| throughput.step_secs(share);
        assert_eq!(
            [at(0.0), at(0.25), at(0.5)],
            [Some(0.1), Some(0.1), Some(0.2)]
        );
        assert_eq!([at(0.9), at(1.0)], [Some(0.4), Some(0.4)]);
        assert_eq!(Throughput::default().step_secs(0.5), None);
    }

    #[test]
    fn the_summary_names_every_number() {
        assert_eq!(
            counted().summary(32e9, Some(300 << 20)),
            "200 tokens/s (320 with padding), 8.0 GFLOP/s, 25% of the measured peak; steps of 200 ms (half), 400 ms (9 \
             in 10), 400 ms (99 in 100); 300 MiB of memory at most"
        );
    }

    #[test]
    fn this_process_has_used_some_memory() {
        assert!(peak_memory_bytes(&Device::Cpu).is_some_and(|bytes| bytes > 1 << 20));
    }
}
