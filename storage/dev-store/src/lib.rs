//! The embedded S3 server: the protocol of `s3s` over a durable, conditional, content-checked backend.
//!
//! An object is one JSON record that names immutable data files. The record is published by one rename under the key's
//! lock, after body, digests and conditions have been checked, so a reader sees the old object or the new one, one of
//! many racing create-only writers wins, and a kill at any instant leaves nothing half done.
//!
//! The binary is `dev-store serve`; other crates' tests use [`TestServer`].

mod auth;
mod backend;
mod checksums;
mod clock;
mod disk;
mod error;
mod faults;
mod server;
mod service;

pub use backend::{Damage, StartReport};
pub use error::Error;
pub use faults::{Fault, Faults};
pub use server::{Options, Server, TestServer};

/// The bucket every root has.
pub const BUCKET: &str = "wmtp";

/// The region that the environment file names; any other is accepted in signatures.
pub const REGION: &str = "us-east-1";
