//! An experiment as a chain of jobs: which runs there are, and which wait for which.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use wmtp_recipe::{Algo, DataSource, Origin, Recipe, Resolved, Sources};
use wmtp_records::bad_external_name;

use crate::mistake::{Error, Mistake, read};
use crate::rules::{EVALUATE_EXTERNAL, EVALUATE_INFER, bad_name, no_task};

/// What is compared: versions of recipes, over seeds, on one data set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// Name of the experiment; its leaderboard is called `DATA-NAME`.
    pub(crate) name: String,
    /// Name of the data set, and start of the names of everything that is made from it.
    pub(crate) data: String,
    /// Name of the raw data in the store; left out where the recipe makes its own.
    #[serde(default)]
    pub(crate) raw: Option<String>,
    /// The model that is trained.
    pub(crate) policy: BaseModel,
    /// The model that Rho-1 compares with.
    #[serde(default)]
    pub(crate) reference: Option<BaseModel>,
    /// Name of the model in the store that the value model starts from; left out, it starts from the policy's.
    #[serde(default)]
    pub(crate) value: Option<String>,
    /// Models from outside, for comparison: names of raw data in the store, each a folder with `samples.jsonl`.
    #[serde(default)]
    pub(crate) external: Vec<String>,
    /// Recipes, the first version first; paths from this file.
    pub(crate) recipes: Vec<PathBuf>,
    /// Seeds of training.
    pub(crate) seeds: Vec<u64>,
    /// How the models are evaluated that are computed here.
    #[serde(default)]
    pub(crate) evaluation: Evaluation,
    /// Hours that a run of each job, of `evaluate-external` or of `evaluate-infer` is expected to take: what the plan's cost is made of.
    #[serde(default)]
    pub(crate) hours: BTreeMap<String, f64>,
    /// What the chain may take; a chain that is expected to take more is not submitted.
    #[serde(default)]
    pub(crate) budget: Budget,
}

/// Most of what all runs of a chain together are expected to take, each run once.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    /// Hours of GPUs.
    #[serde(default)]
    pub(crate) gpu_hours: Option<f64>,
    /// Money.
    #[serde(default)]
    pub(crate) cost: Option<Money>,
}

/// An amount of a currency.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Money {
    /// How much.
    pub(crate) amount: f64,
    /// As the price file calls it.
    pub(crate) currency: String,
}

/// How an evaluation is spread over runs.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evaluation {
    /// Runs that generate for a part of the problems each, before one executes and scores all; left out, one run does both.
    #[serde(default)]
    pub(crate) shards: Option<NonZeroU16>,
    /// Such runs under way at a time, beside all others; left out, they count among the others.
    #[serde(default)]
    pub(crate) at_once: Option<NonZeroU16>,
}

/// A model to begin with.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum BaseModel {
    /// Created by `sync-storage create`, with the tokenizer of the data set.
    Create(String),
    /// In the store under this name. The data set is made with its tokenizer, which all models share.
    Stored(String),
}

impl BaseModel {
    fn stored(&self) -> Option<&str> {
        match self {
            Self::Create(_) => None,
            Self::Stored(name) => Some(name),
        }
    }
}

/// One run of a job.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Name within the chain.
    pub(crate) id: String,
    /// What its machine and its hours are stated for: the job, `evaluate-external` or `evaluate-infer`.
    pub(crate) task: &'static str,
    /// Its command line, without the program.
    pub(crate) arguments: Vec<String>,
    /// Settings that differ from the defaults, as `WMTP_CONFIG` holds them.
    pub(crate) config: Value,
    /// Words to find the run by.
    pub(crate) tags: Vec<String>,
    /// Steps whose results it reads.
    pub(crate) after: Vec<String>,
    /// Expected hours.
    pub(crate) hours: Option<f64>,
    /// Micro-batches of a full optimizer step of a training, which several GPUs share.
    pub(crate) micro_batches: Option<usize>,
}

impl Step {
    /// The job.
    pub(crate) fn job(&self) -> &'static str {
        match self.task {
            EVALUATE_EXTERNAL | EVALUATE_INFER => "evaluate",
            job => job,
        }
    }

    /// Whether [`Evaluation::at_once`] counts it.
    pub(crate) fn is_evaluation(&self) -> bool {
        ["evaluate", EVALUATE_INFER].contains(&self.task)
    }
}

/// A version: its recipe and the settings that a run is given.
struct Version {
    recipe: Recipe,
    config: Value,
}

