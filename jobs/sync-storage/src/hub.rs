//! The Hugging Face hub as a source: what a revision holds, and its files, each fetched on from where it broke off.
//!
//! A revision is resolved to its commit once, and everything is asked for by commit: what moves on the hub meanwhile does
//! not matter. The token goes to the hub alone, never to the servers that it redirects to.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use sha1::{Digest as _, Sha1};
use wmtp_artifacts::Digest;
use wmtp_job_kit::JobError;

const ENDPOINT_VARIABLE: &str = "HF_ENDPOINT";
const TOKEN_VARIABLE: &str = "HF_TOKEN";
const ENDPOINT: &str = "https://huggingface.co";
const MAX_REDIRECTS: usize = 5;
/// Attempts of one request, and of the rest of a file after each that broke off.
const MAX_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A server that says nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(30);
/// No list of files is larger.
const MAX_LIST: usize = 64 << 20;

/// What kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RepoKind {
    Model,
    DataSet,
}

/// `hf://OWNER/REPO@REVISION`, or `hf://datasets/OWNER/REPO@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repo {
    kind: RepoKind,
    name: String,
    revision: String,
}

impl FromStr for Repo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?}: expected hf://OWNER/REPO@REVISION or hf://datasets/OWNER/REPO@REVISION"
            )
        };
        let rest = text.strip_prefix("hf://").ok_or_else(wrong)?;
        let (kind, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (RepoKind::DataSet, rest),
            None => (RepoKind::Model, rest),
        };
        let (name, revision) = rest.split_once('@').ok_or_else(|| {
            format!(
                "{}; a revision is needed: a commit, or a branch or tag, which is resolved to one",
                wrong()
            )
        })?;
        let is_word = |word: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with('.') && word.chars().all(allowed)
        };
        let (owner, repo) = name.split_once('/').ok_or_else(wrong)?;
        if !is_word(owner) || !is_word(repo) || !revision.split('/').all(is_word) {
            return Err(wrong());
        }
        Ok(Self {
            kind,
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl Repo {
    /// Owner and name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn api_path(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::DataSet => "datasets",
        };
        let revision = encoded(&self.revision).replace('/', "%2F");
        format!("/api/{kind}/{}/revision/{revision}?blobs=true", self.name)
    }

    fn file_path(&self, commit: &str, file: &str) -> String {
        let prefix = match self.kind {
            RepoKind::Model => "",
            RepoKind::DataSet => "datasets/",
        };
        format!("/{prefix}{}/resolve/{commit}/{}", self.name, encoded(file))
    }
}

/// A path with every byte escaped that is not plain.
fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let escape = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    path.bytes().map(escape).collect()
}

/// How the hub identifies the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// Of large files.
    Sha256(Digest),
    /// Of the others: git's SHA-1 of a header and the bytes.
    Git(String),
}

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    pub(crate) path: String,
    pub(crate) size: u64,
    identity: Identity,
}

/// What a revision holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) commit: String,
    pub(crate) files: Vec<HubFile>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Snapshot {
    /// Reads the hub's list; it comes from another's server and names files of ours.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let listing: Listing = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if !is_hex(&listing.sha, 40) {
            return Err(format!("its commit is {:?}", listing.sha));
        }
        let files = listing.siblings.into_iter().map(HubFile::of);
        Ok(Self {
            commit: listing.sha,
            files: files.collect::<Result<_, _>>()?,
        })
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl HubFile {
    fn of(found: Sibling) -> Result<Self, String> {
        let path = found.rfilename;
        let is_inside = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !is_inside || path.contains(['\\', '\0']) || path.len() > 512 {
            return Err(format!(
                "it has a file {path:?}, which leads out of the folder"
            ));
        }
        let (size, identity) = match (found.lfs, found.blob_id, found.size) {
            (Some(lfs), ..) => {
                let digest = lfs
                    .sha256
                    .parse()
                    .map_err(|_| format!("{path} has no SHA-256"))?;
                (lfs.size, Identity::Sha256(digest))
            }
            (None, Some(blob), Some(size)) if is_hex(&blob, 40) => (size, Identity::Git(blob)),
            _ => return Err(format!("{path} has neither SHA-256 nor git digest")),
        };
        Ok(Self {
            path,
            size,
            identity,
        })
    }

    /// Whether a file has the bytes that the hub says.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool, JobError> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if found != self.size {
            return Ok(false);
        }
        match &self.identity {
            Identity::Sha256(digest) => Ok(Digest::of_file(path)? == *digest),
            Identity::Git(blob) => Ok(git_digest(path, self.size)? == *blob),
        }
    }
}

