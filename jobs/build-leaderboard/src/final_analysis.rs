//! `final-analysis.md`: what the whole board says, warnings first.

use std::fmt::Write;

use wmtp_recipe::{Algo, Recipe};
use wmtp_stats::leaderboard::{HeldOut, LeaderboardRow, SEEDS_FOR_A_CLAIM};
use wmtp_stats::wording::{count, level_range, percent, points, signed, signed_range};

use crate::actions::catalogue::{CATALOGUE, Case};
use crate::report::Report;
use crate::text::{inert, list};

/// Versions that are looked at closely.
const TOP: usize = 3;

/// Renders the analysis of a board.
pub(crate) fn render(report: &Report) -> String {
    let sections = [
        ("Warnings", warnings(report)),
        ("Top three", top(report)),
        ("Models from outside", outsiders(report)),
        ("What the board can resolve", resolution(report)),
        ("What next", next(report)),
    ];
    let mut text = format!("# Final analysis\n\n{}\n", lead(report));
    for (heading, body) in sections {
        if body.is_empty() {
            continue;
        }
        let _ = write!(text, "\n## {heading}\n\n{}\n", body.trim_end());
    }
    text
}

/// The versions that were trained and can be ranked, best first.
fn ranked(report: &Report) -> impl Iterator<Item = &LeaderboardRow> {
    let rows = report.board.rows.iter();
    rows.filter(|row| row.is_trained() && row.estimate.is_some())
}

fn lead(report: &Report) -> String {
    let Some(best) = ranked(report).next() else {
        return "No trained version has the primary metric.".to_owned();
    };
    let Some(estimate) = best.estimate else {
        return String::new();
    };
    let level: Vec<&str> = ranked(report)
        .skip(1)
        .filter(|row| row.rank == best.rank)
        .map(|row| row.version_id.as_str())
        .collect();
    let standing = if level.is_empty() {
        "alone in its rank".to_owned()
    } else {
        format!("level with {} within the noise", inert(&level.join(", ")))
    };
    format!(
        "{} has the highest {}, {} ({}), {standing}, of {} on {}.",
        inert(&best.version_id),
        report.board.primary_metric,
        percent(estimate.mean),
        level_range(&estimate.interval),
        count(ranked(report).count(), "trained version"),
        inert(&report.board.dataset_id)
    )
}

fn warnings(report: &Report) -> String {
    let board = &report.board;
    let mut warnings: Vec<String> = board.warnings.iter().map(|text| inert(text)).collect();
    let few: Vec<&str> = ranked(report)
        .filter(|row| row.seeds.len() < SEEDS_FOR_A_CLAIM)
        .map(|row| row.version_id.as_str())
        .collect();
    if !few.is_empty() {
        warnings.push(format!(
            "Nothing can be claimed of {}: a claim needs {SEEDS_FOR_A_CLAIM} training seeds.",
            inert(&few.join(", "))
        ));
    }
    let repeated: Vec<&str> = report
        .training
        .iter()
        .filter(|(_, facts)| facts.was_repeated())
        .map(|(id, _)| id.as_str())
        .collect();
    if !repeated.is_empty() {
        warnings.push(format!(
            "The training of {} was begun more than once or fell back; train_retry_report.md of each says how.",
            inert(&repeated.join(", "))
        ));
    }
    let versions = ranked(report).count();
    match &report.held_out {
        Some(held_out) => warnings.push(told(report, held_out)),
        None if versions > 1 => warnings.push(format!(
            "The best of {versions} versions on one {} set is a little flattered, and no held-out score says by how much.",
            board.split
        )),
        None => {}
    }
    if warnings.is_empty() {
        return "None.".to_owned();
    }
    list(&warnings)
}

fn told(report: &Report, held_out: &HeldOut) -> String {
    let still = ranked(report)
        .next()
        .is_some_and(|row| row.version_id == held_out.version_id);
    let now = if still {
        ""
    } else {
        "; another version leads now, and the held-out set is not asked again"
    };
    format!(
        "The best of several versions is a little flattered: {} has {} ({}) on the set that chose it and {} ({}) on {}, \
         {} that were used this once{now}.",
        inert(&held_out.version_id),
        percent(held_out.validation.mean),
        level_range(&held_out.validation.interval),
        percent(held_out.estimate.mean),
        level_range(&held_out.estimate.interval),
        inert(&held_out.dataset_id),
        count(held_out.num_tasks, "task")
    )
}

