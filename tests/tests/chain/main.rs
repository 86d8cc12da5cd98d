//! The whole chain through its binaries, at the smallest size that is still true: kills, repeats, wrong input.

mod adapters;
mod errors;
mod fallbacks;
mod kills;
mod place;
mod repeats;
mod steps;
mod vessl;
