//! Folders: what is in them, digests, copies, `SHA256SUMS`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use wmtp_artifacts::Digest;
use wmtp_job_kit::{JobError, Progress};

/// Name of checksum files.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// Bytes copied between two looks at whether to go on.
const COPIED_AT_ONCE: u64 = 256 << 20;

/// Files of a folder: relative path with `/`, digest.
pub(crate) type Listing = BTreeMap<String, Digest>;

/// Lists the regular files below a folder in the order of their names.
///
/// # Errors
/// 65 when the folder is empty, when a link leads out of it, or when something is neither file nor folder.
pub(crate) fn files(root: &Path) -> Result<Vec<String>, JobError> {
    let base = root.canonicalize().map_err(|error| {
        JobError::bad_input(error).context(format!("folder {}", root.display()))
    })?;
    let mut found = Vec::new();
    walk(&base, &base, &mut found)?;
    if found.is_empty() {
        return Err(JobError::bad_input(format!(
            "folder {} holds no files",
            root.display()
        )));
    }
    found.sort();
    Ok(found)
}

fn walk(base: &Path, dir: &Path, found: &mut Vec<String>) -> Result<(), JobError> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| JobError::bad_input(error).context(path)
    };
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        let target = path.canonicalize().map_err(at(&path))?;
        if !target.starts_with(base) {
            return Err(JobError::bad_input(format!(
                "{} is a link to {}, outside the folder",
                path.display(),
                target.display()
            ))
            .hint("copy what it points to into the folder"));
        }
        let is_link = path.symlink_metadata().map_err(at(&path))?.is_symlink();
        if target.is_dir() && is_link {
            return Err(JobError::bad_input(format!(
                "{} is a link to a folder",
                path.display()
            )));
        }
        if target.is_dir() {
            walk(base, &path, found)?;
        } else if target.is_file() {
            found.push(relative(base, &path)?);
        } else {
            return Err(JobError::bad_input(format!(
                "{} is no regular file",
                path.display()
            )));
        }
    }
    Ok(())
}

fn relative(base: &Path, path: &Path) -> Result<String, JobError> {
    let name = path.strip_prefix(base).ok().and_then(Path::to_str);
    name.map(str::to_owned)
        .ok_or_else(|| JobError::bad_input(format!("{} is not a name in UTF-8", path.display())))
}

/// Whether to go on: asked after each part of long work.
pub(crate) type GoOn<'a> = &'a dyn Fn() -> Result<(), JobError>;

/// Hashes the files of a folder.
pub(crate) fn digests(root: &Path, files: &[String]) -> Result<Listing, JobError> {
    digests_while(&|| Ok(()), root, files)
}

/// [`digests`], for as long as it may go on.
pub(crate) fn digests_while(
    go_on: GoOn<'_>,
    root: &Path,
    files: &[String],
) -> Result<Listing, JobError> {
    let digest = |file: &String| {
        go_on()?;
        Ok((file.clone(), Digest::of_file(&root.join(file))?))
    };
    files.iter().map(digest).collect()
}

/// Copies files and checks that they are the bytes that were listed.
pub(crate) fn copy(
    go_on: GoOn<'_>,
    from: &Path,
    to: &Path,
    listing: &Listing,
    progress: &Progress,
) -> Result<(), JobError> {
    for (file, digest) in listing {
        let (source, target) = (from.join(file), to.join(file));
        create_parent(&target)?;
        copy_bytes(go_on, &source, &target).map_err(|error| {
            let (from, to) = (source.display(), target.display());
            error.context(format!("copying {from} to {to}"))
        })?;
        let copied = Digest::of_file(&target)?;
        if copied != *digest {
            return Err(JobError::integrity(format!(
                "{} has SHA-256 {copied}, expected {digest}",
                target.display()
            ))
            .hint("the source changed while it was read, or the disk is failing; try again"));
        }
        progress.inc(1);
    }
    Ok(())
}

