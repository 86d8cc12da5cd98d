//! Seeds of one version become one set of numbers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use wmtp_records::{EXTERNAL, ErrorClass, HeadLoss, Metric, ProblemCount};
use wmtp_stats::leaderboard::{FamilyScore, PRIMARY_METRIC, RunSource};

use super::Error;
use crate::source::{SampleCounts, ScoredRun};

/// How far a score file's pass@1 may lie from that of its tasks.
const TOLERANCE: f64 = 1e-6;

/// One version, seeds pooled.
#[derive(Debug, Clone)]
pub(crate) struct Pooled {
    pub(crate) version_id: String,
    pub(crate) dataset_id: String,
    pub(crate) algo: String,
    pub(crate) parent: Option<String>,
    pub(crate) change: Option<String>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) created_at: String,
    pub(crate) latency_ms: Option<f64>,
    pub(crate) num_samples: u64,
    pub(crate) metrics: Vec<Metric>,
    /// Ids of the tasks, in their order.
    pub(crate) tasks: Vec<String>,
    /// Family of each task.
    pub(crate) family_of: Vec<String>,
    /// Graded and passing samples, one row of tasks per seed.
    pub(crate) counts: Vec<Vec<(u64, u64)>>,
    /// Pass rates, one row of tasks per seed.
    pub(crate) pass_rates: Vec<Vec<f64>>,
    /// Mean pass rate per task over seeds, tasks in the order of their ids.
    pub(crate) task_scores: Vec<f64>,
    /// Greedy outcomes, one row of tasks per seed; none where a task has no greedy sample.
    pub(crate) greedy_rows: Option<Vec<Vec<f64>>>,
    /// What the samples add up to, one row of tasks per seed; none where they are not known.
    pub(crate) samples: Option<Vec<Vec<SampleCounts>>>,
    /// Folders of the scores, one per seed.
    pub(crate) dirs: Vec<Option<PathBuf>>,
    /// Greedy outcome per task, with one seed only.
    pub(crate) greedy: Option<Vec<bool>>,
    pub(crate) families: Vec<FamilyScore>,
    pub(crate) heads: Vec<HeadLoss>,
    pub(crate) error_shares: BTreeMap<ErrorClass, f64>,
    pub(crate) runs: Vec<RunSource>,
}

impl Pooled {
    /// Whether the model was not trained here.
    pub(crate) fn is_external(&self) -> bool {
        self.algo == EXTERNAL
    }

    /// Whether the version was trained here: neither the untrained model nor one from outside.
    pub(crate) fn is_trained(&self) -> bool {
        self.algo != "base" && !self.is_external()
    }

    /// The pass rates as rows of seeds.
    pub(crate) fn rows(&self) -> Vec<&[f64]> {
        self.pass_rates.iter().map(Vec::as_slice).collect()
    }

    /// The metric that orders the table.
    pub(crate) fn primary(&self) -> Option<&Metric> {
        self.metrics
            .iter()
            .find(|metric| metric.name == PRIMARY_METRIC)
    }
}

/// The tasks of a run in the order of their ids.
pub(crate) fn task_ids(run: &ScoredRun) -> Vec<&str> {
    sorted_tasks(run)
        .into_iter()
        .map(|task| task.problem_id.as_str())
        .collect()
}

/// Pools runs that are sorted by version and seed.
pub(crate) fn versions(
    runs: &[&ScoredRun],
    warnings: &mut Vec<String>,
) -> Result<Vec<Pooled>, Error> {
    runs.chunk_by(|a, b| a.summary.version_id == b.summary.version_id)
        .map(|seeds| version(seeds, warnings))
        .collect()
}

