//! One row of a processed data set.

use serde::{Deserialize, Serialize};

use crate::Split;

/// One solution to one problem, with its label. Made by prepare-data; read by both training jobs.
///
/// The superset record of the specification (section 2.5): it satisfies the founding schema
/// (`prompt`, `response`) and the later one (`instruction`, `input`, `output`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The problem that the row solves; splits never share one.
    pub problem_id: String,
    /// `<problem>_correct_<n>` or `<problem>_incorrect_<n>`.
    pub task_id: String,
    /// The statement.
    pub instruction: String,
    /// Examples shown with the statement; empty when there are none.
    pub input: String,
    /// The program.
    pub output: String,
    /// The rendered prompt: everything before the response.
    pub prompt: String,
    /// The response text that the model learns: the program, no fence, no end token.
    pub response: String,
    /// Whether the program passes the problem's tests; `None` where it was never established.
    pub is_correct: Option<bool>,
    /// Tokens of the prompt, begin token included.
    pub n_prompt_tokens: u32,
    /// Tokens of the response, end token included.
    pub n_response_tokens: u32,
    /// Difficulty as the source gives it; 0 is unknown.
    pub difficulty: u32,
    /// Programming language; `python3` in all present data sets.
    pub language: String,
    /// Where the row comes from.
    pub metadata: RecordMetadata,
}

/// Provenance of a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordMetadata {
    /// Data set name: `micropy`, `mbpp`, …
    pub source: String,
    /// Whether the problem carries executable tests.
    pub has_tests: bool,
    /// The split that the source itself names, if any.
    pub original_split: Option<Split>,
    /// Copy of the row's label, for readers of the founding schema.
    pub is_correct: Option<bool>,
    /// Problem family (micropy) or empty.
    #[serde(default)]
    pub family: String,
}

/// `schema.json` beside the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSchema {
    /// Data set name.
    pub dataset: String,
    /// Always `alpaca`.
    pub format: String,
    /// Fields that every row has.
    pub required_fields: Vec<String>,
    /// Fields that a row may leave empty.
    pub optional_fields: Vec<String>,
    /// One sentence.
    pub description: String,
    /// Where the rows come from.
    pub source: String,
}

/// Paths inside a processed-data artifact; one place for writer and readers.
pub mod data_files {
    use crate::Split;

    /// `schema.json`.
    pub const SCHEMA: &str = "schema.json";
    /// The tokenizer that made the ids.
    pub const TOKENIZER: &str = "tokenizer/tokenizer.json";
    /// Counts and lengths.
    pub const STATS: &str = "stats/summary.json";

    /// Rows of a split: JSON lines of [`crate::Record`].
    pub fn records(split: Split) -> String {
        format!("records/{split}.jsonl")
    }

    /// Problems of a split: JSON lines of [`crate::Problem`].
    pub fn problems(split: Split) -> String {
        format!("problems/{split}.jsonl")
    }

    /// Token ids of a split, row by row in the order of [`records`].
    pub fn tokens(split: Split) -> String {
        format!("tokens/{split}.safetensors")
    }

    /// Index of a split: labels and problems without the texts.
    pub fn index(split: Split) -> String {
        format!("index/{split}_metadata.json")
    }

    /// A small part of a split, for smoke runs.
    pub fn small(split: Split) -> String {
        format!("small/{split}_small.jsonl")
    }
}
