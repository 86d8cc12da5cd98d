//! What running jobs hold of a mirror, and what may go when it would grow beyond its limit.
//!
//! Each artifact that was fetched has a file `uses/<id>`: the digests of its contents, and its time of change is that of
//! the last fetch. Whoever uses the artifact has the file locked, shared, until it ends, however it ends. Under the lock
//! of the whole mirror, which is held for a moment only, an artifact whose file nobody has locked may go; the one that
//! was used least recently goes first, and of its contents those that no other artifact lists.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::mirror::{Mirror, remove_if_there};
use crate::{ArtifactId, Error, FileEntry, Manifest, Result};

const USES: &str = "uses";
const PART: &str = "part";

/// An artifact of the mirror, and when it was last fetched.
struct Use {
    path: PathBuf,
    used: SystemTime,
    digests: BTreeSet<String>,
    is_held: bool,
}

/// A content of the mirror, or what an interrupted fetch left of one.
struct Kept {
    path: PathBuf,
    digest: String,
    bytes: u64,
    used: SystemTime,
}

impl Mirror {
    /// Marks an artifact as in use by this process, and makes room for what of its wanted files is not here yet.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it does not fit beside what running jobs hold, or onto the disk.
    pub(crate) fn hold(&self, manifest: &Manifest, wanted: &[FileEntry]) -> Result<()> {
        let _alone = self.lock()?;
        if !self.is_holding(&manifest.id) {
            let file = self.write_use(manifest)?;
            self.keep_holding(&manifest.id, file);
        }
        self.touch_use(&manifest.id)?;
        if let Some(limit) = self.limit() {
            self.make_room(limit, wanted)?;
        }
        self.check_room(wanted)
    }

    /// The lock of the whole mirror.
    fn lock(&self) -> Result<File> {
        let path = self.root().join("lock");
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|source| Error::io(&path, source))
    }

    fn use_path(&self, id: &ArtifactId) -> PathBuf {
        self.root().join(USES).join(id.to_string())
    }

    /// Writes what an artifact lists, and returns the file, locked.
    fn write_use(&self, manifest: &Manifest) -> Result<File> {
        let path = self.use_path(&manifest.id);
        let folder = self.root().join(USES);
        let write = || {
            fs::create_dir_all(&folder)?;
            let file = OpenOptions::new()
                .read(true)
                .create(true)
                .append(true)
                .open(&path)?;
            file.lock_shared()?;
            let mut text = String::new();
            for entry in &manifest.content.files {
                text.push_str(&entry.sha256.to_string());
                text.push('\n');
            }
            // The list of an id never changes; a shorter one was cut off by a kill.
            if file.metadata()?.len() != text.len() as u64 {
                file.set_len(0)?;
                (&file).write_all(text.as_bytes())?;
            }
            Ok(file)
        };
        write().map_err(|source| Error::io(&path, source))
    }

    fn touch_use(&self, id: &ArtifactId) -> Result<()> {
        let path = self.use_path(id);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|source| Error::io(&path, source))
    }

    /// Lets go what nobody holds, the least recently used first, until the contents that are missing fit.
    fn make_room(&self, limit: u64, files: &[FileEntry]) -> Result<()> {
        let mut kept = self.kept()?;
        let here: BTreeSet<_> = kept.iter().map(|kept| kept.path.clone()).collect();
        let mut wanted: Vec<_> = files.iter().map(|file| (file.sha256, file.size)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let needed: u64 = wanted
            .iter()
            .filter(|(digest, _)| !here.contains(&self.blob(digest)))
            .map(|(_, size)| size)
            .sum();
        let mut present: u64 = kept.iter().map(|kept| kept.bytes).sum();
        if present + needed <= limit {
            return Ok(());
        }
        let mut uses = self.uses()?;
        uses.sort_by_key(|found| found.used);
        let listed: BTreeSet<_> = uses.iter().flat_map(|found| &found.digests).collect();
        // What nobody lists goes before all else: rests of another version, or of fetches that were given up.
        let (mut going, rest): (Vec<_>, Vec<_>) = kept
            .into_iter()
            .partition(|kept| !listed.contains(&kept.digest));
        kept = rest;
        going.sort_by_key(|kept| kept.used);
        present -= drop_until(going, |bytes| present - bytes + needed <= limit)?;
        while present + needed > limit {
            let Some(place) = uses.iter().position(|found| !found.is_held) else {
                return Err(self.too_small(limit, present, needed));
            };
            let gone = uses.remove(place);
            self.forget(&gone)?;
            let still: BTreeSet<_> = uses.iter().flat_map(|found| &found.digests).collect();
            let (going, rest): (Vec<_>, Vec<_>) = kept.into_iter().partition(|kept| {
                gone.digests.contains(&kept.digest) && !still.contains(&kept.digest)
            });
            kept = rest;
            present -= drop_until(going, |_| false)?;
        }
        Ok(())
    }

    fn too_small(&self, limit: u64, held: u64, needed: u64) -> Error {
        Error::NoSpace {
            what: self.root().display().to_string(),
            detail: format!(
                "the cache may hold {limit} bytes; running jobs hold {held} of them and {needed} more are to be fetched"
            ),
        }
    }

    /// Removes an artifact's tree and the note of its use; its contents are others' matter.
    fn forget(&self, gone: &Use) -> Result<()> {
        let name = gone.path.file_name().unwrap_or_default();
        let tree = self.root().join("trees").join(name);
        tracing::info!(artifact = %name.to_string_lossy(), "leaves the cache");
        match fs::remove_dir_all(&tree) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&tree, error));
            }
            _ => {}
        }
        remove_if_there(&gone.path)
    }

    fn uses(&self) -> Result<Vec<Use>> {
        entries(&self.root().join(USES))?
            .into_iter()
            .map(|path| read_use(&path).map_err(|source| Error::io(&path, source)))
            .collect()
    }

    /// All contents, and what interrupted fetches left.
    fn kept(&self) -> Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for folder in entries(&self.root().join("blobs/sha256"))? {
            for path in entries(&folder)? {
                let found = fs::metadata(&path).map_err(|source| Error::io(&path, source))?;
                let digest = path.file_stem().unwrap_or_default().to_string_lossy();
                kept.push(Kept {
                    digest: digest.into_owned(),
                    bytes: found.len(),
                    used: found
                        .modified()
                        .map_err(|source| Error::io(&path, source))?,
                    path,
                });
            }
        }
        Ok(kept)
    }
}

