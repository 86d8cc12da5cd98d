//! Counts and lengths of a data set: `stats/summary.json`. No time of making, so that equal data has equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wmtp_records::{Record, Split};

use crate::{LabelCounts, Separation};

/// `stats/summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Data set name.
    pub dataset: String,
    /// Longest sequence that is allowed, in tokens.
    pub max_tokens: usize,
    /// Ids of the tokenizer, special ones included.
    pub vocab_size: usize,
    /// Split to its counts and lengths.
    pub splits: BTreeMap<Split, SplitSummary>,
    /// What execution said.
    pub labels: LabelCounts,
    /// Training problems left out because evaluation has their statement.
    pub separation: Separation,
    /// Rows and problems left out, by reason.
    pub dropped: BTreeMap<String, usize>,
}

/// Counts and lengths of one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Rows.
    pub count: usize,
    /// Rows labelled correct.
    pub correct_count: usize,
    /// Rows labelled incorrect.
    pub incorrect_count: usize,
    /// Share of correct rows; 0 when there are no rows.
    pub correct_ratio: f64,
    /// Problems.
    pub num_problems: usize,
    /// Problems per family; the empty name where a set has no families.
    pub families: BTreeMap<String, usize>,
    /// Problems per difficulty.
    pub difficulties: BTreeMap<u32, usize>,
    /// Mean characters of the statement.
    pub avg_instruction_length: f64,
    /// Characters of the longest statement.
    pub max_instruction_length: usize,
    /// Mean characters of the program.
    pub avg_output_length: f64,
    /// Characters of the longest program.
    pub max_output_length: usize,
    /// Mean tokens of the prompt, begin token included.
    pub avg_prompt_tokens: f64,
    /// Mean tokens of the response, end token included.
    pub avg_output_tokens: f64,
    /// Mean tokens of correct responses.
    pub avg_correct_output_tokens: f64,
    /// Mean tokens of incorrect responses.
    pub avg_incorrect_output_tokens: f64,
    /// Mean tokens of whole sequences.
    pub avg_total_tokens: f64,
    /// Tokens of the longest sequence.
    pub max_total_tokens: usize,
    /// Tokens of all sequences together.
    pub total_tokens: usize,
}

impl SplitSummary {
    /// Summarises rows; `problems` gives family and difficulty of each problem.
    pub fn of<'a>(rows: &[Record], problems: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut families: BTreeMap<String, usize> = BTreeMap::new();
        let mut difficulties: BTreeMap<u32, usize> = BTreeMap::new();
        let mut num_problems = 0;
        for (family, difficulty) in problems {
            num_problems += 1;
            *families.entry(family.to_owned()).or_default() += 1;
            *difficulties.entry(difficulty).or_default() += 1;
        }
        let labelled = |label| rows.iter().filter(move |row| row.is_correct == Some(label));
        let total = |row: &Record| (row.n_prompt_tokens + row.n_response_tokens) as usize;
        let response = |row: &Record| row.n_response_tokens as usize;
        let correct_count = labelled(true).count();
        Self {
            count: rows.len(),
            correct_count,
            incorrect_count: labelled(false).count(),
            correct_ratio: correct_count as f64 / rows.len().max(1) as f64,
            num_problems,
            families,
            difficulties,
            avg_instruction_length: mean(rows.iter().map(|row| row.instruction.chars().count())),
            max_instruction_length: max(rows.iter().map(|row| row.instruction.chars().count())),
            avg_output_length: mean(rows.iter().map(|row| row.output.chars().count())),
            max_output_length: max(rows.iter().map(|row| row.output.chars().count())),
            avg_prompt_tokens: mean(rows.iter().map(|row| row.n_prompt_tokens as usize)),
            avg_output_tokens: mean(rows.iter().map(response)),
            avg_correct_output_tokens: mean(labelled(true).map(response)),
            avg_incorrect_output_tokens: mean(labelled(false).map(response)),
            avg_total_tokens: mean(rows.iter().map(total)),
            max_total_tokens: max(rows.iter().map(total)),
            total_tokens: rows.iter().map(total).sum(),
        }
    }
}

/// 0 for nothing.
fn mean(values: impl Iterator<Item = usize>) -> f64 {
    let (mut sum, mut count) = (0, 0_usize);
    for value in values {
        sum += value;
        count += 1;
    }
    sum as f64 / count.max(1) as f64
}

fn max(values: impl Iterator<Item = usize>) -> usize {
    values.max().unwrap_or(0)
}
