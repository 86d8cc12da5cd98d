//! The folder of a version loop: recipes, the user's rules, actions, reports.
//!
//! Everything in it but the rules, and actions that a person wrote, follows from what the store holds: a lost folder is made
//! again by the same commands.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wmtp_artifacts::fault;
use wmtp_job_kit::{JobError, StoreHandle};
use wmtp_recipe::{INSTRUCTION_FILE, RULES_FILE, Recipe, Rules, Sources};
use wmtp_stats::leaderboard::{Leaderboard, files};

use crate::actions::{Action, is_version_id};
use crate::report::copy;
use crate::version_folder::{self, Weights};

/// Where the audit of the first recipe is told.
const BASELINE_REPORT: &str = "_tests/baseline_patch_report.md";

/// The folder of a loop.
pub(crate) struct LoopFolder {
    dir: PathBuf,
}

impl LoopFolder {
    pub(crate) fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn recipe_path(&self, version: &str) -> PathBuf {
        self.dir.join(format!("recipes/{version}.yaml"))
    }

    pub(crate) fn action_path(&self, version: &str) -> PathBuf {
        self.dir.join(files::action(version))
    }

    pub(crate) fn baseline_report(&self) -> PathBuf {
        self.dir.join(BASELINE_REPORT)
    }

    pub(crate) fn retry_report(&self, version: &str) -> PathBuf {
        let folder = self.dir.join(files::version_dir(version));
        folder.join("_tests/train_retry_report.md")
    }

    /// The user's rules; none where there are no files of them.
    pub(crate) fn rules(&self) -> Result<Rules, JobError> {
        rules_in(&self.dir)
    }

    /// Every recipe of the loop by version, resolved as it stands in its file.
    pub(crate) fn recipes(&self) -> Result<BTreeMap<String, Recipe>, JobError> {
        let mut recipes = BTreeMap::new();
        for version in recipes_in(&self.dir.join("recipes"))? {
            let recipe = self.recipe(&version)?;
            if recipe.version.id != version {
                let file = self.recipe_path(&version);
                let name = recipe.version.id;
                return Err(JobError::usage(format!(
                    "{}: the recipe is called {name}, not {version}",
                    file.display()
                ))
                .hint("a version never changes its name; write the next one with `next-version`"));
            }
            recipes.insert(version, recipe);
        }
        Ok(recipes)
    }

    pub(crate) fn recipe(&self, version: &str) -> Result<Recipe, JobError> {
        Ok(self.sources(version).resolve()?.recipe)
    }

    /// Makes sure that a text, once it is the file of its version, reads back as the recipe that is meant. A file that does
    /// not would block every tool that reads the loop, so this is asked before there is one.
    pub(crate) fn read_back(&self, text: &str, meant: &Recipe) -> Result<(), JobError> {
        let version = &meant.version.id;
        let path = self.recipe_path(version);
        let load = |location: &str| -> Result<String, Box<dyn StdError + Send + Sync>> {
            if Path::new(location) == path {
                return Ok(text.to_owned());
            }
            Ok(fs::read_to_string(location)?)
        };
        let read = self.sources(version).resolve_with(&load)?.recipe;
        let differs = read.differences(meant);
        if differs.is_empty() {
            return Ok(());
        }
        Err(JobError::internal(format!(
            "{} would differ in {} from what is meant",
            path.display(),
            differs.join(", ")
        )))
    }

    fn sources(&self, version: &str) -> Sources {
        Sources {
            recipe: Some(self.recipe_path(version).display().to_string()),
            ..Sources::default()
        }
    }

