//! Generation: one prefill a prompt, then all its samples token by token, equal beginnings once.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::infer::InferenceModel;
use crate::sampling::Choice;

/// A prompt with the samples that are wanted of it.
#[derive(Debug, Clone)]
pub struct Prompt<'a> {
    /// Token ids, begin token included.
    pub ids: &'a [u32],
    /// One entry a sample.
    pub choices: Vec<Choice>,
}

/// One generated continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Ids after the prompt, end token left out.
    pub ids: Vec<u32>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

/// Generates continuations with one model.
#[derive(Debug, Clone)]
pub struct Generator {
    model: InferenceModel,
    end_token: u32,
    max_new_tokens: usize,
}

/// A sample that is still being written.
struct Open {
    sample: usize,
    /// Index of the text that it has so far.
    branch: usize,
}

/// The samples of one prompt on their way: those that wrote the same so far share one row of the model's batch.
struct Frontier {
    open: Vec<Open>,
    /// Distinct texts, ids after the prompt.
    branches: Vec<Vec<u32>>,
    done: Vec<Option<Generated>>,
}

impl Frontier {
    /// Every sample starts from the same, empty text.
    fn new(samples: usize) -> Self {
        Self {
            open: (0..samples)
                .map(|sample| Open { sample, branch: 0 })
                .collect(),
            branches: vec![Vec::new()],
            done: vec![None; samples],
        }
    }

    /// Appends the token picked for each open sample; ended samples leave. Returns, for every branch that goes on, the
    /// branch that it grew from.
    fn grow(&mut self, picked: &[u32], end_token: u32) -> Vec<u32> {
        let mut grown: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        let (mut branches, mut parents, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (open, &token) in self.open.iter().zip(picked) {
            let text = &self.branches[open.branch];
            if token == end_token {
                self.done[open.sample] = Some(Generated {
                    ids: text.clone(),
                    finished: true,
                });
                continue;
            }
            let branch = *grown.entry((open.branch, token)).or_insert_with(|| {
                branches.push([text.as_slice(), &[token]].concat());
                parents.push(open.branch as u32);
                branches.len() - 1
            });
            left.push(Open {
                sample: open.sample,
                branch,
            });
        }
        (self.open, self.branches) = (left, branches);
        parents
    }

    /// Every sample in order; those still open were cut off.
    fn finish(mut self) -> Vec<Generated> {
        for open in self.open {
            self.done[open.sample] = Some(Generated {
                ids: self.branches[open.branch].clone(),
                finished: false,
            });
        }
        self.done.into_iter().flatten().collect()
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

    /// Generates every sample of a prompt, in the order of its choices.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] when not a single token fits behind the prompt, [`Error::NotFinite`] when the
    /// model gives no number to choose by.
    pub fn generate(&self, prompt: &Prompt) -> Result<Vec<Generated>> {
        let budget = self.budget(prompt.ids.len())?;
        let capacity = prompt.ids.len() + budget;
        let device = self.model.device();
        let mut cache = self.model.empty_cache(capacity);
        let ids_1s = Tensor::from_slice(prompt.ids, (1, prompt.ids.len()), device)?;
        let mut logits_bv = self.model.forward(&ids_1s, &mut cache)?;
        let mut frontier = Frontier::new(prompt.choices.len());
        for step in 0..budget {
            let position = prompt.ids.len() + step - 1;
            let picked = pick_tokens(&logits_bv, &frontier.open, &prompt.choices, position)?;
            let parents = frontier.grow(&picked, self.end_token);
            if parents.is_empty() || step + 1 == budget {
                break;
            }
            if !parents.iter().copied().eq(0..logits_bv.dim(0)? as u32) {
                cache = cache.select(&parents, capacity, device)?;
            }
            let last: Vec<u32> = frontier
                .branches
                .iter()
                .filter_map(|text| text.last().copied())
                .collect();
            let ids_b1 = Tensor::from_vec(last, (parents.len(), 1), device)?;
            logits_bv = self.model.forward(&ids_b1, &mut cache)?;
        }
        Ok(frontier.finish())
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
}

fn pick_tokens(
    logits_bv: &Tensor,
    open: &[Open],
    choices: &[Choice],
    position: usize,
) -> Result<Vec<u32>> {
    let logits_bv = logits_bv.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    open.iter()
        .map(|row| {
            choices[row.sample]
                .pick(&logits_bv[row.branch], position)
                .ok_or(Error::NotFinite { position })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use wmtp_model::{Horizon, MtpModel, ParamStore, Params};

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
        let model = InferenceModel::new(params, store, 64).expect("complete store");
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
            let hidden = model
                .head_hidden(Horizon::new(1).expect("1 is a horizon"), &trunk)
                .expect("head");
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
        let prompt = [1, 5, 9, 13, 2];
        let got = generator(&params, &store, 20)
            .generate(&Prompt {
                ids: &prompt,
                choices: vec![Choice::Greedy],
            })
            .expect("generation");
        assert_eq!(
            got[0].ids,
            greedy_without_cache(&params, &store, &prompt, 20)
        );
        assert!(!got[0].finished);
    }

    #[test]
    fn a_sample_does_not_depend_on_its_neighbours() {
        let (params, store) = tiny();
        let generator = generator(&params, &store, 12);
        let draw = |sample| {
            Choice::Draw(
                Sampling {
                    temperature: 0.8,
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
            })
            .expect("generation");
        for sample in 0..5 {
            let alone = generator
                .generate(&Prompt {
                    ids: &prompt,
                    choices: vec![draw(sample)],
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
            })
            .expect("generation");
        // End at a token that some sample draws early on.
        let end = open_ended[0].ids[3];
        let model = InferenceModel::new(&params, &store, 64).expect("complete store");
        let ended = Generator::new(model, end, 16)
            .generate(&Prompt {
                ids: &prompt,
                choices,
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

    #[test]
    fn samples_share_a_branch_until_they_part() {
        const END: u32 = 9;
        let mut frontier = Frontier::new(4);
        assert_eq!(frontier.grow(&[5, 5, 7, 5], END), [0, 0]);
        assert_eq!(frontier.branches, [vec![5], vec![7]]);
        // The first sample ends, the second and fourth part, the third goes on.
        assert_eq!(frontier.grow(&[END, 1, 2, 3], END), [0, 1, 0]);
        let texts: Vec<(Vec<u32>, bool)> = frontier
            .finish()
            .into_iter()
            .map(|text| (text.ids, text.finished))
            .collect();
        let expected = [
            (vec![5], true),
            (vec![5, 1], false),
            (vec![7, 2], false),
            (vec![5, 3], false),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_prompt_without_room_is_refused() {
        let (params, store) = tiny();
        let generator = generator(&params, &store, 4);
        let long = [1; 64];
        let error = generator.generate(&Prompt {
            ids: &long,
            choices: vec![Choice::Greedy],
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
        });
        assert!(matches!(error, Err(Error::EmptyPrompt)));
    }
}
