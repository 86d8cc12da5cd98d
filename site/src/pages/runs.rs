//! Runs: what is under way, what was stopped, what failed, what died, told from their events.

use minijinja::context;
use minijinja::value::Value;

use super::{Book, log, markup, moment};
use crate::Error;
use crate::charts::Curve;
use crate::cost::{duration, grouped};
use crate::input::{RunInfo, RunLife};
use crate::table::{Cell, Table};
use crate::text::{escape, visible};
use crate::words::Language;

/// Live metrics that a run's page draws, in the order in which a reader asks.
const DRAWN: [&str; 6] = [
    "train_loss_unweighted",
    "train_loss",
    "loss",
    "validation_loss",
    "tokens_per_second",
    "grad_norm",
];
/// Events on a run's page; the oldest go first.
const EVENTS_SHOWN: usize = 300;
/// Letters of the longest name that stays on one line where there is room.
const UNBROKEN_NAME: usize = 28;

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let mut runs: Vec<&RunInfo> = book.input.runs.iter().flatten().collect();
    runs.sort_by(|a, b| {
        a.life
            .cmp(&b.life)
            .then(b.started.cmp(&a.started))
            .then(a.id.cmp(&b.id))
    });
    let title = finding(book, &runs);
    let values = context! {
        finding => title.as_str(),
        is_known => book.input.runs.is_some(),
        open => table(book, runs.iter().copied().filter(|run| run.life != RunLife::Completed)),
        done => table(book, runs.iter().copied().filter(|run| run.life == RunLife::Completed)),
    };
    book.page("runs/index.html", "runs.html", &title, values)?;
    book.entry("runs/index.html", &title, "");
    for run in runs {
        one(book, run)?;
        if book.words.language() == Language::English {
            log::write_parts(book, run)?;
        }
    }
    Ok(())
}

/// The first line of the page: how many of what.
fn finding(book: &Book<'_>, runs: &[&RunInfo]) -> String {
    if book.input.runs.is_none() {
        return book.say(
            "This site was made without a store, so it knows no runs.",
            &[],
        );
    }
    let count = |life: RunLife| runs.iter().filter(|run| run.life == life).count();
    let told = [
        (RunLife::Running, "{n} running"),
        (RunLife::Lost, "{n} lost"),
        (RunLife::Failed, "{n} failed"),
        (RunLife::Preempted, "{n} preempted"),
        (RunLife::Waiting, "{n} waiting"),
        (RunLife::Completed, "{n} completed"),
    ];
    let parts: Vec<String> = told
        .iter()
        .map(|(life, sentence)| (count(*life), sentence))
        .filter(|(number, _)| *number > 0)
        .map(|(number, sentence)| book.say(sentence, &[("n", &number.to_string())]))
        .collect();
    let total = book.words.count(runs.len(), "{n} run", "{n} runs");
    if parts.is_empty() {
        return book.say("There are no runs yet.", &[]);
    }
    format!("{total}: {}.", parts.join(", "))
}

/// How a run stands, with its sign.
pub(super) fn state_cell(book: &Book<'_>, run: &RunInfo) -> Cell {
    Cell::markup(format!(
        "<span class=\"{}\"><span aria-hidden=\"true\">{}</span> {}</span>",
        run.life.class(),
        run.life.sign(),
        escape(&book.say(run.life.words(), &[]))
    ))
    .class("whole")
}

fn progress(run: &RunInfo) -> Option<String> {
    let (done, total, unit) = run.progress.as_ref()?;
    Some(match total {
        Some(total) if *total > 0 => {
            format!("{} / {} {}", grouped(*done), grouped(*total), visible(unit))
        }
        _ => format!("{} {}", grouped(*done), visible(unit)),
    })
}

