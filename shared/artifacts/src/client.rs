//! Single requests to one bucket: how the SDK is set up, and what its failures mean.
//!
//! The SDK neither times out a silent server nor retries 429 by default; both are set here.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, ConfigBag, Intercept, ProvideCredentials, Region,
    RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};
use aws_smithy_types::DateTime;
use aws_smithy_types::byte_stream;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;

use crate::{Crc64, Error, Result, StoreUri};

/// Attempts of one request, the first included.
const MAX_ATTEMPTS: u32 = 8;
/// Attempts of the requests that find out whether the store is there at all.
const PROBE_ATTEMPTS: u32 = 2;
/// Wrong bytes are asked for again this often: they may have been altered on the way.
pub(crate) const MAX_MISMATCHES: u32 = 2;
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// First pause between attempts of our own.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Region where nothing names one; stores other than AWS do not care.
const DEFAULT_REGION: &str = "us-east-1";
/// Largest small object: records, not contents. A manifest may be as large.
pub(crate) const MAX_SMALL: u64 = crate::manifest::MAX_BYTES;

/// How to reach a store. The default is the standard AWS chain of variables and profiles.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// Endpoint instead of that of `AWS_ENDPOINT_URL_S3` or AWS itself.
    pub endpoint: Option<String>,
    /// Region instead of that of the chain.
    pub region: Option<String>,
    /// Credentials instead of those of the chain.
    pub credentials: Option<Credentials>,
    /// Whether plain http may leave this machine.
    pub allow_plain_http: bool,
    /// Whether publishing uploads content that the store seems to have already: it mends damaged blobs.
    pub reupload: bool,
    /// Attempts of one request; 8 by default.
    pub max_attempts: Option<u32>,
    /// How long a silent holder keeps its claim; 90 s by default.
    pub heartbeat_ttl: Option<Duration>,
    /// Time between the announcement of a collection and its first deletion; 1 h by default. All clients of a store
    /// must agree on it.
    pub collection_notice: Option<Duration>,
    /// First pause before a request is tried again; each further one is twice as long. 1 s by default.
    pub first_backoff: Option<Duration>,
    /// How long a silent server is waited for; 30 s by default, 120 s for uploads.
    pub read_timeout: Option<Duration>,
}

/// An access key. Its debug form shows the last 4 characters of the key id only.
#[derive(Clone)]
pub struct Credentials {
    access_key_id: String,
    secret_access_key: String,
}

impl Credentials {
    /// A long-lived access key.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", masked(&self.access_key_id))
    }
}

/// The last 4 characters of a key id.
fn masked(key_id: &str) -> String {
    let skip = key_id.chars().count().saturating_sub(4);
    let tail: String = key_id.chars().skip(skip).collect();
    format!("****{tail}")
}

/// One bucket and prefix with its clients.
pub(crate) struct Bucket {
    pub(crate) uri: StoreUri,
    pub(crate) options: StoreOptions,
    pub(crate) client: aws_sdk_s3::Client,
    /// The same with few attempts.
    probe: aws_sdk_s3::Client,
    endpoint: String,
    credentials: Option<SharedCredentialsProvider>,
    /// Over TLS and loopback the payload is guarded by its checksum alone; signing would hash it again.
    pub(crate) sign_payload: bool,
    /// Whether the store is sent CRC64NVME checksums.
    pub(crate) send_checksums: bool,
}

/// What a browser is told with an object.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Headers<'a> {
    pub(crate) content_type: Option<&'a str>,
    pub(crate) cache_control: Option<&'a str>,
}

/// What a HEAD request tells.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) size: u64,
    /// Time since the last change, by the store's clock.
    pub(crate) age: Option<Duration>,
}

/// An object as a listing shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Without the store's own prefix.
    pub(crate) key: String,
    /// Bytes.
    pub(crate) size: u64,
    /// When it was written, in seconds of the store's clock.
    pub(crate) modified: i64,
}

/// A multipart upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone)]
pub(crate) struct OpenUpload {
    /// Without the store's own prefix.
    pub(crate) key: String,
    pub(crate) id: String,
    /// When it was begun, in seconds of the store's clock.
    pub(crate) begun: i64,
}

/// A part that an upload under way has.
#[derive(Debug, Clone)]
pub(crate) struct StoredPart {
    /// From 1.
    pub(crate) number: i32,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// CRC64NVME as headers spell it, where the store keeps it.
    pub(crate) crc: Option<String>,
}

