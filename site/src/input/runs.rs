//! Runs of jobs as the site shows them: what their events and logs say.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use wmtp_artifacts::{Remark, RemarkKind, RunView, tags};
use wmtp_records::Usage;

use crate::cost::Money;

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunLife {
    /// It works.
    Running,
    /// It says it works and was not heard of for 90 seconds.
    Lost,
    /// Its newest attempt ended with an error.
    Failed,
    /// It was stopped and goes on when started again.
    Preempted,
    /// It was asked for and has not begun.
    Waiting,
    /// It has its result.
    Completed,
}

impl RunLife {
    /// The word for it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Preempted => "preempted",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
        }
    }

    /// Class of its sign and colour.
    pub fn class(self) -> &'static str {
        match self {
            Self::Failed | Self::Lost => "fail",
            Self::Completed => "pass",
            Self::Running | Self::Preempted | Self::Waiting => "level",
        }
    }

    /// Its sign, which says the same without colour.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Running => "\u{25b6}",
            Self::Lost => "?",
            Self::Failed => "\u{2717}",
            Self::Preempted => "\u{2016}",
            Self::Waiting => "\u{2026}",
            Self::Completed => "\u{2713}",
        }
    }
}

/// One attempt of a run, from its events.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u64,
    /// Time of its first event.
    pub began: String,
    /// Time of its last event.
    pub ended: String,
    /// Seconds between the two.
    pub secs: f64,
    /// Type of the event that ended it; none where it just stopped being heard of.
    pub end: Option<String>,
    /// What that event says.
    pub message: Option<String>,
    /// Processes that shared the work: on GPUs, one each.
    pub ranks: u64,
    /// What it took by its own account; none of one that was killed.
    pub usage: Option<Usage>,
}

/// An event worth a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub at: String,
    /// Attempt that it belongs to.
    pub attempt: u64,
    /// Its type.
    pub kind: String,
    /// What it says, as text.
    pub text: String,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// When.
    pub at: String,
    /// `info`, `warning`, `error` or what the job called it.
    pub level: String,
    /// The message.
    pub message: String,
}

/// What somebody noted on a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// When.
    pub at: String,
    /// Who, by their own word.
    pub author: String,
    /// What.
    pub text: String,
}

/// One run of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct RunInfo {
    /// Its id.
    pub id: String,
    /// The job.
    pub job: String,
    /// Name given to its outputs, if any.
    pub name: Option<String>,
    /// How it stands.
    pub life: RunLife,
    /// When it was first started.
    pub started: String,
    /// Time of its newest sign of life.
    pub last: String,
    /// What it was doing, from its last heartbeat.
    pub phase: String,
    /// Units done, units in all, and what is counted.
    pub progress: Option<(u64, Option<u64>, String)>,
    /// Seconds left by its own count.
    pub eta_secs: Option<f64>,
    /// Where it computed: `cpu`, `cuda:0`.
    pub device: Option<String>,
    /// Label of the machine.
    pub host: String,
    /// Artifacts that it made, by role.
    pub outputs: BTreeMap<String, String>,
    /// Its attempts.
    pub attempts: Vec<Attempt>,
    /// Its events without progress and metrics.
    pub events: Vec<Event>,
    /// Points of its live metrics by name.
    pub metrics: BTreeMap<String, Vec<(f64, f64)>>,
    /// Its log.
    pub logs: Vec<LogLine>,
    /// Words by which people find it again.
    pub tags: Vec<String>,
    /// What people noted on it, the oldest first.
    pub notes: Vec<Note>,
    /// Lines in the store that are no JSON, and remarks that are none.
    pub num_bad_lines: u64,
}

