//! Why generation failed.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter that inference needs is not in the store.
    #[error("the model has no parameter {name:?}")]
    MissingParameter {
        /// Its name in Meta's layout.
        name: String,
    },
    /// The prompt leaves no room for a single token.
    #[error("the prompt has {prompt_tokens} tokens, the model reads at most {max_tokens}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Positions that the model was made for.
        max_tokens: usize,
    },
    /// A prompt without tokens has no position to continue from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The logits hold no finite number: the checkpoint is damaged or training diverged.
    #[error("the model's logits are not finite at position {position}")]
    NotFinite {
        /// 0-based position whose successor was to be drawn.
        position: usize,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
