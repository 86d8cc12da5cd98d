//! Tasks: who solves this one?

use std::collections::BTreeMap;

use minijinja::context;
use minijinja::value::Value;
use wmtp_records::{GradedSample, Tests};
use wmtp_stats::wording::percent;

use super::{Book, markup, sections};
use crate::facts::Task;
use crate::input::VersionInput;
use crate::table::{Cell, Table};
use crate::{Error, diff, marks, text};

/// Versions that a task's page lists; a site of a thousand would list them all on every page.
const LISTED: usize = 60;
/// Programs that a task's page shows.
const PROGRAMS: usize = 24;
/// Cases of a task that reads its input.
const CASES: usize = 5;
/// Tasks that the table of all tasks lists.
const TASKS_LISTED: usize = 1000;

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let facts = book.facts;
    overview(book)?;
    let shown: Vec<(&VersionInput, BTreeMap<&str, Vec<&GradedSample>>)> = facts
        .lineage
        .iter()
        .map(|version| (*version, by_task(version)))
        .collect();
    for (place, task) in facts.tasks.iter().enumerate() {
        one(book, task, place, &shown)?;
    }
    Ok(())
}

fn by_task(version: &VersionInput) -> BTreeMap<&str, Vec<&GradedSample>> {
    let mut programs: BTreeMap<&str, Vec<&GradedSample>> = BTreeMap::new();
    for sample in version.runs.first().iter().flat_map(|run| &run.samples) {
        programs
            .entry(sample.completion.problem_id.as_str())
            .or_default()
            .push(sample);
    }
    programs
}

/// The matrix of versions and tasks, and a table of all tasks.
fn overview(book: &mut Book<'_>) -> Result<(), Error> {
    let facts = book.facts;
    let trained: Vec<usize> = (0..facts.lineage.len())
        .filter(|place| facts.lineage[*place].row.is_trained())
        .collect();
    let never = facts.tasks.iter().filter(|task| task.mean() <= 0.0).count();
    let always = |task: &&Task<'_>| {
        let rates = trained.iter().map(|place| task.rates[*place]);
        !trained.is_empty()
            && rates
                .into_iter()
                .all(|rate| rate.is_some_and(|rate| rate >= 1.0))
    };
    let always = facts.tasks.iter().filter(always).count();
    let sentence = match always {
        1 => {
            "Of {n} tasks, one is solved by every trained version every time, and {never} by none."
        }
        _ => {
            "Of {n} tasks, {always} are solved by every trained version every time and {never} by none."
        }
    };
    let title = book.say(
        sentence,
        &[
            ("n", &facts.tasks.len().to_string()),
            ("always", &always.to_string()),
            ("never", &never.to_string()),
        ],
    );
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("task"),
        &say("family"),
        &say("mean over versions"),
        &say("versions that solve it"),
    ]);
    for task in facts.tasks.iter().take(TASKS_LISTED) {
        let family = book
            .input
            .problems
            .get(task.id)
            .map(|problem| problem.family.as_str());
        let solving = task
            .rates
            .iter()
            .flatten()
            .filter(|rate| **rate > 0.0)
            .count();
        let tried = task.rates.iter().flatten().count();
        table.row(vec![
            Cell::link(&format!("../{}", task.path), task.id),
            Cell::text(family.unwrap_or_default()),
            Cell::number(percent(task.mean())),
            Cell::number(format!("{solving} / {tried}")),
        ]);
    }
    let values = context! {
        finding => title.as_str(),
        strips => sections::strips(book, facts.lineage.iter().copied(), 1),
        tasks => table.finish(),
        left_out => facts.tasks.len().saturating_sub(TASKS_LISTED),
    };
    book.page("t/index.html", "tasks.html", &title, values)?;
    book.entry("t/index.html", &title, "");
    Ok(())
}

