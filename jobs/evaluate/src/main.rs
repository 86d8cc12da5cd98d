//! Generates programs, executes them in the sandbox and scores them.

fn main() {}