impl RunInfo {
    /// What a store knows about a run.
    pub fn of(view: &RunView) -> Self {
        let request = &view.request;
        let attempts = attempts(&view.events);
        let heartbeat = view
            .status
            .as_ref()
            .map(|status| status.heartbeat_at.to_string());
        let newest = attempts.last().map(|attempt| attempt.ended.clone());
        Self {
            id: request.run_id.to_string(),
            job: request.job.clone(),
            name: request.labels.get("name").cloned(),
            life: life(view),
            started: request.started_at.to_string(),
            last: heartbeat
                .max(newest)
                .unwrap_or_else(|| request.started_at.to_string()),
            phase: view
                .status
                .as_ref()
                .map(|status| status.phase.clone())
                .unwrap_or_default(),
            progress: view.status.as_ref().and_then(|status| {
                let progress = status.progress.as_ref()?;
                Some((progress.done, progress.total, progress.unit.clone()))
            }),
            eta_secs: view
                .status
                .as_ref()
                .and_then(|status| status.progress.as_ref()?.eta_secs),
            device: view.events.iter().rev().find_map(device),
            host: request.host.clone(),
            outputs: view
                .result
                .iter()
                .flat_map(|result| &result.outputs)
                .map(|(role, id)| (role.clone(), id.to_string()))
                .collect(),
            attempts,
            events: view.events.iter().filter_map(event).collect(),
            metrics: metrics(&view.events),
            logs: view.logs.iter().map(log_line).collect(),
            tags: tags(&view.remarks).into_iter().map(str::to_owned).collect(),
            notes: view.remarks.iter().filter_map(note).collect(),
            num_bad_lines: view.num_bad_lines,
        }
    }

    /// Seconds of machine time of all attempts.
    pub fn secs(&self) -> f64 {
        self.attempts.iter().map(|attempt| attempt.secs).sum()
    }

    /// Whether it computed on a GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.device
            .as_deref()
            .is_some_and(|device| device.starts_with("cuda"))
    }

    /// Seconds of GPU time of all attempts: a run keeps as many GPUs busy as it has ranks.
    pub fn gpu_secs(&self) -> f64 {
        if !self.is_on_gpu() {
            return 0.0;
        }
        let secs = |attempt: &Attempt| attempt.secs * attempt.ranks as f64;
        self.attempts.iter().map(secs).sum()
    }

    /// What the attempts that stated a price cost.
    pub fn money(&self) -> Money {
        let usages = self.attempts.iter().filter_map(|one| one.usage.as_ref());
        usages.filter_map(|usage| usage.cost.as_ref()).collect()
    }

    /// Attempts that did not end with the result.
    pub fn num_lost_attempts(&self) -> usize {
        let ended_well = |attempt: &&Attempt| attempt.end.as_deref() == Some("completed");
        self.attempts.len() - self.attempts.iter().filter(ended_well).count()
    }
}

fn life(view: &RunView) -> RunLife {
    match view.life() {
        wmtp_artifacts::RunLife::Completed => RunLife::Completed,
        wmtp_artifacts::RunLife::Running => RunLife::Running,
        wmtp_artifacts::RunLife::Preempted => RunLife::Preempted,
        wmtp_artifacts::RunLife::Failed => RunLife::Failed,
        wmtp_artifacts::RunLife::Lost => RunLife::Lost,
        wmtp_artifacts::RunLife::Waiting => RunLife::Waiting,
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn device(event: &Value) -> Option<String> {
    (text(event, "type") == "device")
        .then(|| event["data"]["device"].as_str().map(str::to_owned))?
}

fn attempts(events: &[Value]) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for event in events {
        let number = event["attempt"].as_u64().unwrap_or(0);
        let at = text(event, "ts").to_owned();
        if attempts.last().is_none_or(|last| last.number != number) {
            attempts.push(Attempt {
                number,
                began: at.clone(),
                ended: at.clone(),
                secs: 0.0,
                end: None,
                message: None,
                ranks: 1,
                usage: None,
            });
        }
        let Some(attempt) = attempts.last_mut() else {
            continue;
        };
        attempt.ended = at;
        let kind = text(event, "type");
        if matches!(kind, "completed" | "failed" | "preempted") {
            attempt.end = Some(kind.to_owned());
            attempt.message = event["data"]["message"].as_str().map(str::to_owned);
        }
        match kind {
            "ranks" => attempt.ranks = event["data"]["ranks"].as_u64().unwrap_or(1).max(1),
            "usage" => attempt.usage = Usage::deserialize(&event["data"]).ok(),
            _ => {}
        }
    }
    for attempt in &mut attempts {
        attempt.secs = seconds(&attempt.began, &attempt.ended).unwrap_or(0.0);
    }
    attempts
}

/// Seconds from one time to another.
pub fn seconds(from: &str, to: &str) -> Option<f64> {
    let (from, to): (Timestamp, Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    Some((to.as_millisecond() - from.as_millisecond()) as f64 / 1e3)
}

fn event(event: &Value) -> Option<Event> {
    let kind = text(event, "type");
    if matches!(kind, "progress" | "metrics" | "log") {
        return None;
    }
    let data = &event["data"];
    let said = match data["message"].as_str() {
        Some(message) => message.to_owned(),
        None if kind == "started" => String::new(),
        None => facts(data),
    };
    Some(Event {
        at: text(event, "ts").to_owned(),
        attempt: event["attempt"].as_u64().unwrap_or(0),
        kind: kind.to_owned(),
        text: said,
    })
}

/// `key value, key value` of an object's plain values.
fn facts(data: &Value) -> String {
    let fields = data.as_object().into_iter().flatten();
    let plain = fields.filter_map(|(key, value)| match value {
        Value::String(text) => Some(format!("{key} {text}")),
        Value::Number(number) => match number.as_f64() {
            Some(value) if value.fract() != 0.0 => {
                Some(format!("{key} {}", crate::charts::number(value)))
            }
            _ => Some(format!("{key} {number}")),
        },
        Value::Bool(flag) => Some(format!("{key} {flag}")),
        _ => None,
    });
    plain.collect::<Vec<String>>().join(", ")
}

fn metrics(events: &[Value]) -> BTreeMap<String, Vec<(f64, f64)>> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let measured = events
        .iter()
        .filter(|event| text(event, "type") == "metrics");
    for event in measured {
        let Some(step) = event["data"]["step"].as_f64() else {
            continue;
        };
        for (name, value) in event["data"]["values"].as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64() {
                series.entry(name.clone()).or_default().push((step, value));
            }
        }
    }
    series
}

