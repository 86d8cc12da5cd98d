//! `model-card.md`: the best trained version for whoever is to use it.

use std::fmt::Write;

use wmtp_stats::leaderboard::{HeldOut, LeaderboardRow};
use wmtp_stats::wording::{count, level_range, percent};

use crate::analysis::plain_number;
use crate::report::Report;
use crate::text::{inert, list};
use crate::training::TrainingFacts;

/// Renders the card.
pub(crate) fn render(report: &Report, row: &LeaderboardRow) -> String {
    let unknown = TrainingFacts::default();
    let facts = report.training.get(&row.version_id).unwrap_or(&unknown);
    let sections = [
        ("Model", model(row, facts)),
        ("Data", data(report, row)),
        ("Protocol", protocol(report)),
        ("Results", results(report, row)),
        ("Limits", limits(report, row)),
        ("Licence", licence()),
        ("Energy and cost", cost(row, facts)),
        ("Files", files(facts)),
        ("Promotion", promotion()),
    ];
    let mut text = format!("# Model card of {}\n", inert(&row.version_id));
    for (heading, body) in sections {
        let _ = write!(text, "\n## {heading}\n\n{}\n", body.trim_end());
    }
    text
}

fn attribute<'a>(facts: &'a TrainingFacts, name: &str) -> Option<&'a str> {
    let attributes = &facts.checkpoint.as_ref()?.attributes;
    attributes.get(name).map(String::as_str)
}

fn model(row: &LeaderboardRow, facts: &TrainingFacts) -> String {
    let mut text = format!("Algorithm {}", inert(&row.algo));
    if let (Some(parent), Some(change)) = (&row.parent, &row.change) {
        let change = change.trim_end_matches('.');
        let _ = write!(
            text,
            ", {} with one change: {}",
            inert(parent),
            inert(change)
        );
    }
    text.push_str(".\n");
    if let (Some(parameters), Some(heads)) = (
        attribute(facts, "n_params"),
        attribute(facts, "n_future_tokens"),
    ) {
        let _ = writeln!(
            text,
            "\n{} parameters, {heads} prediction heads; head 1 alone generates.",
            grouped(parameters)
        );
    }
    if let Some(recipe) = &facts.recipe {
        let _ = writeln!(
            text,
            "\nTrained from {} with {} in {}; programs of up to {} tokens, prompt included.",
            inert(&recipe.model.base),
            count(row.seeds.len(), "seed"),
            recipe.model.dtype,
            recipe.data.max_length
        );
    }
    text
}

fn data(report: &Report, row: &LeaderboardRow) -> String {
    let board = &report.board;
    format!(
        "Data set {} ({}), {} of its {} split. Training saw correct solutions of the training split; problems are disjoint \
         between splits.",
        inert(&row.dataset_id),
        inert(&board.data),
        count(board.num_tasks, "task"),
        board.split
    )
}

fn protocol(report: &Report) -> String {
    let mut table = "| setting | value |\n|---|---|\n".to_owned();
    for (name, value) in &report.board.protocol {
        let _ = writeln!(table, "| {} | {} |", inert(name), inert(value));
    }
    table
}

fn results(report: &Report, row: &LeaderboardRow) -> String {
    let mut table = format!(
        "| metric | value | 95% interval over {} |\n|---|---:|---:|\n",
        row.resampled()
    );
    for metric in &row.metrics {
        let interval = row
            .estimate
            .filter(|_| metric.name == report.board.primary_metric)
            .map_or_else(String::new, |estimate| {
                let interval = estimate.interval;
                format!("{:.4} to {:.4}", interval.low, interval.high)
            });
        let _ = writeln!(
            table,
            "| {} | {} | {interval} |",
            inert(&metric.name),
            plain_number(metric.value)
        );
    }
    if let Some(held_out) = held_out_of(report, row) {
        let _ = writeln!(
            table,
            "\nOn {}, asked once: {} ({}).",
            inert(&held_out.dataset_id),
            percent(held_out.estimate.mean),
            level_range(&held_out.estimate.interval)
        );
    }
    table
}

fn held_out_of<'a>(report: &'a Report, row: &LeaderboardRow) -> Option<&'a HeldOut> {
    let held_out = report.held_out.as_ref()?;
    (held_out.version_id == row.version_id).then_some(held_out)
}

fn limits(report: &Report, row: &LeaderboardRow) -> String {
    let board = &report.board;
    let mut limits = vec![
        format!("Measured on {} of {} and on nothing else; other languages, longer programs and natural text were not tested.",
            count(board.num_tasks, "task"), inert(&board.dataset_id)),
        "Generated programs may be wrong, unsafe or copies of training programs: run them in a sandbox alone.".to_owned(),
    ];
    if held_out_of(report, row).is_none() {
        limits.push(format!(
            "It is the best of {} on the set that is reported, which flatters it a little.",
            count(
                board.rows.iter().filter(|row| row.is_trained()).count(),
                "version"
            )
        ));
    }
    if let Some(against) = &row.against_baseline {
        limits.push(format!(
            "Against the baseline {}: {}; {}.",
            inert(&against.other),
            against.words(),
            inert(&against.reason)
        ));
    }
    list(&limits)
}

fn licence() -> String {
    "Code: MIT or Apache-2.0. Weights carry the licences of the base model and of the data that they were made from; weights \
     derived from a base under a research licence may not be passed on."
        .to_owned()
}

fn cost(row: &LeaderboardRow, facts: &TrainingFacts) -> String {
    let Some(secs) = facts.train_secs else {
        return "Not recorded in this store. Energy was not measured.".to_owned();
    };
    let sample = row.latency_ms.map_or_else(String::new, |millis| {
        format!("A sample takes {millis:.0} ms to generate. ")
    });
    format!(
        "Training took {} of {} in all for {}, attempts that did not finish not counted; a value model or a tuned \
         reference, the evaluation and the other versions come on top. {}Energy was not measured.",
        duration(secs),
        inert(facts.device.as_deref().unwrap_or("an unnamed device")),
        count(row.seeds.len(), "seed"),
        sample
    )
}

fn files(facts: &TrainingFacts) -> String {
    let Some(checkpoint) = &facts.checkpoint else {
        return "The checkpoint is not in this store.".to_owned();
    };
    let mut table = "Of the first seed.\n\n| file | bytes | SHA-256 |\n|---|---:|---|\n".to_owned();
    for (path, size, digest) in &checkpoint.files {
        let _ = writeln!(
            table,
            "| {} | {} | `{digest}` |",
            inert(path),
            grouped(&size.to_string())
        );
    }
    table
}

/// `641,472` for `641472`; anything but digits stays as it is.
fn grouped(number: &str) -> String {
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return inert(number);
    }
    let mut grouped = String::new();
    for (index, digit) in number.chars().enumerate() {
        if index > 0 && (number.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Seconds in the unit that a reader thinks in.
fn duration(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs.div_ceil(60)),
        _ => format!("{:.1} hours", secs as f64 / 3600.0),
    }
}

fn promotion() -> String {
    "`build-leaderboard promote` moves a version to staging and from there to production through a gate; `wmtp-store \
     promotions` lists what it was asked and what it found."
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!(grouped("641472"), "641,472");
        assert_eq!(grouped("212"), "212");
        assert_eq!(grouped("n|a"), "n\\|a");
        let spans = [119, 120, 7199, 9000].map(duration);
        assert_eq!(spans, ["119 s", "2 min", "120 min", "2.5 hours"]);
        let values = [63.0, 1.0, -0.0259, 0.0].map(plain_number);
        assert_eq!(values, ["63", "1.0000", "\u{2212}0.0259", "0.0000"]);
    }
}
