//! What a job tells people and machines while it works: bars on a terminal, else JSON lines; both go to stderr.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use wmtp_artifacts::RunProgress;

use crate::journal::Journal;
use crate::secrets::redact;

/// Time between two progress lines.
const PERIOD: Duration = Duration::from_secs(5);

/// Where a job's messages go.
pub(crate) struct Reporter {
    job: String,
    /// `None` without a terminal.
    bars: Option<MultiProgress>,
    /// Of the run that is under way.
    journal: Mutex<Option<Arc<Journal>>>,
    last_metrics: Mutex<Option<Instant>>,
}

impl Reporter {
    pub(crate) fn new(job: &str) -> Arc<Self> {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Arc::new(Self {
            job: job.to_owned(),
            bars,
            journal: Mutex::default(),
            last_metrics: Mutex::new(None),
        })
    }

    /// From now on events and logs go to the store as well.
    pub(crate) fn attach(&self, journal: Arc<Journal>) {
        *self.slot() = Some(journal);
    }

    /// From now on they do not, as before the run that has ended.
    pub(crate) fn detach(&self) -> Option<Arc<Journal>> {
        self.slot().take()
    }

    pub(crate) fn journal(&self) -> Option<Arc<Journal>> {
        self.slot().clone()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Journal>>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sentence for people.
    pub(crate) fn say(&self, level: &str, message: &str) {
        let message = redact(message);
        match &self.bars {
            Some(bars) => {
                let line = match level {
                    "info" => message.clone(),
                    _ => format!("{level}: {message}"),
                };
                bars.suspend(|| to_stderr(&line));
            }
            None => self.line("log", &json!({"level": level, "message": message})),
        }
        if let Some(journal) = self.journal() {
            journal.log(level, &message);
        }
    }

    /// An event of the life cycle.
    pub(crate) fn event(&self, kind: &str, data: &Value) {
        if self.bars.is_none() {
            self.line(kind, data);
        }
        if let Some(journal) = self.journal() {
            journal.event(kind, data);
        }
    }

    /// Values of one step. Every step goes to the store; stderr gets a sample.
    pub(crate) fn metrics(&self, step: u64, values: &[(&str, f64)]) {
        let finite: serde_json::Map<String, Value> = values
            .iter()
            .map(|(name, value)| {
                (
                    (*name).to_owned(),
                    json!(value.is_finite().then_some(*value)),
                )
            })
            .collect();
        let data = json!({"step": step, "values": finite});
        if let Some(journal) = self.journal() {
            journal.metrics(values);
            journal.event("metrics", &data);
        }
        let mut last = self
            .last_metrics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.bars.is_none() && last.is_none_or(|then| then.elapsed() >= PERIOD) {
            *last = Some(Instant::now());
            self.line("metrics", &data);
        }
    }

    fn line(&self, kind: &str, data: &Value) {
        json_line(kind, &self.job, data);
    }

    fn bar(&self, label: &str, unit: &str, total: u64) -> ProgressBar {
        let Some(bars) = &self.bars else {
            return ProgressBar::hidden();
        };
        let template = if total == 0 {
            format!("{{spinner}} {label} {{human_pos}} {unit} {{msg}}")
        } else {
            format!("{label:<12} {{bar:30}} {{human_pos}}/{{human_len}} {unit} {{msg}}")
        };
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bars.add(ProgressBar::new(total).with_style(style))
    }
}

/// What happened, as a JSON line on stderr where no terminal shows it.
pub(crate) fn to_machines(kind: &str, job: &str, data: &Value) {
    if !std::io::stderr().is_terminal() {
        json_line(kind, job, data);
    }
}

fn json_line(kind: &str, job: &str, data: &Value) {
    let line = json!({"ts": jiff::Timestamp::now(), "type": kind, "job": job, "data": data});
    to_stderr(&redact(&line.to_string()));
}

/// A line on stderr; nobody left to read it is no reason to fail.
pub(crate) fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// How far a part of the work is. Clones count together; the last one to go ends the bar.
#[derive(Clone)]
pub struct Progress {
    part: Arc<Part>,
}

struct Part {
    reporter: Arc<Reporter>,
    label: String,
    unit: String,
    total: u64,
    bar: ProgressBar,
    state: Mutex<State>,
}

struct State {
    done: u64,
    detail: String,
    /// Where counting began: a resumed run does not start at 0.
    base: Option<(u64, Instant)>,
    created: Instant,
    last_report: Option<Instant>,
    is_finished: bool,
}

impl Progress {
    pub(crate) fn new(reporter: &Arc<Reporter>, label: &str, unit: &str, total: u64) -> Self {
        Self {
            part: Arc::new(Part {
                reporter: Arc::clone(reporter),
                label: label.to_owned(),
                unit: unit.to_owned(),
                total,
                bar: reporter.bar(label, unit, total),
                state: Mutex::new(State {
                    done: 0,
                    detail: String::new(),
                    base: None,
                    created: Instant::now(),
                    last_report: None,
                    is_finished: false,
                }),
            }),
        }
    }

