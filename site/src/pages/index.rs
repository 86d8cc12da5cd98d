//! The leaderboard: which version is best, and how sure are we?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::{LeaderboardRow, Verdict};
use wmtp_stats::wording::{percent, signed};

use super::{Book, file_size, markup, sections, warnings};
use crate::cost::{duration, grouped};
use crate::input::{SiteInput, VersionInput};
use crate::{Error, charts, headline, marks, text};

/// Versions whose tasks are drawn on the first page; all are on the page of the tasks.
const STRIPS_SHOWN: usize = 8;

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let input = book.input;
    let board = &input.board;
    let headline = headline::of_board(board, &book.words);
    let top = book.shared.top;
    let mut shared_ranks = std::collections::BTreeMap::new();
    for rank in board.rows.iter().filter_map(|row| row.rank) {
        *shared_ranks.entry(rank).or_insert(0) += 1;
    }
    let rows: Vec<Value> = input
        .versions
        .iter()
        .map(|version| {
            let shared = version.row.rank.is_some_and(|rank| shared_ranks[&rank] > 1);
            table_row(book, version, shared, top)
        })
        .collect();
    let strips = sections::strips(book, input.versions.iter().take(STRIPS_SHOWN), 0);
    let values = context! {
        finding => headline.finding.as_str(),
        uncertainty => headline.uncertainty.as_str(),
        answer => headline.answer.as_str(),
        held_out => input.documents.held_out.as_ref().map(|held_out| headline::held_out(held_out, &book.words)),
        progress => markup(charts::progress(board, &headline.finding, &book.words)),
        axis => markup(charts::interval_axis(top, &book.words)),
        rows => rows,
        primary => primary(input),
        arrow => arrow(board.higher_is_better),
        legend => legend(book),
        strips => strips,
        all_tasks => input.versions.len() > STRIPS_SHOWN,
        num_tasks => board.num_tasks,
        downloads => downloads(input),
        warnings => warnings(input),
        summary => summary(book),
        cost => cost(book),
        crowd => input.versions.len() > 40,
    };
    book.page("index.html", "index.html", &headline.finding, values)?;
    let summary = format!("{} {}", headline.uncertainty, headline.answer);
    book.entry("index.html", &headline.finding, &summary);
    Ok(())
}

/// The metric in the words of its field: `pass@1` for `pass_at_1`.
pub(super) fn primary(input: &SiteInput) -> String {
    text::visible(&input.board.primary_metric.replace("_at_", "@"))
}

/// Which way a metric is better.
pub(super) fn arrow(higher_is_better: bool) -> &'static str {
    if higher_is_better {
        "\u{2191}"
    } else {
        "\u{2193}"
    }
}

fn table_row(book: &Book<'_>, version: &VersionInput, shared: bool, top: f64) -> Value {
    let row = &version.row;
    let mark = marks::of(&row.algo);
    let cost = book.cost(&row.version_id);
    let head = |horizon: u32| row.heads.iter().find(|head| head.horizon == horizon);
    let parent = row.against_parent.as_ref();
    let pair = parent.and_then(|c| book.facts.pair(&row.version_id, &c.other));
    context! {
        id => row.version_id.as_str(),
        class => mark.class,
        group => if mark.class == "a-base" { "other" } else { mark.class.trim_start_matches("a-") },
        rank => row.rank.map(|rank| format!("{rank}{}", if shared { "=" } else { "" })),
        mark => markup(mark.inline()),
        algo => book.say(mark.name, &[]),
        change => book.change(version),
        score => row.estimate.map(|estimate| percent(estimate.mean)),
        sort => row.estimate.map(|estimate| format!("{:.6}", estimate.mean)),
        half => row.estimate.map(|estimate| format!("{:.1}", estimate.interval.half_width() * 100.0)),
        interval => markup(charts::interval(row, top, &book.words)),
        delta => parent.map(|c| signed(c.difference.difference)),
        delta_sort => parent.map(|c| format!("{:.6}", c.difference.difference)),
        delta_range => parent.map(|c| headline::range(c, &book.words)),
        parent => parent.map(|c| c.other.clone()),
        pair => pair.map(|pair| markup(text::escape(&pair.path))),
        verdict => parent.map(|c| book.say(c.words(), &[])),
        verdict_class => parent.map(|c| verdict_class(c.verdict)),
        sign => parent.map(|c| verdict_sign(c.verdict)),
        seeds => if row.seeds.is_empty() { "\u{2013}".to_owned() } else { row.seeds.len().to_string() },
        acceptance => head(2).map(|head| format!("{:.0}%", head.accuracy * 100.0)),
        loss => head(1).map(|head| format!("{:.2}", head.ce_nats)),
        hours => cost.hours().map(duration),
        hours_sort => cost.hours().map(|hours| format!("{hours:.5}")),
    }
}

pub(super) fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::NoDifference => "level",
    }
}

pub(super) fn verdict_sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "\u{25b2}",
        Verdict::Worse => "\u{25bc}",
        Verdict::NoDifference => "\u{2248}",
    }
}

/// The algorithms that occur, in the order of the legend.
pub(super) fn legend(book: &Book<'_>) -> Vec<Value> {
    marks::all()
        .iter()
        .filter(|(key, _)| book.input.board.rows.iter().any(|row| row.algo == *key))
        .map(|(_, mark)| {
            context! {
                mark => markup(mark.inline()),
                name => book.say(mark.name, &[]),
                meaning => book.say(mark.meaning, &[]),
                group => if mark.class == "a-base" { "other" } else { mark.class.trim_start_matches("a-") },
            }
        })
        .collect()
}

fn downloads(input: &SiteInput) -> Vec<Value> {
    input
        .downloads
        .iter()
        .map(|(name, bytes)| context! { name => *name, size => file_size(bytes.len()) })
        .collect()
}

/// What was compared, in one line.
fn summary(book: &Book<'_>) -> String {
    let board = &book.input.board;
    let trained: Vec<&LeaderboardRow> = board
        .rows
        .iter()
        .filter(|row| !row.seeds.is_empty())
        .collect();
    let seeds: usize = trained.iter().map(|row| row.seeds.len()).sum();
    let samples: u64 = board.rows.iter().map(|row| row.num_samples).sum();
    [
        book.words
            .count(trained.len(), "{n} trained version", "{n} trained versions"),
        book.words
            .count(seeds, "{n} training run", "{n} training runs"),
        book.words.count(board.num_tasks, "{n} task", "{n} tasks"),
        book.say("{n} programs run", &[("n", &grouped(samples))]),
    ]
    .join(", ")
}

/// What all of it took, in one line; none where nothing is known.
fn cost(book: &Book<'_>) -> Option<String> {
    let costs = book.shared.costs.values();
    let hours: f64 = costs.clone().filter_map(crate::cost::Cost::hours).sum();
    let generated: u64 = costs.clone().map(|cost| cost.generated_tokens).sum();
    let trained: u64 = costs.clone().filter_map(|cost| cost.trained_tokens).sum();
    let mut parts = Vec::new();
    if hours > 0.0 {
        let sentence = if costs.clone().any(crate::cost::Cost::is_on_gpu) {
            "{hours} of machine time, training on GPUs"
        } else {
            "{hours} of machine time, no GPU"
        };
        parts.push(book.say(sentence, &[("hours", &duration(hours))]));
    }
    if trained > 0 {
        parts.push(book.say("{n} target tokens trained on", &[("n", &grouped(trained))]));
    }
    if generated > 0 {
        parts.push(book.say("{n} tokens generated", &[("n", &grouped(generated))]));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}
