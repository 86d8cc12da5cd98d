//! Beam search: of several texts that grow side by side, the one with the highest mean log-probability.

use crate::error::{Error, Result};
use crate::generate::Generated;
use crate::infer::Sequence;
use crate::sampling::keep_heaviest;

/// How many texts grow side by side, and how they are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beam {
    /// Open texts, and ended ones that are kept; at least 1.
    pub width: usize,
    /// A text of n tokens, its end token counted, scores log p / n^penalty: 0 compares sums, 1 means. At least 0.
    pub length_penalty: f64,
}

impl Beam {
    /// ```
    /// let means = wmtp_decoding::Beam { width: 2, length_penalty: 1.0 };
    /// assert!(means.score(-3.0, 4) > means.score(-1.0, 1));
    /// ```
    #[must_use]
    pub fn score(&self, log_prob: f64, num_tokens: usize) -> f64 {
        log_prob / (num_tokens as f64).powf(self.length_penalty)
    }
}

/// A text that grows.
pub(crate) struct Hypothesis {
    pub(crate) text: Vec<u32>,
    pub(crate) sequence: Sequence,
    /// Sum over its tokens, nats.
    log_prob: f64,
}

/// The texts of one search.
pub(crate) struct Search {
    beam: Beam,
    end_token: u32,
    /// Tokens that a text may have.
    budget: usize,
    /// Best first; all of one length.
    pub(crate) open: Vec<Hypothesis>,
    /// Best first, at most `width`, each with its score.
    ended: Vec<(f64, Generated)>,
}

/// A text that may be grown by a token.
struct Candidate {
    log_prob: f64,
    parent: usize,
    token: u32,
}

impl Search {
    /// A search whose prompt `sequence` has read.
    pub(crate) fn new(beam: Beam, end_token: u32, budget: usize, sequence: Sequence) -> Self {
        let root = Hypothesis {
            text: Vec::new(),
            sequence,
            log_prob: 0.0,
        };
        Self {
            beam,
            end_token,
            budget,
            open: vec![root],
            ended: Vec::new(),
        }
    }

    /// Takes the logits `[v]` behind each open text. Returns the best text when the search is over.
    ///
    /// It is over when as many texts have ended as are kept, and the best open one, compared at its present length,
    /// scores no more than any of them; or when the budget is used up.
    pub(crate) fn grow(&mut self, logits: &[&[f32]]) -> Result<Option<Generated>> {
        let candidates = self.candidates(logits)?;
        let num_tokens = self.open[0].text.len() + 1;
        let mut grown = Vec::new();
        for (rank, candidate) in candidates.into_iter().enumerate() {
            if grown.len() == self.beam.width {
                break;
            }
            if candidate.token != self.end_token {
                grown.push(candidate);
            } else if rank < self.beam.width {
                let text = self.open[candidate.parent].text.clone();
                self.end(candidate.log_prob, num_tokens, text, true);
            }
        }
        let best_open = grown
            .first()
            .map(|best| self.beam.score(best.log_prob, num_tokens));
        self.open = self.children(&grown)?;
        if num_tokens == self.budget {
            for open in std::mem::take(&mut self.open) {
                self.end(open.log_prob, num_tokens, open.text, false);
            }
        }
        self.rank();
        let full = self.ended.len() == self.beam.width;
        let beaten = self.ended.last().zip(best_open);
        let settled = full && beaten.is_none_or(|((worst, _), best)| *worst >= best);
        let best = self.ended.first().map(|(_, text)| text.clone());
        Ok(best.filter(|_| settled || self.open.is_empty()))
    }

    /// The likeliest continuations, best first: twice the width, since one in each text may be its end. Ties go to the
    /// better parent, then to the lower token.
    fn candidates(&self, logits: &[&[f32]]) -> Result<Vec<Candidate>> {
        let most = 2 * self.beam.width;
        let mut all = Vec::new();
        for (parent, (open, logits_v)) in self.open.iter().zip(logits).enumerate() {
            let position = open.sequence.len().saturating_sub(1);
            let best = likeliest(logits_v, most).ok_or(Error::NotFinite { position })?;
            all.extend(best.into_iter().map(|(token, log_prob)| Candidate {
                log_prob: open.log_prob + log_prob,
                parent,
                token,
            }));
        }
        // Stable: candidates come parent by parent, each with its tokens in order.
        all.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob));
        all.truncate(most);
        Ok(all)
    }

    /// Each with a cache of its own; the last child of a parent takes the parent's.
    fn children(&mut self, grown: &[Candidate]) -> Result<Vec<Hypothesis>> {
        let mut parents: Vec<_> = std::mem::take(&mut self.open)
            .into_iter()
            .map(Some)
            .collect();
        let child = |(number, candidate): (usize, &Candidate)| {
            let is_last = !grown[number + 1..]
                .iter()
                .any(|later| later.parent == candidate.parent);
            let parent = &mut parents[candidate.parent];
            let parent = if is_last {
                parent.take().map(Ok)
            } else {
                parent.as_ref().map(Hypothesis::fork)
            };
            parent.map(|parent| {
                let Hypothesis { text, sequence, .. } = parent?;
                Ok(Hypothesis {
                    text: [text.as_slice(), &[candidate.token]].concat(),
                    sequence,
                    log_prob: candidate.log_prob,
                })
            })
        };
        grown.iter().enumerate().filter_map(child).collect()
    }

    fn end(&mut self, log_prob: f64, num_tokens: usize, ids: Vec<u32>, finished: bool) {
        let score = self.beam.score(log_prob, num_tokens);
        self.ended.push((score, Generated { ids, finished }));
    }

    fn rank(&mut self) {
        // Stable: of equal scores the text that ended first.
        self.ended.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.ended.truncate(self.beam.width);
    }
}

