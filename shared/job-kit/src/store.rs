//! The store as jobs see it: blocking, with a local mirror, and with a second store for inputs.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;
use wmtp_artifacts::{
    Agent, ArtifactId, ExitClass, FileEntry, Kind, Manifest, Mirror, RunId, RunView, Store,
    StoreOptions, StoreUri,
};
use wmtp_records::{Capabilities, ModelSizes, Needs};

use crate::{Exit, JobError, raised};

/// A connected store. Inputs may come from a second one; outputs never go there.
#[derive(Clone)]
pub struct StoreHandle {
    runtime: Arc<Runtime>,
    store: Store,
    data_store: Option<Store>,
    /// Opened with the first fetch; it keeps what was fetched from being evicted while the job runs.
    mirror: Arc<OnceLock<Mirror>>,
    /// Rises when a signal asks to stop.
    stop: Arc<AtomicBool>,
}

impl StoreHandle {
    /// Connects and asks whether the store can be reached.
    pub(crate) fn open(
        runtime: &Arc<Runtime>,
        store: &str,
        data_store: Option<&str>,
        force: bool,
        stop: &Arc<AtomicBool>,
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
            stop: Arc::clone(stop),
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

    /// Waits for an operation that may be dropped anywhere, as one of a killed process is, until a while after a signal asks
    /// to stop.
    ///
    /// # Errors
    /// 143 where it was dropped.
    pub(crate) fn unless_stopped<T>(
        &self,
        patience: Duration,
        operation: impl Future<Output = Result<T, JobError>>,
    ) -> Result<T, JobError> {
        let stopped = async {
            raised(&self.stop).await;
            tokio::time::sleep(patience).await;
        };
        self.runtime.block_on(async {
            tokio::select! {
                done = operation => done,
                () = stopped => Err(JobError::preempted()),
            }
        })
    }

    /// The artifact behind an id or a name.
    pub fn resolve(&self, kind: Kind, reference: &str) -> Result<ArtifactId, JobError> {
        self.block_on(self.first_that_has(async |store| store.resolve(kind, reference).await))
    }

    /// The manifest of an artifact.
    pub fn manifest(&self, id: &ArtifactId) -> Result<Manifest, JobError> {
        self.block_on(self.first_that_has(async |store| store.manifest(id).await))
    }

    /// All names of a kind in the run store, sorted.
    pub fn names(&self, kind: Kind) -> Result<Vec<(String, ArtifactId)>, JobError> {
        Ok(self.runtime.block_on(self.store.names(kind))?)
    }

    /// A read-only folder with the artifact's files, each one verified. A signal ends it: what has arrived stays.
    pub fn fetch(&self, id: &ArtifactId) -> Result<PathBuf, JobError> {
        let mirror = self.mirror()?;
        let fetched = self.first_that_has(async |store| store.fetch(id, mirror).await);
        self.unless_stopped(Duration::ZERO, fetched)
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
        let read = self.first_that_has(async |store| store.read(manifest, path).await);
        Ok(self.block_on(read)?.map(|bytes| bytes.to_vec()))
    }

    /// What a base model or a checkpoint can do, from the small files that say so.
    ///
    /// # Errors
    /// Bad input for an artifact that is no model, or whose files are missing or broken.
    pub fn capabilities(&self, model: &Manifest) -> Result<Capabilities, JobError> {
        let id = &model.id;
        let (params, facts) = match id.kind() {
            Kind::BaseModel => ("configs/params.json", "metadata.json"),
            Kind::Checkpoint => ("params.json", "recipe.json"),
            kind => {
                let what =
                    format!("{id} is of kind {kind}; a base-model or checkpoint is asked for");
                return Err(JobError::bad_input(what));
            }
        };
        let broken = |file, error| JobError::bad_input(format!("{file} of {id}: {error}"));
        let bytes = self.read(model, params)?;
        let bytes =
            bytes.ok_or_else(|| JobError::bad_input(format!("{id} has no file {params}")))?;
        let sizes: ModelSizes =
            serde_json::from_slice(&bytes).map_err(|error| broken(params, error))?;
        let mut found = Capabilities::from(sizes);
        let bytes = self.read(model, facts)?.unwrap_or_else(|| b"{}".to_vec());
        let said: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| broken(facts, error))?;
        if let Some(dtype) = said
            .pointer("/model/dtype")
            .and_then(serde_json::Value::as_str)
        {
            found = found.trained_as(dtype);
        }
        if let Some(dtype) = said["dtype"].as_str() {
            found.dtype = Some(dtype.to_owned());
        }
        found.context = self.longest_row(model)?;
        Ok(found)
    }

