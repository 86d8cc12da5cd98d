//! Dropout of what adapters read (spec 1.12; Srivastava et al. 2014).
//!
//! Whether a number is dropped follows from its names and its place alone: the run's seed, the optimizer step, the adapted
//! matrix, the sequence's place within the step, position and column. So a block that is computed again drops what it had
//! dropped, and neither threads, nor the size of a micro-batch, nor a stop and a new start make another choice. The choice
//! is a word of ChaCha8 (Bernstein 2008), which jumps to any place: seed, step and matrix are its key, the row is its stream,
//! and the column counts words.

use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::float::Float;

/// Dropout of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share p of an adapter's input that is dropped, 0 < p < 1; what stays counts 1/(1 - p).
    pub share: f64,
    /// Seed of all its choices.
    pub seed: u64,
}

impl Dropout {
    /// That of one optimizer step.
    pub fn of_step(self, step: u64) -> StepDropout {
        StepDropout {
            dropout: self,
            step,
        }
    }
}

/// Dropout of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDropout {
    dropout: Dropout,
    step: u64,
}

impl StepDropout {
    /// That of a pass through some of the step's sequences, the first of which has this place among all of them.
    pub(crate) fn of_pass(self, first_slot: usize) -> PassDropout {
        PassDropout {
            step: self,
            first_slot,
        }
    }
}

/// Dropout of one pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassDropout {
    step: StepDropout,
    first_slot: usize,
}

impl PassDropout {
    /// That of an operation on rows of a batch whose sequences have so many positions: on these, or on the first `count`.
    pub(crate) fn masks(self, sequence: usize, rows: Option<&[u32]>, count: usize) -> Masks {
        let place = |row: usize| {
            let (slot, position) = (self.first_slot + row / sequence, row % sequence);
            ((slot as u64) << 32) | position as u64
        };
        let places = match rows {
            Some(rows) => rows.iter().map(|&row| place(row as usize)).collect(),
            None => (0..count).map(place).collect(),
        };
        Masks {
            step: self.step,
            places,
        }
    }
}

/// What is dropped of an operation's rows, another choice for each adapted matrix.
#[derive(Debug, Clone)]
pub(crate) struct Masks {
    step: StepDropout,
    /// Sequence within the step and position of every row.
    places: Arc<[u64]>,
}

impl Masks {
    /// Drops from whole rows of `values [.., width]`, the first of which is row `first` of the operation, what the matrix
    /// `stream` does not read.
    pub(crate) fn drop_from<T: Float>(
        &self,
        values: &mut [T],
        width: usize,
        first: usize,
        stream: u64,
    ) {
        let StepDropout { dropout, step } = self.step;
        let key = Self::key([dropout.seed, step, stream, 0]);
        // Of 2^32 words so many drop.
        let limit = (dropout.share * 2f64.powi(32)) as u32;
        let scale = T::from_f64(1.0 / (1.0 - dropout.share));
        for (values, place) in values.chunks_exact_mut(width).zip(&self.places[first..]) {
            let mut rng = ChaCha8Rng::from_seed(key);
            rng.set_stream(*place);
            for value in values {
                let stays = rng.next_u32() >= limit;
                *value = if stays { *value * scale } else { T::zero() };
            }
        }
    }

    /// All rows `input [.., width]` as the matrix `stream` reads them, made by tasks of so many rows.
    pub(crate) fn dropped<T: Float>(
        &self,
        input: &[T],
        width: usize,
        task_rows: usize,
        stream: u64,
    ) -> Vec<T> {
        let mut dropped = input.to_vec();
        dropped
            .par_chunks_mut(task_rows * width)
            .enumerate()
            .for_each(|(task, rows)| self.drop_from(rows, width, task * task_rows, stream));
        dropped
    }

