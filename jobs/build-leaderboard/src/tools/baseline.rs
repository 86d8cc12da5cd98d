//! `audit-baseline`: looks the first recipe over once, changes what contradicts the rules, and says what it found.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wmtp_artifacts::Kind;
use wmtp_job_kit::{JobError, Manifest, StoreHandle, Tool, ToolCx, check_tokenizers};
use wmtp_recipe::{Algo, INSTRUCTION_FILE, RULES_FILE, Recipe, Rules, leaves};
use wmtp_stats::leaderboard::PRIMARY_METRIC;

use crate::actions::scalar;
use crate::loop_folder::{LoopFolder, read_if_any, rules_in, write_whole};
use crate::text::{inert, list};

/// The first version of a loop.
const FIRST: &str = "v001";
/// What is decided once for a loop.
const IDENTITY: &str = "loop.json";

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct AuditBaseline {
    /// Folder of the loop
    #[arg(long = "loop", value_name = "DIR")]
    loop_dir: PathBuf,
    /// Folder of the user's rules; copied into the loop once
    #[arg(long, value_name = "DIR")]
    rules: PathBuf,
    /// The data set: a name or an id
    #[arg(long, value_name = "DATA")]
    data: String,
    /// The model that training starts from: a name or an id
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// A training of a few steps with the recipe: a name or an id
    #[arg(long, value_name = "CHECKPOINT")]
    smoke: Option<String>,
}

/// `loop.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    dataset_id: String,
    data: String,
    base: String,
}

/// What the audit found.
#[derive(Default)]
struct Audit {
    checked: Vec<String>,
    changed: Vec<String>,
    left_alone: Vec<String>,
}

impl Tool for AuditBaseline {
    const ABOUT: &'static str = "Audits the first recipe of a version loop once, makes it agree with the user's rules, and reports what it found.";
    const EXAMPLES: &'static str = "build-leaderboard audit-baseline --recipe storage/recipes/micropy/v001.yaml --rules storage/recipes/micropy --data micropy --base micropy-mtp --smoke micropy-smoke --loop .wmtp/micropy-loop";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let folder = LoopFolder::open(&self.loop_dir);
        if !cx.is_dry_run() {
            self.bring_rules(&folder)?;
        }
        let rules = if cx.is_dry_run() {
            rules_in(&self.rules)?
        } else {
            folder.rules()?
        };
        let mut audit = Audit::default();
        let mut recipe = cx.recipe()?.clone();
        audit.name(&mut recipe);
        audit.rules(&mut recipe, &rules)?;
        let store = cx.store()?;
        let identity = audit.inputs(self, &recipe, store)?;
        let smoke = audit.smoke(self.smoke.as_deref(), &mut recipe, store)?;
        recipe.validate()?;
        audit.places(&folder, store);
        let report = audit.render(&smoke);
        if cx.is_dry_run() {
            cx.print(report);
            return Ok(());
        }
        keep_identity(&folder, &identity)?;
        write_once(&folder, &recipe)?;
        write_whole(&folder.baseline_report(), &report)?;
        cx.print(format!(
            "{}: {} changes",
            folder.recipe_path(FIRST).display(),
            audit.changed.len()
        ));
        cx.json_result(json!({"recipe": folder.recipe_path(FIRST), "changed": audit.changed}));
        Ok(())
    }
}

impl AuditBaseline {
    /// The rules are the loop's own from its first moment; later changes are made in its folder.
    fn bring_rules(&self, folder: &LoopFolder) -> Result<(), JobError> {
        if folder.recipe_path(FIRST).is_file() {
            return Ok(());
        }
        for name in [RULES_FILE, INSTRUCTION_FILE] {
            if let Some(text) = read_if_any(&self.rules.join(name))? {
                write_whole(&folder.path(name), &text)?;
            }
        }
        Ok(())
    }
}

/// The data set and the base are decided once.
fn keep_identity(folder: &LoopFolder, identity: &Identity) -> Result<(), JobError> {
    let path = folder.path(IDENTITY);
    let text = serde_json::to_string_pretty(identity).map_err(JobError::internal)? + "\n";
    let Some(present) = read_if_any(&path)? else {
        return write_whole(&path, &text);
    };
    if present == text {
        return Ok(());
    }
    Err(JobError::refused(format!(
        "{}: this loop was begun with other inputs: {} instead of {}",
        path.display(),
        present.split_whitespace().collect::<Vec<_>>().join(" "),
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    ))
    .hint("data set and base are fixed for a loop: begin another one in another folder"))
}

