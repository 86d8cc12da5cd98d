//! `evaluate external`: programs of a model that was not trained here, judged as those of the versions are.
//!
//! The model is a folder: `samples.jsonl` with its programs, or `infer`, a program that is given the problems and writes
//! them. Its name is the folder's. A machine that has no such folder reads the samples from the store, where the folder was
//! pushed under the model's name. How it sampled is its own matter; data set, number of samples, limits and grader are not.

mod answers;
mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use wmtp_artifacts::{ArtifactId, Digest};
use wmtp_decoding::Tally;
use wmtp_execution::SandboxConsent;
use wmtp_job_kit::{Job, JobError, Kind, Output, Plan, PlanCx, Run};
use wmtp_recipe::Evaluation;
use wmtp_records::{EXTERNAL, Problem, bad_external_name, data_files, jsonl, score_files};

use crate::contamination::Flags;
use crate::execute::{execute, start_grader};
use crate::external::answers::{Answers, Asked};
use crate::external::program::Asking;
use crate::inputs::{self, DATA};
use crate::looks::Look;
use crate::report::{Case, Identity, Report, protocol};
use crate::subject::ROLE;
use crate::{matches, score};

/// Role of the output.
const SCORES: &str = "scores";
/// Files of programs, the first that is there.
const SAMPLES: [&str; 2] = ["samples.jsonl", "samples.jsonl.gz"];
/// The program that makes them.
const INFER: &str = "infer";
/// What of the protocol holds for a model that samples by itself: how often, on what, and how it is judged.
const JUDGING: [&str; 5] = [
    "num_samples",
    "num_problems",
    "cpu_secs",
    "wall_secs",
    "memory_mib",
];

/// Judges programs of a model that was not trained here.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("model").required(true)))]
pub struct External {
    /// Folder of the model, which is called like it. `samples.jsonl` in it (or `.gz`) holds rows with `task_id` and
    /// `completion` or, for a whole program, `solution`, as many of each task as the recipe draws. Without it `infer` is run,
    /// a program that reads the problems as JSON lines on stdin and writes such rows to stdout
    #[arg(long, value_name = "DIR", group = "model")]
    folder: Option<PathBuf>,
    /// Name of the model in the store, in place of a folder: what `sync-storage push --kind raw-data` made of it. Only its
    /// `samples.jsonl` (or `.gz`) is read; no program of it is run
    #[arg(long, value_name = "NAME", group = "model")]
    stored: Option<String>,
    /// Processed data set: artifact id or name
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Seconds that `infer` may take
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    infer_secs: u64,
    #[command(flatten)]
    consent: SandboxConsent,
}

/// What the plan hands to the run.
#[derive(Debug)]
pub struct Work {
    who: Identity,
    evaluation: Evaluation,
    data_id: String,
    accept_degraded: bool,
    source: Source,
    infer_secs: u64,
    look: Option<Look>,
}

