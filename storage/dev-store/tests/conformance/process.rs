//! The binary: its environment file, its lock, its signals, and a kill in the middle of writes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::Object;
use dev_store::{BUCKET, TestServer};

use crate::support::{INLINE, client, pattern};

pub(crate) fn command(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dev-store"));
    command
        .arg("serve")
        .arg("--root")
        .arg(root)
        .arg("--no-sync")
        .stderr(Stdio::null());
    command
}

/// Waits until the file is there, and reads the variables it exports.
pub(crate) fn environment(root: &Path) -> BTreeMap<String, String> {
    let text = poll("the environment file", || {
        fs::read_to_string(root.join("dev-store.env")).ok()
    });
    text.lines()
        .map(|line| {
            line.strip_prefix("export ")
                .unwrap()
                .split_once('=')
                .unwrap()
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Another process gives no event to wait for, so this looks every 20 ms, for at most 60 s.
pub(crate) fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{what} did not come");
}

pub(crate) fn client_of(environment: &BTreeMap<String, String>) -> Client {
    client(
        &environment["AWS_ENDPOINT_URL_S3"],
        &environment["AWS_ACCESS_KEY_ID"],
        &environment["AWS_SECRET_ACCESS_KEY"],
    )
}

fn terminate(process: &mut Child) -> Option<i32> {
    let id = process.id().to_string();
    assert!(
        Command::new("sh")
            .args(["-c", "kill -TERM \"$0\"", &id])
            .status()
            .unwrap()
            .success()
    );
    process.wait().unwrap().code()
}

#[tokio::test]
async fn serve_writes_a_private_environment_holds_the_root_and_stops_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = command(folder.path()).spawn().unwrap();
    let environment = environment(folder.path());
    let file = folder.path().join("dev-store.env");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(environment["AWS_REGION"], "us-east-1");
    client_of(&environment)
        .head_bucket()
        .bucket(BUCKET)
        .send()
        .await
        .unwrap();

    let second = command(folder.path())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert!(
        String::from_utf8(second.stderr)
            .unwrap()
            .contains("is held by another dev-store")
    );

    assert_eq!(terminate(&mut process), Some(0));
    assert!(!file.exists(), "the file of a stopped server would mislead");
    let again = TestServer::start(folder.path());
    assert_eq!(
        again.access_key(),
        environment["AWS_ACCESS_KEY_ID"],
        "a root keeps its keys"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_acknowledged_object_and_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = command(folder.path()).spawn().unwrap();
    let store = client_of(&environment(folder.path()));
    let count = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..6_u8)
        .map(|writer| {
            let (store, count) = (store.clone(), Arc::clone(&count));
            tokio::spawn(write_until_killed(store, writer, count))
        })
        .collect();
    poll("the first writes", || {
        (count.load(Ordering::Relaxed) >= 40).then_some(())
    });
    process.kill().unwrap();
    process.wait().unwrap();
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }

    let server = TestServer::start(folder.path());
    assert!(server.report().damaged.is_empty(), "{:?}", server.report());
    let store = client(server.endpoint(), server.access_key(), server.secret_key());
    for (key, size, seed) in &acknowledged {
        let output = store
            .get_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
        assert_eq!(
            output.body.collect().await.unwrap().to_vec(),
            pattern(*size, *seed),
            "{key}"
        );
    }
    let listed = store.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    let sizes = listed.contents().iter().filter_map(Object::size);
    let large = sizes.filter(|size| *size > INLINE as i64).count();
    assert!((1..listed.contents().len()).contains(&large));
    let files = |place: &str| fs::read_dir(folder.path().join(place)).unwrap().count();
    assert_eq!(
        (files("segments"), files(&format!("buckets/{BUCKET}"))),
        (large, server.report().objects),
        "every file belongs to an object"
    );
    assert!(acknowledged.len() >= 40);
}

/// Puts objects until the server is gone; counts those that were acknowledged, and gives them.
async fn write_until_killed(
    store: Client,
    writer: u8,
    count: Arc<AtomicUsize>,
) -> Vec<(String, usize, u8)> {
    let mut acknowledged = Vec::new();
    for round in 0_u32.. {
        let (key, size) = (format!("{writer}/{round}"), round as usize * 17_001);
        let body = ByteStream::from(pattern(size, writer));
        if store
            .put_object()
            .bucket(BUCKET)
            .key(&key)
            .body(body)
            .send()
            .await
            .is_err()
        {
            break;
        }
        acknowledged.push((key, size, writer));
        count.fetch_add(1, Ordering::Relaxed);
    }
    acknowledged
}

#[test]
fn a_server_may_end_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_dev-store");
    let script = "\"$0\" serve --root \"$1\" --no-sync --exit-with-parent 2>/dev/null & wait";
    let mut parent = Command::new("sh")
        .args(["-c", script, program])
        .arg(folder.path())
        .spawn()
        .unwrap();
    environment(folder.path());
    parent.kill().unwrap();
    parent.wait().unwrap();
    poll("the end of the server", || {
        fs::File::open(folder.path().join("lock"))
            .unwrap()
            .try_lock()
            .ok()
    });
    let file = folder.path().join("dev-store.env");
    poll("a clean stop", || (!file.exists()).then_some(()));
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let help = Command::new(env!("CARGO_BIN_EXE_dev-store"))
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for part in ["--exit-with-parent", "Examples:", "75"] {
        assert!(text.contains(part), "{text}");
    }
}
