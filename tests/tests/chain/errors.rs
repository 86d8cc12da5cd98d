//! Wrong input ends with the exit code of the table, a message that says where and what to do, and no artifact.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use trial::Ended;

use crate::place::Place;
use crate::steps::beginning;

const PREFIX: &str = "errors";

/// A place with a data set and base models.
fn prepared() -> Place {
    let place = Place::new();
    place.chain(PREFIX, beginning());
    place
}

/// Runs a job that must fail with `code`, say `words`, and commit nothing.
#[track_caller]
fn fails(place: &Place, job: &str, arguments: &[&str], code: i32, words: &[&str]) {
    let before = place.artifacts(PREFIX);
    place.run(PREFIX, job, arguments).expect(code).says(words);
    assert_eq!(
        place.artifacts(PREFIX),
        before,
        "{job} {arguments:?} left an artifact"
    );
}

const TRAIN: [&str; 6] = ["--data", "d", "--base", "base", "--name", "x"];

fn train(more: &[&'static str]) -> Vec<&'static str> {
    [&TRAIN[..], &["--recipe", "tiny.yaml"], more].concat()
}

#[test]
fn wrong_recipes_and_missing_inputs() {
    let place = prepared();
    let unknown = train(&["--set", "optim.batch_sequence=8"]);
    fails(
        &place,
        "train-stage2",
        &unknown,
        2,
        &["optim.batch_sequence", "batch_sequences"],
    );
    let mistyped = train(&["--set", "optim.epochs=many"]);
    fails(
        &place,
        "train-stage2",
        &mistyped,
        2,
        &["optim.epochs", "many"],
    );
    let horizon = train(&["--set", "model.horizon=2"]);
    fails(
        &place,
        "train-stage2",
        &horizon,
        2,
        &["model.horizon", "n_future_tokens"],
    );
    let absent = [
        "--data",
        "nowhere",
        "--base",
        "base",
        "--recipe",
        "tiny.yaml",
    ];
    fails(&place, "train-stage2", &absent, 65, &["nowhere"]);
}

#[test]
fn a_row_without_its_fields_is_named_by_file_and_line() {
    let place = Place::new();
    let whole = r#"{"task_id": 1, "text": "Add.", "code": "def add(a, b):\n    return a + b", "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": []}"#;
    let broken = r#"{"task_id": 2, "text": "Add."}"#;
    place.write("raw/mbpp.jsonl", &format!("{whole}\n{broken}\n"));
    place
        .run(
            PREFIX,
            "sync-storage",
            &[
                "push", "--kind", "raw-data", "--folder", "raw", "--name", "raw",
            ],
        )
        .expect(0);
    let prepare = [
        "--recipe",
        "tiny.yaml",
        "--set",
        "data.source=mbpp",
        "--raw",
        "raw",
    ];
    fails(
        &place,
        "prepare-data",
        &prepare,
        65,
        &["mbpp.jsonl, line 2", "missing field"],
    );
}

#[test]
fn damaged_models_and_objects() {
    let place = prepared();
    let pull = ["pull", "base", "--kind", "base-model", "--to"];
    place
        .run(PREFIX, "sync-storage", &[&pull[..], &["bundle"]].concat())
        .expect(0);
    let model = place.path("bundle/safetensors/model.safetensors");
    let bytes = fs::read(&model).expect("the pulled model");
    fs::remove_file(&model).expect("pulled folders are the user's");
    fs::write(&model, &bytes[..bytes.len() / 2]).expect("half a model");
    let push = [
        "push",
        "--kind",
        "base-model",
        "--folder",
        "bundle",
        "--name",
        "half",
    ];
    fails(&place, "sync-storage", &push, 65, &["model.safetensors"]);

    let digest = fs::read_to_string(place.path("bundle/safetensors/SHA256SUMS")).expect("the sums");
    let digest = digest.split_whitespace().next().expect("a digest");
    for file in place.data_files(digest) {
        flip(&file);
    }
    let elsewhere = ["--scratch", "new-scratch"];
    let mut command = place.job(
        PREFIX,
        "sync-storage",
        &[&pull[..], &["again"], &elsewhere].concat(),
    );
    let damaged = Ended::of(command.env("WMTP_CACHE", place.path("new-cache")));
    damaged.expect(76);
    assert!(!place.path("again/safetensors/model.safetensors").exists());
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("a data file of the store");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = fs::metadata(path).expect("its mode").permissions();
    #[expect(
        clippy::permissions_set_readonly_false,
        reason = "a file of this test alone"
    )]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).expect("the mode is ours");
    fs::write(path, bytes).expect("a damaged file");
}

#[test]
fn stores_that_refuse_or_do_not_answer() {
    let place = Place::new();
    let arguments = ["--recipe", "tiny.yaml", "--name", "d"];
    let with = |variable: &str, value: &str| -> Ended {
        Ended::of(
            place
                .job(PREFIX, "prepare-data", &arguments)
                .env(variable, value),
        )
    };
    with("AWS_SECRET_ACCESS_KEY", "wrong")
        .expect(69)
        .says(&["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"]);
    with("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        .expect(69)
        .says(&["127.0.0.1:9"]);
    assert!(place.artifacts(PREFIX).is_empty());
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let place = prepared();
    let small = place.path("small");
    fs::create_dir(&small).expect("a folder");
    if !mount_small(&small) {
        let notice =
            "SKIPPED: a_full_disk_is_named_and_leaves_nothing; this user may not mount a disk";
        // A closed stderr loses the notice, not the test.
        let _ = writeln!(std::io::stderr(), "{notice}");
        return;
    }
    let before = place.artifacts(PREFIX);
    let create = [
        "create",
        "--model",
        "micro-mtp",
        "--data",
        "d",
        "--name",
        "late",
        "--seed",
        "7",
    ];
    let mut command = place.job(PREFIX, "sync-storage", &create);
    let full = Ended::of(command.env("WMTP_SCRATCH", &small));
    let unmounted = Command::new("umount")
        .arg(&small)
        .status()
        .expect("umount is there");
    assert!(unmounted.success());
    full.expect(73).says(&["small"]);
    assert_eq!(place.artifacts(PREFIX), before);
}

/// Mounts a disk of 256 KiB; false where that is not allowed.
fn mount_small(folder: &Path) -> bool {
    Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(folder)
        .output()
        .is_ok_and(|output| output.status.success())
}
