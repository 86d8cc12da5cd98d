//! The behaviour that the artifact protocol rests on, checked with the SDK that the jobs use.

#![expect(clippy::unwrap_used, reason = "the helpers belong to tests too")]

mod checks;
mod conditions;
mod integrity;
mod kills;
mod listing;
mod multipart;
mod objects;
mod process;
mod support;
