//! `wmtp-vessl` as people call it: specs, mistakes, and chains on a double of VESSL's client.

mod golden;
mod mistakes;
mod place;
mod submit;
