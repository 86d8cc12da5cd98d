//! Generation of all samples of all problems.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use wmtp_decoding::{Choice, DrawKey, Generated, Generator, Prompt, PromptError, Sampling, Tally};
use wmtp_job_kit::{JobError, Run};
use wmtp_records::{Completion, Problem};
use wmtp_tokens::{Tokenizer, completion_text, encode_prompt};

use crate::extract;

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

/// Generates, for each problem in turn, the greedy text and `num_samples` drawn ones.
///
/// Every core works on several problems at once and takes the next when texts end; a text depends on the problem and
/// its sample number alone.
pub(crate) fn all(
    problems: &[Problem],
    tokenizer: &Tokenizer,
    generator: &Generator,
    drawing: Drawing,
    run: &Run,
) -> Result<(Vec<Completion>, Tally), JobError> {
    let per_problem = u64::from(drawing.num_samples) + 1;
    let progress = run.progress("generate", "samples", problems.len() as u64 * per_problem);
    let prompts: Vec<Vec<u32>> = problems
        .iter()
        .map(|problem| encode_prompt(tokenizer, &problem.prompt))
        .collect();
    let stop = run.stop_flag();
    let waiting = AtomicUsize::new(0);
    let next = || {
        let number = waiting.fetch_add(1, Ordering::Relaxed);
        let choices = drawing.choices(problems.get(number)?);
        let ids = prompts[number].as_slice();
        Some((number, Prompt { ids, choices }))
    };
    let work = || {
        let mut texts = Vec::new();
        let tally = generator.generate_all(TEXTS_AT_ONCE, next, |number, generated| {
            texts.push((number, generated));
            progress.inc(per_problem);
            if stop.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        Ok((texts, tally.map_err(|failed| failure(problems, failed))?))
    };
    let workers = rayon::current_num_threads();
    let parts: Vec<_> = (0..workers)
        .into_par_iter()
        .map(|_| work())
        .collect::<Result<_, JobError>>()?;
    if run.should_stop() {
        return Err(JobError::preempted());
    }
    let (mut texts, mut tally) = (Vec::new(), Tally::default());
    for (part, counted) in parts {
        texts.extend(part);
        tally.add(&counted);
    }
    texts.sort_unstable_by_key(|(number, _)| *number);
    let samples = || std::iter::once(None).chain((0..drawing.num_samples).map(Some));
    let completions = texts.iter().flat_map(|(number, generated)| {
        samples().zip(generated).map(|(sample, text)| {
            completion(
                &problems[*number],
                tokenizer,
                &prompts[*number],
                sample,
                text,
            )
        })
    });
    Ok((completions.collect(), tally))
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

fn failure(problems: &[Problem], failed: PromptError) -> JobError {
    let context = format!("problem {}", problems[failed.number].problem_id);
    match failed.error {
        error @ wmtp_decoding::Error::NotFinite { .. } => JobError::numeric(error).context(context),
        error @ wmtp_decoding::Error::PromptTooLong { .. } => JobError::bad_input(error)
            .context(context)
            .hint("raise data.max_length of the recipe"),
        error => JobError::internal(error).context(context),
    }
}

fn completion(
    problem: &Problem,
    tokenizer: &Tokenizer,
    prompt_ids: &[u32],
    sample: Option<u32>,
    generated: &Generated,
) -> Completion {
    // The whole sequence is decoded, never the tail alone: a tokenizer may eat the tail's first blank.
    let all_ids = [prompt_ids, &generated.ids].concat();
    let raw = completion_text(tokenizer, prompt_ids, &all_ids);
    Completion {
        problem_id: problem.problem_id.clone(),
        sample,
        program: extract::program(&raw),
        raw,
        num_tokens: generated.ids.len() as u32,
        finished: generated.finished,
    }
}