/// Where the model is.
enum Place<'a> {
    Folder(&'a Path),
    /// Raw data of this name in the store.
    Stored(&'a str),
}

/// Where the programs come from.
#[derive(Debug)]
enum Source {
    /// They are there.
    Samples(Answers),
    /// A program makes them; with the digest of its folder.
    Infer(PathBuf, Digest),
}

impl Job for External {
    type Work = Work;
    const NAME: &'static str = "evaluate-external";
    const ABOUT: &'static str = "Executes and scores programs of a model that was not trained here, on the problems and by the grader of the versions.";
    const EXAMPLES: &'static str = "\
  evaluate external --recipe v001.yaml --store s3://wmtp/demo --data micropy --folder external/big-model --name big-model
  evaluate external --recipe v001.yaml --store s3://wmtp/demo --data micropy --folder external/big-model --infer-secs 600 --dry-run
  evaluate external --recipe v001.yaml --store s3://wmtp/demo --data micropy --stored big-model --name big-model
  build-leaderboard --store s3://wmtp/demo --scores base,v001-s42,v002-s42,big-model --name micropy";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let place = self.place()?;
        let name = place.model_name()?;
        let data = cx.input(DATA, Kind::ProcessedData, &self.data)?;
        let data_dir = cx.fetch(&data.id)?;
        let evaluation = cx.recipe()?.evaluation.clone();
        let (file, source) = place.find(cx, &data_dir, &evaluation)?;
        let recipe = cx.recipe()?;
        let accept_degraded = self.consent.holds_for(&evaluation);
        let who = Identity {
            version_id: name,
            algo: EXTERNAL.to_owned(),
            parent: None,
            change: None,
            seed: None,
            dataset: recipe.experiment.dataset.clone(),
            shared_digest: recipe.shared_digest().to_string(),
            checkpoint: None,
        };
        let plan = Plan::new(())
            .options(recipe.section_options(&["evaluation", "seed"]))
            .option("shared", who.shared_digest.as_str())
            .option("sandbox", SandboxConsent::tier(accept_degraded))
            .option("model", who.version_id.as_str())
            .option("programs", source.digest().to_string())
            .output(SCORES, Kind::Scores)
            .note(format!(
                "{} on the {} split, {} samples a problem, {} {}",
                who.version_id,
                evaluation.split,
                evaluation.num_samples,
                match &source {
                    Source::Samples(_) => "from",
                    Source::Infer(..) => "asked of",
                },
                file.display()
            ));
        let (by, version) = (who.version_id.clone(), (Self::NAME, Self::VERSION));
        let look = Look::planned(recipe, &data, by, version, &cx.inputs(), &plan.options)?;
        let plan = match &look {
            Some(look) => plan.note(look.note(cx)?),
            None => plan,
        };
        Ok(plan.with_work(Work {
            who,
            evaluation,
            data_id: data.id.to_string(),
            accept_degraded,
            source,
            infer_secs: self.infer_secs,
            look,
        }))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let problems = inputs::read_problems(&run.input(DATA)?, &work.evaluation)?;
        // Before anything is asked: what the sandbox cannot hold must not be found out afterwards.
        let grader = start_grader(&work.evaluation, work.accept_degraded)?;
        let touch = work.look.as_ref().map(|look| look.register(run));
        let touch = touch.transpose()?;
        let answers = match &work.source {
            Source::Samples(answers) => answers.clone(),
            Source::Infer(program, before) => work.ask(program, *before, &problems, run)?,
        };
        if answers.num_left_out > 0 {
            run.log(format!(
                "{} samples are of tasks beyond evaluation.max_problems and left out",
                answers.num_left_out
            ));
        }
        let latency_ms = answers.latency_ms();
        // What it was trained on is not known, so no problem can be flagged.
        let flags = Flags::new();
        let samples = execute(&problems, answers.completions, &flags, &grader, run)?;
        let report = Report {
            counts: score::count(&problems, &samples, &flags),
            touch,
            tally: Tally::default(),
            heads: Vec::new(),
            matches: matches::of(&problems, &samples, &grader, run)?,
            latency: None,
            latency_ms,
            samples,
            sandbox: grader.sandbox().to_map(),
            problems,
        };
        let case = Case {
            who: &work.who,
            evaluation: &work.evaluation,
            protocol: judging(&work.evaluation, report.problems.len()),
            data: &work.data_id,
            reference: None,
            trained_on: None,
        };
        let dir = run.output_dir(SCORES)?;
        report.write(&dir, &case, run)?;
        report.tell(run);
        jsonl::write_json(&dir.join(score_files::USAGE), &run.usage())?;
        Ok(vec![report.output(SCORES, dir, &case)])
    }
}

impl External {
    fn place(&self) -> Result<Place<'_>, JobError> {
        match (&self.folder, &self.stored) {
            (Some(folder), _) => Ok(Place::Folder(folder)),
            (None, Some(name)) => Ok(Place::Stored(name)),
            (None, None) => Err(JobError::usage("give --folder or --stored")),
        }
    }
}

impl Place<'_> {
    /// The name of the model: that of its folder, or the one that it has in the store.
    fn model_name(&self) -> Result<String, JobError> {
        match self {
            Self::Folder(folder) => folder_name(folder),
            Self::Stored(name) => stored_name(name),
        }
    }

    /// Its programs, or what makes them; and the file that was found.
    fn find(
        &self,
        cx: &mut PlanCx<'_>,
        data: &Path,
        evaluation: &Evaluation,
    ) -> Result<(PathBuf, Source), JobError> {
        let name = match self {
            Self::Folder(folder) => return find(folder, data, evaluation),
            Self::Stored(name) => name,
        };
        let model = cx.input(ROLE, Kind::RawData, name)?;
        let folder = cx.fetch(&model.id)?;
        let (path, answers) = samples(&folder, data, evaluation)?.ok_or_else(|| {
            let what = format!("{name} in the store ({}) holds no {}", model.id, SAMPLES[0]);
            JobError::bad_input(what).hint(
                "programs of a model are not run from the store: ask it where it runs, and push a folder with what it wrote",
            )
        })?;
        Ok((path, Source::Samples(answers)))
    }
}

