//! Sweeps and ablations: which setting is best, and why do we think so?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::{Comparison, Verdict};
use wmtp_stats::wording::percent;

use super::{Book, markup, sections};
use crate::cost::{duration, grouped};
use crate::input::VersionInput;
use crate::recipe::Sweep;
use crate::table::{Cell, Table};
use crate::text::visible;
use crate::words::both;
use crate::{Error, charts, headline, marks};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let shared = book.shared;
    let title = book.words.count(
        shared.sweeps.len(),
        "One setting was varied on its own.",
        "{n} settings were varied on their own.",
    );
    let list: Vec<Value> = shared
        .sweeps
        .iter()
        .map(|(stem, sweep)| {
            context! {
                href => format!("{stem}.html"),
                key => visible(sweep.key),
                parent => sweep.parent.row.version_id.as_str(),
                conclusion => conclusion(book, sweep),
            }
        })
        .collect();
    let values = context! { finding => title.as_str(), sweeps => list };
    book.page("sweeps/index.html", "sweeps.html", &title, values)?;
    book.entry("sweeps/index.html", &title, "");
    for (stem, sweep) in &shared.sweeps {
        one(book, stem, sweep)?;
    }
    Ok(())
}

fn one(book: &mut Book<'_>, stem: &str, sweep: &Sweep<'_>) -> Result<(), Error> {
    let conclusion = conclusion(book, sweep);
    let told: Vec<(&VersionInput, &str, &Comparison)> = sweep
        .settings
        .iter()
        .filter_map(|(version, value)| {
            Some((*version, *value, version.row.against_parent.as_ref()?))
        })
        .collect();
    let reach = charts::reach(told.iter().map(|(_, _, comparison)| *comparison));
    let rows: Vec<Value> = told
        .iter()
        .map(|(version, value, comparison)| {
            let mark = marks::of(&version.row.algo);
            context! {
                value => visible(value),
                id => version.row.version_id.as_str(),
                href => markup(super::version_link(1, &version.row.version_id)),
                mark => markup(mark.inline()),
                picture => markup(charts::difference(comparison, &mark, reach, &book.words)),
                verdict => sections::compared(book, &version.row, comparison, "", 1),
            }
        })
        .collect();
    let key = visible(sweep.key);
    let title = book.say(
        "What {key} does, starting from {parent}",
        &[("key", &key), ("parent", &sweep.parent.row.version_id)],
    );
    let values = context! {
        key => key,
        finding => conclusion.as_str(),
        parent => sweep.parent.row.version_id.as_str(),
        parent_value => visible(sweep.parent_value),
        axis => markup(charts::difference_axis(reach, &book.words)),
        rows => rows,
        table => table(book, sweep),
        num_settings => sweep.settings.len() + 1,
    };
    let path = format!("sweeps/{stem}.html");
    book.page(&path, "sweep.html", &title, values)?;
    book.entry(&path, &title, &conclusion);
    Ok(())
}

/// What the comparisons with the parent allow to say, and no more.
fn conclusion(book: &Book<'_>, sweep: &Sweep<'_>) -> String {
    let of = |wanted: Verdict| -> Vec<String> {
        sweep
            .settings
            .iter()
            .filter_map(|(version, value)| Some((value, version.row.against_parent.as_ref()?)))
            .filter(|(_, comparison)| comparison.verdict == wanted)
            .map(|(value, comparison)| {
                format!(
                    "{} ({}, {})",
                    visible(value),
                    headline::points(comparison, &book.words),
                    headline::range(comparison, &book.words)
                )
            })
            .collect()
    };
    let (better, worse) = (of(Verdict::Better), of(Verdict::Worse));
    let key = visible(sweep.key);
    let parent = visible(sweep.parent_value);
    let tried = (sweep.settings.len()).to_string();
    let values = [
        ("key", key.as_str()),
        ("parent", parent.as_str()),
        ("n", tried.as_str()),
    ];
    let listed = |list: &[String]| {
        book.words
            .listed(&list.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let say = |sentence: &str, list: &[String]| {
        book.say(sentence, &both(&values, &[("list", &listed(list))]))
    };
    let lacks_seeds = sweep.settings.iter().any(|(version, _)| {
        let against = version.row.against_parent.as_ref();
        against.is_some_and(Comparison::lacks_seeds)
    });
    match (better.is_empty(), worse.is_empty()) {
        (true, true) if lacks_seeds => say(
            "No other setting of {key} may be claimed to differ from {parent}: where an interval excludes 0, the seeds are too few.",
            &[],
        ),
        (true, true) => say(
            "None of the {n} other settings of {key} can be told from {parent}: no difference detected.",
            &[],
        ),
        (false, true) => say(
            "Better than {parent} for {key}: {list}. The other settings cannot be told from it.",
            &better,
        ),
        (true, false) => say(
            "No setting of {key} is better than {parent}; worse: {list}.",
            &worse,
        ),
        (false, false) => format!(
            "{} {}",
            say("Better than {parent} for {key}: {list}.", &better),
            say("Worse: {list}.", &worse)
        ),
    }
}

fn table(book: &Book<'_>, sweep: &Sweep<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &visible(sweep.key),
        &say("version"),
        &say("solved"),
        &say("95% interval"),
        &say("seeds"),
        &say("parameters trained"),
        &say("time"),
    ]);
    let parent = (sweep.parent, sweep.parent_value);
    for (version, value) in std::iter::once(parent).chain(sweep.settings.iter().copied()) {
        let row = &version.row;
        let trained = version
            .runs
            .first()
            .and_then(|run| run.training.summary.as_ref());
        let trained = trained.map(|summary| summary.adapter_params.unwrap_or(summary.n_params));
        table.row(vec![
            Cell::code(value),
            Cell::link(&super::version_link(1, &row.version_id), &row.version_id)
                .marked(&marks::of(&row.algo).inline()),
            Cell::maybe(row.estimate.map(|estimate| percent(estimate.mean))),
            Cell::maybe(
                row.estimate
                    .map(|estimate| headline::levels(&estimate.interval, &book.words)),
            ),
            Cell::number(row.seeds.len().to_string()),
            Cell::maybe(trained.map(grouped)),
            Cell::maybe(book.cost(&row.version_id).hours().map(duration)),
        ]);
    }
    table.finish()
}
