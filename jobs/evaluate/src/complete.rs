//! `evaluate complete`: prompts of a file in, their completions out; a model from the store, no data set, no grading.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wmtp_decoding::{
    Choice, DrawKey, Ended, Generator, InferenceModel, Prompt, PromptError, Sampling,
};
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_model::{ParamStore, Params, Place, RowSetup};
use wmtp_recipe::seed;
use wmtp_records::jsonl;
use wmtp_tokens::{Tokenizer, completion_text, encode_prompt, render_prompt};

use crate::extract;
use crate::generate::{self, on_every_core};
use crate::inputs::Model;
use crate::subject::{self, Stored};

/// Completes the prompts of a file.
#[derive(Debug, clap::Args)]
pub struct Complete {
    #[command(flatten)]
    model: Model,
    /// Prompts, JSON lines, plain or .gz: `prompt` as it is, or `instruction` and, where there is one, `input`, put into the
    /// prompt of training
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Where the rows go, with `completions` added, in their order. They grow in FILE.part; started again, the same command
    /// goes on behind them
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Completions of each prompt; with a temperature of 0 all are the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    num_samples: u32,
    /// 0 takes the likeliest token at each place
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Of the likeliest tokens, those that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    top_p: f64,
    /// The likeliest tokens alone
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Tokens of a completion at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// Random numbers are those of the seed, the row and the sample, whatever is generated beside them
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    seed: u64,
}

fn temperature(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "expected a number of at least 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| *number > 0.0 && *number <= 1.0)
        .ok_or_else(|| "expected a number above 0 and of at most 1".to_owned())
}

/// One completion in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Completed {
    /// What the model wrote.
    text: String,
    /// The program in it.
    program: String,
    num_tokens: usize,
    /// Whether the model ended it itself.
    finished: bool,
}

/// Key of a row under which its completions are written.
const COMPLETIONS: &str = "completions";
/// Key of a row that says how they were made.
const MADE_BY: &str = "made_by";

impl Tool for Complete {
    const ABOUT: &'static str = "Completes the prompts of a file with a model of the store; the rows come back with their completions.";
    const EXAMPLES: &'static str = "\
  evaluate complete --store s3://wmtp/demo --checkpoint v002-s42 --prompts prompts.jsonl --out completed.jsonl
  evaluate complete --store s3://wmtp/demo --checkpoint v002-s42 --prompts prompts.jsonl.gz --out completed.jsonl --num-samples 10 --temperature 0.8";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let rows =
            jsonl::rows(&self.prompts)?.collect::<Result<Vec<(usize, Map<String, Value>)>, _>>()?;
        let prompts = rows
            .iter()
            .map(|(line, row)| prompt_of(row).map_err(|what| self.bad_row(*line, &what)))
            .collect::<Result<Vec<String>, _>>()?;
        let (kind, reference) = self.model.reference()?;
        let stored = subject::stored(cx.store()?, kind, reference)?;
        let made_by = self.made_by(&stored);
        let mut out = Out::open(&self.out, &rows, &made_by)?;
        if out.found > 0 {
            let (part, found) = (out.part.display(), out.found);
            cx.log(format!(
                "{part} holds {found} rows already; going on behind them"
            ));
        }
        let (params, store) = stored.load()?;
        let tokenizer = stored.tokenizer()?;
        let ids: Vec<Vec<u32>> = prompts[out.found..]
            .iter()
            .map(|prompt| encode_prompt(&tokenizer, prompt))
            .collect();
        let generator = self.generator(&params, &store, &tokenizer, &stored, &ids)?;
        let progress = cx.progress("complete", "prompts", rows.len() as u64);
        progress.set(out.found as u64);
        let first = out.found;
        let mut open: BTreeMap<usize, BTreeMap<usize, Completed>> = BTreeMap::new();
        on_every_core(
            &generator,
            |number| {
                Some(Prompt {
                    ids: ids.get(number)?,
                    choices: self.choices(first + number),
                    beam: None,
                })
            },
            &cx.stop_flag(),
            |failed| self.failure(rows[first + failed.number].0, failed),
            |ended| {
                let completed = completed(&tokenizer, &ids[ended.prompt], ended);
                Ok((ended.prompt, ended.sample, completed))
            },
            |(number, sample, completed)| {
                let samples = open.entry(number).or_default();
                samples.insert(sample, completed);
                if samples.len() == self.num_samples as usize {
                    let samples = open.remove(&number).unwrap_or_default();
                    out.add(
                        first + number,
                        samples.into_values().collect(),
                        &rows,
                        &made_by,
                    )?;
                    progress.set(out.next as u64);
                }
                Ok(())
            },
        )?;
        out.flush()?;
        if out.next < rows.len() {
            return Err(JobError::preempted());
        }
        out.finish(&self.out)?;
        progress.finish();
        cx.print(format!("{} rows in {}", rows.len(), self.out.display()));
        cx.json_result(json!({ "rows": rows.len(), "out": self.out, MADE_BY: made_by }));
        Ok(())
    }
}

