//! Samples that show a difference: for the tasks that moved most, a program of each side.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wmtp_job_kit::JobError;
use wmtp_records::{ErrorClass, GradedSample, jsonl, score_files};

use crate::table::Pooled;

/// Tasks quoted in each direction.
const QUOTED: usize = 2;

/// A task that moved, with a program of each side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// The task.
    pub problem_id: String,
    /// Its family, or empty.
    pub family: String,
    /// The version's pass rate.
    pub now: f64,
    /// The parent's.
    pub before: Option<f64>,
    /// A program of the version.
    pub this: Option<Quoted>,
    /// A program of the parent.
    pub parent: Option<Quoted>,
}

/// One program with its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quoted {
    /// Number of the sample.
    pub sample: u32,
    /// What became of it.
    pub class: ErrorClass,
    /// What the grader said.
    pub message: String,
    /// The program.
    pub program: String,
}

/// The tasks that moved most; without a parent, tasks that are never solved.
pub(super) fn of(this: &Pooled, parent: Option<&Pooled>) -> Result<Vec<Quote>, JobError> {
    let moved = |task: usize| match parent {
        Some(parent) => this.task_scores[task] - parent.task_scores[task],
        None => this.task_scores[task] - 1.0,
    };
    let most = |gained: bool| {
        let mut tasks: Vec<usize> = (0..this.tasks.len())
            .filter(|&task| {
                if gained {
                    moved(task) > 0.0
                } else {
                    moved(task) < 0.0
                }
            })
            .collect();
        tasks.sort_by(|&a, &b| {
            let further = moved(b).abs().total_cmp(&moved(a).abs());
            further.then(a.cmp(&b))
        });
        tasks.truncate(QUOTED);
        tasks
    };
    let chosen: Vec<usize> = most(false).into_iter().chain(most(true)).collect();
    let wanted = |passed: bool| -> BTreeMap<&str, bool> {
        let of_task = |&task: &usize| (this.tasks[task].as_str(), (moved(task) > 0.0) == passed);
        chosen.iter().map(of_task).collect()
    };
    let mut ours = samples(this, &wanted(true))?;
    let mut theirs = match parent {
        Some(parent) => samples(parent, &wanted(false))?,
        None => BTreeMap::new(),
    };
    Ok(chosen
        .iter()
        .map(|&task| Quote {
            problem_id: this.tasks[task].clone(),
            family: this.family_of[task].clone(),
            now: this.task_scores[task],
            before: parent.map(|parent| parent.task_scores[task]),
            this: ours.remove(&this.tasks[task]),
            parent: theirs.remove(&this.tasks[task]),
        })
        .collect())
}

/// The first drawn sample of each task that passes, or that fails, in the first seed that has one.
fn samples(
    version: &Pooled,
    wanted: &BTreeMap<&str, bool>,
) -> Result<BTreeMap<String, Quoted>, JobError> {
    let mut found: BTreeMap<String, Quoted> = BTreeMap::new();
    for dir in version.dirs.iter().flatten() {
        if found.len() == wanted.len() {
            break;
        }
        for row in jsonl::rows::<GradedSample>(&dir.join(score_files::SAMPLES))? {
            let (
                _,
                GradedSample {
                    completion,
                    verdict,
                    ..
                },
            ) = row?;
            let fits = wanted.get(completion.problem_id.as_str()) == Some(&verdict.passed);
            if let (true, Some(sample)) = (fits, completion.sample) {
                found.entry(completion.problem_id).or_insert(Quoted {
                    sample,
                    class: verdict.class,
                    message: verdict.message,
                    program: completion.program,
                });
            }
        }
    }
    Ok(found)
}
