//! Sandboxed execution, output comparison and verdicts.
