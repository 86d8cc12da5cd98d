//! Sandboxed execution of generated programs, and their verdicts.
//!
//! Comes in: a [`Program`], candidate and tests in one text, or a text that reads inputs and the outputs expected of it.
//! Goes out: a [`Verdict`](wmtp_records::Verdict).
//! A [`Grader`] keeps one warm CPython fork server per worker; every program is a fork of it. Generated
//! programs are hostile: server and forks are held in by Landlock, seccomp, resource limits and, where
//! the grader runs as root, a spare user. [`SandboxReport`] says which of these the platform enforces.
//!
//! What the sandbox does not decide: a program and its tests share one process, so a program that is
//! written to forge a verdict (an object equal to everything, a walk over frames to the token) can pass.
//! It reaches nothing outside its own process by that, and with [`GraderConfig::audit`] the verdict says whether the
//! program also passes its tests from a process of its own, where nothing but plain values leads to them.

mod audit;
mod config;
mod confine;
mod error;
pub mod files;
mod grader;
mod interpreter;
mod launch;
#[cfg(test)]
mod layers;
mod output;
mod program;
mod server;
mod verdict;

pub use config::{GraderConfig, Limits, SandboxReport, Tier};
pub use error::Error;
pub use grader::Grader;
pub use launch::launched;
pub use program::Program;
pub use wmtp_records::Case;
