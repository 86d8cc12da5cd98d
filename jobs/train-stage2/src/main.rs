//! Trains the policy with weighted multi-token prediction.

fn main() {}
