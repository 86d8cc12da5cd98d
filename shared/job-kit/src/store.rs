//! The store as jobs see it: blocking, with a local mirror, and with a second store for inputs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Runtime;
use wmtp_artifacts::{
    Agent, ArtifactId, ExitClass, FileEntry, Kind, Manifest, Mirror, RunId, RunView, Store,
    StoreOptions, StoreUri,
};

use crate::JobError;

/// A connected store. Inputs may come from a second one; outputs never go there.
#[derive(Clone)]
pub struct StoreHandle {
    runtime: Arc<Runtime>,
    store: Store,
    data_store: Option<Store>,
    /// Opened with the first fetch; it keeps what was fetched from being evicted while the job runs.
    mirror: Arc<OnceLock<Mirror>>,
}

impl StoreHandle {
    /// Connects and asks whether the store can be reached.
    pub(crate) fn open(
        runtime: &Arc<Runtime>,
        store: &str,
        data_store: Option<&str>,
        force: bool,
        agent: &Agent,
    ) -> Result<Self, JobError> {
        let connect = |uri: &str| -> Result<Store, JobError> {
            let uri: StoreUri = uri.parse()?;
            let options = StoreOptions {
                reupload: force,
                agent: agent.clone(),
                ..StoreOptions::default()
            };
            let store = runtime.block_on(Store::connect(&uri, options))?;
            runtime.block_on(store.reach())?;
            Ok(store)
        };
        Ok(Self {
            runtime: Arc::clone(runtime),
            store: connect(store)?,
            data_store: data_store.map(connect).transpose()?,
            mirror: Arc::default(),
        })
    }

    /// The run store itself, for what this handle does not wrap; see [`StoreHandle::block_on`].
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Waits for an operation of [`StoreHandle::store`].
    pub fn block_on<F: Future>(&self, operation: F) -> F::Output {
        self.runtime.block_on(operation)
    }

    /// The artifact behind an id or a name.
    pub fn resolve(&self, kind: Kind, reference: &str) -> Result<ArtifactId, JobError> {
        self.first_that_has(|store| self.runtime.block_on(store.resolve(kind, reference)))
    }

    /// The manifest of an artifact.
    pub fn manifest(&self, id: &ArtifactId) -> Result<Manifest, JobError> {
        self.first_that_has(|store| self.runtime.block_on(store.manifest(id)))
    }

    /// All names of a kind in the run store, sorted.
    pub fn names(&self, kind: Kind) -> Result<Vec<(String, ArtifactId)>, JobError> {
        Ok(self.runtime.block_on(self.store.names(kind))?)
    }

    /// A read-only folder with the artifact's files, each one verified.
    pub fn fetch(&self, id: &ArtifactId) -> Result<PathBuf, JobError> {
        let mirror = self.mirror()?;
        self.first_that_has(|store| self.runtime.block_on(store.fetch(id, mirror)))
    }

    fn mirror(&self) -> Result<&Mirror, JobError> {
        if let Some(mirror) = self.mirror.get() {
            return Ok(mirror);
        }
        let mut mirror = Mirror::open(&crate::args::cache_folder())?;
        if let Some(limit) = crate::args::cache_limit()? {
            mirror = mirror.with_limit(limit);
        }
        Ok(self.mirror.get_or_init(|| mirror))
    }

    /// One small file of an artifact, without the others; `None` where the artifact has no such file.
    pub fn read(&self, manifest: &Manifest, path: &str) -> Result<Option<Vec<u8>>, JobError> {
        let read =
            self.first_that_has(|store| self.runtime.block_on(store.read(manifest, path)))?;
        Ok(read.map(|bytes| bytes.to_vec()))
    }

    /// All that the run store knows about a run; `None` where it does not know it.
    pub fn history(&self, run: &RunId) -> Result<Option<RunView>, JobError> {
        match self.runtime.block_on(self.store.run(run)) {
            Ok(view) => Ok(Some(view)),
            Err(error) if error.exit_class() == ExitClass::BadInput => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// [`StoreHandle::fetch`] of the files that are wanted.
    pub fn fetch_files(
        &self,
        id: &ArtifactId,
        wanted: impl Fn(&FileEntry) -> bool,
    ) -> Result<PathBuf, JobError> {
        let mirror = self.mirror()?;
        self.first_that_has(|store| {
            self.runtime
                .block_on(store.fetch_files(id, mirror, &wanted))
        })
    }

    /// Asks the run store first, then, where it has nothing, the data store. No other failure falls through. Where
    /// neither has it, the run store's answer is told.
    fn first_that_has<T>(
        &self,
        ask: impl Fn(&Store) -> Result<T, wmtp_artifacts::Error>,
    ) -> Result<T, JobError> {
        match (ask(&self.store), &self.data_store) {
            (Err(error), Some(second)) if error.exit_class() == ExitClass::BadInput => {
                match ask(second) {
                    Err(other) if other.exit_class() == ExitClass::BadInput => Err(error.into()),
                    answer => Ok(answer?),
                }
            }
            (answer, _) => Ok(answer?),
        }
    }
}