fn top(report: &Report) -> String {
    let mut text = String::new();
    for row in ranked(report).take(TOP) {
        let _ = write!(text, "### {}\n\n", inert(&row.version_id));
        text.push_str(&standing(row));
        text.push_str(&recipe(report, row));
        text.push_str(&weights(report, row));
        text.push_str(&explanation(report, row));
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str("There is no version to analyse.\n");
    }
    text
}

/// Models that were not trained here: where they stand, beside the best version that was.
fn outsiders(report: &Report) -> String {
    let best = ranked(report).next();
    let rows = report.board.rows.iter().filter(|row| row.is_external());
    let lines: Vec<String> = rows
        .map(|row| {
            let mut line = format!("{}: {}", inert(&row.version_id), standing(row).trim_end());
            // Where it leads, the comparison stands in the row of the version.
            let behind = best.and_then(|best| Some((best, best.against_leader.as_ref()?)));
            if let Some((best, against)) = behind.filter(|(_, c)| c.other == row.version_id) {
                let _ = write!(
                    line,
                    " The best version trained here, {}, against it: {} ({}), {}.",
                    inert(&best.version_id),
                    points(against.difference.difference),
                    signed_range(&against.difference.interval),
                    against.words()
                );
            }
            line
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "For comparison: they have no recipe here, win nothing and lead to no next version.\n\n{}",
        list(&lines)
    )
}

fn standing(row: &LeaderboardRow) -> String {
    let rank = row
        .rank
        .map_or_else(|| "none".to_owned(), |rank| rank.to_string());
    let seeds = if row.is_external() {
        String::new()
    } else {
        format!(", {}", count(row.seeds.len(), "seed"))
    };
    let mut text = format!(
        "Rank {rank}: {} of tasks solved with one try ({}){seeds}.",
        row.estimate.map_or_else(String::new, |e| percent(e.mean)),
        row.estimate
            .map_or_else(String::new, |e| level_range(&e.interval))
    );
    if let Some(against) = &row.against_leader {
        let p = against
            .p_holm
            .map_or_else(String::new, |p| format!(", p {p:.3} after Holm"));
        let _ = write!(
            text,
            " Against the leader {}: {} ({}{p}).",
            inert(&against.other),
            points(against.difference.difference),
            signed_range(&against.difference.interval)
        );
    }
    text.push('\n');
    text
}

/// What the recipe has that the baseline's has not.
fn recipe(report: &Report, row: &LeaderboardRow) -> String {
    let of = |id: &str| report.training.get(id)?.recipe.as_ref();
    let Some(own) = of(&row.version_id) else {
        return "\nIts recipe is not in this store.\n".to_owned();
    };
    if own.experiment.algo == Algo::Baseline {
        return "\nRecipe: the baseline's, every token counts the same.\n".to_owned();
    }
    let baseline = row.against_baseline.as_ref();
    let Some((name, other)) =
        baseline.and_then(|against| Some((&against.other, of(&against.other)?)))
    else {
        return format!(
            "\nRecipe: {}; there is no baseline to compare it with.\n",
            own.experiment.algo
        );
    };
    let changes: Vec<String> = own
        .differences(other)
        .into_iter()
        .filter(|key| !key.starts_with("version.") && *key != "seed")
        .map(|key| {
            let value = |recipe: &Recipe| {
                inert(&crate::actions::scalar(
                    &recipe.setting(key).unwrap_or_default(),
                ))
            };
            format!("`{key}` {} instead of {}", value(own), value(other))
        })
        .collect();
    format!(
        "\nRecipe against {}: {}.\n",
        inert(name),
        changes.join("; ")
    )
}

fn weights(report: &Report, row: &LeaderboardRow) -> String {
    let Some(facts) = report
        .training
        .get(&row.version_id)
        .and_then(|facts| facts.weights)
    else {
        return String::new();
    };
    if facts.std == 0.0 {
        return "\nWeights: all 1.\n".to_owned();
    }
    format!(
        "\nWeights: standard deviation {:.3}, normalised entropy {:.3}, {} at the lower and {} at the upper bound.\n",
        facts.std,
        facts.entropy,
        percent(facts.clip_low),
        percent(facts.clip_high)
    )
}

/// The figures against the parent that stand out, or that none does.
fn explanation(report: &Report, row: &LeaderboardRow) -> String {
    let Some(figures) = report.figures.get(&row.version_id) else {
        return String::new();
    };
    let Some(parent) = &figures.parent else {
        return String::new();
    };
    let groups = [
        ("outcome", &figures.classes),
        ("family", &figures.families),
        ("programs of", &figures.lengths),
    ];
    let standing: Vec<String> = groups
        .into_iter()
        .flat_map(|(what, rows)| rows.iter().map(move |figure| (what, figure)))
        .filter(|(_, figure)| figure.stands_out())
        .map(|(what, figure)| {
            let interval = figure
                .difference
                .map_or_else(String::new, |d| signed_range(&d.interval));
            format!(
                "{what} {} {} points ({interval})",
                inert(&figure.name.replace('_', " ")),
                signed(figure.delta().unwrap_or(0.0))
            )
        })
        .collect();
    if standing.is_empty() {
        return format!(
            "\nExplanation: nothing stands out of the noise against its parent {}.\n",
            inert(parent)
        );
    }
    format!(
        "\nExplanation, against its parent {}: {}.\n",
        inert(parent),
        standing.join("; ")
    )
}

fn resolution(report: &Report) -> String {
    let board = &report.board;
    let mut text = match board.resolution {
        Some(resolution) => format!(
            "{} call a difference significant from about {} points on, and find one of {} points four times out of five.\n",
            count(board.num_tasks, "task"),
            signed(resolution.significant).trim_start_matches('+'),
            signed(resolution.reliable).trim_start_matches('+')
        ),
        None => "There are not two trained versions to tell apart.\n".to_owned(),
    };
    if board.algorithm_bests.is_empty() {
        return text;
    }
    text.push_str(
        "\n| best of | version | against | points | 95% interval | verdict | greedy: only this, only the other, p |\n\
         |---|---|---|---:|---:|---|---:|\n",
    );
    for best in &board.algorithm_bests {
        let comparison = &best.comparison;
        let algo = board
            .rows
            .iter()
            .find(|row| row.version_id == best.this)
            .map_or("", |row| row.algo.as_str());
        let greedy = comparison.greedy.map_or_else(String::new, |greedy| {
            format!(
                "{}, {}, {:.3}",
                greedy.only_this, greedy.only_other, greedy.p_value
            )
        });
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {greedy} |",
            inert(algo),
            inert(&best.this),
            inert(&comparison.other),
            signed(comparison.difference.difference),
            signed_range(&comparison.difference.interval),
            comparison.words()
        );
    }
    text
}