impl Experiment {
    /// Reads an experiment and makes its chain; what build-site is told of its place adds the run that builds the site.
    ///
    /// # Errors
    /// Every field that cannot be used, named; a recipe that breaks its schema.
    pub(crate) fn chain(path: &Path, site: Option<&str>) -> Result<(Self, Vec<Step>), Error> {
        let experiment: Self = read(path, Self::mistakes)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let versions = experiment
            .recipes
            .iter()
            .map(|recipe| version(&folder.join(recipe)))
            .collect::<Result<Vec<_>, Error>>()?;
        let mistakes = experiment.mistakes_with(&versions);
        if !mistakes.is_empty() {
            return Err(Error::Mistakes {
                path: path.to_owned(),
                mistakes,
            });
        }
        let mut chain = Chain {
            experiment: &experiment,
            versions: &versions,
            steps: Vec::new(),
        };
        chain.build(site);
        let steps = chain.steps;
        Ok((experiment, steps))
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut name = |field: &str, text: &str| {
            found.extend(bad_name(text).map(|message| Mistake::new(field, message)));
        };
        name("name", &self.name);
        name("data", &self.data);
        for (field, given) in [("raw", &self.raw), ("value", &self.value)] {
            if let Some(given) = given {
                name(field, given);
            }
        }
        for (field, model) in [
            ("policy", Some(&self.policy)),
            ("reference", self.reference.as_ref()),
        ] {
            match model {
                Some(BaseModel::Create(model)) => name(&format!("{field}.create"), model),
                Some(BaseModel::Stored(model)) => name(&format!("{field}.stored"), model),
                None => {}
            }
        }
        for (index, model) in self.external.iter().enumerate() {
            let field = format!("external[{index}]");
            if self.external[..index].contains(model) {
                found.push(Mistake::new(field, format!("is {model:?} again")));
            } else if let Some(what) = bad_external_name(model) {
                found.push(Mistake::new(field, format!("found {model:?}: {what}")));
            }
        }
        if self.recipes.is_empty() {
            found.push(Mistake::new("recipes", "expected at least one recipe"));
        }
        let distinct: BTreeSet<u64> = self.seeds.iter().copied().collect();
        if self.seeds.is_empty() || distinct.len() != self.seeds.len() {
            let message = format!(
                "found {:?}, expected at least one seed, each once",
                self.seeds
            );
            found.push(Mistake::new("seeds", message));
        }
        for (job, hours) in &self.hours {
            if let Some(message) = no_task(job) {
                found.push(Mistake::new(format!("hours.{job}"), message));
            } else if !hours.is_finite() || *hours < 0.0 {
                let message = format!("found {hours}, expected hours of at least 0");
                found.push(Mistake::new(format!("hours.{job}"), message));
            }
        }
        let cost = self.budget.cost.as_ref().map(|money| money.amount);
        for (field, most) in [
            ("budget.gpu_hours", self.budget.gpu_hours),
            ("budget.cost.amount", cost),
        ] {
            if let Some(most) = most.filter(|most| !most.is_finite() || *most < 0.0) {
                let message = format!("found {most}, expected a number of at least 0");
                found.push(Mistake::new(field, message));
            }
        }
        found
    }

    /// Mistakes that show only beside the recipes.
    fn mistakes_with(&self, versions: &[Version]) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut ids = BTreeSet::new();
        for (index, version) in versions.iter().enumerate() {
            let id = &version.recipe.version.id;
            let field = format!("recipes[{index}]");
            if let Some(message) = bad_name(id) {
                found.push(Mistake::new(field, format!("version.id: {message}")));
            } else if !ids.insert(id) {
                let message = format!("is version {id:?}, as an earlier recipe is");
                found.push(Mistake::new(field, message));
            }
        }
        let makes_its_own = versions
            .iter()
            .all(|version| version.recipe.data.source == DataSource::Micropy);
        if self.raw.is_none() && !makes_its_own {
            let message =
                "is missing: the recipes read raw data; push it with `sync-storage push` first";
            found.push(Mistake::new("raw", message));
        }
        if self.raw.is_some() && makes_its_own {
            found.push(Mistake::new(
                "raw",
                "is given, and the recipes make their own data",
            ));
        }
        let needs_reference = versions
            .iter()
            .any(|version| version.recipe.experiment.algo.needs_reference());
        if needs_reference && self.reference.is_none() {
            found.push(Mistake::new(
                "reference",
                "is missing: a recipe with algo rho1 compares with one",
            ));
        }
        found
    }
}

fn version(path: &Path) -> Result<Version, Error> {
    let sources = Sources {
        recipe: Some(path.display().to_string()),
        ..Sources::default()
    };
    let resolved = sources.resolve()?;
    let config = config(&resolved);
    Ok(Version {
        recipe: resolved.recipe,
        config,
    })
}

