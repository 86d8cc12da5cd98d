//! From prompt and response to one sequence, and back.

use crate::{Error, Tokenizer};

/// One training sequence: begin token, prompt, response, end token.
///
/// Response targets are the positions `prompt_len..ids.len()`, the end token included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedSample {
    /// All ids.
    pub ids: Vec<u32>,
    /// Index of the first response token, begin token counted.
    pub prompt_len: usize,
}

impl TokenizedSample {
    /// Number of response targets, end token included.
    pub fn response_len(&self) -> usize {
        self.ids.len() - self.prompt_len
    }
}

/// The prompt's ids with the begin token, as generation starts from them.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Vec<u32> {
    let mut ids = vec![tokenizer.bos()];
    ids.extend(tokenizer.encode(prompt));
    ids
}

/// Tokenises prompt and response as **one** text, so that the boundary is what generation will meet.
///
/// # Errors
/// [`Error::PromptNotPrefix`] when the ids of the prompt alone are not how the whole begins.
pub fn encode_pair(
    tokenizer: &Tokenizer,
    prompt: &str,
    response: &str,
) -> Result<TokenizedSample, Error> {
    let prompt_ids = encode_prompt(tokenizer, prompt);
    let mut ids = encode_prompt(tokenizer, &format!("{prompt}{response}"));
    if !ids.starts_with(&prompt_ids) {
        return Err(Error::PromptNotPrefix {
            prompt_tokens: prompt_ids.len(),
        });
    }
    ids.push(tokenizer.eos());
    Ok(TokenizedSample {
        ids,
        prompt_len: prompt_ids.len(),
    })
}

/// The text after the prompt: everything decoded together, minus the decoded prompt.
///
/// Decoding the tail alone would lose its first blank with SentencePiece vocabularies. Special tokens are dropped.
pub fn completion_text(tokenizer: &Tokenizer, prompt_ids: &[u32], all_ids: &[u32]) -> String {
    let prompt = tokenizer.decode(prompt_ids);
    let all = tokenizer.decode(all_ids);
    all.strip_prefix(&prompt).map(str::to_owned).unwrap_or(all)
}
