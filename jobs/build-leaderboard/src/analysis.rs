//! `result-analysis.md`: what happened to one version, in words and tables, all computed.
//!
//! Five sections answer in order: what moved, where, what it looks like, what may be behind it, what to try. A sentence
//! without a figure is not written.

mod hypotheses;
mod tables;

pub(crate) use tables::plain_number;

use std::fmt::Write;

use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow};
use wmtp_stats::wording::{count, level_range, percent, points, signed_range};

use crate::actions::catalogue::{CATALOGUE, Case};
use crate::actions::scalar;
use crate::figures::{Figures, Quote, Quoted};
use crate::text::{code_block, inert};

/// Renders the analysis of one row.
pub fn render(board: &Leaderboard, row: &LeaderboardRow, figures: &Figures) -> String {
    let sections = [
        ("Metric deltas", tables::metrics(figures)),
        ("Where the difference sits", tables::places(row, figures)),
        ("Evidence", evidence(figures)),
        ("Hypotheses", hypotheses::render(row, figures)),
        ("Candidates for next", candidates(board, row, figures)),
    ];
    let mut text = format!("# {}\n\n{}\n", inert(&row.version_id), summary(board, row));
    for (heading, body) in sections {
        let _ = write!(text, "\n## {heading}\n\n{}\n", body.trim_end());
    }
    text
}

fn summary(board: &Leaderboard, row: &LeaderboardRow) -> String {
    let mut sentences = Vec::new();
    let who = if row.is_base() {
        format!("{} is the untrained model", inert(&row.version_id))
    } else if row.is_external() {
        format!("{} was not trained here", inert(&row.version_id))
    } else {
        format!(
            "{} ({}, {})",
            inert(&row.version_id),
            inert(&row.algo),
            count(row.seeds.len(), "seed")
        )
    };
    sentences.push(match row.estimate {
        Some(estimate) => {
            let joint = if row.is_trained() { "" } else { "; it" };
            format!(
                "{who}{joint} solves {} of {} with one try (95% interval over {} {}).",
                percent(estimate.mean),
                count(board.num_tasks, "task"),
                row.resampled(),
                level_range(&estimate.interval)
            )
        }
        None => format!("{who} has no {} and is not ranked.", board.primary_metric),
    });
    if let Some(change) = &row.change {
        sentences.push(format!(
            "Its one change: {}.",
            inert(change.trim_end_matches('.'))
        ));
    }
    sentences.extend(
        row.against_parent
            .iter()
            .map(|c| difference(c, "its parent")),
    );
    let baseline = row.against_baseline.iter();
    sentences.extend(
        baseline
            .filter(|c| row.parent.as_deref() != Some(c.other.as_str()))
            .map(|c| difference(c, "the baseline")),
    );
    sentences.extend(
        row.against_controls
            .iter()
            .map(|c| difference(c, "the control")),
    );
    let leader = row.against_leader.iter().filter(|_| row.is_external());
    sentences.extend(leader.map(|c| difference(c, "the leader")));
    sentences.join(" ")
}

/// One sentence per comparison.
fn difference(comparison: &Comparison, role: &str) -> String {
    format!(
        "Against {role} {}: {} ({}), {}; {}.",
        inert(&comparison.other),
        points(comparison.difference.difference),
        signed_range(&comparison.difference.interval),
        comparison.words(),
        inert(&comparison.reason)
    )
}

/// Programs of the tasks that moved most.
fn evidence(figures: &Figures) -> String {
    if figures.quotes.is_empty() {
        return match &figures.parent {
            Some(parent) => format!(
                "No task's pass rate differs from that of {}.",
                inert(parent)
            ),
            None => "Every program of every task passes.".to_owned(),
        };
    }
    let quotes = figures.quotes.iter();
    quotes.map(|quote| quoted(quote, figures)).collect()
}

fn quoted(quote: &Quote, figures: &Figures) -> String {
    let family = if quote.family.is_empty() {
        String::new()
    } else {
        format!(" ({})", inert(&quote.family))
    };
    let before = match (quote.before, &figures.parent) {
        (Some(before), Some(parent)) => {
            format!(", {} with {}", percent(before), inert(parent))
        }
        _ => String::new(),
    };
    let mut text = format!(
        "**{}**{family}: {} of its programs pass{before}.\n\n",
        inert(&quote.problem_id),
        percent(quote.now)
    );
    let sides = [
        (Some(&figures.version_id), &quote.this),
        (figures.parent.as_ref(), &quote.parent),
    ];
    for (version, program) in sides {
        if let (Some(version), Some(program)) = (version, program) {
            text.push_str(&quoted_program(version, program));
        }
    }
    text
}

fn quoted_program(version: &str, quoted: &Quoted) -> String {
    let message = quoted.message.lines().next().unwrap_or_default();
    let said = if message.is_empty() {
        String::new()
    } else {
        format!(": {}", inert(message))
    };
    format!(
        "{}, sample {}, {}{said}\n\n{}\n",
        inert(version),
        quoted.sample,
        quoted.class.as_str().replace('_', " "),
        code_block(&quoted.program)
    )
}

/// What of the catalogue the figures call for.
fn candidates(board: &Leaderboard, row: &LeaderboardRow, figures: &Figures) -> String {
    let Some(recipe) = &figures.training.recipe else {
        return "None: there is no recipe to change.".to_owned();
    };
    let case = Case {
        board,
        row,
        figures,
        recipe,
    };
    let mut text = String::new();
    for entry in &CATALOGUE {
        if let Some(proposal) = entry.propose(&case) {
            let old = recipe.setting(entry.key).unwrap_or_default();
            let _ = writeln!(
                text,
                "- `{}`: `{}` from {} to {}, since {}.",
                entry.name,
                entry.key,
                inert(&scalar(&old)),
                inert(&scalar(&proposal.value)),
                inert(&proposal.because)
            );
        }
    }
    if text.is_empty() {
        text.push_str("None: no pre-condition of the catalogue holds.\n");
    }
    text
}