/// Removes files, in order, until it is enough; returns the bytes that went.
fn drop_until(files: Vec<Kept>, is_enough: impl Fn(u64) -> bool) -> Result<u64> {
    let mut gone = 0;
    for kept in files {
        if is_enough(gone) {
            break;
        }
        if kept.path.extension().is_some_and(|end| end == PART) && is_locked(&kept.path) {
            continue;
        }
        remove_if_there(&kept.path)?;
        gone += kept.bytes;
    }
    Ok(gone)
}

/// Whether someone has a file locked, in whatever way.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn read_use(path: &Path) -> std::io::Result<Use> {
    let mut text = String::new();
    let mut file = File::open(path)?;
    file.read_to_string(&mut text)?;
    Ok(Use {
        path: path.to_owned(),
        used: file.metadata()?.modified()?,
        digests: text.lines().map(str::to_owned).collect(),
        is_held: is_locked(path),
    })
}

/// What lies in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::io(folder, source);
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io(error)),
        Ok(found) => found.map(|entry| Ok(entry.map_err(io)?.path())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mirror::PartialFile;
    use crate::{Content, Digest, Kind, Provenance};

    fn manifest(texts: &[&str]) -> Manifest {
        let files = texts.iter().map(|text| FileEntry {
            path: (*text).to_owned(),
            size: text.len() as u64,
            sha256: Digest::of(text.as_bytes()),
            parts: None,
        });
        let content = Content {
            files: files.collect(),
            ..Content::default()
        };
        let provenance = Provenance {
            job: "test".to_owned(),
            run_id: "job-0123456789abcdef".parse().unwrap(),
            attempt: 1,
            code_version: "0.1.0".to_owned(),
            code_revision: None,
            recipe_version: 1,
            recipe: json!(null),
            options: json!({}),
            inputs: vec![],
            created_at: "2026-11-21T02:22:02Z".parse().unwrap(),
        };
        Manifest::new(Kind::RawData, content, provenance).unwrap()
    }

    /// What a fetch does, without a store.
    fn fetch(mirror: &Mirror, manifest: &Manifest) -> Result<()> {
        mirror.hold(manifest, &manifest.content.files)?;
        for entry in &manifest.content.files {
            if !mirror.has(entry)? {
                let mut part = PartialFile::open(mirror.blob(&entry.sha256))?.unwrap();
                part.append(entry.path.as_bytes())?;
                part.finish(Digest::of(entry.path.as_bytes()), entry)?;
            }
            mirror.place(entry, &mirror.tree(&manifest.id))?;
        }
        Ok(())
    }

    fn is_whole(mirror: &Mirror, manifest: &Manifest) -> bool {
        let tree = mirror.tree(&manifest.id);
        let mut files = manifest.content.files.iter();
        files.all(|entry| {
            mirror.has(entry).unwrap()
                && fs::read_to_string(tree.join(&entry.path)).is_ok_and(|text| text == entry.path)
        })
    }

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        /// As another process opens it.
        fn open(&self, limit: u64) -> Mirror {
            Mirror::open(self.dir.path()).unwrap().with_limit(limit)
        }
    }

    fn place() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn set_used(mirror: &Mirror, manifest: &Manifest, seconds: u64) {
        let file = File::options()
            .append(true)
            .open(mirror.use_path(&manifest.id));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        file.unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_first_and_shared_contents_stay() {
        let place = place();
        let (a, b, c) = (
            manifest(&["aaaaaaaaaa", "shared"]),
            manifest(&["bbbbbbbbbb", "shared"]),
            manifest(&["cccccccccc"]),
        );
        for made in [&a, &b] {
            fetch(&place.open(26), made).unwrap();
        }
        // The one that was fetched first was used last.
        let mirror = place.open(26);
        set_used(&mirror, &a, 2000);
        set_used(&mirror, &b, 1000);
        fetch(&mirror, &c).unwrap();
        assert!(is_whole(&mirror, &a) && is_whole(&mirror, &c));
        assert!(!is_whole(&mirror, &b) && !mirror.tree(&b.id).exists());
        assert_eq!(mirror.kept().unwrap().len(), 3);
    }

    #[test]
    fn what_a_running_job_holds_stays() {
        let place = place();
        let (old, new) = (manifest(&["aaaaaaaaaa"]), manifest(&["bbbbbbbbbb"]));
        let running = place.open(15);
        fetch(&running, &old).unwrap();
        set_used(&running, &old, 0);
        let error = fetch(&place.open(15), &new).unwrap_err();
        assert_eq!(error.exit_class().code(), 73);
        assert!(
            error.to_string().contains("running jobs hold 10"),
            "{error}"
        );
        assert!(is_whole(&running, &old));
        drop(running);
        let mirror = place.open(15);
        fetch(&mirror, &new).unwrap();
        assert!(is_whole(&mirror, &new) && !is_whole(&mirror, &old));
    }

    #[test]
    fn what_nobody_lists_goes_before_what_was_used() {
        let place = place();
        let (used, new) = (manifest(&["aaaaaaaaaa"]), manifest(&["bbbbbbbbbb"]));
        fetch(&place.open(30), &used).unwrap();
        let mirror = place.open(30);
        let mut left = PartialFile::open(mirror.blob(&Digest::of(b"x")))
            .unwrap()
            .unwrap();
        left.append(b"half of a content").unwrap();
        // Someone is still at it.
        assert!(
            mirror.hold(&new, &new.content.files).is_ok(),
            "the artifact that was used goes"
        );
        assert!(!mirror.tree(&used.id).exists());
        drop(left);
        fetch(&place.open(25), &used).unwrap();
        assert!(is_whole(&mirror, &used));
        assert!(!mirror.blob(&Digest::of(b"x")).with_extension(PART).exists());
    }

    #[test]
    fn a_list_that_a_kill_cut_off_is_written_anew() {
        let place = place();
        let made = manifest(&["aaaaaaaaaa", "bbbbbbbbbb"]);
        let mirror = place.open(100);
        fs::create_dir_all(mirror.use_path(&made.id).parent().unwrap()).unwrap();
        fs::write(mirror.use_path(&made.id), "0123").unwrap();
        fetch(&mirror, &made).unwrap();
        let found = read_use(&mirror.use_path(&made.id)).unwrap();
        assert_eq!((found.digests.len(), found.is_held), (2, true));
    }
}
