//! Training as its callers see it: both trainers on a tiny model, and the step against PyTorch.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail where the test would"
)]

mod device;
mod golden;
mod long;
mod lora;
mod policy;
mod ranks;
mod support;
mod value;
