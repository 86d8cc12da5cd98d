//! Generation: texts of many prompts advance together; those of one prompt share their equal beginnings.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::beam::{Beam, Search};
use crate::error::{Error, Result};
use crate::infer::{InferenceModel, Question, Reading, Sequence};
use crate::sampling::Choice;

/// A prompt with the samples that are wanted of it.
#[derive(Debug, Clone)]
pub struct Prompt<'a> {
    /// Token ids, begin token included.
    pub ids: &'a [u32],
    /// One entry a sample.
    pub choices: Vec<Choice>,
    /// One more sample behind them: the text that a beam search finds.
    pub beam: Option<Beam>,
}

/// One generated continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Ids after the prompt, end token left out.
    pub ids: Vec<u32>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

/// A text that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Number of its prompt.
    pub prompt: usize,
    /// Its place among the prompt's choices; their number for the text of the beam search.
    pub sample: usize,
    /// The text.
    pub text: Generated,
    /// How long it took.
    pub timing: Timing,
}

/// Wall time of a text, whatever was generated beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From taking up the prompt to the first token.
    pub prefill: Duration,
    /// From taking up the prompt to the end.
    pub whole: Duration,
}

impl Timing {
    /// Mean time of each token after the first, the end token included; `None` where there is no such token.
    pub fn per_token(&self, text: &Generated) -> Option<Duration> {
        let picked = text.ids.len() + usize::from(text.finished);
        let later = u32::try_from(picked.checked_sub(1)?).ok()?;
        self.whole.checked_sub(self.prefill)?.checked_div(later)
    }
}

/// What the heads' proposals were worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Times that a text's last token was read with proposals behind it.
    pub forwards: u64,
    /// Proposals of the heads 2, 3, … that were verified.
    pub proposed: Vec<u64>,
    /// How many of them stood.
    pub accepted: Vec<u64>,
}

impl Tally {
    fn of(num_proposing: usize) -> Self {
        Self {
            forwards: 0,
            proposed: vec![0; num_proposing],
            accepted: vec![0; num_proposing],
        }
    }

    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        let add = |sums: &mut Vec<u64>, more: &[u64]| {
            sums.resize(sums.len().max(more.len()), 0);
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more;
            }
        };
        self.forwards += other.forwards;
        add(&mut self.proposed, &other.proposed);
        add(&mut self.accepted, &other.accepted);
    }

    /// Mean number of tokens that one forward gives; `None` before the first.
    pub fn tokens_per_forward(&self) -> Option<f64> {
        let accepted: u64 = self.accepted.iter().sum();
        (self.forwards > 0).then(|| 1.0 + accepted as f64 / self.forwards as f64)
    }
}

/// A prompt that failed.
#[derive(Debug, thiserror::Error)]
#[error("prompt {number}: {error}")]
pub struct PromptError {
    /// Its number.
    pub number: usize,
    /// Why.
    #[source]
    pub error: Error,
}

/// Open texts up to which the heads propose. A forward over few texts takes the time of reading the weights, which the
/// proposals share; with more texts every further row costs its own time. At 12 trunk blocks of width 128 and 3.4 tokens
/// a forward, on two busy cores of a shared Xeon with AVX-512, one open text is written 1.6 times as fast and two 1.3
/// times (medians of 35 rounds); four, tried with a limit of 4, lost a sixth.
const MAX_SPECULATED: usize = 2;

/// Generates continuations with one model.
///
/// Where the model was made with its proposing heads and few texts are open, a forward reads the last token and what
/// they proposed after it. Tokens are picked from head 1 alone at every place, with the random number of that place, and a
/// proposal stands when it is what was picked: the text is that of plain decoding.
#[derive(Debug)]
pub struct Generator {
    model: InferenceModel,
    end_token: u32,
    max_new_tokens: usize,
}

/// A text and the samples that have written it so far.
struct Branch {
    samples: Vec<usize>,
    /// Ids after the prompt.
    text: Vec<u32>,
    sequence: Sequence,
    /// What the model reads next: the prompt, or the last token of the text, with proposals behind it.
    unread: Vec<u32>,
    num_proposals: usize,
    /// The trunk's output that the proposing heads have not read.
    trunk: Vec<f32>,
}

impl Branch {
    /// How many heads are worth asking: none before the prompt is read, and no more than tokens may follow, since a
    /// proposal that nothing may follow saves no forward.
    fn num_askable(&self, budget: usize, num_proposing: usize) -> usize {
        if self.text.is_empty() {
            return 0;
        }
        num_proposing.min(budget - self.text.len() - 1)
    }
}

