//! `next-version`: a copy of a recipe with one change.

use std::path::{Path, PathBuf};

use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_recipe::{Recipe, Rules};

use crate::actions::{Action, Change, number};
use crate::loop_folder::{LoopFolder, read_if_any, write_whole};

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct NextVersion {
    /// Folder of the loop
    #[arg(long = "loop", value_name = "DIR")]
    loop_dir: PathBuf,
    /// The version whose action is taken; the newest that has one when left out
    #[arg(long, value_name = "VERSION")]
    after: Option<String>,
}

impl Tool for NextVersion {
    const ABOUT: &'static str = "Writes the next recipe: its parent's with the one change of the action, and refuses a second one.";
    const EXAMPLES: &'static str = "build-leaderboard next-version --loop .wmtp/micropy-loop";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let folder = LoopFolder::open(&self.loop_dir);
        let (recipes, rules) = (folder.recipes()?, folder.rules()?);
        let newest = || {
            let with_action = |version: &&String| folder.action_path(version).is_file();
            let versions = recipes.keys().filter(with_action);
            versions.max_by_key(|version| number(version))
        };
        let after = self.after.as_ref().or_else(newest);
        let after = after.ok_or_else(|| no_action(&self.loop_dir))?;
        let path = folder.action_path(after);
        let named = |error: JobError| error.context(path.display().to_string());
        let text = read_if_any(&path)?.ok_or_else(|| named(no_action(&self.loop_dir)))?;
        let action = Action::parse(&text, after).map_err(|error| named(error.into()))?;
        let (Some(next), Some(selected)) = (&action.next, &action.selected) else {
            cx.print(format!("the loop ends with {after}"));
            cx.json_result(json!({"next": null}));
            return Ok(());
        };
        let from = recipes.get(&action.from).ok_or_else(|| {
            named(JobError::bad_input(format!(
                "`From: {}` is no version of this loop",
                action.from
            )))
        })?;
        // Rules that came after a version was made do not unmake it.
        let is_new = !recipes.contains_key(next);
        let binding = if is_new { rules } else { Rules::default() };
        let recipe = action
            .apply(from, &binding)
            .map_err(|error| named(error.into()))?;
        refuse_too_many(&recipe, binding.max_versions)?;
        let target = folder.recipe_path(next);
        if let Some(present) = recipes.get(next) {
            refuse_another(present, &recipe, &target)?;
            cx.print(format!("{next} is there: {}", selected.change.words()));
        } else {
            let text = yaml(&action.from, &recipe, &selected.change)?;
            folder.read_back(&text, &recipe)?;
            if !cx.is_dry_run() {
                write_whole(&target, &text)?;
            }
            cx.print(format!("{}: {}", target.display(), selected.change.words()));
        }
        cx.json_result(json!({"next": next, "from": action.from, "recipe": target}));
        Ok(())
    }
}

fn no_action(dir: &Path) -> JobError {
    JobError::bad_input(format!("{}: there is no action", dir.display()))
        .hint("run `build-leaderboard select-action`, or write action-extract.md by hand")
}

fn refuse_too_many(recipe: &Recipe, most: Option<u32>) -> Result<(), JobError> {
    let number: Option<u32> = recipe.version.id.trim_start_matches('v').parse().ok();
    match (number, most) {
        (Some(number), Some(most)) if number > most => Err(JobError::refused(format!(
            "{} would be version {number}, and the rules allow {most}",
            recipe.version.id
        ))
        .hint("raise loop_config.max_versions in user_defined_rules.json")),
        _ => Ok(()),
    }
}

/// A version never changes, and has one change: another action cannot be put upon it.
fn refuse_another(present: &Recipe, wanted: &Recipe, path: &Path) -> Result<(), JobError> {
    let differs = present.differences(wanted);
    if differs.is_empty() {
        return Ok(());
    }
    Err(JobError::refused(format!(
        "{} is there with another change; it differs in {}",
        path.display(),
        differs.join(", ")
    ))
    .hint("a version never changes: give the action back its old change, or take it up in the version after"))
}

/// The recipe as a file: what it starts from, its name, its one change.
fn yaml(from: &str, recipe: &Recipe, change: &Change) -> Result<String, JobError> {
    let value = recipe.setting(&change.key).unwrap_or_default();
    let own = match change.key.split_once('.') {
        Some((section, name)) => format!("{section}:\n  {name}: {value}\n"),
        None => format!("{}: {value}\n", change.key),
    };
    let words = serde_json::to_string(&change.words()).map_err(JobError::internal)?;
    Ok(format!(
        "extends: {from}.yaml\nversion:\n  id: {}\n  parent: {from}\n  change: {words}\n{own}",
        recipe.version.id
    ))
}
