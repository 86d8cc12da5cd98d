//! A folder, an embedded store, and the job binaries that are run against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dev_store::TestServer;
use trial::Ended;
use wmtp_artifacts::{ArtifactId, Draft, Kind, Provenance, Store};

/// A user's machine: everything it writes lies in one folder that goes with it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    server: Option<TestServer>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = Some(TestServer::start(&folder.path().join("store")));
        let place = Self { folder, server };
        place.write("tiny.yaml", super::steps::TINY);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("files lie in a folder")).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// A job that works under `prefix` of the store, with a cache and a scratch folder of its own.
    pub(crate) fn job(&self, prefix: &str, job: &str, arguments: &[&str]) -> Command {
        self.program(prefix, &binary(job), arguments)
    }

    /// A script of `jobs/` that runs jobs as [`Place::job`] does.
    pub(crate) fn script(&self, prefix: &str, script: &str, arguments: &[&str]) -> Command {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../jobs")
            .join(script);
        let mut command = self.program(prefix, &path, arguments);
        let dev_store = binary("dev-store");
        command.env("BIN", dev_store.parent().expect("binaries lie in a folder"));
        command
    }

    /// A program that is none of ours, with what leads it to the store.
    pub(crate) fn tool(&self, prefix: &str, program: &Path) -> Command {
        self.program(prefix, program, &[])
    }

    /// The store under a prefix, without a job between.
    fn store(&self, prefix: &str) -> (Store, tokio::runtime::Runtime) {
        let server = self.server.as_ref().expect("the store is up");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let store = runtime.block_on(trial::connect(server, &format!("s3://wmtp/{prefix}")));
        (store, runtime)
    }

    /// A page of a site that was brought to a prefix.
    pub(crate) fn page(&self, prefix: &str, path: &str) -> String {
        let (store, runtime) = self.store(prefix);
        let bytes = runtime.block_on(store.page(path)).expect("the store is up");
        String::from_utf8(bytes.expect("the page").to_vec()).expect("a text")
    }

    /// Gives a checkpoint another name, which may be one that no job gives.
    pub(crate) fn rename(&self, prefix: &str, checkpoint: &str, name: &str) {
        let (store, runtime) = self.store(prefix);
        let work = async {
            let id = store.resolve(Kind::Checkpoint, checkpoint).await?;
            store.set_name(Kind::Checkpoint, name, &id).await
        };
        runtime.block_on(work).expect("the store takes it");
    }

    /// Stores a folder as an artifact that no job made, under a name.
    pub(crate) fn publish_folder(
        &self,
        prefix: &str,
        kind: Kind,
        folder: &Path,
        name: &str,
    ) -> ArtifactId {
        let (store, runtime) = self.store(prefix);
        let draft = Draft {
            kind,
            root: folder.to_owned(),
            attributes: BTreeMap::new(),
        };
        let provenance = Provenance {
            job: "by-hand".to_owned(),
            run_id: "by-hand-0123456789abcdef".parse().expect("a run id"),
            attempt: 1,
            code_version: "0".to_owned(),
            code_revision: None,
            recipe_version: 1,
            recipe: serde_json::Value::Null,
            options: serde_json::json!({}),
            inputs: Vec::new(),
            created_at: "2026-11-21T10:00:00Z".parse().expect("a time"),
        };
        let work = async {
            let id = store.publish(&draft, &provenance).await?.id;
            store.set_name(kind, name, &id).await?;
            Ok::<_, wmtp_artifacts::Error>(id)
        };
        runtime.block_on(work).expect("the store takes it")
    }

    fn program(&self, prefix: &str, program: &Path, arguments: &[&str]) -> Command {
        let server = self.server.as_ref().expect("the store is up");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(trial::variables(server))
            .env("WMTP_STORE", format!("s3://wmtp/{prefix}"))
            .env("WMTP_SCRATCH", self.path(&format!("{prefix}-scratch")))
            .env("WMTP_CACHE", self.path(&format!("{prefix}-cache")))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, prefix: &str, job: &str, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.job(prefix, job, arguments))
    }

    /// The lines of one file of a named artifact.
    pub(crate) fn file(&self, prefix: &str, kind: &str, name: &str, file: &str) -> Vec<String> {
        let folder = self.path(&format!("{prefix}-{kind}-{name}"));
        if !folder.exists() {
            let to = folder.to_str().expect("temporary folders have plain names");
            self.run(
                prefix,
                "sync-storage",
                &["pull", name, "--kind", kind, "--to", to],
            )
            .expect(0);
        }
        let text = std::fs::read_to_string(folder.join(file)).expect("the file");
        text.lines().map(str::to_owned).collect()
    }

    /// The samples of an evaluation without what execution took: texts, and whether they passed.
    pub(crate) fn texts(&self, prefix: &str, name: &str) -> Vec<serde_json::Value> {
        let lines = self.file(prefix, "scores", name, "samples.jsonl");
        lines
            .iter()
            .map(|line| {
                let mut sample: serde_json::Value = serde_json::from_str(line).expect("a sample");
                let verdict = sample["verdict"].as_object_mut().expect("a verdict");
                verdict.retain(|key, _| !["cpu_secs", "wall_secs"].contains(&key.as_str()));
                sample
            })
            .collect()
    }

    /// Keys of all committed artifacts under a prefix.
    pub(crate) fn artifacts(&self, prefix: &str) -> BTreeSet<String> {
        let start = format!("{prefix}/v1/artifacts/");
        let keys = self.files().into_iter().map(|path| record(&path).0);
        keys.filter(|key| key.starts_with(&start)).collect()
    }

    /// The files with the bytes of every object whose key ends with `suffix`: its segments, or that of its record, where
    /// a small body lies behind it.
    pub(crate) fn data_files(&self, suffix: &str) -> Vec<PathBuf> {
        let folder = self.path("store/segments");
        let mut found = Vec::new();
        for path in self.files() {
            let (key, segments) = record(&path);
            if key.ends_with(suffix) {
                let place =
                    |name: Option<String>| name.map_or(path.clone(), |name| folder.join(name));
                found.extend(segments.into_iter().map(place));
            }
        }
        found
    }

    /// Takes the first `count` objects under `start` from the store's folder while the store is down, as a careless
    /// administrator would.
    pub(crate) fn lose(&mut self, start: &str, count: usize) {
        self.server = None;
        let mut lost: Vec<PathBuf> = self
            .files()
            .into_iter()
            .filter(|path| record(path).0.starts_with(start))
            .collect();
        lost.sort();
        assert!(lost.len() >= count, "{} objects under {start}", lost.len());
        for path in &lost[..count] {
            std::fs::remove_file(path).expect("a record");
        }
        self.server = Some(TestServer::start(&self.path("store")));
    }

    /// The record of every object.
    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("store/buckets/wmtp"))
            .expect("the bucket's folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.file_stem().is_some_and(|stem| stem.len() == 64))
            .collect()
    }
}

/// Key and segment names of an object, as the file of its record tells; a small body behind the record has no name.
fn record(path: &Path) -> (String, Vec<Option<String>>) {
    let bytes = std::fs::read(path).expect("a record");
    let head = bytes.split(|byte| *byte == b'\n').next().expect("a line");
    let json: serde_json::Value = serde_json::from_slice(head).expect("records are JSON");
    let record = &json["record"];
    let segments = record["segments"]
        .as_array()
        .expect("a record names its segments");
    let names = segments
        .iter()
        .map(|segment| segment["name"].as_str().map(str::to_owned))
        .collect();
    (
        record["key"]
            .as_str()
            .expect("a record names its key")
            .to_owned(),
        names,
    )
}

/// A job's binary, beside the folder of the test binaries.
fn binary(job: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    let path = own
        .parent()
        .and_then(Path::parent)
        .expect("tests lie two folders deep")
        .join(job);
    assert!(
        path.is_file(),
        "{} is missing: `make test` builds it first",
        path.display()
    );
    path
}
