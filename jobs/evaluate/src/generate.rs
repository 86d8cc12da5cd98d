//! Generation of all samples of all problems.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::json;
use wmtp_decoding::{
    Beam, Choice, DrawKey, Ended, Error, Generated, Generator, Prompt, PromptError, Sampling, Tally,
};
use wmtp_job_kit::{Exit, JobError, Run};
use wmtp_records::{Completion, Problem};
use wmtp_tokens::{Tokenizer, completion_text, encode_prompt};

use crate::extract;
use crate::saved::Saved;
use crate::texts::{Text, Texts};

/// Texts that one core writes on at once: enough that reading the weights costs little, few enough that their keys and
/// values stay in its cache.
pub(crate) const TEXTS_AT_ONCE: usize = 32;

/// How many samples are drawn, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    pub(crate) sampling: Sampling,
    /// Where the last sample is what a beam search finds.
    pub(crate) beam: Option<Beam>,
    pub(crate) num_samples: u32,
    pub(crate) seed: u64,
}

/// What was generated.
pub(crate) struct Generation {
    /// Of each problem in turn, the greedy text and then the drawn ones.
    pub(crate) texts: Vec<Text>,
    /// What proposals were worth, in this attempt.
    pub(crate) tally: Tally,
}

/// Generates, for each problem, the greedy text and `num_samples` drawn ones, or takes them from an earlier attempt.
///
/// Every core, or the device, works on several problems at once and takes the next when texts end; a text depends on the
/// problem and its sample number alone.
pub(crate) fn all(
    problems: &[&Problem],
    tokenizer: &Tokenizer,
    generator: &Generator,
    drawing: Drawing,
    run: &Run,
) -> Result<Generation, JobError> {
    let (mut saved, journal, mut texts) = Saved::open(run)?;
    let progress = run.progress(
        "generate",
        "samples",
        problems.len() as u64 * drawing.samples().count() as u64,
    );
    let num_found = texts.len();
    progress.set(num_found as u64);
    let open: Vec<Open<'_>> = problems
        .iter()
        .map(|problem| Open::new(problem, tokenizer, drawing, &texts))
        .filter(|open| !open.samples.is_empty())
        .collect();
    let tally = on_every_core(
        generator,
        |number| Some(open.get(number)?.prompt(drawing)),
        &run.stop_flag(),
        |failed| failure(&open, failed),
        |ended| {
            let text = open[ended.prompt].text(tokenizer, ended);
            journal.add(&text).map(|()| text)
        },
        |text| {
            saved.add(text.clone())?;
            run.count_tokens(text.num_tokens());
            texts.insert(text.key(), text);
            progress.inc(1);
            Ok(())
        },
    );
    let data = json!({"found": num_found, "generated": texts.len() - num_found});
    run.event("generated", &data);
    // What is finished is kept, however this ended.
    saved.save()?;
    let tally = tally?;
    if run.should_stop() {
        return Err(JobError::preempted());
    }
    let texts = in_order(problems, drawing, texts)?;
    Ok(Generation { texts, tally })
}

/// The texts of problems in turn, by sample number.
pub(crate) fn in_order(
    problems: &[&Problem],
    drawing: Drawing,
    mut texts: Texts,
) -> Result<Vec<Text>, JobError> {
    let keys = problems.iter().flat_map(|problem| {
        let id = &problem.problem_id;
        drawing.samples().map(move |sample| (id.clone(), sample))
    });
    keys.map(|key| {
        texts.remove(&key).ok_or_else(|| {
            let sample = key
                .1
                .map_or("greedy".to_owned(), |sample| sample.to_string());
            JobError::bad_input(format!("sample {sample} of problem {} is missing", key.0))
        })
    })
    .collect()
}

/// A problem that lacks texts.
struct Open<'a> {
    problem: &'a Problem,
    prompt_ids: Vec<u32>,
    /// The samples to generate.
    samples: Vec<Option<u32>>,
}

/// Threads that generate: all of the host's, or one for a device.
fn num_workers(generator: &Generator) -> usize {
    if generator.serves_every_thread() {
        rayon::current_num_threads()
    } else {
        1
    }
}

/// Generates for the prompts of all numbers from 0 to the first that has none. Hands each text to `ended` on the thread
/// that generated it, and what that makes of it to `taken` on this thread; `failure` says which prompt failed.
pub(crate) fn on_every_core<'a, T: Send>(
    generator: &Generator,
    prompt: impl Fn(usize) -> Option<Prompt<'a>> + Sync,
    stop: &AtomicBool,
    failure: impl Fn(PromptError) -> JobError,
    ended: impl Fn(&Ended) -> Result<T, JobError> + Sync,
    mut taken: impl FnMut(T) -> Result<(), JobError>,
) -> Result<Tally, JobError> {
    let waiting = AtomicUsize::new(0);
    let next = || {
        let number = waiting.fetch_add(1, Ordering::Relaxed);
        Some((number, prompt(number)?))
    };
    let ended = &ended;
    std::thread::scope(|scope| {
        let (sender, texts) = mpsc::channel();
        let workers: Vec<_> = (0..num_workers(generator))
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || {
                    generator.warm_up();
                    generator.generate_all(TEXTS_AT_ONCE, next, |one| {
                        let heard = sender.send(ended(&one)).is_ok();
                        if heard && !stop.load(Ordering::Relaxed) {
                            ControlFlow::Continue(())
                        } else {
                            ControlFlow::Break(())
                        }
                    })
                })
            })
            .collect();
        drop(sender);
        let all_taken = texts.iter().try_for_each(|text| taken(text?));
        // Workers break off when nobody listens.
        drop(texts);
        let mut tally = Tally::default();
        for worker in workers {
            let counted = worker
                .join()
                .map_err(|_| JobError::internal("a worker panicked"))?;
            tally.add(&counted.map_err(&failure)?);
        }
        all_taken.map(|()| tally)
    })
}

