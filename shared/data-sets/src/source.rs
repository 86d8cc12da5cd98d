//! A problem before its programs are judged.

use std::path::{Path, PathBuf};

use wmtp_records::{Problem, Split};

use crate::Error;

/// A problem with candidate programs. Made by the readers; judged by [`crate::label()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProblem {
    /// Statement, prompt and tests.
    pub problem: Problem,
    /// The part of the data set that it belongs to.
    pub split: Split,
    /// The split that the source itself names.
    pub original_split: Option<Split>,
    /// Programs meant to be right, best first.
    pub solutions: Vec<String>,
    /// Programs meant to be wrong, in the order in which they are wanted.
    pub mutants: Vec<String>,
}

/// All `*.jsonl` and `*.jsonl.gz` files in the folder and its sub-folders, sorted.
pub(crate) fn jsonl_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let io = |source| Error::Io {
            path: folder.clone(),
            source,
        };
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if is_jsonl(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn is_jsonl(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")
}
