//! Writing only what changed: files go to a [`Sink`] as they are made, to memory or to a folder.

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
/// Folder of files that are on their way to their place.
const STAGING: &str = ".wmtp-staged";

/// Where the files of a site go as they are made.
pub trait Sink {
    /// Takes a file.
    ///
    /// # Errors
    /// It cannot be kept.
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Takes a second file with the bytes of one that was added before.
    ///
    /// # Errors
    /// It cannot be kept.
    fn add_copy(&mut self, path: String, of: &str) -> Result<(), Error>;
}

/// What pages hand their files to.
pub(crate) trait Tray {
    /// Adds a file to the site and to its snapshot.
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Adds a file that says something else in the snapshot.
    fn add_two(&mut self, path: &str, top: &[u8], copy: &[u8]) -> Result<(), Error>;
}

/// A site in the making: each file goes on to its sink at once, and what the manifests say of it is kept.
pub(crate) struct Press<'a> {
    sink: &'a mut dyn Sink,
    /// Name of the snapshot that is made beside the site.
    snapshot: Option<String>,
    /// Files of the site.
    top: BTreeMap<String, Listed>,
    /// Files of the snapshot, by their place in the site.
    copied: BTreeMap<String, Listed>,
}

/// What a manifest says of a file.
#[derive(Debug, Clone)]
struct Listed {
    size: usize,
    sha256: String,
}

impl Listed {
    fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len(),
            sha256: Digest::of(bytes).to_string(),
        }
    }
}

impl<'a> Press<'a> {
    /// An empty site, with the name of its snapshot where it has one.
    pub(crate) fn new(sink: &'a mut dyn Sink, snapshot: Option<String>) -> Self {
        Self {
            sink,
            snapshot,
            top: BTreeMap::new(),
            copied: BTreeMap::new(),
        }
    }

    /// Adds `data/manifest.json` of the site and of its snapshot: every other file with size and SHA-256, and the
    /// artifacts read.
    pub(crate) fn finish(
        self,
        inputs: &[(String, String)],
        warnings: &[String],
    ) -> Result<(), Error> {
        if let Some(name) = &self.snapshot {
            let text = manifest(&self.copied, inputs, warnings);
            self.sink
                .add(&format!("{SNAPSHOTS}{name}/{MANIFEST}"), text.as_bytes())?;
        }
        let text = manifest(&self.top, inputs, warnings);
        self.sink.add(MANIFEST, text.as_bytes())
    }
}

impl Tray for Press<'_> {
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.sink.add(path, bytes)?;
        let listed = Listed::of(bytes);
        if let Some(name) = &self.snapshot {
            let copy = format!("{SNAPSHOTS}{name}/{path}");
            self.sink.add_copy(copy, path)?;
            self.copied.insert(path.to_owned(), listed.clone());
        }
        self.top.insert(path.to_owned(), listed);
        Ok(())
    }

    fn add_two(&mut self, path: &str, top: &[u8], copy: &[u8]) -> Result<(), Error> {
        self.sink.add(path, top)?;
        self.top.insert(path.to_owned(), Listed::of(top));
        if let Some(name) = &self.snapshot {
            self.sink.add(&format!("{SNAPSHOTS}{name}/{path}"), copy)?;
            self.copied.insert(path.to_owned(), Listed::of(copy));
        }
        Ok(())
    }
}

fn manifest(
    files: &BTreeMap<String, Listed>,
    inputs: &[(String, String)],
    warnings: &[String],
) -> String {
    let files: Vec<Value> = files
        .iter()
        .map(|(path, file)| json!({"path": path, "size": file.size, "sha256": file.sha256}))
        .collect();
    let inputs: Vec<Value> = inputs
        .iter()
        .map(|(role, id)| json!({"role": role, "artifact": id}))
        .collect();
    let generator = json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
    let manifest =
        json!({"generator": generator, "inputs": inputs, "warnings": warnings, "files": files});
    let mut text = format!("{manifest:#}");
    text.push('\n');
    text
}

/// A finished site in memory: relative path to bytes. A snapshot shares the bytes of what it is a copy of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    files: BTreeMap<String, Arc<[u8]>>,
}

impl Sink for Site {
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.files.insert(path.to_owned(), bytes.into());
        Ok(())
    }

    fn add_copy(&mut self, path: String, of: &str) -> Result<(), Error> {
        if let Some(bytes) = self.files.get(of).cloned() {
            self.files.insert(path, bytes);
        }
        Ok(())
    }
}

