//! How a store is reached: endpoint, credentials, patience.

use std::fmt;
use std::time::Duration;

use crate::Agent;

/// How to reach a store. The default is the standard AWS chain of variables and profiles.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// Endpoint instead of that of `AWS_ENDPOINT_URL_S3` or AWS itself.
    pub endpoint: Option<String>,
    /// Region instead of that of the chain.
    pub region: Option<String>,
    /// Credentials instead of those of the chain.
    pub credentials: Option<Credentials>,
    /// Profile of the AWS configuration files that credentials and region are taken from, instead of the whole chain: of a
    /// store that is not the one that the environment is set up for. Its endpoint has to be given.
    pub profile: Option<String>,
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
    /// Who works on the store, for its audit log.
    pub agent: Agent,
    /// How long a silent server is waited for; 30 s by default, 120 s for uploads.
    pub read_timeout: Option<Duration>,
}

/// An access key. Its debug form shows the last 4 characters of the key id only.
#[derive(Clone)]
pub struct Credentials {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
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
pub(super) fn masked(key_id: &str) -> String {
    let skip = key_id.chars().count().saturating_sub(4);
    let tail: String = key_id.chars().skip(skip).collect();
    format!("****{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_show_four_characters() {
        let shown = format!("{:?}", Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI"));
        assert_eq!(shown, "Credentials(****MPLE)");
    }
}
