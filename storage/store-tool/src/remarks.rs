//! `wmtp-store note` and `wmtp-store tag`: what people have to say about a run, beside what it wrote.

use serde_json::json;
use wmtp_artifacts::{Remark, RemarkKind, RunId, tags};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::runs::chosen;
use crate::stop::{unless_stopped, unless_stopped_with};

/// Command line of `note`.
#[derive(Debug, clap::Args)]
pub struct NoteRun {
    /// The run, or the first characters of its id that no other run has
    #[arg(value_name = "RUN")]
    run: String,
    /// The note, plain text of at most 4,096 bytes. Nobody can change or remove it; the site shows it
    #[arg(value_name = "TEXT")]
    text: String,
    #[command(flatten)]
    by: By,
}

/// Command line of `tag`.
#[derive(Debug, clap::Args)]
pub struct TagRun {
    /// The run, or the first characters of its id that no other run has
    #[arg(value_name = "RUN")]
    run: String,
    /// Words by which the run is found again: letters, digits, '-', '_' and '.'
    #[arg(value_name = "TAG", required = true)]
    tags: Vec<String>,
    /// Take the tags back; that they were there stays in the store
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    by: By,
}

#[derive(Debug, clap::Args)]
struct By {
    /// Who says so, for whoever reads it; nobody checks it
    #[arg(long, value_name = "NAME", env = "WMTP_AUTHOR")]
    author: String,
}

impl By {
    fn remark(&self, kind: RemarkKind, text: &str) -> Remark {
        Remark {
            kind,
            text: text.to_owned(),
            author: self.author.clone(),
            at: jiff::Timestamp::now(),
        }
    }
}

impl Tool for NoteRun {
    const ABOUT: &'static str = "Leaves a note on a run, which the site shows on its page.";
    const EXAMPLES: &'static str = "wmtp-store note --store s3://wmtp/demo train-stage2-5d0c81e2 'restarted by hand after the node died' --author ada
        WMTP_AUTHOR=ada wmtp-store note --store s3://wmtp/demo train-stage2-5d0c81e2 'the run of table 2'";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let id = run_of(cx, &self.run)?;
        let remark = self.by.remark(RemarkKind::Note, &self.text);
        let store = cx.store()?.store().clone();
        unless_stopped(cx, store.remark(&id, &remark))?;
        cx.print(format!("noted on {id}"));
        cx.json_result(json!({ "run_id": id, "note": remark }));
        Ok(())
    }
}

impl Tool for TagRun {
    const ABOUT: &'static str =
        "Tags a run, or takes tags back; `wmtp-store runs --tag` and the site find it by them.";
    const EXAMPLES: &'static str =
        "wmtp-store tag --store s3://wmtp/demo train-stage2-5d0c81e2 paper table-2 --author ada
        wmtp-store tag --store s3://wmtp/demo train-stage2-5d0c81e2 table-2 --remove --author ada";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let id = run_of(cx, &self.run)?;
        let store = cx.store()?.store().clone();
        let kind = if self.remove {
            RemarkKind::Untag
        } else {
            RemarkKind::Tag
        };
        let work = async {
            for tag in &self.tags {
                let (remarks, _) = store.remarks(&id).await?;
                // A tag that is there, or is not there to be taken back, needs no record.
                if tags(&remarks).contains(tag.as_str()) == self.remove {
                    store.remark(&id, &self.by.remark(kind, tag)).await?;
                }
            }
            Ok(store.remarks(&id).await?.0)
        };
        let now = unless_stopped_with(cx, work, "run the same command again: it goes on")?;
        let now: Vec<&str> = tags(&now).into_iter().collect();
        let told = if now.is_empty() {
            "none".to_owned()
        } else {
            now.join(", ")
        };
        cx.print(format!("tags of {id}: {told}"));
        cx.json_result(json!({ "run_id": id, "tags": now }));
        Ok(())
    }
}

fn run_of(cx: &mut ToolCx<'_>, beginning: &str) -> Result<RunId, JobError> {
    let store = cx.store()?.store().clone();
    let runs = unless_stopped(cx, store.runs())?;
    chosen(&runs, beginning).cloned()
}
