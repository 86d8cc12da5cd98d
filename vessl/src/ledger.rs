//! What was submitted and how it ended: a file that a later call goes on from.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wmtp_artifacts::Digest;
use wmtp_job_kit::JobError;

/// Version of the file's layout.
const SCHEMA: u32 = 1;

/// Every step that was submitted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    schema: u32,
    steps: BTreeMap<String, Entry>,
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Digest of the spec: another spec is another run.
    pub(crate) spec: Digest,
    /// Where it stands.
    pub(crate) stand: Stand,
    /// Runs so far, oldest first, those with another spec included.
    pub(crate) runs: Vec<u64>,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stand {
    /// About to be submitted: the run may or may not be there.
    Submitting,
    /// Its last run is under way.
    UnderWay,
    /// Done.
    Done,
    /// Failed for good, or made from what has been made anew since.
    Failed,
}

/// The file and what it holds.
pub(crate) struct Ledger {
    path: PathBuf,
    contents: Contents,
    /// Held as long as this lives.
    _lock: File,
}

impl Ledger {
    /// Opens a file, or begins one. It stays locked: two programs would submit everything twice.
    pub(crate) fn open(path: &Path) -> Result<Self, JobError> {
        let lock = lock(path)?;
        let contents = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                JobError::bad_input(error)
                    .context(format!("reading {}", path.display()))
                    .hint("without this file everything is submitted again; jobs that are done end at once")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Contents {
                schema: SCHEMA,
                steps: BTreeMap::new(),
            },
            Err(error) => return Err(JobError::from(error).context(format!("reading {}", path.display()))),
        };
        if contents.schema != SCHEMA {
            let message = format!(
                "{}: found schema {}, expected {SCHEMA}",
                path.display(),
                contents.schema
            );
            return Err(JobError::bad_input(message));
        }
        Ok(Self {
            path: path.to_owned(),
            contents,
            _lock: lock,
        })
    }

    /// What is known of a step with this spec.
    pub(crate) fn step(&self, id: &str, spec: &Digest) -> Option<&Entry> {
        self.contents
            .steps
            .get(id)
            .filter(|entry| entry.spec == *spec)
    }

    /// How many runs of a step were submitted, whatever their spec.
    pub(crate) fn num_runs(&self, id: &str) -> usize {
        let entry = self.contents.steps.get(id);
        entry.map_or(0, |entry| entry.runs.len())
    }

    /// Records where a step stands. The file is replaced as a whole, so that it is never half written.
    pub(crate) fn record(
        &mut self,
        id: &str,
        spec: &Digest,
        stand: Stand,
        run: Option<u64>,
    ) -> Result<(), JobError> {
        let known = self.contents.steps.get(id);
        let mut runs = known.map(|entry| entry.runs.clone()).unwrap_or_default();
        runs.extend(run);
        let entry = Entry {
            spec: *spec,
            stand,
            runs,
        };
        self.contents.steps.insert(id.to_owned(), entry);
        self.write().map_err(|error| {
            JobError::from(error).context(format!("writing {}", self.path.display()))
        })
    }

    fn write(&self) -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder(&self.path))?;
        serde_json::to_writer_pretty(&mut file, &self.contents)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn lock(path: &Path) -> Result<File, JobError> {
    let beside = path.with_extension("lock");
    let locked = || -> std::io::Result<Result<File, TryLockError>> {
        std::fs::create_dir_all(folder(path))?;
        let file = File::create(&beside)?;
        Ok(file.try_lock().map(|()| file))
    };
    let failed = |error| JobError::from(error).context(format!("locking {}", beside.display()));
    match locked().map_err(failed)? {
        Ok(file) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "{} is held: this experiment is being submitted already",
                beside.display()
            );
            Err(JobError::held(message))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