    /// What goes with a leaderboard, by its path in the artifact: of actions those that led to a version on it, or nowhere.
    /// Those that lead further came later, and a board does not change when it is made again.
    pub(crate) fn notes(
        &self,
        on_board: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, String>, JobError> {
        let mut notes = BTreeMap::new();
        for version in on_board {
            let Some(text) = read_if_any(&self.action_path(version))? else {
                continue;
            };
            let action = Action::parse(&text, version);
            if action.is_ok_and(|action| action.next.is_none_or(|next| on_board.contains(&next))) {
                notes.insert(files::action(version), text);
            }
        }
        if let Some(text) = read_if_any(&self.baseline_report())? {
            notes.insert(files::BASELINE_REPORT.to_owned(), text);
        }
        Ok(notes)
    }

    /// Writes what the store holds of every version into its folder.
    pub(crate) fn lay_out(
        &self,
        board: &Leaderboard,
        leaderboard_dir: &Path,
        store: &StoreHandle,
    ) -> Result<(), JobError> {
        for row in &board.rows {
            let id = &row.version_id;
            let folder = self.dir.join(files::version_dir(id));
            for name in [files::analysis(id), files::figures(id)] {
                copy(&leaderboard_dir.join(&name), &self.dir.join(&name))?;
            }
            let retries = leaderboard_dir.join(files::retry_report(id));
            if retries.is_file() {
                copy(&retries, &self.retry_report(id))?;
            }
            version_folder::write(&folder, row, Weights::Named, store)?;
        }
        Ok(())
    }
}

/// The user's rules in a folder.
pub(crate) fn rules_in(dir: &Path) -> Result<Rules, JobError> {
    let rules = read_if_any(&dir.join(RULES_FILE))?;
    let instruction = read_if_any(&dir.join(INSTRUCTION_FILE))?;
    Rules::parse(rules.as_deref(), instruction.as_deref())
        .map_err(|error| JobError::usage(error).context(dir.display().to_string()))
}

/// The text of a file, where there is one.
pub(crate) fn read_if_any(path: &Path) -> Result<Option<String>, JobError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(JobError::from(error).context(path.display().to_string())),
    }
}

/// Writes a file at once: killed at any instant, the old one or the new one is there. What a killed attempt leaves beside it is
/// taken over by the next.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), JobError> {
    let told = |error: io::Error| JobError::from(error).context(path.display().to_string());
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(told)?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = fs::File::create(&part).map_err(told)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(told)?;
    file.sync_all().map_err(told)?;
    fault::point("file:before-rename");
    fs::rename(&part, path).map_err(told)?;
    fault::point("file:after-rename");
    Ok(())
}

/// The versions whose recipes lie in a folder, in order.
fn recipes_in(dir: &Path) -> Result<Vec<String>, JobError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JobError::from(error).context(dir.display().to_string())),
    };
    let mut versions = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let version = name.to_str().and_then(|name| name.strip_suffix(".yaml"));
        versions.extend(version.filter(|id| is_version_id(id)).map(str::to_owned));
    }
    versions.sort();
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "version: {id: v001}\n";
    const NEXT: &str =
        "extends: v001.yaml\nversion: {id: v002, parent: v001, change: c}\noptim: {lr: 0.5}\n";

    fn loop_with(first: &str) -> (tempfile::TempDir, LoopFolder) {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("recipes")).unwrap();
        fs::write(place.path().join("recipes/v001.yaml"), first).unwrap();
        let folder = LoopFolder::open(place.path());
        (place, folder)
    }

    #[test]
    fn a_recipe_is_read_back_before_there_is_a_file_of_it() {
        let (_place, folder) = loop_with(FIRST);
        let mut meant = folder.recipe("v001").unwrap();
        (meant.version.id, meant.optim.lr) = ("v002".to_owned(), 0.5);
        meant.version.parent = Some("v001".to_owned());
        meant.version.change = Some("c".to_owned());
        folder.read_back(NEXT, &meant).unwrap();
        let other = folder.read_back(&NEXT.replace("0.5", "0.25"), &meant);
        assert!(other.unwrap_err().to_string().contains("optim.lr"));
        // A baseline's: no recipe at all.
        let broken = NEXT.replace("optim: {lr: 0.5}", "weights: {blend: 0.5}");
        let said = folder.read_back(&broken, &meant).unwrap_err();
        assert_eq!(said.exit(), wmtp_job_kit::Exit::Usage);
        assert!(said.to_string().contains("sets no scores"), "{said}");
        assert!(!folder.recipe_path("v002").exists());
        assert_eq!(folder.recipes().unwrap().len(), 1);
    }
}
