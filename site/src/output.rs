//! Writing only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wmtp_artifacts::Digest;

use crate::Error;

/// Where the list of all files stands.
pub const MANIFEST: &str = "data/manifest.json";
/// Folder of the snapshots.
pub const SNAPSHOTS: &str = "r/";
/// What the last build was made from, beside the pages and no part of them.
const STATE: &str = ".wmtp-build.json";

/// A finished site in memory: relative path to bytes. A snapshot shares the bytes of what it is a copy of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    files: BTreeMap<String, Arc<Vec<u8>>>,
}

/// What writing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
        self.files.insert(path.into(), Arc::new(bytes.into()));
    }

    /// Takes over every file of another site.
    pub fn join(&mut self, other: Self) {
        self.files.extend(other.files);
    }

    /// Adds a copy of everything below `r/NAME/`, with a manifest of its own.
    pub fn add_snapshot(&mut self, name: &str, inputs: &[(String, String)], warnings: &[String]) {
        let mut snapshot = self.clone();
        snapshot
            .files
            .retain(|path, _| !path.starts_with(SNAPSHOTS));
        snapshot.add_manifest(inputs, warnings);
        let files = snapshot.files.into_iter();
        self.files
            .extend(files.map(|(path, bytes)| (format!("{SNAPSHOTS}{name}/{path}"), bytes)));
    }

    /// Adds `data/manifest.json`: every other file with size and SHA-256, and the artifacts read. Snapshots have their
    /// own.
    pub fn add_manifest(&mut self, inputs: &[(String, String)], warnings: &[String]) {
        let files: Vec<Value> = self
            .files
            .iter()
            .filter(|(path, _)| !path.starts_with(SNAPSHOTS) && *path != MANIFEST)
            .map(|(path, bytes)| json!({"path": path, "size": bytes.len(), "sha256": Digest::of(bytes).to_string()}))
            .collect();
        let inputs: Vec<Value> = inputs
            .iter()
            .map(|(role, id)| json!({"role": role, "artifact": id}))
            .collect();
        let generator =
            json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
        let manifest =
            json!({"generator": generator, "inputs": inputs, "warnings": warnings, "files": files});
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

    /// Brings a folder up to date. Files are written to a temporary name and renamed; when all stand, files that only an
    /// earlier manifest lists are removed; the manifest comes last, so that a build that was cut off is begun anew.
    pub fn write(&self, root: &Path) -> Result<Written, Error> {
        let before = listed(root);
        let mut writer = Writer {
            root,
            folders: BTreeSet::new(),
            written: Written::default(),
        };
        let last = |path: &str| path.ends_with(MANIFEST);
        for (path, bytes) in self
            .files
            .iter()
            .filter(|(path, _)| !path.starts_with(SNAPSHOTS) && !last(path))
        {
            writer.put(path, bytes)?;
        }
        self.write_snapshots(&mut writer)?;
        for path in before.iter().filter(|path| !self.files.contains_key(*path)) {
            if fs::remove_file(root.join(path)).is_ok() {
                writer.written.removed += 1;
                remove_empty_parents(root, path);
            }
        }
        if let Some(manifest) = self.files.get(MANIFEST) {
            writer.put(MANIFEST, manifest)?;
        }
        Ok(writer.written)
    }

    /// A snapshot never changes: one that is whole is left alone, whatever it holds.
    fn write_snapshots(&self, writer: &mut Writer<'_>) -> Result<(), Error> {
        let mut whole: BTreeMap<&str, bool> = BTreeMap::new();
        let files = self
            .files
            .range(SNAPSHOTS.to_owned()..)
            .take_while(|(path, _)| path.starts_with(SNAPSHOTS));
        let mut manifests = Vec::new();
        for (path, bytes) in files {
            let rest = &path[SNAPSHOTS.len()..];
            let Some((name, original)) = rest.split_once('/') else {
                continue;
            };
            let is_whole = whole.entry(name).or_insert_with(|| {
                writer
                    .root
                    .join(SNAPSHOTS)
                    .join(name)
                    .join(MANIFEST)
                    .is_file()
            });
            if *is_whole {
                writer.written.unchanged += 1;
            } else if original == MANIFEST {
                manifests.push((path, bytes));
            } else {
                let shared = self
                    .files
                    .get(original)
                    .filter(|there| Arc::ptr_eq(there, bytes));
                writer.copy(path, bytes, shared.map(|_| original))?;
            }
        }
        for (path, bytes) in manifests {
            writer.put(path, bytes)?;
        }
        Ok(())
    }
}

