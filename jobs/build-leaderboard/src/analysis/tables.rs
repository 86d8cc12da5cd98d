//! The tables of an analysis.

use std::fmt::Write;

use wmtp_stats::leaderboard::LeaderboardRow;
use wmtp_stats::wording::{percent, signed, signed_range};

use crate::figures::{FEWEST_TASKS, Figure, Figures};
use crate::text::inert;
use crate::training::WeightFacts;

/// Every metric beside the parent's; where it is a mean over tasks, with the interval of the difference.
pub(super) fn metrics(figures: &Figures) -> String {
    let Some(parent) = &figures.parent else {
        let mut table = format!(
            "| metric | {} | 95% interval |\n|---|---:|---:|\n",
            inert(&figures.version_id)
        );
        for figure in &figures.metrics {
            let interval = figure.estimate.map_or_else(String::new, |estimate| {
                range(estimate.interval.low, estimate.interval.high)
            });
            let _ = writeln!(
                table,
                "| {} | {} | {interval} |",
                inert(&figure.name),
                plain_number(figure.now)
            );
        }
        return table;
    };
    let mut table = format!(
        "| metric | {} | {} | delta | 95% interval |\n|---|---:|---:|---:|---:|\n",
        inert(&figures.version_id),
        inert(parent)
    );
    for figure in &figures.metrics {
        let before = figure.before.map_or_else(String::new, plain_number);
        let delta = figure.delta().map_or_else(String::new, signed_number);
        let interval = figure.difference.map_or_else(String::new, |difference| {
            let interval = difference.interval;
            format!(
                "{} to {}",
                signed_number(interval.low),
                signed_number(interval.high)
            )
        });
        let _ = writeln!(
            table,
            "| {} | {} | {before} | {delta} | {interval} |",
            inert(&figure.name),
            plain_number(figure.now)
        );
    }
    table
}

/// Families, classes, heads, weights and lengths, each where there is something to show.
pub(super) fn places(row: &LeaderboardRow, figures: &Figures) -> String {
    let parts = [
        (
            "Task families",
            shares(figures, &figures.families, "family"),
        ),
        (
            "Error classes",
            shares(figures, &figures.classes, "outcome"),
        ),
        ("Prediction heads", heads(row, figures)),
        ("Token weights", weights(figures)),
        (
            "Length",
            shares(figures, &figures.lengths, "parent's programs"),
        ),
    ];
    let mut text = String::new();
    for (heading, body) in parts {
        if !body.is_empty() {
            let _ = write!(text, "### {heading}\n\n{body}\n");
        }
    }
    if text.is_empty() {
        text.push_str("Nothing but the metrics is known.\n");
    }
    text
}

/// Shares with their differences; a star where the difference stands out of the table's noise.
fn shares(figures: &Figures, rows: &[Figure], what: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let version = inert(&figures.version_id);
    let Some(parent) = &figures.parent else {
        let mut table = format!("| {what} | {version} |\n|---|---:|\n");
        for figure in rows {
            let _ = writeln!(table, "| {} | {} |", name(figure), percent(figure.now));
        }
        return table;
    };
    let mut table = format!(
        "| {what} | tasks | {version} | {} | points | 95% interval | p (Holm) |\n|---|---:|---:|---:|---:|---:|---:|\n",
        inert(parent)
    );
    let untested = |figure: &Figure| figure.difference.is_some() && !figure.is_tested();
    if rows.iter().any(untested) {
        let note = format!(
            "Groups of fewer than {FEWEST_TASKS} tasks are not tested: read them as hints.\n\n"
        );
        table.insert_str(0, &note);
    }
    for figure in rows {
        let tasks = match figure.num_tasks {
            0 => String::new(),
            tasks => tasks.to_string(),
        };
        let interval = figure
            .difference
            .filter(|_| figure.is_tested())
            .map_or_else(String::new, |d| signed_range(&d.interval));
        let p = figure.p_holm.map_or_else(String::new, p_value);
        let _ = writeln!(
            table,
            "| {} | {tasks} | {} | {} | {} | {interval} | {p} |",
            name(figure),
            percent(figure.now),
            percent(figure.before.unwrap_or(0.0)),
            signed(figure.delta().unwrap_or(0.0)),
        );
    }
    table
}