/// The first recipe never changes once it is there.
fn write_once(folder: &LoopFolder, recipe: &Recipe) -> Result<(), JobError> {
    let path = folder.recipe_path(FIRST);
    if !path.is_file() {
        let text = yaml(recipe);
        folder.read_back(&text, recipe)?;
        return write_whole(&path, &text);
    }
    let differs = folder.recipe(FIRST)?.differences(recipe);
    if differs.is_empty() {
        return Ok(());
    }
    Err(JobError::refused(format!(
        "{} is there and differs in {}",
        path.display(),
        differs.join(", ")
    ))
    .hint("a version never changes: begin another loop in another folder"))
}

/// Every setting that is not the default's, section by section.
fn yaml(recipe: &Recipe) -> String {
    let differing = recipe.differences(&Recipe::default());
    let mut text = String::new();
    let mut section = "";
    for leaf in leaves().filter(|leaf| differing.contains(&leaf.key)) {
        let value = recipe.setting(leaf.key).unwrap_or_default();
        let _ = match leaf.key.split_once('.') {
            None => writeln!(text, "{}: {value}", leaf.key),
            Some((of, name)) if of == section => writeln!(text, "  {name}: {value}"),
            Some((of, name)) => writeln!(text, "{of}:\n  {name}: {value}"),
        };
        section = leaf.key.split_once('.').map_or("", |(of, _)| of);
    }
    text
}

impl Audit {
    fn name(&mut self, recipe: &mut Recipe) {
        let version = &mut recipe.version;
        if version.id != FIRST || version.parent.is_some() {
            let was = &version.id;
            self.changed.push(format!(
                "`version`: {was} became {FIRST}, the first of this loop, without a parent"
            ));
            *version = wmtp_recipe::Version {
                id: FIRST.to_owned(),
                ..wmtp_recipe::Version::default()
            };
        } else {
            self.checked
                .push(format!("`version.id` is {FIRST}, without a parent"));
        }
        let algo = recipe.experiment.algo;
        if algo == Algo::Baseline {
            self.checked
                .push("`experiment.algo` is baseline: every token counts the same".to_owned());
        } else {
            self.left_alone.push(format!(
                "`experiment.algo` is {algo}: the loop has no unweighted baseline to compare with"
            ));
        }
    }

    /// Fixed values and bounds are put into the recipe; what cannot be mended is refused.
    fn rules(&mut self, recipe: &mut Recipe, rules: &Rules) -> Result<(), JobError> {
        if let Some(metric) = rules
            .primary_metric
            .as_deref()
            .filter(|name| *name != PRIMARY_METRIC)
        {
            return Err(JobError::usage(format!(
                "{RULES_FILE}: eval_config.primary_metric is {metric:?}, and leaderboards are ordered by {PRIMARY_METRIC}"
            ))
            .hint(format!("set it to {PRIMARY_METRIC:?}, and name {metric:?} among eval_config.metrics")));
        }
        for (key, value, source) in rules.fixed() {
            let present = recipe.setting(key).unwrap_or_default();
            let changed = recipe.with_setting(key, value).map_err(JobError::from)?;
            if changed == *recipe {
                self.checked.push(format!(
                    "`{key}` is {}, as {source} says",
                    inert(&scalar(value))
                ));
            } else {
                self.changed.push(format!(
                    "`{key}`: {} became {}, which {source} fixes",
                    inert(&scalar(&present)),
                    inert(&scalar(value))
                ));
                *recipe = changed;
            }
        }
        for leaf in leaves() {
            let present = recipe.setting(leaf.key).unwrap_or_default();
            if let wmtp_recipe::Allowed::Changed { value, reason } =
                rules.allows(leaf.key, &present)
            {
                *recipe = recipe
                    .with_setting(leaf.key, &value)
                    .map_err(JobError::from)?;
                self.changed
                    .push(format!("`{}`: {}", leaf.key, inert(&reason)));
            }
        }
        let broken = rules.broken_by(recipe);
        if !broken.is_empty() {
            return Err(JobError::refused(format!(
                "the first recipe breaks the rules: {}",
                broken.join("; ")
            ))
            .hint("change the recipe or the rules"));
        }
        self.metrics(recipe, rules);
        for sentence in &rules.for_people {
            self.left_alone.push(format!(
                "{INSTRUCTION_FILE}: \u{201c}{}\u{201d} binds people; no program reads it",
                inert(sentence)
            ));
        }
        Ok(())
    }

