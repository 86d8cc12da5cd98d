//! `result-analysis.md`: what happened to one version, in words and tables, all computed.

use std::fmt::Write;

use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow};
use wmtp_stats::wording::{count, level_range, percent, points, signed, signed_range};

/// Renders the analysis of one row.
pub fn render(board: &Leaderboard, row: &LeaderboardRow) -> String {
    let parent = row
        .parent
        .as_deref()
        .and_then(|id| board.rows.iter().find(|other| other.version_id == id));
    let mut text = format!("# {}\n\n## Summary\n\n", inert(&row.version_id));
    text.push_str(&summary(board, row));
    text.push_str("\n\n## Metric deltas\n\n");
    text.push_str(&metric_deltas(row, parent));
    if let Some(parent) = parent {
        text.push_str("\n## Where the difference sits\n\n");
        text.push_str(&by_family(row, parent));
    }
    text.push_str("\n## How programs fail\n\n");
    text.push_str(&by_error(row, parent));
    text
}

fn summary(board: &Leaderboard, row: &LeaderboardRow) -> String {
    let mut sentences = Vec::new();
    let who = if row.is_base() {
        format!("{} is the untrained model", inert(&row.version_id))
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
            let joint = if row.is_base() { "; it" } else { "" };
            format!(
                "{who}{joint} solves {} of {} with one try (95 % interval over tasks {}).",
                percent(estimate.mean),
                count(board.num_tasks, "task"),
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
    sentences.join(" ")
}

/// One sentence per comparison.
fn difference(comparison: &Comparison, role: &str) -> String {
    format!(
        "Against {role} {}: {} ({}), {}; {}.",
        inert(&comparison.other),
        points(comparison.difference.difference),
        signed_range(&comparison.difference.interval),
        comparison.verdict.words(),
        inert(&comparison.reason)
    )
}

fn metric_deltas(row: &LeaderboardRow, parent: Option<&LeaderboardRow>) -> String {
    let mut table = match parent {
        Some(parent) => format!(
            "| metric | {} | {} | delta |\n|---|---:|---:|---:|\n",
            inert(&row.version_id),
            inert(&parent.version_id)
        ),
        None => format!("| metric | {} |\n|---|---:|\n", inert(&row.version_id)),
    };
    for metric in &row.metrics {
        let _ = match parent.map(|parent| parent.metric(&metric.name)) {
            None => writeln!(table, "| {} | {:.4} |", inert(&metric.name), metric.value),
            Some(None) => writeln!(
                table,
                "| {} | {:.4} | | |",
                inert(&metric.name),
                metric.value
            ),
            Some(Some(before)) => {
                let delta = minus_sign(format!("{:+.4}", metric.value - before));
                writeln!(
                    table,
                    "| {} | {:.4} | {before:.4} | {delta} |",
                    inert(&metric.name),
                    metric.value
                )
            }
        };
    }
    table
}

fn by_family(row: &LeaderboardRow, parent: &LeaderboardRow) -> String {
    let mut families: Vec<(&str, usize, f64, f64)> = row
        .families
        .iter()
        .filter_map(|family| {
            let before = parent
                .families
                .iter()
                .find(|other| other.family == family.family)?;
            Some((
                family.family.as_str(),
                family.num_tasks,
                family.mean,
                before.mean,
            ))
        })
        .collect();
    if families.len() < 2 {
        return "The data set names no problem families.\n".to_owned();
    }
    families.sort_by(|a, b| {
        (b.2 - b.3)
            .abs()
            .total_cmp(&(a.2 - a.3).abs())
            .then(a.0.cmp(b.0))
    });
    let mut table = format!(
        "Families in order of how much they moved; few tasks each, so read single rows as hints.\n\n\
         | family | tasks | {} | {} | points |\n|---|---:|---:|---:|---:|\n",
        inert(&row.version_id),
        inert(&parent.version_id)
    );
    for (family, tasks, now, before) in families {
        let _ = writeln!(
            table,
            "| {} | {tasks} | {} | {} | {} |",
            inert(family),
            percent(now),
            percent(before),
            signed(now - before)
        );
    }
    table
}

fn by_error(row: &LeaderboardRow, parent: Option<&LeaderboardRow>) -> String {
    let mut table = match parent {
        Some(parent) => format!(
            "| outcome | {} | {} | points |\n|---|---:|---:|---:|\n",
            inert(&row.version_id),
            inert(&parent.version_id)
        ),
        None => format!("| outcome | {} |\n|---|---:|\n", inert(&row.version_id)),
    };
    let mut classes: Vec<_> = row.error_shares.keys().collect();
    classes.extend(parent.iter().flat_map(|parent| parent.error_shares.keys()));
    classes.sort();
    classes.dedup();
    for class in classes {
        let share = |row: &LeaderboardRow| row.error_shares.get(class).copied().unwrap_or(0.0);
        let name = class.as_str().replace('_', " ");
        let _ = match parent {
            None => writeln!(table, "| {name} | {} |", percent(share(row))),
            Some(parent) => writeln!(
                table,
                "| {name} | {} | {} | {} |",
                percent(share(row)),
                percent(share(parent)),
                signed(share(row) - share(parent))
            ),
        };
    }
    table
}

fn minus_sign(text: String) -> String {
    text.replace('-', "\u{2212}")
}

/// Text of recipes and data sets in Markdown: one line, no markup.
fn inert(text: &str) -> String {
    let mut inert = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '#' | '!' | '&' => {
                inert.push('\\');
                inert.push(character);
            }
            '\n' | '\r' | '\t' => inert.push(' '),
            _ => inert.push(character),
        }
    }
    inert
}