/// The settings that the recipe and those that it extends change. Defaults are the image's, which its digest fixes.
fn config(resolved: &Resolved) -> Value {
    let tree = resolved.recipe.to_json();
    let mut config = Map::new();
    for (key, origin) in &resolved.origins {
        if *origin == Origin::Default {
            continue;
        }
        let value = tree
            .pointer(&format!("/{}", key.replace('.', "/")))
            .cloned();
        let (value, mut section) = (value.unwrap_or_default(), &mut config);
        let (path, leaf) = key.rsplit_once('.').unwrap_or(("", key));
        for name in path.split('.').filter(|name| !name.is_empty()) {
            let inner = section
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
            section = inner
                .as_object_mut()
                .expect("a key is a section or a setting");
        }
        section.insert(leaf.to_owned(), value);
    }
    Value::Object(config)
}

/// Micro-batches of a full optimizer step, where the task trains.
fn micro_batches(task: &str, command: &str, recipe: &Recipe) -> Option<usize> {
    let sequences = match task {
        "train-stage2" => recipe.optim.batch_sequences,
        "train-stage1" if command.contains("--objective value") => recipe.stage1.batch_sequences,
        "train-stage1" => recipe.reference.batch_sequences,
        _ => return None,
    };
    Some(sequences.div_ceil(recipe.optim.micro_batch_sequences.max(1)))
}

struct Chain<'a> {
    experiment: &'a Experiment,
    versions: &'a [Version],
    steps: Vec<Step>,
}

impl<'a> Chain<'a> {
    fn build(&mut self, site: Option<&str>) {
        let data = &self.experiment.data;
        let given = |flag: &str, name: Option<&str>| {
            name.map_or_else(String::new, |name| format!("{flag} {name} "))
        };
        let raw = given("--raw", self.experiment.raw.as_deref());
        let tokenizer = given("--tokenizer", self.tokenizer());
        let first = &self.versions[0];
        self.step(
            "data-set",
            "prepare-data",
            first,
            &format!("{raw}{tokenizer}--name {data}"),
            &[],
        );
        let policy = self.base("policy", &self.experiment.policy, "mtp");
        if self.any(Algo::needs_advantages) {
            let value = self.experiment.value.as_deref().map(Base::stored);
            let base = value.as_ref().unwrap_or(&policy);
            let command = format!(
                "--objective value --data {data} --base {} --name {data}",
                base.name
            );
            self.step("value-model", "train-stage1", first, &command, &base.after);
        }
        let mut beside = Beside::default();
        if let Some(model) = self.reference() {
            let model = self.base("reference-model", model, "ref");
            let command = format!(
                "--objective reference --data {data} --base {} --name {data}",
                model.name
            );
            self.step("reference", "train-stage1", first, &command, &model.after);
            beside = Beside {
                arguments: format!(" --reference-ce {data}"),
                after: vec!["reference".to_owned()],
            };
        }
        let model = format!("--data {data} --base {}", policy.name);
        self.evaluate("base", first, &model, &policy.after, &beside);
        self.external();
        self.versions(&policy, &beside);
        self.ending(site);
    }

    fn any(&self, needs: fn(Algo) -> bool) -> bool {
        self.versions
            .iter()
            .any(|version| needs(version.recipe.experiment.algo))
    }

