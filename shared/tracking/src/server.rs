//! One tracking server: where it is, how we log in, and single requests to it.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::Error;

/// The variable that switches tracking on.
pub const URI_VARIABLE: &str = "MLFLOW_TRACKING_URI";
const TOKEN_VARIABLE: &str = "MLFLOW_TRACKING_TOKEN";
const USER_VARIABLE: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD_VARIABLE: &str = "MLFLOW_TRACKING_PASSWORD";

/// The variables of this crate and what they say, for `--help`.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    (
        URI_VARIABLE,
        "MLflow server on which runs are tracked, https://HOST[/PATH]; without it none are",
    ),
    (
        TOKEN_VARIABLE,
        "Bearer token for it; over https or loopback only",
    ),
    (USER_VARIABLE, "User for it, where it wants a password"),
    (
        PASSWORD_VARIABLE,
        "The password; over https or loopback only",
    ),
];

const API: &str = "/api/2.0/mlflow/";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts/";
/// A server that says nothing for so long does not answer.
const SILENCE: Duration = Duration::from_secs(10);
/// Attempts of one request where somebody waits for the outcome.
const PATIENT_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No reply is larger.
const MAX_REPLY: usize = 16 << 20;
/// Of an error that is passed on.
const LONGEST_DETAIL: usize = 300;

/// A tracking server. Its debug form shows no credentials.
#[derive(Clone)]
pub struct Server {
    endpoint: String,
    authorization: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    attempts: u32,
    first_pause: Duration,
    pub(crate) silence: Duration,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.endpoint)
    }
}