/// The samples of one prompt on their way: those that wrote the same so far share a branch.
struct Frontier<'a> {
    number: usize,
    prompt: Prompt<'a>,
    /// Tokens that a sample may have.
    budget: usize,
    branches: Vec<Branch>,
    search: Option<Search>,
    /// Samples that have ended and were not handed out yet.
    ended: Vec<(usize, Generated)>,
    taken_up: Instant,
    /// Time until the prompt was read.
    prefill: Option<Duration>,
}

impl<'a> Frontier<'a> {
    fn new(number: usize, prompt: Prompt<'a>, budget: usize, sequence: Sequence) -> Self {
        let samples = prompt.choices.len();
        let branch = Branch {
            samples: (0..samples).collect(),
            text: Vec::new(),
            sequence,
            unread: prompt.ids.to_vec(),
            num_proposals: 0,
            trunk: Vec::new(),
        };
        let mut frontier = Self {
            number,
            prompt,
            budget,
            branches: Vec::new(),
            search: None,
            ended: Vec::new(),
            taken_up: Instant::now(),
            prefill: None,
        };
        let with_search = samples + usize::from(frontier.prompt.beam.is_some());
        if budget == 0 {
            let all: Vec<usize> = (0..with_search).collect();
            frontier.finish(&all, &[], false);
        } else if with_search > 0 {
            frontier.branches.push(branch);
        }
        frontier
    }

    fn is_over(&self) -> bool {
        self.branches.is_empty() && self.search.is_none()
    }

    /// Texts that are being written.
    fn num_open(&self) -> usize {
        self.branches.len() + self.search.as_ref().map_or(0, |search| search.open.len())
    }

    /// What the model reads next for each text, those of the search last.
    fn readings(&mut self) -> impl Iterator<Item = Reading<'_>> {
        let searched = self.search.iter_mut().flat_map(|search| &mut search.open);
        let own = self.branches.iter_mut().map(|branch| Reading {
            sequence: &mut branch.sequence,
            ids: &branch.unread,
            places: 1 + branch.num_proposals,
        });
        own.chain(searched.map(|one| Reading {
            sequence: &mut one.sequence,
            ids: &one.text[one.text.len() - 1..],
            places: 1,
        }))
    }

    /// Lets the search take what reading gave at each of its texts.
    fn search(&mut self, logits: &[&[f32]]) -> Result<()> {
        let Some(search) = &mut self.search else {
            return Ok(());
        };
        if let Some(text) = search.grow(logits)? {
            self.search = None;
            self.ended.push((self.prompt.choices.len(), text));
        }
        Ok(())
    }

    /// Begins the search behind the prompt that a branch has read.
    fn begin_search(&mut self, root: &Branch, logits_v: &[f32], end_token: u32) -> Result<()> {
        let Some(beam) = self.prompt.beam.filter(|_| root.text.is_empty()) else {
            return Ok(());
        };
        let sequence = root.sequence.fork(root.sequence.len())?;
        self.search = Some(Search::new(beam, end_token, self.budget, sequence));
        self.search(&[logits_v])
    }

    /// Takes what reading gave at a branch: every sample picks its token at each place, up to the first where that is
    /// not the proposal. Samples that picked alike go on together; ended ones leave.
    fn grow(
        &mut self,
        mut branch: Branch,
        found: &Found<'_>,
        end_token: u32,
        tally: &mut Tally,
    ) -> Result<()> {
        let fresh = branch.unread.len() - branch.num_proposals;
        let start = branch.sequence.len() - branch.unread.len();
        let mut here = std::mem::take(&mut branch.samples);
        let mut text = std::mem::take(&mut branch.text);
        let mut children = Vec::new();
        for (place, logits_v) in found.places().enumerate() {
            let read = fresh + place;
            let mut picked = self.pick(&here, logits_v, start + read - 1)?;
            if let Some(samples) = picked.remove(&end_token) {
                self.finish(&samples, &text, true);
            }
            let proposal = branch.unread.get(read);
            here = proposal
                .and_then(|token| picked.remove(token))
                .unwrap_or_default();
            for (token, samples) in picked {
                let text = [text.as_slice(), &[token]].concat();
                if text.len() == self.budget {
                    self.finish(&samples, &text, false);
                } else {
                    children.push((read, text, samples));
                }
            }
            if here.is_empty() {
                break;
            }
            tally.accepted[place] += 1;
            text.extend(proposal);
        }
        self.part(branch.sequence, branch.trunk, children, found)
    }

    /// Gives each child its cache; the last takes that of its parent.
    fn part(
        &mut self,
        mut sequence: Sequence,
        unasked: Vec<f32>,
        children: Vec<(usize, Vec<u32>, Vec<usize>)>,
        found: &Found<'_>,
    ) -> Result<()> {
        let start = sequence.len() - found.num_read;
        let Some(last) = children.len().checked_sub(1) else {
            return Ok(());
        };
        let fork = |(read, ..): &(usize, _, _)| Ok((sequence.fork(start + read)?, unasked.clone()));
        let mut forks: Vec<(Sequence, Vec<f32>)> =
            children[..last].iter().map(fork).collect::<Result<_>>()?;
        sequence.truncate(start + children[last].0);
        forks.push((sequence, unasked));
        for ((read, text, samples), (sequence, mut trunk)) in children.into_iter().zip(forks) {
            trunk.extend_from_slice(found.trunk_of(read));
            self.branches.push(Branch {
                samples,
                unread: text.last().copied().into_iter().collect(),
                text,
                sequence,
                num_proposals: 0,
                trunk,
            });
        }
        Ok(())
    }

    /// The samples by the token that each picks to follow `position`.
    fn pick(
        &self,
        samples: &[usize],
        logits_v: &[f32],
        position: usize,
    ) -> Result<BTreeMap<u32, Vec<usize>>> {
        let mut picked: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &sample in samples {
            let token = self.prompt.choices[sample]
                .pick(logits_v, position)
                .ok_or(Error::NotFinite { position })?;
            picked.entry(token).or_default().push(sample);
        }
        Ok(picked)
    }

    fn finish(&mut self, samples: &[usize], text: &[u32], finished: bool) {
        self.ended.extend(samples.iter().map(|&sample| {
            let ids = text.to_vec();
            (sample, Generated { ids, finished })
        }));
    }
}