fn version(seeds: &[&ScoredRun], warnings: &mut Vec<String>) -> Result<Pooled, Error> {
    let first = seeds[0];
    for run in seeds {
        check_run(run)?;
    }
    check_identity(seeds)?;
    let tasks: Vec<Vec<&ProblemCount>> = seeds.iter().map(|run| sorted_tasks(run)).collect();
    let task_scores = mean_scores(&tasks);
    let counted = |task: &ProblemCount| (task.num_samples.into(), task.num_passed.into());
    let counts = tasks.iter().map(|row| of_tasks(row, counted)).collect();
    Ok(Pooled {
        version_id: first.summary.version_id.clone(),
        dataset_id: first.score.dataset_id.clone(),
        algo: first.summary.algo.clone(),
        parent: first.summary.parent.clone(),
        change: first.summary.change.clone(),
        seeds: seeds.iter().filter_map(|run| run.summary.seed).collect(),
        created_at: seeds
            .iter()
            .map(|run| run.score.created_at.clone())
            .max()
            .unwrap_or_default(),
        latency_ms: seeds
            .iter()
            .map(|run| run.score.latency_ms)
            .collect::<Option<Vec<f64>>>()
            .map(|millis| mean(millis.into_iter())),
        num_samples: seeds.iter().map(|run| run.score.num_samples).sum(),
        metrics: mean_metrics(seeds, warnings),
        families: families(&tasks[0], &task_scores),
        tasks: of_tasks(&tasks[0], |task| task.problem_id.clone()),
        family_of: of_tasks(&tasks[0], |task| task.family.clone()),
        pass_rates: tasks.iter().map(|row| of_tasks(row, pass_rate)).collect(),
        counts,
        task_scores,
        greedy_rows: tasks.iter().map(|row| greedy_row(row)).collect(),
        samples: (seeds.iter().zip(&tasks))
            .map(|(run, row)| sample_row(run, row))
            .collect(),
        dirs: seeds.iter().map(|run| run.dir.clone()).collect(),
        greedy: match tasks.as_slice() {
            [only] => only.iter().map(|task| task.greedy_passed).collect(),
            _ => None,
        },
        heads: mean_heads(seeds),
        error_shares: mean_error_shares(seeds),
        runs: seeds
            .iter()
            .map(|run| RunSource {
                seed: run.summary.seed,
                scores: run.id.clone(),
                checkpoint: run.summary.checkpoint.clone(),
            })
            .collect(),
    })
}

fn of_tasks<T>(row: &[&ProblemCount], value: impl Fn(&ProblemCount) -> T) -> Vec<T> {
    row.iter().map(|task| value(task)).collect()
}

fn greedy_row(row: &[&ProblemCount]) -> Option<Vec<f64>> {
    let outcomes = row.iter().map(|task| task.greedy_passed);
    outcomes
        .map(|passed| Some(f64::from(u8::from(passed?))))
        .collect()
}

/// What the samples of every task add up to; none where some task has no drawn one.
fn sample_row(run: &ScoredRun, row: &[&ProblemCount]) -> Option<Vec<SampleCounts>> {
    let of_task = |task: &&ProblemCount| {
        let counts = run.samples.get(&task.problem_id)?;
        (counts.drawn > 0).then(|| counts.clone())
    };
    row.iter().map(of_task).collect()
}

/// Checks what one run says about itself.
fn check_run(run: &ScoredRun) -> Result<(), Error> {
    let fault = |reason: String| {
        Err(Error::Inconsistent {
            label: run.label(),
            id: run.id.clone(),
            reason,
        })
    };
    let id = &run.summary.version_id;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.starts_with('.') || !id.chars().all(plain) {
        return fault(format!(
            "the version id {id:?} is no plain name (letters, digits, . _ -)"
        ));
    }
    if run.problems.is_empty() {
        return fault("there are no tasks".to_owned());
    }
    let broken = run
        .problems
        .iter()
        .find(|task| task.num_samples == 0 || task.num_passed > task.num_samples);
    if let Some(task) = broken {
        return fault(format!(
            "task {} has {} of {} samples passing",
            task.problem_id, task.num_passed, task.num_samples
        ));
    }
    let tasks = sorted_tasks(run);
    if let Some(pair) = tasks
        .windows(2)
        .find(|pair| pair[0].problem_id == pair[1].problem_id)
    {
        return fault(format!("task {} is listed twice", pair[0].problem_id));
    }
    let counted = mean(tasks.iter().map(|task| pass_rate(task)));
    let stated = run
        .score
        .metrics
        .iter()
        .find(|metric| metric.name == PRIMARY_METRIC);
    match stated {
        Some(metric) if (metric.value - counted).abs() > TOLERANCE => fault(format!(
            "{PRIMARY_METRIC} is stated as {} but its tasks give {counted}",
            metric.value
        )),
        _ => Ok(()),
    }
}

/// Checks that all seeds mean the same version.
fn check_identity(seeds: &[&ScoredRun]) -> Result<(), Error> {
    for pair in seeds.windows(2) {
        let (a, b) = (&pair[0].summary, &pair[1].summary);
        if a.seed == b.seed {
            return Err(Error::Duplicate {
                label: pair[0].label(),
                first: pair[0].id.clone(),
                second: pair[1].id.clone(),
            });
        }
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        let fields = [
            ("algorithm", a.algo.clone(), b.algo.clone()),
            ("parent", text(a.parent.as_ref()), text(b.parent.as_ref())),
            ("change", text(a.change.as_ref()), text(b.change.as_ref())),
        ];
        for (what, one, other) in fields {
            if one != other {
                return Err(Error::Identity {
                    version: a.version_id.clone(),
                    what,
                    one,
                    other,
                });
            }
        }
    }
    Ok(())
}

