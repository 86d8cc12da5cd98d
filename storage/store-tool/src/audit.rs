//! `wmtp-store audit`: who changed what people rely on.

use std::str::FromStr;

use serde_json::json;
use wmtp_artifacts::AuditEvent;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped;

/// Command line of `audit`.
#[derive(Debug, clap::Args)]
pub struct Audit {
    /// Only events since this time, such as 2026-11-28T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = jiff::Timestamp::from_str)]
    since: Option<jiff::Timestamp>,
}

impl Tool for Audit {
    const ABOUT: &'static str = "Lists who gave names, promoted, collected and remarked: with which access key, program and \
                                 commit, the oldest first.";
    const EXAMPLES: &'static str = "wmtp-store audit --store s3://wmtp/demo
        wmtp-store audit --store s3://wmtp/demo --since 2026-11-28T10:00:00Z --json";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let (events, num_bad) = unless_stopped(cx, store.audit_log(self.since))?;
        for event in &events {
            cx.print(line(event));
        }
        cx.print(counted(events.len() as u64, "event"));
        if num_bad > 0 {
            cx.warning(format!("{} could not be read", counted(num_bad, "event")));
        }
        cx.json_result(json!({ "events": events, "unreadable": num_bad }));
        Ok(())
    }
}

fn line(event: &AuditEvent) -> String {
    let entry = &event.entry;
    let (at, act) = (
        event.at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        entry.act.as_str(),
    );
    let who = entry.key_id.as_deref().unwrap_or("nobody");
    let (agent, request) = (&entry.agent, &entry.request);
    let with = format!("{} {} on {}", agent.program, agent.revision, agent.host);
    // Whoever may write to the store wrote these words.
    let (who, with) = (who.escape_debug(), with.escape_debug());
    format!("{at}  {act:<7}  {who}  {with}  {request}")
}
