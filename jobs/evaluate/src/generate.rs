//! Generation of all samples of all problems.

use rayon::prelude::*;
use wmtp_decoding::{Choice, DrawKey, Generated, Generator, Prompt, Sampling};
use wmtp_job_kit::{JobError, Run};
use wmtp_records::{Completion, Problem};
use wmtp_tokens::{Tokenizer, completion_text, encode_prompt};

use crate::extract;

/// How many samples are drawn, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    pub(crate) sampling: Sampling,
    pub(crate) num_samples: u32,
    pub(crate) seed: u64,
}

/// Generates, for each problem in turn, the greedy text and `num_samples` drawn ones.
///
/// Problems are spread over the cores; a text depends on the problem and its sample number alone.
pub(crate) fn all(
    problems: &[Problem],
    tokenizer: &Tokenizer,
    generator: &Generator,
    drawing: Drawing,
    run: &Run,
) -> Result<Vec<Completion>, JobError> {
    let per_problem = u64::from(drawing.num_samples) + 1;
    let progress = run.progress("generate", "samples", problems.len() as u64 * per_problem);
    let stop = run.stop_flag();
    let completions = problems
        .par_iter()
        .map(|problem| {
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(JobError::preempted());
            }
            let completions = one(problem, tokenizer, generator, drawing)?;
            progress.inc(per_problem);
            Ok(completions)
        })
        .collect::<Result<Vec<_>, JobError>>()?;
    Ok(completions.into_iter().flatten().collect())
}

fn one(
    problem: &Problem,
    tokenizer: &Tokenizer,
    generator: &Generator,
    drawing: Drawing,
) -> Result<Vec<Completion>, JobError> {
    let prompt_ids = encode_prompt(tokenizer, &problem.prompt);
    let draws = (0..drawing.num_samples).map(|sample| {
        Choice::Draw(
            drawing.sampling,
            DrawKey::new(drawing.seed, &problem.problem_id, sample),
        )
    });
    let prompt = Prompt {
        ids: &prompt_ids,
        choices: std::iter::once(Choice::Greedy).chain(draws).collect(),
    };
    let generated = generator.generate(&prompt).map_err(|error| {
        let context = format!("problem {}", problem.problem_id);
        match error {
            wmtp_decoding::Error::NotFinite { .. } => JobError::numeric(error).context(context),
            wmtp_decoding::Error::PromptTooLong { .. } => JobError::bad_input(error)
                .context(context)
                .hint("raise data.max_length of the recipe"),
            _ => JobError::internal(error).context(context),
        }
    })?;
    let samples = std::iter::once(None).chain((0..drawing.num_samples).map(Some));
    Ok(samples
        .zip(generated)
        .map(|(sample, text)| completion(problem, tokenizer, &prompt_ids, sample, &text))
        .collect())
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
