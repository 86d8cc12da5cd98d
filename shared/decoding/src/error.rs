//! Why generation failed.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// The model lacks a parameter, is not in f32, or met an id that it does not know.
    #[error(transparent)]
    Model(#[from] wmtp_model::Error),
}
