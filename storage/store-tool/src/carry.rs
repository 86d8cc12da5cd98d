//! `wmtp-store export` and `import`: artifacts carried to a site without a network.

use std::path::PathBuf;

use serde_json::json;
use wmtp_artifacts::{ArtifactId, CopyReport};
use wmtp_job_kit::{JobError, Tool, ToolCx, bytes, refuse_alias};

use crate::counted;
use crate::stop::unless_stopped_with;

/// Command line of `export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Artifact to carry, with all that it was made from: id, name, or KIND/NAME where several kinds share a name
    #[arg(value_name = "NAME_OR_ARTIFACT")]
    artifact: String,
    /// Folder to write; what an export that was cut off left there is kept
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
}

impl Tool for Export {
    const ABOUT: &'static str = "Writes an artifact and all that it was made from into a folder, for a site without a network.";
    const EXAMPLES: &'static str =
        "wmtp-store export --store s3://wmtp/demo checkpoint/v002 --folder /media/disk/v002";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let hint = "what is there stays; the same command goes on from it";
        let mut bar = None;
        let watch = |done, total| {
            bar.get_or_insert_with(|| cx.progress("exporting", "bytes", total))
                .set(done);
        };
        let work = async {
            let id = store.resolve_any(&self.artifact).await?;
            let report = store.export(&id, &self.folder, watch).await?;
            Ok((id, report))
        };
        let (id, report) = unless_stopped_with(cx, work, hint)?;
        drop(bar);
        tell(cx, "exported", &id, &report);
        Ok(())
    }
}

/// Command line of `import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// Folder that `export` wrote
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Name for the artifact that was exported
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Tool for Import {
    const ABOUT: &'static str = "Brings an exported artifact and its ancestors into a store; checks everything before it writes.";
    const EXAMPLES: &'static str =
        "wmtp-store import --store s3://wmtp/there --folder /media/disk/v002 --name v002";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        refuse_alias(self.name.as_deref())?;
        let store = cx.store()?.store().clone();
        let hint = "what was brought over stays; the same command goes on from it";
        let mut bar = None;
        let watch = |done, total| {
            bar.get_or_insert_with(|| cx.progress("checking", "bytes", total))
                .set(done);
        };
        let work = async {
            let (id, report) = store.import(&self.folder, watch).await?;
            if let Some(name) = &self.name {
                store.set_name(id.kind(), name, &id).await?;
            }
            Ok((id, report))
        };
        let (id, report) = unless_stopped_with(cx, work, hint)?;
        drop(bar);
        tell(cx, "imported", &id, &report);
        Ok(())
    }
}

fn tell(cx: &mut ToolCx<'_>, what: &str, id: &ArtifactId, report: &CopyReport) {
    cx.print(format!(
        "{what} {id}: {}, {} copied ({}), {} there before",
        counted(report.artifacts, "artifact"),
        counted(report.blobs_copied, "content"),
        bytes(report.bytes_copied),
        report.blobs_present,
    ));
    cx.json_result(json!({
        "artifact": id,
        "artifacts": report.artifacts,
        "contents_copied": report.blobs_copied,
        "contents_present": report.blobs_present,
        "bytes_copied": report.bytes_copied,
    }));
}
