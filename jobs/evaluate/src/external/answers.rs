//! Rows of programs become the completions that are asked for, as many of each task.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Number;
use wmtp_artifacts::Digest;
use wmtp_job_kit::JobError;
use wmtp_recipe::Evaluation;
use wmtp_records::{Completion, Percentiles, Problem, Split, jsonl};

use crate::extract;

/// The programs of a model, of each problem in turn, the greedy one first.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) completions: Vec<Completion>,
    /// Milliseconds of each, where all rows tell them.
    latencies: Option<Vec<f64>>,
    /// Programs for problems beyond those that are judged.
    pub(crate) num_left_out: usize,
}

impl Answers {
    /// Digest of all that they say.
    pub(crate) fn digest(&self) -> Digest {
        let text = serde_json::json!([self.completions, self.latencies]).to_string();
        Digest::of(text.as_bytes())
    }

    /// Half of the programs took no longer, where that is known.
    pub(crate) fn latency_ms(&self) -> Option<f64> {
        let latencies = self.latencies.as_ref()?;
        Some(Percentiles::of(latencies.iter().copied()).p50)
    }
}

/// What a model is asked for.
pub(crate) struct Asked {
    /// Tasks in their order.
    tasks: Vec<String>,
    /// Tasks of the split that are not judged.
    beyond: BTreeSet<String>,
    num_samples: usize,
    split: Split,
}

/// One row; what else it holds is not read.
#[derive(Debug, Deserialize)]
struct Row {
    task_id: TaskId,
    /// What a model wrote, of which the program is taken.
    completion: Option<String>,
    /// A program as it is.
    solution: Option<String>,
    /// Several of what a model wrote, as `evaluate complete` gives them.
    completions: Option<Vec<Written>>,
    #[serde(flatten)]
    about: About,
}

/// MBPP numbers its tasks.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a number as `task_id`")]
enum TaskId {
    Text(String),
    Number(Number),
}

#[derive(Debug, Deserialize)]
struct Written {
    text: String,
    #[serde(flatten)]
    about: About,
}

/// What a row may tell of a program beside its text.
#[derive(Debug, Clone, Copy, Deserialize)]
struct About {
    /// Whether it is the likeliest one, which stands beside those that were drawn.
    #[serde(default)]
    greedy: bool,
    num_tokens: Option<u32>,
    finished: Option<bool>,
    latency_ms: Option<f64>,
}

/// A program on its way to a completion.
struct Answer {
    raw: String,
    program: String,
    about: About,
}

/// Programs of one task.
#[derive(Default)]
struct OfTask {
    greedy: Option<Answer>,
    drawn: Vec<Answer>,
}

impl Asked {
    /// For these problems; `beyond` are others of the split.
    pub(crate) fn of(problems: &[Problem], beyond: Vec<String>, evaluation: &Evaluation) -> Self {
        Self {
            tasks: problems
                .iter()
                .map(|problem| problem.problem_id.clone())
                .collect(),
            beyond: beyond.into_iter().collect(),
            num_samples: evaluation.num_samples as usize,
            split: evaluation.split,
        }
    }

    /// Reads a file of rows.
    ///
    /// # Errors
    /// Bad input: a row that is none, of no task, or of too many programs, with file and line; tasks with too few.
    pub(crate) fn read(&self, path: &Path) -> Result<Answers, JobError> {
        let mut by_task: BTreeMap<&str, OfTask> = self
            .tasks
            .iter()
            .map(|task| (task.as_str(), OfTask::default()))
            .collect();
        let mut num_left_out = 0;
        for row in jsonl::rows::<Row>(path)? {
            let (line, row) = row?;
            let error = |what: String| {
                let path = path.to_owned();
                JobError::from(jsonl::Error::Row { path, line, what })
            };
            let task = match &row.task_id {
                TaskId::Text(text) => text.clone(),
                TaskId::Number(number) => number.to_string(),
            };
            let answers = row.answers().map_err(&error)?;
            let Some(of_task) = by_task.get_mut(task.as_str()) else {
                if self.beyond.contains(&task) {
                    num_left_out += answers.len();
                    continue;
                }
                let what = format!("the {} split has no task {task:?}", self.split);
                return Err(error(what).hint(
                    "the tasks are in problems/SPLIT.jsonl of the data set, as `problem_id`; evaluation.split says which",
                ));
            };
            for answer in answers {
                of_task.add(answer, self.num_samples).map_err(|what| {
                    error(format!("task {task:?} has {what}")).hint(self.count_hint())
                })?;
            }
        }
        self.require_all(&by_task)
            .map_err(|error| error.context(path.display().to_string()))?;
        let (completions, latencies): (Vec<_>, Vec<_>) = self
            .tasks
            .iter()
            .filter_map(|task| Some((task, by_task.remove(task.as_str())?)))
            .flat_map(|(task, of_task)| of_task.completions(task))
            .unzip();
        Ok(Answers {
            completions,
            latencies: latencies.into_iter().collect(),
            num_left_out,
        })
    }

