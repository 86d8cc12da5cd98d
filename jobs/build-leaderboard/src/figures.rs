//! Where a version differs from its parent, in numbers: what analyses say and actions are chosen by.

mod quotes;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wmtp_job_kit::JobError;
use wmtp_records::{ErrorClass, HeadLoss};
use wmtp_stats::{DRAWS, Difference, Estimate, Resampler, Seeds, holm, pass_at_k};

pub use quotes::{Quote, Quoted};

use crate::source::SampleCounts;
use crate::table::{Pooled, SEED, pairing};
use crate::training::TrainingFacts;

/// Tasks below which even a difference in one direction throughout may be chance: of five, a sign test gives 0.06.
pub const FEWEST_TASKS: usize = 6;

/// All figures of one version: `result-analysis.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The version.
    pub version_id: String,
    /// The version that it is compared with.
    pub parent: Option<String>,
    /// Metrics in the order of the table.
    pub metrics: Vec<Figure>,
    /// Pass rate per problem family, most moved first.
    pub families: Vec<Figure>,
    /// Share of drawn programs per error class, most moved first.
    pub classes: Vec<Figure>,
    /// Pass rate by thirds of the tasks, short to long by the parent's programs.
    pub lengths: Vec<Figure>,
    /// Cross-entropy per prediction head, nats.
    pub heads: Vec<Figure>,
    /// What is known of its training.
    pub training: TrainingFacts,
    /// What is known of the parent's.
    pub parent_training: Option<TrainingFacts>,
    /// Tasks that moved most, with a program of each side.
    pub quotes: Vec<Quote>,
}

/// One number of a version beside its parent's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// Tasks that it is a mean over; 0 where it is no mean over tasks.
    pub num_tasks: usize,
    /// The version's value.
    pub now: f64,
    /// The parent's.
    pub before: Option<f64>,
    /// The difference with its interval, where the number is a mean over tasks.
    pub difference: Option<Difference>,
    /// Its p-value, corrected by Holm for the others of the same table.
    pub p_holm: Option<f64>,
    /// The value's own interval, where it is a mean over tasks and there is no parent.
    pub estimate: Option<Estimate>,
}

impl Figure {
    /// The version's value minus its parent's.
    pub fn delta(&self) -> Option<f64> {
        Some(self.now - self.before?)
    }

    /// Whether there are tasks enough to test a difference.
    pub fn is_tested(&self) -> bool {
        self.difference.is_some() && self.num_tasks >= FEWEST_TASKS
    }

    /// Whether the difference stands out of the noise of its table.
    pub fn stands_out(&self) -> bool {
        self.p_holm.is_some_and(|p| p < 0.05)
    }
}

impl Figures {
    /// The figure of a metric.
    pub fn metric(&self, name: &str) -> Option<&Figure> {
        self.metrics.iter().find(|figure| figure.name == name)
    }
}

/// Values per task, one row per seed.
type Rows = Vec<Vec<f64>>;

/// Compares versions; keeps the draws for every number of tasks.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    resamplers: BTreeMap<usize, Resampler>,
}

impl Comparison {
    /// All figures of a version. `training` knows what checkpoints say.
    ///
    /// # Errors
    /// Samples that were readable before and now are not.
    pub(crate) fn figures(
        &mut self,
        this: &Pooled,
        parent: Option<&Pooled>,
        training: &BTreeMap<String, TrainingFacts>,
    ) -> Result<Figures, JobError> {
        let mut sides = Sides {
            this,
            parent,
            comparison: self,
        };
        let facts = |version: &Pooled| training.get(&version.version_id).cloned();
        Ok(Figures {
            version_id: this.version_id.clone(),
            parent: parent.map(|parent| parent.version_id.clone()),
            metrics: sides.metrics(),
            families: sides.families(),
            classes: sides.classes(),
            lengths: sides.lengths(),
            heads: sides.heads(),
            training: facts(this).unwrap_or_default(),
            parent_training: parent.and_then(facts),
            quotes: quotes::of(this, parent)?,
        })
    }

