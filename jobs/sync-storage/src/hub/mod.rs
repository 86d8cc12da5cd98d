//! The Hugging Face hub as a source: what a revision holds, and its files, each fetched on from where it broke off.
//!
//! A revision is resolved to its commit once, and everything is asked for by commit: what moves on the hub meanwhile does
//! not matter. The token goes to the hub alone, never to the servers that it redirects to.

mod repo;
mod snapshot;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
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
use wmtp_job_kit::JobError;

pub(crate) use self::repo::Repo;
pub(crate) use self::snapshot::{HubFile, Snapshot};

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
                Ok(Err(error)) => return Err(wmtp_artifacts::causes(&error)),
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

#[cfg(test)]
mod tests;
