//! `select-action`: the one action after the newest version.

use std::path::PathBuf;

use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use super::Standing;
use crate::actions::{Action, Loop, number, select};
use crate::loop_folder::{LoopFolder, read_if_any, write_whole};

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct SelectAction {
    /// The leaderboard over all versions so far: a name or an id
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
    /// Folder of the loop
    #[arg(long = "loop", value_name = "DIR")]
    loop_dir: PathBuf,
    /// The version that was judged last; the newest that has a recipe when left out
    #[arg(long, value_name = "VERSION")]
    after: Option<String>,
    /// Versions that the loop makes, where the user's rules do not say
    #[arg(long, value_name = "NUMBER")]
    max_versions: Option<u32>,
}

impl Tool for SelectAction {
    const ABOUT: &'static str = "Chooses the one change that leads to the next version, by the figures and the user's rules; keeps an action that a person wrote.";
    const EXAMPLES: &'static str = "build-leaderboard select-action --leaderboard micropy-loop-v002 --after v002 --loop .wmtp/micropy-loop --max-versions 4";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let folder = LoopFolder::open(&self.loop_dir);
        let (mut recipes, rules) = (folder.recipes()?, folder.rules()?);
        let newest = || recipes.keys().max_by_key(|id| number(id)).cloned();
        let after = self.after.clone().or_else(newest);
        let after = after.filter(|id| recipes.contains_key(id)).ok_or_else(|| {
            JobError::usage(format!(
                "{} has no recipe of the version",
                self.loop_dir.display()
            ))
            .hint("begin with `build-leaderboard audit-baseline`")
        })?;
        let after = &after;
        let made: Vec<String> = recipes.keys().cloned().collect();
        // Versions that came later are no reason against the one that led to them.
        recipes.retain(|id, _| number(id) <= number(after));
        let path = folder.action_path(after);
        if let Some(text) = read_if_any(&path)? {
            let named = |error: JobError| error.context(path.display().to_string());
            let action = Action::parse(&text, after).map_err(|error| named(error.into()))?;
            if let Some(from) = recipes.get(&action.from).filter(|_| action.next.is_some()) {
                // Rules that came after the version was made do not unmake it.
                if action.next.as_ref().is_none_or(|next| !made.contains(next)) {
                    action
                        .apply(from, &rules)
                        .map_err(|error| named(error.into()))?;
                }
                tell(&action, "kept", cx);
                return Ok(());
            }
            if action.next.is_some() {
                let error = format!("`From: {}` is no version of this loop", action.from);
                return Err(named(JobError::bad_input(error)));
            }
        }
        let Standing { board, figures, .. } = Standing::load(&self.leaderboard, cx.store()?)?;
        if !board.rows.iter().any(|row| row.version_id == *after) {
            let error = format!("{after} is not on the leaderboard {}", self.leaderboard);
            return Err(
                JobError::bad_input(error).hint("evaluate it and build the leaderboard first")
            );
        }
        let action = select(
            after,
            &Loop {
                board: &board,
                figures: &figures,
                recipes: &recipes,
                rules: &rules,
                max_versions: rules.max_versions(self.max_versions),
            },
        );
        if !rules.for_people.is_empty() {
            let number = rules.for_people.len();
            cx.log(format!("{number} lines of the instruction bind people alone; the rule of the catalogue does not read them"));
        }
        if !cx.is_dry_run() {
            write_whole(&path, &action.render())?;
        }
        tell(&action, "selected", cx);
        Ok(())
    }
}

fn tell(action: &Action, what: &str, cx: &mut ToolCx<'_>) {
    let change = action
        .selected
        .as_ref()
        .map(|selected| selected.change.words());
    cx.print(match (&action.next, &change) {
        (Some(next), Some(change)) => {
            format!(
                "{what} after {}: {next} from {}, {change} ({})",
                action.after, action.from, action.entry
            )
        }
        _ => format!("the loop ends with {}: {}", action.after, action.selection),
    });
    cx.json_result(json!({
        "after": action.after,
        "from": action.from,
        "next": action.next,
        "entry": action.entry,
        "change": change,
    }));
}