/// What the catalogue would change in the best version.
fn next(report: &Report) -> String {
    let Some(best) = ranked(report).next() else {
        return "Train a version.".to_owned();
    };
    let id = &best.version_id;
    let parts = (
        report.figures.get(id),
        report
            .training
            .get(id)
            .and_then(|facts| facts.recipe.as_ref()),
    );
    let (Some(figures), Some(recipe)) = parts else {
        return format!("The recipe of {} is not in this store.", inert(id));
    };
    let case = Case {
        board: &report.board,
        row: best,
        figures,
        recipe,
    };
    let proposals: Vec<String> = CATALOGUE
        .iter()
        .filter_map(|entry| {
            let proposal = entry.propose(&case)?;
            let had = recipe
                .with_setting(entry.key, &proposal.value)
                .ok()
                .and_then(|wanted| tried(report, &wanted))
                .map_or_else(String::new, |id| format!(" ({} is that)", inert(id)));
            Some(format!(
                "- `{}` from {}{had}: {}, since {}.\n",
                entry.name,
                inert(id),
                entry.goal,
                inert(&proposal.because)
            ))
        })
        .collect();
    if proposals.is_empty() {
        return format!("No pre-condition of the catalogue holds for {}.", inert(id));
    }
    proposals.concat()
}

/// The version that has a recipe, whatever its name.
fn tried<'a>(report: &'a Report, wanted: &Recipe) -> Option<&'a str> {
    let mut known = report.training.iter();
    let (id, _) = known.find(|(_, facts)| {
        let recipe = facts.recipe.as_ref();
        recipe.is_some_and(|recipe| recipe.is_same_but_for_its_name(wanted))
    })?;
    Some(id)
}
