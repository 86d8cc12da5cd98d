//! The commands of `wmtp-vessl`.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::client::Client;
use crate::experiment::Experiment;
use crate::ledger::Ledger;
use crate::mistake::{Error, Mistake};
use crate::profile::{Prices, Profile};
use crate::render::{Planned, render};
use crate::rules::read_spec;
use crate::spec::yaml;
use crate::submit::{self, Course, Pace};
use crate::{argo, cloud, cost};

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        match error {
            Error::Recipe(error) => error.into(),
            error => Self::usage(error),
        }
    }
}

/// What every command but `check` reads.
#[derive(Debug, clap::Args)]
struct Inputs {
    /// What is compared: versions, seeds, data (YAML)
    #[arg(long, value_name = "FILE")]
    experiment: PathBuf,
    /// Cluster, presets, images, store, names of secrets (YAML)
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
}

/// A chain that is ready to be shown or submitted.
struct Ready {
    experiment: Experiment,
    profile: Profile,
    chain: Vec<Planned>,
}

impl Inputs {
    /// Reads everything.
    fn read(&self) -> Result<Ready, JobError> {
        let profile = Profile::read(&self.profile)?;
        let site = profile.site_arguments();
        let (experiment, steps) = Experiment::chain(&self.experiment, site.as_deref())?;
        let chain = render(&experiment, steps, &profile, &environment()).map_err(|mistakes| {
            Error::Mistakes {
                path: self.experiment.clone(),
                mistakes,
            }
        })?;
        Ok(Ready {
            experiment,
            profile,
            chain,
        })
    }
}

/// Variables of this machine, whose secrets no spec may hold.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Command line of `plan`.
#[derive(Debug, clap::Args)]
pub struct Plan {
    #[command(flatten)]
    inputs: Inputs,
    /// What an hour of each preset costs (YAML)
    #[arg(long, value_name = "FILE")]
    prices: PathBuf,
}

impl Tool for Plan {
    const ABOUT: &'static str =
        "Shows what would be submitted, in which order, and what it is expected to cost.";
    const EXAMPLES: &'static str = "wmtp-vessl plan --experiment vessl/experiments/verifiable.yaml --profile vessl/profile.yaml --prices vessl/prices.yaml";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let ready = self.inputs.read()?;
        let prices = Prices::read(&self.prices)?;
        let sums = cost::of_chain(&ready.chain, &ready.profile, Some(&prices), once);
        let today = cx.now().to_zoned(TimeZone::UTC).date();
        for line in table(&ready, &prices) {
            cx.print(line);
        }
        cx.print("");
        for line in cost::told(&sums, &prices, today) {
            cx.print(line);
        }
        for note in notes(&ready) {
            cx.print(format!("note           {note}"));
        }
        let steps: Vec<_> = ready
            .chain
            .iter()
            .map(|planned| json!({"id": planned.step.id, "after": planned.step.after, "spec": planned.spec}))
            .collect();
        cx.json_result(json!({
            "experiment": ready.experiment.name,
            "steps": steps,
            "cost": sums.total,
            "currency": prices.currency,
            "gpu_hours": sums.gpu_hours,
        }));
        ready.keep_budget(Some(&prices), once)
    }
}

impl Ready {
    /// Refuses a chain whose runs are expected to take more than its experiment grants.
    fn keep_budget(
        &self,
        prices: Option<&Prices>,
        runs: impl Fn(&Planned) -> usize,
    ) -> Result<(), JobError> {
        let sums = cost::of_chain(&self.chain, &self.profile, prices, runs);
        let over = cost::over(&self.experiment.budget, &sums, prices);
        over.map_or(Ok(()), |why| {
            let error = format!("experiment {} is not submitted: {why}", self.experiment.name);
            Err(JobError::refused(error).hint(
                "its file has `budget` and `hours`; `wmtp-vessl plan` shows what each run takes, and --prices names what an \
                 hour costs",
            ))
        })
    }
}

/// The runs of a step of a chain that begins.
fn once(_: &Planned) -> usize {
    1
}

