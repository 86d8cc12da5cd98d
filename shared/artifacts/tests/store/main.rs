//! The protocol against the embedded S3 server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod audit;
mod carry;
mod collection;
mod faults;
mod foreign;
mod model;
mod pages;
mod promotions;
mod transfer;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Region};
use dev_store::TestServer;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use wmtp_artifacts::{
    ArtifactId, CacheEntry, CacheLookup, CheckpointEntry, Claim, CopyScope, Crc64, Credentials,
    Digest, Direction, Draft, Error, Fault, FsckDepth, FsckPhase, FsckReport, GcPolicy, Input,
    Kind, Lineage, Manifest, Mirror, NodeState, Outcome, Provenance, RunId, RunRequest, RunResult,
    RunState, Status, Store, StoreOptions,
};

const BUCKET: &str = dev_store::BUCKET;

/// A server with an empty store and a folder for files.
struct World {
    dir: TempDir,
    server: TestServer,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = TestServer::start(&dir.path().join("server"));
        let store = connect(&server, "main", |_| {}).await;
        Self { dir, server, store }
    }

    /// A folder with files, to publish.
    fn folder(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let root = self.dir.path().join(name);
        for (path, bytes) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        root
    }

    fn mirror(&self) -> Mirror {
        Mirror::open(&self.dir.path().join("mirror")).unwrap()
    }

    async fn publish(&self, name: &str, files: &[(&str, &[u8])]) -> Manifest {
        let draft = draft(self.folder(name, files));
        self.store
            .publish(&draft, &provenance(vec![]))
            .await
            .unwrap()
    }

    /// A plain client, to damage what the store holds.
    fn raw(&self) -> aws_sdk_s3::Client {
        let keys = aws_sdk_s3::config::Credentials::new(
            self.server.access_key(),
            self.server.secret_key(),
            None,
            None,
            "test",
        );
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.server.region()))
            .endpoint_url(self.server.endpoint())
            .force_path_style(true)
            .credentials_provider(keys)
            .http_client(http)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    async fn overwrite(&self, key: &str, bytes: &[u8]) {
        let body = bytes.to_vec().into();
        let key = format!("main/{key}");
        self.raw()
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .body(body)
            .send()
            .await
            .unwrap();
    }

    /// Points a name to something, whether or not the store has it.
    async fn name_by_hand(&self, name: &str, id: &ArtifactId) {
        let key = format!("v1/names/{}/{name}/0000.json", id.kind());
        let value = json!({"artifact": id, "write_id": "by hand"});
        self.overwrite(&key, value.to_string().as_bytes()).await;
    }

    /// What the store holds under a key and a prefix.
    async fn stored(&self, prefix: &str, key: &str) -> Vec<u8> {
        let object = self
            .raw()
            .get_object()
            .bucket(BUCKET)
            .key(format!("{prefix}/{key}"))
            .send()
            .await
            .unwrap();
        object.body.collect().await.unwrap().to_vec()
    }

    async fn delete(&self, key: &str) {
        let key = format!("main/{key}");
        self.raw()
            .delete_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
    }

    async fn is_absent(&self, key: &str) -> bool {
        let request = self.raw().head_object().bucket(BUCKET);
        request.key(format!("main/{key}")).send().await.is_err()
    }

    async fn keys(&self) -> Vec<String> {
        let page = self
            .raw()
            .list_objects_v2()
            .bucket(BUCKET)
            .send()
            .await
            .unwrap();
        page.contents()
            .iter()
            .filter_map(|object| object.key().map(str::to_owned))
            .collect()
    }
}

async fn connect(server: &TestServer, prefix: &str, edit: impl FnOnce(&mut StoreOptions)) -> Store {
    let mut options = StoreOptions {
        max_attempts: Some(2),
        ..trial::options(server)
    };
    edit(&mut options);
    let uri = format!("s3://{BUCKET}/{prefix}").parse().unwrap();
    Store::connect(&uri, options).await.unwrap()
}

fn draft(root: PathBuf) -> Draft {
    let attributes = BTreeMap::from([("rows".to_owned(), "2".to_owned())]);
    Draft {
        kind: Kind::ProcessedData,
        root,
        attributes,
    }
}

fn provenance(inputs: Vec<Input>) -> Provenance {
    Provenance {
        job: "prepare-data".to_owned(),
        run_id: "prepare-data-0123456789abcdef".parse().unwrap(),
        attempt: 1,
        code_version: "0.1.0".to_owned(),
        code_revision: None,
        recipe_version: 1,
        recipe: json!({"optim": {"lr": 0.001}}),
        options: json!({"seed": 42}),
        inputs,
        created_at: now(),
    }
}

fn now() -> Timestamp {
    "2026-11-21T02:22:02Z".parse().unwrap()
}

/// An id that no artifact has.
fn made_up(kind: Kind, text: &str) -> ArtifactId {
    let digest = Digest::of(text.as_bytes()).to_string();
    format!("{kind}-{}", &digest[..40]).parse().unwrap()
}