    /// The longest row of the data that a model was trained on; none where it was not trained here, or the store has them no
    /// more.
    fn longest_row(&self, model: &Manifest) -> Result<Option<usize>, JobError> {
        let data = model.attribute("data").and_then(|id| id.parse().ok());
        let Some(data) = data.filter(|_| model.id.kind() == Kind::Checkpoint) else {
            return Ok(None);
        };
        match self.manifest(&data) {
            Ok(data) => Ok(data
                .attribute("max_length")
                .and_then(|length| length.parse().ok())),
            Err(error) if error.exit() == Exit::BadInput => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Checks that a model knows the token ids of a data set, and has as many heads as are needed.
    ///
    /// # Errors
    /// What it lacks: bad input for the data, usage for the heads, which settings ask for.
    pub fn check_model(
        &self,
        model: &Manifest,
        data: &Manifest,
        heads: Option<usize>,
    ) -> Result<(), JobError> {
        let vocab = data.attribute("vocab_size").map(|size| {
            size.parse().map_err(|_| {
                JobError::bad_input(format!("{}: its vocab_size is {size:?}", data.id))
            })
        });
        let vocab = vocab.transpose()?;
        Ok(self.capabilities(model)?.check(Needs { vocab, heads })?)
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
        let fetched =
            self.first_that_has(async |store| store.fetch_files(id, mirror, &wanted).await);
        self.unless_stopped(Duration::ZERO, fetched)
    }

    /// Asks the run store first, then, where it has nothing, the data store. No other failure falls through. Where
    /// neither has it, the run store's answer is told.
    async fn first_that_has<T>(
        &self,
        ask: impl AsyncFn(&Store) -> Result<T, wmtp_artifacts::Error>,
    ) -> Result<T, JobError> {
        match (ask(&self.store).await, &self.data_store) {
            (Err(error), Some(second)) if error.exit_class() == ExitClass::BadInput => {
                match ask(second).await {
                    Err(other) if other.exit_class() == ExitClass::BadInput => Err(error.into()),
                    answer => Ok(answer?),
                }
            }
            (answer, _) => Ok(answer?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::Ordering;

    use wmtp_artifacts::Credentials;

    use super::*;
    use crate::Exit;

    #[test]
    fn a_signal_ends_what_is_waited_for_when_its_patience_is_over() {
        let runtime = Arc::new(Runtime::new().unwrap());
        // Nobody is asked anything.
        let options = StoreOptions {
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            region: Some("us-east-1".to_owned()),
            credentials: Some(Credentials::new("key", "secret")),
            ..StoreOptions::default()
        };
        let uri = "s3://wmtp/test".parse().unwrap();
        let handle = StoreHandle {
            store: runtime.block_on(Store::connect(&uri, options)).unwrap(),
            runtime,
            data_store: None,
            mirror: Arc::default(),
            stop: Arc::default(),
        };
        let waited = handle.unless_stopped(Duration::ZERO, ready(Ok(1)));
        assert_eq!(waited.unwrap(), 1);
        handle.stop.store(true, Ordering::SeqCst);
        let never = handle.unless_stopped(Duration::from_millis(1), pending::<Result<u8, _>>());
        assert_eq!(never.unwrap_err().exit(), Exit::Preempted);
        let soon = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(2)
        };
        assert_eq!(
            handle
                .unless_stopped(Duration::from_hours(1), soon)
                .unwrap(),
            2
        );
    }
}
