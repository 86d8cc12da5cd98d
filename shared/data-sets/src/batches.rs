//! The order in which training visits rows, and padding.

use rand::seq::SliceRandom;

use crate::TokenFile;
use crate::random::stream;

/// Batches per pool in which rows are sorted by length: large enough to save padding, small enough to mix.
const POOL_BATCHES: usize = 16;

/// Widths are multiples of this.
const WIDTH_STEP: usize = 8;

/// A deterministic order of batches: every row once per epoch, rows of similar length together.
///
/// The last batch of an epoch may be short. The order depends on the seed, the epoch, the rows and their lengths
/// only.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    rows: Vec<(usize, usize)>,
    batch_sequences: usize,
    seed: u64,
}

impl BatchPlan {
    /// A plan over the given rows of a file.
    ///
    /// # Panics
    /// When `batch_sequences` is 0.
    pub fn new(file: &TokenFile, rows: Vec<usize>, batch_sequences: usize, seed: u64) -> Self {
        assert!(batch_sequences > 0, "a batch holds at least one sequence");
        let rows = rows
            .into_iter()
            .map(|row| (row, file.row(row).ids.len()))
            .collect();
        Self {
            rows,
            batch_sequences,
            seed,
        }
    }

    /// Number of batches in one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.batch_sequences)
    }

    /// The batches of one epoch: row indices of the file.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = stream(self.seed, &format!("batches/epoch-{epoch}"));
        let mut rows = self.rows.clone();
        rows.shuffle(&mut rng);
        let mut batches = Vec::with_capacity(self.steps_per_epoch());
        for pool in rows.chunks_mut(POOL_BATCHES * self.batch_sequences) {
            pool.sort_by_key(|&(_, length)| length);
            batches.extend(
                pool.chunks(self.batch_sequences)
                    .map(|batch| batch.iter().map(|&(row, _)| row).collect::<Vec<_>>()),
            );
        }
        batches.shuffle(&mut rng);
        batches
    }

    /// The first `steps` batches, over as many epochs as they take; none when there are no rows.
    pub fn first_steps(&self, steps: usize) -> Vec<Vec<usize>> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        (0..)
            .flat_map(|epoch| self.epoch(epoch))
            .take(steps)
            .collect()
    }
}

/// Token ids of several rows, padded on the right with [`wmtp_tokens::PAD`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedBatch {
    /// `rows * width` ids, row by row.
    pub ids: Vec<u32>,
    /// Number of sequences.
    pub rows: usize,
    /// Padded length: the longest sequence, rounded up to a multiple of 8.
    pub width: usize,
    /// Length of each sequence before padding.
    pub lengths: Vec<usize>,
    /// Index of the first response token of each sequence.
    pub prompt_lens: Vec<usize>,
}

/// Gathers rows of a file into one padded batch.
pub fn pad_batch(file: &TokenFile, rows: &[usize]) -> PaddedBatch {
    let sequences: Vec<_> = rows.iter().map(|&row| file.row(row)).collect();
    let lengths: Vec<usize> = sequences.iter().map(|row| row.ids.len()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let width = longest.next_multiple_of(WIDTH_STEP);
    let mut ids = Vec::with_capacity(width * rows.len());
    for sequence in &sequences {
        ids.extend_from_slice(sequence.ids);
        ids.resize(ids.len() + width - sequence.ids.len(), wmtp_tokens::PAD);
    }
    PaddedBatch {
        ids,
        rows: rows.len(),
        width,
        lengths,
        prompt_lens: sequences.iter().map(|row| row.prompt_len).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use wmtp_tokens::TokenizedSample;

    use super::*;

    fn file(lengths: &[usize]) -> TokenFile {
        let mut file = TokenFile::default();
        for &length in lengths {
            let sample = TokenizedSample {
                ids: vec![7; length],
                prompt_len: 1,
            };
            file.push(&sample, Some(true));
        }
        file
    }

    #[test]
    fn a_batch_is_as_wide_as_its_longest_row_rounded_to_eight() {
        let batch = pad_batch(&file(&[3, 9]), &[1, 0]);
        assert_eq!((batch.rows, batch.width), (2, 16));
        assert_eq!(batch.lengths, [9, 3]);
        assert_eq!(batch.ids.len(), 32);
        assert_eq!(&batch.ids[16..20], [7, 7, 7, wmtp_tokens::PAD]);
    }

    #[test]
    fn steps_run_over_epochs_and_epochs_differ() {
        let file = file(&[4; 10]);
        let plan = BatchPlan::new(&file, (0..10).collect(), 4, 1);
        assert_eq!(plan.steps_per_epoch(), 3);
        let steps = plan.first_steps(7);
        assert_eq!(steps.len(), 7);
        assert_eq!(steps[..3], plan.epoch(0));
        assert_ne!(plan.epoch(0), plan.epoch(1));
    }

    proptest! {
        #[test]
        fn every_row_comes_once_an_epoch(
            lengths in proptest::collection::vec(2_usize..200, 1..300),
            batch in 1_usize..20,
            seed in 0_u64..50,
        ) {
            let file = file(&lengths);
            let plan = BatchPlan::new(&file, (0..lengths.len()).collect(), batch, seed);
            let batches = plan.epoch(3);
            prop_assert_eq!(batches.len(), plan.steps_per_epoch());
            prop_assert!(batches.iter().all(|rows| !rows.is_empty() && rows.len() <= batch));
            let mut rows: Vec<usize> = batches.concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert_eq!(plan.epoch(3), batches);
        }
    }
}
