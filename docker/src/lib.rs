//! The jobs' images: builds them, holds their description against the house's rules and them against the job contract.
//!
//! `docker/bake.json` says which images there are and `docker/Dockerfile` what is in each. `build` has them built by
//! whatever container engine there is; `lint` reads both files; `run` starts an image as `conform` does, as a plain user
//! on a root that nobody can write; `conform` starts an image again and again and looks whether it keeps to what every job
//! keeps to. `release` looks whether what a release holds belongs together, `traces` whether files name the machine that built
//! them.

mod bake;
mod commands;
mod conform;
mod dockerfile;
mod engine;
mod error;
mod image;
mod release;
mod rules;

pub use bake::{Bake, Target};
pub use commands::{Build, Conform, Lint, Release, Run, Traces};
pub use dockerfile::Dockerfile;
pub use error::Error;
pub use rules::{Finding, check};
