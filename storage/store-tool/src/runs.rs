//! `wmtp-store runs` and `wmtp-store log`: how runs stand, and what they said.

use std::str::FromStr;

use serde_json::{Value, json};
use wmtp_artifacts::{RemarkKind, RunId, RunLife, RunView, Store, tags};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped;

/// Command line of `runs`.
#[derive(Debug, clap::Args)]
pub struct Runs {
    /// Only runs that stand so: completed, running, preempted, failed, lost, waiting
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = life)]
    state: Vec<RunLife>,
    /// Only runs of this job
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only runs that have all of these tags
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    tag: Vec<String>,
    /// End with 77 where a run is listed: for whatever rings a bell
    #[arg(long)]
    expect_none: bool,
}

/// Command line of `log`.
#[derive(Debug, clap::Args)]
pub struct Log {
    /// The run, or the first characters of its id that no other run has
    #[arg(value_name = "RUN")]
    run: String,
    /// Only lines of these levels: info, warning, error
    #[arg(long, value_name = "LEVEL", value_delimiter = ',')]
    level: Vec<String>,
    /// Events instead of log lines; only those of these types where types are given (started, metrics, completed, failed, …)
    #[arg(long, value_name = "TYPE", value_delimiter = ',', num_args = 0.., conflicts_with = "level")]
    events: Option<Vec<String>>,
    /// Only lines in which this text occurs
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// Only lines since this time, such as 2026-11-28T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = jiff::Timestamp::from_str)]
    since: Option<jiff::Timestamp>,
    /// Only lines before this time
    #[arg(long, value_name = "TIME", value_parser = jiff::Timestamp::from_str)]
    until: Option<jiff::Timestamp>,
    /// Of what is left, the first lines
    #[arg(long, value_name = "N", conflicts_with = "last")]
    limit: Option<usize>,
    /// Of what is left, the last lines
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

const LIVES: [(&str, RunLife); 6] = [
    ("completed", RunLife::Completed),
    ("running", RunLife::Running),
    ("preempted", RunLife::Preempted),
    ("failed", RunLife::Failed),
    ("lost", RunLife::Lost),
    ("waiting", RunLife::Waiting),
];

fn life(text: &str) -> Result<RunLife, String> {
    let known = LIVES.iter().find(|(word, _)| *word == text);
    known.map(|(_, life)| *life).ok_or_else(|| {
        let words = LIVES.map(|(word, _)| word);
        format!("expected one of {}", words.join(", "))
    })
}

fn word(life: RunLife) -> &'static str {
    let known = LIVES.iter().find(|(_, known)| *known == life);
    known.map_or("unknown", |(word, _)| word)
}

impl Tool for Runs {
    const ABOUT: &'static str =
        "Lists runs: how each stands, since when, and what it says of itself.";
    const EXAMPLES: &'static str = "wmtp-store runs --store s3://wmtp/demo
        wmtp-store runs --store s3://wmtp/demo --state failed,lost --json
        wmtp-store runs --store s3://wmtp/demo --state failed,lost --expect-none
        wmtp-store runs --store s3://wmtp/demo --job train-stage2 --tag paper";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let mut views = unless_stopped(cx, all(&store))?;
        let total = views.len();
        views.retain(|view| self.takes(view));
        views.sort_by_key(|view| view.request.started_at);
        for view in &views {
            cx.print(line(view));
        }
        cx.print(format!(
            "{} of {}",
            views.len(),
            counted(total as u64, "run")
        ));
        let rows: Vec<Value> = views.iter().map(row).collect();
        cx.json_result(json!({ "runs": rows, "total": total }));
        if self.expect_none && !views.is_empty() {
            let error = format!(
                "{} where none was expected",
                counted(views.len() as u64, "run")
            );
            return Err(JobError::refused(error).hint("`wmtp-store log RUN` has the words of each"));
        }
        Ok(())
    }
}

impl Runs {
    fn takes(&self, view: &RunView) -> bool {
        let job = self.job.as_ref();
        let tags = tags(&view.remarks);
        (self.state.is_empty() || self.state.contains(&view.life()))
            && job.is_none_or(|job| *job == view.request.job)
            && self.tag.iter().all(|tag| tags.contains(tag.as_str()))
    }
}

