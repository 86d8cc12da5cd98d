//! The leaderboard as a plain function of scores: refusals, pooling, order, comparisons.

mod compare;
mod pool;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use wmtp_job_kit::JobError;
use wmtp_records::EXTERNAL;
use wmtp_stats::leaderboard::{AlgorithmBest, Leaderboard, LeaderboardRow, PRIMARY_METRIC};
use wmtp_stats::{Resolution, resolution, shared_ranks};

use crate::source::ScoredRun;
use crate::table::compare::Comparer;
pub(crate) use crate::table::compare::{SEED, pairing};
pub(crate) use crate::table::pool::Pooled;

/// Level of the tests behind shared ranks.
const LEVEL: f64 = 0.05;

/// Why scores cannot stand on one leaderboard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing to rank.
    #[error("no scores were given")]
    Empty,
    /// Two runs differ in what all must share.
    #[error(
        "{first} and {second} cannot be ranked together: their {what} differ ({one} and {other})"
    )]
    NotShared {
        /// A run.
        first: String,
        /// Another run.
        second: String,
        /// What differs.
        what: &'static str,
        /// Its value in the first.
        one: String,
        /// Its value in the second.
        other: String,
    },
    /// One version and seed was given twice, with different scores.
    #[error("{label} has two different scores: {first} and {second}")]
    Duplicate {
        /// Version and seed.
        label: String,
        /// An artifact.
        first: String,
        /// Another.
        second: String,
    },
    /// The seeds of a version disagree about what it is.
    #[error("the seeds of {version} disagree about its {what}: {one:?} and {other:?}")]
    Identity {
        /// The version.
        version: String,
        /// Which field.
        what: &'static str,
        /// One value.
        one: String,
        /// Another.
        other: String,
    },
    /// A score file contradicts itself.
    #[error("scores of {label} ({id}): {reason}")]
    Inconsistent {
        /// Version and seed.
        label: String,
        /// The artifact.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotShared { .. } => Self::refused(error)
                .hint("evaluate them again with recipes that differ only in the algorithm and its own settings"),
            Error::Empty => Self::usage(error),
            _ => Self::bad_input(error),
        }
    }
}

/// Ranks versions.
///
/// Runs must share data, tasks, evaluation set, protocol and (except for the untrained base and models from outside) the
/// shared part of their recipes. Seeds of a version are pooled: metrics are averaged, and a task's score is its mean pass
/// rate over seeds. The outcome does not depend on the order of the runs.
pub fn build(runs: &[ScoredRun]) -> Result<Leaderboard, Error> {
    Ok(judge(runs)?.board)
}

/// A leaderboard with what stands behind its rows.
pub(crate) struct Judged {
    pub(crate) board: Leaderboard,
    /// One per row, in the order of the rows.
    pub(crate) versions: Vec<Pooled>,
}

pub(crate) fn judge(runs: &[ScoredRun]) -> Result<Judged, Error> {
    let mut runs: Vec<&ScoredRun> = runs.iter().collect();
    runs.sort_by(|a, b| {
        (&a.summary.version_id, a.summary.seed, &a.id).cmp(&(
            &b.summary.version_id,
            b.summary.seed,
            &b.id,
        ))
    });
    runs.dedup_by(|a, b| a.id == b.id);
    // What the board says of its set and protocol is what a model of ours says, if there is one.
    let ours = runs.iter().find(|run| !run.is_external());
    let first = *ours.or(runs.first()).ok_or(Error::Empty)?;
    refuse_unlike(first, &runs)?;

    let mut warnings = Vec::new();
    let mut pooled = pool::versions(&runs, &mut warnings)?;
    let higher_is_better = pooled
        .iter()
        .find_map(Pooled::primary)
        .is_none_or(|metric| metric.higher_is_better);
    pooled.sort_by(|a, b| best_first(a, b, higher_is_better));
    warn_of_gaps(&pooled, &mut warnings);
    warn_of_outsiders(&pooled, &mut warnings);
    warn_of_contamination(&runs, &mut warnings);
    warn_of_second_looks(&runs, &mut warnings);

    let comparer = Comparer::new(&pooled);
    let mut rows: Vec<LeaderboardRow> =
        (0..pooled.len()).map(|index| comparer.row(index)).collect();
    rank(&mut rows, &comparer);
    let algorithm_bests = algorithm_bests(&pooled, &comparer);
    let board = Leaderboard {
        dataset_id: first.score.dataset_id.clone(),
        split: first.summary.split,
        primary_metric: PRIMARY_METRIC.to_owned(),
        higher_is_better,
        created_at: rows
            .iter()
            .map(|row| row.created_at.clone())
            .max()
            .unwrap_or_default(),
        data: first.summary.data.clone(),
        num_tasks: first.problems.len(),
        protocol: first.summary.protocol.clone(),
        sandbox: first.summary.sandbox.clone(),
        resolution: resolve(&pooled),
        rows,
        warnings,
        algorithm_bests,
    };
    Ok(Judged {
        board,
        versions: pooled,
    })
}

