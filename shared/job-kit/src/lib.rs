//! The life of a run: arguments, cache, claims, events, logs, progress, signals and exit codes.
//!
//! A job is a type with its own flags, a [`Job::plan`] that only reads and says what determines the result, and a
//! [`Job::run`] that makes it. The kit does the rest, the same for all jobs: it resolves the recipe, answers
//! `--help`, `--dry-run` and `--explain`, finds results that are already there, claims the run, sends events, logs and
//! heartbeats to the store, publishes the outputs and turns every end into one of the codes of [`Exit`].

mod args;
pub mod crew;
mod describe;
mod error;
mod exit;
mod journal;
mod life;
mod logging;
mod mode;
mod plan;
mod recipes;
mod report;
mod revision;
mod run;
mod secrets;
mod signals;
mod store;
mod tool;
mod usage;

use std::collections::BTreeMap;

pub use args::refuse_alias;
pub use crew::{Crew, Follower, Inputs, Links};
pub use error::{JobError, is_out_of_room};
pub use exit::Exit;
pub use mode::{Mode, main, main_with_modes};
pub use plan::{Plan, PlanCx, TOKENIZER_SHA256, check_tokenizers};
pub use report::{Progress, bytes};
pub use run::{Output, Run};
pub use signals::raised;
pub use store::StoreHandle;
pub use tool::{Tool, ToolCx};
pub use usage::peak_memory_bytes;
pub use wmtp_artifacts::{ArtifactId, Kind, Manifest};
pub use wmtp_tracking as tracking;

/// Jobs make many short-lived tensors of a few sizes, which this allocator keeps at hand.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A batch job: artifacts in, artifacts out.
pub trait Job: clap::Args + Send + Sized {
    /// What the plan hands to the run.
    type Work: Send;
    /// Name in run ids, cache keys and manifests.
    const NAME: &'static str;
    /// One sentence for `--help`.
    const ABOUT: &'static str;
    /// Commands shown below the help, one a line.
    const EXAMPLES: &'static str;
    /// Raised by hand whenever the same inputs and options give other bytes.
    const VERSION: u32;

    /// Resolves inputs and settings; reads only.
    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Self::Work>, JobError>;

    /// Makes the outputs in folders of the run; the kit publishes them.
    fn run(work: &Self::Work, run: &mut Run) -> Result<Vec<Output>, JobError>;

    /// Computes beside the process that leads the run, see [`Run::crew`].
    ///
    /// # Errors
    /// A usage error from jobs that work in one process.
    fn follow(&self, follower: Follower) -> Result<(), JobError> {
        let _ = follower;
        Err(JobError::usage(format!(
            "{} works in one process",
            Self::NAME
        )))
    }

    /// Copies for people outside the store, after a run and after a cache hit alike.
    fn deliver(
        &self,
        outputs: &BTreeMap<String, ArtifactId>,
        cx: &mut ToolCx<'_>,
    ) -> Result<(), JobError> {
        let _ = (outputs, cx);
        Ok(())
    }
}
