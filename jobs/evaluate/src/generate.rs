//! Generation of all samples of all problems.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use wmtp_decoding::{Choice, DrawKey, Generated, Generator, Prompt, PromptError, Sampling, Tally};
use wmtp_job_kit::{JobError, Run};
use wmtp_records::{Completion, Problem};
use wmtp_tokens::{Tokenizer, completion_text, encode_prompt};

use crate::extract;
use crate::saved::Saved;

/// Texts that one core writes on at once: enough that reading the weights costs little, few enough that their keys and
/// values stay in its cache.
const TEXTS_AT_ONCE: usize = 32;

/// How many samples are drawn, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    pub(crate) sampling: Sampling,
    pub(crate) num_samples: u32,
    pub(crate) seed: u64,
}

/// What was generated.
pub(crate) struct Generation {
    /// Of each problem in turn, the greedy text and then the drawn ones.
    pub(crate) completions: Vec<Completion>,
    /// What proposals were worth, in this attempt.
    pub(crate) tally: Tally,
}

/// Generates, for each problem, the greedy text and `num_samples` drawn ones, or takes them from an earlier attempt.
///
/// Every core works on several problems at once and takes the next when texts end; a text depends on the problem and
/// its sample number alone.
pub(crate) fn all(
    problems: &[Problem],
    tokenizer: &Tokenizer,
    generator: &Generator,
    drawing: Drawing,
    run: &Run,
) -> Result<Generation, JobError> {
    let per_problem = u64::from(drawing.num_samples) + 1;
    let progress = run.progress("generate", "samples", problems.len() as u64 * per_problem);
    let (mut saved, found) = Saved::open(run)?;
    let mut by_problem: BTreeMap<String, Vec<Completion>> = BTreeMap::new();
    for completion in found {
        let own = by_problem.entry(completion.problem_id.clone()).or_default();
        own.push(completion);
    }
    progress.set(by_problem.len() as u64 * per_problem);
    let open: Vec<Open<'_>> = problems
        .iter()
        .filter(|problem| !by_problem.contains_key(&problem.problem_id))
        .map(|problem| Open {
            problem,
            prompt_ids: encode_prompt(tokenizer, &problem.prompt),
        })
        .collect();
    let tally = on_every_core(
        &open,
        generator,
        drawing,
        &run.stop_flag(),
        |open, texts| {
            let completions = open.completions(tokenizer, texts);
            saved.add(&completions)?;
            by_problem.insert(open.problem.problem_id.clone(), completions);
            progress.inc(per_problem);
            Ok(())
        },
    );
    // What is finished is kept, however this ended.
    saved.save()?;
    let tally = tally?;
    if run.should_stop() {
        return Err(JobError::preempted());
    }
    let completions = problems
        .iter()
        .filter_map(|problem| by_problem.remove(&problem.problem_id))
        .flatten()
        .collect();
    Ok(Generation { completions, tally })
}

/// A problem without its texts.
struct Open<'a> {
    problem: &'a Problem,
    prompt_ids: Vec<u32>,
}

/// Hands the texts of every problem to `done`, on this thread.
fn on_every_core(
    open: &[Open<'_>],
    generator: &Generator,
    drawing: Drawing,
    stop: &AtomicBool,
    mut done: impl FnMut(&Open<'_>, &[Generated]) -> Result<(), JobError>,
) -> Result<Tally, JobError> {
    let waiting = AtomicUsize::new(0);
    let next = || {
        let number = waiting.fetch_add(1, Ordering::Relaxed);
        let Open {
            problem,
            prompt_ids,
        } = open.get(number)?;
        let prompt = Prompt {
            ids: prompt_ids,
            choices: drawing.choices(problem),
        };
        Some((number, prompt))
    };
    std::thread::scope(|scope| {
        let (sender, texts) = mpsc::channel();
        let workers: Vec<_> = (0..rayon::current_num_threads())
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || {
                    generator.generate_all(TEXTS_AT_ONCE, next, |number, generated| {
                        let heard = sender.send((number, generated)).is_ok();
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
        let taken = texts
            .iter()
            .try_for_each(|(number, generated)| done(&open[number], &generated));
        // Workers break off when nobody listens.
        drop(texts);
        let mut tally = Tally::default();
        for worker in workers {
            let counted = worker
                .join()
                .map_err(|_| JobError::internal("a worker panicked"))?;
            tally.add(&counted.map_err(|failed| failure(open, failed))?);
        }
        taken.map(|()| tally)
    })
}

impl Drawing {
    /// The greedy text and the drawn ones; at temperature 0 these are greedy too.
    fn choices(&self, problem: &Problem) -> Vec<Choice> {
        let draw = |sample| {
            if self.sampling.temperature == 0.0 {
                return Choice::Greedy;
            }
            let key = DrawKey::new(self.seed, &problem.problem_id, sample);
            Choice::Draw(self.sampling, key)
        };
        std::iter::once(Choice::Greedy)
            .chain((0..self.num_samples).map(draw))
            .collect()
    }
}

impl Open<'_> {
    fn completions(&self, tokenizer: &Tokenizer, texts: &[Generated]) -> Vec<Completion> {
        let samples = std::iter::once(None).chain((0..).map(Some));
        samples
            .zip(texts)
            .map(|(sample, text)| self.completion(tokenizer, sample, text))
            .collect()
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
            num_tokens: generated.ids.len() as u32,
            finished: generated.finished,
        }
    }
}

fn failure(open: &[Open<'_>], failed: PromptError) -> JobError {
    let context = format!("problem {}", open[failed.number].problem.problem_id);
    match failed.error {
        error @ wmtp_decoding::Error::NotFinite { .. } => JobError::numeric(error).context(context),
        error @ wmtp_decoding::Error::PromptTooLong { .. } => JobError::bad_input(error)
            .context(context)
            .hint("raise data.max_length of the recipe"),
        error => JobError::internal(error).context(context),
    }
}