/// What reading one branch gave.
struct Found<'a> {
    num_read: usize,
    /// `[num_read, d]`, or nothing where no head will ask.
    trunk: &'a [f32],
    /// `[places, v]`
    logits: &'a [f32],
    dim: usize,
    vocab_size: usize,
}

impl Found<'_> {
    /// The trunk's output at the first `read` ids.
    fn trunk_of(&self, read: usize) -> &[f32] {
        &self.trunk[..self.trunk.len().min(read * self.dim)]
    }

    fn places(&self) -> impl Iterator<Item = &[f32]> {
        self.logits.chunks_exact(self.vocab_size)
    }
}

impl Generator {
    /// A generator that ends a text at `end_token` or after `max_new_tokens`.
    pub fn new(model: InferenceModel, end_token: u32, max_new_tokens: usize) -> Self {
        Self {
            model,
            end_token,
            max_new_tokens,
        }
    }

    /// Whether every thread may generate for itself; on a device one serves all.
    pub fn serves_every_thread(&self) -> bool {
        self.model.reads_on_host()
    }

    /// Reads a token and forgets it: the first text of a thread does not pay for memory that nobody has touched yet.
    /// What fails here fails again, with the number of its prompt, when a text is generated.
    pub fn warm_up(&self) {
        let Ok(mut sequence) = self.model.empty_sequence() else {
            return;
        };
        let reading = Reading {
            sequence: &mut sequence,
            ids: &[0],
            places: 1,
        };
        let _ = self.model.read(&mut [reading]);
    }

    /// Generates every sample of a prompt, in the order of its choices, that of the beam search last.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] when not a single token fits behind the prompt, [`Error::NotFinite`] when the
    /// model gives no number to choose by.
    pub fn generate(&self, prompt: &Prompt<'_>) -> Result<Vec<Generated>> {
        let mut queue = Some(prompt.clone());
        let with_search = prompt.choices.len() + usize::from(prompt.beam.is_some());
        let mut texts = vec![None; with_search];
        self.generate_all(
            1,
            || queue.take().map(|prompt| (0, prompt)),
            |ended| {
                texts[ended.sample] = Some(ended.text);
                ControlFlow::Continue(())
            },
        )
        .map_err(|failed| failed.error)?;
        Ok(texts.into_iter().flatten().collect())
    }

