//! Looks after a store: what it holds, what nothing needs, how its artifacts get to another site.

use std::process::ExitCode;

use store_tool::{
    Audit, Export, Fsck, Gc, Import, Lineage, ListPromotions, Log, Mlflow, Model, Name, Names,
    NoteRun, Policy, Repair, Runs, TagRun,
};
use wmtp_job_kit::{Mode, main_with_modes};

fn main() -> ExitCode {
    wmtp_artifacts::without_huge_pages();
    main_with_modes(
        "wmtp-store",
        "Looks after a store of artifacts.",
        vec![
            Mode::store_tool::<Runs>("runs"),
            Mode::store_tool::<Log>("log"),
            Mode::store_tool::<NoteRun>("note"),
            Mode::store_tool::<TagRun>("tag"),
            Mode::store_tool::<Names>("names"),
            Mode::store_tool::<Name>("name"),
            Mode::store_tool::<ListPromotions>("promotions"),
            Mode::store_tool::<Audit>("audit"),
            Mode::store_tool::<Lineage>("lineage"),
            Mode::store_tool::<Model>("model"),
            Mode::store_tool::<Fsck>("fsck"),
            Mode::store_tool::<Repair>("repair"),
            Mode::store_tool::<Gc>("gc"),
            Mode::store_tool::<Export>("export"),
            Mode::store_tool::<Import>("import"),
            Mode::store_tool::<Policy>("policy"),
            Mode::store_tool::<Mlflow>("mlflow"),
        ],
        None,
    )
}
