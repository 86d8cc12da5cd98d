//! S3 servers that others made, as processes that end with their test.

mod moto;
mod rgw;

pub use moto::Moto;
pub use rgw::Rgw;

#[expect(clippy::print_stderr, reason = "what is not tested must be seen")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}