impl Work {
    /// Asks the model's program, or takes what it told an attempt that was stopped later.
    fn ask(
        &self,
        program: &Path,
        before: Digest,
        problems: &[Problem],
        run: &Run,
    ) -> Result<Answers, JobError> {
        let evaluation = &self.evaluation;
        // What `infer` is asked, it is asked of these problems alone.
        let asked = Asked::of(problems, Vec::new(), evaluation);
        let kept = run.kept_dir()?;
        let told = kept.join("told.jsonl");
        if told.is_file() {
            run.log("an earlier attempt has asked the model; going on with what it told");
            return asked.read(&told);
        }
        // In the folder of this attempt: the program of an attempt that was killed may still be writing in that one's.
        let questions = run.scratch().join("questions.jsonl");
        let rows: Vec<Value> = problems
            .iter()
            .map(|problem| question(problem, evaluation, run.recipe().seed))
            .collect();
        jsonl::write(&questions, &rows)?;
        let answers = run.scratch().join("told.jsonl");
        let asking = Asking {
            program,
            questions: &questions,
            answers: &answers,
            limit: Duration::from_secs(self.infer_secs),
        };
        let progress = run.progress("infer", "problems", problems.len() as u64);
        asking.wait(&|| run.elapsed(), &|| run.should_stop())?;
        progress.finish();
        // Where it can be looked at when it is no answer.
        let part = kept.join("told.jsonl.part");
        std::fs::rename(&answers, &part)?;
        let answers = asked
            .read(&part)
            .map_err(|error| error.context(format!("what {} wrote", program.display())))?;
        std::fs::rename(&part, &told)?;
        if digest_of(program.parent().unwrap_or(program))? != before {
            run.warning(format!(
                "{} changed its own folder, so the next start takes it for another model and asks it again; let it write elsewhere",
                program.display()
            ));
        }
        Ok(answers)
    }
}

impl Source {
    /// What decides the programs.
    fn digest(&self) -> Digest {
        match self {
            Self::Samples(answers) => answers.digest(),
            Self::Infer(_, digest) => *digest,
        }
    }
}

/// The name of a model that is a folder.
fn folder_name(folder: &Path) -> Result<String, JobError> {
    let path = std::path::absolute(folder)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default().to_owned();
    match bad_external_name(&name) {
        None => Ok(name),
        Some(what) => Err(JobError::usage(format!("{}: {what}", folder.display()))
            .hint("a model from outside is called like its folder; give the folder another name")),
    }
}

/// The name of a model that is in the store.
fn stored_name(name: &str) -> Result<String, JobError> {
    if name.parse::<ArtifactId>().is_ok() {
        return Err(JobError::usage(format!("--stored {name} is an id"))
            .hint("a model from outside is called like its name in the store; give that, or give it one with `wmtp-store name`"));
    }
    match bad_external_name(name) {
        None => Ok(name.to_owned()),
        Some(what) => Err(JobError::usage(format!("--stored {name}: {what}")).hint(
            "a model from outside is called like its name in the store; push it under another",
        )),
    }
}

/// Samples of a folder, where it has them, read and held against the problems.
fn samples(
    folder: &Path,
    data: &Path,
    evaluation: &Evaluation,
) -> Result<Option<(PathBuf, Answers)>, JobError> {
    let files = SAMPLES.map(|name| folder.join(name));
    let Some(path) = files.into_iter().find(|path| path.exists()) else {
        return Ok(None);
    };
    let problems = inputs::read_problems(data, evaluation)?;
    let others: Vec<Problem> = jsonl::read(&data.join(data_files::problems(evaluation.split)))?;
    let beyond = others.into_iter().skip(problems.len());
    let beyond = beyond.map(|problem| problem.problem_id).collect();
    let answers = Asked::of(&problems, beyond, evaluation).read(&path)?;
    Ok(Some((path, answers)))
}

