//! Drawing the next token from logits.

use std::cmp::Ordering;

use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// Tokens that are put in order first when a nucleus is cut.
const FIRST_RANKS: usize = 32;

/// Temperature, number of tokens and nucleus of a protocol, which cut in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the softmax; greater than 0.
    pub temperature: f64,
    /// Tokens that may be drawn at most, the most probable ones; all when `None`.
    pub top_k: Option<usize>,
    /// Share of probability that the kept tokens must reach, in (0, 1].
    pub top_p: f64,
}

impl Sampling {
    /// Probability `[v]` of every token under this protocol; tokens outside the nucleus have 0. `None` when no
    /// logit is finite.
    ///
    /// ```
    /// let narrow = wmtp_decoding::Sampling { temperature: 1.0, top_k: None, top_p: 0.6 };
    /// assert_eq!(narrow.probabilities(&[0.0, 0.0, f32::NEG_INFINITY]), Some(vec![0.5, 0.5, 0.0]));
    /// ```
    pub fn probabilities(&self, logits_v: &[f32]) -> Option<Vec<f64>> {
        let nucleus = self.nucleus(logits_v)?;
        let total: f64 = nucleus.iter().map(|(_, mass)| mass).sum();
        let mut probabilities = vec![0.0; logits_v.len()];
        for (id, mass) in nucleus {
            probabilities[id as usize] = mass / total;
        }
        Some(probabilities)
    }

    /// Tokens by falling probability up to and including the one that crosses `top_p` of what `top_k` leaves, each with its
    /// share of an unnormalised mass.
    fn nucleus(&self, logits_v: &[f32]) -> Option<Vec<(u32, f64)>> {
        let highest = f64::from(logits_v[argmax(logits_v)? as usize]);
        let mut ranked: Vec<(u32, f64)> = logits_v
            .iter()
            .enumerate()
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, &logit)| {
                (
                    id as u32,
                    ((f64::from(logit) - highest) / self.temperature).exp(),
                )
            })
            .collect();
        if let Some(most) = self.top_k {
            keep_heaviest(&mut ranked, most);
        }
        let total: f64 = ranked.iter().map(|(_, mass)| mass).sum();
        let size = cut(&mut ranked, self.top_p * total);
        ranked.truncate(size);
        Some(ranked)
    }
}

/// By falling mass, ties by id.
fn by_rank(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `most` heaviest tokens, in order.
pub(crate) fn keep_heaviest(ranked: &mut Vec<(u32, f64)>, most: usize) {
    if most < ranked.len() {
        ranked.select_nth_unstable_by(most, by_rank);
        ranked.truncate(most);
    }
    ranked.sort_unstable_by(by_rank);
}

/// Brings the heaviest tokens to the front in order; returns how many of them reach `mass` together, all if
/// rounding keeps them below it.
fn cut(ranked: &mut [(u32, f64)], mass: f64) -> usize {
    // A nucleus rarely holds more than a few tokens, and ordering them all costs more than a small model's forward.
    let mut ordered = FIRST_RANKS.min(ranked.len());
    loop {
        if ordered < ranked.len() {
            ranked.select_nth_unstable_by(ordered, by_rank);
        }
        ranked[..ordered].sort_unstable_by(by_rank);
        let mut kept = 0.0_f64;
        let last = ranked[..ordered].iter().position(|(_, own)| {
            kept += own;
            kept >= mass
        });
        match last {
            Some(last) => return last + 1,
            None if ordered == ranked.len() => return ordered,
            None => ordered = (4 * ordered).min(ranked.len()),
        }
    }
}

/// How one row picks its tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// The most probable token; ties go to the lowest id.
    Greedy,
    /// A draw from the tempered nucleus.
    Draw(Sampling, DrawKey),
}

/// Identifies the random numbers of one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrawKey([u8; 32]);

impl DrawKey {
    /// The key of a sample: the digest of run seed, problem and sample number.
    pub fn new(seed: u64, problem_id: &str, sample: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(sample.to_le_bytes());
        hash.update(problem_id.as_bytes());
        Self(hash.finalize().into())
    }

    /// A uniform number in [0, 1) that belongs to this sample and `position` alone.
    pub fn uniform(&self, position: usize) -> f64 {
        let mut rng = ChaCha8Rng::from_seed(self.0);
        // A draw takes two 32-bit words of the key stream.
        rng.set_word_pos(2 * position as u128);
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Choice {
    /// Picks the token that follows `position`; `None` when no logit is finite.
    pub fn pick(&self, logits_v: &[f32], position: usize) -> Option<u32> {
        match self {
            Self::Greedy => argmax(logits_v),
            Self::Draw(sampling, key) => draw(logits_v, *sampling, key.uniform(position)),
        }
    }
}

fn argmax(logits_v: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits_v.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id as u32)
}

/// Draws from the nucleus.
fn draw(logits_v: &[f32], sampling: Sampling, uniform: f64) -> Option<u32> {
    let nucleus = sampling.nucleus(logits_v)?;
    let mut left = uniform * nucleus.iter().map(|(_, mass)| mass).sum::<f64>();
    for &(id, mass) in &nucleus {
        if left < mass {
            return Some(id);
        }
        left -= mass;
    }
    nucleus.last().map(|&(id, _)| id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> DrawKey {
        DrawKey::new(42, "problem", 3)
    }

    #[test]
    fn uniform_numbers_depend_on_every_part_of_the_key() {
        let base = key().uniform(5);
        assert!((0.0..1.0).contains(&base));
        assert_eq!(base.to_bits(), key().uniform(5).to_bits());
        for other in [
            DrawKey::new(43, "problem", 3).uniform(5),
            DrawKey::new(42, "problem", 4).uniform(5),
            DrawKey::new(42, "other", 3).uniform(5),
            key().uniform(6),
        ] {
            assert_ne!(base.to_bits(), other.to_bits());
        }
    }

    #[test]
    fn the_nucleus_keeps_the_token_that_crosses_the_bound_and_no_more() {
        // Probabilities 0.5, 0.3, 0.2: a nucleus of 0.7 is the first two, 0.625 and 0.375 after renormalising.
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let sampling = Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: 0.7,
        };
        assert_eq!(draw(&logits, sampling, 0.0), Some(0));
        assert_eq!(draw(&logits, sampling, 0.624), Some(0));
        assert_eq!(draw(&logits, sampling, 0.626), Some(1));
        assert_eq!(draw(&logits, sampling, 0.999_999), Some(1));
        let all = Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
        };
        assert_eq!(draw(&logits, all, 0.999_999), Some(2));
    }