/// Files on their way to a folder.
struct Writer<'a> {
    root: &'a Path,
    /// Folders that are known to be there.
    folders: BTreeSet<PathBuf>,
    written: Written,
}

impl Writer<'_> {
    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let target = self.root.join(path);
        let same_size = fs::metadata(&target).is_ok_and(|found| found.len() == bytes.len() as u64);
        if same_size && fs::read(&target).is_ok_and(|present| present == *bytes) {
            self.written.unchanged += 1;
            return Ok(());
        }
        self.replace(&target, |temporary| fs::write(temporary, bytes))
    }

    /// A file of a snapshot: a second name of the file that it is a copy of, where the disk allows it. What replaces that
    /// file later is a new one, so the snapshot keeps what it has.
    fn copy(&mut self, path: &str, bytes: &[u8], original: Option<&str>) -> Result<(), Error> {
        let target = self.root.join(path);
        let original = original.map(|original| self.root.join(original));
        self.replace(&target, |temporary| match &original {
            Some(original) => {
                let _ = fs::remove_file(temporary);
                fs::hard_link(original, temporary).or_else(|_| fs::write(temporary, bytes))
            }
            None => fs::write(temporary, bytes),
        })
    }

    fn replace(
        &mut self,
        target: &Path,
        write: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.place(target, write).map_err(|source| Error::Io {
            path: target.to_owned(),
            source,
        })?;
        self.written.changed += 1;
        Ok(())
    }

    fn place(
        &mut self,
        target: &Path,
        write: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(parent) = target
            .parent()
            .filter(|parent| !self.folders.contains(*parent))
        {
            fs::create_dir_all(parent)?;
            self.folders.insert(parent.to_owned());
        }
        let temporary = target.with_extension("partial");
        write(&temporary)?;
        fs::rename(&temporary, target)?;
        // Of two names of one file, a rename leaves both.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Folders that a removed file leaves empty.
fn remove_empty_parents(root: &Path, path: &str) {
    let mut parent = Path::new(path).parent();
    while let Some(folder) = parent.filter(|folder| !folder.as_os_str().is_empty()) {
        // Fails where something is left in it, and then nothing above is empty either.
        if fs::remove_dir(root.join(folder)).is_err() {
            return;
        }
        parent = folder.parent();
    }
}

/// Files of an earlier build that lie inside the folder, with their SHA-256.
pub(crate) fn listed_with_digests(manifest: &[u8]) -> BTreeMap<String, String> {
    let inside = |path: &str| {
        !path.starts_with(SNAPSHOTS)
            && Path::new(path)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
    };
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    manifest["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|file| {
            Some((
                file["path"].as_str()?,
                file["sha256"].as_str().unwrap_or_default(),
            ))
        })
        .filter(|(path, _)| inside(path))
        .map(|(path, digest)| (path.to_owned(), digest.to_owned()))
        .collect()
}

fn listed(root: &Path) -> BTreeSet<String> {
    let manifest = fs::read(root.join(MANIFEST)).unwrap_or_default();
    listed_with_digests(&manifest).into_keys().collect()
}

/// Names of the snapshots that a folder holds whole.
pub fn snapshots(root: &Path) -> Vec<String> {
    let folder = root.join(SNAPSHOTS);
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join(MANIFEST).is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        })
        .collect();
    names.sort();
    names
}

/// What a build was made from and what it left: when both are as they were, there is nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildState {
    /// Digest of the generator, the leaderboard and all that a build depends on.
    pub key: String,
    /// Folders whose files were read, where they may be edited.
    pub folders: Vec<PathBuf>,
    /// Digest of their files' names, sizes and times.
    pub inputs: String,
    /// Digest of the names, sizes and times of the site's files.
    pub outputs: String,
    /// Number of the site's files.
    pub num_files: usize,
}

impl BuildState {
    /// The state after a build.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn after(root: &Path, key: String, folders: Vec<PathBuf>) -> Result<Self, Error> {
        let (outputs, num_files) = stamp(&[root.to_owned()])?;
        let (inputs, _) = stamp(&folders)?;
        Ok(Self {
            key,
            folders,
            inputs,
            outputs,
            num_files,
        })
    }

    /// The number of files of a site that needs no build: same key, and nothing read or written since was touched.
    pub fn unchanged(root: &Path, key: &str) -> Option<usize> {
        let state: Self = serde_json::from_slice(&fs::read(root.join(STATE)).ok()?).ok()?;
        if state.key != key {
            return None;
        }
        let same = stamp(&[root.to_owned()]).ok()?.0 == state.outputs
            && stamp(&state.folders).ok()?.0 == state.inputs;
        same.then_some(state.num_files)
    }

    /// Keeps the state for the next build.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, root: &Path) -> Result<(), Error> {
        let path = root.join(STATE);
        let text = serde_json::to_vec(self).unwrap_or_default();
        fs::write(&path, text).map_err(|source| Error::Io { path, source })
    }
}

