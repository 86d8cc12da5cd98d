//! From labelled problems to the files of a processed data set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use wmtp_records::{DataSchema, Problem, Record, RecordMetadata, Split, data_files, jsonl};
use wmtp_tokens::{TokenizedSample, Tokenizer, encode_pair, encode_prompt};

use crate::{
    Error, LabelCounts, Labelled, LabelledProblem, Separation, SplitSummary, Summary, TokenFile,
};

/// Rows of the small sets.
const SMALL_ROWS: usize = 64;

/// Name and origin of a data set, for `schema.json` and every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `micropy`, `mbpp`, …
    pub dataset: String,
    /// One sentence.
    pub description: String,
    /// Where the rows come from.
    pub source: String,
}

/// A processed data set in memory.
#[derive(Debug, Clone)]
pub struct DataSet {
    description: Description,
    tokenizer: Tokenizer,
    max_length: usize,
    splits: BTreeMap<Split, SplitRows>,
    labels: LabelCounts,
    separation: Separation,
    dropped: BTreeMap<String, usize>,
}

/// One split: rows and their ids in the same order, and the problems.
#[derive(Debug, Clone, Default)]
pub struct SplitRows {
    /// One row per program.
    pub records: Vec<Record>,
    /// Token ids of the rows.
    pub tokens: TokenFile,
    /// Problems with their tests.
    pub problems: Vec<Problem>,
}

/// What a tokenizer learns from: prompt and program of every training row.
pub fn tokenizer_texts(labelled: &Labelled) -> Vec<String> {
    let train = labelled
        .problems
        .iter()
        .filter(|problem| problem.source.split == Split::Train);
    train
        .flat_map(|problem| {
            let prompt = &problem.source.problem.prompt;
            let programs = problem.correct.iter().chain(&problem.incorrect);
            programs.map(move |program| format!("{prompt}{program}"))
        })
        .collect()
}

impl DataSet {
    /// Makes rows of labelled programs.
    ///
    /// The length rule looks at the final sequence, template, begin and end tokens included; nothing is cut, a row
    /// that is too long is left out and counted, and so is a problem whose prompt leaves no room for an answer. A text
    /// that occurs twice under one prompt is kept once, and not at all when its labels differ.
    ///
    /// # Errors
    /// [`Error::EmptySplit`] when no training row is left.
    pub fn assemble(
        description: Description,
        labelled: &Labelled,
        separation: Separation,
        tokenizer: Tokenizer,
        max_length: usize,
    ) -> Result<Self, Error> {
        let mut set = Self {
            description,
            tokenizer,
            max_length,
            splits: Split::ALL
                .into_iter()
                .map(|split| (split, SplitRows::default()))
                .collect(),
            labels: labelled.counts,
            separation,
            dropped: BTreeMap::new(),
        };
        let doubtful = doubtful_texts(&labelled.problems);
        let mut seen = BTreeSet::new();
        for problem in &labelled.problems {
            set.add_problem(problem, &doubtful, &mut seen)?;
        }
        if set.split(Split::Train).records.is_empty() {
            return Err(Error::EmptySplit {
                split: Split::Train,
                reason: "raise data.num_problems or data.max_length",
            });
        }
        Ok(set)
    }

    /// Rows of a split.
    pub fn split(&self, split: Split) -> &SplitRows {
        &self.splits[&split]
    }