fn sorted_tasks(run: &ScoredRun) -> Vec<&ProblemCount> {
    let mut tasks: Vec<&ProblemCount> = run.problems.iter().collect();
    tasks.sort_by(|a, b| a.problem_id.cmp(&b.problem_id));
    tasks
}

fn pass_rate(task: &ProblemCount) -> f64 {
    f64::from(task.num_passed) / f64::from(task.num_samples)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut count) = (0.0, 0usize);
    for value in values {
        total += value;
        count += 1;
    }
    total / count.max(1) as f64
}

fn mean_scores(tasks: &[Vec<&ProblemCount>]) -> Vec<f64> {
    (0..tasks[0].len())
        .map(|index| mean(tasks.iter().map(|seed| pass_rate(seed[index]))))
        .collect()
}

fn families(tasks: &[&ProblemCount], scores: &[f64]) -> Vec<FamilyScore> {
    let mut by_family: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (task, score) in tasks.iter().zip(scores) {
        by_family.entry(&task.family).or_default().push(*score);
    }
    by_family
        .into_iter()
        .map(|(family, scores)| FamilyScore {
            family: family.to_owned(),
            num_tasks: scores.len(),
            mean: mean(scores.into_iter()),
        })
        .collect()
}

/// Metrics of a run; a second metric of one name becomes `name__2`.
fn unique_metrics(run: &ScoredRun) -> Vec<Metric> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unique = Vec::new();
    for metric in &run.score.metrics {
        let times = seen.entry(&metric.name).or_insert(0);
        *times += 1;
        let name = match times {
            1 => metric.name.clone(),
            times => format!("{}__{times}", metric.name),
        };
        unique.push(Metric {
            name,
            ..metric.clone()
        });
    }
    unique
}

/// Means over seeds, in the order of the first run that has a metric. A metric that some seed lacks is left out
/// with a warning: a mean over fewer seeds would not be comparable.
fn mean_metrics(seeds: &[&ScoredRun], warnings: &mut Vec<String>) -> Vec<Metric> {
    let per_seed: Vec<Vec<Metric>> = seeds.iter().map(|run| unique_metrics(run)).collect();
    let mut pooled: Vec<Metric> = Vec::new();
    for metric in per_seed.iter().flatten() {
        if pooled.iter().any(|known| known.name == metric.name) {
            continue;
        }
        let values: Vec<f64> = per_seed
            .iter()
            .filter_map(|metrics| metrics.iter().find(|m| m.name == metric.name))
            .map(|m| m.value)
            .collect();
        if values.len() < seeds.len() {
            let version = &seeds[0].summary.version_id;
            let warning = format!(
                "{version}: {} is missing in {} of {} seeds and left out",
                metric.name,
                seeds.len() - values.len(),
                seeds.len()
            );
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
            continue;
        }
        pooled.push(Metric {
            value: mean(values.into_iter()),
            ..metric.clone()
        });
    }
    pooled
}

fn mean_heads(seeds: &[&ScoredRun]) -> Vec<HeadLoss> {
    let same_of = |run: &&ScoredRun, horizon: u32| {
        run.summary
            .heads
            .iter()
            .find(|head| head.horizon == horizon)
            .cloned()
    };
    let mut heads: Vec<HeadLoss> = seeds[0]
        .summary
        .heads
        .iter()
        .map(|head| {
            let all: Vec<HeadLoss> = seeds
                .iter()
                .filter_map(|run| same_of(run, head.horizon))
                .collect();
            HeadLoss {
                horizon: head.horizon,
                ce_nats: mean(all.iter().map(|h| h.ce_nats)),
                accuracy: mean(all.iter().map(|h| h.accuracy)),
                num_targets: all.iter().map(|h| h.num_targets).sum(),
            }
        })
        .collect();
    heads.sort_by_key(|head| head.horizon);
    heads
}

fn mean_error_shares(seeds: &[&ScoredRun]) -> BTreeMap<ErrorClass, f64> {
    let mut shares = BTreeMap::new();
    for run in seeds {
        for (class, share) in &run.summary.error_shares {
            *shares.entry(*class).or_insert(0.0) += share / seeds.len() as f64;
        }
    }
    shares
}
