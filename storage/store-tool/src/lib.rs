//! The commands of `wmtp-store`. What they find out is the work of `wmtp-artifacts`; here it is told to people.

mod fsck;
mod lineage;
mod stop;

pub use fsck::Fsck;
pub use lineage::Lineage;

/// `1 file`, `2 files`.
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
