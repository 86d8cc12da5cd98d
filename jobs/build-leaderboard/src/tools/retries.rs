//! `retry-report`: the attempts at a training that has not come to its end.

use std::path::PathBuf;

use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::history;
use crate::loop_folder::{LoopFolder, write_whole};
use crate::training::attempts;

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct RetryReport {
    /// Name that the training was given
    #[arg(long, value_name = "NAME")]
    run: String,
    /// The version that it trains
    #[arg(long, value_name = "VERSION")]
    version: String,
    /// Folder of the loop
    #[arg(long = "loop", value_name = "DIR")]
    loop_dir: PathBuf,
}

impl Tool for RetryReport {
    const ABOUT: &'static str = "Writes train_retry_report.md of a version from what the store knows of its training, finished or not.";
    const EXAMPLES: &'static str = "build-leaderboard retry-report --run micropy-loop-v002-s42 --version v002 --loop .wmtp/micropy-loop";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?;
        let mut found = Vec::new();
        for run in store.block_on(store.store().runs())? {
            if !run.as_str().starts_with("train-stage2-") {
                continue;
            }
            let Some(history) = store.history(&run)? else {
                continue;
            };
            if history.request.labels.get("name") == Some(&self.run) {
                let seed = history.request.recipe["seed"].as_u64();
                found.extend(attempts(seed, &history));
            }
        }
        if found.is_empty() {
            return Err(
                JobError::bad_input(format!("no training is called {:?}", self.run))
                    .hint("give the name that train-stage2 was given with --name"),
            );
        }
        let path = LoopFolder::open(&self.loop_dir).retry_report(&self.version);
        if !cx.is_dry_run() {
            write_whole(&path, &history::render(&self.version, &found))?;
        }
        cx.print(format!("{}: {} attempts", path.display(), found.len()));
        cx.json_result(json!({"attempts": found.len()}));
        Ok(())
    }
}