async fn all(store: &Store) -> Result<Vec<RunView>, wmtp_artifacts::Error> {
    let mut views = Vec::new();
    for id in store.runs().await? {
        match store.run(&id).await {
            Ok(view) => views.push(view),
            // Its folder has no request yet, or a collection is taking it away.
            Err(wmtp_artifacts::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(views)
}

/// What the last attempt said of itself: its phase while it works, its last message where it failed.
fn said(view: &RunView) -> String {
    if view.life() == RunLife::Completed {
        return String::new();
    }
    let is_end = |event: &&Value| event["type"] == "failed" || event["type"] == "preempted";
    let of_last = |event: &&Value| event["attempt"].as_u64() == Some(u64::from(view.attempt));
    let ended = view.events.iter().rev().filter(of_last).find(is_end);
    let message = ended.and_then(|event| event["data"]["message"].as_str());
    let phase = view.status.as_ref().map(|status| status.phase.as_str());
    message.or(phase).unwrap_or_default().to_owned()
}

fn line(view: &RunView) -> String {
    let request = &view.request;
    let said = said(view);
    let said = if said.is_empty() {
        said
    } else {
        format!("  {said}")
    };
    let tags = tags(&view.remarks).into_iter();
    let tags = tags.map(|tag| format!("  #{tag}")).collect::<Vec<_>>();
    let tags = tags.concat();
    format!(
        "{:<9}  {:<17}  {}  {}  {}{tags}{said}",
        word(view.life()),
        request.job,
        request.started_at.strftime("%Y-%m-%d %H:%M UTC"),
        request.run_id,
        counted(u64::from(view.attempt), "attempt"),
    )
}

fn row(view: &RunView) -> Value {
    let request = &view.request;
    json!({
        "run_id": request.run_id,
        "job": request.job,
        "state": view.life(),
        "attempts": view.attempt,
        "started_at": request.started_at,
        "heartbeat_at": view.status.as_ref().map(|status| status.heartbeat_at),
        "progress": view.status.as_ref().and_then(|status| status.progress.clone()),
        "host": request.host,
        "labels": request.labels,
        "said": said(view),
        "tags": tags(&view.remarks),
        "notes": view.remarks.iter().filter(|remark| remark.kind == RemarkKind::Note).collect::<Vec<_>>(),
        "outputs": view.result.as_ref().map(|result| &result.outputs),
    })
}

impl Tool for Log {
    const ABOUT: &'static str = "Prints what a run said: its log, or its events, filtered.";
    const EXAMPLES: &'static str = "wmtp-store log --store s3://wmtp/demo train-stage2-5d0c81e2 --level warning,error
        wmtp-store log --store s3://wmtp/demo train-stage2-5d0c81e2 --events metrics --last 3
        wmtp-store log --store s3://wmtp/demo train-stage2-5d0c81e2 --contains 'halved' --since 2026-11-28T10:00:00Z";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let runs = unless_stopped(cx, store.runs())?;
        let id = chosen(&runs, &self.run)?;
        let view = unless_stopped(cx, store.run(id))?;
        let lines = match &self.events {
            Some(_) => &view.events,
            None => &view.logs,
        };
        let mut kept: Vec<&Value> = lines.iter().filter(|line| self.keeps(line)).collect();
        kept.truncate(self.limit.unwrap_or(usize::MAX));
        let passed = kept.len().saturating_sub(self.last.unwrap_or(usize::MAX));
        kept.drain(..passed);
        for line in &kept {
            cx.print(shown(line));
        }
        if view.num_bad_lines > 0 {
            let count = counted(view.num_bad_lines, "line");
            cx.warning(format!("{count} of this run could not be read"));
        }
        cx.json_result(json!({ "run_id": id, "lines": kept }));
        Ok(())
    }
}

/// The run whose id begins so; there must be one alone.
pub(crate) fn chosen<'a>(runs: &'a [RunId], beginning: &str) -> Result<&'a RunId, JobError> {
    let mut fitting = runs
        .iter()
        .filter(|id| id.to_string().starts_with(beginning));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => {
            let error = format!("several runs begin with {beginning:?}");
            Err(JobError::usage(error).hint("give more of the id"))
        }
        (None, _) => {
            let error = format!("no run of this store begins with {beginning:?}");
            Err(JobError::bad_input(error).hint("`wmtp-store runs` lists them"))
        }
    }
}

impl Log {
    fn keeps(&self, line: &Value) -> bool {
        let is = |key: &str, words: &[String]| {
            let found = line[key].as_str().unwrap_or_default();
            words.is_empty() || words.iter().any(|word| word.eq_ignore_ascii_case(found))
        };
        let at = line["ts"].as_str().and_then(|text| text.parse().ok());
        let is_in_time = |at: Option<jiff::Timestamp>| {
            let since = self
                .since
                .is_none_or(|since| at.is_some_and(|at| at >= since));
            since
                && self
                    .until
                    .is_none_or(|until| at.is_some_and(|at| at < until))
        };
        is("level", &self.level)
            && is("type", self.events.as_deref().unwrap_or_default())
            && self
                .contains
                .as_ref()
                .is_none_or(|text| line.to_string().contains(text.as_str()))
            && is_in_time(at)
    }
}

/// A line for people: time, then level and message, or type and data.
fn shown(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    match line["message"].as_str() {
        Some(message) => format!("{}  {:<7}  {message}", text("ts"), text("level")),
        None => format!("{}  {:<12}  {}", text("ts"), text("type"), line["data"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(args: &[&str]) -> Log {
        use clap::{Args as _, FromArgMatches as _};
        let command = Log::augment_args(clap::Command::new("log"));
        let matches = command.get_matches_from([&["log", "ab"], args].concat());
        Log::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn a_line_stays_that_every_filter_keeps() {
        let line = json!({"ts": "2026-11-28T10:00:00Z", "level": "WARNING", "message": "rate halved to 0.002"});
        for (args, kept) in [
            (&[] as &[&str], true),
            (&["--level", "warning,error"], true),
            (&["--level", "error"], false),
            (&["--contains", "halved"], true),
            (&["--contains", "doubled"], false),
            (&["--since", "2026-11-28T10:00:00Z"], true),
            (&["--since", "2026-11-28T10:00:01Z"], false),
            (&["--until", "2026-11-28T10:00:00Z"], false),
            (&["--until", "2026-11-28T10:00:01Z"], true),
        ] {
            assert_eq!(log(args).keeps(&line), kept, "{args:?}");
        }
        let event = json!({"ts": "2026-11-28T10:00:00Z", "type": "metrics", "data": {"loss": 1.5}});
        assert!(log(&["--events"]).keeps(&event));
        assert!(log(&["--events", "metrics"]).keeps(&event));
        assert!(!log(&["--events", "ended"]).keeps(&event));
        assert_eq!(
            shown(&event),
            "2026-11-28T10:00:00Z  metrics       {\"loss\":1.5}"
        );
    }
}
