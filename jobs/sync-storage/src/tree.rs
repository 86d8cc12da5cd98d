//! `push-tree`: each bundle and each data set of a storage folder becomes an artifact, under the name of its folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use wmtp_job_kit::{ArtifactId, JobError, Tool, ToolCx, bytes, refuse_alias};

use crate::bundle;
use crate::push::{OUTPUT, Push, PushKind};

/// Flags of `push-tree`.
#[derive(Debug, clap::Args)]
pub(crate) struct PushTree {
    /// Folder with models_v2, datasets_v2 and datasets_local_small, any of them
    #[arg(value_name = "DIR")]
    root: PathBuf,
    /// Also what the machine can make again: datasets_local_small, and models that `create` made from a seed
    #[arg(long)]
    include_local_small: bool,
    /// Read each stored artifact back and hash it
    #[arg(long)]
    verify: bool,
}

/// A folder that becomes an artifact.
struct Entry {
    name: String,
    push: Push,
}

/// What lies in a storage folder.
#[derive(Default)]
struct Found {
    entries: Vec<Entry>,
    /// What stays here, and why.
    left_out: Vec<(PathBuf, String)>,
}

impl Tool for PushTree {
    const ABOUT: &'static str = "Pushes every model bundle and data set of a storage folder under the name of its folder; what is stored already is not sent again.";
    const EXAMPLES: &'static str = "
        sync-storage push-tree storage --dry-run
        sync-storage push-tree storage --verify
        sync-storage push-tree storage --include-local-small";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        if cx.name().is_some() {
            return Err(
                JobError::usage("--name: each artifact has the name of its folder")
                    .hint("push one folder under another name with `sync-storage push`"),
            );
        }
        let found = self.find()?;
        for (path, why) in &found.left_out {
            cx.print(format!("left out: {}: {why}", path.display()));
        }
        // A name that the store does not take is found out before anything is sent.
        for entry in &found.entries {
            refuse_alias(Some(&entry.name))?;
            let store = cx.store()?;
            store.block_on(store.store().name(entry.push.artifact_kind(), &entry.name))?;
        }
        let mut rows = Vec::new();
        let stop = cx.stop_flag();
        for entry in &found.entries {
            if stop.load(Ordering::SeqCst) {
                return Err(JobError::preempted()
                    .hint("what was pushed stays; the same command goes on from it"));
            }
            let row = if cx.is_dry_run() {
                entry.look(cx)
            } else {
                entry.push(cx)
            };
            rows.push(row.map_err(|error| {
                error.context(format!("folder {}", entry.push.folder().display()))
            })?);
        }
        if cx.is_dry_run() {
            cx.print("nothing was touched");
        }
        let left_out = found.left_out.iter();
        let left_out = left_out.map(|(path, why)| json!({"folder": path, "why": why}));
        cx.json_result(json!({
            "job": "sync-storage-push-tree",
            "dry_run": cx.is_dry_run(),
            "pushed": rows,
            "left_out": left_out.collect::<Vec<_>>(),
        }));
        Ok(())
    }
}

impl PushTree {
    fn find(&self) -> Result<Found, JobError> {
        let places = ["models_v2", "datasets_v2", "datasets_local_small"];
        let [models, data, small] = places.map(|place| self.root.join(place));
        if ![&models, &data, &small]
            .into_iter()
            .any(|place| place.is_dir())
        {
            return Err(JobError::bad_input(format!(
                "{} has no models_v2, datasets_v2 or datasets_local_small",
                self.root.display()
            ))
            .hint("name the folder that they are in; one bundle or data set goes with `sync-storage push`"));
        }
        let mut found = Found::default();
        for (name, folder) in folders(&models)? {
            self.add_model(name, folder, &mut found)?;
        }
        for (name, folder) in folders(&data)? {
            self.add_data_set(name, folder, &mut found);
        }
        for (name, folder) in folders(&small)? {
            self.add_small_data_set(name, folder, &mut found);
        }
        Ok(found)
    }

