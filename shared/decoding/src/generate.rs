//! Generation: one prefill a prompt, then all its samples token by token.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::infer::{Cache, InferenceModel};
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

/// A sample that is still being written: its number and what it holds so far.
struct Open {
    sample: usize,
    ids: Vec<u32>,
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
        let mut done: Vec<Option<Generated>> = vec![None; prompt.choices.len()];
        let mut open: Vec<Open> = (0..prompt.choices.len())
            .map(|sample| Open {
                sample,
                ids: Vec::new(),
            })
            .collect();
        let capacity = prompt.ids.len() + budget;
        let (mut logits_bv, mut cache) = self.prefill(prompt.ids, open.len(), capacity)?;
        for step in 0..budget {
            let position = prompt.ids.len() + step - 1;
            let picked = pick_tokens(&logits_bv, &open, &prompt.choices, position)?;
            let going_on = self.settle(picked, &mut open, &mut done);
            if open.is_empty() || step + 1 == budget {
                break;
            }
            if going_on.len() < logits_bv.dim(0)? {
                cache = cache.select(&going_on, capacity, self.model.device())?;
            }
            let last: Vec<u32> = open
                .iter()
                .filter_map(|row| row.ids.last().copied())
                .collect();
            let ids_b1 = Tensor::from_vec(last, (open.len(), 1), self.model.device())?;
            logits_bv = self.model.forward(&ids_b1, &mut cache)?;
        }
        for row in open {
            done[row.sample] = Some(Generated {
                ids: row.ids,
                finished: false,
            });
        }
        Ok(done.into_iter().flatten().collect())
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

    /// Reads the prompt once and hands every sample its own copy of the cache.
    fn prefill(&self, ids: &[u32], rows: usize, capacity: usize) -> Result<(Tensor, Cache)> {
        let mut cache = self.model.empty_cache(capacity);
        let ids_1s = Tensor::from_slice(ids, (1, ids.len()), self.model.device())?;
        let logits_1v = self.model.forward(&ids_1s, &mut cache)?;
        let all = vec![0_u32; rows];
        let index = Tensor::new(all.as_slice(), self.model.device())?;
        Ok((
            logits_1v.index_select(&index, 0)?,
            cache.select(&all, capacity, self.model.device())?,
        ))
    }

    /// Appends the picked tokens; moves ended samples to `done` and returns the rows that go on.
    fn settle(
        &self,
        picked: Vec<u32>,
        open: &mut Vec<Open>,
        done: &mut [Option<Generated>],
    ) -> Vec<u32> {
        let mut rows = Vec::with_capacity(open.len());
        let mut left = Vec::with_capacity(open.len());
        for (row, (mut sample, token)) in open.drain(..).zip(picked).enumerate() {
            if token == self.end_token {
                done[sample.sample] = Some(Generated {
                    ids: sample.ids,
                    finished: true,
                });
            } else {
                sample.ids.push(token);
                rows.push(row as u32);
                left.push(sample);
            }
        }
        *open = left;
        rows
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
        .zip(&logits_bv)
        .map(|(row, logits_v)| {
            choices[row.sample]
                .pick(logits_v, position)
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
