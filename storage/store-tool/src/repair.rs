//! `wmtp-store repair`: damaged contents come anew from a copy.

use std::path::PathBuf;

use serde_json::json;
use wmtp_artifacts::{Finding, FsckDepth, RepairReport, Spare, Store, StoreOptions, StoreUri};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::fsck::{Bar, item};
use crate::stop::unless_stopped_with;

/// Command line of `repair`.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Where the contents may still be whole: an export, a cache, a folder of files, or another store
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    from: String,
    /// Read every content to find damage, too; without it presence and sizes are checked
    #[arg(long)]
    full: bool,
}

impl Tool for Repair {
    const ABOUT: &'static str =
        "Puts missing and damaged contents into the store anew, from a copy that is whole.";
    const EXAMPLES: &'static str =
        "wmtp-store repair --store s3://wmtp/demo --from .wmtp/cache --full
        wmtp-store repair --store s3://wmtp/demo --from s3://wmtp/copy";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let depth = if self.full {
            FsckDepth::Full
        } else {
            FsckDepth::Sizes
        };
        let store = cx.store()?.store().clone();
        let spare = self.spare(cx)?;
        let mut bar = Bar::new();
        let watch = |phase, done, total| bar.show(cx, phase, done, total);
        let work = store.repair(depth, &spare, watch);
        let hint = "what was mended stays so; run the same command again";
        let report = unless_stopped_with(cx, work, hint)?;
        drop(bar);
        self.tell(cx, &report)
    }
}

impl Repair {
    fn spare(&self, cx: &ToolCx<'_>) -> Result<Spare, JobError> {
        if !self.from.starts_with("s3://") {
            let folder = PathBuf::from(&self.from);
            if !folder.is_dir() {
                return Err(JobError::bad_input(format!("{} is no folder", self.from)));
            }
            return Ok(Spare::Folder(folder));
        }
        let uri: StoreUri = self.from.parse()?;
        let handle = cx.store()?;
        let store = handle.block_on(Store::connect(&uri, StoreOptions::default()))?;
        handle.block_on(store.reach())?;
        Ok(Spare::Store(store))
    }

    fn tell(&self, cx: &mut ToolCx<'_>, report: &RepairReport) -> Result<(), JobError> {
        let (mended, left) = (report.mended.len() as u64, report.left.len() as u64);
        cx.print(format!(
            "{} mended, {left} left",
            counted(mended, "content")
        ));
        let shown = |cx: &mut ToolCx<'_>, title: &str, findings: &[Finding]| {
            if !findings.is_empty() {
                cx.print(format!("\n{title}:"));
            }
            findings
                .iter()
                .flat_map(item)
                .for_each(|line| cx.print(line));
        };
        shown(cx, "mended", &report.mended);
        shown(cx, "left as it was", &report.left);
        cx.json_result(json!({"mended": report.mended, "left": report.left}));
        if left == 0 {
            return Ok(());
        }
        Err(JobError::integrity(format!(
            "{} of the store still missing or damaged",
            counted(left, "object")
        ))
        .hint(format!(
            "{} has nothing whole for it; try another copy, or run the job that made the artifact with --force",
            self.from
        )))
    }
}