fn table(ready: &Ready, prices: &Prices) -> Vec<String> {
    let mut lines = vec![format!(
        "experiment {}: {} runs on cluster {}",
        ready.experiment.name,
        ready.chain.len(),
        ready.profile.cluster
    )];
    for planned in &ready.chain {
        let step = &planned.step;
        let hours = step
            .hours
            .map_or("?".to_owned(), |hours| format!("{hours:.2}"));
        let price =
            cost::of_run(planned, prices).map_or("?".to_owned(), |price| format!("{price:.2}"));
        lines.push(String::new());
        lines.push(format!(
            "{}  on {}, {hours} h, {price} {}{}",
            step.id,
            planned.spec.resources.preset,
            prices.currency,
            after(&step.after)
        ));
        lines.push(format!("    {}", planned.spec.run[0].command));
        lines.push(format!("    {}", planned.spec.image.url()));
    }
    lines
}

fn after(steps: &[String]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    format!(", after {}", steps.join(", "))
}

/// What a reader of a plan should know before paying for it.
fn notes(ready: &Ready) -> Vec<String> {
    let mut notes = Vec::new();
    if ready.profile.site.is_none() {
        notes.push(format!(
            "the profile has no place for the site: build it here, with `build-site --store {} --leaderboard {}-{} \
             --out FOLDER`",
            ready.profile.store, ready.experiment.data, ready.experiment.name
        ));
    }
    if let Some(most) = ready.experiment.evaluation.at_once {
        notes.push(format!(
            "at most {most} evaluations at a time, beside the other runs"
        ));
    }
    let examples = ready.profile.example_digests();
    notes.extend(
        examples
            .first()
            .map(|mistake| format!("{mistake}; `submit` refuses it")),
    );
    notes
}

/// Command line of `render`.
#[derive(Debug, clap::Args)]
pub struct Render {
    #[command(flatten)]
    inputs: Inputs,
    /// For whom
    #[arg(long, value_enum, default_value_t = Form::Vessl)]
    form: Form,
    /// Folder for the files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Who runs the chain.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Form {
    /// VESSL: one run spec a step, numbered in the order of the chain
    Vessl,
    /// VESSL Cloud: the argument lists of `vesslctl`, as one JSON file
    Cloud,
    /// Argo Workflows: one WorkflowTemplate, with a ConfigMap where the experiment has evaluation.at_once
    Argo,
}

impl Tool for Render {
    const ABOUT: &'static str = "Writes what would be submitted to a folder.";
    const EXAMPLES: &'static str = "wmtp-vessl render --experiment vessl/experiments/verifiable.yaml --profile vessl/profile.yaml --out specs
        wmtp-vessl render --form argo --experiment vessl/experiments/verifiable.yaml --profile vessl/profile.yaml --out argo";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let mut written = Vec::new();
        for (name, text) in self.files()? {
            let path = self.out.join(name);
            if !cx.is_dry_run() {
                write(&path, &text)?;
            }
            cx.print(path.display().to_string());
            written.push(path);
        }
        cx.json_result(json!({"files": written}));
        Ok(())
    }
}

impl Render {
    /// Names and contents.
    fn files(&self) -> Result<Vec<(String, String)>, JobError> {
        let ready = self.inputs.read()?;
        let Ready {
            experiment,
            profile,
            chain,
        } = &ready;
        let missing = |mistakes| Error::Mistakes {
            path: self.inputs.profile.clone(),
            mistakes,
        };
        match self.form {
            Form::Vessl => chain.iter().enumerate().map(spec_file).collect(),
            Form::Cloud => {
                let calls = cloud::calls(experiment, chain, profile).map_err(missing)?;
                let text = serde_json::to_string_pretty(&calls).map_err(JobError::internal)?;
                Ok(vec![(format!("{}.json", experiment.name), text + "\n")])
            }
            Form::Argo => {
                let workflow = argo::workflow(experiment, chain, profile).map_err(missing)?;
                let text = yaml(&workflow).map_err(JobError::internal)?;
                let mut files = vec![(format!("{}.yaml", experiment.name), text)];
                if let Some(limits) = argo::limits(experiment) {
                    let text = yaml(&limits).map_err(JobError::internal)?;
                    files.push((format!("{}-limits.yaml", experiment.name), text));
                }
                Ok(files)
            }
        }
    }
}