/// How many attempts a request is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Enough to ride out a restart of the store.
    Full,
    /// Just enough to see whether it is there.
    Probe,
}

impl Bucket {
    pub(crate) async fn connect(uri: &StoreUri, options: StoreOptions) -> Result<Self> {
        let endpoint = options
            .endpoint
            .clone()
            .or_else(|| environment("AWS_ENDPOINT_URL_S3"))
            .or_else(|| environment("AWS_ENDPOINT_URL"));
        let shared = shared_config(&options, endpoint.is_some()).await;
        let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
        let is_private = check_endpoint(endpoint.as_deref(), options.allow_plain_http)?;
        let region = shared.region().cloned();
        let attempts = options.max_attempts.unwrap_or(MAX_ATTEMPTS);
        let mut config = Builder::from(&shared)
            .region(region.unwrap_or_else(|| Region::new(DEFAULT_REGION)))
            .retry_config(retries(attempts, options.first_backoff))
            .retry_classifier(TooManyRequests)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .timeout_config(timeouts(options.read_timeout.unwrap_or(READ_TIMEOUT), 60))
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .upload_enabled(false)
                    .grace_period(Duration::from_secs(30))
                    .build(),
            );
        if let Some(endpoint) = &endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        let config = config.build();
        let probe = config
            .to_builder()
            .retry_config(retries(attempts.min(PROBE_ATTEMPTS), options.first_backoff))
            .build();
        let checksums = shared.request_checksum_calculation();
        Ok(Self {
            uri: uri.clone(),
            options,
            client: aws_sdk_s3::Client::from_conf(config),
            probe: aws_sdk_s3::Client::from_conf(probe),
            endpoint: endpoint.unwrap_or_else(|| "AWS S3".to_owned()),
            credentials: shared.credentials_provider(),
            sign_payload: !is_private,
            send_checksums: checksums != Some(RequestChecksumCalculation::WhenRequired),
        })
    }

    /// Bucket and endpoint, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{} at {}", self.uri, self.endpoint)
    }

    /// The full key of a key below the prefix.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.uri.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}/{key}", self.uri.prefix)
        }
    }

    /// Size and age of an object, or none.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Head>> {
        let date = DateHeader::default();
        let request = self
            .client
            .head_object()
            .bucket(&self.uri.bucket)
            .key(self.key(key));
        match request.customize().interceptor(date.clone()).send().await {
            Ok(output) => Ok(Some(Head {
                size: u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(0),
                age: age(output.last_modified(), date.seconds()),
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&format!("look up {key}"), error).await),
        }
    }

    /// A small object, or none.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.get_with(Patience::Full, key).await
    }

    /// A small object read by the probing client or the patient one; checked by the SDK on arrival.
    pub(crate) async fn get_with(&self, patience: Patience, key: &str) -> Result<Option<Bytes>> {
        self.download(patience, key, None, MAX_SMALL).await
    }

    /// Some bytes of a content; none when there is no such object. The caller checks what it gets: the SDK
    /// does not check a part.
    pub(crate) async fn get_range(
        &self,
        key: &str,
        start: u64,
        length: u64,
    ) -> Result<Option<Bytes>> {
        let range = format!("bytes={start}-{}", start + length.max(1) - 1);
        self.download(Patience::Full, key, Some(range), length)
            .await
    }

    /// Reads a body, again when it breaks off: the SDK retries only up to the first byte.
    async fn download(
        &self,
        patience: Patience,
        key: &str,
        range: Option<String>,
        limit: u64,
    ) -> Result<Option<Bytes>> {
        let mut pause = self.backoff();
        let mut mismatches = 0;
        loop {
            let request = self
                .client_for(patience)
                .get_object()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .set_checksum_mode(range.is_none().then_some(ChecksumMode::Enabled))
                .set_range(range.clone());
            let output = match request.send().await {
                Ok(output) => output,
                Err(error) if is_absent(&error) => return Ok(None),
                // The object ends before the range begins.
                Err(error) if status(&error) == Some(416) => return Ok(Some(Bytes::new())),
                Err(error) => return Err(self.failure(&format!("read {key}"), error).await),
            };
            let length = u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(u64::MAX);
            if length > limit {
                return Err(Error::bad_input(
                    format!("{key} in {}", self.place()),
                    format!("{length} bytes where at most {limit} were expected"),
                ));
            }
            let detail = match collect(output.body, length).await {
                Ok(body) => return Ok(Some(body)),
                Err(error) => chain(&error),
            };
            mismatches += u32::from(detail.contains("checksum"));
            if mismatches > MAX_MISMATCHES {
                return Err(Error::corrupt(format!("{key} in {}", self.place()), detail));
            }
            tracing::warn!(key, detail, "a download broke off");
            if !pause.wait().await {
                return Err(self.unavailable(&format!("read {key}"), detail, CHECK_NETWORK));
            }
        }
    }

    /// Writes a small object, replacing what is there.
    pub(crate) async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.put_with(key, body, Headers::default()).await
    }

    /// [`Bucket::put`] with headers for those who read the object over HTTP.
    pub(crate) async fn put_with(
        &self,
        key: &str,
        body: Bytes,
        headers: Headers<'_>,
    ) -> Result<()> {
        let crc = self.send_checksums.then(|| Crc64::of(&body).base64());
        let request = self
            .client
            .put_object()
            .bucket(&self.uri.bucket)
            .key(self.key(key))
            .set_content_type(headers.content_type.map(str::to_owned))
            .set_cache_control(headers.cache_control.map(str::to_owned))
            .set_checksum_crc64_nvme(crc)
            .body(body.into());
        let mut request = request.customize().config_override(self.slow_upload());
        if !self.sign_payload {
            request = request.disable_payload_signing();
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure(&format!("write {key}"), error).await),
        }
    }

    /// Bodies of up to 64 MiB may take their time on a slow line.
    pub(crate) fn slow_upload(&self) -> Builder {
        let read = self.options.read_timeout.unwrap_or(UPLOAD_TIMEOUT);
        Builder::new().timeout_config(timeouts(read, 120))
    }

    /// Pauses between attempts of our own; as many as requests have.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff {
            left: self
                .options
                .max_attempts
                .unwrap_or(MAX_ATTEMPTS)
                .saturating_sub(1),
            pause: self.options.first_backoff.unwrap_or(FIRST_BACKOFF),
        }
    }

    /// Deletes an object; one that is not there counts as deleted. False when an answer failed to come on the way
    /// there: then that request may still be on its own way, and take effect later.
    pub(crate) async fn delete(&self, key: &str) -> Result<bool> {
        let mut pause = self.backoff();
        let mut was_answered = true;
        loop {
            let once = Builder::new().retry_config(RetryConfig::disabled());
            let request = self
                .client
                .delete_object()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .customize()
                .config_override(once);
            let error = match request.send().await {
                Ok(_) => return Ok(was_answered),
                Err(error) if is_absent(&error) => return Ok(was_answered),
                Err(error) => error,
            };
            let status = status(&error);
            was_answered &= status.is_some();
            let is_final = matches!(status, Some(400 | 401 | 403 | 404 | 501));
            if is_final || !pause.wait().await {
                return Err(self.failure(&format!("delete {key}"), error).await);
            }
        }
    }

    /// The uploads under way for keys that begin with a prefix; none where the store cannot list them.
    pub(crate) async fn open_uploads(&self, prefix: &str) -> Result<Option<Vec<OpenUpload>>> {
        let mut uploads = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.uri.bucket)
                .prefix(self.key(prefix))
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if status(&error) == Some(501) => return Ok(None),
                Err(error) => return Err(self.failure("list unfinished uploads", error).await),
            };
            uploads.extend(page.uploads().iter().filter_map(|upload| {
                Some(OpenUpload {
                    key: self.own_key(upload.key()?)?,
                    id: upload.upload_id()?.to_owned(),
                    begun: upload.initiated()?.secs(),
                })
            }));
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || key_marker.is_none() {
                return Ok(Some(uploads));
            }
        }
    }

    /// The parts that an upload has; none when there is no such upload.
    pub(crate) async fn list_parts(&self, key: &str, id: &str) -> Result<Option<Vec<StoredPart>>> {
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let request = self
                .client
                .list_parts()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .upload_id(id)
                .set_part_number_marker(marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if status(&error) == Some(404) => return Ok(None),
                Err(error) => {
                    let operation = format!("list the parts of {key}");
                    return Err(self.failure(&operation, error).await);
                }
            };
            parts.extend(page.parts().iter().filter_map(|part| {
                Some(StoredPart {
                    number: part.part_number()?,
                    size: u64::try_from(part.size()?).ok()?,
                    etag: part.e_tag().map(str::to_owned),
                    crc: part.checksum_crc64_nvme().map(str::to_owned),
                })
            }));
            marker = page.next_part_number_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || marker.is_none() {
                return Ok(Some(parts));
            }
        }
    }

    /// Ends an upload and frees its parts; one that is not there counts as ended.
    pub(crate) async fn abort_upload(&self, key: &str, id: &str) -> Result<()> {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.uri.bucket)
            .key(self.key(key))
            .upload_id(id);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(self
                .failure(&format!("abort the upload of {key}"), error)
                .await),
        }
    }

    /// The store's clock in seconds.
    pub(crate) async fn clock(&self) -> Result<i64> {
        self.touch_with(Patience::Full).await?.ok_or_else(|| {
            self.unavailable(
                "ask for the time",
                "the answers have no Date header".to_owned(),
                "without the store's clock nothing can be told to be old enough to delete",
            )
        })
    }

    /// All keys that begin with a prefix, in order, without the store's own prefix.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        self.list_objects(prefix, |object| keys.push(object.key))
            .await?;
        keys.sort();
        Ok(keys)
    }

    /// Shows every object whose key begins with a prefix, page by page: what the caller does not keep is not held.
    pub(crate) async fn list_objects(
        &self,
        prefix: &str,
        mut show: impl FnMut(Listed),
    ) -> Result<()> {
        self.list_some(prefix, usize::MAX, &mut show).await?;
        Ok(())
    }

    /// [`Bucket::list_objects`], but at most so many pages; false when there are more.
    pub(crate) async fn list_some(
        &self,
        prefix: &str,
        max_pages: usize,
        mut show: impl FnMut(Listed),
    ) -> Result<bool> {
        self.list_pages(prefix, None, max_pages, |page| {
            for object in page.contents() {
                if let Some(key) = object.key().and_then(|key| self.own_key(key)) {
                    let size = u64::try_from(object.size().unwrap_or(0)).unwrap_or(0);
                    let modified = object.last_modified().map_or(i64::MAX, DateTime::secs);
                    show(Listed {
                        key,
                        size,
                        modified,
                    });
                }
            }
        })
        .await
    }

    /// The names directly below a prefix that ends with `/`, in order.
    pub(crate) async fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.list_pages(prefix, Some("/"), usize::MAX, |page| {
            let folders = page.common_prefixes().iter();
            names.extend(folders.filter_map(|folder| {
                let folder = self.own_key(folder.prefix()?)?;
                Some(
                    folder
                        .strip_prefix(prefix)?
                        .trim_end_matches('/')
                        .to_owned(),
                )
            }));
        })
        .await?;
        names.sort();
        Ok(names)
    }

    /// A key as the store spells it, without the store's own prefix.
    fn own_key(&self, key: &str) -> Option<String> {
        key.strip_prefix(self.key("").as_str()).map(str::to_owned)
    }

    async fn list_pages(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        max_pages: usize,
        mut show: impl FnMut(&ListObjectsV2Output),
    ) -> Result<bool> {
        let mut token = None;
        for _ in 0..max_pages {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.uri.bucket)
                .prefix(self.key(prefix))
                .set_delimiter(delimiter.map(str::to_owned))
                .set_continuation_token(token);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) => return Err(self.failure(&format!("list {prefix}"), error).await),
            };
            show(&page);
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One listing of at most one key: the cheapest proof that bucket and credentials are right.
    /// Returns the store's clock in seconds.
    pub(crate) async fn touch(&self) -> Result<Option<i64>> {
        self.touch_with(Patience::Probe).await
    }

    async fn touch_with(&self, patience: Patience) -> Result<Option<i64>> {
        let date = DateHeader::default();
        let request = self
            .client_for(patience)
            .list_objects_v2()
            .bucket(&self.uri.bucket)
            .prefix(self.key("v1/"))
            .max_keys(1);
        match request.customize().interceptor(date.clone()).send().await {
            Ok(_) => Ok(date.seconds()),
            Err(error) => Err(self.failure("list", error).await),
        }
    }

    /// The client with full or little patience.
    pub(crate) fn client_for(&self, patience: Patience) -> &aws_sdk_s3::Client {
        match patience {
            Patience::Full => &self.client,
            Patience::Probe => &self.probe,
        }
    }

    /// What an SDK failure means, told without secrets.
    pub(crate) async fn failure<E>(&self, operation: &str, error: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let (detail, check) = describe(&error);
        let detail = self.redacted(detail).await;
        if is_full(&error) {
            return Error::NoSpace {
                what: format!("{} ({operation})", self.place()),
                detail,
            };
        }
        if is_damaged(&error) {
            return Error::corrupt(format!("{} ({operation})", self.place()), detail);
        }
        let identity = match status(&error) {
            Some(401 | 403) => self.identity().await,
            _ => None,
        };
        let detail = identity.map_or(detail.clone(), |id| format!("{detail}; access key {id}"));
        self.unavailable(operation, detail, check)
    }

    /// An [`Error::Unavailable`] of this store.
    pub(crate) fn unavailable(&self, operation: &str, detail: String, check: &str) -> Error {
        Error::Unavailable {
            operation: operation.to_owned(),
            store: self.place(),
            detail,
            check: check.to_owned(),
        }
    }

    /// The masked id of the key that signs our requests.
    async fn identity(&self) -> Option<String> {
        let credentials = self
            .credentials
            .as_ref()?
            .provide_credentials()
            .await
            .ok()?;
        Some(masked(credentials.access_key_id()))
    }

    /// The text without key id, secret and session token, should a server send them back.
    async fn redacted(&self, text: String) -> String {
        let Some(provider) = &self.credentials else {
            return text;
        };
        let Ok(credentials) = provider.provide_credentials().await else {
            return text;
        };
        let key_id = credentials.access_key_id();
        let mut text = text.replace(key_id, &masked(key_id));
        for secret in [
            Some(credentials.secret_access_key()),
            credentials.session_token(),
        ] {
            let secret = secret.filter(|secret| !secret.is_empty());
            text = secret.map_or(text.clone(), |secret| text.replace(secret, "****"));
        }
        text
    }
}