    fn require_all(&self, by_task: &BTreeMap<&str, OfTask>) -> Result<(), JobError> {
        let total = self.tasks.len();
        let find = |is_wrong: &dyn Fn(&OfTask) -> bool| -> Vec<&str> {
            let tasks = self.tasks.iter().map(String::as_str);
            tasks.filter(|task| is_wrong(&by_task[task])).collect()
        };
        let missing = find(&|of_task| of_task.drawn.is_empty());
        if let Some(first) = missing.first() {
            let what = format!(
                "{} of {total} tasks of the {} split have no sample, the first is {first:?}",
                missing.len(),
                self.split
            );
            return Err(JobError::bad_input(what).hint(
                "a task that a model cannot do has samples too, which fail: `\"completion\": \"\"`",
            ));
        }
        let short = find(&|of_task| of_task.drawn.len() < self.num_samples);
        if let Some(first) = short.first() {
            let what = format!(
                "{} of {total} tasks have too few samples: the first is {first:?} with {} of {}",
                short.len(),
                by_task[first].drawn.len(),
                self.num_samples
            );
            return Err(JobError::bad_input(what).hint(self.count_hint()));
        }
        let without_greedy = find(&|of_task| of_task.greedy.is_none());
        match without_greedy.first() {
            Some(first) if without_greedy.len() < total => Err(JobError::bad_input(format!(
                "{} of {total} tasks have no greedy sample and the others have one; the first without is {first:?}",
                without_greedy.len()
            ))
            .hint("mark the greedy sample of every task, or of none")),
            _ => Ok(()),
        }
    }

    fn count_hint(&self) -> String {
        format!(
            "evaluation.num_samples is {}: give as many of each task, so that the model stands beside the versions",
            self.num_samples
        )
    }
}

impl Row {
    fn answers(self) -> Result<Vec<Answer>, String> {
        let about = self.about;
        let answers = match (self.completion, self.solution, self.completions) {
            (Some(raw), None, None) => vec![Answer::written(raw, about)],
            (None, Some(program), None) => vec![Answer {
                raw: program.clone(),
                program,
                about,
            }],
            (None, None, Some(several)) => several
                .into_iter()
                .map(|one| Answer::written(one.text, one.about))
                .collect(),
            (None, None, None) => {
                return Err(
                    "found neither `completion` nor `solution` nor `completions`".to_owned(),
                );
            }
            _ => {
                return Err(
                    "found several of `completion`, `solution` and `completions`; give one"
                        .to_owned(),
                );
            }
        };
        let is_time = |millis: f64| millis.is_finite() && millis >= 0.0;
        let wrong = answers.iter().filter_map(|answer| answer.about.latency_ms);
        match wrong.into_iter().find(|millis| !is_time(*millis)) {
            Some(millis) => Err(format!(
                "`latency_ms` is {millis}, expected a number of at least 0"
            )),
            None => Ok(answers),
        }
    }
}

impl Answer {
    /// What a model wrote; the program is taken from it as from the texts of our own.
    fn written(raw: String, about: About) -> Self {
        Self {
            program: extract::program(&raw),
            raw,
            about,
        }
    }

    fn completion(self, task: &str, sample: Option<u32>) -> (Completion, Option<f64>) {
        let completion = Completion {
            problem_id: task.to_owned(),
            sample,
            raw: self.raw,
            program: self.program,
            num_tokens: self.about.num_tokens,
            finished: self.about.finished,
        };
        (completion, self.about.latency_ms)
    }
}

impl OfTask {
    fn add(&mut self, answer: Answer, num_samples: usize) -> Result<(), String> {
        if answer.about.greedy {
            return match self.greedy.replace(answer) {
                None => Ok(()),
                Some(_) => Err("a second greedy sample".to_owned()),
            };
        }
        if self.drawn.len() == num_samples {
            return Err(format!("more than {num_samples} samples"));
        }
        self.drawn.push(answer);
        Ok(())
    }

    fn completions(self, task: &str) -> Vec<(Completion, Option<f64>)> {
        let greedy = self.greedy.map(|answer| (None, answer));
        let drawn = (0..).map(Some).zip(self.drawn);
        greedy
            .into_iter()
            .chain(drawn)
            .map(|(sample, answer)| answer.completion(task, sample))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;

    use super::*;

    fn asked() -> Asked {
        Asked {
            tasks: vec!["b".to_owned(), "7".to_owned()],
            beyond: BTreeSet::from(["c".to_owned()]),
            num_samples: 2,
            split: Split::Validation,
        }
    }

    fn read(rows: &str) -> Result<Answers, JobError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        std::fs::write(&path, rows).unwrap();
        asked().read(&path)
    }

    const FENCED: &str = r#"{"task_id":7,"completion":"Here:\n```python\nx = 1\n```\nDone."}"#;
    const WHOLE: &str = r#"{"task_id":"b","solution":"x = 2\n### Part\ny = 3"}"#;
    const BOTH: &str = r#"{"task_id":"b","completions":[{"text":"p","num_tokens":3,"finished":true},{"text":"q"}]}"#;

