//! Raw rows or micropy become records, token ids, splits and statistics.

fn main() {}
