//! Intervals, bootstrap, paired tests and pass@k.