    fn add_problem<'a>(
        &mut self,
        labelled: &'a LabelledProblem,
        doubtful: &BTreeSet<(&str, &str)>,
        seen: &mut BTreeSet<(&'a str, &'a str)>,
    ) -> Result<(), Error> {
        let problem = &labelled.source.problem;
        if encode_prompt(&self.tokenizer, &problem.prompt).len() + 1 >= self.max_length {
            self.drop_for("problem_prompt_too_long");
            return Ok(());
        }
        let split = labelled.source.split;
        let rows = |programs: &'a [String], label| {
            programs
                .iter()
                .enumerate()
                .map(move |(n, text)| (n, text.as_str(), label))
        };
        for (number, program, is_correct) in
            rows(&labelled.correct, true).chain(rows(&labelled.incorrect, false))
        {
            let text = (problem.prompt.as_str(), program);
            if doubtful.contains(&text) {
                self.drop_for("row_under_both_labels");
            } else if seen.insert(text) {
                let sample = encode_pair(&self.tokenizer, &problem.prompt, program)?;
                if sample.ids.len() > self.max_length {
                    self.drop_for("row_too_long");
                    continue;
                }
                let record = self.record(labelled, number, program, is_correct, &sample);
                let rows = self.splits.entry(split).or_default();
                rows.tokens.push(&sample, record.is_correct);
                rows.records.push(record);
            } else {
                self.drop_for("row_repeated");
            }
        }
        self.splits
            .entry(split)
            .or_default()
            .problems
            .push(problem.clone());
        Ok(())
    }

    fn drop_for(&mut self, reason: &str) {
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
    }

    fn record(
        &self,
        labelled: &LabelledProblem,
        number: usize,
        program: &str,
        is_correct: bool,
        sample: &TokenizedSample,
    ) -> Record {
        let problem = &labelled.source.problem;
        let label = if is_correct { "correct" } else { "incorrect" };
        Record {
            problem_id: problem.problem_id.clone(),
            task_id: format!("{}_{label}_{number}", problem.problem_id),
            instruction: problem.instruction.clone(),
            input: problem.input.clone(),
            output: program.to_owned(),
            prompt: problem.prompt.clone(),
            response: program.to_owned(),
            is_correct: Some(is_correct),
            n_prompt_tokens: sample.prompt_len as u32,
            n_response_tokens: sample.response_len() as u32,
            difficulty: problem.difficulty,
            language: "python3".to_owned(),
            metadata: RecordMetadata {
                source: self.description.dataset.clone(),
                has_tests: true,
                original_split: labelled.source.original_split,
                is_correct: Some(is_correct),
                family: problem.family.clone(),
            },
        }
    }

    /// Counts and lengths.
    pub fn summary(&self) -> Summary {
        let splits = self.splits.iter().map(|(&split, rows)| {
            let problems = rows
                .problems
                .iter()
                .map(|problem| (problem.family.as_str(), problem.difficulty));
            (split, SplitSummary::of(&rows.records, problems))
        });
        Summary {
            dataset: self.description.dataset.clone(),
            max_tokens: self.max_length,
            vocab_size: self.tokenizer.vocab_size(),
            splits: splits.collect(),
            labels: self.labels,
            separation: self.separation,
            dropped: self.dropped.clone(),
        }
    }

    /// Writes every file of [`data_files`] under a folder; equal data gives equal bytes.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        self.tokenizer.save(&folder.join(data_files::TOKENIZER))?;
        jsonl::write_json(&folder.join(data_files::SCHEMA), &self.schema())?;
        jsonl::write_json(&folder.join(data_files::STATS), &self.summary())?;
        for (&split, rows) in &self.splits {
            jsonl::write(&folder.join(data_files::records(split)), &rows.records)?;
            jsonl::write(&folder.join(data_files::problems(split)), &rows.problems)?;
            rows.tokens.save(&folder.join(data_files::tokens(split)))?;
            jsonl::write_json(
                &folder.join(data_files::index(split)),
                &Index::of(&rows.records),
            )?;
            if split != Split::Test {
                let small = rows.records.iter().take(SMALL_ROWS);
                jsonl::write(&folder.join(data_files::small(split)), small)?;
            }
        }
        Ok(())
    }

    fn schema(&self) -> DataSchema {
        let fields = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        DataSchema {
            dataset: self.description.dataset.clone(),
            format: "alpaca".to_owned(),
            required_fields: fields(&[
                "problem_id",
                "task_id",
                "instruction",
                "output",
                "prompt",
                "response",
                "is_correct",
                "n_prompt_tokens",
                "n_response_tokens",
                "language",
                "metadata",
            ]),
            optional_fields: fields(&["input", "difficulty"]),
            description: self.description.description.clone(),
            source: self.description.source.clone(),
        }
    }
}

/// Prompt and program pairs that occur under both labels.
fn doubtful_texts(problems: &[LabelledProblem]) -> BTreeSet<(&str, &str)> {
    let texts = |programs: fn(&LabelledProblem) -> &[String]| -> BTreeSet<(&str, &str)> {
        problems
            .iter()
            .flat_map(|problem| {
                let prompt = problem.source.problem.prompt.as_str();
                programs(problem)
                    .iter()
                    .map(move |program| (prompt, program.as_str()))
            })
            .collect()
    };
    let correct = texts(|problem| &problem.correct);
    let incorrect = texts(|problem| &problem.incorrect);
    correct.intersection(&incorrect).copied().collect()
}

/// `index/{split}_metadata.json`: labels and problems without the texts.
#[derive(Serialize)]
struct Index<'a> {
    metadata: Vec<IndexRow<'a>>,
    problem_index_map: BTreeMap<&'a str, ProblemRows>,
    stats: IndexStats,
}

#[derive(Serialize)]
struct IndexRow<'a> {
    is_correct: Option<bool>,
    difficulty: u32,
    problem_id: &'a str,
}

#[derive(Default, Serialize)]
struct ProblemRows {
    difficulty: u32,
    correct_indices: Vec<usize>,
    incorrect_indices: Vec<usize>,
}

#[derive(Serialize)]
struct IndexStats {
    total: usize,
    correct: usize,
    incorrect: usize,
    n_problems: usize,
    /// Problems with rows of both labels.
    n_valid_problems: usize,
    total_possible_pairs: usize,
    /// Problems per difficulty.
    difficulty_dist: BTreeMap<u32, usize>,
}

impl<'a> Index<'a> {
    fn of(rows: &'a [Record]) -> Self {
        let mut problems: BTreeMap<&str, ProblemRows> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            let problem = problems.entry(&row.problem_id).or_default();
            problem.difficulty = row.difficulty;
            match row.is_correct {
                Some(true) => problem.correct_indices.push(index),
                Some(false) => problem.incorrect_indices.push(index),
                None => {}
            }
        }
        let pairs =
            |problem: &ProblemRows| problem.correct_indices.len() * problem.incorrect_indices.len();
        let mut difficulty_dist: BTreeMap<u32, usize> = BTreeMap::new();
        for problem in problems.values() {
            *difficulty_dist.entry(problem.difficulty).or_default() += 1;
        }
        let stats = IndexStats {
            total: rows.len(),
            correct: problems
                .values()
                .map(|problem| problem.correct_indices.len())
                .sum(),
            incorrect: problems
                .values()
                .map(|problem| problem.incorrect_indices.len())
                .sum(),
            n_problems: problems.len(),
            n_valid_problems: problems
                .values()
                .filter(|problem| pairs(problem) > 0)
                .count(),
            total_possible_pairs: problems.values().map(pairs).sum(),
            difficulty_dist,
        };
        let metadata = rows
            .iter()
            .map(|row| IndexRow {
                is_correct: row.is_correct,
                difficulty: row.difficulty,
                problem_id: &row.problem_id,
            })
            .collect();
        Self {
            metadata,
            problem_index_map: problems,
            stats,
        }
    }
}
