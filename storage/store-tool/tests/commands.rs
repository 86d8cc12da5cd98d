//! The commands as people type them: what they print and how they end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Region};
use dev_store::TestServer;
use mlflow_double::{Double, Fault};
use serde_json::{Value, json};
use tempfile::TempDir;
use trial::Ended;
use wmtp_artifacts::{
    ArtifactId, Claim, Digest, Draft, Input, Kind, Provenance, RunId, RunRequest, Store,
};

const STORE: &str = "s3://wmtp/test";

/// A store with a small chain: raw data, two data sets made from it, a model made from both.
struct Place {
    // Dropped first: it stops before its folder goes.
    server: TestServer,
    store: Store,
    runtime: tokio::runtime::Runtime,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(&folder.path().join("store"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(trial::connect(&server, STORE));
        let place = Self {
            server,
            store,
            runtime,
            folder,
        };
        let raw = place.publish(Kind::RawData, "raw", &[]);
        let easy = place.publish(Kind::ProcessedData, "easy", &[("raw", &raw)]);
        let hard = place.publish(Kind::ProcessedData, "hard", &[("raw", &raw)]);
        let data = [("data", &easy), ("validation", &hard)];
        let model = place.publish(Kind::Checkpoint, "model", &data);
        place.name("micropy", &raw);
        place.name("v001", &model);
        place
    }

    fn publish(&self, kind: Kind, text: &str, inputs: &[(&str, &ArtifactId)]) -> ArtifactId {
        let root = self.folder.path().join(text);
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("text"), text).unwrap();
        self.publish_folder(kind, root, text, inputs)
    }

    fn publish_folder(
        &self,
        kind: Kind,
        root: std::path::PathBuf,
        text: &str,
        inputs: &[(&str, &ArtifactId)],
    ) -> ArtifactId {
        let draft = Draft {
            kind,
            root,
            attributes: BTreeMap::new(),
        };
        let inputs = inputs.iter().map(|(role, id)| Input {
            role: (*role).to_owned(),
            id: (*id).clone(),
        });
        let provenance = Provenance {
            job: format!("make-{text}"),
            run_id: "make-0123456789abcdef".parse().unwrap(),
            attempt: 1,
            code_version: "0.1.0".to_owned(),
            code_revision: None,
            recipe_version: 1,
            recipe: Value::Null,
            options: json!({}),
            inputs: inputs.collect(),
            created_at: "2026-11-21T02:22:02Z".parse().unwrap(),
        };
        let published = self
            .runtime
            .block_on(self.store.publish(&draft, &provenance));
        published.unwrap().id
    }

    fn name(&self, name: &str, id: &ArtifactId) {
        let set = self.store.set_name(id.kind(), name, id);
        self.runtime.block_on(set).unwrap();
    }

    /// Writes an object that no command of ours would write.
    fn overwrite(&self, key: &str, text: &str) {
        let put = self
            .client()
            .put_object()
            .bucket(dev_store::BUCKET)
            .key(format!("test/{key}"))
            .body(text.as_bytes().to_vec().into());
        self.runtime.block_on(put.send()).unwrap();
    }