impl Site {
    /// Brings a folder up to date with the site.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, root: &Path) -> Result<Written, Error> {
        let mut folder = Folder::open(root)?;
        for (path, bytes) in &self.files {
            match self.original(path, bytes) {
                Some(original) => folder.add_copy(path.clone(), original)?,
                None => folder.add(path, bytes)?,
            }
        }
        folder.finish()
    }

    /// What a file of a snapshot is a copy of.
    fn original<'a>(&self, path: &'a str, bytes: &Arc<[u8]>) -> Option<&'a str> {
        let (_, original) = path.strip_prefix(SNAPSHOTS)?.split_once('/')?;
        let shared = self.files.get(original)?;
        Arc::ptr_eq(shared, bytes).then_some(original)
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
            .map(|(path, bytes)| (path.as_str(), &bytes[..]))
    }

    /// A file as text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files
            .get(path)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }
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

/// A folder that is brought up to date. What differs from what stands there is staged as it comes, and takes its place
/// in [`Folder::finish`], when every page has been made: a build that fails or is cut off before leaves the site as it
/// was.
pub struct Folder {
    root: PathBuf,
    /// Files of the earlier build.
    before: BTreeSet<String>,
    /// Files of this build outside of snapshots.
    wanted: BTreeSet<String>,
    /// Staged files: number in the staging folder, place in the site.
    staged: Vec<(usize, String)>,
    num_staged: usize,
    /// Files of snapshots that are copies: place, and place of the original.
    copies: Vec<(String, String)>,
    /// Whether a snapshot was whole before.
    whole: BTreeMap<String, bool>,
    written: Written,
}

impl Sink for Folder {
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        if path.starts_with(SNAPSHOTS) {
            if self.is_whole(path) {
                self.written.unchanged += 1;
                return Ok(());
            }
        } else {
            self.wanted.insert(path.to_owned());
            if self.is_there(path, bytes) {
                self.written.unchanged += 1;
                return Ok(());
            }
        }
        let place = self.staging(self.num_staged);
        fs::write(&place, bytes).map_err(|source| Error::Io {
            path: place,
            source,
        })?;
        self.staged.push((self.num_staged, path.to_owned()));
        self.num_staged += 1;
        Ok(())
    }

    fn add_copy(&mut self, path: String, of: &str) -> Result<(), Error> {
        if self.is_whole(&path) {
            self.written.unchanged += 1;
        } else {
            self.copies.push((path, of.to_owned()));
        }
        Ok(())
    }
}

impl Folder {
    /// A folder, which need not be there yet. What a build that was cut off staged in it is removed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let staging = root.join(STAGING);
        let _ = fs::remove_dir_all(&staging);
        fs::create_dir_all(&staging).map_err(|source| Error::Io {
            path: staging,
            source,
        })?;
        Ok(Self {
            root: root.to_owned(),
            before: listed(root),
            wanted: BTreeSet::new(),
            staged: Vec::new(),
            num_staged: 0,
            copies: Vec::new(),
            whole: BTreeMap::new(),
            written: Written::default(),
        })
    }

    /// Puts the whole in place: files are renamed to where they belong; when all stand, files that only an earlier
    /// manifest lists are removed; the manifest comes last, so that this step cut off is begun anew.
    ///
    /// # Errors
    /// A file cannot be put in place.
    pub fn finish(mut self) -> Result<Written, Error> {
        let staged = std::mem::take(&mut self.staged);
        let copies = std::mem::take(&mut self.copies);
        let is_manifest = |place: &str| place.ends_with(MANIFEST);
        let mut folders = BTreeSet::new();
        for (number, place) in staged.iter().filter(|(_, place)| !is_manifest(place)) {
            self.place(*number, place, &mut folders)?;
        }
        for (place, original) in &copies {
            self.link(place, original, &mut folders)?;
        }
        let (own, of_snapshots): (Vec<_>, Vec<_>) = staged
            .iter()
            .filter(|(_, place)| is_manifest(place))
            .partition(|(_, place)| place == MANIFEST);
        for (number, place) in of_snapshots {
            self.place(*number, place, &mut folders)?;
        }
        self.remove_gone();
        for (number, place) in own {
            self.place(*number, place, &mut folders)?;
        }
        Ok(std::mem::take(&mut self.written))
    }

    /// A snapshot never changes: one that was whole before is left alone, whatever it holds.
    fn is_whole(&mut self, path: &str) -> bool {
        let Some((name, _)) = path[SNAPSHOTS.len()..].split_once('/') else {
            return false;
        };
        if let Some(whole) = self.whole.get(name) {
            return *whole;
        }
        let whole = self
            .root
            .join(SNAPSHOTS)
            .join(name)
            .join(MANIFEST)
            .is_file();
        self.whole.insert(name.to_owned(), whole);
        whole
    }

    fn is_there(&self, path: &str, bytes: &[u8]) -> bool {
        let target = self.root.join(path);
        fs::metadata(&target).is_ok_and(|found| found.len() == bytes.len() as u64)
            && fs::read(&target).is_ok_and(|present| present == bytes)
    }

    fn staging(&self, number: usize) -> PathBuf {
        self.root.join(STAGING).join(number.to_string())
    }

    fn place(
        &mut self,
        number: usize,
        place: &str,
        folders: &mut BTreeSet<PathBuf>,
    ) -> Result<(), Error> {
        let target = self.root.join(place);
        with_parent(&target, folders)
            .and_then(|()| fs::rename(self.staging(number), &target))
            .map_err(|source| Error::Io {
                path: target,
                source,
            })?;
        self.written.changed += 1;
        Ok(())
    }

    /// A file of a snapshot that is not whole yet: a second name of the file that it is a copy of, where the disk allows
    /// it. What replaces that file later is a new one, so the snapshot keeps what it has.
    fn link(
        &mut self,
        place: &str,
        original: &str,
        folders: &mut BTreeSet<PathBuf>,
    ) -> Result<(), Error> {
        let (target, original) = (self.root.join(place), self.root.join(original));
        let mut link = || {
            with_parent(&target, folders)?;
            match fs::hard_link(&original, &target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_file(&target)?;
                    fs::hard_link(&original, &target)
                }
                linked => linked,
            }
            .or_else(|_| fs::copy(&original, &target).map(drop))
        };
        link().map_err(|source| Error::Io {
            path: target.clone(),
            source,
        })?;
        self.written.changed += 1;
        Ok(())
    }

    /// Removes what only the earlier manifest lists.
    fn remove_gone(&mut self) {
        for path in std::mem::take(&mut self.before) {
            if !self.wanted.contains(&path) && fs::remove_file(self.root.join(&path)).is_ok() {
                self.written.removed += 1;
                remove_empty_parents(&self.root, &path);
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.root.join(STAGING));
    }
}

