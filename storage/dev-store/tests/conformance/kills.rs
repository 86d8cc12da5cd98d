//! A kill at every step of a PUT and of a Complete, and a disk that is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use dev_store::{BUCKET, TestServer};

use crate::process::{client_of, command, environment, poll};
use crate::support::{client, refusal};

const PART: usize = 5 << 20;

/// What the objects are before.
fn before() -> Vec<u8> {
    vec![1; 1000]
}

/// What `put` and `parts` are after.
fn after() -> Vec<u8> {
    [vec![2; PART], vec![3; 10]].concat()
}

/// What `small` is after.
fn small_after() -> Vec<u8> {
    vec![4; 2000]
}

/// What was answered to those who replaced `small`, `put` and `parts`.
struct Acknowledged {
    small: bool,
    put: bool,
    parts: bool,
}

/// A root with all three objects and an upload of two parts that waits to be completed.
struct Scene {
    folder: tempfile::TempDir,
    upload: String,
    parts: Vec<CompletedPart>,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(folder.path());
        let store = client(server.endpoint(), server.access_key(), server.secret_key());
        for key in ["small", "put", "parts"] {
            put(&store, key, before()).await.unwrap();
        }
        let begun = store.create_multipart_upload().bucket(BUCKET).key("parts");
        let upload = begun.send().await.unwrap().upload_id.unwrap();
        let mut parts = Vec::new();
        for (number, body) in [(1, vec![2; PART]), (2, vec![3; 10])] {
            let sent = store
                .upload_part()
                .bucket(BUCKET)
                .key("parts")
                .upload_id(&upload)
                .part_number(number)
                .body(body.into());
            let etag = sent.send().await.unwrap().e_tag;
            let part = CompletedPart::builder().part_number(number);
            parts.push(part.set_e_tag(etag).build());
        }
        Self {
            folder,
            upload,
            parts,
        }
    }

    async fn complete(&self, store: &Client) -> bool {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone()));
        let request = store
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("parts")
            .upload_id(&self.upload)
            .multipart_upload(parts.build());
        request.send().await.is_ok()
    }

    /// Lets a server die at a step, at its start or while it replaces the objects. Tells what was acknowledged; nothing
    /// when it did not come to that step.
    async fn die_at(&self, step: u64) -> Option<Acknowledged> {
        let root = self.folder.path();
        let mut process = command(root)
            .env("DEV_STORE_DIE_AT_STEP", step.to_string())
            .spawn()
            .unwrap();
        let file = root.join("dev-store.env");
        let has_started = poll("a start or an end", || {
            let has_ended = process.try_wait().unwrap().is_some();
            (has_ended || file.exists()).then_some(!has_ended)
        });
        let mut acknowledged = Acknowledged {
            small: false,
            put: false,
            parts: false,
        };
        if has_started {
            let store = client_of(&environment(root));
            acknowledged.small = put(&store, "small", small_after()).await.is_ok();
            acknowledged.put = put(&store, "put", after()).await.is_ok();
            acknowledged.parts = self.complete(&store).await;
        }
        let died = poll_end(&mut process);
        let _ = fs::remove_file(file);
        died.then_some(acknowledged)
    }
}

async fn put(store: &Client, key: &str, bytes: Vec<u8>) -> Result<(), ()> {
    let request = store.put_object().bucket(BUCKET).key(key);
    let sent = request.body(ByteStream::from(bytes)).send().await;
    sent.map(|_| ()).map_err(|_| ())
}

async fn get(store: &Client, key: &str) -> Vec<u8> {
    let output = store.get_object().bucket(BUCKET).key(key).send().await;
    output.unwrap().body.collect().await.unwrap().to_vec()
}