const CHECK_NETWORK: &str = "check that the server runs and that AWS_ENDPOINT_URL_S3 names it";
const CHECK_CREDENTIALS: &str = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE: \
     they must belong to this endpoint and may read, write and list this bucket";
const CHECK_BUCKET: &str = "check the bucket in --store; it is not created for you";
const CHECK_STORE: &str = "try again; if it stays, look at the store's own log";

/// What went wrong and what to check.
fn describe<E>(error: &SdkError<E>) -> (String, &'static str)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let Some(status) = status(error) else {
        let detail = chain(error);
        let about_credentials = detail.to_lowercase().contains("credential");
        return (
            detail,
            if about_credentials {
                CHECK_CREDENTIALS
            } else {
                CHECK_NETWORK
            },
        );
    };
    let code = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::code);
    let message = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::message);
    let mut detail = format!("the server answered {status}");
    for part in [code, message].into_iter().flatten() {
        detail = format!("{detail}, {part}");
    }
    let check = match (status, code) {
        (_, Some("NoSuchBucket")) => CHECK_BUCKET,
        (401 | 403, _) => CHECK_CREDENTIALS,
        _ => CHECK_STORE,
    };
    (detail, check)
}

/// A body of an announced length, in one piece; the SDK's own way holds it twice for a moment.
async fn collect(
    mut body: ByteStream,
    length: u64,
) -> std::result::Result<Bytes, byte_stream::error::Error> {
    let mut bytes = Vec::with_capacity(length as usize);
    while let Some(chunk) = body.try_next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The messages of an error and its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The HTTP status of a failure, if an answer came.
pub(crate) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error
        .raw_response()
        .map(|response| response.status().as_u16())
}

