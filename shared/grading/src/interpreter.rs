//! Finds the CPython that programs run on.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Error;

const PROBE: &str = include_str!("probe.py");
const NAMES: [&str; 2] = ["python3.11", "python3"];

/// A real interpreter binary, never a version manager's shim.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Interpreter {
    /// The binary.
    pub(crate) executable: PathBuf,
    /// For example `3.11.7`.
    pub(crate) version: String,
    /// Files and folders that it reads: itself, its library, the system libraries it links.
    pub(crate) roots: Vec<PathBuf>,
    minor: (u32, u32),
    implementation: String,
}

impl Interpreter {
    /// Takes `wanted`, or the first usable interpreter on the search path.
    ///
    /// `prefer_public` skips, while there is another, interpreters that only their owner can read: a spare
    /// user could not start them.
    pub(crate) fn find(wanted: Option<&Path>, prefer_public: bool) -> Result<Self, Error> {
        let mut tried = Vec::new();
        let mut private = None;
        let candidates = wanted.map_or_else(on_search_path, |path| vec![path.to_owned()]);
        for candidate in candidates {
            match Self::probe(&candidate) {
                Ok(found) if !prefer_public || found.is_public() => return Ok(found),
                Ok(found) => private = private.or(Some(found)),
                Err(reason) => tried.push(format!("{}: {reason}", candidate.display())),
            }
        }
        private.ok_or(Error::Interpreter { tried })
    }

    /// Asks an interpreter about itself. The only code that runs outside the sandbox is our own.
    fn probe(python: &Path) -> Result<Self, String> {
        let output = Command::new(python)
            .args(["-I", "-S", "-B", "-c", PROBE])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(stderr.lines().last().unwrap_or("failed").to_owned());
        }
        let found: Self =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        if found.implementation != "cpython" || found.minor < (3, 9) {
            return Err(format!("{} {}", found.implementation, found.version));
        }
        Ok(found)
    }

    /// Whether any user can run it.
    pub(crate) fn is_public(&self) -> bool {
        is_reachable(&self.executable) && self.roots.iter().all(|root| is_reachable(root))
    }
}

/// Whether users without rights of their own can read `path` and pass every folder above it.
fn is_reachable(path: &Path) -> bool {
    const READ_AND_PASS: u32 = 0o005;
    const PASS: u32 = 0o001;
    let mode = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.mode());
    let needed = if path.extension() == Some(OsStr::new("zip")) {
        0o004
    } else {
        READ_AND_PASS
    };
    mode(path) & needed == needed
        && path
            .ancestors()
            .skip(1)
            .all(|folder| mode(folder) & PASS == PASS)
}

fn on_search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    let mut candidates: Vec<PathBuf> = Vec::new();
    for name in NAMES {
        for folder in &folders {
            let candidate = folder.join(name);
            if candidate.is_file() && !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interpreter_is_named() {
        let error = Interpreter::find(Some(Path::new("/nowhere/python3")), false).unwrap_err();
        assert!(error.to_string().contains("/nowhere/python3"), "{error}");
    }

    #[test]
    fn the_found_interpreter_lies_under_its_own_roots() {
        let found = Interpreter::find(None, false).unwrap();
        assert!(found.roots.contains(&found.executable), "{found:?}");
        assert!(found.version.starts_with("3."));
    }
}
