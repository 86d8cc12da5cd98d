//! `wmtp-store gc`: what nothing needs is shown, announced, and deleted once writers had notice of it.

use serde_json::json;
use wmtp_artifacts::{Doomed, GcPlan, GcPolicy, GcReport, GcSurvey};
use wmtp_job_kit::{JobError, Tool, ToolCx, bytes};

use crate::counted;
use crate::stop::{unless_stopped, unless_stopped_with};

/// Objects of one kind that are printed; `--json` has all.
const MAX_SHOWN: usize = 20;
/// A shorter grace could outlast no job.
const MIN_GRACE_HOURS: u64 = 24;
const SECS_PER_HOUR: u64 = 3_600;

/// Command line of `gc`.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Announce what would go; it can be deleted an hour later
    #[arg(long, conflicts_with = "apply")]
    plan: bool,
    /// Delete what was announced and is still not needed
    #[arg(long, conflicts_with = "grace_hours")]
    apply: bool,
    /// Hours that everything is kept, needed or not; at least 24
    #[arg(long, value_name = "HOURS", default_value_t = 168, value_parser = clap::value_parser!(u64).range(MIN_GRACE_HOURS..))]
    grace_hours: u64,
}

impl Tool for Gc {
    const ABOUT: &'static str = "Shows what nothing needs and is old enough to go; announces it with --plan, deletes it with --apply.";
    const EXAMPLES: &'static str = "wmtp-store gc --store s3://wmtp/demo
        wmtp-store gc --store s3://wmtp/demo --plan --grace-hours 48
        wmtp-store gc --store s3://wmtp/demo --apply";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        if self.apply {
            apply(cx)
        } else if self.plan {
            plan(cx, self.policy())
        } else {
            show(cx, self.policy())
        }
    }
}

impl Gc {
    fn policy(&self) -> GcPolicy {
        GcPolicy {
            grace_secs: self.grace_hours.saturating_mul(SECS_PER_HOUR),
            ..GcPolicy::default()
        }
    }
}

fn show(cx: &mut ToolCx<'_>, policy: GcPolicy) -> Result<(), JobError> {
    let store = cx.store()?.store().clone();
    let survey = unless_stopped(cx, store.gc_survey(policy))?;
    for line in survey_text(&survey) {
        cx.print(line);
    }
    if !survey.plan.is_empty() {
        cx.print("\nnothing was changed; `--plan` announces this, and `--apply` deletes it an hour later");
    }
    cx.json_result(json!(survey));
    Ok(())
}

fn plan(cx: &mut ToolCx<'_>, policy: GcPolicy) -> Result<(), JobError> {
    let store = cx.store()?.store().clone();
    let hint = "nothing was deleted; run the same command again";
    let planned = unless_stopped_with(cx, store.gc_plan(policy), hint)?;
    match &planned {
        None => cx.print("nothing to collect"),
        Some((number, plan)) => {
            cx.print(format!("collection {number:04} is announced"));
            for line in plan_text(plan) {
                cx.print(line);
            }
            cx.print("\nnothing was deleted; `--apply` does it an hour from now");
        }
    }
    let (number, plan) = planned.unzip();
    cx.json_result(json!({"number": number, "plan": plan}));
    Ok(())
}

fn apply(cx: &mut ToolCx<'_>) -> Result<(), JobError> {
    let store = cx.store()?.store().clone();
    let mut bar = None;
    let watch = |done, total| {
        bar.get_or_insert_with(|| cx.progress("deleting", "objects", total))
            .set(done);
    };
    let hint = "the collection goes on where it stood when the same command is run again";
    let report = unless_stopped_with(cx, store.gc_apply(watch), hint)?;
    drop(bar);
    cx.print(report_text(&report));
    cx.json_result(json!(report));
    Ok(())
}

fn survey_text(survey: &GcSurvey) -> Vec<String> {
    let mut lines = vec![format!(
        "{} and {} of {} are needed",
        counted(survey.artifacts_kept, "artifact"),
        counted(survey.contents_kept, "content"),
        bytes(survey.bytes_kept)
    )];
    if survey.contents_young > 0 {
        lines.push(format!(
            "{} not needed and too young to go",
            counted(survey.contents_young, "content")
        ));
    }
    if !survey.lists_uploads {
        lines.push(
            "this store cannot list unfinished uploads: its own lifecycle rule has to end them"
                .to_owned(),
        );
    }
    if survey.plan.is_empty() {
        lines.push("nothing to collect".to_owned());
    }
    lines.extend(plan_text(&survey.plan));
    lines
}

fn plan_text(plan: &GcPlan) -> Vec<String> {
    let mut lines = Vec::new();
    for (title, objects) in [
        ("entries", &plan.entries),
        ("artifacts", &plan.manifests),
        ("contents", &plan.contents),
    ] {
        if objects.is_empty() {
            continue;
        }
        let size: u64 = objects.iter().map(|doomed| doomed.bytes).sum();
        lines.push(format!("\n{title}: {} ({})", objects.len(), bytes(size)));
        lines.extend(objects.iter().take(MAX_SHOWN).map(item));
        lines.extend(more(objects.len()));
    }
    if !plan.uploads.is_empty() {
        lines.push(format!("\nunfinished uploads: {}", plan.uploads.len()));
        let uploads = plan.uploads.iter().take(MAX_SHOWN);
        lines.extend(uploads.map(|upload| format!("  {}", upload.key)));
        lines.extend(more(plan.uploads.len()));
    }
    lines
}

fn more(count: usize) -> Option<String> {
    let more = count.checked_sub(MAX_SHOWN).filter(|more| *more > 0)?;
    Some(format!("  … and {more} more; --json lists all"))
}

fn item(doomed: &Doomed) -> String {
    format!(
        "  {}  ({}; {})",
        doomed.key,
        bytes(doomed.bytes),
        doomed.why
    )
}

fn report_text(report: &GcReport) -> String {
    let mut text = format!(
        "collection {:04}: {} deleted, {}, {}, {}; {} aborted",
        report.number,
        counted(report.artifacts, "artifact"),
        counted(report.contents, "content"),
        counted_entries(report.entries),
        bytes(report.bytes),
        counted(report.uploads, "unfinished upload"),
    );
    if report.spared > 0 {
        let spared = counted(report.spared, "object");
        text = format!("{text}; {spared} of the plan spared, having come to be needed or gone");
    }
    text
}

fn counted_entries(count: u64) -> String {
    if count == 1 {
        "1 entry".to_owned()
    } else {
        format!("{count} entries")
    }
}