/// Whether the object, not the bucket, is missing.
fn is_absent<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let code = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::code);
    status(error) == Some(404) && code != Some("NoSuchBucket")
}

/// Whether the store's disk is full.
fn is_full<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    status(error) == Some(507) || says(error, "no space")
}

/// Whether the store found its own copy damaged, as the embedded one checks.
fn is_damaged<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    status(error) == Some(500) && says(error, "is damaged")
}

/// Whether the server's message holds some words.
fn says<E: ProvideErrorMetadata>(error: &SdkError<E>, words: &str) -> bool {
    let message = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::message);
    message.is_some_and(|message| message.to_lowercase().contains(words))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Checks an endpoint; true when the way to it is private (TLS or loopback).
fn check_endpoint(endpoint: Option<&str>, allow_plain_http: bool) -> Result<bool> {
    let Some(endpoint) = endpoint else {
        return Ok(true);
    };
    if endpoint.starts_with("https://") {
        return Ok(true);
    }
    let wrong = |detail: &str| Error::usage(format!("endpoint {endpoint:?}"), detail);
    let rest = endpoint
        .strip_prefix("http://")
        .ok_or_else(|| wrong("expected http:// or https://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let address = host.parse::<std::net::IpAddr>();
    let is_loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if is_loopback || allow_plain_http {
        return Ok(is_loopback);
    }
    Err(wrong(
        "plain http would carry data and signatures over the network in the clear; use https",
    ))
}

/// The standard AWS chain, with what the options say in place of its own answers.
async fn shared_config(options: &StoreOptions, has_endpoint: bool) -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    if let Some(credentials) = &options.credentials {
        loader = loader.credentials_provider(aws_sdk_s3::config::Credentials::new(
            &credentials.access_key_id,
            &credentials.secret_access_key,
            None,
            None,
            "wmtp",
        ));
    }
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if has_endpoint {
        loader = loader.region(region_of_own_endpoint());
    }
    loader.load().await
}

/// Region of a store with its own endpoint. The whole chain would also ask the metadata service of a cloud, and
/// where there is none that takes seconds to fail.
fn region_of_own_endpoint() -> RegionProviderChain {
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::new(DEFAULT_REGION))
}

