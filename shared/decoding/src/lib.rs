//! Key-value cache, sampling and generation.
