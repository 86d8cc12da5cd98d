//! Folders to artifacts and back, through the binary and a real store.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dev_store::TestServer;
use serde_json::Value;
use wmtp_artifacts::{Credentials, Draft, Kind, Provenance, RunId, Store, StoreOptions, cache_key};
use wmtp_tokens::Tokenizer;

const STORE: &str = "s3://wmtp/test";

struct Place {
    folder: tempfile::TempDir,
    server: TestServer,
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(&folder.path().join("store"));
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_sync-storage"))
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("AWS_ENDPOINT_URL_S3", self.server.endpoint())
            .env("AWS_ACCESS_KEY_ID", self.server.access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.server.secret_key())
            .env("AWS_REGION", self.server.region())
            .env("WMTP_STORE", STORE)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn id(&self, args: &[&str]) -> String {
        let mut args = args.to_vec();
        args.push("--json");
        let ended = self.run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let result: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
        result["outputs"]["artifact"].as_str().unwrap().to_owned()
    }

    /// Stores the part of a processed data set that `create` reads, under the name `tiny`.
    fn data_set(&self) {
        let root = self.path("data");
        let tokenizer = Tokenizer::train(&["def f(a, b):\n    return a + b\n"; 4], 300).unwrap();
        tokenizer
            .save(&root.join("tokenizer/tokenizer.json"))
            .unwrap();
        let options = StoreOptions {
            endpoint: Some(self.server.endpoint().to_owned()),
            region: Some(self.server.region().to_owned()),
            credentials: Some(Credentials::new(
                self.server.access_key(),
                self.server.secret_key(),
            )),
            ..StoreOptions::default()
        };
        let draft = Draft {
            kind: Kind::ProcessedData,
            root,
            attributes: BTreeMap::from([(
                "vocab_size".to_owned(),
                tokenizer.vocab_size().to_string(),
            )]),
        };
        let key = cache_key("test", 1, &[], &Value::Null).unwrap();
        let provenance = Provenance {
            job: "test".to_owned(),
            run_id: RunId::for_work("test", &key),
            attempt: 1,
            code_version: "0".to_owned(),
            recipe_version: 1,
            recipe: Value::Null,
            options: Value::Null,
            inputs: Vec::new(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = Store::connect(&STORE.parse().unwrap(), options)
                .await
                .unwrap();
            let manifest = store.publish(&draft, &provenance).await.unwrap();
            store
                .set_name(Kind::ProcessedData, "tiny", &manifest.id)
                .await
                .unwrap();
        });
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn raw_data_goes_there_and_comes_back() {
    let place = Place::new();
    place.file("raw/rows.jsonl", "{}\n");
    place.file("raw/more/notes.txt", "notes");
    let push = [
        "push", "--kind", "raw-data", "--folder", "raw", "--name", "rows", "--verify",
    ];
    let dry = place.run(&[&push[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(dry.stdout.contains("nothing was touched"), "{}", dry.stdout);
    let id = place.id(&push);
    assert_eq!(place.id(&push), id);

    let pull = [
        "pull", "rows", "--kind", "raw-data", "--to", "copy", "--verify",
    ];
    assert_eq!(place.id(&pull), id);
    assert_eq!(read(&place.path("copy/more/notes.txt")), "notes");
    assert!(read(&place.path("copy/SHA256SUMS")).contains("  more/notes.txt\n"));
    // What is there already is left alone; anything else is not overwritten.
    assert_eq!(place.id(&pull), id);
    place.file("copy/rows.jsonl", "changed");
    let refused = place.run(&pull);
    assert_eq!(refused.code, Some(65), "{}", refused.stderr);
}

#[test]
fn folders_that_are_no_data_are_refused() {
    let place = Place::new();
    let push = ["push", "--kind", "raw-data", "--folder", "raw"];
    assert_eq!(place.run(&push).code, Some(65));
    std::fs::create_dir(place.path("raw")).unwrap();
    let empty = place.run(&push);
    assert_eq!(empty.code, Some(65), "{}", empty.stderr);
    assert!(empty.stderr.contains("holds no files"), "{}", empty.stderr);
    place.file("raw/a", "a");
    place.file("raw/SHA256SUMS", &format!("{}  a\n", "0".repeat(64)));
    assert_eq!(place.run(&push).code, Some(76));
    let absent = place.run(&["pull", "nobody", "--kind", "base-model", "--to", "x"]);
    assert_eq!(absent.code, Some(65), "{}", absent.stderr);
    let kindless = place.run(&["pull", "nobody", "--to", "x"]);
    assert_eq!(kindless.code, Some(2), "{}", kindless.stderr);
}

#[test]
fn a_created_model_is_seeded_and_survives_a_round_trip() {
    let place = Place::new();
    place.data_set();
    let create = [
        "create",
        "--model",
        "micro-ref",
        "--data",
        "tiny",
        "--name",
        "ref",
    ];
    let id = place.id(&create);
    assert_eq!(place.id(&[&create[..], &["--force"]].concat()), id);
    assert_ne!(place.id(&[&create[..], &["--seed", "43"]].concat()), id);

    place.id(&["pull", &id, "--to", "bundle"]);
    let metadata: Value = serde_json::from_str(&read(&place.path("bundle/metadata.json"))).unwrap();
    assert_eq!(metadata["model_name"], "micro-ref");
    assert_eq!(metadata["dtype"], "float32");
    let push = ["push", "--kind", "base-model", "--folder", "bundle"];
    assert_eq!(place.id(&push), id);

    let model = place.path("bundle/safetensors/model.safetensors");
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let truncated = place.run(&push);
    assert_eq!(truncated.code, Some(65), "{}", truncated.stderr);
    assert!(
        truncated.stderr.contains("truncated"),
        "{}",
        truncated.stderr
    );
}

#[test]
fn help_shows_modes_and_examples() {
    let place = Place::new();
    let all = place.run(&["--help"]).stdout;
    for mode in ["push", "create", "pull"] {
        assert!(all.contains(mode), "{all}");
        let help = place.run(&[mode, "--help"]).stdout;
        assert!(help.contains(&format!("sync-storage {mode} ")), "{help}");
        assert!(help.contains("--store"), "{help}");
    }
}
