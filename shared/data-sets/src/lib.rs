//! Data-set readers, micropy, splits, statistics and the batch sampler.
//!
//! The way through: [`micropy::generate`], [`mbpp::read`] or [`codecontests::read`] give problems with candidate programs,
//! [`separate`] keeps training clear of evaluation, [`label`] establishes every label by execution,
//! [`DataSet::assemble`] makes rows and token ids of them, [`DataSet::write`] the artifact. Training reads the
//! ids back as a [`TokenFile`] and visits them in the order of a [`BatchPlan`].

mod batches;
pub mod codecontests;
mod contamination;
mod data_set;
mod error;
mod label;
pub mod mbpp;
pub mod micropy;
pub mod mutate;
mod random;
mod source;
mod split;
mod summary;
mod token_file;

pub use batches::{BatchPlan, PaddedBatch, pad_batch};
pub use contamination::{Separation, TrainingRows, separate};
pub use data_set::{DataSet, Description, SplitRows, tokenizer_texts};
pub use error::Error;
pub use label::{LabelCounts, Labelled, LabelledProblem, label};
pub use source::SourceProblem;
pub use split::{Shares, SplitLevel, by_shares};
pub use summary::{SplitSummary, Summary};
pub use token_file::{TokenFile, TokenRow};
