//! Algorithms: does weighting help at all?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::wording::percent;

use super::{Book, index, markup, sections};
use crate::charts::{self, Dot};
use crate::cost::{Cost, duration};
use crate::input::VersionInput;
use crate::table::{Cell, Table};
use crate::{Error, headline, marks};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let words = std::sync::Arc::clone(&book.words);
    let answer = headline::of_board(&book.input.board, &words).answer;
    let finding = headline::answer_in_short(&book.input.board, &words);
    let (picture, unit) = pareto(book, &finding);
    let values = context! {
        finding => finding.as_str(),
        answer => answer.as_str(),
        table => table(book),
        picture => picture.map(markup),
        unit => unit,
        legend => index::legend(book),
        bests => bests(book),
        weights => weights(book),
    };
    let title = book.say("Does weighting help at all?", &[]);
    book.page("algorithms.html", "algorithms.html", &title, values)?;
    book.entry("algorithms.html", &title, &finding);
    Ok(())
}

/// Versions of each algorithm that occurs, best first.
fn groups<'a>(book: &Book<'a>) -> Vec<(&'static str, marks::Mark, Vec<&'a VersionInput>)> {
    let of = |key: &str| -> Vec<&'a VersionInput> {
        book.input
            .versions
            .iter()
            .filter(|version| version.row.algo == key)
            .collect()
    };
    marks::all()
        .iter()
        .map(|(key, mark)| (*key, *mark, of(key)))
        .filter(|(_, _, versions)| !versions.is_empty())
        .collect()
}

fn table(book: &Book<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let names = [
        say("algorithm"),
        say("versions"),
        say("best"),
        say("solved"),
        say("from worst to best"),
        say("against its baseline"),
        say("time a version"),
        say("time per point gained"),
    ];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = Table::new(&names);
    for (_, mark, versions) in groups(book) {
        let scored: Vec<&&VersionInput> = versions
            .iter()
            .filter(|version| version.row.estimate.is_some())
            .collect();
        let rate =
            |version: &VersionInput| version.row.estimate.map(|estimate| percent(estimate.mean));
        let best = scored.first();
        let spread = match (scored.last(), best) {
            (Some(worst), Some(best)) if scored.len() > 1 => Some(format!(
                "{} \u{2013} {}",
                rate(worst).unwrap_or_default(),
                rate(best).unwrap_or_default()
            )),
            _ => None,
        };
        let hours: Vec<f64> = versions
            .iter()
            .filter_map(|version| book.cost(&version.row.version_id).hours())
            .collect();
        let mean = (!hours.is_empty()).then(|| hours.iter().sum::<f64>() / hours.len() as f64);
        let against = best.and_then(|best| best.row.against_baseline.as_ref());
        let gained = best.and_then(|best| {
            let points = crate::cost::points_gained(best)?;
            Some(duration(book.cost(&best.row.version_id).hours()? / points))
        });
        table.row(vec![
            Cell::text(say(mark.name)).marked(&mark.inline()),
            Cell::number(versions.len().to_string()),
            best.map_or_else(Cell::none, |best| {
                Cell::link(
                    &super::version_link(0, &best.row.version_id),
                    &best.row.version_id,
                )
            }),
            Cell::maybe(best.and_then(|best| rate(best))),
            Cell::maybe(spread),
            against.map_or_else(
                || Cell::text("\u{2013}"),
                |c| {
                    Cell::text(format!(
                        "{} ({}): {}",
                        headline::points(c, &book.words),
                        headline::range(c, &book.words),
                        say(c.words())
                    ))
                    .class(index::verdict_class(c.verdict))
                },
            ),
            Cell::maybe(mean.map(duration)),
            Cell::maybe(gained),
        ]);
    }
    table.finish()
}

fn machine_hours(cost: &Cost) -> Option<f64> {
    cost.train_secs.map(|secs| secs / 3600.0)
}

/// A version that no GPU trained has none.
fn gpu_hours(cost: &Cost) -> Option<f64> {
    cost.is_on_gpu().then_some(cost.train_gpu_secs / 3600.0)
}

/// Score against time where runs tell it, else against tokens trained on.
fn pareto(book: &Book<'_>, description: &str) -> (Option<String>, String) {
    let by = |cost: fn(&Cost) -> Option<f64>| -> Vec<Dot<'_>> {
        let dots = book.facts.lineage.iter().filter_map(|version| {
            Some(Dot {
                id: &version.row.version_id,
                mark: marks::of(&version.row.algo),
                cost: cost(&book.shared.costs[version.row.version_id.as_str()])?,
                estimate: version.row.estimate?,
            })
        });
        dots.collect()
    };
    let on_gpu = book.shared.costs.values().any(Cost::is_on_gpu);
    let hours = by(if on_gpu { gpu_hours } else { machine_hours });
    let (dots, unit) = if hours.len() > 1 && hours.iter().all(|dot| dot.cost < 1.0) {
        (
            hours
                .into_iter()
                .map(|dot| Dot {
                    cost: dot.cost * 60.0,
                    ..dot
                })
                .collect(),
            if on_gpu {
                "GPU minutes of training, all seeds"
            } else {
                "machine minutes of training, all seeds"
            },
        )
    } else if hours.len() > 1 {
        (
            hours,
            if on_gpu {
                "GPU hours of training, all seeds"
            } else {
                "machine hours of training, all seeds"
            },
        )
    } else {
        (
            by(|cost| cost.trained_tokens.map(|tokens| tokens as f64 / 1e6)),
            "million target tokens trained on, all seeds",
        )
    };
    let unit = book.say(unit, &[]);
    let drawn = charts::pareto(&dots, book.shared.top, &unit, description, &book.words);
    ((!drawn.is_empty()).then_some(drawn), unit)
}

/// The best of each algorithm against the best baseline, where the leaderboard compares them.
fn bests(book: &Book<'_>) -> Vec<Value> {
    let bests = book.input.board.algorithm_bests.iter().filter_map(|best| {
        let version = book.facts.version(&best.this)?;
        Some((best, version))
    });
    bests
        .map(|(best, version)| {
            let against = book.say("{version} against", &[("version", &best.this)]);
            sections::compared(book, &version.row, &best.comparison, &against, 0)
        })
        .collect()
}

/// What the weights of each algorithm's best version look like.
fn weights(book: &Book<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("version"),
        &say("spread (standard deviation)"),
        &say("entropy, 1 is uniform"),
        &say("at the lower bound"),
        &say("at the upper bound"),
    ]);
    for (_, mark, versions) in groups(book) {
        let Some(best) = versions.first() else {
            continue;
        };
        let mean =
            |key: &str, format: fn(f64) -> String| sections::weight_mean(best, key).map(format);
        if mean("std", charts::number).is_none() {
            continue;
        }
        table.row(vec![
            Cell::link(
                &super::version_link(0, &best.row.version_id),
                &best.row.version_id,
            )
            .marked(&mark.inline()),
            Cell::maybe(mean("std", charts::number)),
            Cell::maybe(mean("entropy", charts::number)),
            Cell::maybe(mean("clip_low", percent)),
            Cell::maybe(mean("clip_high", percent)),
        ]);
    }
    table.finish()
}
