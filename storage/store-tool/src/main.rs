//! Looks after a store: reads it, says what it holds, changes nothing.

use std::process::ExitCode;

use store_tool::{Fsck, Lineage};
use wmtp_job_kit::{Mode, main_with_modes};

fn main() -> ExitCode {
    main_with_modes(
        "wmtp-store",
        "Looks after a store of artifacts.",
        vec![Mode::tool::<Lineage>("lineage"), Mode::tool::<Fsck>("fsck")],
        None,
    )
}