/// Key of a file's content.
fn blob_key(manifest: &Manifest, path: &str) -> String {
    let digest = manifest.file(path).unwrap().sha256.to_string();
    format!("v1/blobs/sha256/{}/{digest}", &digest[..2])
}

/// Key of the manifest of processed data.
fn manifest_key(id: &ArtifactId) -> String {
    format!("v1/artifacts/processed-data/{id}/manifest.json")
}

fn read(folder: &Path, path: &str) -> Vec<u8> {
    fs::read(folder.join(path)).unwrap()
}

fn code(error: &Error) -> u8 {
    error.exit_class().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_can_be_fetched() {
    let world = World::new().await;
    world.store.preflight().await.unwrap();
    world.store.preflight().await.unwrap();
    let files: [(&str, &[u8]); 4] = [
        ("a.json", b"{}"),
        ("deep/b.bin", b"bytes"),
        ("copy.bin", b"bytes"),
        ("empty", b""),
    ];
    let manifest = world.publish("out", &files).await;
    assert_eq!(world.store.manifest(&manifest.id).await.unwrap(), manifest);
    assert_eq!(
        world.store.artifacts(Kind::ProcessedData).await.unwrap(),
        std::slice::from_ref(&manifest.id)
    );
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    for (path, bytes) in files {
        assert_eq!(read(&folder, path), bytes, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_parts_survives_the_round_trip() {
    let world = World::new().await;
    let large: Vec<u8> = (0..(33 << 20) + 7_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let manifest = world
        .publish("out", &[("large.bin", &large), ("small", b"x")])
        .await;
    assert_eq!(
        manifest
            .file("large.bin")
            .unwrap()
            .parts
            .as_ref()
            .unwrap()
            .crc64nvme
            .len(),
        3
    );
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    assert!(read(&folder, "large.bin") == large);
    let other = connect(&world.server, "other", |_| {}).await;
    let report = world
        .store
        .copy_to(&manifest.id, &other, CopyScope::Artifact)
        .await
        .unwrap();
    assert_eq!(
        (report.blobs_copied, report.bytes_copied),
        (2, manifest.size())
    );
    let fresh = Mirror::open(&world.dir.path().join("fresh")).unwrap();
    let copied = other.fetch(&manifest.id, &fresh).await.unwrap();
    assert!(read(&copied, "large.bin") == large);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_content_is_one_artifact_with_its_first_maker() {
    let world = World::new().await;
    let first = world.publish("one", &[("a", b"same")]).await;
    let later = Provenance {
        job: "other".to_owned(),
        ..provenance(vec![])
    };
    let folder = world.folder("two", &[("a", b"same")]);
    let second = world.store.publish(&draft(folder), &later).await.unwrap();
    assert_eq!(second, first);
    assert_ne!(world.publish("three", &[("a", b"else")]).await.id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_publishers_agree() {
    let world = World::new().await;
    let folder = world.folder("out", &[("a", b"1"), ("b", b"2")]);
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (store, draft) = (world.store.clone(), draft(folder.clone()));
            let mine = Provenance {
                attempt: n,
                ..provenance(vec![])
            };
            tokio::spawn(async move { store.publish(&draft, &mine).await })
        })
        .collect();
    let mut manifests = Vec::new();
    for task in tasks {
        manifests.push(task.await.unwrap().unwrap());
    }
    manifests.dedup();
    assert_eq!(manifests.len(), 1, "all see the one manifest that won");
    assert_eq!(
        world.store.manifest(&manifests[0].id).await.unwrap(),
        manifests[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_content_is_refused_and_repaired_by_reupload() {
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"right")]).await;
    world.overwrite(&blob_key(&manifest, "a"), b"wrong").await;
    let error = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap_err();
    assert_eq!(code(&error), 76, "{error}");
    assert!(error.to_string().contains("SHA-256"), "{error}");
    let forced = connect(&world.server, "main", |options| options.reupload = true).await;
    let folder = world.folder("again", &[("a", b"right")]);
    let again = forced
        .publish(&draft(folder), &provenance(vec![]))
        .await
        .unwrap();
    assert_eq!(again.id, manifest.id);
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    assert_eq!(read(&folder, "a"), b"right");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_manifest_is_damaged() {
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"x")]).await;
    let key = manifest_key(&manifest.id);
    world.overwrite(&key, b"{\"schema\":").await;
    assert_eq!(
        code(&world.store.manifest(&manifest.id).await.unwrap_err()),
        76
    );
    let folder = world.folder("out", &[]);
    let error = world
        .store
        .publish(&draft(folder), &provenance(vec![]))
        .await
        .unwrap_err();
    assert_eq!(
        code(&error),
        76,
        "a damaged manifest is not taken for ours: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_is_used_first_and_healed_when_damaged() {
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"right")]).await;
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    let file = folder.join("a");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o222,
        0,
        "read-only"
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, b"wrong").unwrap();
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    assert_eq!(read(&folder, "a"), b"right");
    world.delete(&blob_key(&manifest, "a")).await;
    let own = world.dir.path().join("own");
    world
        .store
        .fetch_into(&manifest.id, &world.mirror(), &own)
        .await
        .unwrap();
    assert_eq!(
        read(&own, "a"),
        b"right",
        "what the mirror holds is not fetched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_things_are_bad_input_with_a_hint() {
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"x")]).await;
    world
        .store
        .set_name(Kind::ProcessedData, "micropy", &manifest.id)
        .await
        .unwrap();
    let absent: ArtifactId = format!("scores-{}", "0".repeat(40)).parse().unwrap();
    assert_eq!(code(&world.store.manifest(&absent).await.unwrap_err()), 65);
    let error = world
        .store
        .resolve(Kind::ProcessedData, "mircopy")
        .await
        .unwrap_err();
    assert_eq!(code(&error), 65);
    assert!(error.hint().unwrap().contains("micropy"), "{error}");
    let id = manifest.id.to_string();
    assert_eq!(
        code(&world.store.resolve(Kind::Scores, &id).await.unwrap_err()),
        65
    );
    assert_eq!(
        world.store.resolve(Kind::ProcessedData, &id).await.unwrap(),
        manifest.id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_follows_its_newest_generation() {
    let world = World::new().await;
    let kind = Kind::ProcessedData;
    let first = world.publish("one", &[("a", b"1")]).await.id;
    let second = world.publish("two", &[("a", b"2")]).await.id;
    for id in [&first, &second, &second, &first] {
        world.store.set_name(kind, "current", id).await.unwrap();
    }
    world.store.set_name(kind, "base", &second).await.unwrap();
    assert_eq!(world.store.resolve(kind, "current").await.unwrap(), first);
    let expected = [
        ("base".to_owned(), second),
        ("current".to_owned(), first.clone()),
    ];
    assert_eq!(world.store.names(kind).await.unwrap(), expected);
    let generations = world
        .keys()
        .await
        .into_iter()
        .filter(|key| key.contains("/current/"))
        .count();
    assert_eq!(
        generations, 3,
        "a name that points there already is left alone"
    );
    assert!(world.store.set_name(kind, "a/b", &first).await.is_err());
    assert!(
        world
            .store
            .set_name(Kind::Scores, "x", &first)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_names_lose_no_write() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0_u8..8 {
        ids.push(world.publish(&format!("out{n}"), &[("a", &[n])]).await.id);
    }
    let tasks: Vec<_> = ids
        .iter()
        .map(|id| {
            let (store, id) = (world.store.clone(), id.clone());
            tokio::spawn(async move { store.set_name(Kind::ProcessedData, "n", &id).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let keys = world.keys().await;
    let generations = keys.iter().filter(|key| key.contains("/n/")).count();
    assert_eq!(
        generations, 8,
        "each writer has its own generation: {keys:?}"
    );
    let winner = world
        .store
        .name(Kind::ProcessedData, "n")
        .await
        .unwrap()
        .unwrap();
    assert!(ids.contains(&winner));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_hit_needs_all_of_its_content() {
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"x"), ("b", b"y")]).await;
    let key = manifest.provenance.cache_key().unwrap();
    let entry = CacheEntry {
        outputs: BTreeMap::from([("data".to_owned(), manifest.id.clone())]),
        run_id: RunId::for_work("prepare-data", &key),
        created_at: now(),
    };
    assert_eq!(
        world.store.lookup("prepare-data", &key).await.unwrap(),
        CacheLookup::Miss
    );
    world
        .store
        .record_cache("prepare-data", &key, &entry)
        .await
        .unwrap();
    assert_eq!(
        world.store.cached("prepare-data", &key).await.unwrap(),
        Some(entry.clone())
    );
    world.delete(&blob_key(&manifest, "b")).await;
    match world.store.lookup("prepare-data", &key).await.unwrap() {
        CacheLookup::Damaged {
            entry: found,
            reason,
        } => {
            assert_eq!(found, Some(entry.clone()));
            assert!(reason.contains("content of b"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        world.store.cached("prepare-data", &key).await.unwrap(),
        None
    );
    assert_eq!(
        world.publish("again", &[("a", b"x"), ("b", b"y")]).await.id,
        manifest.id
    );
    world
        .store
        .record_cache("prepare-data", &key, &entry)
        .await
        .unwrap();
    assert_eq!(
        world.store.cached("prepare-data", &key).await.unwrap(),
        Some(entry)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lineage_is_copied_once_and_verified() {
    let world = World::new().await;
    let raw = world.publish("raw", &[("rows.jsonl", b"{}\n")]).await;
    let inputs = vec![Input {
        role: "raw".to_owned(),
        id: raw.id.clone(),
    }];
    let folder = world.folder("made", &[("a", b"made"), ("rows.jsonl", b"{}\n")]);
    let made = world
        .store
        .publish(&draft(folder), &provenance(inputs))
        .await
        .unwrap();
    let other = connect(&world.server, "other", |_| {}).await;
    let report = world
        .store
        .copy_to(&made.id, &other, CopyScope::Lineage)
        .await
        .unwrap();
    assert_eq!(
        (report.artifacts, report.blobs_copied, report.blobs_present),
        (2, 2, 1)
    );
    assert_eq!(other.manifest(&made.id).await.unwrap(), made);
    assert_eq!(other.manifest(&raw.id).await.unwrap(), raw);
    let again = world
        .store
        .copy_to(&made.id, &other, CopyScope::Lineage)
        .await
        .unwrap();
    assert_eq!((again.blobs_copied, again.blobs_present), (0, 3));
    let third = connect(&world.server, "third", |_| {}).await;
    world.overwrite(&blob_key(&made, "a"), b"MADE").await;
    let error = world
        .store
        .copy_to(&made.id, &third, CopyScope::Artifact)
        .await
        .unwrap_err();
    assert_eq!(code(&error), 76);
    assert_eq!(
        code(&third.manifest(&made.id).await.unwrap_err()),
        65,
        "no manifest without its content"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_manifest_keeps_what_this_version_does_not_know() {
    let world = World::new().await;
    let id = world.publish("out", &[("a", b"x")]).await.id;
    let key = manifest_key(&id);
    let mut newer: Value = serde_json::from_slice(&world.stored("main", &key).await).unwrap();
    newer["future"] = json!({"x": 1});
    let newer = newer.to_string().into_bytes();
    world.overwrite(&key, &newer).await;
    let other = connect(&world.server, "other", |_| {}).await;
    world
        .store
        .copy_to(&id, &other, CopyScope::Artifact)
        .await
        .unwrap();
    assert_eq!(world.stored("other", &key).await, newer);
}

fn request(key: &str) -> RunRequest {
    let cache_key = wmtp_artifacts::Digest::of(key.as_bytes());
    RunRequest {
        run_id: RunId::for_work("train-stage2", &cache_key),
        job: "train-stage2".to_owned(),
        cache_key,
        inputs: vec![],
        recipe: json!({"seed": 42, "lr": 0.5}),
        code_version: "0.1.0".to_owned(),
        code_revision: None,
        host: "node-1".to_owned(),
        labels: BTreeMap::new(),
        started_at: now(),
    }
}

fn status(state: RunState) -> Status {
    Status {
        state,
        phase: "training".to_owned(),
        last_event_seq: 0,
        progress: None,
        metrics: BTreeMap::from([("loss".to_owned(), Some(1.5)), ("nan".to_owned(), None)]),
        heartbeat_at: now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_holder_keeps_its_run_and_a_silent_one_loses_it() {
    let world = World::new().await;
    let request = request("work");
    let first = Claim::take(&world.store, &request).await.unwrap();
    first.heartbeat(&status(RunState::Running)).await.unwrap();
    let error = Claim::take(&world.store, &request).await.unwrap_err();
    assert_eq!(code(&error), 75);
    assert!(error.to_string().contains("attempt 1 on node-1"), "{error}");
    first.still_mine().await.unwrap();
    let impatient = connect(&world.server, "main", |options| {
        options.heartbeat_ttl = Some(Duration::ZERO);
    })
    .await;
    assert!(impatient.run(&request.run_id).await.unwrap().is_lost);
    let second = Claim::take(&impatient, &request).await.unwrap();
    assert_eq!((first.attempt(), second.attempt()), (1, 2));
    assert_eq!(code(&first.still_mine().await.unwrap_err()), 75);
    second
        .heartbeat(&status(RunState::Preempted))
        .await
        .unwrap();
    let third = Claim::take(&world.store, &request).await.unwrap();
    assert_eq!(
        third.attempt(),
        3,
        "a preempted attempt gives its claim up at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_racing_claims_wins() {
    let world = World::new().await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move { Claim::take(&store, &request("race")).await })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => winners += 1,
            Err(error) => assert_eq!(code(&error), 75, "{error}"),
        }
    }
    assert_eq!(winners, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_can_be_read_as_it_was_written() {
    let world = World::new().await;
    let request = request("work");
    let claim = Claim::take(&world.store, &request).await.unwrap();
    claim.heartbeat(&status(RunState::Running)).await.unwrap();
    let line = |n: u64| json!({"seq": n}).to_string();
    claim.events(0, &[line(0), line(1)]).await.unwrap();
    claim
        .events(1, &[line(2), "no json".to_owned()])
        .await
        .unwrap();
    claim
        .events(1, &[line(2), "no json".to_owned()])
        .await
        .unwrap();
    assert!(
        claim.events(1, &[line(9)]).await.is_err(),
        "a batch is never replaced"
    );
    claim.logs(0, &[line(0)]).await.unwrap();
    let id = world.publish("state", &[("a", b"x")]).await.id;
    claim.checkpoint(10, &id, Some(0.5), 2).await.unwrap();
    claim.checkpoint(20, &id, Some(f64::NAN), 3).await.unwrap();
    let entry = |step, metric, keep_last| CheckpointEntry {
        step,
        attempt: 1,
        id: id.clone(),
        metric,
        keep_last,
    };
    assert_eq!(
        claim.checkpoints().await.unwrap(),
        [entry(20, None, 3), entry(10, Some(0.5), 2)]
    );
    let result = RunResult {
        outputs: BTreeMap::from([("checkpoint".to_owned(), id.clone())]),
        attempt: 1,
        finished_at: now(),
        summary: json!({"tokens_per_sec": 12.5}),
    };
    assert_eq!(claim.finish(&result).await.unwrap(), Outcome::Committed);
    let later = RunResult {
        attempt: 2,
        ..result.clone()
    };
    assert_eq!(claim.finish(&later).await.unwrap(), Outcome::TheirsEqual);
    let other = RunResult {
        outputs: BTreeMap::new(),
        ..result.clone()
    };
    assert_eq!(
        claim.finish(&other).await.unwrap(),
        Outcome::TheirsDifferent
    );
    let view = world.store.run(&request.run_id).await.unwrap();
    assert_eq!(
        world.store.runs().await.unwrap(),
        std::slice::from_ref(&request.run_id)
    );
    assert_eq!(
        (view.request, view.attempt, view.is_lost),
        (request, 1, false)
    );
    assert_eq!(view.status, Some(status(RunState::Running)));
    assert_eq!(view.result, Some(result));
    let seqs: Vec<_> = view
        .events
        .iter()
        .map(|event: &Value| event["seq"].as_u64())
        .collect();
    assert_eq!(seqs, [Some(0), Some(1), Some(2)]);
    assert_eq!((view.logs.len(), view.num_bad_lines), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_unavailable_and_stay_secret() {
    let world = World::new().await;
    let secret = "planted-secret-value-7f3a";
    for key_id in [world.server.access_key(), "PLANTEDKEYID0001"] {
        let wrong = connect(&world.server, "main", |options| {
            options.credentials = Some(Credentials::new(key_id, secret));
        })
        .await;
        let error = wrong.preflight().await.unwrap_err();
        let text = format!("{error} {error:?} {:?} {wrong:?}", error.hint());
        assert_eq!(code(&error), 69, "{text}");
        assert!(
            text.contains(world.server.endpoint()) && text.contains("s3://wmtp/main"),
            "{text}"
        );
        assert!(text.contains("AWS_ACCESS_KEY_ID"), "{text}");
        assert!(!text.contains(secret) && !text.contains(key_id), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_bucket_or_server_is_unavailable() {
    let world = World::new().await;
    let options = trial::options(&world.server);
    let bucket = Store::connect(&"s3://nowhere/x".parse().unwrap(), options.clone())
        .await
        .unwrap();
    let error = bucket.preflight().await.unwrap_err();
    assert_eq!(code(&error), 69, "{error}");
    assert!(error.hint().unwrap().contains("bucket"), "{error}");
    let endpoint = Some("http://127.0.0.1:9".to_owned());
    let gone = StoreOptions {
        endpoint,
        ..options
    };
    let gone = Store::connect(&"s3://wmtp/x".parse().unwrap(), gone)
        .await
        .unwrap();
    let error = gone.reach().await.unwrap_err();
    assert_eq!(code(&error), 69, "{error}");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    assert!(
        error.hint().unwrap().contains("AWS_ENDPOINT_URL_S3"),
        "{error}"
    );
}

/// Checks a store without looking at progress.
async fn fsck(world: &World, depth: FsckDepth) -> FsckReport {
    world.store.fsck(depth, |_, _, _| {}).await.unwrap()
}

/// Kind and key of each finding.
fn found(report: &FsckReport) -> Vec<(Fault, &str)> {
    report
        .findings
        .iter()
        .map(|finding| (finding.fault, finding.key.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_store_has_no_findings() {
    let world = World::new().await;
    assert_eq!(fsck(&world, FsckDepth::Full).await, FsckReport::default());
    let first = world
        .publish("one", &[("a", b"shared"), ("b", b"shared"), ("empty", b"")])
        .await;
    world
        .publish("two", &[("c", b"shared"), ("d", b"own")])
        .await;
    world
        .store
        .set_name(Kind::ProcessedData, "micropy", &first.id)
        .await
        .unwrap();
    let mut phases = Vec::new();
    let watch = |phase, done, total| phases.push((phase, done, total));
    let report = world.store.fsck(FsckDepth::Full, watch).await.unwrap();
    let expected = FsckReport {
        names: 1,
        manifests: 2,
        contents: 3,
        bytes: 9,
        bytes_hashed: 9,
        ..FsckReport::default()
    };
    assert_eq!(report, expected);
    for last in [
        (FsckPhase::Names, 1, 1),
        (FsckPhase::Manifests, 2, 2),
        (FsckPhase::Sizes, 3, 0),
        (FsckPhase::Contents, 9, 9),
    ] {
        assert!(phases.contains(&last), "{last:?} in {phases:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_store_is_named() {
    let world = World::new().await;
    let sound = world.publish("sound", &[("a", b"sound")]).await;
    let hurt = world
        .publish(
            "hurt",
            &[("gone", b"1"), ("short", b"22"), ("other", b"333")],
        )
        .await;
    let sharing = world.publish("sharing", &[("copy", b"1")]).await;
    let broken = world.publish("broken", &[("a", b"hidden")]).await;
    world.delete(&blob_key(&hurt, "gone")).await;
    world.overwrite(&blob_key(&hurt, "short"), b"2").await;
    world.overwrite(&blob_key(&hurt, "other"), b"334").await;
    let stored = world.stored("main", &manifest_key(&broken.id)).await;
    let altered = String::from_utf8(stored)
        .unwrap()
        .replace(r#""rows":"2""#, r#""rows":"3""#);
    world
        .overwrite(&manifest_key(&broken.id), altered.as_bytes())
        .await;
    let kind = Kind::ProcessedData;
    let nowhere: ArtifactId = format!("{kind}-{}", "0".repeat(40)).parse().unwrap();
    for name in ["sound", "bad"] {
        world.store.set_name(kind, name, &sound.id).await.unwrap();
    }
    world.name_by_hand("lost", &nowhere).await;
    world
        .overwrite("v1/names/processed-data/bad/0001.json", b"{}")
        .await;
    world.overwrite("v1/blobs/sha256/zz/stray", b"orphan").await;
    world
        .overwrite("v1/artifacts/processed-data/stray.json", b"{}")
        .await;

    let (gone, short, other) = (
        blob_key(&hurt, "gone"),
        blob_key(&hurt, "short"),
        blob_key(&hurt, "other"),
    );
    let (manifest, hidden) = (manifest_key(&broken.id), blob_key(&broken, "a"));
    let by_size = [
        (Fault::UnreadableManifest, manifest.as_str()),
        (Fault::MissingContent, &gone),
        (Fault::WrongSize, &short),
        (Fault::NameToNowhere, "v1/names/processed-data/lost/"),
        (Fault::UnreadableName, "v1/names/processed-data/bad/"),
        (Fault::Orphan, "v1/artifacts/processed-data/stray.json"),
        (Fault::Orphan, &hidden),
        (Fault::Orphan, "v1/blobs/sha256/zz/stray"),
    ];
    let report = fsck(&world, FsckDepth::Sizes).await;
    assert_eq!(found(&report), by_size);
    assert!(!report.is_sound());
    assert_eq!(
        (report.names, report.manifests, report.bytes_hashed),
        (3, 4, 0)
    );
    assert_eq!(report.bytes_orphaned, 2 + 6 + 6);
    let missing = report.of(Fault::MissingContent).next().unwrap();
    let mut needed_by = [hurt.id.clone(), sharing.id];
    needed_by.sort();
    assert_eq!(missing.artifacts, needed_by);
    let altered = report.of(Fault::UnreadableManifest).next().unwrap();
    assert!(
        altered.detail.contains("its content gives the id"),
        "{}",
        altered.detail
    );
    let cut = report.of(Fault::WrongSize).next().unwrap();
    assert_eq!(cut.detail, "short: 1 bytes instead of 2");

    let report = fsck(&world, FsckDepth::Full).await;
    let mut by_bytes = by_size.to_vec();
    by_bytes.insert(3, (Fault::AlteredContent, &other));
    assert_eq!(found(&report), by_bytes);
    assert_eq!(
        report.bytes_hashed,
        5 + 3,
        "what is missing or cut is not read"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_alone_is_no_damage() {
    let world = World::new().await;
    world.publish("out", &[("a", b"x")]).await;
    let digest = Digest::of(b"orphan").to_string();
    let key = format!("v1/blobs/sha256/{}/{digest}", &digest[..2]);
    world.overwrite(&key, b"orphan").await;
    let report = fsck(&world, FsckDepth::Full).await;
    assert_eq!(found(&report), [(Fault::Orphan, key.as_str())]);
    assert!(report.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_byte_in_a_large_content_is_found() {
    let world = World::new().await;
    let mut bytes = vec![7; (33 << 20) + 5];
    let manifest = world.publish("out", &[("large.bin", &bytes)]).await;
    let size = bytes.len() as u64;
    assert_eq!(fsck(&world, FsckDepth::Full).await.bytes_hashed, size);
    *bytes.last_mut().unwrap() ^= 1;
    let key = blob_key(&manifest, "large.bin");
    world.overwrite(&key, &bytes).await;
    assert!(fsck(&world, FsckDepth::Sizes).await.is_sound());
    let report = fsck(&world, FsckDepth::Full).await;
    assert_eq!(found(&report), [(Fault::AlteredContent, key.as_str())]);
}

/// A page of a listing has 1,000 objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_several_pages_is_checked_to_its_end() {
    let world = World::new().await;
    let texts: Vec<_> = (0..1_040)
        .map(|n| (format!("{n:04}"), n.to_string()))
        .collect();
    let files: Vec<_> = texts
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_bytes()))
        .collect();
    let manifest = world.publish("out", &files).await;
    let report = fsck(&world, FsckDepth::Sizes).await;
    assert_eq!((report.contents, found(&report)), (1_040, vec![]));
    let last = manifest
        .content
        .files
        .iter()
        .max_by_key(|file| file.sha256)
        .unwrap();
    let lost = blob_key(&manifest, &last.path);
    world.delete(&lost).await;
    world.overwrite("v1/blobs/sha256/zz/stray", b"orphan").await;
    let report = fsck(&world, FsckDepth::Sizes).await;
    let expected = [
        (Fault::MissingContent, lost.as_str()),
        (Fault::Orphan, "v1/blobs/sha256/zz/stray"),
    ];
    assert_eq!(found(&report), expected);
}

/// Publishes an artifact of one small file that was made from others.
async fn made_from(world: &World, name: &str, inputs: &[(&str, &ArtifactId)]) -> ArtifactId {
    let inputs = inputs.iter().map(|(role, id)| Input {
        role: (*role).to_owned(),
        id: (*id).clone(),
    });
    let draft = draft(world.folder(name, &[("text", name.as_bytes())]));
    let provenance = provenance(inputs.collect());
    world.store.publish(&draft, &provenance).await.unwrap().id
}

/// Each artifact with the artifacts that it leads to.
fn graph(lineage: &Lineage) -> BTreeMap<&ArtifactId, Vec<(&str, &ArtifactId)>> {
    lineage
        .nodes
        .iter()
        .map(|(id, node)| {
            let links = node.links.iter();
            (
                id,
                links.map(|link| (link.role.as_str(), &link.id)).collect(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lineage_goes_up_and_down_to_the_ends() {
    let world = World::new().await;
    let raw = made_from(&world, "raw", &[]).await;
    let left = made_from(&world, "left", &[("raw", &raw)]).await;
    let right = made_from(&world, "right", &[("raw", &raw)]).await;
    let both = made_from(&world, "both", &[("left", &left), ("right", &right)]).await;
    let beside = made_from(&world, "beside", &[]).await;

    let up = world.store.lineage(&both, Direction::Up).await.unwrap();
    let expected = BTreeMap::from([
        (&both, vec![("left", &left), ("right", &right)]),
        (&left, vec![("raw", &raw)]),
        (&right, vec![("raw", &raw)]),
        (&raw, vec![]),
    ]);
    assert_eq!(graph(&up), expected);
    let state = &up.nodes[&raw].state;
    assert!(
        matches!(state, NodeState::Present { job, files: 1, bytes: 3, .. } if job == "prepare-data"),
        "{state:?}"
    );

    let down = world.store.lineage(&raw, Direction::Down).await.unwrap();
    let mut halves = vec![("raw", &left), ("raw", &right)];
    halves.sort();
    let expected = BTreeMap::from([
        (&raw, halves),
        (&left, vec![("left", &both)]),
        (&right, vec![("right", &both)]),
        (&both, vec![]),
    ]);
    assert_eq!(graph(&down), expected);
    assert!(!down.nodes.contains_key(&beside));
}

#[tokio::test(flavor = "multi_thread")]
async fn lineage_tells_what_is_missing_or_damaged_on_its_way() {
    let world = World::new().await;
    let raw = made_from(&world, "raw", &[]).await;
    let broken = made_from(&world, "broken", &[("raw", &raw)]).await;
    let elsewhere: ArtifactId = format!("base-model-{}", "0".repeat(40)).parse().unwrap();
    let last = made_from(&world, "last", &[("base", &elsewhere), ("data", &broken)]).await;
    world.overwrite(&manifest_key(&broken), b"{}").await;

    let up = world.store.lineage(&last, Direction::Up).await.unwrap();
    assert_eq!(up.nodes[&elsewhere].state, NodeState::Missing);
    assert!(matches!(
        up.nodes[&broken].state,
        NodeState::Unreadable { .. }
    ));
    assert_eq!((up.nodes.len(), &up.unreadable), (3, &vec![broken.clone()]));
    let down = world.store.lineage(&raw, Direction::Down).await.unwrap();
    assert_eq!(
        (down.nodes.len(), down.unreadable),
        (1, vec![broken.clone()])
    );
    let direct = world
        .store
        .lineage(&broken, Direction::Up)
        .await
        .unwrap_err();
    assert_eq!(code(&direct), 65, "{direct}");
}

/// An id covers content alone: a job whose output equals its input makes an artifact its own ancestor.
#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_inputs_ends() {
    let world = World::new().await;
    let elsewhere = World::new().await;
    let second = made_from(&elsewhere, "second", &[]).await;
    let first = made_from(&world, "first", &[("input", &second)]).await;
    assert_eq!(
        made_from(&world, "second", &[("input", &first)]).await,
        second
    );
    for direction in [Direction::Up, Direction::Down] {
        let lineage = world.store.lineage(&first, direction).await.unwrap();
        let expected = BTreeMap::from([
            (&first, vec![("input", &second)]),
            (&second, vec![("input", &first)]),
        ]);
        assert_eq!(graph(&lineage), expected);
    }
}

/// A guard that stops at the artifact asked for alone would go around this one for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_circle_beside_the_root_ends() {
    let world = World::new().await;
    let elsewhere = World::new().await;
    let second = made_from(&elsewhere, "second", &[]).await;
    let first = made_from(&world, "first", &[("input", &second)]).await;
    made_from(&world, "second", &[("input", &first)]).await;
    let above = made_from(&world, "above", &[("input", &first)]).await;
    let up = world.store.lineage(&above, Direction::Up).await.unwrap();
    let expected = BTreeMap::from([
        (&above, vec![("input", &first)]),
        (&first, vec![("input", &second)]),
        (&second, vec![("input", &first)]),
    ]);
    assert_eq!(graph(&up), expected);

    let ring = made_from(&elsewhere, "ring", &[]).await;
    let inner = made_from(&world, "inner", &[("ring", &ring), ("root", &above)]).await;
    made_from(&world, "ring", &[("inner", &inner)]).await;
    let down = world.store.lineage(&above, Direction::Down).await.unwrap();
    let expected = BTreeMap::from([
        (&above, vec![("root", &inner)]),
        (&inner, vec![("inner", &ring)]),
        (&ring, vec![("ring", &inner)]),
    ]);
    assert_eq!(graph(&down), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_a_kind_must_mean_one_artifact() {
    let world = World::new().await;
    let id = made_from(&world, "data", &[]).await;
    let scores: ArtifactId = format!("scores-{}", "0".repeat(40)).parse().unwrap();
    let store = &world.store;
    store.set_name(id.kind(), "one", &id).await.unwrap();
    store.set_name(id.kind(), "two", &id).await.unwrap();
    world.name_by_hand("two", &scores).await;
    for reference in ["one", "processed-data/two", &id.to_string()] {
        assert_eq!(
            store.resolve_any(reference).await.unwrap(),
            id,
            "{reference}"
        );
    }
    let error = store.resolve_any("two").await.unwrap_err();
    assert_eq!(code(&error), 2);
    assert!(
        error
            .to_string()
            .contains("processed-data/two or scores/two"),
        "{error}"
    );
    let error = store.resolve_any("onne").await.unwrap_err();
    assert_eq!(code(&error), 65);
    assert!(
        error.hint().unwrap().contains("processed-data/one"),
        "{error}"
    );
    for unknown in ["processed-data/onne", "data/one"] {
        assert_eq!(
            code(&store.resolve_any(unknown).await.unwrap_err()),
            65,
            "{unknown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touch_is_counted_once_a_key_and_races_lose_none() {
    let world = World::new().await;
    let touch = |n: u8| {
        let key = Digest::of(&[n]);
        wmtp_artifacts::Touch {
            key,
            protocol: Digest::of(b"protocol"),
            run_id: RunId::for_work("evaluate", &key),
            begun_at: Timestamp::now(),
        }
    };
    let (set, other) = (Digest::of(b"test set"), Digest::of(b"another"));
    let racing: Vec<_> = (0..8)
        .map(|n| {
            let (store, touch) = (world.store.clone(), touch(n));
            tokio::spawn(async move { store.register_touch(&set, "v001-s42", &touch).await })
        })
        .collect();
    let mut numbers = Vec::new();
    for (n, task) in (0..).zip(racing) {
        let found = task.await.unwrap().unwrap();
        assert_eq!(
            found.last().unwrap().key,
            touch(n).key,
            "one's own comes last"
        );
        numbers.push(found.len());
    }
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        [1, 2, 3, 4, 5, 6, 7, 8],
        "each has a number of its own"
    );

    // The same work again, later: the entry that stands for it, and none more.
    let before = world.store.touches(&set, "v001-s42").await.unwrap();
    let again = world
        .store
        .register_touch(&set, "v001-s42", &touch(3))
        .await
        .unwrap();
    assert!(before.starts_with(&again) && again.last().unwrap().key == touch(3).key);
    assert_eq!(world.store.touches(&set, "v001-s42").await.unwrap(), before);
    // Other sets and others' looks are other matters.
    for (set, by) in [(&other, "v001-s42"), (&set, "v001-s43")] {
        assert!(world.store.touches(set, by).await.unwrap().is_empty());
        let first = world.store.register_touch(set, by, &touch(0)).await;
        assert_eq!(first.unwrap().len(), 1);
    }
    let wrong = world.store.register_touch(&set, "a/b", &touch(0)).await;
    assert!(matches!(wrong, Err(Error::Usage { .. })));
}