fn note(remark: &Remark) -> Option<Note> {
    (remark.kind == RemarkKind::Note).then(|| Note {
        at: remark.at.to_string(),
        author: remark.author.clone(),
        text: remark.text.clone(),
    })
}

fn log_line(line: &Value) -> LogLine {
    LogLine {
        at: text(line, "ts").to_owned(),
        level: text(line, "level").to_lowercase(),
        message: text(line, "message").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(events: Vec<Value>, state: Option<&str>, is_lost: bool) -> RunView {
        let request = json!({"run_id": "train-stage2-0123", "job": "train-stage2",
            "cache_key": "0".repeat(64), "inputs": [], "recipe": null, "code_version": "0.1.0", "host": "box",
            "labels": {"name": "micropy-v002"}, "started_at": "2026-11-21T10:00:00Z"});
        let status = state.map(|state| {
            serde_json::from_value(json!({"state": state, "phase": "training", "last_event_seq": 3,
                "progress": {"done": 40, "total": 100, "unit": "step", "rate": 2.0, "eta_secs": 30.0},
                "metrics": {}, "heartbeat_at": "2026-11-21T10:10:00Z"}))
            .unwrap()
        });
        RunView {
            request: serde_json::from_value(request).unwrap(),
            attempt: 2,
            status,
            is_lost,
            result: None,
            events,
            logs: vec![
                json!({"seq": 0, "ts": "2026-11-21T10:00:01Z", "level": "INFO", "message": "hello"}),
            ],
            remarks: Vec::new(),
            num_bad_lines: 1,
        }
    }

    fn said(attempt: u64, at: &str, kind: &str, data: Value) -> Value {
        json!({"attempt": attempt, "ts": at, "type": kind, "data": data})
    }

    #[test]
    fn attempts_are_read_from_events() {
        let run = RunInfo::of(&view(
            vec![
                said(1, "2026-11-21T10:00:00Z", "started", json!({"inputs": []})),
                said(
                    1,
                    "2026-11-21T10:00:05Z",
                    "device",
                    json!({"device": "cuda:0"}),
                ),
                said(
                    1,
                    "2026-11-21T10:01:00Z",
                    "metrics",
                    json!({"step": 3, "values": {"loss": 1.5, "mfu": null}}),
                ),
                said(
                    1,
                    "2026-11-21T10:02:00Z",
                    "preempted",
                    json!({"message": "stopped by a signal"}),
                ),
                said(2, "2026-11-21T10:05:00Z", "started", json!({})),
                said(
                    2,
                    "2026-11-21T10:06:30Z",
                    "checkpoint",
                    json!({"step": 40, "id": "checkpoint-1"}),
                ),
            ],
            Some("running"),
            false,
        ));
        assert_eq!(run.life, RunLife::Running);
        assert!((run.secs() - 210.0).abs() < 1e-9, "{}", run.secs());
        assert_eq!(run.attempts[0].end.as_deref(), Some("preempted"));
        assert_eq!(run.num_lost_attempts(), 2);
        assert!(run.is_on_gpu());
        assert_eq!(run.last, "2026-11-21T10:10:00Z");
        assert_eq!(run.metrics["loss"], [(3.0, 1.5)]);
        assert!(!run.metrics.contains_key("mfu"));
        let checkpoint = run.events.last().unwrap();
        assert!(
            checkpoint.text.contains("step 40") && checkpoint.text.contains("id checkpoint-1"),
            "{checkpoint:?}"
        );
        assert_eq!(run.logs[0].level, "info");
    }

    #[test]
    fn a_gpu_of_each_rank_counts_and_money_is_what_was_stated() {
        let at = |second: u64| format!("2026-11-21T10:00:{second:02}Z");
        let cost = |amount: f64, currency: &str| {
            json!({"wall_secs": 10.0, "left_out": [], "energy": null,
                "cost": {"amount": amount, "currency": currency, "source": "a list"}})
        };
        let run = RunInfo::of(&view(
            vec![
                said(1, &at(0), "started", json!({})),
                said(1, &at(1), "device", json!({"device": "cuda:0"})),
                said(1, &at(2), "ranks", json!({"ranks": 4})),
                said(1, &at(10), "usage", cost(0.5, "USD")),
                said(2, &at(20), "started", json!({})),
                said(2, &at(40), "usage", cost(1.0, "USD")),
                said(3, &at(50), "started", json!({})),
                said(3, &at(51), "usage", cost(7.0, "KRW")),
            ],
            Some("completed"),
            false,
        ));
        // Ten seconds of four GPUs, twenty and one of one.
        assert!((run.gpu_secs() - 61.0).abs() < 1e-9, "{}", run.gpu_secs());
        assert!((run.secs() - 31.0).abs() < 1e-9);
        assert_eq!(run.money().words().as_deref(), Some("7.00 KRW + 1.50 USD"));

        let on_the_processor = vec![
            said(1, &at(0), "started", json!({})),
            said(1, &at(2), "ranks", json!({"ranks": 4})),
            said(1, &at(10), "usage", json!({"wall_secs": 10.0})),
        ];
        let run = RunInfo::of(&view(on_the_processor, Some("completed"), false));
        assert!(run.gpu_secs().abs() < 1e-9);
        assert_eq!(run.money().words(), None);
    }

    #[test]
    fn notes_are_told_as_they_were_left_and_tags_as_they_stand() {
        let mut view = view(Vec::new(), None, false);
        for (kind, text) in [
            (RemarkKind::Tag, "paper"),
            (RemarkKind::Note, "died with its node"),
            (RemarkKind::Tag, "keep"),
            (RemarkKind::Untag, "paper"),
        ] {
            view.remarks.push(Remark {
                kind,
                text: text.to_owned(),
                author: "ada".to_owned(),
                at: "2026-11-21T11:00:00Z".parse().unwrap(),
            });
        }
        let run = RunInfo::of(&view);
        assert_eq!(run.tags, ["keep"]);
        assert_eq!(run.notes.len(), 1);
        assert_eq!(run.notes[0].text, "died with its node");
        assert_eq!(run.notes[0].author, "ada");
    }

    #[test]
    fn every_life_of_a_run_is_told_from_its_state() {
        let of = |state, is_lost| RunInfo::of(&view(Vec::new(), state, is_lost)).life;
        assert_eq!(of(None, false), RunLife::Waiting);
        assert_eq!(of(Some("running"), false), RunLife::Running);
        assert_eq!(of(Some("running"), true), RunLife::Lost);
        assert_eq!(of(Some("failed"), false), RunLife::Failed);
        assert_eq!(of(Some("preempted"), false), RunLife::Preempted);
        assert_eq!(of(Some("completed"), false), RunLife::Completed);
    }
}
