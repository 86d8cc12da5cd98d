//! The same on a wall: five screens, one per printed page.

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::Verdict;
use wmtp_stats::wording::percent;

use super::{Book, markup, sections};
use crate::input::VersionInput;
use crate::{Error, charts, headline, marks};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let board = &book.input.board;
    let headline = headline::of_board(board, &book.words);
    let leader = board
        .rows
        .first()
        .and_then(|row| book.facts.version(&row.version_id));
    // Its failure says what is to be improved here.
    let best = book
        .input
        .versions
        .iter()
        .find(|version| version.row.is_trained());
    let values = context! {
        finding => headline.finding.as_str(),
        uncertainty => headline.uncertainty.as_str(),
        answer => headline.answer.as_str(),
        rate => leader.and_then(|leader| leader.row.estimate).map(|estimate| percent(estimate.mean)),
        leader => leader.map(|leader| leader.row.version_id.clone()),
        leader_mark => leader.map(|leader| markup(marks::of(&leader.row.algo).inline())),
        progress => markup(charts::progress(board, &headline.finding, &book.words)),
        help => help(book),
        failure => best.or(leader).and_then(failing).map(|sample| sections::sample(book, sample, 0)),
        cost => cost(book),
    };
    let title = book.say("On a wall: five screens", &[]);
    book.page("present.html", "present.html", &title, values)?;
    book.entry("present.html", &title, &headline.finding);
    Ok(())
}

/// The change that helped most: the largest difference to a parent that is no untrained model.
fn help(book: &Book<'_>) -> Option<Value> {
    let changes = book.input.versions.iter().filter_map(|version| {
        let comparison = version.row.against_parent.as_ref()?;
        let parent = book.facts.version(&comparison.other)?;
        (!parent.row.is_base() && !version.row.is_control()).then_some((version, comparison))
    });
    let (version, comparison) = changes.max_by(|a, b| {
        a.1.difference
            .difference
            .total_cmp(&b.1.difference.difference)
    })?;
    let mark = marks::of(&version.row.algo);
    let reach = charts::reach([comparison]);
    Some(context! {
        helped => comparison.verdict == Verdict::Better,
        change => book.change(version),
        id => version.row.version_id.as_str(),
        mark => markup(mark.inline()),
        axis => markup(charts::difference_axis(reach, &book.words)),
        picture => markup(charts::difference(comparison, &mark, reach, &book.words)),
        verdict => sections::compared(book, &version.row, comparison, &book.say("against the parent", &[]), 0),
    })
}

/// A wrong answer with a solution beside it tells most; any failure otherwise.
fn failing(version: &VersionInput) -> Option<&wmtp_records::GradedSample> {
    let samples = &version.runs.first()?.samples;
    let wrong = |sample: &&wmtp_records::GradedSample| {
        sample.verdict.class == wmtp_records::ErrorClass::WrongAnswer
    };
    let failed = |sample: &&wmtp_records::GradedSample| !sample.verdict.passed;
    samples
        .iter()
        .find(wrong)
        .or_else(|| samples.iter().find(failed))
}

fn cost(book: &Book<'_>) -> Vec<Value> {
    let totals = book.totals();
    let programs: u64 = book
        .input
        .board
        .rows
        .iter()
        .map(|row| row.num_samples)
        .sum();
    let mut facts = Vec::new();
    if totals.hours > 0.0 {
        facts.push((crate::cost::duration(totals.hours), "of machine time"));
    }
    if totals.trained_tokens > 0 {
        let trained = crate::cost::grouped(totals.trained_tokens);
        facts.push((trained, "target tokens trained on"));
    }
    let generated = crate::cost::grouped(totals.generated_tokens);
    facts.push((generated, "tokens generated"));
    facts.push((crate::cost::grouped(programs), "programs run"));
    facts
        .into_iter()
        .map(|(value, name)| context! { value => value, name => book.say(name, &[]) })
        .collect()
}
