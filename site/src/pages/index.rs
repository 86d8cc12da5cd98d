//! The leaderboard page.

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::{LeaderboardRow, Verdict};
use wmtp_stats::wording::{count, percent, signed, signed_range};

use super::{file_size, markup, moment, sections};
use crate::input::SiteInput;
use crate::{charts, headline, marks, text};

pub(super) fn context(input: &SiteInput) -> Value {
    let board = &input.board;
    let headline = headline::of_board(board);
    let top = charts::rate_top(board);
    let rows: Vec<Value> = board
        .rows
        .iter()
        .map(|row| table_row(input, row, top))
        .collect();
    let strips = strips(input);
    context! {
        root => "",
        title => headline.finding.clone(),
        dataset => board.dataset_id.as_str(),
        moment => moment(&board.created_at),
        finding => headline.finding.as_str(),
        uncertainty => headline.uncertainty.as_str(),
        answer => headline.answer.as_str(),
        progress => markup(charts::progress(board, &headline.finding)),
        axis => markup(charts::interval_axis(top)),
        rows => rows,
        legend => legend(input),
        strips => strips,
        num_tasks => board.num_tasks,
        downloads => downloads(input),
        warnings => board.warnings.clone(),
        summary => summary(input),
    }
}

fn table_row(input: &SiteInput, row: &LeaderboardRow, top: f64) -> Value {
    let mark = marks::of(&row.algo);
    let shared = input
        .board
        .rows
        .iter()
        .filter(|other| row.rank.is_some() && other.rank == row.rank)
        .count()
        > 1;
    context! {
        id => row.version_id.as_str(),
        rank => row.rank.map(|rank| format!("{rank}{}", if shared { "=" } else { "" })),
        mark => markup(mark.inline()),
        algo => mark.name,
        change => row.change.as_deref().map_or_else(
            || if row.is_base() { "the model before training" } else { "starting point" }.to_owned(),
            text::visible,
        ),
        score => row.estimate.map(|estimate| percent(estimate.mean)),
        half => row.estimate.map(|estimate| format!("{:.1}", estimate.interval.half_width() * 100.0)),
        interval => markup(charts::interval(row, top)),
        delta => row.against_parent.as_ref().map(|c| signed(c.difference.difference)),
        delta_range => row.against_parent.as_ref().map(|c| signed_range(&c.difference.interval)),
        parent => row.against_parent.as_ref().map(|c| c.other.clone()),
        verdict => row.against_parent.as_ref().map(|c| c.verdict.words()),
        verdict_class => row.against_parent.as_ref().map(|c| verdict_class(c.verdict)),
        sign => row.against_parent.as_ref().map(|c| verdict_sign(c.verdict)),
        seeds => if row.is_base() { "\u{2013}".to_owned() } else { row.seeds.len().to_string() },
        pass_at_10 => row.metric("pass_at_10").map(percent),
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
fn legend(input: &SiteInput) -> Vec<Value> {
    marks::all()
        .iter()
        .filter(|(key, _)| input.board.rows.iter().any(|row| row.algo == *key))
        .map(|(_, mark)| context! { mark => markup(mark.inline()), name => mark.name, meaning => mark.meaning })
        .collect()
}

/// Task strips of every version, in the order in which they came to be.
fn strips(input: &SiteInput) -> Vec<Value> {
    let versions = charts::lineage(&input.board).into_iter().filter_map(|row| {
        input
            .versions
            .iter()
            .find(|version| version.row.version_id == row.version_id)
    });
    sections::strips(input, versions)
}

fn downloads(input: &SiteInput) -> Vec<Value> {
    input
        .downloads
        .iter()
        .map(|(name, bytes)| context! { name => *name, size => file_size(bytes.len()) })
        .collect()
}

/// What was compared, in one line.
fn summary(input: &SiteInput) -> String {
    let board = &input.board;
    let trained: Vec<&LeaderboardRow> = board.rows.iter().filter(|row| !row.is_base()).collect();
    let seeds: usize = trained.iter().map(|row| row.seeds.len()).sum();
    let samples: u64 = board.rows.iter().map(|row| row.num_samples).sum();
    format!(
        "{}, {}, {}, {samples} programs run",
        count(trained.len(), "trained version"),
        count(seeds, "training run"),
        count(board.num_tasks, "task")
    )
}