impl Complete {
    fn bad_row(&self, line: usize, what: &str) -> JobError {
        JobError::bad_input(format!("{}, line {line}: {what}", self.prompts.display()))
    }

    fn failure(&self, line: usize, failed: PromptError) -> JobError {
        let context = format!("{}, line {line}", self.prompts.display());
        generate::error(failed.error).context(context)
    }

    /// What decides a completion beside its prompt.
    fn made_by(&self, stored: &Stored) -> Value {
        let mut made_by = json!({
            "model": stored.id.to_string(),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "num_samples": self.num_samples,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        });
        if let Some(top_k) = self.top_k {
            made_by["top_k"] = top_k.into();
        }
        if self.model.device != Place::Cpu {
            made_by["device"] = "cuda".into();
        }
        made_by
    }

    fn generator(
        &self,
        params: &Params,
        store: &ParamStore,
        tokenizer: &Tokenizer,
        stored: &Stored,
        prompts: &[Vec<u32>],
    ) -> Result<Generator, JobError> {
        let setup = RowSetup {
            device: self.model.device.open().map_err(generate::model_error)?,
            products: stored.products(self.model.device)?,
        };
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let max_tokens = longest + self.max_new_tokens;
        let model = InferenceModel::speculative(params, store, max_tokens, &setup)
            .map_err(generate::error)?;
        Ok(Generator::new(model, tokenizer.eos(), self.max_new_tokens))
    }

    fn choices(&self, number: usize) -> Vec<Choice> {
        let stream = seed::stream(self.seed, "evaluate.complete");
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
        };
        (0..self.num_samples)
            .map(|sample| {
                if self.temperature > 0.0 {
                    let key = DrawKey::new(stream, &number.to_string(), sample);
                    Choice::Draw(sampling, key)
                } else {
                    Choice::Greedy
                }
            })
            .collect()
    }
}

fn completed(tokenizer: &Tokenizer, prompt: &[u32], ended: &Ended) -> Completed {
    // The whole sequence is decoded, never the tail alone: a tokenizer may eat the tail's first blank.
    let all_ids = [prompt, &ended.text.ids].concat();
    let text = completion_text(tokenizer, prompt, &all_ids);
    Completed {
        program: extract::program(&text),
        text,
        num_tokens: ended.text.ids.len(),
        finished: ended.text.finished,
    }
}

/// The prompt that a row asks for.
fn prompt_of(row: &Map<String, Value>) -> Result<String, String> {
    let text = |key: &str| match row.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("`{key}` is no text")),
    };
    for key in [COMPLETIONS, MADE_BY] {
        if row.contains_key(key) {
            return Err(format!("the row has a key `{key}`, which the result needs"));
        }
    }
    match (text("prompt")?, text("instruction")?, text("input")?) {
        (Some(prompt), None, None) => Ok(prompt.to_owned()),
        (None, Some(instruction), input) => Ok(render_prompt(instruction, input.unwrap_or(""))),
        (Some(_), ..) => {
            Err("`prompt` stands beside `instruction` or `input`; give one".to_owned())
        }
        (None, None, _) => Err("found neither `prompt` nor `instruction`".to_owned()),
    }
}

/// The rows that are done, written in their order.
struct Out {
    part: PathBuf,
    file: BufWriter<File>,
    /// Rows of an earlier run.
    found: usize,
    /// The row that is written next.
    next: usize,
    /// Rows that wait for one before them.
    waiting: BTreeMap<usize, Vec<Completed>>,
}

impl Out {
    /// Goes on behind the whole rows of an earlier run, if they are of these prompts and settings.
    fn open(
        out: &Path,
        rows: &[(usize, Map<String, Value>)],
        made_by: &Value,
    ) -> Result<Self, JobError> {
        let mut name = out.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let at = |error: io::Error| JobError::from(error).context(part.display().to_string());
        let earlier = match fs::read(&part) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(at(error)),
        };
        // A run that was killed leaves half a line at most.
        let whole = earlier
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let mut found = 0;
        for line in earlier[..whole].split_inclusive(|byte| *byte == b'\n') {
            let row: Map<String, Value> = jsonl::parse(&part, found + 1, line)?;
            if !continues(&row, rows.get(found).map(|(_, row)| row), made_by) {
                let message = format!(
                    "{}, line {}: is of another prompt, model or setting than this run's",
                    part.display(),
                    found + 1
                );
                return Err(JobError::bad_input(message)
                    .hint("give the settings it was begun with, or delete it"));
            }
            found += 1;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(at)?;
        file.set_len(whole as u64).map_err(at)?;
        let mut file = BufWriter::new(file);
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(at)?;
        Ok(Self {
            part,
            file,
            found,
            next: found,
            waiting: BTreeMap::new(),
        })
    }

