//! Training as its callers see it: both trainers on a tiny model.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail where the test would"
)]

mod device;
mod long;
mod lora;
mod policy;
mod ranks;
mod support;
mod value;
