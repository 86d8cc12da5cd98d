//! Two versions: are these different?

use std::fmt::Write;

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::wording::percent;

use super::{Book, markup, sections};
use crate::cost::{duration, grouped};
use crate::facts::{Pair, Role, Task};
use crate::input::VersionInput;
use crate::table::{Cell, Table};
use crate::text::inert;
use crate::{Error, charts, headline, marks};

/// Tasks that a list of the page holds; all are in the data files.
const LISTED: usize = 120;

pub(super) fn overview(book: &mut Book<'_>) -> Result<(), Error> {
    let title = book.say("Which versions differ, and by how much?", &[]);
    let groups: Vec<Value> = [Role::Parent, Role::Leader, Role::Best]
        .into_iter()
        .filter_map(|role| group(book, role))
        .collect();
    let values = context! { finding => title.as_str(), groups => groups };
    book.page("compare/index.html", "compares.html", &title, values)?;
    book.entry("compare/index.html", &title, "");
    Ok(())
}

/// Pairs of one kind on one scale; none where there are none.
fn group(book: &Book<'_>, role: Role) -> Option<Value> {
    let pairs: Vec<&Pair<'_>> = book
        .facts
        .pairs
        .iter()
        .filter(|pair| pair.roles.contains(&role))
        .collect();
    let reach = charts::reach(pairs.iter().map(|pair| pair.comparison));
    let rows: Vec<Value> = pairs
        .iter()
        .map(|pair| forest_row(book, pair, reach, 1))
        .collect();
    (!rows.is_empty()).then(|| {
        context! {
            id => role.words().replace(' ', "-"),
            name => book.say(role.words(), &[]),
            axis => markup(charts::difference_axis(reach, &book.words)),
            rows => rows,
        }
    })
}

fn forest_row(book: &Book<'_>, pair: &Pair<'_>, reach: f64, depth: usize) -> Value {
    let mark = marks::of(&pair.this.row.algo);
    context! {
        this => pair.this.row.version_id.as_str(),
        other => pair.other.row.version_id.as_str(),
        href => markup(format!("{}{}", "../".repeat(depth), pair.path)),
        mark => markup(mark.inline()),
        picture => markup(charts::difference(pair.comparison, &mark, reach, &book.words)),
        verdict => sections::compared(book, &pair.this.row, pair.comparison, "", depth),
    }
}

/// Whether a version solves a task.
type Solves<'a> = Box<dyn Fn(&Task<'_>) -> Option<bool> + 'a>;

