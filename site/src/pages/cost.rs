//! Cost: what did this take?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::Verdict;

use super::{Book, warnings};
use crate::cost::{Money, bytes, duration, grouped, points_gained};
use crate::input::{RunInfo, RunLife};
use crate::table::{Cell, Table};
use crate::{Error, marks};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let finding = finding(book);
    let values = context! {
        finding => finding.as_str(),
        gain => gain(book),
        money => money(book),
        is_known => book.input.runs.is_some(),
        versions => versions(book),
        jobs => jobs(book),
        troubles => troubles(book),
        warnings => warnings(book.input),
    };
    let title = book.say("What did this take?", &[]);
    book.page("cost.html", "cost.html", &title, values)?;
    book.entry("cost.html", &title, &finding);
    Ok(())
}

/// All of it in one sentence.
fn finding(book: &Book<'_>) -> String {
    let totals = book.totals();
    let values = [
        ("hours", duration(totals.hours)),
        ("gpu", duration(totals.gpu_hours)),
        ("trained", grouped(totals.trained_tokens)),
        ("generated", grouped(totals.generated_tokens)),
    ];
    let values = values
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let sentence = if totals.hours <= 0.0 {
        "{trained} target tokens trained on and {generated} tokens generated; how long it took is not known here."
    } else if totals.gpu_hours > 0.0 {
        "{hours} of machine time and {gpu} of GPU time, for {trained} target tokens trained on and {generated} generated."
    } else {
        "{hours} of machine time without a GPU, for {trained} target tokens trained on and {generated} generated."
    };
    book.say(sentence, &values)
}

/// What was paid; none where no run is known.
fn money(book: &Book<'_>) -> Option<String> {
    let runs = book.input.runs.as_ref()?;
    let totals = book.totals();
    let Some(money) = totals.money.words() else {
        return Some(book.say(
            "No run states what its machine costs, so there is no sum of money here; jobs take it as --hour-price.",
            &[],
        ));
    };
    let sentence = "{money}, at the prices stated for {n} of {total} runs.";
    let values: [(&str, &str); 3] = [
        ("money", &money),
        ("n", &totals.num_priced.to_string()),
        ("total", &runs.len().to_string()),
    ];
    Some(book.say(sentence, &values))
}

/// Cost per point gained over the first baseline, only where a gain may be claimed.
fn gain(book: &Book<'_>) -> String {
    let claimed: Vec<(&str, f64)> = book
        .input
        .versions
        .iter()
        .filter(|version| version.row.is_weighted())
        .filter_map(|version| Some((version, version.row.against_baseline.as_ref()?)))
        .filter(|(_, comparison)| comparison.verdict == Verdict::Better)
        .map(|(version, comparison)| {
            (
                version.row.version_id.as_str(),
                comparison.difference.difference * 100.0,
            )
        })
        .collect();
    let Some((version, points)) = claimed.first().copied() else {
        return book.say(
            "No gain over the baseline may be claimed, so there is no cost per point gained.",
            &[],
        );
    };
    let hours = book.cost(version).hours();
    let tokens = book.cost(version).trained_tokens;
    let points_text = format!("{points:.1}");
    let per = |value: String| {
        book.say(
            "{version} gained {points} points over its baseline: {value} per point.",
            &[
                ("version", version),
                ("points", &points_text),
                ("value", &value),
            ],
        )
    };
    match (hours, tokens) {
        (Some(hours), _) => per(duration(hours / points)),
        (None, Some(tokens)) => per(book.say(
            "{n} target tokens",
            &[("n", &grouped((tokens as f64 / points) as u64))],
        )),
        (None, None) => book.say(
            "What the gain of {version} cost is not known here.",
            &[("version", version)],
        ),
    }
}

fn versions(book: &Book<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let names = [
        say("version"),
        say("training"),
        say("GPU time"),
        say("evaluation"),
        say("price stated"),
        say("target tokens trained on"),
        say("tokens generated"),
        say("running programs"),
        say("attempts lost"),
        say("stored"),
        say("points gained"),
        say("time per point gained"),
    ];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = Table::new(&names).class("dense");
    for version in &book.facts.lineage {
        let id = &version.row.version_id;
        let cost = book.cost(id);
        let hours = |secs: Option<f64>| Cell::maybe(secs.map(|secs| duration(secs / 3600.0)));
        let points = points_gained(version);
        table.row(vec![
            Cell::link(&super::version_link(0, id), id)
                .marked(&marks::of(&version.row.algo).inline()),
            hours(cost.train_secs),
            hours(Some(cost.train_gpu_secs).filter(|secs| *secs > 0.0)),
            hours(cost.evaluate_secs),
            Cell::maybe(cost.money.words()),
            Cell::maybe(cost.trained_tokens.map(grouped)),
            Cell::maybe(cost.generated()),
            Cell::number(duration(cost.program_secs / 3600.0)),
            Cell::number(cost.lost_attempts.to_string()),
            Cell::maybe(cost.stored_bytes.map(bytes)),
            Cell::maybe(points.map(|points| format!("+{points:.1}"))),
            Cell::maybe(points.and_then(|points| Some(duration(cost.hours()? / points)))),
        ]);
    }
    table.finish()
}

/// Runs and time by job, what was shared by all versions included.
fn jobs(book: &Book<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("job"),
        &say("runs"),
        &say("completed"),
        &say("attempts"),
        &say("machine time"),
        &say("GPU time"),
        &say("price stated"),
    ]);
    let mut jobs: std::collections::BTreeMap<&str, Vec<&RunInfo>> =
        std::collections::BTreeMap::new();
    for run in book.input.runs.iter().flatten() {
        jobs.entry(&run.job).or_default().push(run);
    }
    for (job, runs) in jobs {
        let completed = runs
            .iter()
            .filter(|run| run.life == RunLife::Completed)
            .count();
        table.row(vec![
            Cell::text(job),
            Cell::number(runs.len().to_string()),
            Cell::number(completed.to_string()),
            Cell::number(
                runs.iter()
                    .map(|run| run.attempts.len())
                    .sum::<usize>()
                    .to_string(),
            ),
            Cell::number(duration(
                runs.iter().map(|run| run.secs()).sum::<f64>() / 3600.0,
            )),
            Cell::maybe(
                Some(runs.iter().map(|run| run.gpu_secs()).sum::<f64>())
                    .filter(|secs| *secs > 0.0)
                    .map(|secs| duration(secs / 3600.0)),
            ),
            Cell::maybe(
                runs.iter()
                    .map(|run| run.money())
                    .fold(Money::default(), Money::and)
                    .words(),
            ),
        ]);
    }
    table.finish()
}

/// Runs that failed, were lost or needed more than one attempt.
fn troubles(book: &Book<'_>) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[
        &say("run"),
        &say("state"),
        &say("attempts"),
        &say("what was said"),
    ]);
    let troubled = |run: &&RunInfo| {
        run.attempts.len() > 1 || matches!(run.life, RunLife::Failed | RunLife::Lost)
    };
    for run in book.input.runs.iter().flatten().filter(troubled) {
        let messages = run
            .attempts
            .iter()
            .filter_map(|attempt| attempt.message.as_deref());
        let messages: Vec<&str> = messages.collect();
        table.row(vec![
            Cell::link(
                &format!("runs/{}/index.html", run.id),
                run.name.as_deref().unwrap_or(&run.id),
            ),
            super::runs::state_cell(book, run),
            Cell::number(run.attempts.len().to_string()),
            Cell::text(messages.join("; ")),
        ]);
    }
    table.finish()
}