    fn resampler(&mut self, tasks: usize) -> Option<&Resampler> {
        if let std::collections::btree_map::Entry::Vacant(place) = self.resamplers.entry(tasks) {
            place.insert(Resampler::new(tasks, DRAWS, SEED)?);
        }
        self.resamplers.get(&tasks)
    }
}

struct Sides<'a> {
    this: &'a Pooled,
    parent: Option<&'a Pooled>,
    comparison: &'a mut Comparison,
}

impl Sides<'_> {
    /// A mean over tasks of both sides; `None` where this side does not know it.
    fn figure(
        &mut self,
        name: &str,
        tasks: &[usize],
        rows: impl Fn(&Pooled) -> Option<Rows>,
    ) -> Option<Figure> {
        let chosen = |version: &Pooled| -> Option<Rows> {
            let rows = rows(version)?;
            Some(
                rows.iter()
                    .map(|row| tasks.iter().map(|&task| row[task]).collect())
                    .collect(),
            )
        };
        let now = chosen(self.this)?;
        let before = self.parent.and_then(chosen);
        let pairing = self
            .parent
            .map_or(Seeds::Independent, |parent| pairing(self.this, parent));
        let resampler = self.comparison.resampler(tasks.len())?;
        let estimate = resampler.mean(&slices(&now))?;
        let difference = before
            .as_ref()
            .and_then(|before| resampler.difference(&slices(&now), &slices(before), pairing));
        Some(Figure {
            name: name.to_owned(),
            num_tasks: tasks.len(),
            now: estimate.mean,
            before: difference.map(|difference| estimate.mean - difference.difference),
            p_holm: None,
            estimate: difference.is_none().then_some(estimate),
            difference,
        })
    }

    fn all_tasks(&self) -> Vec<usize> {
        (0..self.this.tasks.len()).collect()
    }

    fn metrics(&mut self) -> Vec<Figure> {
        let tasks = self.all_tasks();
        let metrics = self.this.metrics.clone();
        metrics
            .into_iter()
            .map(|metric| {
                let of_tasks = self
                    .figure(&metric.name, &tasks, |version| {
                        metric_rows(version, &metric.name)
                    })
                    // A mean over tasks that is not the metric measures something else.
                    .filter(|figure| (figure.now - metric.value).abs() < 1e-6);
                of_tasks.unwrap_or_else(|| {
                    let before = self.parent.and_then(|parent| {
                        let mut known = parent.metrics.iter();
                        known.find(|other| other.name == metric.name)
                    });
                    plain(&metric.name, metric.value, before.map(|other| other.value))
                })
            })
            .collect()
    }

    fn families(&mut self) -> Vec<Figure> {
        let names: BTreeSet<String> = self.this.family_of.iter().cloned().collect();
        if names.len() < 2 {
            return Vec::new();
        }
        let figures = names
            .iter()
            .filter_map(|name| {
                let tasks: Vec<usize> = (0..self.this.tasks.len())
                    .filter(|&task| self.this.family_of[task] == *name)
                    .collect();
                self.figure(name, &tasks, |version| Some(version.pass_rates.clone()))
            })
            .collect();
        corrected(figures)
    }

    fn classes(&mut self) -> Vec<Figure> {
        let tasks = self.all_tasks();
        let sides = [Some(self.this), self.parent];
        let classes: BTreeSet<ErrorClass> = sides
            .into_iter()
            .flatten()
            .flat_map(|version| version.error_shares.keys().copied())
            .collect();
        let figures = classes
            .into_iter()
            .map(|class| {
                let share = |version: &Pooled| version.error_shares.get(&class).copied();
                self.figure(class.as_str(), &tasks, |version| class_rows(version, class))
                    .unwrap_or_else(|| {
                        let before = self.parent.map(|parent| share(parent).unwrap_or(0.0));
                        plain(class.as_str(), share(self.this).unwrap_or(0.0), before)
                    })
            })
            .collect();
        corrected(figures)
    }

    /// Pass rates by how long the parent's programs for a task are.
    fn lengths(&mut self) -> Vec<Figure> {
        let Some(mut by_length) = self.parent.and_then(task_lengths) else {
            return Vec::new();
        };
        if by_length.len() < 3 {
            return Vec::new();
        }
        by_length.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let third = by_length.len().div_ceil(3);
        let figures = by_length
            .chunks(third)
            .filter_map(|tasks| {
                let (shortest, longest) = (tasks.first()?.1, tasks.last()?.1);
                let name = format!("{shortest:.0} to {longest:.0} tokens");
                let tasks: Vec<usize> = tasks.iter().map(|(task, _)| *task).collect();
                self.figure(&name, &tasks, |version| Some(version.pass_rates.clone()))
            })
            .collect();
        with_holm(figures)
    }

    fn heads(&self) -> Vec<Figure> {
        let ce = |heads: &[HeadLoss], horizon| {
            let mut heads = heads.iter();
            heads
                .find(|head| head.horizon == horizon)
                .map(|head| head.ce_nats)
        };
        let heads = self.this.heads.iter();
        heads
            .map(|head| {
                let before = self
                    .parent
                    .and_then(|parent| ce(&parent.heads, head.horizon));
                plain(&format!("head {}", head.horizon), head.ce_nats, before)
            })
            .collect()
    }
}

