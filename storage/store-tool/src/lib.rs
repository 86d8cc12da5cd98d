//! The commands of `wmtp-store`. What they find out is the work of `wmtp-artifacts`; here it is told to people.

mod audit;
mod carry;
mod fsck;
mod gc;
mod lineage;
mod mlflow;
mod model;
mod names;
mod policy;
mod promotions;
mod remarks;
mod repair;
mod runs;
mod stop;

pub use audit::Audit;
pub use carry::{Export, Import};
pub use fsck::Fsck;
pub use gc::Gc;
pub use lineage::Lineage;
pub use mlflow::Mlflow;
pub use model::Model;
pub use names::{Name, Names};
pub use policy::Policy;
pub use promotions::ListPromotions;
pub use remarks::{NoteRun, TagRun};
pub use repair::Repair;
pub use runs::{Log, Runs};

/// `1 file`, `2 files`.
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