/// The best version of every algorithm against the best baseline, best first.
fn algorithm_bests(pooled: &[Pooled], comparer: &Comparer<'_>) -> Vec<AlgorithmBest> {
    let Some(baseline) = pooled
        .iter()
        .find(|version| version.algo == "baseline" && version.primary().is_some())
    else {
        return Vec::new();
    };
    let mut seen = vec!["base", "baseline", EXTERNAL];
    let mut bests = Vec::new();
    for version in pooled.iter().filter(|version| version.primary().is_some()) {
        if !seen.contains(&version.algo.as_str()) {
            seen.push(&version.algo);
            bests.push(AlgorithmBest {
                this: version.version_id.clone(),
                comparison: comparer.compare(version, baseline),
            });
        }
    }
    bests
}

/// Checks everything that the runs of one leaderboard share.
fn refuse_unlike(first: &ScoredRun, runs: &[&ScoredRun]) -> Result<(), Error> {
    type Facet = (&'static str, fn(&ScoredRun) -> String);
    let facets: [Facet; 4] = [
        ("data sets", |run| run.summary.data.clone()),
        ("splits", |run| run.summary.split.to_string()),
        ("evaluation sets", |run| run.score.dataset_id.clone()),
        ("tasks", |run| format!("{:?}", pool::task_ids(run))),
    ];
    for run in runs {
        // A model from outside states the part of the protocol that it shares.
        let has_part = |name: &String| {
            let parts = [first, run].map(|run| &run.summary.protocol);
            let stated = run.is_external() || first.is_external();
            !stated || parts.iter().all(|protocol| protocol.contains_key(name))
        };
        for (what, value) in &facets[..3] {
            refuse_difference(first, run, what, value)?;
        }
        refuse_difference(first, run, "evaluation protocols", |run| {
            let protocol = run.summary.protocol.iter();
            let shared: BTreeMap<_, _> = protocol.filter(|(name, _)| has_part(name)).collect();
            format!("{shared:?}")
        })?;
        let (what, value) = facets[3];
        refuse_difference(first, run, what, value)?;
    }
    let mut trained = runs.iter().filter(|run| run.is_trained());
    if let Some(first) = trained.next() {
        for run in trained {
            refuse_difference(first, run, "shared recipe parts", |run| {
                run.summary.shared_digest.clone()
            })?;
        }
    }
    Ok(())
}

fn refuse_difference(
    first: &ScoredRun,
    second: &ScoredRun,
    what: &'static str,
    value: impl Fn(&ScoredRun) -> String,
) -> Result<(), Error> {
    let (one, other) = (value(first), value(second));
    if one == other {
        return Ok(());
    }
    Err(Error::NotShared {
        first: first.label(),
        second: second.label(),
        what,
        one: shortened(&one),
        other: shortened(&other),
    })
}

/// The first characters of a value, for a message.
fn shortened(value: &str) -> String {
    const SHOWN: usize = 60;
    if value.chars().count() <= SHOWN {
        return value.to_owned();
    }
    let head: String = value.chars().take(SHOWN).collect();
    format!("{head}\u{2026}")
}

/// Order of the table: primary metric in its direction, missing last, then by name.
fn best_first(a: &Pooled, b: &Pooled, higher_is_better: bool) -> Ordering {
    let value = |pooled: &Pooled| pooled.primary().map(|metric| metric.value);
    let by_metric = match (value(a), value(b)) {
        (Some(a), Some(b)) if higher_is_better => b.total_cmp(&a),
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    by_metric.then_with(|| a.version_id.cmp(&b.version_id))
}

fn warn_of_gaps(pooled: &[Pooled], warnings: &mut Vec<String>) {
    for version in pooled.iter().filter(|version| version.primary().is_none()) {
        warnings.push(format!(
            "{} has no {PRIMARY_METRIC}: it stands last and is not ranked",
            version.version_id
        ));
    }
    let weighted = pooled
        .iter()
        .any(|v| matches!(v.algo.as_str(), "verifiable" | "rho1"));
    for control in ["random_matched", "shuffled"] {
        if weighted && !pooled.iter().any(|v| v.algo == control) {
            warnings.push(format!(
                "the control {control} is missing: no improvement can be claimed without it"
            ));
        }
    }
}

/// How a model from outside sampled is not known here.
fn warn_of_outsiders(pooled: &[Pooled], warnings: &mut Vec<String>) {
    let names: Vec<&str> = pooled
        .iter()
        .filter(|version| version.is_external())
        .map(|version| version.version_id.as_str())
        .collect();
    if !names.is_empty() {
        warnings.push(format!(
            "not trained here, for comparison only: {}; number of samples, limits and grader are the protocol's, how they \
             sampled and what they were trained on is not known",
            names.join(", ")
        ));
    }
}

/// Problems of which the models have seen something say less about the others.
fn warn_of_contamination(runs: &[&ScoredRun], warnings: &mut Vec<String>) {
    let seen = |run: &&&ScoredRun| run.summary.contaminated.values().sum::<usize>();
    let Some(run) = runs.iter().max_by_key(seen).filter(|run| seen(run) > 0) else {
        return;
    };
    warnings.push(format!(
        "the training rows hold the statement of {} of {} tasks, or a program that solves them; clean_pass_at_1 counts the others",
        seen(&run),
        run.problems.len()
    ));
}

/// The test set serves the final report once: who judged on it before may have chosen by what came of that.
fn warn_of_second_looks(runs: &[&ScoredRun], warnings: &mut Vec<String>) {
    for run in runs {
        let Some(touch) = &run.summary.test_touch else {
            continue;
        };
        if let Some(first) = touch.earlier.first() {
            warnings.push(format!(
                "{} is no first look at the test set: touch {} under this protocol, {} earlier in all, the first by run {} \
                 on {}",
                run.label(),
                touch.number,
                touch.earlier.len(),
                first.run_id,
                first.begun_at
            ));
        }
    }
}

/// Versions without the primary metric stand last and get no rank.
fn rank(rows: &mut [LeaderboardRow], comparer: &Comparer<'_>) {
    let num_ranked = rows.iter().filter(|row| row.estimate.is_some()).count();
    let ranks = shared_ranks(num_ranked, |leader, others| {
        let corrected = comparer.corrected(leader, others);
        corrected.into_iter().map(|p| p >= LEVEL).collect()
    });
    for (row, rank) in rows.iter_mut().zip(ranks) {
        row.rank = Some(rank);
    }
}

/// Resolving power, from the per-task differences of the two best trained versions.
fn resolve(pooled: &[Pooled]) -> Option<Resolution> {
    let mut best = pooled
        .iter()
        .filter(|v| v.is_trained() && v.primary().is_some());
    let (first, second) = (best.next()?, best.next()?);
    let squares = first
        .task_scores
        .iter()
        .zip(&second.task_scores)
        .map(|(a, b)| (a - b) * (a - b));
    let mean_square = squares.sum::<f64>() / first.task_scores.len() as f64;
    resolution(mean_square, first.task_scores.len())
}

#[cfg(test)]
pub(crate) mod tests;
