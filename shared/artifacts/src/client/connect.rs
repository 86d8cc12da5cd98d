//! How the SDK is set up. It neither times out a silent server nor retries 429 by default; both are set here.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};

use super::pace::Pace;
use super::{Bucket, StoreOptions};
use crate::{Error, Result, StoreUri};

/// Attempts of one request, the first included.
pub(super) const MAX_ATTEMPTS: u32 = 8;

/// Attempts of the requests that find out whether the store is there at all.
const PROBE_ATTEMPTS: u32 = 2;

pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Region where nothing names one; stores other than AWS do not care.
const DEFAULT_REGION: &str = "us-east-1";

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
        let pace = Pace::new();
        let mut config = Builder::from(&shared)
            .region(region.unwrap_or_else(|| Region::new(DEFAULT_REGION)))
            .retry_config(retries(attempts, options.first_backoff))
            .retry_classifier(TooManyRequests)
            .interceptor(pace.clone())
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
        let slow = options.read_timeout.unwrap_or(UPLOAD_TIMEOUT);
        let sender = config
            .to_builder()
            .timeout_config(timeouts(slow, 120))
            .build();
        let checksums = shared.request_checksum_calculation();
        Ok(Self {
            uri: uri.clone(),
            options,
            client: aws_sdk_s3::Client::from_conf(config),
            probe: aws_sdk_s3::Client::from_conf(probe),
            sender: aws_sdk_s3::Client::from_conf(sender),
            pace,
            endpoint: endpoint.unwrap_or_else(|| "AWS S3".to_owned()),
            credentials: shared.credentials_provider(),
            sign_payload: !is_private,
            send_checksums: checksums != Some(RequestChecksumCalculation::WhenRequired),
        })
    }

    /// What a small body that may travel on a slow line is sent with, whatever the client.
    pub(crate) fn slow_upload(&self) -> Builder {
        let read = self.options.read_timeout.unwrap_or(UPLOAD_TIMEOUT);
        Builder::new().timeout_config(timeouts(read, 120))
    }
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
    if let Some(profile) = &options.profile {
        let credentials = ProfileFileCredentialsProvider::builder().profile_name(profile);
        let region = ProfileFileRegionProvider::builder().profile_name(profile);
        loader = loader
            .profile_name(profile)
            .credentials_provider(credentials.build())
            .region(
                RegionProviderChain::first_try(region.build()).or_else(Region::new(DEFAULT_REGION)),
            );
    }
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if has_endpoint && options.profile.is_none() {
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
}