/// Copies the content alone: a copy of a read-only file can be written.
fn copy_bytes(go_on: GoOn<'_>, from: &Path, to: &Path) -> Result<(), JobError> {
    let (from, mut to) = (File::open(from)?, File::create(to)?);
    loop {
        go_on()?;
        if std::io::copy(&mut (&from).take(COPIED_AT_ONCE), &mut to)? == 0 {
            return Ok(());
        }
    }
}

/// A folder that is made beside its place, and appears there when it is whole.
pub(crate) struct Unfinished {
    part: tempfile::TempDir,
    target: PathBuf,
}

impl Unfinished {
    /// Begins one.
    ///
    /// # Errors
    /// 65 where there is something already; an empty folder may be replaced.
    pub(crate) fn beside(target: &Path) -> Result<Self, JobError> {
        let is_empty = std::fs::read_dir(target).is_ok_and(|mut found| found.next().is_none());
        if target.exists() && !is_empty {
            let what = format!("{} is there already", target.display());
            return Err(JobError::bad_input(what).hint("choose a folder that does not exist yet"));
        }
        create_parent(target)?;
        let parent = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let part = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(parent.unwrap_or_else(|| Path::new(".")))
            .map_err(|error| at(target, error))?;
        Ok(Self {
            part,
            target: target.to_owned(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Puts it into its place.
    pub(crate) fn finish(self) -> Result<(), JobError> {
        std::fs::rename(self.part.keep(), &self.target).map_err(|error| at(&self.target, error))
    }
}

fn at(path: &Path, error: std::io::Error) -> JobError {
    JobError::from(error).context(format!("writing {}", path.display()))
}

/// Creates the folder of a file.
pub(crate) fn create_parent(file: &Path) -> Result<(), JobError> {
    let parent = file.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(parent)
        .map_err(|error| JobError::from(error).context(format!("creating {}", parent.display())))
}

/// Writes a file, creating its folder.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> Result<(), JobError> {
    create_parent(file)?;
    std::fs::write(file, bytes)
        .map_err(|error| JobError::from(error).context(format!("writing {}", file.display())))
}

/// The text of a checksum file: hex, two blanks, name; the checksum file itself left out.
pub(crate) fn sums(listing: &Listing) -> String {
    let mut text = String::new();
    for (file, digest) in listing.iter().filter(|(file, _)| *file != SUMS) {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{digest}  {file}");
    }
    text
}

/// Checks the files that a checksum file names against it.
///
/// # Errors
/// 65 for a line that is none or names a file that is missing, 76 for a digest that differs.
pub(crate) fn check_sums(path: &Path, listing: &Listing) -> Result<(), JobError> {
    check_lines(path, listing, true)
}

/// [`check_sums`] of the files that are there.
///
/// # Errors
/// As [`check_sums`], but for files that are missing.
pub(crate) fn check_present(path: &Path, listing: &Listing) -> Result<(), JobError> {
    check_lines(path, listing, false)
}

fn check_lines(path: &Path, listing: &Listing, is_whole: bool) -> Result<(), JobError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| JobError::bad_input(error).context(path.display().to_string()))?;
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), number + 1);
        if line.trim().is_empty() {
            continue;
        }
        let (digest, file) = line
            .split_once("  ")
            .and_then(|(hex, file)| Some((hex.parse::<Digest>().ok()?, file)))
            .ok_or_else(|| {
                JobError::bad_input(format!(
                    "{}: expected a SHA-256, two blanks and a file name",
                    place()
                ))
            })?;
        match listing.get(file) {
            None if is_whole => {
                return Err(JobError::bad_input(format!(
                    "{}: {file} is missing",
                    place()
                )));
            }
            Some(found) if *found != digest => {
                return Err(JobError::integrity(format!(
                    "{}: {file} has SHA-256 {found}, expected {digest}",
                    place()
                )));
            }
            None | Some(_) => {}
        }
    }
    Ok(())
}