    fn add(
        &mut self,
        number: usize,
        completions: Vec<Completed>,
        rows: &[(usize, Map<String, Value>)],
        made_by: &Value,
    ) -> Result<(), JobError> {
        self.waiting.insert(number, completions);
        while let Some(completions) = self.waiting.remove(&self.next) {
            let mut row = rows[self.next].1.clone();
            row.insert(COMPLETIONS.to_owned(), json!(completions));
            row.insert(MADE_BY.to_owned(), made_by.clone());
            serde_json::to_writer(&mut self.file, &row)
                .map_err(io::Error::from)
                .and_then(|()| self.file.write_all(b"\n"))
                .map_err(|error| self.at(error))?;
            self.next += 1;
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), JobError> {
        self.file.flush().map_err(|error| self.at(error))
    }

    fn at(&self, error: io::Error) -> JobError {
        JobError::from(error).context(self.part.display().to_string())
    }

    /// Gives the whole file its name.
    fn finish(mut self, out: &Path) -> Result<(), JobError> {
        self.flush()?;
        let named = self.file.get_ref().sync_all();
        named
            .and_then(|()| fs::rename(&self.part, out))
            .map_err(|error| self.at(error))
    }
}

/// Whether a finished row is what this run would have made of its prompt.
fn continues(done: &Map<String, Value>, row: Option<&Map<String, Value>>, made_by: &Value) -> bool {
    let Some(row) = row else {
        return false;
    };
    done.get(MADE_BY) == Some(made_by)
        && done.len() == row.len() + 2
        && row.iter().all(|(key, value)| done.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_prompt_is_taken_as_it_is_and_an_instruction_as_in_training() {
        let prompt = |text: &str| prompt_of(&row(text));
        assert_eq!(prompt(r#"{"id":7,"prompt":"def f("}"#).unwrap(), "def f(");
        assert_eq!(
            prompt(r#"{"instruction":"Add.","input":"1 2"}"#).unwrap(),
            render_prompt("Add.", "1 2")
        );
        for (text, what) in [
            (r#"{"id":7}"#, "neither `prompt` nor `instruction`"),
            (r#"{"prompt":"a","instruction":"b"}"#, "beside"),
            (r#"{"prompt":7}"#, "`prompt` is no text"),
            (r#"{"prompt":"a","completions":[]}"#, "a key `completions`"),
        ] {
            let error = prompt(text).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn rows_are_written_in_order_and_a_later_run_goes_on_behind_the_whole_ones() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        let rows: Vec<_> = (0..3)
            .map(|number| (number + 1, row(&format!(r#"{{"prompt":"p{number}"}}"#))))
            .collect();
        let made_by = json!({"model": "m", "seed": 1});
        let text = |text: &str| {
            vec![Completed {
                text: text.to_owned(),
                program: text.to_owned(),
                num_tokens: 1,
                finished: true,
            }]
        };
        let mut first = Out::open(&out, &rows, &made_by).unwrap();
        first.add(1, text("b"), &rows, &made_by).unwrap();
        assert_eq!(first.next, 0);
        first.add(0, text("a"), &rows, &made_by).unwrap();
        assert_eq!(first.next, 2);
        drop(first);
        // Killed in the middle of a line.
        let part = folder.path().join("out.jsonl.part");
        let mut torn = fs::read(&part).unwrap();
        torn.extend_from_slice(b"{\"prompt\":\"p2\",\"comp");
        fs::write(&part, torn).unwrap();
        assert!(Out::open(&out, &rows, &json!({"model": "other", "seed": 1})).is_err());
        assert!(Out::open(&out, &rows[..1], &made_by).is_err());
        let mut second = Out::open(&out, &rows, &made_by).unwrap();
        assert_eq!(second.found, 2);
        second.add(2, text("c"), &rows, &made_by).unwrap();
        second.finish(&out).unwrap();
        assert!(!part.exists());
        let done: Vec<Map<String, Value>> = jsonl::read(&out).unwrap();
        let texts: Vec<&Value> = done
            .iter()
            .map(|row| &row[COMPLETIONS][0]["text"])
            .collect();
        assert_eq!(texts, ["a", "b", "c"]);
    }
}