    #[test]
    fn programs_come_in_the_order_of_the_tasks_whatever_that_of_the_rows() {
        let beyond = r#"{"task_id":"c","completion":"left out"}"#;
        let answers = read(&[FENCED, WHOLE, beyond, FENCED, WHOLE].join("\n")).unwrap();
        let told: Vec<(&str, Option<u32>, &str)> = answers
            .completions
            .iter()
            .map(|one| (one.problem_id.as_str(), one.sample, one.program.as_str()))
            .collect();
        // A solution is executed as it is; of a completion the program is taken.
        let whole = "x = 2\n### Part\ny = 3";
        assert_eq!(
            told,
            [
                ("b", Some(0), whole),
                ("b", Some(1), whole),
                ("7", Some(0), "x = 1\n"),
                ("7", Some(1), "x = 1\n"),
            ]
        );
        assert_eq!((answers.num_left_out, answers.latency_ms()), (1, None));
        let other_order = read(&[WHOLE, FENCED, FENCED, WHOLE].join("\n")).unwrap();
        assert_eq!(other_order.digest(), answers.digest());
    }

    #[test]
    fn rows_of_evaluate_complete_are_read_and_what_they_know_is_kept() {
        let answers = read(&[BOTH, FENCED, FENCED].join("\n")).unwrap();
        let first = &answers.completions[0];
        assert_eq!((first.num_tokens, first.finished), (Some(3), Some(true)));
        assert_eq!(answers.completions[1].num_tokens, None);
    }

    #[test]
    fn times_are_known_where_every_program_has_one() {
        let timed = |task: &str, millis: f64| {
            format!(r#"{{"task_id":"{task}","completion":"","latency_ms":{millis}}}"#)
        };
        let rows = [
            timed("b", 1.0),
            timed("b", 4.0),
            timed("7", 2.0),
            timed("7", 8.0),
        ];
        assert_eq!(read(&rows.join("\n")).unwrap().latency_ms(), Some(2.0));
        let error = read(&timed("b", -1.0)).unwrap_err();
        assert!(error.to_string().contains("`latency_ms` is -1"), "{error}");
    }

    #[test]
    fn every_task_has_a_greedy_program_or_none_has() {
        let greedy = r#"{"task_id":"b","completion":"g","greedy":true}"#;
        let drawn = [WHOLE, WHOLE, FENCED, FENCED];
        let some = read(&[&drawn[..], &[greedy]].concat().join("\n")).unwrap_err();
        assert!(
            some.to_string()
                .contains("1 of 2 tasks have no greedy sample"),
            "{some}"
        );
        let other = greedy.replace("\"b\"", "7");
        let all = [&drawn[..], &[greedy, &other]].concat();
        let answers = read(&all.join("\n")).unwrap();
        assert_eq!(answers.completions[0].sample, None);
        assert_eq!(answers.completions[3].sample, None);
        let twice = read(&[&all[..], &[greedy]].concat().join("\n")).unwrap_err();
        assert!(
            twice
                .to_string()
                .contains("line 7: task \"b\" has a second greedy"),
            "{twice}"
        );
    }

    #[test]
    fn what_does_not_fit_is_bad_input_told_with_its_place() {
        for (rows, what) in [
            (
                [WHOLE, WHOLE, FENCED, r#"{"task_id":"z","completion":""}"#],
                "line 4: the validation split has no task \"z\"",
            ),
            ([WHOLE, WHOLE, FENCED, "{"], "line 4: EOF"),
            (
                [WHOLE, WHOLE, FENCED, r#"{"completion":""}"#],
                "line 4: missing field `task_id`",
            ),
            (
                [WHOLE, WHOLE, FENCED, r#"{"task_id":[],"completion":""}"#],
                "line 4: expected a text or a number as `task_id`",
            ),
            (
                [WHOLE, WHOLE, FENCED, r#"{"task_id":7}"#],
                "line 4: found neither `completion` nor `solution`",
            ),
            (
                [
                    WHOLE,
                    WHOLE,
                    FENCED,
                    r#"{"task_id":7,"completion":"","solution":""}"#,
                ],
                "line 4: found several of",
            ),
            (
                [WHOLE, WHOLE, FENCED, WHOLE],
                "line 4: task \"b\" has more than 2 samples",
            ),
            (
                [WHOLE, WHOLE, FENCED, ""],
                "1 of 2 tasks have too few samples: the first is \"7\" with 1 of 2",
            ),
            (
                [WHOLE, WHOLE, "", ""],
                "1 of 2 tasks of the validation split have no sample, the first is \"7\"",
            ),
        ] {
            let error = read(&rows.join("\n")).unwrap_err();
            assert_eq!(error.exit(), Exit::BadInput, "{what}");
            let text = error.to_string();
            assert!(
                text.contains("samples.jsonl") && text.contains(what),
                "{what}: {text}"
            );
        }
    }
}