impl Server {
    /// The server of `MLFLOW_TRACKING_URI`, with the credentials of its variables; none where that is not set.
    ///
    /// # Errors
    /// [`Error::Settings`] when the address cannot be used, or would carry credentials in the clear.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        match variable(URI_VARIABLE) {
            Some(uri) => Self::at(&uri).map(Some),
            None => Ok(None),
        }
    }

    /// The server at an address, with the credentials of the environment.
    ///
    /// # Errors
    /// As [`Server::from_environment`].
    pub fn at(uri: &str) -> Result<Self, Error> {
        let token = variable(TOKEN_VARIABLE);
        let login = variable(USER_VARIABLE)
            .map(|user| (user, variable(PASSWORD_VARIABLE).unwrap_or_default()));
        Self::new(uri, token, login)
    }

    pub(crate) fn new(
        uri: &str,
        token: Option<String>,
        login: Option<(String, String)>,
    ) -> Result<Self, Error> {
        let endpoint = uri.trim().trim_end_matches('/').to_owned();
        let authorization = match (token, login) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some((user, password))) => {
                let encoded = STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {encoded}"))
            }
            (None, None) => None,
        };
        check(&endpoint, authorization.is_some())?;
        let authorization = authorization
            .map(|text| {
                let mut value = HeaderValue::from_str(&text).map_err(|_| {
                    Error::Settings(
                        "the credentials of the tracking server hold characters that no header may"
                            .to_owned(),
                    )
                })?;
                value.set_sensitive(true);
                Ok::<_, Error>(value)
            })
            .transpose()?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| Error::Settings(format!("the certificates of this machine: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            endpoint,
            authorization,
            client: Client::builder(TokioExecutor::new()).build(connector),
            attempts: 1,
            first_pause: FIRST_PAUSE,
            silence: SILENCE,
        })
    }

    /// The same server for somebody who waits: a request that fails for the moment is made again a few times.
    #[must_use]
    pub fn patient(mut self) -> Self {
        self.attempts = PATIENT_ATTEMPTS;
        self
    }

    /// The same server for a part of something that is tried again as a whole.
    pub(crate) fn single(&self) -> Self {
        Self {
            attempts: 1,
            ..self.clone()
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for something.
    pub(crate) async fn get(&self, call: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(query)
            .finish();
        let path = format!("{API}{call}?{query}");
        self.retrying(async || self.once(Method::GET, call, &path, None).await)
            .await
    }

    /// Tells something that may be told twice.
    pub(crate) async fn post(&self, call: &str, body: &Value) -> Result<Value, Error> {
        self.retrying(async || self.post_once(call, body).await)
            .await
    }

    /// Tells something that must not be told twice.
    pub(crate) async fn post_once(&self, call: &str, body: &Value) -> Result<Value, Error> {
        let body = Bytes::from(body.to_string());
        self.once(Method::POST, call, &format!("{API}{call}"), Some(body))
            .await
    }

    /// Hands over a file that the server stores for us.
    pub(crate) async fn put_artifact(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        let full = format!("{ARTIFACTS}{path}");
        self.retrying(async || {
            self.once(Method::PUT, "artifacts", &full, Some(bytes.clone()))
                .await
        })
        .await
        .map(|_| ())
    }

    /// Makes an attempt again as long as it fails for the moment and there are attempts left.
    pub(crate) async fn retrying<T>(
        &self,
        attempt: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut pause = self.first_pause;
        for _ in 1..self.attempts {
            match attempt().await {
                Err(error) if error.is_transient() => {}
                outcome => return outcome,
            }
            tokio::time::sleep(jittered(pause)).await;
            pause *= 2;
        }
        attempt().await
    }

    async fn once(
        &self,
        method: Method,
        call: &str,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Value, Error> {
        let silent = || {
            let secs = self.silence.as_secs();
            self.unreachable(call, format!("no answer within {secs} s"))
        };
        let asked = self.ask(method, call, path, body);
        let (status, bytes) = tokio::time::timeout(self.silence, asked)
            .await
            .map_err(|_| silent())??;
        self.understood(call, status, &bytes)
    }

    async fn ask(
        &self,
        method: Method,
        call: &str,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header(USER_AGENT, concat!("wmtp/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| self.refused(call, "bad request", error.to_string()))?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| self.unreachable(call, wmtp_artifacts::causes(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REPLY)
            .collect()
            .await
            .map_err(|error| self.unreachable(call, error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    /// What an answer means.
    fn understood(&self, call: &str, status: StatusCode, bytes: &[u8]) -> Result<Value, Error> {
        let reply: Option<Value> = serde_json::from_slice(bytes).ok().filter(Value::is_object);
        if status.is_success() {
            // Some calls have nothing to say.
            if bytes.is_empty() {
                return Ok(Value::Object(serde_json::Map::new()));
            }
            return reply.ok_or_else(|| {
                let start = shortened(&String::from_utf8_lossy(bytes));
                self.unreachable(
                    call,
                    format!("answered what is no reply of MLflow: {start:?}"),
                )
            });
        }
        let text = |name: &str| reply.as_ref()?[name].as_str().map(str::to_owned);
        let detail = text("message").unwrap_or_else(|| format!("HTTP status {status}"));
        let detail = shortened(&detail);
        let is_for_now = status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
        if is_for_now {
            return Err(self.unreachable(call, format!("{status}: {detail}")));
        }
        let code = text("error_code").unwrap_or_else(|| status.as_u16().to_string());
        Err(self.refused(call, &code, detail))
    }

    pub(crate) fn unreachable(&self, call: &str, detail: String) -> Error {
        Error::Unreachable {
            server: self.endpoint.clone(),
            call: call.to_owned(),
            detail,
        }
    }

    pub(crate) fn refused(&self, call: &str, code: &str, detail: String) -> Error {
        Error::Refused {
            server: self.endpoint.clone(),
            call: call.to_owned(),
            code: code.to_owned(),
            detail,
        }
    }

    #[cfg(test)]
    pub(crate) fn hasty(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self.first_pause = Duration::from_millis(1);
        self
    }
}

/// Refuses addresses that no request can be sent to, or that would give credentials away.
fn check(endpoint: &str, has_credentials: bool) -> Result<(), Error> {
    let wrong = |detail: &str| Error::Settings(format!("{URI_VARIABLE}: {detail}"));
    let uri: Uri = endpoint
        .parse()
        .map_err(|error| wrong(&format!("{error}")))?;
    let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong(
            "expected https://HOST or http://HOST: a tracking server; files, databases and buckets cannot be tracked into",
        ));
    };
    if authority.as_str().contains('@') {
        return Err(wrong(
            "put user and password into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not into the address",
        ));
    }
    if uri.query().is_some() {
        return Err(wrong("an address of a server has no query"));
    }
    let is_loopback = matches!(authority.host(), "localhost" | "127.0.0.1" | "[::1]");
    if has_credentials && uri.scheme_str() == Some("http") && !is_loopback {
        return Err(wrong(
            "token or password could be read on the way to this server: use https",
        ));
    }
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A pause of half to the whole of what was given, so that many jobs do not come back at once.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    let mut short: String = text.chars().take(LONGEST_DETAIL).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(uri: &str, has_credentials: bool) -> String {
        check(uri, has_credentials).unwrap_err().to_string()
    }

    #[test]
    fn credentials_do_not_travel_in_the_clear() {
        check("http://mlflow.example.org:5000", false).unwrap();
        check("https://mlflow.example.org/tracking", true).unwrap();
        check("http://127.0.0.1:5000", true).unwrap();
        assert!(settings("http://mlflow.example.org", true).contains("use https"));
        assert!(
            settings("https://me:secret@host", false).contains("MLFLOW_TRACKING_USERNAME"),
            "no secret is repeated"
        );
        assert!(!settings("https://me:secret@host", false).contains("secret@"));
    }

    #[test]
    fn only_servers_can_be_tracked_on() {
        for uri in [
            "sqlite:///mlflow.db",
            "s3://bucket/x",
            "mlruns",
            "",
            "https://h?x=1",
        ] {
            check(uri, false).unwrap_err();
        }
    }

    #[test]
    fn the_debug_form_and_the_errors_hold_no_credentials() {
        let login = Some(("me".to_owned(), "planted-password".to_owned()));
        let server = Server::new("http://127.0.0.1:9/", None, login).unwrap();
        assert_eq!(format!("{server:?}"), "Server(http://127.0.0.1:9)");
        assert_eq!(
            format!("{:?}", server.authorization),
            "Some(Sensitive)",
            "the header says so itself"
        );
    }

    #[test]
    fn an_answer_is_a_reply_a_refusal_or_none() {
        let server = Server::new("http://127.0.0.1:9", None, None).unwrap();
        let of = |status: u16, body: &str| {
            server.understood(
                "runs/create",
                StatusCode::from_u16(status).unwrap(),
                body.as_bytes(),
            )
        };
        assert_eq!(of(200, r#"{"run": 1}"#).unwrap()["run"], 1);
        assert!(of(200, "").unwrap().is_object());
        for (status, body) in [
            (200, "<html>log in</html>"),
            (200, "[]"),
            (429, ""),
            (500, "{}"),
            (503, "x"),
        ] {
            assert!(
                of(status, body).unwrap_err().is_transient(),
                "{status} {body}"
            );
        }
        let taken = of(
            400,
            r#"{"error_code": "RESOURCE_ALREADY_EXISTS", "message": "there"}"#,
        );
        assert!(taken.unwrap_err().has_code("RESOURCE_ALREADY_EXISTS"));
        let login = of(401, "You are not authenticated.").unwrap_err();
        assert!(login.has_code("401") && !login.is_transient());
        assert!(
            !of(302, "").unwrap_err().is_transient(),
            "credentials follow no redirect"
        );
    }
}
