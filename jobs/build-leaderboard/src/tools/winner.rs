//! `winner`: which version stands first, for the one question to the held-out set.

use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use super::Standing;
use crate::report::best;

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct Winner {
    /// The leaderboard: a name or an id
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
}

impl Tool for Winner {
    const ABOUT: &'static str =
        "Prints the best trained version of a leaderboard and nothing else.";
    const EXAMPLES: &'static str = "build-leaderboard winner --leaderboard micropy-loop";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let board = Standing::load(&self.leaderboard, cx.store()?)?.board;
        let best = best(&board)
            .ok_or_else(|| JobError::bad_input("no trained version has the primary metric"))?;
        cx.print(&best.version_id);
        cx.json_result(json!({"version_id": best.version_id, "seeds": best.seeds}));
        Ok(())
    }
}
