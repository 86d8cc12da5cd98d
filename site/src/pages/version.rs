//! One version: what was changed, did it help, why?

use minijinja::context;
use minijinja::value::Value;

use super::{Book, markup, sections};
use crate::action::Action;
use crate::input::VersionInput;
use crate::{Error, headline, marks, text};

/// Programs on the page itself; the page of the programs has more.
const FAILING_SHOWN: usize = 4;
const PASSING_SHOWN: usize = 1;

pub(super) fn write(book: &mut Book<'_>, version: &VersionInput) -> Result<(), Error> {
    let row = &version.row;
    let id = row.version_id.as_str();
    let mark = marks::of(&row.algo);
    let parent = row
        .parent
        .as_deref()
        .and_then(|parent| book.facts.version(parent));
    let finding = headline::of_version(&book.input.board, row, &book.words);
    let shown = version
        .runs
        .first()
        .map(|run| &run.samples[..])
        .unwrap_or_default();
    let samples: Vec<Value> = sections::in_order(shown, FAILING_SHOWN, PASSING_SHOWN)
        .into_iter()
        .map(|sample| sections::sample(book, sample, 2))
        .collect();
    let next_action = book.shared.actions.get(id);
    let values = context! {
        id => id,
        crumbs => crumbs(book, version, ""),
        mark => markup(mark.inline()),
        algo => book.say(mark.name, &[]),
        meaning => book.say(mark.meaning, &[]),
        finding => finding.as_str(),
        is_base => row.is_base(),
        is_external => row.is_external(),
        change => row.change.as_deref().map(text::visible),
        parent => parent.map(|parent| parent.row.version_id.clone()),
        comparisons => comparisons(book, version),
        recipe => parent.and_then(|parent| sections::recipe_diff(book, id, &parent.row.version_id)),
        action => book.shared.action_behind(id).map(|action| action_view(book, version, action)),
        next_action => next_action.map(|action| next_view(book, action)),
        analysis => book.shared.analysis(version),
        has_analysis => !version.analysis.trim().is_empty(),
        strips => sections::strips(book, [Some(version), parent].into_iter().flatten(), 2),
        num_tasks => book.input.board.num_tasks,
        samples => samples,
        num_shown => shown.len(),
        num_samples => crate::cost::grouped(row.num_samples),
        weights => sections::weights(book, version),
        heads => sections::heads(book, version, parent),
        curves => sections::curves(book, &[version]),
        has_log => super::log::has_page(book, version),
        facts => sections::facts(book, version),
        sources => sections::sources(book, version),
    };
    let path = format!("v/{id}/index.html");
    book.page(&path, "version.html", &finding, values)?;
    let change = book.change(version);
    book.entry(&path, &finding, &format!("{change} {}", version.analysis));
    Ok(())
}

/// Parent, neighbours and sub-pages of a version; `here` is the sub-page that shows them.
pub(super) fn crumbs(book: &Book<'_>, version: &VersionInput, here: &str) -> Value {
    let id = version.row.version_id.as_str();
    let place = book.facts.place(id).unwrap_or(0);
    let neighbour = |index: Option<usize>| {
        index
            .and_then(|index| book.facts.lineage.get(index))
            .map(|other| other.row.version_id.clone())
    };
    let pages = [
        ("", "Overview", "index.html", true),
        ("analysis", "Analysis", "analysis.html", true),
        ("samples", "Programs", "samples.html", true),
        (
            "log",
            "Log",
            "log.html",
            super::log::has_page(book, version),
        ),
    ];
    let pages: Vec<Value> = pages
        .into_iter()
        .filter(|(.., exists)| *exists)
        .map(|(key, name, path, _)| context! { name => book.say(name, &[]), path => path, here => key == here })
        .collect();
    context! {
        id => id,
        parent => version.row.parent.as_deref().and_then(|parent| book.facts.version(parent)).map(|parent| parent.row.version_id.clone()),
        previous => neighbour(place.checked_sub(1)),
        next => neighbour(Some(place + 1)),
        pages => pages,
    }
}

fn comparisons(book: &Book<'_>, version: &VersionInput) -> Vec<Value> {
    let row = &version.row;
    let parent = row.against_parent.iter().map(|c| (c, "against the parent"));
    let baseline = row
        .against_baseline
        .iter()
        .filter(|c| row.parent.as_deref() != Some(c.other.as_str()))
        .map(|c| (c, "against the baseline"));
    let controls = row
        .against_controls
        .iter()
        .map(|c| (c, "against the control"));
    let leader = row.against_leader.iter().map(|c| (c, "against the leader"));
    let mut seen = std::collections::BTreeSet::new();
    parent
        .chain(baseline)
        .chain(controls)
        .chain(leader)
        .filter(|(comparison, _)| seen.insert(comparison.other.as_str()))
        .map(|(comparison, role)| {
            sections::compared(book, row, comparison, &book.say(role, &[]), 2)
        })
        .collect()
}

/// The action that made a version, what it expected beside what came.
fn action_view(book: &Book<'_>, version: &VersionInput, action: &Action) -> Value {
    let parts: Vec<Value> = action
        .fields
        .iter()
        .map(|(name, part)| context! { name => book.say(name, &[]), html => markup(text::markdown_line(part)) })
        .collect();
    let measured = version.row.against_parent.as_ref().map(|c| {
        book.say(
            "{points} ({range}) against {other}: {verdict}",
            &[
                ("points", &headline::points(c, &book.words)),
                ("range", &headline::range(c, &book.words)),
                ("other", &c.other),
                ("verdict", &book.say(c.words(), &[])),
            ],
        )
    });
    context! {
        parts => parts,
        expected => action.field("Expected impact").map(|part| markup(text::markdown_line(part))),
        measured => measured,
        missing => action.missing.iter().map(|name| book.say(name, &[])).collect::<Vec<_>>(),
    }
}

/// What was decided after a version.
fn next_view(book: &Book<'_>, action: &Action) -> Value {
    let next = action
        .next
        .as_deref()
        .and_then(|next| book.facts.version(next));
    context! {
        next => next.map(|next| next.row.version_id.clone()),
        planned => action.next.clone(),
        change => action.field("Change").map(|part| markup(text::markdown_line(part))),
        sentence => action.sentence.as_deref().map(|part| markup(text::markdown_line(part))),
    }
}
