//! Scores of all versions become one table, analyses and a report folder.

fn main() {}