    /// Generates every sample of the prompts that `next` gives with a number each, and hands each text to `done` as it
    /// ends, before the next forward. A new prompt is taken up whenever fewer than `batch` texts are
    /// open. Ends when `next` gives none, or when `done` breaks off.
    ///
    /// # Errors
    /// As [`Self::generate`], with the number of the prompt.
    pub fn generate_all<'a>(
        &self,
        batch: usize,
        mut next: impl FnMut() -> Option<(usize, Prompt<'a>)>,
        mut done: impl FnMut(Ended) -> ControlFlow<()>,
    ) -> std::result::Result<Tally, PromptError> {
        let mut tally = Tally::of(self.model.num_proposing());
        let mut open: Vec<Frontier<'_>> = Vec::new();
        loop {
            while open.iter().map(Frontier::num_open).sum::<usize>() < batch {
                let Some((number, prompt)) = next() else {
                    break;
                };
                open.push(self.admit(number, prompt)?);
            }
            if open.is_empty() {
                return Ok(tally);
            }
            // After others were taken up: a text that is alone for a moment only would pay for the heads and gain nothing.
            if open.iter().map(Frontier::num_open).sum::<usize>() <= MAX_SPECULATED {
                self.propose(&mut open)?;
            }
            self.advance(&mut open, &mut tally)?;
            for frontier in &mut open {
                let whole = frontier.taken_up.elapsed();
                let prefill = *frontier.prefill.get_or_insert(whole);
                for (sample, text) in frontier.ended.drain(..) {
                    let ended = Ended {
                        prompt: frontier.number,
                        sample,
                        text,
                        timing: Timing { prefill, whole },
                    };
                    if done(ended).is_break() {
                        return Ok(tally);
                    }
                }
            }
            open.retain(|one| !one.is_over());
        }
    }

