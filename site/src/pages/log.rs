//! Logs: the end and every error on the page, all of it in numbered parts and as a file.

use std::fmt::Write;

use minijinja::context;
use minijinja::value::Value;

use super::{Book, markup};
use crate::Error;
use crate::input::{LogLine, RunInfo, VersionInput};
use crate::table::{Cell, Table};
use crate::text::{inert, visible};

/// Last lines that a page shows.
const TAIL: usize = 200;
/// Errors that a page shows beside them.
const ERRORS: usize = 500;
/// Lines of one part.
const PART: usize = 2000;

/// Runs that made a version's models and scores.
fn runs_of<'a>(book: &Book<'a>, version: &VersionInput) -> Vec<&'a RunInfo> {
    let wanted: Vec<&str> = version
        .row
        .runs
        .iter()
        .flat_map(|source| [source.checkpoint.as_deref(), Some(source.scores.as_str())])
        .flatten()
        .collect();
    let runs = book.input.runs.as_deref().unwrap_or_default().iter();
    runs.filter(|run| run.outputs.values().any(|id| wanted.contains(&id.as_str())))
        .collect()
}

/// Whether a version has a page of logs.
pub(super) fn has_page(book: &Book<'_>, version: &VersionInput) -> bool {
    !runs_of(book, version).is_empty()
}

pub(super) fn write(book: &mut Book<'_>, version: &VersionInput) -> Result<(), Error> {
    let runs = runs_of(book, version);
    if runs.is_empty() {
        return Ok(());
    }
    let id = version.row.version_id.as_str();
    let title = book.say("{version}: what its runs said", &[("version", id)]);
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("run"),
        &say("state"),
        &say("attempts"),
        &say("time"),
        &say("lines"),
        &say("errors"),
    ]);
    for run in &runs {
        let errors = run.logs.iter().filter(|line| line.level == "error").count();
        table.row(vec![
            Cell::link(
                &format!("../../runs/{}/index.html", run.id),
                run.name.as_deref().unwrap_or(&run.id),
            ),
            super::runs::state_cell(book, run),
            Cell::number(run.attempts.len().to_string()),
            Cell::number(crate::cost::duration(run.secs() / 3600.0)),
            Cell::number(run.logs.len().to_string()),
            Cell::number(errors.to_string()),
        ]);
    }
    let logs: Vec<Value> = runs.iter().map(|run| view(book, run, 2)).collect();
    let values = context! {
        crumbs => super::version::crumbs(book, version, "log"),
        heading => title.as_str(),
        runs => table.finish(),
        logs => logs,
    };
    book.page(&format!("v/{id}/log.html"), "log.html", &title, values)
}

/// The log of a run for a page that lies `depth` folders deep.
pub(super) fn view(book: &Book<'_>, run: &RunInfo, depth: usize) -> Value {
    let logs = &run.logs;
    let start = logs.len().saturating_sub(TAIL);
    let earlier: Vec<(usize, &LogLine)> = logs[..start]
        .iter()
        .enumerate()
        .filter(|(_, line)| line.level == "error")
        .map(|(index, line)| (index + 1, line))
        .collect();
    let hidden = earlier.len().saturating_sub(ERRORS);
    let tail = logs[start..]
        .iter()
        .enumerate()
        .map(|(index, line)| (start + index + 1, line));
    let language = book.words.language().folder().matches('/').count();
    let top = "../".repeat(depth + language);
    let folder = format!("{top}runs/{}", run.id);
    let parts: Vec<Value> = (0..logs.len().div_ceil(PART))
        .filter(|_| logs.len() > TAIL)
        .map(|part| {
            let last = ((part + 1) * PART).min(logs.len());
            context! { path => markup(format!("{folder}/{}", part_name(part))), range => format!("{}\u{2013}{last}", part * PART + 1) }
        })
        .collect();
    context! {
        title => run.name.as_deref().map_or_else(|| run.id.clone(), visible),
        run => markup(format!("{}runs/{}/index.html", "../".repeat(depth), run.id)),
        job => run.job.as_str(),
        num_lines => crate::cost::grouped(logs.len() as u64),
        is_whole => logs.len() <= TAIL,
        errors => (!earlier.is_empty()).then(|| markup(lines(earlier.iter().take(ERRORS).copied()))),
        num_errors => earlier.len().to_string(),
        hidden_errors => (hidden > 0).then(|| hidden.to_string()),
        tail => (!logs.is_empty()).then(|| markup(lines(tail))),
        tail_from => (start + 1).to_string(),
        parts => parts,
        file => markup(format!("{folder}/log.txt")),
        num_bad => (run.num_bad_lines > 0).then(|| run.num_bad_lines.to_string()),
    }
}

/// Pages of the parts, and the file with all of it: once, below the top of the site.
pub(super) fn write_parts(book: &mut Book<'_>, run: &RunInfo) -> Result<(), Error> {
    if run.logs.is_empty() {
        return Ok(());
    }
    let path = format!("runs/{}/log.txt", run.id);
    let text = whole(&run.logs);
    book.tray.borrow_mut().add(&path, text.as_bytes())?;
    if run.logs.len() <= TAIL {
        return Ok(());
    }
    let num_parts = run.logs.len().div_ceil(PART);
    for (part, chunk) in run.logs.chunks(PART).enumerate() {
        let first = part * PART + 1;
        let range = format!("{first}\u{2013}{}", first + chunk.len() - 1);
        let name = run.name.as_deref().map_or_else(|| run.id.clone(), visible);
        let title = book.say(
            "Log of {run}, lines {range}",
            &[("run", &name), ("range", &range)],
        );
        let numbered = chunk
            .iter()
            .enumerate()
            .map(|(index, line)| (first + index, line));
        let values = context! {
            heading => title.as_str(),
            lines => markup(lines(numbered)),
            previous => part.checked_sub(1).map(part_name),
            next => (part + 1 < num_parts).then(|| part_name(part + 1)),
        };
        book.page(
            &format!("runs/{}/{}", run.id, part_name(part)),
            "logpart.html",
            &title,
            values,
        )?;
    }
    Ok(())
}

fn part_name(part: usize) -> String {
    format!("log-{:04}.html", part + 1)
}

/// Every line as text, without what a terminal would obey.
fn whole(logs: &[LogLine]) -> String {
    let mut text = String::new();
    for line in logs {
        let line = format!("{} {:7} {}", line.at, line.level, line.message);
        let _ = writeln!(text, "{}", visible(&line).replace('\n', " "));
    }
    text
}

/// Lines with their numbers, each in the class of its level.
fn lines<'a>(numbered: impl Iterator<Item = (usize, &'a LogLine)>) -> String {
    const LEVELS: [&str; 4] = ["error", "warning", "info", "debug"];
    let mut html = String::new();
    for (number, line) in numbered {
        let level = LEVELS
            .iter()
            .find(|known| **known == line.level)
            .unwrap_or(&"info");
        let time = line.at.get(11..19).unwrap_or(&line.at);
        let _ = write!(
            html,
            "<span class=\"ll l-{level}\"><span class=\"no\">{number}</span> <span class=\"at\">{}</span> <b>{}</b> {}\n</span>",
            inert(time),
            inert(&line.level),
            inert(&line.message)
        );
    }
    html
}