    /// So many units are done, all together.
    pub fn set(&self, done: u64) {
        self.part.advance(|_| done);
    }

    /// So many more units are done.
    pub fn inc(&self, by: u64) {
        self.part.advance(|done| done + by);
    }

    /// A few words behind the bar, such as `loss 1.23, 5,400 tokens/s`.
    pub fn detail(&self, text: impl Into<String>) {
        let mut state = self
            .part
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.detail = text.into();
    }

    /// Ends the bar; dropping the last clone does the same.
    pub fn finish(&self) {
        self.part.finish();
    }
}

impl Part {
    fn advance(&self, next: impl FnOnce(u64) -> u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        state.done = next(state.done);
        if state.base.is_none() {
            let start = if state.done <= 1 {
                (0, state.created)
            } else {
                (state.done, now)
            };
            state.base = Some(start);
        }
        self.bar.set_position(state.done);
        if state.last_report.is_none_or(|then| now - then >= PERIOD) {
            state.last_report = Some(now);
            self.report(&state);
        } else if self.reporter.bars.is_some() {
            self.bar.set_message(self.tail(&state));
        }
        let done = state.done;
        drop(state);
        if self.total >= 2 && done * 2 >= self.total {
            middle_of_the_job();
        }
    }

    /// Units per second, and seconds left.
    fn rate(&self, state: &State) -> (Option<f64>, Option<f64>) {
        let Some((base, since)) = state.base else {
            return (None, None);
        };
        let secs = since.elapsed().as_secs_f64();
        let counted = state.done.saturating_sub(base);
        if counted == 0 || secs <= 0.0 {
            return (None, None);
        }
        let rate = counted as f64 / secs;
        let left = self
            .total
            .checked_sub(state.done)
            .filter(|_| self.total > 0);
        (Some(rate), left.map(|left| left as f64 / rate))
    }

    fn tail(&self, state: &State) -> String {
        let (rate, eta) = self.rate(state);
        let mut tail = rate.map_or_else(String::new, |rate| format!("{rate:.1}/s"));
        if let Some(eta) = eta {
            // Writing to a text cannot fail.
            let _ = write!(tail, ", {} left", duration(eta));
        }
        if !state.detail.is_empty() {
            tail.push_str("  ");
            tail.push_str(&state.detail);
        }
        tail
    }

    fn report(&self, state: &State) {
        let (rate, eta_secs) = self.rate(state);
        self.bar.set_message(self.tail(state));
        let total = (self.total > 0).then_some(self.total);
        let rounded = |value: Option<f64>| value.map(|value| (value * 10.0).round() / 10.0);
        let data = json!({
            "label": self.label,
            "done": state.done,
            "total": total,
            "unit": self.unit,
            "rate": rounded(rate),
            "eta_secs": rounded(eta_secs),
            "detail": state.detail,
        });
        self.reporter.event("progress", &data);
        if let Some(journal) = self.reporter.journal() {
            let progress = RunProgress {
                done: state.done,
                total,
                unit: self.unit.clone(),
                rate,
                eta_secs,
            };
            journal.progress(&self.label, progress);
        }
    }

    fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut state.is_finished, true) {
            self.report(&state);
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Passes the fault point of the tests that kill a job halfway, once per process.
fn middle_of_the_job() {
    static PASSED: AtomicBool = AtomicBool::new(false);
    if !PASSED.swap(true, Ordering::Relaxed) {
        wmtp_artifacts::fault::point("job:middle");
    }
}

/// Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn duration(secs: f64) -> String {
    let secs = secs.max(0.0).round() as u64;
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, secs) => format!("{secs} s"),
        (0, mins, secs) => format!("{mins} min {secs:02} s"),
        (hours, mins, _) => format!("{hours} h {mins:02} min"),
    }
}

/// Bytes as a person says them: `812 B`, `1.5 KiB`, `13.0 GiB`.
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut value = size as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::{bytes, duration};

    #[test]
    fn durations_and_sizes_read_well() {
        assert_eq!(duration(4.4), "4 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(7805.0), "2 h 10 min");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
