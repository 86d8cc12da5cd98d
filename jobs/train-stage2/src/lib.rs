//! Trains the policy with weighted multi-token prediction.