fn table<'a>(book: &Book<'_>, runs: impl Iterator<Item = &'a RunInfo>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let runs: Vec<&RunInfo> = runs.collect();
    // Where nobody tags, the table has no column of nothing.
    let is_tagged = runs.iter().any(|run| !run.tags.is_empty());
    let mut heads = [
        "run",
        "job",
        "state",
        "progress",
        "attempts",
        "time",
        "last sign of life",
    ]
    .map(say)
    .to_vec();
    if is_tagged {
        heads.push(say("tags"));
    }
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut table = Table::new(&heads);
    for run in runs {
        let name = run.name.as_deref().unwrap_or(&run.id);
        let mut named = Cell::link(&format!("{}/index.html", run.id), name);
        if name.len() <= UNBROKEN_NAME {
            named = named.class("unbroken");
        }
        let mut cells = vec![
            named,
            Cell::text(&run.job).class("whole"),
            state_cell(book, run),
            Cell::maybe(progress(run)),
            Cell::number(run.attempts.len().max(1).to_string()),
            Cell::number(duration(run.secs() / 3600.0)),
            Cell::text(moment(&run.last)).class("whole"),
        ];
        if is_tagged {
            cells.push(Cell::text(run.tags.join(", ")));
        }
        table.row(cells);
    }
    table.finish()
}

fn one(book: &mut Book<'_>, run: &RunInfo) -> Result<(), Error> {
    let name = run.name.as_deref().map_or_else(|| run.id.clone(), visible);
    let finding = told(book, run, &name);
    let values = context! {
        kicker => format!("{} · {}", run.job, run.id),
        class => run.life.class(),
        sign => run.life.sign(),
        heading => markup(with_whole_date(&finding, &moment(&run.last))),
        facts => facts(book, run),
        notes => notes(book, run),
        attempts => attempts(book, run),
        curves => curves(book, run),
        events => events(book, run),
        outputs => outputs(book, run),
        log => log::view(book, run, 2),
    };
    let path = format!("runs/{}/index.html", run.id);
    book.page(&path, "run.html", &finding, values)?;
    let found_by = format!("{} {}", run.phase, run.tags.join(" "));
    book.entry(&path, &finding, found_by.trim());
    Ok(())
}

/// A sentence whose date does not break.
fn with_whole_date(finding: &str, at: &str) -> String {
    let at = escape(at);
    escape(finding).replacen(&*at, &format!("<span class=\"whole\">{at}</span>"), 1)
}

/// What a run's state means for whoever waits for it.
fn told(book: &Book<'_>, run: &RunInfo, name: &str) -> String {
    let at = moment(&run.last);
    let done = progress(run).unwrap_or_default();
    let phase = visible(&run.phase);
    let message = run
        .attempts
        .last()
        .and_then(|attempt| attempt.message.as_deref())
        .map(visible)
        .unwrap_or_default();
    let values = [
        ("run", name),
        ("at", at.as_str()),
        ("done", done.as_str()),
        ("phase", phase.as_str()),
        ("message", message.as_str()),
    ];
    let sentence = match run.life {
        RunLife::Running if done.is_empty() => "{run} is running ({phase}), last heard of {at}.",
        RunLife::Running => "{run} is running: {phase}, {done}, last heard of {at}.",
        RunLife::Lost if done.is_empty() => {
            "{run} was last heard of {at}, while {phase}: its machine is gone or cut off."
        }
        RunLife::Lost => "{run} was last heard of {at}, at {done}: its machine is gone or cut off.",
        RunLife::Failed if message.is_empty() => "{run} failed {at}.",
        RunLife::Failed => "{run} failed {at}: {message}",
        RunLife::Preempted if done.is_empty() => {
            "{run} was stopped {at} and goes on when it is started again."
        }
        RunLife::Preempted => {
            "{run} was stopped {at} at {done} and goes on when it is started again."
        }
        RunLife::Waiting => "{run} was asked for {at} and has not begun.",
        RunLife::Completed => "{run} completed {at}.",
    };
    book.say(sentence, &values)
}