fn one(
    book: &mut Book<'_>,
    task: &Task<'_>,
    place: usize,
    shown: &[(&VersionInput, BTreeMap<&str, Vec<&GradedSample>>)],
) -> Result<(), Error> {
    let facts = book.facts;
    let depth = task.path.matches('/').count();
    let up = "../".repeat(depth);
    let name = text::visible(task.id);
    let problem = book.input.problems.get(task.id);
    let solving = task
        .rates
        .iter()
        .flatten()
        .filter(|rate| **rate > 0.0)
        .count();
    let tried = task.rates.iter().flatten().count();
    let title = book.say(
        "{task}: solved by {n} of {all} versions",
        &[
            ("task", &name),
            ("n", &solving.to_string()),
            ("all", &tried.to_string()),
        ],
    );
    let mut table = Table::new(&[
        &book.say("version", &[]),
        &book.say("tries that passed", &[]),
        &book.say("outcome", &[]),
    ]);
    let listed = listed(task, &facts.lineage);
    for &(index, rate) in &listed {
        let version = facts.lineage[index];
        let id = &version.row.version_id;
        let class = shown[index]
            .1
            .get(task.id)
            .and_then(|programs| first(programs))
            .map(|sample| sample.verdict.class);
        table.row(vec![
            Cell::link(&super::version_link(depth, id), id)
                .marked(&marks::of(&version.row.algo).inline()),
            Cell::number(percent(rate)),
            Cell::text(
                class
                    .map(|class| sections::class_name(book, class))
                    .unwrap_or_default(),
            ),
        ]);
    }
    let reference = problem
        .and_then(|problem| problem.reference.as_deref())
        .filter(|text| !text.trim().is_empty());
    let programs: Vec<Value> = listed
        .iter()
        .filter_map(|(index, _)| {
            let (version, programs) = &shown[*index];
            let sample = first(programs.get(task.id)?)?;
            Some(program(book, version, sample, reference))
        })
        .take(PROGRAMS)
        .collect();
    let neighbour = |index: Option<usize>| {
        let task = facts.tasks.get(index?)?;
        Some(
            context! { path => markup(format!("{up}{}", task.path)), id => text::visible(task.id) },
        )
    };
    let values = context! {
        task => name,
        finding => title.as_str(),
        family => problem.map(|problem| text::visible(&problem.family)).unwrap_or_default(),
        statement => problem.map(|problem| text::visible(problem.instruction.trim())),
        examples => problem.map(|problem| text::visible(problem.input.trim())).filter(|input| !input.is_empty()),
        tests => problem.map(|problem| tests(&problem.tests)),
        reference => reference.map(|reference| markup(diff::plain(reference))),
        versions => table.finish(),
        left_out => tried.saturating_sub(listed.len()),
        programs => programs,
        easier => neighbour(place.checked_sub(1)),
        harder => neighbour(Some(place + 1)),
    };
    book.page(&task.path, "task.html", &title, values)?;
    let statement = problem
        .map(|problem| problem.instruction.as_str())
        .unwrap_or_default();
    book.entry(&task.path, task.id, statement);
    Ok(())
}

/// The program that tells most: the greedy one, else a failing one.
fn first<'a>(programs: &[&'a GradedSample]) -> Option<&'a GradedSample> {
    let greedy = programs
        .iter()
        .find(|sample| sample.completion.sample.is_none());
    let failing = programs.iter().find(|sample| !sample.verdict.passed);
    greedy.or(failing).or(programs.first()).copied()
}

/// Versions to list in the order of their coming: all of them, or where they are many the best of the table.
fn listed(task: &Task<'_>, lineage: &[&VersionInput]) -> Vec<(usize, f64)> {
    let tried = task
        .rates
        .iter()
        .enumerate()
        .filter_map(|(index, rate)| Some((index, (*rate)?)));
    let mut tried: Vec<(usize, f64)> = tried.collect();
    if tried.len() > LISTED {
        let level = |index: usize| {
            lineage[index]
                .row
                .estimate
                .map_or(0.0, |estimate| estimate.mean)
        };
        tried.sort_by(|a, b| level(b.0).total_cmp(&level(a.0)).then(a.0.cmp(&b.0)));
        tried.truncate(LISTED);
        tried.sort_by_key(|(index, _)| *index);
    }
    tried
}

fn program(
    book: &Book<'_>,
    version: &VersionInput,
    sample: &GradedSample,
    reference: Option<&str>,
) -> Value {
    let written = &sample.completion.program;
    let html = match reference {
        Some(reference) => diff::sides(reference, written).right,
        None => diff::plain(written),
    };
    let stderr = sample.verdict.stderr.trim();
    let message = sample.verdict.message.trim();
    context! {
        version => version.row.version_id.as_str(),
        mark => markup(marks::of(&version.row.algo).inline()),
        passed => sample.verdict.passed,
        class => sections::class_name(book, sample.verdict.class),
        which => sections::which(book, sample.completion.sample),
        html => (!written.trim().is_empty()).then(|| markup(html)),
        message => text::visible(message),
        stderr => (!stderr.is_empty() && stderr != message).then(|| text::visible(stderr)),
    }
}

/// How a task is tested, as text that is inert on the page.
fn tests(tests: &Tests) -> String {
    let source = match tests {
        Tests::Asserts { setup, asserts } => {
            let setup = setup.trim();
            let lines = (!setup.is_empty()).then_some(setup).into_iter();
            lines
                .chain(asserts.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("\n")
        }
        Tests::Check { test, entry_point } => format!("{}\n\ncheck({entry_point})", test.trim()),
        Tests::Outputs { cases, .. } => {
            let shown = cases.iter().take(CASES);
            let shown: Vec<String> = shown
                .map(|case| format!("< {}\n> {}", case.input.trim(), case.output.trim()))
                .collect();
            shown.join("\n\n")
        }
    };
    text::visible(&source)
}
