//! `wmtp-store fsck`: is everything there that manifests and names promise?

use serde_json::{Value, json};
use wmtp_artifacts::{Fault, Finding, FsckDepth, FsckPhase, FsckReport};
use wmtp_job_kit::{JobError, Progress, Tool, ToolCx, bytes};

use crate::counted;
use crate::stop::unless_stopped;

/// Findings of one kind that are printed; `--json` has all.
const MAX_SHOWN: usize = 20;

/// Command line of `fsck`.
#[derive(Debug, clap::Args)]
pub struct Fsck {
    /// Read every content and compare its SHA-256, too; without it presence and sizes are checked
    #[arg(long)]
    full: bool,
}

impl Tool for Fsck {
    const ABOUT: &'static str =
        "Checks that everything is there that manifests and names promise; changes nothing.";
    const EXAMPLES: &'static str = "wmtp-store fsck --store s3://wmtp/demo
        wmtp-store fsck --store s3://wmtp/demo --full --json";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let depth = if self.full {
            FsckDepth::Full
        } else {
            FsckDepth::Sizes
        };
        let store = cx.store()?.store().clone();
        let mut bar = Bar::new();
        let watch = |phase, done, total| bar.show(cx, phase, done, total);
        let report = unless_stopped(cx, store.fsck(depth, watch))?;
        drop(bar);
        for line in text(&report, depth) {
            cx.print(line);
        }
        cx.json_result(document(&report, depth));
        verdict(&report)
    }
}

/// Exit code 76 when an artifact or a name cannot be used.
fn verdict(report: &FsckReport) -> Result<(), JobError> {
    if report.is_sound() {
        return Ok(());
    }
    let damaged = report
        .findings
        .iter()
        .filter(|finding| finding.fault.is_damage());
    let count = counted(damaged.count() as u64, "object");
    Err(
        JobError::integrity(format!("{count} of the store missing or damaged"))
            .hint("the report on stdout says for each what it means and what to do"),
    )
}

/// The progress bar of the phase that a check is in.
pub(crate) struct Bar {
    shown: Option<(FsckPhase, Progress)>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self { shown: None }
    }

    pub(crate) fn show(&mut self, cx: &ToolCx<'_>, phase: FsckPhase, done: u64, total: u64) {
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            let (label, unit) = match phase {
                FsckPhase::Names => ("names", "names"),
                FsckPhase::Manifests => ("manifests", "manifests"),
                FsckPhase::Sizes => ("sizes", "contents"),
                FsckPhase::Contents => ("contents", "bytes"),
            };
            self.shown = Some((phase, cx.progress(label, unit, total)));
        }
        if let Some((_, progress)) = &self.shown {
            progress.set(done);
        }
    }
}

/// The report for people: what was checked, then each kind of finding with its meaning and remedy.
fn text(report: &FsckReport, depth: FsckDepth) -> Vec<String> {
    let mut lines = vec![format!(
        "checked {}, {}, {} of {}; {}",
        counted(report.names, "name"),
        counted(report.manifests, "manifest"),
        counted(report.contents, "content"),
        bytes(report.bytes),
        match depth {
            FsckDepth::Sizes => "sizes only, --full reads the contents too",
            FsckDepth::Full => "every content was read",
        }
    )];
    for fault in Fault::ALL {
        let findings: Vec<_> = report.of(fault).collect();
        if findings.is_empty() {
            continue;
        }
        lines.push(String::new());
        lines.push(heading(report, fault, findings.len()));
        lines.push(format!("  meaning: {}", fault.meaning()));
        lines.push(format!("  to do:   {}", remedy(report, fault)));
        lines.extend(
            findings
                .iter()
                .take(MAX_SHOWN)
                .flat_map(|finding| item(finding)),
        );
        if let Some(more) = findings
            .len()
            .checked_sub(MAX_SHOWN)
            .filter(|more| *more > 0)
        {
            lines.push(format!("  … and {more} more; --json lists all"));
        }
    }
    if report.is_sound() {
        lines.push(String::new());
        lines.push("nothing is missing or damaged".to_owned());
    }
    lines
}

fn heading(report: &FsckReport, fault: Fault, count: usize) -> String {
    match fault {
        Fault::Orphan => format!(
            "{}: {count} ({})",
            fault.title(),
            bytes(report.bytes_orphaned)
        ),
        _ => format!("{}: {count}", fault.title()),
    }
}

/// What to do; a manifest that cannot be read may list what looks like an orphan.
fn remedy(report: &FsckReport, fault: Fault) -> String {
    let is_doubtful =
        fault == Fault::Orphan && report.of(Fault::UnreadableManifest).next().is_some();
    if is_doubtful {
        return "keep them: a manifest that could not be read may list them".to_owned();
    }
    fault.remedy().to_owned()
}

pub(crate) fn item(finding: &Finding) -> Vec<String> {
    let mut lines = vec![format!("  {}  ({})", finding.key, finding.detail)];
    lines.extend(
        finding
            .artifacts
            .iter()
            .map(|id| format!("    artifact {id}")),
    );
    lines
}

/// The report for programs: the same groups.
fn document(report: &FsckReport, depth: FsckDepth) -> Value {
    let groups: Vec<_> = Fault::ALL
        .into_iter()
        .filter(|fault| report.of(*fault).next().is_some())
        .map(|fault| {
            json!({
                "fault": fault,
                "is_damage": fault.is_damage(),
                "meaning": fault.meaning(),
                "remedy": remedy(report, fault),
                "findings": report.of(fault).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "sound": report.is_sound(),
        "full": depth == FsckDepth::Full,
        "names": report.names,
        "manifests": report.manifests,
        "contents": report.contents,
        "bytes": report.bytes,
        "bytes_hashed": report.bytes_hashed,
        "bytes_orphaned": report.bytes_orphaned,
        "groups": groups,
    })
}