fn with_parent(target: &Path, folders: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let Some(parent) = target.parent().filter(|parent| !folders.contains(*parent)) else {
        return Ok(());
    };
    fs::create_dir_all(parent)?;
    folders.insert(parent.to_owned());
    Ok(())
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

    fn site(files: &[(&str, &str)], snapshot: Option<&str>) -> Site {
        let mut site = Site::default();
        let mut press = Press::new(&mut site, snapshot.map(str::to_owned));
        for (path, text) in files {
            press.add(path, text.as_bytes()).unwrap();
        }
        press.finish(&[], &[]).unwrap();
        site
    }

    fn with_snapshot(text: &str) -> Site {
        site(&[("index.html", text)], Some("2026-11-21_12-05"))
    }

    #[test]
    fn a_second_build_changes_nothing_and_a_smaller_one_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let whole = site(&[("index.html", "a"), ("v/v001/index.html", "b")], None);
        assert_eq!(whole.write(dir.path()).unwrap().changed, 3);
        let again = whole.write(dir.path()).unwrap();
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
        let smaller = site(&[("index.html", "a")], None);
        assert_eq!(
            smaller.write(dir.path()).unwrap(),
            Written {
                changed: 1,
                unchanged: 1,
                removed: 1
            }
        );
        assert!(dir.path().join("theirs.txt").exists());
        assert!(!dir.path().join("v").exists(), "empty folders go too");
    }

    #[test]
    fn a_build_that_fails_half_way_leaves_the_site_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        let files = [("index.html", "old"), ("gone.html", "old")];
        site(&files, None).write(dir.path()).unwrap();
        let listed = read(MANIFEST);
        let mut folder = Folder::open(dir.path()).unwrap();
        folder.add("index.html", b"new").unwrap();
        folder.add("new/index.html", b"new").unwrap();
        drop(folder);
        assert_eq!(read("index.html").as_deref(), Some("old"));
        assert_eq!(read("gone.html").as_deref(), Some("old"));
        assert_eq!(read(MANIFEST), listed);
        assert!(!dir.path().join("new").exists() && !dir.path().join(STAGING).exists());
    }

    #[test]
    fn what_a_killed_build_staged_is_no_part_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join(STAGING);
        fs::create_dir_all(&staged).unwrap();
        fs::write(staged.join("0"), "of a page that is gone").unwrap();
        assert_eq!(with_snapshot("a").write(dir.path()).unwrap().changed, 4);
        assert!(!staged.exists());
        let text = fs::read_to_string(dir.path().join("index.html")).unwrap();
        assert_eq!(text, "a");
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
