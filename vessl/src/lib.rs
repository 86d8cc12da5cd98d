//! Runs experiments on VESSL: chains of job images, one run after another.
//!
//! An experiment (which versions, seeds and data) and a profile (cluster, presets, images, store, secrets) make a chain
//! of steps, and each step the spec of one run. `plan` shows it with its cost, `render` writes it to files, `check`
//! reads specs that somebody changed, `submit` gives them to VESSL's client and follows them. No job knows of any of it.

mod argo;
mod client;
mod cloud;
mod commands;
mod cost;
mod experiment;
mod ledger;
mod mistake;
mod profile;
mod render;
mod rules;
mod spec;
mod submit;

pub use commands::{Check, Plan, Render, Submit};