/// By the greedy program where both sides have one seed and greedy programs, as the exact test counts; else by half of the
/// tries.
fn solves<'a>(book: &'a Book<'_>, pair: &Pair<'a>) -> (Solves<'a>, Solves<'a>, bool) {
    fn greedy(version: &VersionInput) -> Option<std::collections::BTreeMap<&str, bool>> {
        let [run] = &version.runs[..] else {
            return None;
        };
        let found = run
            .problems
            .iter()
            .map(|task| Some((task.problem_id.as_str(), task.greedy_passed?)));
        found.collect()
    }
    if let (Some(this), Some(other)) = (greedy(pair.this), greedy(pair.other)) {
        let by = |passed: std::collections::BTreeMap<&'a str, bool>| -> Solves<'a> {
            Box::new(move |task: &Task<'_>| passed.get(task.id).copied())
        };
        return (by(this), by(other), true);
    }
    let by_rate = |version: &VersionInput| -> Solves<'a> {
        let place = book
            .facts
            .place(&version.row.version_id)
            .unwrap_or_default();
        Box::new(move |task: &Task<'_>| task.rates[place].map(|rate| rate >= 0.5))
    };
    (by_rate(pair.this), by_rate(pair.other), false)
}

pub(super) fn one(book: &mut Book<'_>, pair: &Pair<'_>) -> Result<(), Error> {
    let (this, other) = (pair.this, pair.other);
    let (a, b) = (this.row.version_id.as_str(), other.row.version_id.as_str());
    let finding = headline::of_pair(&this.row, pair.comparison, &book.words);
    let reach = charts::reach([pair.comparison]);
    let roles: Vec<String> = pair
        .roles
        .iter()
        .map(|role| book.say(role.words(), &[]))
        .collect();
    let (solved, by_greedy) = quadrants(book, pair);
    let values = context! {
        finding => finding.as_str(),
        kicker => format!("{a} · {b} · {}", roles.join(", ")),
        this => side(book, this),
        other => side(book, other),
        axis => markup(charts::difference_axis(reach, &book.words)),
        row => forest_row(book, pair, reach, 1),
        p => sections::p_value(pair.comparison.difference.p_value),
        p_holm => pair.comparison.p_holm.map(sections::p_value),
        quadrants => solved,
        by_greedy => by_greedy,
        strips => sections::strips(book, [this, other].into_iter(), 1),
        recipe => sections::recipe_diff(book, a, b),
        curves => sections::curves(book, &[this, other]),
        same_algo => this.row.algo == other.row.algo,
        costs => costs(book, this, other),
    };
    book.page(&pair.path, "compare.html", &finding, values)?;
    book.entry(&pair.path, &finding, "");
    Ok(())
}

fn side(book: &Book<'_>, version: &VersionInput) -> Value {
    let row = &version.row;
    context! {
        id => row.version_id.as_str(),
        href => markup(super::version_link(1, &row.version_id)),
        mark => markup(marks::of(&row.algo).inline()),
        change => book.change(version),
        score => row.estimate.map(|estimate| percent(estimate.mean)),
        axis => markup(charts::interval_axis(book.shared.top, &book.words)),
        interval => markup(charts::interval(row, book.shared.top, &book.words)),
    }
}

/// Both, only this, only the other, neither: four lists of tasks.
fn quadrants(book: &Book<'_>, pair: &Pair<'_>) -> (Vec<Value>, bool) {
    let (this, other, by_greedy) = solves(book, pair);
    let (a, b) = (
        pair.this.row.version_id.as_str(),
        pair.other.row.version_id.as_str(),
    );
    let mut lists: [Vec<&Task<'_>>; 4] = Default::default();
    for task in &book.facts.tasks {
        if let (Some(mine), Some(theirs)) = (this(task), other(task)) {
            let list = match (mine, theirs) {
                (true, false) => 0,
                (false, true) => 1,
                (true, true) => 2,
                (false, false) => 3,
            };
            lists[list].push(task);
        }
    }
    let names = [
        ("only", book.say("only {version}", &[("version", a)])),
        ("only", book.say("only {version}", &[("version", b)])),
        ("both", book.say("both", &[])),
        ("neither", book.say("neither", &[])),
    ];
    let quadrants = names
        .into_iter()
        .zip(lists)
        .map(|((class, name), tasks)| {
            let mut html = String::new();
            for task in tasks.iter().take(LISTED) {
                let _ = write!(html, "<a href=\"../{}\">{}</a> ", task.path, inert(task.id));
            }
            context! {
                class => class,
                name => name,
                n => tasks.len(),
                tasks => markup(html),
                more => tasks.len().saturating_sub(LISTED),
            }
        })
        .collect();
    (quadrants, by_greedy)
}

fn costs(book: &Book<'_>, this: &VersionInput, other: &VersionInput) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("version"),
        &say("machine time"),
        &say("target tokens trained on"),
        &say("tokens generated"),
    ]);
    for version in [this, other] {
        let cost = book.cost(&version.row.version_id);
        table.row(vec![
            Cell::text(&version.row.version_id).marked(&marks::of(&version.row.algo).inline()),
            Cell::maybe(cost.hours().map(duration)),
            Cell::maybe(cost.trained_tokens.map(grouped)),
            Cell::maybe(cost.generated()),
        ]);
    }
    table.finish()
}
