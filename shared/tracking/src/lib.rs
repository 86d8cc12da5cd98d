//! Runs on an MLflow server: live while they work, or replayed from the store.
//!
//! The store is the truth: a run's request, its events and its artifacts say everything that MLflow is told, and each
//! point keeps the time of its event. What was sent live and what is replayed are therefore the same requests, and a
//! server stores a point that it has once more only once. A [`Sink`] follows a run that works; it has its own thread and a
//! bounded queue, so that no server can slow or fail the run. [`replay_run`] sends what the store knows, whatever arrived.

mod api;
mod error;
mod exact;
mod line;
mod names;
mod recorder;
mod registry;
mod replay;
mod server;
mod sink;

pub use error::Error;
pub use registry::promote;
pub use replay::{Replayed, Totals, replay_aliases, replay_run, runs};
pub use server::{ENVIRONMENT, Server, URI_VARIABLE};
pub use sink::{Missing, Sink};

#[cfg(test)]
mod tests;
