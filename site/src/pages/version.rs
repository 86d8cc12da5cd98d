//! One version: what was changed, did it help, why?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::leaderboard::Comparison;
use wmtp_stats::wording::{points, signed_range};

use super::index::{verdict_class, verdict_sign};
use super::sections;
use super::{markup, moment};
use crate::input::{SiteInput, VersionInput};
use crate::{charts, headline, marks, text};

pub(super) fn context(input: &SiteInput, version: &VersionInput) -> Value {
    let row = &version.row;
    let mark = marks::of(&row.algo);
    let parent = row.parent.as_ref().and_then(|id| {
        input
            .versions
            .iter()
            .find(|other| other.row.version_id == *id)
    });
    let lineage = charts::lineage(&input.board);
    let place = lineage
        .iter()
        .position(|other| other.version_id == row.version_id)
        .unwrap_or(0);
    let neighbour = |index: Option<usize>| {
        index
            .and_then(|index| lineage.get(index))
            .map(|other| other.version_id.clone())
    };
    context! {
        // Ours, and the escaping would write its slashes as references.
        root => markup("../../"),
        title => headline::of_version(&input.board, row),
        dataset => input.board.dataset_id.as_str(),
        moment => moment(&row.created_at),
        id => row.version_id.as_str(),
        mark => markup(mark.inline()),
        algo => mark.name,
        meaning => mark.meaning,
        finding => headline::of_version(&input.board, row),
        is_base => row.is_base(),
        change => row.change.as_deref().map(text::visible),
        parent => parent.map(|parent| parent.row.version_id.clone()),
        previous => neighbour(place.checked_sub(1)),
        next => neighbour(Some(place + 1)),
        comparisons => comparisons(version),
        recipe => sections::recipe_diff(version, parent),
        analysis => markup(text::markdown(&version.analysis)),
        strips => sections::strips(input, [Some(version), parent].into_iter().flatten()),
        num_tasks => input.board.num_tasks,
        samples => sections::samples(input, version),
        num_samples => row.num_samples,
        weights => sections::weights(version),
        heads => sections::heads(version, parent),
        curves => sections::curves(version),
        facts => sections::facts(version),
        sources => sections::sources(input, version),
    }
}

fn comparisons(version: &VersionInput) -> Vec<Value> {
    let row = &version.row;
    let parent = row.against_parent.iter().map(|c| (c, "parent"));
    let baseline = row
        .against_baseline
        .iter()
        .filter(|c| row.parent.as_deref() != Some(c.other.as_str()))
        .map(|c| (c, "baseline"));
    let controls = row.against_controls.iter().map(|c| (c, "control"));
    let leader = row.against_leader.iter().map(|c| (c, "leader"));
    let mut seen = Vec::new();
    parent
        .chain(baseline)
        .chain(controls)
        .chain(leader)
        .filter(|(comparison, _)| {
            let new = !seen.contains(&comparison.other);
            seen.push(comparison.other.clone());
            new
        })
        .map(|(comparison, role)| compared(comparison, role))
        .collect()
}

/// No probability is 0, so a small one is not shown as such.
fn p_value(p: f64) -> String {
    if p < 0.001 {
        "p < 0.001".to_owned()
    } else {
        format!("p = {p:.3}")
    }
}

fn compared(comparison: &Comparison, role: &str) -> Value {
    let greedy = comparison.greedy.map(|greedy| {
        format!(
            "greedy: {} tasks only here, {} only there, {}",
            greedy.only_this,
            greedy.only_other,
            p_value(greedy.p_value)
        )
    });
    context! {
        other => comparison.other.as_str(),
        role => role,
        points => points(comparison.difference.difference),
        range => signed_range(&comparison.difference.interval),
        verdict => comparison.verdict.words(),
        class => verdict_class(comparison.verdict),
        sign => verdict_sign(comparison.verdict),
        reason => comparison.reason.as_str(),
        greedy => greedy,
    }
}