    fn key(parts: [u64; 4]) -> [u8; 32] {
        let mut key = [0; 32];
        for (bytes, part) in key.chunks_exact_mut(8).zip(parts) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 500;
    const SEQUENCE: usize = 6;

    fn dropout(share: f64) -> Dropout {
        Dropout { share, seed: 9 }
    }

    fn pass(dropout: Dropout, step: u64, first_slot: usize) -> Masks {
        let pass = dropout.of_step(step).of_pass(first_slot);
        pass.masks(SEQUENCE, None, 4 * SEQUENCE)
    }

    /// What the masks make of ones, row by row.
    fn rows(masks: &Masks, stream: u64) -> Vec<Vec<f64>> {
        let ones = vec![1.0; masks.places.len() * WIDTH];
        let all = masks.dropped(&ones, WIDTH, 5, stream);
        all.chunks(WIDTH).map(<[f64]>::to_vec).collect()
    }

    #[test]
    fn the_share_is_dropped_and_the_rest_makes_up_for_it() {
        for share in [0.05, 0.5, 0.9] {
            let values = rows(&pass(dropout(share), 3, 0), 1).concat();
            let count = values.len() as f64;
            let dropped = values.iter().filter(|value| **value == 0.0).count() as f64 / count;
            // Five deviations of a share of 12,000 draws.
            let bound = 5.0 * (share * (1.0 - share) / count).sqrt();
            assert!((dropped - share).abs() < bound, "{dropped} of {share}");
            let stays = 1.0 / (1.0 - share);
            let known = |value: &f64| *value == 0.0 || value.to_bits() == stays.to_bits();
            assert!(values.iter().all(known));
            let mean = values.iter().sum::<f64>() / count;
            assert!((mean - 1.0).abs() < bound * stays, "{mean}");
        }
    }

    /// By ChaCha8 from its definition, with a counter and a stream of 64 bits each: the words below a tenth of 2^32.
    #[test]
    fn the_dropped_columns_of_a_row_are_known() {
        let rows = rows(&pass(dropout(0.1), 3, 1), 1);
        let columns = rows[2].iter().enumerate();
        let dropped: Vec<usize> = columns
            .filter(|(_, value)| **value == 0.0)
            .map(|(column, _)| column)
            .collect();
        let expected = [7, 20, 43, 79, 88, 104, 105, 111, 115, 124, 181, 182];
        assert_eq!(dropped[..expected.len()], expected);
        assert_eq!(dropped[dropped.len() - 3..], [468, 473, 477]);
    }

    /// Masks of a half that have nothing to do with each other agree in half of their numbers.
    #[test]
    fn every_part_of_the_name_makes_another_choice() {
        let all = |masks: Masks, stream| rows(&masks, stream).concat();
        let (half, base) = (dropout(0.5), all(pass(dropout(0.5), 3, 0), 1));
        let seed = Dropout { seed: 10, ..half };
        let others = [
            ("matrix", all(pass(half, 3, 0), 2)),
            ("step", all(pass(half, 4, 0), 1)),
            ("seed", all(pass(seed, 3, 0), 1)),
            ("sequence", all(pass(half, 3, 4), 1)),
        ];
        let agreement = |one: &[f64], other: &[f64]| {
            let pairs = one.iter().zip(other);
            pairs
                .filter(|(one, other)| (**one == 0.0) == (**other == 0.0))
                .count() as f64
                / one.len() as f64
        };
        for (name, other) in &others {
            let share = agreement(&base, other);
            assert!((share - 0.5).abs() < 0.03, "another {name}: {share}");
        }
        let rows = rows(&pass(half, 3, 0), 1);
        for (index, row) in rows.iter().enumerate().skip(1) {
            let share = agreement(&rows[0], row);
            assert!((share - 0.5).abs() < 0.15, "row {index}: {share}");
        }
    }

    #[test]
    fn a_row_keeps_its_mask_in_every_batch_width_and_selection() {
        let whole = rows(&pass(dropout(0.3), 3, 0), 1);
        let later = rows(&pass(dropout(0.3), 3, 2), 1);
        assert_eq!(whole[2 * SEQUENCE..], later[..2 * SEQUENCE]);

        let pass = dropout(0.3).of_step(3).of_pass(0);
        let wider = rows(&pass.masks(SEQUENCE + 2, None, 2 * (SEQUENCE + 2)), 1);
        assert_eq!(
            whole[SEQUENCE..2 * SEQUENCE],
            wider[SEQUENCE + 2..][..SEQUENCE]
        );
        let chosen = [1, 8, 23];
        let some = rows(&pass.masks(SEQUENCE, Some(&chosen), 0), 1);
        let expected: Vec<_> = chosen
            .iter()
            .map(|row| whole[*row as usize].clone())
            .collect();
        assert_eq!(some, expected);
    }
}