    fn admit<'a>(
        &self,
        number: usize,
        prompt: Prompt<'a>,
    ) -> std::result::Result<Frontier<'a>, PromptError> {
        let fresh = || Ok((self.budget(prompt.ids.len())?, self.model.empty_sequence()?));
        let (budget, sequence) = fresh().map_err(|error| PromptError { number, error })?;
        Ok(Frontier::new(number, prompt, budget, sequence))
    }

    fn budget(&self, prompt_tokens: usize) -> Result<usize> {
        if prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let room = self.model.max_tokens().saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(Error::PromptTooLong {
                prompt_tokens,
                max_tokens: self.model.max_tokens(),
            });
        }
        Ok(room.min(self.max_new_tokens))
    }

    /// One forward over every open branch, and what its tokens lead to.
    fn advance(
        &self,
        open: &mut [Frontier<'_>],
        tally: &mut Tally,
    ) -> std::result::Result<(), PromptError> {
        let (dim, vocab_size) = (self.model.dim(), self.model.vocab_size());
        let proposing = self.model.num_proposing() > 0;
        let number = open.first().map_or(0, |one| one.number);
        let mut readings: Vec<Reading<'_>> = open.iter_mut().flat_map(Frontier::readings).collect();
        let read = self
            .model
            .read(&mut readings)
            .map_err(|error| PromptError { number, error })?;
        let (mut trunk, mut logits) = (read.trunk.as_slice(), read.logits.as_slice());
        for frontier in open.iter_mut() {
            // Before the branches are taken, of which the first may begin a search.
            let num_searched = frontier.num_open() - frontier.branches.len();
            for branch in std::mem::take(&mut frontier.branches) {
                let num_kept = if proposing { branch.unread.len() } else { 0 };
                let found = Found {
                    num_read: branch.unread.len(),
                    trunk: trunk
                        .split_off(..num_kept * dim)
                        .expect("a row of the trunk for every id"),
                    logits: logits
                        .split_off(..(1 + branch.num_proposals) * vocab_size)
                        .expect("logits for every place"),
                    dim,
                    vocab_size,
                };
                count(&branch, tally);
                let number = frontier.number;
                let first = &found.logits[..vocab_size];
                frontier
                    .begin_search(&branch, first, self.end_token)
                    .and_then(|()| frontier.grow(branch, &found, self.end_token, tally))
                    .map_err(|error| PromptError { number, error })?;
            }
            if num_searched > 0 {
                trunk = trunk.get(num_searched * dim..).unwrap_or_default();
                let own = logits
                    .split_off(..num_searched * vocab_size)
                    .expect("logits for every text of the search");
                let own: Vec<&[f32]> = own.chunks_exact(vocab_size).collect();
                let number = frontier.number;
                frontier
                    .search(&own)
                    .map_err(|error| PromptError { number, error })?;
            }
        }
        Ok(())
    }

    /// Puts what the other heads propose behind the last token of every branch where that may save a forward.
    fn propose(&self, open: &mut [Frontier<'_>]) -> std::result::Result<(), PromptError> {
        let number = open.first().map_or(0, |one| one.number);
        let num_proposing = self.model.num_proposing();
        let mut asked: Vec<(&mut Branch, &[Choice], usize)> = open
            .iter_mut()
            .flat_map(|one| {
                let (choices, budget) = (one.prompt.choices.as_slice(), one.budget);
                one.branches.iter_mut().map(move |branch| {
                    let most = branch.num_askable(budget, num_proposing);
                    (branch, choices, most)
                })
            })
            .filter(|(.., most)| *most > 0)
            .collect();
        let mut questions: Vec<Question<'_>> = asked
            .iter_mut()
            .map(|(branch, ..)| {
                let Branch {
                    sequence, trunk, ..
                } = &mut **branch;
                Question { sequence, trunk }
            })
            .collect();
        if questions.is_empty() {
            return Ok(());
        }
        let logits = self
            .model
            .propose(&mut questions)
            .map_err(|error| PromptError { number, error })?;
        let logits: Vec<&[f32]> = logits.chunks_exact(self.model.vocab_size()).collect();
        let num_asked = asked.len();
        for (index, (branch, choices, most)) in asked.into_iter().enumerate() {
            // As the first sample would pick, had it this head's logits: the same random number falls on the same
            // token where both heads agree.
            let choice = &choices[branch.samples[0]];
            let proposals = (0..most).map_while(|head| {
                let position = branch.sequence.len() + head;
                choice.pick(logits[head * num_asked + index], position)
            });
            branch.unread.extend(proposals);
            branch.trunk.clear();
            branch.num_proposals = branch.unread.len() - 1;
        }
        Ok(())
    }
}

fn count(branch: &Branch, tally: &mut Tally) {
    tally.forwards += u64::from(branch.num_proposals > 0);
    for proposed in &mut tally.proposed[..branch.num_proposals] {
        *proposed += 1;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use wmtp_model::{Horizon, MtpModel, ParamStore, Params, RowSetup, loss};

    use super::*;
    use crate::sampling::{DrawKey, Sampling};

    fn tiny() -> (Params, ParamStore) {
        let params = Params {
            dim: 32,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: 2,
            vocab_size: 40,
            multiple_of: 8,
            ffn_dim_multiplier: 1.0,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            n_future_tokens: 2,
        };
        let store = ParamStore::init(&params, 7, DType::F32, &Device::Cpu).expect("tiny model");
        (params, store)
    }

    fn generator(params: &Params, store: &ParamStore, max_new_tokens: usize) -> Generator {
        let model =
            InferenceModel::new(params, store, 64, &RowSetup::HOST).expect("complete store");
        // No token of the vocabulary ends the text, so that lengths are known.
        Generator::new(model, u32::MAX, max_new_tokens)
    }

    /// Greedy decoding by the training model, the whole sequence again for every token.
    fn greedy_without_cache(
        params: &Params,
        store: &ParamStore,
        prompt: &[u32],
        tokens: usize,
    ) -> Vec<u32> {
        let model = MtpModel::frozen(params, store).expect("complete store");
        let mut ids = prompt.to_vec();
        for _ in 0..tokens {
            let ids_bs = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu).expect("ids");
            let trunk = model.trunk(&ids_bs).expect("trunk");
            let hidden = model.head_hidden(Horizon::NEXT, &trunk).expect("head");
            let logits = model
                .logits(&hidden)
                .expect("logits")
                .to_vec3::<f32>()
                .expect("f32");
            let last = logits[0].last().expect("a position");
            ids.push(Choice::Greedy.pick(last, 0).expect("finite"));
        }
        ids.split_off(prompt.len())
    }

    #[test]
    fn the_cache_gives_the_tokens_of_the_training_model() {
        let (params, store) = tiny();
        // The second prompt fills more than one panel of keys, and takes several groups of rows.
        let long: Vec<u32> = (0..70).map(|i| i * 7 % 40).collect();
        for prompt in [&[1, 5, 9, 13, 2], long.as_slice()] {
            let model =
                InferenceModel::new(&params, &store, 128, &RowSetup::HOST).expect("complete store");
            let got = Generator::new(model, u32::MAX, 20)
                .generate(&Prompt {
                    ids: prompt,
                    choices: vec![Choice::Greedy],
                    beam: None,
                })
                .expect("generation");
            assert_eq!(
                got[0].ids,
                greedy_without_cache(&params, &store, prompt, 20)
            );
            assert!(!got[0].finished);
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_its_neighbours() {
        let (params, store) = tiny();
        let generator = generator(&params, &store, 12);
        let draw = |sample| {
            Choice::Draw(
                Sampling {
                    temperature: 0.8,
                    top_k: None,
                    top_p: 0.95,
                },
                DrawKey::new(42, "p", sample),
            )
        };
        let prompt = [1, 3, 3, 7];
        let together = generator
            .generate(&Prompt {
                ids: &prompt,
                choices: (0..5).map(draw).collect(),
                beam: None,
            })
            .expect("generation");
        for sample in 0..5 {
            let alone = generator
                .generate(&Prompt {
                    ids: &prompt,
                    choices: vec![draw(sample)],
                    beam: None,
                })
                .expect("generation");
            assert_eq!(alone[0], together[sample as usize]);
        }
        assert!(
            together.iter().any(|one| one != &together[0]),
            "samples differ"
        );
    }

    #[test]
    fn ended_samples_leave_and_the_others_go_on_unchanged() {
        let (params, store) = tiny();
        let prompt = [1, 3, 3, 7];
        let draw = |sample| {
            Choice::Draw(
                Sampling {
                    temperature: 1.5,
                    top_k: None,
                    top_p: 1.0,
                },
                DrawKey::new(1, "p", sample),
            )
        };
        let choices: Vec<Choice> = (0..8).map(draw).collect();
        let open_ended = generator(&params, &store, 16)
            .generate(&Prompt {
                ids: &prompt,
                choices: choices.clone(),
                beam: None,
            })
            .expect("generation");
        // End at a token that some sample draws early on.
        let end = open_ended[0].ids[3];
        let model =
            InferenceModel::new(&params, &store, 64, &RowSetup::HOST).expect("complete store");
        let ended = Generator::new(model, end, 16)
            .generate(&Prompt {
                ids: &prompt,
                choices,
                beam: None,
            })
            .expect("generation");
        for (free, cut) in open_ended.iter().zip(&ended) {
            let expected: Vec<u32> = free
                .ids
                .iter()
                .copied()
                .take_while(|&id| id != end)
                .collect();
            assert_eq!(cut.ids, expected);
            assert_eq!(cut.finished, free.ids.contains(&end));
        }
    }

    /// A text that a small model learns by heart, with two places where it may go on in two ways.
    const LEARNT: [u32; 12] = [1, 5, 9, 13, 2, 7, 1, 5, 8, 13, 2, 3];

    /// A model that was trained on [`LEARNT`] over and over: all three heads know most of what comes.
    fn trained() -> (Params, ParamStore) {
        let (mut params, _) = tiny();
        (params.n_layers, params.n_future_tokens) = (5, 3);
        let store = ParamStore::init(&params, 7, DType::F32, &Device::Cpu).expect("model");
        let ids: Vec<u32> = LEARNT.iter().copied().cycle().take(48).collect();
        let ids_bs = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu).expect("ids");
        let steps = 200;
        let mut loss = f32::INFINITY;
        for step in 0..steps {
            let rate = 0.01 * (1.0 - f64::from(step) / f64::from(steps));
            loss = descend(&params, &store, &ids, &ids_bs, rate).expect("a step");
        }
        assert!(loss < 1.0, "three heads still cost {loss} nats together");
        (params, store)
    }

    /// One step down the gradient of all heads' cross-entropy, of length `rate` in each element on average; returns
    /// their sum before it.
    fn descend(
        params: &Params,
        store: &ParamStore,
        ids: &[u32],
        ids_bs: &Tensor,
        rate: f64,
    ) -> wmtp_model::Result<f32> {
        let model = MtpModel::new(params, store)?;
        let trunk = model.trunk(ids_bs)?;
        let mut total = Tensor::new(0f32, &Device::Cpu)?;
        for horizon in params.horizons() {
            let targets = &ids[horizon.get()..];
            let rows: Vec<u32> = (0..targets.len() as u32).collect();
            let hidden = model.head_hidden_at(horizon, &trunk, &rows)?;
            let weights = vec![1.0 / targets.len() as f64; targets.len()];
            let output = model.unembedding();
            let products = model.products();
            let head = loss::weighted_cross_entropy(&hidden, output, targets, &weights, products)?;
            total = (total + head.sum)?;
        }
        let gradients = total.backward()?;
        for (_, var) in store.iter() {
            if let Some(gradient) = gradients.get(var) {
                let size = f64::from(gradient.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt();
                var.set(&(var.as_tensor() - (gradient * (rate / size.max(1e-12)))?)?)?;
            }
        }
        Ok(total.to_scalar()?)
    }

    /// The texts of several prompts, and what the proposals were worth.
    fn texts(
        model: InferenceModel,
        end_token: u32,
        batch: usize,
        prompts: &[(&[u32], Vec<Choice>)],
    ) -> (Vec<Vec<Generated>>, Tally) {
        let generator = Generator::new(model, end_token, 24);
        let mut queue = prompts.iter().enumerate().map(|(number, (ids, choices))| {
            let choices = choices.clone();
            (
                number,
                Prompt {
                    ids,
                    choices,
                    beam: None,
                },
            )
        });
        let mut texts: Vec<BTreeMap<usize, Generated>> = vec![BTreeMap::new(); prompts.len()];
        let tally = generator
            .generate_all(
                batch,
                || queue.next(),
                |ended| {
                    let twice = texts[ended.prompt].insert(ended.sample, ended.text);
                    assert_eq!(twice, None, "a text ends once");
                    ControlFlow::Continue(())
                },
            )
            .expect("generation");
        let in_order = |texts: BTreeMap<_, _>| texts.into_values().collect();
        (texts.into_iter().map(in_order).collect(), tally)
    }

    fn draws(samples: u32, temperature: f64) -> Vec<Choice> {
        let sampling = Sampling {
            temperature,
            top_k: None,
            top_p: 1.0,
        };
        (0..samples)
            .map(|sample| Choice::Draw(sampling, DrawKey::new(3, "p", sample)))
            .collect()
    }

    #[test]
    fn proposals_save_forwards_and_change_no_text() {
        let (params, store) = trained();
        let plain =
            || InferenceModel::new(&params, &store, 64, &RowSetup::HOST).expect("complete store");
        let speculative =
            || InferenceModel::speculative(&params, &store, 64, &RowSetup::HOST).expect("complete");
        let long: Vec<u32> = LEARNT.iter().copied().cycle().take(40).collect();
        let mut protocols = vec![
            ("greedy", vec![Choice::Greedy]),
            ("cool", draws(3, 0.4)),
            ("hot", draws(3, 3.0)),
        ];
        // Alone, a text has proposals throughout, some of which fall.
        protocols.extend(draws(6, 3.0).into_iter().map(|one| ("hot", vec![one])));
        for (name, choices) in protocols {
            // The second prompt ends at the model's limit, not at that of the generator.
            let prompts = [(&LEARNT[..5], choices.clone()), (long.as_slice(), choices)];
            for end_token in [u32::MAX, 7] {
                for batch in [1, 6] {
                    let (expected, nothing) = texts(plain(), end_token, 1, &prompts);
                    let (got, tally) = texts(speculative(), end_token, batch, &prompts);
                    assert_eq!(got, expected, "{name}, batch {batch}, end {end_token}");
                    assert_eq!(nothing, Tally::of(0));
                    if end_token == u32::MAX && name == "greedy" && batch == 1 {
                        let speed = tally.tokens_per_forward().expect("forwards");
                        assert!(speed > 1.5, "{name}, batch {batch}: {tally:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn heads_are_not_asked_where_the_next_prompt_takes_the_place_of_a_text() {
        let (params, store) = trained();
        let model =
            InferenceModel::speculative(&params, &store, 64, &RowSetup::HOST).expect("complete");
        let long: Vec<u32> = LEARNT.iter().copied().cycle().take(54).collect();
        // 24, 24 and 14 tokens; the fourth takes the place of the third and ends with the others.
        let prompts = [5, 6, 50, 54].map(|len| (&long[..len], vec![Choice::Greedy]));
        let (texts, tally) = texts(model, u32::MAX, 3, &prompts);
        let lengths: Vec<usize> = texts.iter().flatten().map(|text| text.ids.len()).collect();
        assert_eq!(lengths, [24, 24, 14, 10]);
        assert_eq!(tally.forwards, 0, "{tally:?}");
    }

    #[test]
    fn a_text_does_not_depend_on_what_is_generated_beside_it() {
        let (params, store) = tiny();
        let model =
            || InferenceModel::new(&params, &store, 64, &RowSetup::HOST).expect("complete store");
        let prompts: Vec<(&[u32], Vec<Choice>)> = (1..9)
            .map(|len| {
                (
                    &LEARNT[..len],
                    [vec![Choice::Greedy], draws(3, 1.2)].concat(),
                )
            })
            .collect();
        let (alone, _) = texts(model(), 7, 1, &prompts);
        let (together, _) = texts(model(), 7, 12, &prompts);
        assert_eq!(alone, together);
        let mut lengths: Vec<usize> = alone.iter().flatten().map(|text| text.ids.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        assert!(
            lengths.len() > 2,
            "texts end at different places: {lengths:?}"
        );
    }

    /// The text that a beam search finds, with a greedy and a drawn one beside it.
    fn found(model: InferenceModel, end_token: u32, batch: usize, beam: Beam) -> Vec<Generated> {
        let generator = Generator::new(model, end_token, 12);
        let mut queue = (1..8).map(|len| {
            let prompt = Prompt {
                ids: &LEARNT[..len],
                choices: [vec![Choice::Greedy], draws(1, 1.2)].concat(),
                beam: Some(beam),
            };
            (len - 1, prompt)
        });
        let mut texts = vec![None; 7];
        generator
            .generate_all(
                batch,
                || queue.next(),
                |ended| {
                    if ended.sample == 2 {
                        texts[ended.prompt] = Some(ended.text);
                    }
                    ControlFlow::Continue(())
                },
            )
            .expect("generation");
        texts.into_iter().flatten().collect()
    }

    #[test]
    fn a_search_finds_the_same_whatever_is_generated_beside_it() {
        let (params, store) = trained();
        let plain =
            || InferenceModel::new(&params, &store, 64, &RowSetup::HOST).expect("complete store");
        let beam = |width| Beam {
            width,
            length_penalty: 1.0,
        };
        for end_token in [7, u32::MAX] {
            let alone = found(plain(), end_token, 1, beam(3));
            assert_eq!(alone.len(), 7);
            assert_eq!(found(plain(), end_token, 30, beam(3)), alone);
            let speculative = InferenceModel::speculative(&params, &store, 64, &RowSetup::HOST)
                .expect("complete");
            assert_eq!(found(speculative, end_token, 1, beam(3)), alone);
            // One text that grows is the greedy one.
            let prompts: Vec<(&[u32], Vec<Choice>)> = (1..8)
                .map(|len| (&LEARNT[..len], vec![Choice::Greedy]))
                .collect();
            let generator = Generator::new(plain(), end_token, 12);
            for (one, (ids, choices)) in found(plain(), end_token, 4, beam(1)).iter().zip(prompts) {
                let greedy = generator.generate(&Prompt {
                    ids,
                    choices,
                    beam: None,
                });
                assert_eq!(greedy.expect("generation"), std::slice::from_ref(one));
            }
        }
    }

    #[test]
    fn a_search_as_wide_as_the_vocabulary_finds_the_best_of_all_texts() {
        let (params, store) = tiny();
        let (prompt, end_token) = ([1, 3, 3, 7], 5);
        let model = MtpModel::frozen(&params, &store).expect("complete store");
        let log_probs = |ids: &[u32]| -> Vec<f64> {
            let ids_bs = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).expect("ids");
            let trunk = model.trunk(&ids_bs).expect("trunk");
            let hidden = model.head_hidden(Horizon::NEXT, &trunk).expect("head");
            let logits = model.logits(&hidden).expect("logits");
            let logits = logits.to_vec3::<f32>().expect("f32");
            let last = logits[0].last().expect("a position");
            let mass: f64 = last.iter().map(|logit| f64::from(*logit).exp()).sum();
            let normed = |logit: &f32| f64::from(*logit) - mass.ln();
            last.iter().map(normed).collect()
        };
        // Every text of up to two tokens, by the mean of its log-probabilities.
        let first = log_probs(&prompt);
        let mut best = (first[end_token as usize], vec![]);
        for (a, log_prob) in (0..).zip(&first).filter(|(a, _)| *a != end_token) {
            let second = log_probs(&[prompt.as_slice(), &[a]].concat());
            for (b, more) in (0..).zip(second) {
                let text: Vec<u32> = [a, b].into_iter().filter(|id| *id != end_token).collect();
                let mean = f64::midpoint(*log_prob, more);
                if mean > best.0 {
                    best = (mean, text);
                }
            }
        }
        let inference =
            InferenceModel::new(&params, &store, 64, &RowSetup::HOST).expect("complete store");
        let found = Generator::new(inference, end_token, 2)
            .generate(&Prompt {
                ids: &prompt,
                choices: Vec::new(),
                beam: Some(Beam {
                    width: 40,
                    length_penalty: 1.0,
                }),
            })
            .expect("generation");
        assert_eq!(found[0].ids, best.1);
    }

    #[test]
    fn what_fails_names_its_prompt() {
        let (params, store) = tiny();
        let generator = generator(&params, &store, 4);
        let prompts: [&[u32]; 2] = [&[1, 2], &[1; 64]];
        let mut queue = prompts.iter().enumerate().map(|(number, ids)| {
            let choices = vec![Choice::Greedy];
            (
                number + 10,
                Prompt {
                    ids,
                    choices,
                    beam: None,
                },
            )
        });
        let failed = generator
            .generate_all(4, || queue.next(), |_| ControlFlow::Continue(()))
            .expect_err("the second prompt is too long");
        assert_eq!(failed.number, 11);
    }

    #[test]
    fn a_prompt_without_room_is_refused() {
        let (params, store) = tiny();
        let generator = generator(&params, &store, 4);
        let long = [1; 64];
        let error = generator.generate(&Prompt {
            ids: &long,
            choices: vec![Choice::Greedy],
            beam: None,
        });
        assert!(matches!(
            error,
            Err(Error::PromptTooLong {
                prompt_tokens: 64,
                max_tokens: 64
            })
        ));
        let error = generator.generate(&Prompt {
            ids: &[],
            choices: vec![Choice::Greedy],
            beam: None,
        });
        assert!(matches!(error, Err(Error::EmptyPrompt)));
    }
}
