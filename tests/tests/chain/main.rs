//! The whole chain through its binaries, at the smallest size that is still true: kills, repeats, wrong input.

mod adapters;
mod contests;
mod errors;
mod fallbacks;
mod kills;
mod loops;
mod outside;
mod place;
mod promotion;
mod protocols;
mod ranks;
mod repeats;
mod scores;
mod steps;
mod tracking;
mod vessl;
