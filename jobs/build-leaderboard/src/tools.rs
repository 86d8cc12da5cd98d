//! The tools of a version loop, one mode of the program each.

mod baseline;
mod next;
mod promote;
mod retries;
mod select;
mod winner;

use std::collections::BTreeMap;

use wmtp_artifacts::Kind;
use wmtp_job_kit::{JobError, StoreHandle};
use wmtp_records::jsonl;
use wmtp_stats::leaderboard::{HeldOut, Leaderboard, files};

pub use baseline::AuditBaseline;
pub use next::NextVersion;
pub use promote::Promote;
pub use retries::RetryReport;
pub use select::SelectAction;
pub use winner::Winner;

use crate::actions;
use crate::figures::Figures;

/// A leaderboard as the tools read it.
struct Standing {
    board: Leaderboard,
    figures: BTreeMap<String, Figures>,
    held_out: Option<HeldOut>,
    id: String,
}

impl Standing {
    fn load(reference: &str, store: &StoreHandle) -> Result<Self, JobError> {
        let id = store.resolve(Kind::Leaderboard, reference)?;
        let dir = store.fetch(&id)?;
        let board: Leaderboard = jsonl::read_json(&dir.join(files::JSON))?;
        let mut figures = BTreeMap::new();
        for row in &board.rows {
            let path = dir.join(files::figures(&row.version_id));
            if path.is_file() {
                figures.insert(row.version_id.clone(), jsonl::read_json(&path)?);
            }
        }
        let held_out = dir.join(files::HELD_OUT);
        Ok(Self {
            held_out: held_out
                .is_file()
                .then(|| jsonl::read_json(&held_out))
                .transpose()?,
            board,
            figures,
            id: id.to_string(),
        })
    }
}

impl From<actions::Error> for JobError {
    fn from(error: actions::Error) -> Self {
        match error {
            actions::Error::Form { .. } => Self::bad_input(error)
                .hint("its form is in the README; delete the file to have one computed"),
            actions::Error::SecondChange { .. } => {
                Self::refused(error).hint("keep one, and make the other in the version after")
            }
            actions::Error::NotApplicable { .. } | actions::Error::NotAllowed { .. } => {
                Self::refused(error).hint("change the action, or the rules beside the recipes")
            }
        }
    }
}
