//! What may be behind a difference: sentences that a figure calls for, each with that figure.

use wmtp_records::ErrorClass;
use wmtp_stats::leaderboard::LeaderboardRow;
use wmtp_stats::wording::{percent, points, signed_range};

use super::tables::{p_value, signed_number};
use crate::figures::{Figure, Figures};
use crate::text::inert;

/// A list, or the sentence that nothing calls for one.
pub(super) fn render(row: &LeaderboardRow, figures: &Figures) -> String {
    let found: Vec<String> = [
        of_class(figures),
        of_family(figures),
        of_length(figures),
        of_heads(figures),
        of_control(row),
        of_value_model(figures),
        of_weights(figures),
        of_best_step(figures),
    ]
    .into_iter()
    .flatten()
    .map(|hypothesis| format!("- {hypothesis}\n"))
    .collect();
    if found.is_empty() {
        return match &figures.parent {
            Some(parent) => format!(
                "None: no family, outcome, length or head stands out of the noise against {}.",
                inert(parent)
            ),
            None => "None: there is no parent to differ from.".to_owned(),
        };
    }
    found.concat()
}

/// The outcome that moved most, if it stands out.
fn of_class(figures: &Figures) -> Option<String> {
    let moved = figures
        .classes
        .iter()
        .find(|figure| figure.name != ErrorClass::Passed.as_str() && figure.stands_out())?;
    let meaning = match (moved.name.as_str(), moved.delta()? > 0.0) {
        ("syntax", true) => "the form of programs suffers before their logic does",
        ("syntax", false) => "programs are better formed",
        ("wrong_answer", true) => "programs run and compute something else",
        ("wrong_answer", false) => "programs that run are right more often",
        ("runtime", true) => "names and types come out wrong",
        ("runtime", false) => "names and types come out right more often",
        (_, true) => "programs end in a way that tests do not reach",
        (_, false) => "more programs reach their tests",
    };
    Some(format!("{}: {meaning}.", evidence(moved, "Outcome")))
}

/// The family that moved most, if it stands out.
fn of_family(figures: &Figures) -> Option<String> {
    let moved = figures.families.iter().find(|figure| figure.stands_out())?;
    let total = figures.metric("pass_at_1")?.delta()?;
    let all: usize = figures.families.iter().map(|figure| figure.num_tasks).sum();
    let part = moved.delta()? * moved.num_tasks as f64 / all as f64;
    Some(format!(
        "{}: {} of the {} in all come from these {} of {all} tasks.",
        evidence(moved, "Family"),
        points(part),
        points(total),
        moved.num_tasks
    ))
}

fn of_length(figures: &Figures) -> Option<String> {
    let moved = figures.lengths.iter().find(|figure| figure.stands_out())?;
    let others = figures.lengths.iter().filter(|figure| figure.stands_out());
    (others.count() == 1).then(|| {
        format!(
            "{}: the difference goes with the length of programs.",
            evidence(moved, "Programs of")
        )
    })
}

/// Near and far heads that moved apart.
fn of_heads(figures: &Figures) -> Option<String> {
    let (first, far) = figures.heads.split_first()?;
    let near = first.delta()?;
    let deltas: Vec<f64> = far.iter().filter_map(Figure::delta).collect();
    if deltas.is_empty() {
        return None;
    }
    let mean = deltas.iter().sum::<f64>() / deltas.len() as f64;
    // A hundredth of a nat is one token in a hundred: below it, heads are level.
    let apart = near * mean < 0.0 && near.abs() > 0.01 && mean.abs() > 0.01;
    let (near_text, far_text) = (signed_number(near), signed_number(mean));
    if apart {
        let who = if near < 0.0 {
            "the next token gains at the cost of the ones after it"
        } else {
            "the tokens after the next gain at its cost"
        };
        return Some(format!(
            "Head 1's loss moved by {near_text} nats, the others' by {far_text} in the mean: {who}."
        ));
    }
    let solved = figures.metric("pass_at_1")?;
    let against = solved.difference?.is_significant() && near.abs() > 0.01;
    // A larger loss beside more solved tasks, or the reverse.
    (against && (near > 0.0) == (solved.delta()? > 0.0)).then(|| {
        format!(
            "Head 1's loss on reference solutions moved by {near_text} nats and pass_at_1 by {}: the loss over all tokens \
             does not say which tokens decide.",
            points(solved.delta().unwrap_or(0.0))
        )
    })
}

/// Shuffled or random weights that do the same.
fn of_control(row: &LeaderboardRow) -> Option<String> {
    if !row.is_weighted() {
        return None;
    }
    let mut controls = row.against_controls.iter();
    let level = controls.find(|control| !control.difference.is_significant())?;
    Some(format!(
        "The control {} cannot be told from it ({}): which token gets which weight explains nothing that can be seen here.",
        inert(&level.other),
        signed_range(&level.difference.interval)
    ))
}

fn of_value_model(figures: &Figures) -> Option<String> {
    let accuracy = figures.training.value_accuracy?;
    (accuracy < 0.58).then(|| {
        format!(
            "Its value model ranks {} of held-out pairs right, where chance ranks 50.0%: the weights hardly know which \
             tokens matter.",
            percent(accuracy)
        )
    })
}

fn of_weights(figures: &Figures) -> Option<String> {
    let facts = figures.training.weights?;
    if facts.clip_high > 0.05 {
        return Some(format!(
            "{} of its tokens have the largest weight there may be: among the strongest the order is lost.",
            percent(facts.clip_high)
        ));
    }
    (facts.std > 0.0 && facts.std < 0.25).then(|| {
        format!(
            "Its weights spread by {:.3} around 1: most of what differs is chance of training, not weighting.",
            facts.std
        )
    })
}

fn of_best_step(figures: &Figures) -> Option<String> {
    let (best, last) = (figures.training.best_step?, figures.training.last_step?);
    (best < 0.7 * last as f64).then(|| {
        format!(
            "Its validation loss was smallest at step {best:.0} of {last}: the steps after it did not help."
        )
    })
}

/// A figure as the start of a sentence.
fn evidence(figure: &Figure, what: &str) -> String {
    let interval = figure
        .difference
        .map_or_else(String::new, |d| signed_range(&d.interval));
    format!(
        "{what} {}: {} ({interval}; p {} after Holm)",
        inert(&figure.name.replace('_', " ")),
        points(figure.delta().unwrap_or(0.0)),
        p_value(figure.p_holm.unwrap_or(1.0))
    )
}