/// Hashes every file below a folder against a manifest.
pub(crate) fn verify(
    go_on: GoOn<'_>,
    root: &Path,
    manifest: &wmtp_job_kit::Manifest,
    progress: &Progress,
) -> Result<(), JobError> {
    for file in &manifest.content.files {
        go_on()?;
        let path: PathBuf = root.join(&file.path);
        let found = Digest::of_file(&path)?;
        if found != file.sha256 {
            return Err(JobError::integrity(format!(
                "{} has SHA-256 {found}, the manifest says {}",
                path.display(),
                file.sha256
            )));
        }
        progress.inc(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            write(&dir.path().join(name), text.as_bytes()).unwrap();
        }
        dir
    }

    #[test]
    fn an_empty_folder_and_links_that_lead_out_are_refused() {
        let dir = folder(&[]);
        assert_eq!(
            files(dir.path()).unwrap_err().exit(),
            wmtp_job_kit::Exit::BadInput
        );
        let elsewhere = folder(&[("a.txt", "a")]);
        let target = elsewhere.path().join("a.txt");
        std::os::unix::fs::symlink(target, dir.path().join("link")).unwrap();
        let error = files(dir.path()).unwrap_err();
        assert!(error.to_string().contains("outside the folder"), "{error}");
    }

    #[test]
    fn long_work_ends_between_its_parts_when_it_is_told_to() {
        let dir = folder(&[("a", "a"), ("b", "b")]);
        let target = dir.path().join("copy");
        // Asked before each part of a file, and at its end.
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            (asked.get() < 3)
                .then_some(())
                .ok_or_else(JobError::preempted)
        };
        copy_bytes(&go_on, &dir.path().join("a"), &target).unwrap();
        assert_eq!(
            (asked.get(), std::fs::read(&target).unwrap()),
            (2, b"a".to_vec())
        );
        let copied = copy_bytes(&go_on, &dir.path().join("b"), &target);
        let names = files(dir.path()).unwrap();
        let hashed = digests_while(&go_on, dir.path(), &names).map(|_| ());
        for stopped in [copied, hashed] {
            assert_eq!(stopped.unwrap_err().exit(), wmtp_job_kit::Exit::Preempted);
        }
    }

    #[test]
    fn checksum_files_are_written_and_checked() {
        let dir = folder(&[("b.txt", "b"), ("a/a.txt", "a")]);
        let names = files(dir.path()).unwrap();
        assert_eq!(names, ["a/a.txt", "b.txt"]);
        let listing = digests(dir.path(), &names).unwrap();
        let path = dir.path().join(SUMS);
        write(&path, sums(&listing).as_bytes()).unwrap();
        // printf a | sha256sum
        let first = sums(&listing).lines().next().unwrap().to_owned();
        assert_eq!(
            first,
            "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a/a.txt"
        );
        check_sums(&path, &listing).unwrap();

        write(&dir.path().join("b.txt"), b"other").unwrap();
        let listing = digests(dir.path(), &names).unwrap();
        let error = check_sums(&path, &listing).unwrap_err();
        assert_eq!(error.exit(), wmtp_job_kit::Exit::Integrity);
        assert!(error.to_string().contains("line 2: b.txt"), "{error}");
    }

    #[test]
    fn no_checksum_file_makes_the_reader_fail() {
        let corpus = "tests/corpus/sums";
        let dir = folder(&[("a/a.txt", "a"), ("b.txt", "b")]);
        let listing = digests(dir.path(), &files(dir.path()).unwrap()).unwrap();
        let path = dir.path().join(SUMS);
        fuzzing::run(corpus.as_ref(), |bytes| {
            std::fs::write(&path, bytes).unwrap();
            check_sums(&path, &listing).map_or_else(
                |error| error.to_string().replace(&path.display().to_string(), ""),
                |()| "right".to_owned(),
            )
        });
    }
}