fn name(figure: &Figure) -> String {
    inert(&figure.name.replace('_', " "))
}

fn heads(row: &LeaderboardRow, figures: &Figures) -> String {
    if figures.heads.is_empty() {
        return String::new();
    }
    let version = inert(&figures.version_id);
    let accuracy = |index: usize| row.heads.get(index).map_or(0.0, |head| head.accuracy);
    let mut table = match &figures.parent {
        Some(parent) => format!(
            "| loss, nats | {version} | {} | delta | tokens right |\n|---|---:|---:|---:|---:|\n",
            inert(parent)
        ),
        None => format!("| loss, nats | {version} | tokens right |\n|---|---:|---:|\n"),
    };
    for (index, figure) in figures.heads.iter().enumerate() {
        let right = percent(accuracy(index));
        let _ = match (figure.before, figure.delta()) {
            (Some(before), Some(delta)) => writeln!(
                table,
                "| {} | {:.4} | {before:.4} | {} | {right} |",
                figure.name,
                figure.now,
                signed_number(delta)
            ),
            _ if figures.parent.is_some() => {
                writeln!(
                    table,
                    "| {} | {:.4} | | | {right} |",
                    figure.name, figure.now
                )
            }
            _ => writeln!(table, "| {} | {:.4} | {right} |", figure.name, figure.now),
        };
    }
    table
}

fn weights(figures: &Figures) -> String {
    type Value = fn(&WeightFacts) -> String;
    let Some(now) = figures.training.weights else {
        return String::new();
    };
    let before = figures
        .parent_training
        .as_ref()
        .and_then(|facts| facts.weights);
    let mut table = match (&figures.parent, before) {
        (Some(parent), Some(_)) => format!(
            "Means over the second half of training; the mean weight is 1.\n\n| token weights | {} | {} |\n|---|---:|---:|\n",
            inert(&figures.version_id),
            inert(parent)
        ),
        _ => format!(
            "Means over the second half of training; the mean weight is 1.\n\n| token weights | {} |\n|---|---:|\n",
            inert(&figures.version_id)
        ),
    };
    let lines: [(&str, Value); 4] = [
        ("standard deviation", |facts| format!("{:.3}", facts.std)),
        ("normalised entropy", |facts| {
            format!("{:.3}", facts.entropy)
        }),
        ("at the lower bound", |facts| percent(facts.clip_low)),
        ("at the upper bound", |facts| percent(facts.clip_high)),
    ];
    for (name, value) in lines {
        let _ = match before.filter(|_| figures.parent.is_some()) {
            Some(before) => writeln!(table, "| {name} | {} | {} |", value(&now), value(&before)),
            None => writeln!(table, "| {name} | {} |", value(&now)),
        };
    }
    if let Some(accuracy) = figures.training.value_accuracy {
        let _ = writeln!(
            table,
            "\nThe value model behind them ranks {} of held-out pairs right; chance is 50.0%.",
            percent(accuracy)
        );
    }
    table
}

fn range(low: f64, high: f64) -> String {
    format!("{low:.4} to {high:.4}")
}

/// Four decimals and a true minus sign; counts, which are whole and more than one, have no decimals.
pub(crate) fn plain_number(number: f64) -> String {
    let is_count = number.fract() == 0.0 && number > 1.0;
    let text = if is_count {
        format!("{number:.0}")
    } else {
        format!("{number:.4}")
    };
    text.replace('-', "\u{2212}")
}

/// Four decimals, a true minus sign, a sign on everything but zero.
pub(super) fn signed_number(number: f64) -> String {
    let text = format!("{:.4}", number.abs());
    match text.as_str() {
        "0.0000" => text,
        _ if number < 0.0 => format!("\u{2212}{text}"),
        _ => format!("+{text}"),
    }
}

/// Three decimals, or that it is smaller.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 {
        "below 0.001".to_owned()
    } else {
        format!("{p:.3}")
    }
}
