//! Loss, optimiser, schedule and the training engine.
//!
//! The way through: a [`Scorer`] gives every response target of an optimizer step its weight; [`heads`]
//! turns rows and weights into the loss over heads and its gradients, one head after another; the
//! [`engine`] clips and applies them, falls back when numbers go bad, keeps the best weights and can stop
//! and continue between any two steps bit for bit. [`PolicyTrainer`] and [`ValueTrainer`] are the two runs
//! built on it, and [`session`] lets a job drive either.
//!
//! Everything is deterministic: sums have a fixed order, randomness comes from seeds that the caller
//! passes, and nothing that decides a result reads a clock.

mod buffer;
pub mod engine;
mod error;
mod gpu;
pub mod heads;
pub mod inference;
mod lines;
mod measure;
mod memory;
pub mod optimizer;
mod policy;
mod ranks;
mod saving;
mod schedule;
pub mod scorer;
mod scores;
pub mod session;
mod throughput;
mod value;

pub use buffer::Buffer;
pub use engine::{
    EarlyStop, OptimSettings, Scored, Side, StepReport, StoppedEarly, Trainer, Update,
};
pub use error::{Error, Result, Shortage};
pub use lines::Lines;
pub use measure::{Judged, Judgement, ValueQuality};
pub use memory::{Halved, Room};
pub use optimizer::{AdamW, AdamWSettings, Gradients};
pub use policy::{PolicySettings, PolicyTrainer, Rows, Weights};
pub use ranks::Ranks;
pub use schedule::Schedule;
pub use scorer::{Rho1Scorer, Rho1Settings, Rho1Weighting, Scope, Scorer, StepScorer};
pub use scores::TokenScores;
pub use throughput::{Throughput, Work};
pub use value::{
    Objective, ValueParameters, ValueSettings, ValueTrainer, advantages, balanced_rows,
};
