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
    files(folder, is_jsonl)
}

/// Why a folder gives no problem. Published data sets often come as Parquet, so that is told apart.
pub(crate) fn no_rows(folder: &Path) -> Error {
    let is_parquet = |path: &Path| path.extension().is_some_and(|end| end == "parquet");
    let parquet = files(folder, is_parquet).unwrap_or_default();
    let named = parquet.first().map_or_else(String::new, |path| {
        let path = path.strip_prefix(folder).unwrap_or(path).display();
        format!("; {path} is Parquet: write its rows as JSON lines first")
    });
    Error::BadInput {
        path: folder.to_owned(),
        reason: format!("no rows in *.jsonl or *.jsonl.gz files{named}"),
    }
}

fn files(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Error> {
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
            } else if wanted(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn is_jsonl(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")
}
