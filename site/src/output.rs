//! Writing only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Component, Path};

use serde_json::{Value, json};
use wmtp_artifacts::Digest;

use crate::Error;

/// Where the list of all files stands.
pub const MANIFEST: &str = "data/manifest.json";

/// A finished site in memory: relative path to bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    files: BTreeMap<String, Vec<u8>>,
}

/// What writing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Files written.
    pub changed: usize,
    /// Files that were already right.
    pub unchanged: usize,
    /// Files of an earlier build that are wanted no more.
    pub removed: usize,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changed == 0 && self.removed == 0 {
            return write!(
                f,
                "nothing changed, {} files are up to date",
                self.unchanged
            );
        }
        write!(
            f,
            "{} files written, {} unchanged, {} removed",
            self.changed, self.unchanged, self.removed
        )
    }
}

impl Site {
    /// Adds a file.
    pub fn add(&mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), bytes.into());
    }

    /// Adds `data/manifest.json`: every other file with size and SHA-256, and the artifacts read.
    pub fn add_manifest(&mut self, inputs: &[(String, String)], warnings: &[String]) {
        let files: Vec<Value> = self
            .files
            .iter()
            .map(|(path, bytes)| json!({"path": path, "size": bytes.len(), "sha256": Digest::of(bytes).to_string()}))
            .collect();
        let inputs: Vec<Value> = inputs
            .iter()
            .map(|(role, id)| json!({"role": role, "artifact": id}))
            .collect();
        let manifest = json!({"inputs": inputs, "warnings": warnings, "files": files});
        let mut text = format!("{manifest:#}");
        text.push('\n');
        self.add(MANIFEST, text);
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Files in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files
            .iter()
            .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
    }

    /// A file as text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files
            .get(path)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// Brings a folder up to date. Files are written to a temporary name and renamed; the manifest comes last, and
    /// only files that an earlier manifest lists are removed.
    pub fn write(&self, root: &Path) -> Result<Written, Error> {
        let before = listed(root);
        let mut written = Written {
            changed: 0,
            unchanged: 0,
            removed: 0,
        };
        let order = self.files.iter().filter(|(path, _)| *path != MANIFEST);
        for (path, bytes) in order.chain(self.files.get_key_value(MANIFEST)) {
            let target = root.join(path);
            if fs::read(&target).is_ok_and(|present| present == *bytes) {
                written.unchanged += 1;
                continue;
            }
            replace(&target, bytes).map_err(|source| Error::Io {
                path: target.clone(),
                source,
            })?;
            written.changed += 1;
        }
        for path in before.iter().filter(|path| !self.files.contains_key(*path)) {
            if fs::remove_file(root.join(path)).is_ok() {
                written.removed += 1;
            }
        }
        Ok(written)
    }
}

/// Files of an earlier build that lie inside the folder.
fn listed(root: &Path) -> BTreeSet<String> {
    let inside = |path: &&str| {
        Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    let manifest = fs::read(root.join(MANIFEST)).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    manifest["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|file| file["path"].as_str())
        .filter(inside)
        .map(str::to_owned)
        .collect()
}

fn replace(target: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = target.with_extension("partial");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_build_changes_nothing_and_a_smaller_one_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut site = Site::default();
        site.add("index.html", "a");
        site.add("v/v001/index.html", "b");
        site.add_manifest(&[], &[]);
        assert_eq!(site.write(dir.path()).unwrap().changed, 3);
        let again = site.write(dir.path()).unwrap();
        assert_eq!(
            again,
            Written {
                changed: 0,
                unchanged: 3,
                removed: 0
            }
        );
        assert_eq!(again.to_string(), "nothing changed, 3 files are up to date");

        std::fs::write(dir.path().join("theirs.txt"), "kept").unwrap();
        let mut smaller = Site::default();
        smaller.add("index.html", "a");
        smaller.add_manifest(&[], &[]);
        assert_eq!(
            smaller.write(dir.path()).unwrap(),
            Written {
                changed: 1,
                unchanged: 1,
                removed: 1
            }
        );
        assert!(dir.path().join("theirs.txt").exists());
    }

    #[test]
    fn a_forged_manifest_removes_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside.txt");
        std::fs::write(&outside, "kept").unwrap();
        let root = dir.path().join("site");
        replace(
            &root.join(MANIFEST),
            br#"{"files":[{"path":"../outside.txt"}]}"#,
        )
        .unwrap();
        Site::default().write(&root).unwrap();
        assert!(outside.exists());
    }
}