    fn metrics(&mut self, recipe: &Recipe, rules: &Rules) {
        let never = rules.metrics.iter().filter(|name| {
            let k = name
                .strip_prefix("pass_at_")
                .and_then(|k| k.parse::<u32>().ok());
            k.is_some_and(|k| !recipe.evaluation.ks.contains(&k))
        });
        for name in never {
            self.left_alone.push(format!(
                "the metric {} is wanted, and `evaluation.ks` is {:?}: it will not be there",
                inert(name),
                recipe.evaluation.ks
            ));
        }
        let held_out = recipe.evaluation.split == wmtp_records::Split::Test;
        if held_out {
            self.left_alone.push("`evaluation.split` is test: versions are chosen on the set that should judge the winner".to_owned());
        }
    }

    /// The artifacts that names mean now, and whether they belong together.
    fn inputs(
        &mut self,
        arguments: &AuditBaseline,
        recipe: &Recipe,
        store: &StoreHandle,
    ) -> Result<Identity, JobError> {
        let find = |kind, reference: &str| -> Result<Manifest, JobError> {
            store.manifest(&store.resolve(kind, reference)?)
        };
        let data = find(Kind::ProcessedData, &arguments.data)?;
        let base = find(Kind::BaseModel, &arguments.base)?;
        check_tokenizers(("data", &data), ("base", &base))?;
        self.checked.push(format!(
            "data set `{}` is {}",
            inert(&recipe.experiment.dataset),
            data.id
        ));
        self.checked.push(format!(
            "base model is {}, with the data set's tokenizer",
            base.id
        ));
        for (name, wanted) in [
            ("max_length", recipe.data.max_length.to_string()),
            ("dataset", recipe.data.source.to_string()),
        ] {
            let found = data.attribute(name).unwrap_or("unknown");
            if found != wanted {
                self.left_alone.push(format!("the data set's {name} is {found}, the recipe's {wanted}: the data set was made with another recipe"));
            }
        }
        Ok(Identity {
            dataset_id: recipe.experiment.dataset.clone(),
            data: data.id.to_string(),
            base: base.id.to_string(),
        })
    }

    /// What a training of a few steps showed; the batch that goes through the model at once follows it.
    fn smoke(
        &mut self,
        reference: Option<&str>,
        recipe: &mut Recipe,
        store: &StoreHandle,
    ) -> Result<String, JobError> {
        let Some(reference) = reference else {
            return Ok("None was made.".to_owned());
        };
        let manifest = store.manifest(&store.resolve(Kind::Checkpoint, reference)?)?;
        let history = store.history(&manifest.provenance.run_id)?;
        let events = history.map(|history| history.events).unwrap_or_default();
        let fitting = events
            .iter()
            .filter_map(|event| event["data"]["micro_batch_sequences"].as_u64())
            .min();
        let at_once = recipe.optim.micro_batch_sequences;
        let steps = manifest.attribute("steps").unwrap_or("some").to_owned();
        let Some(fitting) = fitting else {
            return Ok(format!(
                "{steps} steps with {at_once} sequences through the model at once ({} a step) ran without a fallback.",
                recipe.optim.batch_sequences
            ));
        };
        let key = "optim.micro_batch_sequences";
        *recipe = recipe
            .with_setting(key, &Value::from(fitting))
            .map_err(JobError::from)?;
        self.changed.push(format!(
            "`{key}`: {at_once} became {fitting}, the most that fitted into memory in the smoke run"
        ));
        Ok(format!(
            "{steps} steps: {at_once} sequences at once did not fit into memory, {fitting} did."
        ))
    }

    fn places(&mut self, folder: &LoopFolder, store: &StoreHandle) {
        self.checked.push(format!(
            "artifacts and runs lie in {}, logs and events of a run below its id there",
            store.store().uri()
        ));
        let path = folder.path("");
        let name = path.file_name().unwrap_or_default();
        self.checked.push(format!(
            "recipes, actions and reports lie in the folder {}",
            name.display()
        ));
    }

    fn render(&self, smoke: &str) -> String {
        let listed = |items: &[String]| {
            if items.is_empty() {
                return "Nothing.\n".to_owned();
            }
            list(items)
        };
        format!(
            "# Audit of the baseline\n\n## Checked\n\n{}\n## Changed\n\n{}\n## Smoke run\n\n{smoke}\n\n## Left alone\n\n{}",
            listed(&self.checked),
            listed(&self.changed),
            listed(&self.left_alone)
        )
    }
}
