//! Single requests to one bucket.

mod clock;
mod connect;
mod failure;
mod listing;
mod objects;
mod options;
mod pace;

use aws_sdk_s3::config::SharedCredentialsProvider;

pub use self::failure::causes;
pub(crate) use self::failure::status;
pub(crate) use self::listing::{Listed, StoredPart};
pub(crate) use self::objects::{Headers, MAX_MISMATCHES};
pub use self::options::{Credentials, StoreOptions};
use self::pace::{Pace, Slot};
use crate::StoreUri;

/// One bucket and prefix with its clients.
pub(crate) struct Bucket {
    pub(crate) uri: StoreUri,
    pub(crate) options: StoreOptions,
    pub(crate) client: aws_sdk_s3::Client,
    /// The same with few attempts.
    probe: aws_sdk_s3::Client,
    /// The same with more time: bodies of up to 64 MiB may take theirs on a slow line.
    pub(crate) sender: aws_sdk_s3::Client,
    pace: Pace,
    endpoint: String,
    credentials: Option<SharedCredentialsProvider>,
    /// Over TLS and loopback the payload is guarded by its checksum alone; signing would hash it again.
    pub(crate) sign_payload: bool,
    /// Whether the store is sent CRC64NVME checksums.
    pub(crate) send_checksums: bool,
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

    /// Waits until one more request for a content may be under way.
    pub(crate) async fn slot(&self) -> Slot {
        self.pace.slot().await
    }

    /// The client with full or little patience.
    pub(crate) fn client_for(&self, patience: Patience) -> &aws_sdk_s3::Client {
        match patience {
            Patience::Full => &self.client,
            Patience::Probe => &self.probe,
        }
    }
}
