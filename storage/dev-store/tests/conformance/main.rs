//! The behaviour that the artifact protocol rests on, checked with the SDK that the jobs use.

mod conditions;
mod integrity;
mod listing;
mod multipart;
mod objects;
mod process;
mod support;