    fn add_model(&self, name: String, folder: PathBuf, found: &mut Found) -> Result<(), JobError> {
        let why = match bundle::standing(&folder)? {
            bundle::Standing::Placeholder => "a placeholder without weights",
            bundle::Standing::Seeded if !self.include_local_small => {
                "`sync-storage create` makes it from a seed; --include-local-small takes it along"
            }
            _ => {
                found.add(name, PushKind::BaseModel, folder, self.verify);
                return Ok(());
            }
        };
        found.left_out.push((folder, why.to_owned()));
        Ok(())
    }

    fn add_data_set(&self, name: String, folder: PathBuf, found: &mut Found) {
        let raw = folder.join("raw");
        if raw.is_dir() {
            found.add(name, PushKind::RawData, raw, self.verify);
        } else {
            let why = "it has no folder raw; `prepare-data` makes what else belongs there";
            found.left_out.push((folder, why.to_owned()));
        }
    }

    fn add_small_data_set(&self, name: String, folder: PathBuf, found: &mut Found) {
        if self.include_local_small {
            found.add(name, PushKind::RawData, folder, self.verify);
        } else {
            let why = "a small part for this machine; --include-local-small takes it along";
            found.left_out.push((folder, why.to_owned()));
        }
    }
}

impl Found {
    fn add(&mut self, name: String, kind: PushKind, folder: PathBuf, verify: bool) {
        let push = Push::of_tree(kind, folder, &name, verify);
        self.entries.push(Entry { name, push });
    }
}

impl Entry {
    /// Says what a push would send.
    fn look(&self, cx: &mut ToolCx<'_>) -> Result<Value, JobError> {
        let kind = self.push.artifact_kind();
        let stored = cx.stored_result_of(&self.push)?;
        let contents = self.push.contents()?;
        let total: u64 = contents.iter().map(|file| file.size).sum();
        let what = format!(
            "{kind} {} ({} files, {})",
            self.name,
            contents.len(),
            bytes(total)
        );
        if let Some(id) = stored.and_then(|mut outputs| outputs.remove(OUTPUT)) {
            let store = cx.store()?;
            let named = store.block_on(store.store().name(kind, &self.name))?;
            let and = if named.as_ref() == Some(&id) {
                ""
            } else {
                "; would be given its name"
            };
            cx.print(format!("equal: {what} is {id}{and}"));
            return Ok(self.row(Some(&id), true, 0));
        }
        let store = cx.store()?;
        let lacking = store.block_on(store.store().missing(&contents))?;
        let to_send: u64 = lacking.iter().map(|file| file.size).sum();
        cx.print(format!(
            "would push: {what}; {} of it in {} files are not stored yet",
            bytes(to_send),
            lacking.len()
        ));
        Ok(self.row(None, false, to_send))
    }

    fn push(&self, cx: &mut ToolCx<'_>) -> Result<Value, JobError> {
        let (mut outputs, is_cached) = cx.run_job(&self.push, &self.name)?;
        let id = outputs
            .remove(OUTPUT)
            .ok_or_else(|| JobError::internal("a push without an artifact"))?;
        let how = if is_cached { "equal" } else { "pushed" };
        cx.print(format!("{how}: {} {} is {id}", id.kind(), self.name));
        Ok(self.row(Some(&id), is_cached, 0))
    }

    fn row(&self, id: Option<&ArtifactId>, is_equal: bool, to_send: u64) -> Value {
        let mut row = json!({
            "kind": self.push.artifact_kind(),
            "name": self.name,
            "artifact": id,
            "equal": is_equal,
        });
        if id.is_none() {
            row["bytes_to_send"] = to_send.into();
        }
        row
    }
}

/// The folders in a folder, by name; none where there is no such folder. What begins with a dot is somebody's half-made
/// copy.
fn folders(root: &Path) -> Result<Vec<(String, PathBuf)>, JobError> {
    let fail =
        |error: std::io::Error| JobError::bad_input(error).context(root.display().to_string());
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.starts_with('.') {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}
