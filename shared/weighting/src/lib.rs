//! TD errors, advantages and excess losses become token weights of mean one.
//!
//! The way of the data: a scorer gives one score per response target ([`advantage`] for the verifiable
//! algorithm, [`rho1`] for Rho-1), [`token_weights`] turns scores into weights by the normative procedure
//! (whitening, exponential, entropy floor, projection, blend), and [`control`] makes the two controls that
//! a real effect has to beat. Everything works on plain slices in `f64` and knows neither tensors nor files.
//!
//! Every weight vector that leaves this crate holds the invariants of [`check`]: mean 1, finite, each
//! weight within `[eps, w_max]`. A hard selection of [`rho1`] alone gives 0 besides, see [`check_selected`].

pub mod advantage;
pub mod control;
mod histogram;
pub mod rho1;
mod weights;

pub use advantage::{gae, td_errors};
pub use histogram::Histogram;
pub use weights::{
    Error, TokenWeights, WeightSettings, WeightStats, Whitening, check, check_selected, project,
    token_weights, uniform,
};