/// Samples of a folder, or else its program, which is only looked at.
fn find(
    folder: &Path,
    data: &Path,
    evaluation: &Evaluation,
) -> Result<(PathBuf, Source), JobError> {
    if !folder.is_dir() {
        let what = format!("{} is no folder", folder.display());
        return Err(JobError::bad_input(what).hint("a model from outside is a folder of its name"));
    }
    if let Some((path, answers)) = samples(folder, data, evaluation)? {
        return Ok((path, Source::Samples(answers)));
    }
    let path = std::path::absolute(folder.join(INFER))?;
    if !path.is_file() {
        let what = format!(
            "{} holds neither {} nor a program {INFER}",
            folder.display(),
            SAMPLES[0]
        );
        return Err(JobError::bad_input(what)
            .hint("the README says what they look like, under \"Models from outside\""));
    }
    program::require_executable(&path)?;
    let digest = digest_of(folder)?;
    Ok((path.clone(), Source::Infer(path, digest)))
}

/// Digest of a folder's files by their paths. Hidden files and Python's compiled ones, which a run may leave, are none of them.
fn digest_of(folder: &Path) -> Result<Digest, JobError> {
    let told = |path: &Path, error: std::io::Error| {
        JobError::from(error).context(path.display().to_string())
    };
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = std::fs::read_dir(&dir).map_err(|error| told(&dir, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| told(&dir, error))?;
            let (path, name) = (entry.path(), entry.file_name());
            if name.as_encoded_bytes().starts_with(b".") || name == "__pycache__" {
                continue;
            }
            let kind = entry.file_type().map_err(|error| told(&path, error))?;
            if kind.is_dir() {
                open.push(path);
                continue;
            }
            // A link to a folder stands for itself: it may lead round in a circle.
            let digest = if path.is_dir() {
                format!("{:?}", std::fs::read_link(&path).ok())
            } else {
                Digest::of_file(&path)?.to_string()
            };
            files.insert(
                path.strip_prefix(folder).unwrap_or(&path).to_owned(),
                digest,
            );
        }
    }
    Ok(Digest::of(format!("{files:?}").as_bytes()))
}

/// What `infer` is given of one problem, with the settings that the versions are sampled by.
fn question(problem: &Problem, evaluation: &Evaluation, seed: u64) -> Value {
    json!({
        "task_id": problem.problem_id,
        "prompt": problem.prompt,
        "instruction": problem.instruction,
        "input": problem.input,
        "num_samples": evaluation.num_samples,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "max_new_tokens": evaluation.max_new_tokens,
        "seed": seed,
    })
}

/// The part of the protocol that holds for a model from outside.
fn judging(evaluation: &Evaluation, num_problems: usize) -> BTreeMap<String, String> {
    let mut protocol = protocol(evaluation, num_problems);
    protocol.retain(|key, _| JUDGING.contains(&key.as_str()));
    protocol
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;

    use super::*;

    #[test]
    fn a_model_is_called_like_its_folder_and_never_like_a_version() {
        let name = |folder: &str| folder_name(Path::new(folder));
        assert_eq!(name("external/big-model_7b.1/").unwrap(), "big-model_7b.1");
        assert_eq!(name("external/v2-chat").unwrap(), "v2-chat");
        for folder in [
            "external/v001",
            "external/base",
            "external/a b",
            "external/.x",
            "/",
        ] {
            let error = name(folder).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage, "{folder}");
        }
        assert_eq!(stored_name("big-model").unwrap(), "big-model");
        let id = format!("raw-data-{}", "7d".repeat(20));
        for stored in ["v001", "base", "a/b", "", id.as_str()] {
            let error = stored_name(stored).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage, "{stored}");
        }
    }

    #[test]
    fn a_folder_is_another_model_when_a_file_of_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            digest_of(folder.path()).unwrap()
        };
        write("infer", "#!/bin/sh\n");
        let first = write("weights/a.bin", "1");
        assert_eq!(write("__pycache__/x.pyc", "compiled"), first);
        assert_eq!(write(".cache/x", "hidden"), first);
        assert_ne!(write("weights/a.bin", "2"), first);
        assert_eq!(write("weights/a.bin", "1"), first);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("round")).unwrap();
        assert_ne!(digest_of(folder.path()).unwrap(), first);
    }

    #[test]
    fn a_model_from_outside_states_how_it_is_judged_and_not_how_it_samples() {
        let stated: Vec<String> = judging(&Evaluation::default(), 7).into_keys().collect();
        let mut expected = JUDGING;
        expected.sort_unstable();
        assert_eq!(stated, expected);
    }
}