    #[test]
    fn a_low_temperature_is_greedy() {
        let logits = [1.0, 3.0, 2.0];
        let cold = Sampling {
            temperature: 0.01,
            top_k: None,
            top_p: 1.0,
        };
        assert_eq!(draw(&logits, cold, 0.999), Some(1));
        assert_eq!(Choice::Greedy.pick(&logits, 0), Some(1));
        assert_eq!(
            Choice::Greedy.pick(&[2.0, 2.0], 0),
            Some(0),
            "ties go to the lowest id"
        );
    }

    #[test]
    fn logits_without_a_finite_entry_give_no_token() {
        assert_eq!(Choice::Greedy.pick(&[f32::NAN, f32::NEG_INFINITY], 0), None);
        assert_eq!(
            draw(
                &[f32::NAN],
                Sampling {
                    temperature: 1.0,
                    top_k: None,
                    top_p: 1.0
                },
                0.5
            ),
            None
        );
    }

    #[test]
    fn the_nucleus_is_cut_from_what_the_number_of_tokens_leaves() {
        // Probabilities 0.4, 0.3, 0.2, 0.1. Of the first three, 4/9, 3/9 and 2/9, a nucleus of 0.7 takes two; of all, too,
        // but one of 0.75 takes two of the three and three of all.
        let logits: Vec<f32> = [0.1_f32, 0.3, 0.2, 0.4].iter().map(|p| p.ln()).collect();
        let kept = |top_k, top_p| -> Vec<u32> {
            let sampling = Sampling {
                temperature: 1.0,
                top_k,
                top_p,
            };
            let nucleus = sampling.nucleus(&logits).expect("finite logits");
            nucleus.iter().map(|(id, _)| *id).collect()
        };
        assert_eq!(kept(Some(3), 1.0), [3, 1, 2]);
        assert_eq!(kept(Some(3), 0.75), [3, 1]);
        assert_eq!(kept(None, 0.75), [3, 1, 2]);
        assert_eq!(kept(Some(1), 1.0), [3]);
        assert_eq!(kept(Some(9), 1.0), [3, 1, 2, 0]);
        let three = Sampling {
            temperature: 1.0,
            top_k: Some(3),
            top_p: 1.0,
        };
        // The bounds between the three lie at 4/9 and 7/9.
        assert_eq!(draw(&logits, three, 0.44), Some(3));
        assert_eq!(draw(&logits, three, 0.45), Some(1));
        assert_eq!(draw(&logits, three, 0.78), Some(2));
    }

    #[test]
    fn of_equal_tokens_the_lowest_ids_are_kept() {
        let sampling = Sampling {
            temperature: 0.7,
            top_k: Some(2),
            top_p: 1.0,
        };
        let kept = sampling.probabilities(&[1.0, 2.0, 2.0, 2.0]);
        assert_eq!(kept, Some(vec![0.0, 0.5, 0.5, 0.0]));
    }

    /// Sorts every token, as the definition says.
    fn nucleus_by_definition(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let masses: Vec<f64> = logits
            .iter()
            .map(|&logit| {
                let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                ((f64::from(logit) - f64::from(highest)) / sampling.temperature).exp()
            })
            .collect();
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| masses[b as usize].total_cmp(&masses[a as usize]));
        let bound = sampling.top_p * masses.iter().sum::<f64>();
        let mut kept = 0.0;
        let last = ids.iter().position(|&id| {
            kept += masses[id as usize];
            kept >= bound
        });
        ids.truncate(last.map_or(ids.len(), |last| last + 1));
        ids
    }

    proptest! {
        #[test]
        fn a_nucleus_of_any_size_is_that_of_the_definition(
            logits in prop::collection::vec((-8_i32..8).prop_map(|level| level as f32 / 2.0), 1..300),
            top_p in 0.01_f64..=1.0,
            temperature in 0.05_f64..30.0,
        ) {
            let sampling = Sampling { temperature, top_k: None, top_p };
            let nucleus = sampling.nucleus(&logits).expect("finite logits");
            let ids: Vec<u32> = nucleus.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(ids, nucleus_by_definition(&logits, sampling));
        }

        #[test]
        fn draws_stay_inside_the_vocabulary(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..40),
            uniform in 0.0_f64..1.0,
            top_p in 0.01_f64..=1.0,
            temperature in 0.05_f64..3.0,
        ) {
            let id = draw(&logits, Sampling { temperature, top_k: None, top_p }, uniform).expect("finite logits");
            prop_assert!((id as usize) < logits.len());
        }
    }
}