/// Whether a process died; one that lives on is ended. It may still be about to die after its answer.
fn poll_end(process: &mut Child) -> bool {
    for _ in 0..25 {
        if process.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    false
}

fn segments(root: &Path) -> usize {
    fs::read_dir(root.join("segments")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_leaves_the_old_object_or_the_new_one() {
    let mut died_serving = 0;
    for step in 1.. {
        let scene = Scene::new().await;
        let Some(acknowledged) = scene.die_at(step).await else {
            assert!(died_serving >= 10, "only {died_serving} steps of serving");
            return;
        };
        let server = TestServer::start(scene.folder.path());
        assert!(server.report().damaged.is_empty(), "step {step}");
        let store = client(server.endpoint(), server.access_key(), server.secret_key());
        let (put, parts) = (get(&store, "put").await, get(&store, "parts").await);
        let small = get(&store, "small").await;
        for (found, wanted, is_done) in [
            (&small, small_after(), acknowledged.small),
            (&put, after(), acknowledged.put),
            (&parts, after(), acknowledged.parts),
        ] {
            let is_new = *found == wanted;
            assert!(is_new || (*found == before() && !is_done), "step {step}");
        }
        died_serving += u32::from(small == small_after());
        // Either it was completed, or it still can be.
        if parts == before() {
            assert!(
                scene.complete(&store).await,
                "step {step}: the upload is lost"
            );
        } else {
            let abort = store.abort_multipart_upload().bucket(BUCKET).key("parts");
            let _ = abort.upload_id(&scene.upload).send().await;
        }
        assert_eq!(get(&store, "parts").await, after(), "step {step}");
        let large = 2 + usize::from(put == after());
        assert_eq!(segments(scene.folder.path()), large, "step {step}");
    }
}

/// A server whose root is a file system of 24 MiB, which only it sees; none where that is not allowed.
fn start_small(root: &Path) -> Option<Child> {
    let script =
        "mount -t tmpfs -o size=24m tmpfs \"$1\" && exec \"$0\" serve --root \"$1\" --no-sync";
    let child = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_dev-store")])
        .arg(root)
        .stderr(Stdio::null())
        .spawn();
    child.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_says_so_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut process) = start_small(folder.path()) else {
        return skipped();
    };
    let inside = PathBuf::from(format!("/proc/{}/root", process.id()));
    let root = inside.join(folder.path().strip_prefix("/").unwrap());
    let file = root.join("dev-store.env");
    let has_started = poll("a start or an end", || {
        let has_ended = process.try_wait().unwrap().is_some();
        (has_ended || file.exists()).then_some(!has_ended)
    });
    if !has_started {
        return skipped();
    }
    let store = client_of(&environment(&root));
    put(&store, "kept", before()).await.unwrap();
    for _ in 0..2 {
        let request = store.put_object().bucket(BUCKET).key("kept");
        let refused = request.body(vec![5; 40 << 20].into()).send().await;
        let message = format!("{refused:?}");
        assert_eq!(refusal(refused).0, 503);
        assert!(message.to_lowercase().contains("no space"), "{message}");
    }
    let begun = store.create_multipart_upload().bucket(BUCKET).key("large");
    let upload = begun.send().await.unwrap().upload_id.unwrap();
    let mut refusals = 0;
    for number in 1..=5 {
        let part = store
            .upload_part()
            .bucket(BUCKET)
            .key("large")
            .upload_id(&upload)
            .part_number(number)
            .body(vec![7; PART].into());
        refusals += u32::from(part.send().await.is_err());
    }
    assert!(refusals > 0, "25 MiB do not fit into 24");
    // Small ones fit in beside it for a while, and are refused as well in the end.
    let mut num_small = 0;
    while put(&store, &format!("small/{num_small}"), vec![6; 60_000])
        .await
        .is_ok()
    {
        num_small += 1;
        assert!(num_small < 400, "24 MiB hold no 400 of 60 KB");
    }
    assert!(put(&store, "kept", vec![6; 60_000]).await.is_err());
    for number in 0..num_small {
        let stored = get(&store, &format!("small/{number}")).await;
        assert_eq!(stored, vec![6; 60_000], "small/{number}");
    }
    assert_eq!(get(&store, "kept").await, before());
    let abort = store.abort_multipart_upload().bucket(BUCKET).key("large");
    abort.upload_id(&upload).send().await.unwrap();
    put(&store, "again", after()).await.unwrap();
    assert_eq!(get(&store, "again").await, after());
    process.kill().unwrap();
    process.wait().unwrap();
}

#[expect(clippy::print_stderr, reason = "what is not tested must be seen")]
fn skipped() {
    eprintln!("SKIPPED: a full disk; this machine lets nobody mount a small one (unshare -rm)");
}
