//! A client of a server, and short ways to store, fetch and read errors.

use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use dev_store::{BUCKET, TestServer};

/// A server on a temporary root, and a client of it.
pub(crate) struct Store {
    pub(crate) root: tempfile::TempDir,
    pub(crate) server: Option<TestServer>,
    pub(crate) client: Client,
}

impl Store {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (server, client) = start(root.path());
        Self {
            root,
            server: Some(server),
            client,
        }
    }

    /// Stops the server, lets `meanwhile` work on the root, and starts another one.
    pub(crate) fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.server = None;
        meanwhile(self.root.path());
        let (server, client) = start(self.root.path());
        (self.server, self.client) = (Some(server), client);
    }

    pub(crate) fn server(&self) -> &TestServer {
        self.server.as_ref().unwrap()
    }

    /// Stores an object and gives its ETag.
    pub(crate) async fn put(&self, key: &str, body: &[u8]) -> String {
        let request = self
            .client
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .body(ByteStream::from(body.to_vec()));
        request.send().await.unwrap().e_tag.unwrap()
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Vec<u8>, SdkError<GetObjectError>> {
        let output = self
            .client
            .get_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await?;
        Ok(output.body.collect().await.unwrap().to_vec())
    }

    /// The data files on disk.
    pub(crate) fn segments(&self) -> usize {
        files(&self.root.path().join("segments"))
    }

    /// The objects' own files on disk.
    pub(crate) fn records(&self) -> usize {
        files(&self.root.path().join("buckets").join(BUCKET))
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn start(root: &Path) -> (TestServer, Client) {
    let server = TestServer::start(root);
    let client = client(server.endpoint(), server.access_key(), server.secret_key());
    (server, client)
}

/// A client without retries, so that a test sees each answer.
pub(crate) fn client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

/// Status and S3 code of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
) -> (u16, String) {
    let error = result.expect_err("a refusal");
    let status = error
        .raw_response()
        .map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

/// The largest body that lies in its object's own file.
pub(crate) const INLINE: usize = 64 << 10;

/// Bytes that differ by position and by `seed`.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index % 251) as u8 ^ seed)
        .collect()
}