impl Hypothesis {
    fn fork(&self) -> Result<Self> {
        Ok(Self {
            text: self.text.clone(),
            sequence: self.sequence.fork(self.sequence.len())?,
            log_prob: self.log_prob,
        })
    }
}

/// The `most` likeliest tokens with their log-probabilities, best first; `None` when no logit is finite.
fn likeliest(logits_v: &[f32], most: usize) -> Option<Vec<(u32, f64)>> {
    let finite = logits_v.iter().copied().filter(|logit| logit.is_finite());
    let highest = f64::from(finite.clone().reduce(f32::max)?);
    let mass: f64 = finite.map(|logit| (f64::from(logit) - highest).exp()).sum();
    let log_sum = highest + mass.ln();
    let mut ranked: Vec<(u32, f64)> = (0..)
        .zip(logits_v)
        .filter(|(_, logit)| logit.is_finite())
        .map(|(id, &logit)| (id, f64::from(logit) - log_sum))
        .collect();
    keep_heaviest(&mut ranked, most);
    Some(ranked)
}

#[cfg(test)]
mod tests {
    use wmtp_model::{DType, Device, ParamStore, Params, RowSetup};

    use super::*;
    use crate::infer::InferenceModel;

    fn search(width: usize, length_penalty: f64, budget: usize) -> Search {
        let params = Params::micro_mtp(8);
        let store = ParamStore::init(&params, 1, DType::F32, &Device::Cpu).expect("a model");
        let model =
            InferenceModel::new(&params, &store, 8, &RowSetup::HOST).expect("a complete store");
        let beam = Beam {
            width,
            length_penalty,
        };
        let sequence = model.empty_sequence().expect("room on the host");
        Search::new(beam, 0, budget, sequence)
    }

    fn logits(probabilities: [f32; 3]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn text(ids: &[u32], finished: bool) -> Generated {
        let ids = ids.to_vec();
        Generated { ids, finished }
    }

    fn grow(search: &mut Search, logits: &[&[f32]]) -> Option<Generated> {
        search.grow(logits).expect("finite logits")
    }

    /// Token 0 ends. After it, of probability 0.4, nothing; 1 and 2 have 0.35 and 0.25. Behind 1 the end has 0.9, behind 2
    /// 0.5: "1 end" has 0.315, "2 end" 0.125.
    fn worked(length_penalty: f64) -> Option<Generated> {
        let mut search = search(2, length_penalty, 5);
        assert_eq!(grow(&mut search, &[&logits([0.4, 0.35, 0.25])]), None);
        let open: Vec<&[u32]> = search.open.iter().map(|one| one.text.as_slice()).collect();
        assert_eq!(open, [[1], [2]]);
        let second = [logits([0.9, 0.06, 0.04]), logits([0.5, 0.3, 0.2])];
        grow(&mut search, &[&second[0], &second[1]])
    }

    #[test]
    fn means_prefer_the_longer_text_and_sums_the_shorter() {
        // ln 0.4 = -0.916 beats ln 0.315 = -1.155, but not half of it.
        assert_eq!(worked(1.0), Some(text(&[1], true)));
        assert_eq!(worked(0.0), Some(text(&[], true)));
    }

    #[test]
    fn a_search_goes_on_while_an_open_text_may_still_win() {
        let mut search = search(1, 1.0, 3);
        // The end is second, so that nothing ends.
        assert_eq!(grow(&mut search, &[&logits([0.3, 0.6, 0.1])]), None);
        assert_eq!(grow(&mut search, &[&logits([0.2, 0.2, 0.6])]), None);
        // The budget is used up.
        assert_eq!(
            grow(&mut search, &[&logits([0.1, 0.8, 0.1])]),
            Some(text(&[1, 2, 1], false))
        );
    }

    #[test]
    fn equal_texts_rank_by_parent_and_token() {
        let mut search = search(2, 1.0, 5);
        assert_eq!(grow(&mut search, &[&logits([0.2, 0.4, 0.4])]), None);
        let even = logits([0.0, 0.5, 0.5]);
        assert_eq!(grow(&mut search, &[&even, &even]), None);
        let open: Vec<&[u32]> = search.open.iter().map(|one| one.text.as_slice()).collect();
        assert_eq!(open, [[1, 1], [1, 2]]);
    }

    #[test]
    fn no_finite_logit_gives_no_text() {
        let found = search(2, 1.0, 5).grow(&[&[f32::NAN; 3]]);
        assert!(matches!(found, Err(Error::NotFinite { .. })));
    }
}