fn git_digest(path: &Path, size: u64) -> std::io::Result<String> {
    let mut sha = Sha1::new();
    sha.update(format!("blob {size}\0"));
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut block)? {
            0 => break,
            length => sha.update(&block[..length]),
        }
    }
    let mut text = String::new();
    for byte in sha.finalize() {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// The hub, or a server that speaks as it does.
pub(crate) struct Hub {
    endpoint: String,
    token: Option<String>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    first_pause: Duration,
}

impl Hub {
    /// The hub of `HF_ENDPOINT` with the token of `HF_TOKEN`.
    ///
    /// # Errors
    /// 2 when the endpoint is no URL, or would carry a token in the clear.
    pub(crate) fn from_environment() -> Result<Self, JobError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = variable(ENDPOINT_VARIABLE).unwrap_or_else(|| ENDPOINT.to_owned());
        Self::new(&endpoint, variable(TOKEN_VARIABLE))
    }

    fn new(endpoint: &str, token: Option<String>) -> Result<Self, JobError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| JobError::usage(format!("{ENDPOINT_VARIABLE}={endpoint}: {error}")))?;
        let is_loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if uri.scheme_str() != Some("https") && !is_loopback {
            let what = format!(
                "{ENDPOINT_VARIABLE}={endpoint}: what it sends could be read and altered on the way"
            );
            return Err(JobError::usage(what).hint("use https"));
        }
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(JobError::internal)?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            endpoint,
            token,
            client: Client::builder(TokioExecutor::new()).build(connector),
            first_pause: FIRST_PAUSE,
        })
    }

    /// What a revision holds.
    pub(crate) async fn snapshot(&self, repo: &Repo) -> Result<Snapshot, JobError> {
        let url = format!("{}{}", self.endpoint, repo.api_path());
        let what = format!("{} at {}", repo.name, repo.revision);
        let mut pause = self.first_pause;
        for attempt in 1.. {
            let failure = match self.list(&url, &what).await? {
                Ok(bytes) => {
                    return Snapshot::parse(&bytes).map_err(|error| {
                        JobError::bad_input(format!("the hub's list of {what}: {error}"))
                    });
                }
                Err(failure) => failure,
            };
            self.wait(attempt, &mut pause, &what, failure).await?;
        }
        unreachable!("the loop ends by a result or an error")
    }

    /// The list of files, or why it may be asked for again.
    async fn list(&self, url: &str, what: &str) -> Result<Result<Bytes, String>, JobError> {
        let response = match self.get(url, 0).await {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
        if let Some(failure) = self.refusal(&response, what)? {
            return Ok(Err(failure));
        }
        let body = http_body_util::Limited::new(response.into_body(), MAX_LIST).collect();
        match tokio::time::timeout(SILENCE, body).await {
            Ok(Ok(body)) => Ok(Ok(body.to_bytes())),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(_) => Ok(Err("no answer".to_owned())),
        }
    }

    /// Fetches a file on from what is at `path`, until it is there and has the right bytes. `arrived` is told the bytes
    /// of each piece.
    ///
    /// # Errors
    /// 69 when the hub does not answer or refuses, 76 when the bytes are wrong twice.
    pub(crate) async fn fetch(
        &self,
        repo: &Repo,
        commit: &str,
        file: &HubFile,
        path: &Path,
        arrived: &impl Fn(u64),
    ) -> Result<(), JobError> {
        let url = format!("{}{}", self.endpoint, repo.file_path(commit, &file.path));
        let (mut pause, mut attempt, mut is_second) = (self.first_pause, 1, false);
        loop {
            let before = length(path);
            let failure = if before < file.size || (before == 0 && !path.exists()) {
                self.fetch_rest(&url, file, path, arrived).await?
            } else {
                None
            };
            if let Some(failure) = failure {
                // What came is kept, so a line that breaks often still ends.
                if length(path) > before {
                    (pause, attempt) = (self.first_pause, 1);
                }
                self.wait(attempt, &mut pause, &file.path, failure).await?;
                attempt += 1;
            } else if file.is_at(path)? {
                return Ok(());
            } else {
                std::fs::remove_file(path)?;
                if is_second {
                    let what =
                        format!("{} does not have the digest that the hub states", file.path);
                    return Err(JobError::integrity(what));
                }
                is_second = true;
            }
        }
    }

    /// Appends what is missing; tells why it ended early, if it did.
    async fn fetch_rest(
        &self,
        url: &str,
        file: &HubFile,
        path: &Path,
        arrived: &impl Fn(u64),
    ) -> Result<Option<String>, JobError> {
        let start = length(path);
        let response = match self.get(url, start).await {
            Ok(response) => response,
            Err(failure) => return Ok(Some(failure)),
        };
        if let Some(failure) = self.refusal(&response, &file.path)? {
            return Ok(Some(failure));
        }
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        let expected = format!("bytes {start}-");
        let range = response.headers().get(CONTENT_RANGE);
        let range = range.and_then(|range| range.to_str().ok());
        let is_rest = range.is_some_and(|range| range.starts_with(&expected));
        // A server may send the whole of it.
        let mut at = if is_rest { start } else { 0 };
        out.set_len(at)?;
        out.seek(SeekFrom::Start(at))?;
        let mut body = response.into_body();
        loop {
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Err(_) => return Ok(Some("it fell silent".to_owned())),
                Ok(Some(Err(error))) => return Ok(Some(error.to_string())),
                Ok(None) if at < file.size => {
                    return Ok(Some(format!("it ended after {at} bytes")));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                at += data.len() as u64;
                if at > file.size {
                    let what = format!(
                        "{} is longer than the {} bytes that the hub states",
                        file.path, file.size
                    );
                    return Err(JobError::integrity(what));
                }
                out.write_all(&data)?;
                arrived(data.len() as u64);
            }
        }
    }

    /// One request, with the token as long as it stays with the hub, and on to where it is redirected.
    async fn get(&self, url: &str, start: u64) -> Result<Response<Incoming>, String> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(&url).header(USER_AGENT, "wmtp");
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            let is_hub = url
                .strip_prefix(&self.endpoint)
                .is_some_and(|rest| rest.starts_with('/'));
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request
                .body(Empty::new())
                .map_err(|error| error.to_string())?;
            let response = match tokio::time::timeout(SILENCE, self.client.request(request)).await {
                Err(_) => return Err("no answer".to_owned()),
                Ok(Err(error)) => return Err(causes(&error)),
                Ok(Ok(response)) => response,
            };
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let place = response
                .headers()
                .get(LOCATION)
                .and_then(|place| place.to_str().ok());
            let place = place.ok_or("a redirect to nowhere")?;
            url = if place.starts_with('/') {
                format!("{}{place}", origin(&url))
            } else {
                place.to_owned()
            };
        }
        Err("redirects without end".to_owned())
    }

    /// Why an answer is none that can be used: an error, or a failure after which it may be asked again.
    fn refusal(
        &self,
        response: &Response<Incoming>,
        what: &str,
    ) -> Result<Option<String>, JobError> {
        let status = response.status();
        if status.is_success() {
            return Ok(None);
        }
        let answer = format!("{what}: {} answered {status}", self.endpoint);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = match self.token {
                    Some(_) => "check that the token may read it, and accept its terms on its page",
                    None => {
                        "set HF_TOKEN to a token that may read it, and accept its terms on its page"
                    }
                };
                Err(JobError::unavailable(answer).hint(hint))
            }
            StatusCode::NOT_FOUND => Err(JobError::bad_input(answer).hint(
                "check owner, name and revision; what is private is not found without a token",
            )),
            _ => Ok(Some(answer)),
        }
    }

    /// Pauses before the next attempt, or ends.
    async fn wait(
        &self,
        attempt: u32,
        pause: &mut Duration,
        what: &str,
        failure: String,
    ) -> Result<(), JobError> {
        if attempt >= MAX_ATTEMPTS {
            let hint = "what was fetched stays; the same command goes on from it";
            return Err(JobError::unavailable(format!("{what}: {failure}")).hint(hint));
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        *pause *= 2;
        Ok(())
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Scheme and host of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[..end]
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

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

    fn answer_store(
        files: &HashMap<String, Vec<u8>>,
        asked: &Asked,
        head: &str,
    ) -> (String, Vec<u8>) {
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
    fn a_list_that_leads_out_of_the_folder_is_refused() {
        let list = |path: &str| {
            let sibling = serde_json::json!({"rfilename": path, "lfs": {"sha256": "0".repeat(64), "size": 1}});
            serde_json::json!({"sha": COMMIT, "siblings": [sibling]}).to_string()
        };
        assert!(Snapshot::parse(list("a/b.bin").as_bytes()).is_ok());
        for path in ["../a", "/a", "a//b", "a/../../b", "", "a\\b", "."] {
            let error = Snapshot::parse(list(path).as_bytes()).unwrap_err();
            assert!(error.contains("leads out"), "{error}");
        }
    }

    #[test]
    fn a_repository_is_named_with_its_revision() {
        let repo: Repo = "hf://datasets/a/b-c.d@refs/pr/1".parse().unwrap();
        assert_eq!(
            (repo.kind, repo.name(), repo.revision.as_str()),
            (RepoKind::DataSet, "a/b-c.d", "refs/pr/1")
        );
        assert_eq!(
            repo.api_path(),
            "/api/datasets/a/b-c.d/revision/refs%2Fpr%2F1?blobs=true"
        );
        assert_eq!(
            repo.file_path("c", "x y/ü"),
            "/datasets/a/b-c.d/resolve/c/x%20y/%C3%BC"
        );
        for wrong in [
            "hf://a/b",
            "hf://a@b",
            "s3://a/b@c",
            "hf://a/../b@c",
            "hf://a/b@",
            "hf://a/b c@d",
        ] {
            assert!(wrong.parse::<Repo>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_does_not_travel_in_the_clear() {
        assert!(Hub::new("http://hub.example.org", None).is_err());
        assert!(Hub::new("https://hub.example.org/", None).is_ok());
    }
}
