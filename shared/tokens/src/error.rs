//! What can go wrong with a tokenizer.

use std::io;
use std::path::PathBuf;

/// Why a tokenizer could not be trained, read or applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file or document is not a tokenizer.
    #[error("{origin} is not a tokenizer: {reason}")]
    Format {
        /// The file, or what was being built.
        origin: String,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer has no begin or end token.
    #[error("{origin} has no {role} token (looked for {names})")]
    NoSpecial {
        /// The file.
        origin: String,
        /// `begin` or `end`.
        role: &'static str,
        /// The names that were tried.
        names: String,
    },
    /// The wanted vocabulary cannot hold every byte and the special tokens.
    #[error("a vocabulary of {wanted} tokens is too small: at least {smallest} are needed")]
    VocabTooSmall {
        /// What was asked for.
        wanted: usize,
        /// The least that is possible.
        smallest: usize,
    },
    /// The ids of the prompt alone are not how the whole sequence begins, so the boundary is unknown.
    #[error(
        "the prompt's {prompt_tokens} tokens are no prefix of the whole sequence's; does the prompt end in a newline?"
    )]
    PromptNotPrefix {
        /// Tokens of the prompt alone.
        prompt_tokens: usize,
    },
}