impl Drawing {
    /// The samples of a problem: the greedy one, then the drawn ones.
    fn samples(self) -> impl Iterator<Item = Option<u32>> {
        std::iter::once(None).chain((0..self.num_samples).map(Some))
    }

    fn is_searched(self, sample: Option<u32>) -> bool {
        self.beam.is_some() && sample.is_some_and(|sample| sample + 1 == self.num_samples)
    }

    /// At temperature 0 drawn samples are greedy too.
    fn choice(&self, problem: &Problem, sample: Option<u32>) -> Choice {
        match sample {
            Some(sample) if self.sampling.temperature > 0.0 => {
                let key = DrawKey::new(self.seed, &problem.problem_id, sample);
                Choice::Draw(self.sampling, key)
            }
            _ => Choice::Greedy,
        }
    }
}

impl<'a> Open<'a> {
    fn new(problem: &'a Problem, tokenizer: &Tokenizer, drawing: Drawing, texts: &Texts) -> Self {
        let is_missing =
            |sample: &Option<u32>| !texts.contains_key(&(problem.problem_id.clone(), *sample));
        Self {
            problem,
            prompt_ids: encode_prompt(tokenizer, &problem.prompt),
            samples: drawing.samples().filter(is_missing).collect(),
        }
    }

    fn prompt(&self, drawing: Drawing) -> Prompt<'_> {
        Prompt {
            ids: &self.prompt_ids,
            choices: self.choices(drawing),
            beam: self.beam(drawing),
        }
    }

    fn choices(&self, drawing: Drawing) -> Vec<Choice> {
        let samples = self.samples.iter().copied();
        samples
            .filter(|sample| !drawing.is_searched(*sample))
            .map(|sample| drawing.choice(self.problem, sample))
            .collect()
    }

    fn beam(&self, drawing: Drawing) -> Option<Beam> {
        let is_open = self
            .samples
            .iter()
            .any(|sample| drawing.is_searched(*sample));
        drawing.beam.filter(|_| is_open)
    }

    fn text(&self, tokenizer: &Tokenizer, ended: &Ended) -> Text {
        let completion = self.completion(tokenizer, self.samples[ended.sample], &ended.text);
        Text::new(
            completion,
            ended.timing,
            ended.timing.per_token(&ended.text),
        )
    }

    fn completion(
        &self,
        tokenizer: &Tokenizer,
        sample: Option<u32>,
        generated: &Generated,
    ) -> Completion {
        // The whole sequence is decoded, never the tail alone: a tokenizer may eat the tail's first blank.
        let all_ids = [self.prompt_ids.as_slice(), &generated.ids].concat();
        let raw = completion_text(tokenizer, &self.prompt_ids, &all_ids);
        Completion {
            problem_id: self.problem.problem_id.clone(),
            sample,
            program: extract::program(&raw),
            raw,
            num_tokens: Some(generated.ids.len() as u32),
            finished: Some(generated.finished),
        }
    }
}

fn failure(open: &[Open<'_>], failed: PromptError) -> JobError {
    let is_too_long = matches!(failed.error, Error::PromptTooLong { .. });
    let error = error(failed.error);
    let error = error.context(format!(
        "problem {}",
        open[failed.number].problem.problem_id
    ));
    if is_too_long {
        error.hint("raise data.max_length of the recipe")
    } else {
        error
    }
}

/// What a failed generation means; what its model met, the training says.
pub(crate) fn error(error: Error) -> JobError {
    match error {
        Error::NotFinite { .. } => JobError::numeric(error),
        Error::PromptTooLong { .. } | Error::EmptyPrompt => JobError::bad_input(error),
        Error::Model(error) => model_error(error),
    }
}

/// A model's error as it ends a training, with what helps here.
pub(crate) fn model_error(error: impl Into<wmtp_training::Error>) -> JobError {
    let error: wmtp_training::Error = error.into();
    let error = JobError::from(error);
    if error.exit() == Exit::NoRoom {
        error.hint("compute on a device with more memory, or with --device cpu; texts that are there are kept")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use wmtp_model::{Params, Place};

    use super::*;

    #[test]
    fn a_models_errors_end_as_in_training() {
        let model = |error: wmtp_model::Error| super::error(Error::Model(error)).exit();
        let full = wmtp_training::Shortage::Allocator("out of memory".to_owned());
        let full = model_error(wmtp_training::Error::OutOfMemory(full));
        assert_eq!(full.exit(), Exit::NoRoom);
        assert!(
            full.render().contains("hint: compute on"),
            "{}",
            full.render()
        );
        let gone = wmtp_model::Error::Device {
            place: Place::Cuda(7),
            reason: "no such device".to_owned(),
        };
        assert_eq!(model(gone), Exit::Unavailable);
        let missing = wmtp_model::Error::MissingTensor {
            origin: "model.safetensors".to_owned(),
            name: "norm.weight".to_owned(),
        };
        assert_eq!(model(missing), Exit::BadInput);
        let nowhere = Params::load("/nowhere/params.json".as_ref()).unwrap_err();
        assert_eq!(model(nowhere), Exit::BadInput);
        let nan = Error::NotFinite { position: 3 };
        assert_eq!(super::error(nan).exit(), Exit::Numeric);
    }
}
