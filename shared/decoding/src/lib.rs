//! Key-value cache, sampling and generation.
//!
//! Comes in: a model's parameters and prompts as token ids. Goes out: generated ids. All samples of one
//! prompt share its prefill and advance together; random numbers are keyed by (seed, problem, sample,
//! position), so what one sample draws never depends on its neighbours.
//!
//! Shapes: b rows (samples of one prompt), s positions, d hidden, n query heads, g key/value heads, e head
//! dimension, v vocabulary.

mod beam;
mod error;
mod generate;
mod infer;
mod sampling;

pub use beam::Beam;
pub use error::{Error, Result};
pub use generate::{Ended, Generated, Generator, Prompt, PromptError, Tally, Timing};
pub use infer::InferenceModel;
pub use sampling::{Choice, DrawKey, Sampling};
