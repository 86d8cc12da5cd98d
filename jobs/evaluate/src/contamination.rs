//! Which problems hold something that the model was trained on.
//!
//! prepare-data leaves statements of evaluation out of its own training rows; another data set's, or a program that solves two
//! problems, it cannot. Flagged problems count like the others, and once more without them.

use std::collections::BTreeMap;
use std::path::Path;

use wmtp_data_sets::TrainingRows;
use wmtp_job_kit::JobError;
use wmtp_records::{Contamination, Problem, Record, Split, data_files, jsonl};

/// What of a problem the model has seen, by problem; clean ones are not in it.
pub(crate) type Flags = BTreeMap<String, Contamination>;

/// Holds the problems of a split of the data set in `data` against the training rows of the one in `trained_on`.
pub(crate) fn flags(
    problems: &[Problem],
    split: Split,
    data: &Path,
    trained_on: &Path,
) -> Result<Flags, JobError> {
    let path = trained_on.join(data_files::records(Split::Train));
    let rows = jsonl::rows::<Record>(&path)?;
    let training = TrainingRows::read(rows.map(|row| row.map(|(_, record)| record)))?;
    let path = data.join(data_files::records(split));
    let mut programs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in jsonl::rows::<Record>(&path)? {
        let (_, record) = row?;
        if record.is_correct == Some(true) {
            let solving = programs.entry(record.problem_id).or_default();
            solving.push(record.response);
        }
    }
    let found = problems.iter().filter_map(|problem| {
        let solving = programs.get(&problem.problem_id).into_iter().flatten();
        let solving = solving.chain(&problem.reference).map(String::as_str);
        let flag = training.contamination(problem, solving)?;
        Some((problem.problem_id.clone(), flag))
    });
    Ok(found.collect())
}