    /// A plain client.
    fn client(&self) -> aws_sdk_s3::Client {
        let keys = aws_sdk_s3::config::Credentials::new(
            self.server.access_key(),
            self.server.secret_key(),
            None,
            None,
            "test",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.server.region()))
            .endpoint_url(self.server.endpoint())
            .force_path_style(true)
            .credentials_provider(keys)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.run_on(STORE, args)
    }

    fn run_on(&self, store: &str, args: &[&str]) -> Ended {
        Ended::of(&mut self.command(store, args))
    }

    /// Runs a command that must end well, and returns the most memory it had, in MiB.
    fn peak_of(&self, store: &str, args: &[&str]) -> u64 {
        let mut child = self
            .command(store, args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak_kib = 0;
        let ended = loop {
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            // The highest so far; it is gone with the process, which grows no more in its last moment.
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            peak_kib = number.unwrap_or(peak_kib);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(ended.success(), "{args:?}");
        peak_kib >> 10
    }

    fn command(&self, store: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wmtp-store"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(trial::variables(&self.server))
            .env("WMTP_STORE", store)
            .stdin(Stdio::null());
        command
    }
}

/// The error as people see it, without the address of the test's server.
fn error(ended: &Ended, place: &Place) -> String {
    ended.error().replace(place.server.endpoint(), "ENDPOINT")
}

#[test]
fn a_model_is_asked_for_and_must_have_its_files() {
    let place = Place::new();
    let ended = place.run(&["model", "v001"]);
    assert_eq!(ended.code, Some(65));
    assert!(
        ended.stderr.contains("has no file params.json"),
        "{}",
        ended.stderr
    );
    let ended = place.run(&["model", "raw-data/micropy"]);
    assert_eq!(ended.code, Some(65));
    assert!(
        ended.stderr.contains("is of kind raw-data"),
        "{}",
        ended.stderr
    );
}

#[test]
fn lineage_prints_a_tree_and_unfolds_each_artifact_once() {
    let place = Place::new();
    let up = place.run(&["lineage", "v001"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    insta::assert_snapshot!(up.stdout, @r"
    checkpoint-1b27a18807f4a3223228afcff2077df3041ff5d9  (make-model, 2026-11-21 02:22 UTC, 1 file, 5 B)
      data: processed-data-b080d96527dffa71f02a94fece5ff20ba8b848c8  (make-easy, 2026-11-21 02:22 UTC, 1 file, 4 B)
        raw: raw-data-7dadfd25cbfcd6418c468d759c5ddcce8d1ffd4c  (make-raw, 2026-11-21 02:22 UTC, 1 file, 3 B)
      validation: processed-data-b1494b8f52fc5e01184c2835a5e83657fb1af4ec  (make-hard, 2026-11-21 02:22 UTC, 1 file, 4 B)
        raw: raw-data-7dadfd25cbfcd6418c468d759c5ddcce8d1ffd4c  (shown above)
    ");
    let down = place.run(&["lineage", "raw-data/micropy", "--down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    insta::assert_snapshot!(down.stdout, @r"
    raw-data-7dadfd25cbfcd6418c468d759c5ddcce8d1ffd4c  (make-raw, 2026-11-21 02:22 UTC, 1 file, 3 B)
      raw: processed-data-b080d96527dffa71f02a94fece5ff20ba8b848c8  (make-easy, 2026-11-21 02:22 UTC, 1 file, 4 B)
        data: checkpoint-1b27a18807f4a3223228afcff2077df3041ff5d9  (make-model, 2026-11-21 02:22 UTC, 1 file, 5 B)
      raw: processed-data-b1494b8f52fc5e01184c2835a5e83657fb1af4ec  (make-hard, 2026-11-21 02:22 UTC, 1 file, 4 B)
        validation: checkpoint-1b27a18807f4a3223228afcff2077df3041ff5d9  (shown above)
    ");
    let json = place.run(&["lineage", "v001", "--json"]).json();
    assert_eq!(json["direction"], "up");
    assert_eq!(json["nodes"].as_object().unwrap().len(), 4);
    let root = &json["nodes"][json["root"].as_str().unwrap()];
    assert_eq!(
        (&root["state"], &root["job"]),
        (&json!("present"), &json!("make-model"))
    );
    assert_eq!(root["links"][1]["role"], "validation");
}

#[test]
fn an_unknown_name_is_bad_input_and_tells_the_known_ones() {
    let place = Place::new();
    let ended = place.run(&["lineage", "v010"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(65), ""));
    insta::assert_snapshot!(error(&ended, &place), @r#"
    error: artifact "v010" does not exist in s3://wmtp/test at ENDPOINT

    hint: the names of this store are raw-data/micropy, checkpoint/v001
    "#);
}

#[test]
fn fsck_of_a_sound_store_ends_well() {
    let place = Place::new();
    let ended = place.run(&["fsck", "--full"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @r"
    checked 2 names, 4 manifests, 4 contents of 16 B; every content was read

    nothing is missing or damaged
    ");
}

#[test]
fn fsck_ends_with_76_and_explains_what_it_found() {
    let place = Place::new();
    let nowhere = format!("scores-{}", "0".repeat(40));
    let name = json!({"artifact": nowhere, "write_id": "by hand"}).to_string();
    place.overwrite("v1/names/scores/lost/0000.json", &name);
    let ended = place.run(&["fsck"]);
    assert_eq!(ended.code, Some(76), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @r"
    checked 3 names, 4 manifests, 4 contents of 16 B; sizes only, --full reads the contents too

    names that point to nothing: 1
      meaning: the name points to an artifact that has no manifest in this store
      to do:   run the job that makes the artifact again with --name: the name gets a new generation
      v1/names/scores/lost/  (there is no manifest of its artifact)
        artifact scores-0000000000000000000000000000000000000000
    ");
    insta::assert_snapshot!(error(&ended, &place), @r"
    error: 1 object of the store missing or damaged

    hint: the report on stdout says for each what it means and what to do
    ");
    let ended = place.run(&["fsck", "--json"]);
    assert_eq!(ended.code, Some(76));
    let json = ended.json();
    assert_eq!(
        (&json["sound"], &json["full"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(json["groups"][0]["fault"], "name_to_nowhere");
    assert_eq!(
        json["groups"][0]["findings"][0]["artifacts"],
        json!([nowhere])
    );
}

#[test]
fn gc_shows_announces_and_deletes() {
    let place = Place::new();
    place.publish(Kind::Scores, "new", &[]);
    let (days, hours) = (Duration::from_hours(8 * 24), Duration::from_hours(2));
    place.server.set_back(days);
    place.publish(Kind::Scores, "junk", &[]);
    place.server.advance(days);
    let ended = place.run(&["gc"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @r"
    5 artifacts and 5 contents of 19 B are needed

    artifacts: 1 (641 B)
      v1/artifacts/scores/scores-703cac19906d78c83ef951618dc06d7f5fbab85e/manifest.json  (641 B; no name, result, cache entry, state or artifact leads to it)

    contents: 1 (4 B)
      v1/blobs/sha256/ef/ef875a1705a5fdac206be996f4dc1f726ea6b68861eb741c37def7277f179e37  (4 B; no artifact that stays lists it)

    nothing was changed; `--plan` announces this, and `--apply` deletes it an hour later
    ");
    assert_eq!(
        place.run(&["gc", "--apply"]).code,
        Some(65),
        "nothing is announced"
    );
    let ended = place.run(&["gc", "--plan", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.json()["number"], 0);
    assert_eq!(
        ended.json()["plan"]["contents"].as_array().unwrap().len(),
        1
    );
    let ended = place.run(&["gc", "--apply"]);
    assert_eq!(
        ended.code,
        Some(75),
        "its notice is not over: {}",
        ended.stderr
    );
    place.server.set_back(hours);
    let plan = place.store.gc_plan(wmtp_artifacts::GcPolicy::default());
    assert!(place.runtime.block_on(plan).unwrap().is_some());
    place.server.advance(hours);
    let ended = place.run(&["gc", "--apply"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @"collection 0001: 1 artifact deleted, 1 content, 0 entries, 645 B; 0 unfinished uploads aborted");
    let ended = place.run(&["gc", "--plan"]);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "nothing to collect\n")
    );
    assert_eq!(place.run(&["fsck", "--full"]).code, Some(0));
    assert_eq!(place.run(&["lineage", "v001"]).code, Some(0));
}

#[test]
fn gc_refuses_what_could_take_from_a_running_job() {
    let place = Place::new();
    for args in [
        &["gc", "--grace-hours", "23"][..],
        &["gc", "--plan", "--apply"],
        &["gc", "--apply", "--grace-hours", "48"],
    ] {
        assert_eq!(place.run(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn an_export_is_imported_under_a_name() {
    let place = Place::new();
    let ended = place.run(&["export", "v001", "--folder", "carried"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @"exported checkpoint-1b27a18807f4a3223228afcff2077df3041ff5d9: 4 artifacts, 4 contents copied (16 B), 0 there before");
    let there = "s3://wmtp/there";
    let ended = place.run_on(
        there,
        &["import", "--folder", "carried", "--name", "v001", "--json"],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let json = ended.json();
    assert_eq!(
        (&json["artifacts"], &json["contents_copied"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(
        place.run_on(there, &["lineage", "v001"]).stdout,
        place.run(&["lineage", "v001"]).stdout
    );
    let blob = "carried/v1/blobs/sha256";
    let folder = std::fs::read_dir(place.folder.path().join(blob))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let file = std::fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    std::fs::write(file.path(), "x").unwrap();
    let ended = place.run_on("s3://wmtp/third", &["import", "--folder", "carried"]);
    assert_eq!(ended.code, Some(76), "{}", ended.stderr);
}

#[test]
fn flags_of_jobs_are_refused() {
    let place = Place::new();
    for flag in ["--recipe", "--name", "--set", "--data-store", "--scratch"] {
        let ended = place.run(&["fsck", flag, "x"]);
        assert_eq!(ended.code, Some(2), "{flag}");
    }
    for flag in ["--force", "--dry-run", "--explain"] {
        assert_eq!(
            place.run(&["lineage", "v001", flag]).code,
            Some(2),
            "{flag}"
        );
    }
}

#[test]
fn repair_mends_from_a_copy_what_fsck_finds() {
    let place = Place::new();
    assert_eq!(
        place.run(&["export", "v001", "--folder", "carried"]).code,
        Some(0)
    );
    let blob = |text: &str| {
        let digest = wmtp_artifacts::Digest::of(text.as_bytes()).to_string();
        format!("v1/blobs/sha256/{}/{digest}", &digest[..2])
    };
    place.overwrite(&blob("easy"), "ease");
    place.overwrite(&blob("hard"), "longer");
    std::fs::write(
        place.folder.path().join("carried").join(blob("hard")),
        "lost",
    )
    .unwrap();
    assert_eq!(place.run(&["fsck", "--full"]).code, Some(76));
    let repair = ["repair", "--full", "--from", "carried"];
    let ended = place.run(&repair);
    assert_eq!(ended.code, Some(76), "{}", ended.stderr);
    insta::assert_snapshot!(ended.stdout, @r"
    1 content mended, 1 left

    mended:
      v1/blobs/sha256/97/97c10efe01d5c9c88704a12d361d8429b3a6aa2412290a0773109d5d2d603d5e  (text: the bytes do not have the SHA-256 that the manifest states)
        artifact processed-data-b080d96527dffa71f02a94fece5ff20ba8b848c8

    left as it was:
      v1/blobs/sha256/ed/ed5465b9220df9ce176d0bf30d6a317729bd9d37e4ae1cc015cb24c99af1df49  (text: 6 bytes instead of 4)
        artifact processed-data-b1494b8f52fc5e01184c2835a5e83657fb1af4ec
    ");
    insta::assert_snapshot!(error(&ended, &place), @r"
    error: 1 object of the store still missing or damaged

    hint: carried has nothing whole for it; try another copy, or run the job that made the artifact with --force
    ");
    // The folder that the artifact was published from has it, too.
    std::fs::rename(
        place.folder.path().join("hard"),
        place.folder.path().join("original"),
    )
    .unwrap();
    let ended = place.run(&["repair", "--from", "original"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(place.run(&["fsck", "--full"]).code, Some(0));
    place.overwrite(&blob("raw"), "war");
    let there = "s3://wmtp/copy";
    let ended = place.run_on(there, &["import", "--folder", "carried"]);
    assert_eq!(ended.code, Some(76), "the damaged export: {}", ended.stderr);
    std::fs::write(
        place.folder.path().join("carried").join(blob("hard")),
        "hard",
    )
    .unwrap();
    assert_eq!(
        place.run_on(there, &["import", "--folder", "carried"]).code,
        Some(0)
    );
    let ended = place.run(&["repair", "--full", "--from", there]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout.starts_with("1 content mended, 0 left"),
        "{}",
        ended.stdout
    );
    assert_eq!(place.run(&["fsck", "--full"]).code, Some(0));
}

/// A process that dies in the middle of a large file leaves what the next one goes on with, and nothing else.
#[test]
fn a_killed_transfer_goes_on() {
    let place = Place::new();
    let root = place.folder.path().join("large");
    std::fs::create_dir(&root).unwrap();
    let size = 128 << 20;
    let file = std::fs::File::create(root.join("zeros")).unwrap();
    file.set_len(size).unwrap();
    let id = place.publish_folder(Kind::RawData, root, "large", &[]);
    let id = id.to_string();
    let export = ["export", id.as_str(), "--folder", "carried"];
    let import = ["import", "--folder", "carried"];
    let there = "s3://wmtp/there";
    for (store, args, point) in [
        (STORE, &export[..], "fetch:after-part:4"),
        (there, &import[..], "upload:after-part:4"),
    ] {
        let mut command = place.command(store, args);
        let ended = command.env("WMTP_FAULT_POINT", point).output().unwrap();
        assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
        let before = place.server.sent() + place.server.received();
        let ended = place.run_on(store, args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let again = place.server.sent() + place.server.received() - before;
        assert!(100 * again <= 55 * size, "{again} of {size} bytes again");
    }
    let uploads = place.client().list_multipart_uploads();
    let uploads = place
        .runtime
        .block_on(uploads.bucket(dev_store::BUCKET).send());
    assert_eq!(uploads.unwrap().uploads().len(), 0);
    let ended = place.run_on(there, &["fsck", "--full"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
}

/// Largest memory of a transfer, whatever the size of the file.
const MOST_MIB: u64 = 256;

/// Publishes a file of zeros that takes no room on the disk, and carries it out of the store and into another.
fn transfers_in_bounded_memory(bytes: u64) {
    let place = Place::new();
    let root = place.folder.path().join("large");
    std::fs::create_dir(&root).unwrap();
    let file = std::fs::File::create(root.join("zeros")).unwrap();
    file.set_len(bytes).unwrap();
    let id = place.publish_folder(Kind::RawData, root, "large", &[]);
    let id = id.to_string();
    let export = ["export", id.as_str(), "--folder", "carried"];
    let down = place.peak_of(STORE, &export);
    let up = place.peak_of("s3://wmtp/there", &["import", "--folder", "carried"]);
    assert!(
        down < MOST_MIB && up < MOST_MIB,
        "{down} MiB down, {up} MiB up"
    );
    let checked = place.peak_of("s3://wmtp/there", &["fsck", "--full"]);
    assert!(checked < MOST_MIB, "{checked} MiB to check");
}

#[test]
fn a_large_file_travels_in_bounded_memory() {
    transfers_in_bounded_memory(1 << 30);
}

/// From 8 GiB on parts are four times as large.
#[test]
#[ignore = "it needs 25 GB of disk"]
fn a_file_of_large_parts_travels_in_bounded_memory() {
    transfers_in_bounded_memory((8 << 30) + 12_345);
}

/// Leaves a run in the store that was stopped after two steps.
fn stopped_run(place: &Place) -> RunId {
    stopped_run_of(place, "train-stage2")
}

fn stopped_run_of(place: &Place, job: &str) -> RunId {
    let key = Digest::of(b"work");
    let run_id = RunId::for_work(job, &key);
    let request = RunRequest {
        run_id: run_id.clone(),
        job: job.to_owned(),
        cache_key: key,
        inputs: Vec::new(),
        recipe: json!({"experiment": {"algo": "rho1", "dataset": "micropy"}}),
        code_version: "0.1.0".to_owned(),
        code_revision: None,
        host: "here".to_owned(),
        labels: BTreeMap::new(),
        started_at: "2026-11-21T10:00:00Z".parse().unwrap(),
    };
    let event = |second: u32, kind: &str, data: Value| {
        let ts = format!("2026-11-21T10:00:0{second}Z");
        json!({"type": kind, "ts": ts, "attempt": 1, "data": data}).to_string()
    };
    let step = |step: u32| json!({"step": step, "values": {"train_loss": 0.5}});
    let lines = [
        event(0, "started", json!({})),
        event(1, "metrics", step(1)),
        event(2, "metrics", step(2)),
        event(3, "preempted", json!({})),
    ];
    place.runtime.block_on(async {
        let claim = Claim::take(&place.store, &request).await.unwrap();
        claim.events(0, &lines).await.unwrap();
    });
    run_id
}

#[test]
fn a_bell_is_rung_by_what_is_listed_and_its_words_are_cut_to_size() {
    let place = Place::new();
    let run = stopped_run(&place);
    let quiet = place.run(&["runs", "--state", "failed,lost", "--expect-none"]);
    assert_eq!(quiet.code, Some(0), "{}", quiet.stderr);
    let loud = place.run(&["runs", "--state", "waiting", "--expect-none"]);
    assert_eq!(loud.code, Some(77), "{}", loud.stderr);
    assert!(loud.stdout.contains(run.as_str()), "{}", loud.stdout);
    let log = |args: &[&str]| place.run(&[&["log", run.as_str(), "--events"], args].concat());
    let first = log(&["--limit", "1"]).stdout;
    assert!(
        first.contains("started") && first.lines().count() == 1,
        "{first}"
    );
    let early = log(&["--until", "2026-11-21T10:00:02Z"]).stdout;
    assert_eq!(early.lines().count(), 2, "{early}");
    assert_eq!(log(&["--limit", "1", "--last", "1"]).code, Some(2));
}

#[test]
fn people_note_and_tag_runs_and_find_them_by_it() {
    let place = Place::new();
    let run = stopped_run(&place);
    let before = place.runtime.block_on(place.store.run(&run)).unwrap();
    let by = |args: &[&str]| place.run(&[args, &["--author", "ada"]].concat());
    let noted = by(&["note", &run.as_str()[..14], "died with its node"]);
    assert_eq!(noted.code, Some(0), "{}", noted.stderr);
    assert_eq!(noted.stdout, format!("noted on {run}\n"));
    let tagged = by(&["tag", run.as_str(), "paper", "table-2", "paper"]);
    assert_eq!(tagged.stdout, format!("tags of {run}: paper, table-2\n"));
    let taken = by(&[
        "tag",
        run.as_str(),
        "paper",
        "never-there",
        "--remove",
        "--json",
    ])
    .json();
    assert_eq!(taken["tags"], json!(["table-2"]));

    let listed = place.run(&["runs", "--tag", "table-2", "--json"]).json();
    assert_eq!(listed["runs"][0]["run_id"], run.as_str());
    assert_eq!(listed["runs"][0]["tags"], json!(["table-2"]));
    let note = &listed["runs"][0]["notes"][0];
    assert_eq!(
        (&note["text"], &note["author"]),
        (&json!("died with its node"), &json!("ada"))
    );
    assert!(place.run(&["runs"]).stdout.contains("  #table-2"));
    let none = place
        .run(&["runs", "--tag", "table-2,paper", "--json"])
        .json();
    assert_eq!((&none["runs"], &none["total"]), (&json!([]), &json!(1)));

    // What the run wrote, its cache key with it, is as it was; every word is its own record.
    let after = place.runtime.block_on(place.store.run(&run)).unwrap();
    assert_eq!(after.remarks.len(), 4, "{:?}", after.remarks);
    assert_eq!(
        wmtp_artifacts::RunView {
            remarks: Vec::new(),
            ..after
        },
        before
    );
    assert_eq!(place.run(&["fsck", "--full"]).code, Some(0));
}

#[test]
fn a_remark_that_nobody_could_use_is_refused() {
    let place = Place::new();
    let run = stopped_run(&place);
    let nameless = place.run(&["note", run.as_str(), "text"]);
    assert_eq!(nameless.code, Some(2));
    assert!(nameless.stderr.contains("--author"), "{}", nameless.stderr);
    let two_words = place.run(&["tag", run.as_str(), "two words", "--author", "ada"]);
    assert_eq!(two_words.code, Some(2));
    insta::assert_snapshot!(error(&two_words, &place), @r#"error: tag "two words": expected 1 to 128 letters, digits, '-', '_' or '.', beginning with a letter or digit"#);
    let empty = place.run(&["note", run.as_str(), " ", "--author", "ada"]);
    assert_eq!(empty.code, Some(2), "{}", empty.stderr);
    let unknown = place.run(&["tag", "train-stage9", "x", "--author", "ada"]);
    assert_eq!(unknown.code, Some(65));
    assert!(unknown.stderr.contains("no run of this store begins with"));
}

#[test]
fn names_are_listed_given_and_remembered() {
    let place = Place::new();
    let id = |name: &str| {
        let resolved = place.store.resolve_any(name);
        place.runtime.block_on(resolved).unwrap().to_string()
    };
    let (model, data) = (id("v001"), id("raw-data/micropy"));
    let other = place.publish(Kind::RawData, "other", &[]).to_string();
    let named = place.run(&["name", "v001", "paper-model"]);
    assert_eq!(named.code, Some(0), "{}", named.stderr);
    assert_eq!(
        named.stdout,
        format!("checkpoint/paper-model is {model} now\n")
    );
    let listed = place.run(&["names", "--kind", "checkpoint"]);
    assert_eq!(
        listed.stdout,
        format!("checkpoint/paper-model  {model}\ncheckpoint/v001  {model}\n2 names\n")
    );
    assert!(place.run(&["names"]).stdout.contains("raw-data/micropy"));

    // A name moves, and what it was stays on record.
    let moved = place.run(&["name", &data, "set"]);
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    let again = place.run(&["name", &other, "set", "--json"]).json();
    assert_eq!(again["before"], data);
    let history = place.run(&["names", "set", "--json"]).json();
    let artifacts = history["namings"].as_array().unwrap().iter();
    let artifacts: Vec<_> = artifacts.map(|naming| naming["artifact"].clone()).collect();
    assert_eq!(artifacts, [json!(data), json!(other)]);

    let unknown = place.run(&["names", "nothing"]);
    assert_eq!(unknown.code, Some(65), "{}", unknown.stderr);
    let absent = place.run(&["name", "v009", "x"]);
    assert_eq!(absent.code, Some(65), "{}", absent.stderr);
    let like_an_id = place.run(&["name", "v001", &model]);
    assert_eq!(like_an_id.code, Some(2), "{}", like_an_id.stderr);
}

#[test]
fn who_did_what_is_listed() {
    let place = Place::new();
    let run = stopped_run(&place);
    let before = place.run(&["audit", "--json"]).json()["events"].clone();
    assert_eq!(
        before.as_array().unwrap().len(),
        2,
        "the names of the place"
    );
    for args in [
        &["name", "v001", "paper-model"] as &[&str],
        &["name", "v001", "paper-model"],
        &[
            "note",
            run.as_str(),
            "a note that is its own record",
            "--author",
            "ada",
        ],
    ] {
        let mut command = place.command(STORE, args);
        let ended = command
            .env("WMTP_REVISION", "0123abcd")
            .env("WMTP_IMAGE", "registry/store@sha256:00")
            .output();
        assert!(ended.unwrap().status.success(), "{args:?}");
    }
    let listed = place.run(&["audit"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(listed.stdout.ends_with("4 events\n"), "{}", listed.stdout);
    assert!(!listed.stdout.contains("its own record"));
    let after = place.run(&["audit", "--json"]).json();
    let events = &after["events"].as_array().unwrap()[2..];
    let acts: Vec<_> = events.iter().map(|event| event["act"].clone()).collect();
    assert_eq!(
        acts,
        ["name", "remark"],
        "a name that is there is given by nobody"
    );
    for event in events {
        assert_eq!(event["key_id"], place.server.access_key());
        assert_eq!(event["agent"]["revision"], "0123abcd");
        assert_eq!(event["agent"]["image"], "registry/store@sha256:00");
    }
    assert_eq!(events[0]["agent"]["program"], "wmtp-store name");
    assert_eq!(events[0]["request"]["name"], "paper-model");
    assert_eq!(events[1]["request"]["author"], "ada");
    let secret = place.server.secret_key();
    assert!(!after.to_string().contains(secret) && !listed.stdout.contains(secret));

    let later = place.run(&["audit", "--since", "2126-11-28T10:00:00Z"]);
    assert_eq!(later.stdout, "0 events\n");
    place.overwrite("v1/audit/0000000000000-x.json", "{}");
    let unreadable = place.run(&["audit", "--json"]);
    assert_eq!(unreadable.json()["unreadable"], 1);
    assert!(unreadable.stderr.contains("1 event could not be read"));
}

#[test]
fn an_alias_moves_by_hand_only_back_to_where_it_was() {
    let place = Place::new();
    let resolve = |name: &str| {
        place
            .runtime
            .block_on(place.store.resolve_any(name))
            .unwrap()
    };
    let refused = place.run(&["name", "v001", "loop-production"]);
    assert_eq!(refused.code, Some(77), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("promote --name"),
        "{}",
        refused.stderr
    );
    // As `build-leaderboard promote` moves it.
    place.name("loop-production", &resolve("v001"));
    let newer = place.publish(Kind::Checkpoint, "newer", &[]);
    place.name("loop-production", &newer);
    let back = place.run(&["name", "v001", "loop-production"]);
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    assert!(back.stdout.contains("before it was"), "{}", back.stdout);
    assert!(back.stdout.contains("mlflow replay"), "{}", back.stdout);
    assert_eq!(resolve("checkpoint/loop-production"), resolve("v001"));
}

#[test]
fn policies_are_the_committed_ones_and_name_whoever_has_them() {
    let place = Place::new();
    let at = |store: &str, args: &[&str]| place.run_on(store, &[&["policy"], args].concat());
    let store = "s3://example-bucket/wmtp";
    let policy = |args: &[&str]| at(store, args);
    for (role, store) in [
        ("reader", store),
        ("trainer", store),
        ("admin", store),
        ("publisher", "s3://example-bucket/wmtp-site"),
    ] {
        let printed = at(store, &[role]);
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let path = format!("{}/../policies/{role}.json", env!("CARGO_MANIFEST_DIR"));
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            printed.stdout, committed,
            "{path} is what `wmtp-store policy {role} --store {store}` prints"
        );
    }
    let arn = "reader=arn:aws:iam::123456789012:role/site";
    let of_bucket = policy(&[
        arn,
        "trainer=arn:aws:iam::123456789012:role/training",
        "--json",
    ])
    .json();
    let statements = of_bucket["Statement"].as_array().unwrap();
    let of = |name: &str| {
        let arn = format!("arn:aws:iam::123456789012:role/{name}");
        let mine = statements
            .iter()
            .filter(|one| one["Principal"]["AWS"] == arn);
        mine.count()
    };
    assert_eq!((of("site"), of("training")), (2, 5));
    for wrong in [
        &["reader", "trainer"] as &[&str],
        &["reader=*"],
        &["owner"],
        &[arn, "admin"],
        &[],
    ] {
        assert_eq!(policy(wrong).code, Some(2), "{wrong:?}");
    }
}

/// Twelve at a time on one run: every remark has a number of its own.
#[test]
fn remarks_of_many_at_once_all_stay() {
    let place = Place::new();
    let run = stopped_run(&place);
    let remark = |number: u32| wmtp_artifacts::Remark {
        kind: wmtp_artifacts::RemarkKind::Note,
        text: format!("note {number}"),
        author: "ada".to_owned(),
        at: "2026-11-21T10:00:00Z".parse().unwrap(),
    };
    place.runtime.block_on(async {
        let writers = (0..12).map(|number| {
            let (store, run) = (place.store.clone(), run.clone());
            tokio::spawn(async move { store.remark(&run, &remark(number)).await })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap().unwrap();
        }
    });
    let (remarks, num_bad) = place.runtime.block_on(place.store.remarks(&run)).unwrap();
    let mut texts: Vec<_> = remarks.into_iter().map(|remark| remark.text).collect();
    texts.sort();
    let mut expected: Vec<_> = (0..12).map(|number| format!("note {number}")).collect();
    expected.sort();
    assert_eq!((texts, num_bad), (expected, 0));
}

#[test]
fn a_replay_brings_a_server_to_what_the_store_knows() {
    let (place, double) = (Place::new(), Double::start());
    let run = stopped_run(&place);
    let uri = ["--tracking-uri", double.endpoint()];
    let replay = |more: &[&str]| place.run(&[&["mlflow", "replay"], &uri[..], more].concat());
    place.name(
        "loop-staging",
        &place
            .runtime
            .block_on(place.store.resolve(Kind::Checkpoint, "v001"))
            .unwrap(),
    );

    let first = replay(&[]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    insta::assert_snapshot!(first.stdout, @r"
    1 run new, 0 known before, 2 points
    staging of model loop is version 1
    ");
    let held = double.holds();
    assert_eq!(held["runs"][0]["info"]["status"], "KILLED");
    let again = replay(&["--json"]).json();
    assert_eq!(again["totals"]["found"], 1);
    assert_eq!(again["runs"][0]["run_id"], run.as_str());
    assert_eq!(again["aliases"][0]["version"], "1");
    assert_eq!(double.holds(), held);

    // A folder whose request is gone, as a collection leaves it for a moment, holds nothing up.
    place.overwrite(
        "v1/runs/train-stage2-00000000000000aa/attempts/001/claim.json",
        "{}",
    );
    let beside = replay(&[]);
    assert_eq!(beside.code, Some(0), "{}", beside.stderr);
    assert!(
        beside
            .stderr
            .contains("train-stage2-00000000000000aa is left out"),
        "{}",
        beside.stderr
    );

    // One run alone, named; a server that is busy for a moment is asked again.
    double.forget();
    double.fail([Fault::Status(429), Fault::Status(503)]);
    let one = replay(&[run.as_str()]);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert_eq!(one.stdout, "1 run new, 0 known before, 2 points\n");
    assert_eq!(double.holds()["models"], json!({}));
}

#[test]
fn a_replay_that_cannot_be_made_says_why() {
    let (place, double) = (Place::new(), Double::start());
    let run = stopped_run(&place);
    let missing = place.run(&["mlflow", "replay"]);
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
    insta::assert_snapshot!(error(&missing, &place), @r"
    error: no tracking server given

    hint: add --tracking-uri https://HOST or set MLFLOW_TRACKING_URI
    ");
    let to = |uri: &str, more: &[&str]| {
        let args = [&["mlflow", "replay", "--tracking-uri", uri], more].concat();
        place.run(&args)
    };
    let file = to("sqlite:///mlflow.db", &[]);
    assert_eq!(file.code, Some(2), "{}", file.stderr);
    let unknown = to(double.endpoint(), &["train-stage2-0123456789abcdef"]);
    assert_eq!(unknown.code, Some(65), "{}", unknown.stderr);
    double.fail_always(Some(Fault::Status(401)));
    let login = to(double.endpoint(), &[run.as_str()]);
    assert_eq!(login.code, Some(69), "{}", login.stderr);
    assert!(
        login.stderr.contains("set MLFLOW_TRACKING_TOKEN"),
        "{}",
        login.stderr
    );
    assert_eq!(double.asked().len(), 1, "a refusal is not asked again");
}

/// What a server refuses for good, as metrics that it cannot hold, is named at the end; all else is sent.
#[test]
fn a_run_that_a_server_refuses_keeps_no_other_from_it() {
    let (place, double) = (Place::new(), Double::start());
    let runs = [stopped_run(&place), stopped_run_of(&place, "evaluate")];
    let replay = || {
        place.run(&[
            "mlflow",
            "replay",
            "--json",
            "--tracking-uri",
            double.endpoint(),
        ])
    };
    double.fail([Fault::Status(400)]);
    let first = replay();
    assert_eq!(first.code, Some(77), "{}", first.stderr);
    let named = format!("error: not sent: {}\n", runs[0]);
    assert!(first.stderr.contains(&named), "{}", first.stderr);
    let told = first.json();
    assert_eq!(told["failed"][0]["what"], runs[0].as_str());
    assert_eq!(told["runs"][0]["run_id"], runs[1].as_str());
    let second = replay();
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(double.holds()["runs"].as_array().unwrap().len(), 2);

    // Of a name that the server does not take nothing can be sent at all, and it is not asked for each run.
    let before = double.asked().len();
    double.fail_always(Some(Fault::Status(401)));
    assert_eq!(replay().code, Some(69));
    assert_eq!(double.asked().len(), before + 1);
}
