//! Data-set readers, micropy, splits, statistics and the batch sampler.
