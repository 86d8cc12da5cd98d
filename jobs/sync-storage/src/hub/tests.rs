//! Against two servers that speak as the hub and the store of its large files do.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use wmtp_artifacts::Digest;

use super::snapshot::{Identity, git_digest};
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the double was asked for: path, and start of the range.
type Asked = Arc<Mutex<Vec<(String, u64)>>>;

/// Two servers that speak as the hub and the store of its large files do. The hub wants the token; the store must not
/// get it, and breaks off in the middle of whatever it is asked for the first time.
struct Double {
    endpoint: String,
    asked: Asked,
}

impl Double {
    fn start(files: &[(&str, &[u8], bool)]) -> Self {
        let asked = Asked::default();
        let stored: HashMap<_, _> = files
            .iter()
            .map(|(path, bytes, _)| (format!("/{path}"), bytes.to_vec()))
            .collect();
        let seen = Arc::clone(&asked);
        let store = serve(move |head| answer_store(&stored, &seen, head));
        let siblings: Vec<_> = files
            .iter()
            .map(|(path, bytes, is_large)| {
                let mut sibling = serde_json::json!({"rfilename": path, "size": bytes.len(), "blobId": git_of(bytes)});
                if *is_large {
                    sibling["lfs"] = serde_json::json!({"sha256": Digest::of(bytes), "size": bytes.len()});
                }
                sibling
            })
            .collect();
        let list = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        let endpoint = serve(move |head| {
            if !head.contains("authorization: Bearer secret") {
                return (head_of("401 Unauthorized", "", 0), Vec::new());
            }
            let path = path_of(head);
            if path == "/api/models/meta/tiny/revision/main?blobs=true" {
                return (head_of("200 OK", "", list.len()), list.clone().into_bytes());
            }
            match path.strip_prefix(&format!("/meta/tiny/resolve/{COMMIT}")) {
                Some(file) => (
                    head_of("302 Found", &format!("location: {store}{file}\r\n"), 0),
                    Vec::new(),
                ),
                None => (head_of("404 Not Found", "", 0), Vec::new()),
            }
        });
        Self { endpoint, asked }
    }

    fn hub(&self, token: Option<&str>) -> Hub {
        let mut hub = Hub::new(&self.endpoint, token.map(str::to_owned)).unwrap();
        hub.first_pause = Duration::from_millis(1);
        hub
    }
}

fn git_of(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    git_digest(file.path(), bytes.len() as u64).unwrap()
}

fn head_of(status: &str, more: &str, length: usize) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n")
}

fn path_of(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

fn answer_store(files: &HashMap<String, Vec<u8>>, asked: &Asked, head: &str) -> (String, Vec<u8>) {
    assert!(
        !head.contains("authorization"),
        "the token stays with the hub"
    );
    let path = path_of(head).to_owned();
    let range = head
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="));
    let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let is_first = !asked.lock().unwrap().iter().any(|(of, _)| *of == path);
    asked.lock().unwrap().push((path.clone(), start as u64));
    let bytes = &files[&path];
    let rest = bytes[start..].to_vec();
    let range = format!(
        "content-range: bytes {start}-{}/{}\r\n",
        bytes.len().max(1) - 1,
        bytes.len()
    );
    let head = head_of("206 Partial Content", &range, rest.len());
    if is_first {
        (head, rest[..rest.len() / 2].to_vec())
    } else {
        (head, rest)
    }
}

/// Answers each connection once; returns where.
fn serve(answer: impl Fn(&str) -> (String, Vec<u8>) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<_> = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            if head.is_empty() {
                continue;
            }
            let (head, body) = answer(&head.join("\n"));
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    endpoint
}

fn repo() -> Repo {
    "hf://meta/tiny@main".parse().unwrap()
}

#[tokio::test]
async fn a_broken_line_is_taken_up_where_it_broke() {
    let large: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let double = Double::start(&[
        ("weights/model.bin", &large, true),
        ("a b.txt", b"hello\n", false),
        ("empty", b"", false),
    ]);
    let hub = double.hub(Some("secret"));
    let snapshot = hub.snapshot(&repo()).await.unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    // printf 'hello\n' | git hash-object --stdin
    assert_eq!(
        snapshot.files[1].identity,
        Identity::Git("ce013625030ba8dba906f756967f9e9ca394464a".to_owned())
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    hub.fetch(&repo(), COMMIT, &snapshot.files[0], &path, &|_| {})
        .await
        .unwrap();
    assert!(std::fs::read(&path).unwrap() == large);
    let asked = double.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            ("/weights/model.bin".to_owned(), 0),
            ("/weights/model.bin".to_owned(), 50_000)
        ]
    );
    // Another process goes on as well.
    std::fs::write(&path, &large[..70_000]).unwrap();
    hub.fetch(&repo(), COMMIT, &snapshot.files[0], &path, &|_| {})
        .await
        .unwrap();
    assert_eq!(double.asked.lock().unwrap().last().unwrap().1, 70_000);
    // Wrong bytes are dropped and fetched once more.
    std::fs::write(&path, vec![9; 70_000]).unwrap();
    hub.fetch(&repo(), COMMIT, &snapshot.files[0], &path, &|_| {})
        .await
        .unwrap();
    assert!(std::fs::read(&path).unwrap() == large);
    let path = dir.path().join("empty");
    hub.fetch(&repo(), COMMIT, &snapshot.files[2], &path, &|_| {})
        .await
        .unwrap();
    assert!(snapshot.files[2].is_at(&path).unwrap());
}

#[tokio::test]
async fn what_the_hub_refuses_says_what_to_do() {
    let double = Double::start(&[("a", b"a", true)]);
    let error = double.hub(None).snapshot(&repo()).await.unwrap_err();
    assert_eq!(error.exit(), wmtp_job_kit::Exit::Unavailable);
    assert!(error.render().contains("HF_TOKEN"), "{}", error.render());
    let absent: Repo = "hf://meta/other@main".parse().unwrap();
    let error = double
        .hub(Some("secret"))
        .snapshot(&absent)
        .await
        .unwrap_err();
    assert_eq!(error.exit(), wmtp_job_kit::Exit::BadInput);
    assert!(!error.render().contains("secret"), "{}", error.render());
}

#[tokio::test]
async fn bytes_that_are_wrong_twice_are_an_integrity_error() {
    let double = Double::start(&[("a", b"right", true)]);
    let hub = double.hub(Some("secret"));
    let mut file = hub.snapshot(&repo()).await.unwrap().files.remove(0);
    file.identity = Identity::Sha256(Digest::of(b"other"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let error = hub
        .fetch(&repo(), COMMIT, &file, &path, &|_| {})
        .await
        .unwrap_err();
    assert_eq!(error.exit(), wmtp_job_kit::Exit::Integrity);
    assert!(!path.exists());
}

#[test]
fn a_token_does_not_travel_in_the_clear() {
    assert!(Hub::new("http://hub.example.org", None).is_err());
    assert!(Hub::new("https://hub.example.org/", None).is_ok());
}
