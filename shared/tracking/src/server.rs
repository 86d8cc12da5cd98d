//! One tracking server: where it is, how we log in, and single requests to it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
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
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::Error;

/// The variable that switches tracking on.
pub const URI_VARIABLE: &str = "MLFLOW_TRACKING_URI";
const TOKEN_VARIABLE: &str = "MLFLOW_TRACKING_TOKEN";
const USER_VARIABLE: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD_VARIABLE: &str = "MLFLOW_TRACKING_PASSWORD";
const CERTIFICATES_VARIABLE: &str = "MLFLOW_TRACKING_SERVER_CERT_PATH";
const INSECURE_VARIABLE: &str = "MLFLOW_TRACKING_INSECURE_TLS";

/// The variables of this crate and what they say, for `--help`.
pub const ENVIRONMENT: [(&str, &str); 5] = [
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
    (
        CERTIFICATES_VARIABLE,
        "PEM file of the authorities that may vouch for it, in place of those of SSL_CERT_FILE or this machine",
    ),
];

/// How a server is reached, and how we log in: what MLflow's own client reads from the same variables.
#[derive(Default)]
pub(crate) struct Access {
    /// Bearer token, for where there is no login.
    pub(crate) token: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// Authorities in place of this machine's.
    pub(crate) certificates: Option<String>,
}

impl Access {
    fn of_environment() -> Result<Self, Error> {
        // Said outright: left unread, it would only end in a certificate that is not trusted.
        if variable(INSECURE_VARIABLE).is_some_and(|text| is_true(&text)) {
            return Err(Error::Settings(format!(
                "{INSECURE_VARIABLE} would show every run, and its login, to anybody on the way: name the server's \
                 authority in {CERTIFICATES_VARIABLE} instead"
            )));
        }
        Ok(Self {
            token: variable(TOKEN_VARIABLE),
            user: variable(USER_VARIABLE),
            password: variable(PASSWORD_VARIABLE),
            certificates: variable(CERTIFICATES_VARIABLE),
        })
    }

    /// What every request says of who we are; as MLflow's client has it, a login goes before a token.
    fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let text = match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), _) => {
                let encoded = STANDARD.encode(format!("{user}:{password}"));
                format!("Basic {encoded}")
            }
            (_, _, Some(token)) => format!("Bearer {token}"),
            (None, None, None) => return Ok(None),
            (user, _, None) => {
                let missing = if user.is_some() {
                    PASSWORD_VARIABLE
                } else {
                    USER_VARIABLE
                };
                return Err(Error::Settings(format!(
                    "{missing} is not set: a login has a user and a password"
                )));
            }
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            Error::Settings(
                "the credentials of the tracking server hold characters that no header may"
                    .to_owned(),
            )
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn connector(&self) -> Result<HttpsConnector<HttpConnector>, Error> {
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let provider = rustls::crypto::ring::default_provider();
        let builder = match &self.certificates {
            None => builder
                .with_provider_and_native_roots(provider)
                .map_err(|error| {
                    Error::Settings(format!("the certificates of this machine: {error}"))
                })?,
            Some(path) => {
                let config = ClientConfig::builder_with_provider(Arc::new(provider))
                    .with_safe_default_protocol_versions()
                    .map_err(|error| Error::Settings(error.to_string()))?
                    .with_root_certificates(authorities(Path::new(path))?)
                    .with_no_client_auth();
                builder.with_tls_config(config)
            }
        };
        Ok(builder.https_or_http().enable_http1().build())
    }
}

/// The certificates of a PEM file.
fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let wrong = |detail: String| {
        let path = path.display();
        Error::Settings(format!("{CERTIFICATES_VARIABLE}: {path}: {detail}"))
    };
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        let added = roots.add(certificate);
        added.map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(roots)
}

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
        Self::new(uri, &Access::of_environment()?)
    }

    pub(crate) fn new(uri: &str, access: &Access) -> Result<Self, Error> {
        let endpoint = uri.trim().trim_end_matches('/').to_owned();
        let authorization = access.authorization()?;
        check(&endpoint, authorization.is_some())?;
        Ok(Self {
            endpoint,
            authorization,
            client: Client::builder(TokioExecutor::new()).build(access.connector()?),
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

/// As MLflow reads its switches.
fn is_true(text: &str) -> bool {
    text.eq_ignore_ascii_case("true") || text == "1"
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
        let server = Server::new("http://127.0.0.1:9/", &login()).unwrap();
        assert_eq!(format!("{server:?}"), "Server(http://127.0.0.1:9)");
        assert_eq!(
            format!("{:?}", server.authorization),
            "Some(Sensitive)",
            "the header says so itself"
        );
    }

    fn login() -> Access {
        Access {
            user: Some("me".to_owned()),
            password: Some("planted-password".to_owned()),
            ..Access::default()
        }
    }

    #[test]
    fn a_login_is_whole_and_goes_before_a_token_as_mlflow_has_it() {
        let sent = |access: &Access| {
            let value = access.authorization()?;
            Ok::<_, Error>(value.map(|value| value.to_str().unwrap().to_owned()))
        };
        let token = Some("t".to_owned());
        let both = Access {
            token: token.clone(),
            ..login()
        };
        // printf 'me:planted-password' | base64
        let basic = "Basic bWU6cGxhbnRlZC1wYXNzd29yZA==";
        assert_eq!(sent(&both).unwrap().as_deref(), Some(basic));
        let half = Access {
            password: None,
            ..login()
        };
        assert!(
            sent(&half)
                .unwrap_err()
                .to_string()
                .contains(PASSWORD_VARIABLE)
        );
        let half = Access { token, ..half };
        assert_eq!(sent(&half).unwrap().as_deref(), Some("Bearer t"));
        let half = Access {
            user: None,
            ..login()
        };
        let error = sent(&half).unwrap_err().to_string();
        assert!(
            error.contains(USER_VARIABLE) && !error.contains("planted"),
            "{error}"
        );
        assert_eq!(sent(&Access::default()).unwrap(), None);
    }

    #[test]
    fn authorities_are_those_of_the_file_or_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |text: &str| {
            let path = folder.path().join("ca.pem");
            std::fs::write(&path, text).unwrap();
            let error = authorities(&path).unwrap_err().to_string();
            assert!(
                error.contains("MLFLOW_TRACKING_SERVER_CERT_PATH: "),
                "{error}"
            );
            assert!(error.contains("ca.pem: "), "{error}");
            error
        };
        assert!(refused("").contains("holds no certificate"));
        assert!(refused("no PEM at all\n").contains("holds no certificate"));
        refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        refused("-----BEGIN CERTIFICATE-----\n");
        let missing = authorities(&folder.path().join("none.pem")).unwrap_err();
        assert!(missing.to_string().contains("none.pem"), "{missing}");
        assert!(["true", "True", "1"].into_iter().all(is_true) && !is_true("false"));
    }

    #[test]
    fn an_answer_is_a_reply_a_refusal_or_none() {
        let server = Server::new("http://127.0.0.1:9", &Access::default()).unwrap();
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