fn spec_file((index, planned): (usize, &Planned)) -> Result<(String, String), JobError> {
    let text = planned.spec.to_yaml().map_err(JobError::internal)?;
    Ok((format!("{:02}-{}.yaml", index + 1, planned.step.id), text))
}

fn write(path: &Path, text: &str) -> Result<(), JobError> {
    path.parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(path, text))
        .map_err(|error| JobError::from(error).context(format!("writing {}", path.display())))
}

/// Command line of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Run specs (YAML)
    #[arg(value_name = "FILE", required = true)]
    specs: Vec<PathBuf>,
}

impl Tool for Check {
    const ABOUT: &'static str =
        "Checks run specs: what VESSL's client accepts and ignores is a mistake here.";
    const EXAMPLES: &'static str = "wmtp-vessl check specs/*.yaml";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let environment = environment();
        for path in &self.specs {
            let spec = read_spec(path, &environment)?;
            cx.print(format!("{}: {}", path.display(), spec.name));
        }
        cx.json_result(json!({"checked": self.specs}));
        Ok(())
    }
}

/// Command line of `submit`.
#[derive(Debug, clap::Args)]
pub struct Submit {
    #[command(flatten)]
    inputs: Inputs,
    /// What an hour of each preset costs (YAML); wanted where the experiment has budget.cost
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Where it is recorded what was submitted; the same file goes on from there [default: .wmtp/vessl/EXPERIMENT.json]
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// VESSL's client
    #[arg(long, value_name = "PROGRAM", default_value = "vessl")]
    client: PathBuf,
    /// Runs at a time; evaluations are not among them where the experiment has evaluation.at_once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// Seconds between two looks at the runs
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = secs)]
    every: Duration,
    /// Runs of one step, the first included; further ones only after exit codes 69, 75 and 143
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Seconds before the second run of a step, doubled with each further one
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = secs)]
    pause: Duration,
}

fn usize_from(number: NonZeroU16) -> usize {
    usize::from(number.get())
}

fn secs(text: &str) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(secs).map_err(|error| error.to_string())
}

impl Tool for Submit {
    const ABOUT: &'static str =
        "Submits a chain to VESSL, one run after another, and follows it to its end.";
    const EXAMPLES: &'static str = "wmtp-vessl submit --experiment vessl/experiments/verifiable.yaml --profile vessl/profile.yaml
        wmtp-vessl submit --experiment vessl/experiments/all.yaml --profile vessl/profile.yaml --at-once 4";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let ready = self.inputs.read()?;
        let prices = self.prices.as_deref().map(Prices::read).transpose()?;
        let examples: Vec<Mistake> = ready.profile.example_digests();
        if !examples.is_empty() {
            let path = self.inputs.profile.clone();
            return Err(Error::Mistakes {
                path,
                mistakes: examples,
            }
            .into());
        }
        if cx.is_dry_run() {
            ready.keep_budget(prices.as_ref(), once)?;
            for planned in &ready.chain {
                cx.print(format!(
                    "{}: {}",
                    planned.step.id, planned.spec.run[0].command
                ));
            }
            return Ok(());
        }
        let default = || PathBuf::from(format!(".wmtp/vessl/{}.json", ready.experiment.name));
        let ledger = Ledger::open(&self.ledger.clone().unwrap_or_else(default))?;
        let runs = submit::runs_in_all(&ready.chain, &ledger)?;
        ready.keep_budget(prices.as_ref(), |planned| runs[planned.step.id.as_str()])?;
        let pace = Pace {
            at_once: usize::from(self.at_once),
            evaluations: ready.experiment.evaluation.at_once.map(usize_from),
            every: self.every,
            tries: self.tries,
            pause: self.pause,
        };
        let stop = cx.stop_flag();
        let say = |message: String| cx.log(message);
        let client = Client::new(self.client.clone())?;
        let mut course = Course::new(&ready.chain, client, ledger, pace, &say)?;
        let done = course.walk(&stop);
        let report = course.report();
        drop(course);
        cx.json_result(report);
        done
    }
}
