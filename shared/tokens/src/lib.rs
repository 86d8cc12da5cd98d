//! Tokenizers, the prompt template, masks and target alignment.
//!
//! In comes text, out come token ids of one whole sequence: begin token, prompt, response, end token. Training
//! and evaluation build their prompts with the same two functions, [`render_prompt`] and [`encode_prompt`].

mod error;
mod learn;
mod sample;
mod template;
mod tokenizer;

pub use error::Error;
pub use sample::{TokenizedSample, completion_text, encode_pair, encode_prompt};
pub use template::render_prompt;
pub use tokenizer::{BOS, EOS, PAD, SMALLEST_VOCAB, Tokenizer};