/// Digest over names, sizes and times of all files below some folders, and their number. Much cheaper than their content,
/// and whatever edits a file moves its time.
fn stamp(folders: &[PathBuf]) -> Result<(String, usize), Error> {
    use std::fmt::Write;
    let mut text = String::new();
    let mut number = 0;
    let mut open: Vec<PathBuf> = folders.iter().rev().cloned().collect();
    while let Some(folder) = open.pop() {
        let failed = |source| Error::Io {
            path: folder.clone(),
            source,
        };
        let entries: Result<Vec<fs::DirEntry>, io::Error> =
            fs::read_dir(&folder).map_err(failed)?.collect();
        let mut entries = entries.map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let _ = writeln!(text, "{}", folder.display());
        for entry in entries {
            let name = entry.file_name();
            if name == STATE {
                continue;
            }
            // Follows links: mirrors may hold them.
            let found = fs::metadata(entry.path()).map_err(failed)?;
            if found.is_dir() {
                open.push(entry.path());
                continue;
            }
            let time = found
                .modified()
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let _ = writeln!(
                text,
                "{} {} {}",
                name.display(),
                found.len(),
                time.unwrap_or_default().as_nanos()
            );
            number += 1;
        }
    }
    Ok((Digest::of(text.as_bytes()).to_string(), number))
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
        fs::create_dir_all(root.join("data")).unwrap();
        let forged = br#"{"files":[{"path":"../outside.txt"},{"path":"r/old/index.html"}]}"#;
        fs::write(root.join(MANIFEST), forged).unwrap();
        fs::create_dir_all(root.join("r/old")).unwrap();
        fs::write(root.join("r/old/index.html"), "kept").unwrap();
        Site::default().write(&root).unwrap();
        assert!(outside.exists() && root.join("r/old/index.html").exists());
    }

    fn with_snapshot(text: &str) -> Site {
        let mut site = Site::default();
        site.add("index.html", text);
        site.add_snapshot("2026-11-21_12-05", &[], &[]);
        site.add_manifest(&[], &[]);
        site
    }

    #[test]
    fn a_snapshot_never_changes() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        with_snapshot("first").write(dir.path()).unwrap();
        assert_eq!(read("r/2026-11-21_12-05/index.html"), "first");
        with_snapshot("second").write(dir.path()).unwrap();
        assert_eq!(read("index.html"), "second");
        assert_eq!(read("r/2026-11-21_12-05/index.html"), "first");
        assert!(!read(MANIFEST).contains("r/2026"), "{}", read(MANIFEST));
        assert_eq!(snapshots(dir.path()), ["2026-11-21_12-05"]);
    }

    #[test]
    fn a_snapshot_that_was_cut_off_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        with_snapshot("first").write(dir.path()).unwrap();
        fs::remove_file(dir.path().join("r/2026-11-21_12-05/data/manifest.json")).unwrap();
        assert!(snapshots(dir.path()).is_empty());
        with_snapshot("second").write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("r/2026-11-21_12-05/index.html")).unwrap();
        assert_eq!(text, "second");
    }

    #[test]
    fn a_build_is_skipped_until_something_moves() {
        let dir = tempfile::tempdir().unwrap();
        let (root, folder) = (dir.path().join("site"), dir.path().join("input"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.json"), "{}").unwrap();
        with_snapshot("first").write(&root).unwrap();
        let state = BuildState::after(&root, "key".to_owned(), vec![folder.clone()]).unwrap();
        state.save(&root).unwrap();
        assert_eq!(BuildState::unchanged(&root, "key"), Some(4));
        assert_eq!(BuildState::unchanged(&root, "other"), None);
        fs::write(folder.join("a.json"), "{ }").unwrap();
        assert_eq!(BuildState::unchanged(&root, "key"), None);
        BuildState::after(&root, "key".to_owned(), vec![folder])
            .unwrap()
            .save(&root)
            .unwrap();
        fs::write(root.join("index.html"), "edited").unwrap();
        assert_eq!(BuildState::unchanged(&root, "key"), None);
    }
}
