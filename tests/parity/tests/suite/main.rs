//! The parity room against its committed goldens: every case at both precisions, deliberate faults, damaged
//! goldens, and the program's exit codes.

mod cases;
mod mutations;
mod program;