fn slices(rows: &Rows) -> Vec<&[f64]> {
    rows.iter().map(Vec::as_slice).collect()
}

fn plain(name: &str, now: f64, before: Option<f64>) -> Figure {
    Figure {
        name: name.to_owned(),
        num_tasks: 0,
        now,
        before,
        difference: None,
        p_holm: None,
        estimate: None,
    }
}

/// Corrects for the number of figures and puts the most moved first.
fn corrected(figures: Vec<Figure>) -> Vec<Figure> {
    let mut figures = with_holm(figures);
    figures.sort_by(|a, b| {
        let moved = |figure: &Figure| figure.delta().unwrap_or(0.0).abs();
        (moved(b).total_cmp(&moved(a))).then_with(|| a.name.cmp(&b.name))
    });
    figures
}

fn with_holm(mut figures: Vec<Figure>) -> Vec<Figure> {
    let tested: Vec<usize> = (0..figures.len())
        .filter(|&index| figures[index].is_tested())
        .collect();
    let p_values: Vec<f64> = tested
        .iter()
        .filter_map(|&index| Some(figures[index].difference?.p_value))
        .collect();
    for (&index, p) in tested.iter().zip(holm(&p_values)) {
        figures[index].p_holm = Some(p);
    }
    figures
}

/// A metric task by task, for those that are means over tasks.
fn metric_rows(version: &Pooled, name: &str) -> Option<Rows> {
    if name == "greedy_pass_at_1" {
        return version.greedy_rows.clone();
    }
    if let Some(k) = name.strip_prefix("pass_at_").and_then(|k| k.parse().ok()) {
        let row = |row: &Vec<(u64, u64)>| -> Option<Vec<f64>> {
            row.iter().map(|&(n, c)| pass_at_k(n, c, k)).collect()
        };
        return version.counts.iter().map(row).collect();
    }
    let value: fn(&SampleCounts) -> f64 = match name {
        "mean_tokens" => mean_tokens,
        "finished_share" => |counts| f64::from(counts.finished) / f64::from(counts.samples),
        _ => return None,
    };
    let rows = version.samples.as_ref()?.iter();
    Some(rows.map(|row| row.iter().map(value).collect()).collect())
}

fn class_rows(version: &Pooled, class: ErrorClass) -> Option<Rows> {
    let share = |counts: &SampleCounts| {
        let number = counts.classes.get(&class).copied().unwrap_or(0);
        f64::from(number) / f64::from(counts.drawn)
    };
    let rows = version.samples.as_ref()?.iter();
    Some(rows.map(|row| row.iter().map(share).collect()).collect())
}

fn mean_tokens(counts: &SampleCounts) -> f64 {
    counts.tokens as f64 / f64::from(counts.samples)
}

/// Tasks with the mean length of a version's programs for them.
fn task_lengths(version: &Pooled) -> Option<Vec<(usize, f64)>> {
    let rows = version.samples.as_ref()?;
    let tasks = 0..version.tasks.len();
    Some(
        tasks
            .map(|task| {
                let lengths = rows.iter().map(|row| mean_tokens(&row[task]));
                (task, lengths.sum::<f64>() / rows.len() as f64)
            })
            .collect(),
    )
}