fn facts(book: &Book<'_>, run: &RunInfo) -> Vec<Value> {
    let mut facts = vec![
        ("first started", moment(&run.started)),
        ("last sign of life", moment(&run.last)),
        (
            "machine time of all attempts",
            duration(run.secs() / 3600.0),
        ),
        ("attempts", run.attempts.len().to_string()),
    ];
    facts.extend(progress(run).map(|progress| ("progress", progress)));
    let left = run.eta_secs.filter(|_| run.life == RunLife::Running);
    facts.extend(left.map(|secs| ("left, by its own count", duration(secs / 3600.0))));
    facts.extend(
        run.device
            .as_deref()
            .map(|device| ("computed on", visible(device))),
    );
    facts.push(("machine", visible(&run.host)));
    if !run.tags.is_empty() {
        facts.push(("tags", visible(&run.tags.join(", "))));
    }
    facts
        .into_iter()
        .map(|(name, value)| context! { name => book.say(name, &[]), value => value })
        .collect()
}

fn notes(book: &Book<'_>, run: &RunInfo) -> Option<Value> {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[&say("time"), &say("author"), &say("note")]);
    for note in &run.notes {
        table.row(vec![
            Cell::text(moment(&note.at)).class("whole"),
            Cell::text(&note.author),
            Cell::text(&note.text),
        ]);
    }
    (!run.notes.is_empty()).then(|| table.finish())
}

fn attempts(book: &Book<'_>, run: &RunInfo) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("attempt"),
        &say("began"),
        &say("last event"),
        &say("time"),
        &say("ended as"),
        &say("message"),
    ]);
    for attempt in &run.attempts {
        let end = attempt
            .end
            .as_deref()
            .map_or_else(|| say("no word of its end"), say);
        table.row(vec![
            Cell::text(attempt.number.to_string()),
            Cell::text(moment(&attempt.began)).class("whole"),
            Cell::text(moment(&attempt.ended)).class("whole"),
            Cell::number(duration(attempt.secs / 3600.0)),
            Cell::text(end),
            attempt
                .message
                .as_ref()
                .map_or_else(|| Cell::text(""), Cell::text),
        ]);
    }
    table.finish()
}

fn curves(book: &Book<'_>, run: &RunInfo) -> Vec<Value> {
    DRAWN
        .iter()
        .filter_map(|name| Some((*name, run.metrics.get(*name)?)))
        .filter(|(_, points)| points.len() > 1)
        .filter_map(|(name, points)| {
            let plot = book.shared.plot(&run.id, name, || {
                Curve {
                    lines: &[("a-baseline", points)],
                    range: None,
                    height: 110,
                }
                .plot()
            })?;
            Some(context! { title => name, chart => markup(plot.named(name, "", &book.words)) })
        })
        .collect()
}

fn events(book: &Book<'_>, run: &RunInfo) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let skipped = run.events.len().saturating_sub(EVENTS_SHOWN);
    let caption = match skipped {
        0 => say("Events of all attempts, without progress and metrics."),
        _ => book.say(
            "The last {n} events; earlier ones are in the store.",
            &[("n", &EVENTS_SHOWN.to_string())],
        ),
    };
    let mut table = Table::new(&[
        &say("time"),
        &say("attempt"),
        &say("event"),
        &say("what it says"),
    ])
    .caption(&caption);
    for event in &run.events[skipped..] {
        let time = event.at.get(..19).unwrap_or(&event.at).replace('T', " ");
        table.row(vec![
            Cell::text(time).class("whole"),
            Cell::number(event.attempt.to_string()),
            Cell::text(&event.kind),
            Cell::text(&event.text),
        ]);
    }
    table.finish()
}

fn outputs(book: &Book<'_>, run: &RunInfo) -> Value {
    let mut table = Table::new(&[])
        .class("ids")
        .caption(&book.say("Artifacts that it made.", &[]));
    for (role, id) in &run.outputs {
        table.row(vec![Cell::text(role), Cell::code(id)]);
    }
    table.finish()
}