    /// The reference, where a version compares with one.
    fn reference(&self) -> Option<&'a BaseModel> {
        let reference = self.experiment.reference.as_ref();
        reference.filter(|_| self.any(Algo::needs_reference))
    }

    /// The stored model whose tokenizer the data set is made with; what is created gets the tokenizer of the data set.
    fn tokenizer(&self) -> Option<&'a str> {
        let policy = self.experiment.policy.stored();
        policy.or_else(|| self.reference()?.stored())
    }

    /// A model to begin with, and the step that makes it.
    fn base(&mut self, id: &str, model: &BaseModel, suffix: &str) -> Base {
        let data = &self.experiment.data;
        match model {
            BaseModel::Stored(name) => Base::stored(name),
            BaseModel::Create(model) => {
                let name = format!("{data}-{suffix}");
                let command = format!("create --model {model} --data {data} --name {name}");
                let after = ["data-set".to_owned()];
                self.step(id, "sync-storage", &self.versions[0], &command, &after);
                Base {
                    name,
                    after: vec![id.to_owned()],
                }
            }
        }
    }

    /// Evaluates a model, by one run or by one for each shard and one that puts them together.
    fn evaluate(
        &mut self,
        name: &str,
        version: &Version,
        model: &str,
        after: &[String],
        beside: &Beside,
    ) {
        let data = &self.experiment.data;
        let mut after = after.to_vec();
        let mut merged = String::new();
        let shards = self.experiment.evaluation.shards.map_or(1, NonZeroU16::get);
        if shards > 1 {
            let parts: Vec<String> = (1..=shards)
                .map(|number| format!("{name}-{number}-of-{shards}"))
                .collect();
            for (number, part) in (1..).zip(&parts) {
                let command =
                    format!("infer {model} --shard {number}/{shards} --name {data}-{part}");
                let id = format!("evaluate-{part}");
                self.step(&id, EVALUATE_INFER, version, &command, &after);
            }
            after.extend(parts.iter().map(|part| format!("evaluate-{part}")));
            let names = parts.iter().map(|part| format!(" {data}-{part}"));
            merged = format!(" --merge{}", names.collect::<String>());
        }
        after.extend_from_slice(&beside.after);
        let beside = &beside.arguments;
        let command = format!("{model}{beside}{merged} --name {data}-{name}");
        let id = format!("evaluate-{name}");
        self.step(&id, "evaluate", version, &command, &after);
    }

    /// Judges the models from outside.
    fn external(&mut self) {
        let data = &self.experiment.data;
        for model in &self.experiment.external {
            let id = format!("evaluate-external-{model}");
            let command =
                format!("external --data {data} --stored {model} --name {data}-external-{model}");
            let after = ["data-set".to_owned()];
            self.step(&id, EVALUATE_EXTERNAL, &self.versions[0], &command, &after);
        }
    }

    /// Trains and evaluates every version with every seed.
    fn versions(&mut self, policy: &Base, beside: &Beside) {
        let data = &self.experiment.data;
        for seed in &self.experiment.seeds {
            for version in self.versions {
                let algo = version.recipe.experiment.algo;
                let run = format!("{}-s{seed}", version.recipe.version.id);
                let mut after = policy.after.clone();
                let mut weights = String::new();
                if algo.needs_advantages() {
                    after.push("value-model".to_owned());
                    weights = format!(" --advantages {data}");
                } else if algo.needs_reference() {
                    after.push("reference".to_owned());
                    weights = format!(" --reference-ce {data}");
                }
                let base = &policy.name;
                let command = format!(
                    "--set seed={seed} --data {data} --base {base}{weights} --name {data}-{run}"
                );
                let train = format!("train-{run}");
                self.step(&train, "train-stage2", version, &command, &after);
                let model = format!("--set seed={seed} --data {data} --checkpoint {data}-{run}");
                self.evaluate(&run, version, &model, &[train], beside);
            }
        }
    }

    /// Leaderboard and site.
    fn ending(&mut self, site: Option<&str>) {
        let Experiment { name, data, .. } = self.experiment;
        let first = &self.versions[0];
        let evaluations: Vec<String> = self
            .steps
            .iter()
            .filter(|step| step.job() == "evaluate" && step.task != EVALUATE_INFER)
            .map(|step| step.id.clone())
            .collect();
        let scores: Vec<String> = evaluations
            .iter()
            .map(|id| id.replacen("evaluate", data, 1))
            .collect();
        let command = format!("--scores {} --name {data}-{name}", scores.join(","));
        self.step(
            "leaderboard",
            "build-leaderboard",
            first,
            &command,
            &evaluations,
        );
        if let Some(arguments) = site {
            let command = format!("--leaderboard {data}-{name} {arguments}");
            self.step(
                "site",
                "build-site",
                first,
                &command,
                &["leaderboard".to_owned()],
            );
        }
    }

    fn step(
        &mut self,
        id: &str,
        task: &'static str,
        version: &Version,
        command: &str,
        after: &[String],
    ) {
        let recipe = &version.recipe;
        let mut tags = vec![
            "wmtp".to_owned(),
            self.experiment.name.clone(),
            task.to_owned(),
        ];
        let is_version = ["train-stage2", "evaluate", EVALUATE_INFER].contains(&task);
        if is_version && !id.starts_with("evaluate-base") {
            tags.push(recipe.version.id.clone());
            let algo = recipe.experiment.algo.as_str();
            if algo != self.experiment.name {
                tags.push(algo.to_owned());
            }
        }
        self.steps.push(Step {
            id: id.to_owned(),
            task,
            arguments: command.split(' ').map(str::to_owned).collect(),
            config: version.config.clone(),
            tags,
            after: after.to_vec(),
            hours: self.experiment.hours.get(task).copied(),
            micro_batches: micro_batches(task, command, recipe),
        });
    }
}

/// What evaluation sets a model's losses beside: the tuned reference, where there is one.
#[derive(Default)]
struct Beside {
    arguments: String,
    after: Vec<String>,
}

struct Base {
    name: String,
    after: Vec<String>,
}

impl Base {
    /// One that was there before: what reads it waits for the data set alone.
    fn stored(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            after: vec!["data-set".to_owned()],
        }
    }
}