fn retries(attempts: u32, first_backoff: Option<Duration>) -> RetryConfig {
    let retries = RetryConfig::standard()
        .with_max_attempts(attempts.max(1))
        .with_max_backoff(MAX_BACKOFF);
    match first_backoff {
        Some(pause) => retries.with_initial_backoff(pause),
        None => retries,
    }
}

fn timeouts(read: Duration, attempt_secs: u64) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(read)
        .operation_attempt_timeout(Duration::from_secs(attempt_secs))
        .build()
}

/// Growing pauses between attempts of our own.
pub(crate) struct Backoff {
    left: u32,
    pause: Duration,
}

impl Backoff {
    /// Waits and returns true, or returns false when the attempts are used up.
    pub(crate) async fn wait(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        tokio::time::sleep(self.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        self.pause = (self.pause * 2).min(MAX_BACKOFF);
        true
    }
}

/// Retries 429, which the SDK takes for final.
#[derive(Debug)]
struct TooManyRequests;

impl ClassifyRetry for TooManyRequests {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context
            .response()
            .map(|response| response.status().as_u16())
        {
            Some(429) => RetryAction::throttling_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "429 is retried"
    }
}

/// Catches the `Date` header of a response: the store's clock.
#[derive(Debug, Clone, Default)]
struct DateHeader(Arc<Mutex<Option<i64>>>);

impl DateHeader {
    /// Seconds since 1970.
    fn seconds(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "the store's clock"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let seconds = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seconds.map(|date| date.secs());
        Ok(())
    }
}

fn age(last_modified: Option<&DateTime>, now: Option<i64>) -> Option<Duration> {
    let age = now? - last_modified?.secs();
    Some(Duration::from_secs(u64::try_from(age).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine() {
        for private in [
            "http://127.0.0.1:9000",
            "http://localhost",
            "http://[::1]:1/",
            "https://s3.example.org",
        ] {
            assert!(check_endpoint(Some(private), false).unwrap(), "{private}");
        }
        for open in [
            "http://10.0.0.1:9000",
            "http://s3.example.org",
            "http://localhost.example.org",
        ] {
            assert_eq!(
                check_endpoint(Some(open), false)
                    .unwrap_err()
                    .exit_class()
                    .code(),
                2,
                "{open}"
            );
            assert!(!check_endpoint(Some(open), true).unwrap(), "{open}");
        }
        assert!(check_endpoint(Some("s3.example.org"), true).is_err());
    }

    #[test]
    fn credentials_show_four_characters() {
        let shown = format!("{:?}", Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI"));
        assert_eq!(shown, "Credentials(****MPLE)");
    }

    #[test]
    fn an_age_is_never_negative() {
        let written = DateTime::from_secs(100);
        assert_eq!(
            age(Some(&written), Some(130)),
            Some(Duration::from_secs(30))
        );
        assert_eq!(age(Some(&written), Some(90)), Some(Duration::ZERO));
        assert_eq!(age(None, Some(90)), None);
    }
}
