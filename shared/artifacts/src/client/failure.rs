//! What the failures of requests mean, told without secrets, and pauses between attempts of our own.

use std::time::Duration;

use aws_sdk_s3::config::ProvideCredentials;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::Bucket;
use super::connect::{MAX_ATTEMPTS, MAX_BACKOFF};
use super::options::masked;
use crate::Error;

/// First pause between attempts of our own.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

pub(super) const CHECK_NETWORK: &str =
    "check that the server runs and that AWS_ENDPOINT_URL_S3 names it";
const CHECK_CREDENTIALS: &str = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE: \
     they must belong to this endpoint and may read, write and list this bucket";
const CHECK_RIGHTS: &str = "the store does not let this access key do that: use one that may, or ask for the \
     right; `wmtp-store policy reader|trainer|admin` prints what each needs";
const CHECK_BUCKET: &str = "check the bucket in --store; it is not created for you";
const CHECK_STORE: &str = "try again; if it stays, look at the store's own log";

impl Bucket {
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
        Some(masked(&self.key_id().await?))
    }

    /// The id of the key that signs our requests.
    pub(crate) async fn key_id(&self) -> Option<String> {
        let credentials = self
            .credentials
            .as_ref()?
            .provide_credentials()
            .await
            .ok()?;
        Some(credentials.access_key_id().to_owned())
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
}

/// What went wrong and what to check.
fn describe<E>(error: &SdkError<E>) -> (String, &'static str)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let Some(status) = status(error) else {
        let detail = causes(error);
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
        (403, Some("AccessDenied")) => CHECK_RIGHTS,
        (401 | 403, _) => CHECK_CREDENTIALS,
        _ => CHECK_STORE,
    };
    (detail, check)
}

/// The messages of an error and its causes.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
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
pub(super) fn is_absent<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
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
