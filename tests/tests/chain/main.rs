//! The whole chain through its binaries, at the smallest size that is still true: kills, repeats, wrong input.

mod adapters;
mod contests;
mod errors;
mod fallbacks;
mod kills;
mod loops;
mod outside;
mod own_model;
mod place;
mod preemption;
mod promotion;
mod protocols;
mod ranks;
mod repeats;
mod scores;
mod scripts;
mod settings;
mod steps;
mod stops;
mod tracking;
mod under_way;
mod vessl;
