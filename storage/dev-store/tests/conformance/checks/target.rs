//! A server under check, and short ways to ask it.

use std::fmt::Debug;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_http_client::tls;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use dev_store::{BUCKET, TestServer};

use crate::support::refusal;

/// The least size of a part that is not the last.
pub(super) const PART_BYTES: usize = 5 << 20;

/// Where a server is and how it is to be talked to.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) endpoint: Option<String>,
    pub(super) region: String,
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) session_token: Option<String>,
    pub(super) bucket: String,
    /// Keys begin with this.
    pub(super) prefix: String,
    /// Some servers do not read the trailers that the SDK sends with every body unless it is told not to.
    pub(super) reads_trailers: bool,
}

impl Server {
    pub(super) fn of(server: &TestServer) -> Self {
        Self::at(server.endpoint(), server.access_key(), server.secret_key())
    }

    /// A server with the bucket of dev-store.
    pub(super) fn at(endpoint: &str, access_key: &str, secret_key: &str) -> Self {
        Self {
            endpoint: Some(endpoint.to_owned()),
            region: "us-east-1".to_owned(),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            session_token: None,
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            reads_trailers: true,
        }
    }

    /// A client without retries, so that a check sees each answer.
    pub(super) fn client(&self) -> Client {
        self.client_with(&self.access_key, &self.secret_key)
    }

    pub(super) fn client_with(&self, access_key: &str, secret_key: &str) -> Client {
        let token = self.session_token.clone();
        let http = aws_smithy_http_client::Builder::new();
        let is_plain = self
            .endpoint
            .as_ref()
            .is_some_and(|at| at.starts_with("http://"));
        let http = if is_plain {
            http.build_http()
        } else {
            let mode = tls::rustls_provider::CryptoMode::Ring;
            http.tls_provider(tls::Provider::Rustls(mode)).build_https()
        };
        let mut config = aws_sdk_s3::Config::builder()
            .credentials_provider(Credentials::new(
                access_key, secret_key, token, None, "test",
            ))
            .region(Region::new(self.region.clone()))
            .retry_config(RetryConfig::disabled())
            .http_client(http);
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        if !self.reads_trailers {
            let when_required = RequestChecksumCalculation::WhenRequired;
            config = config.request_checksum_calculation(when_required);
        }
        Client::from_conf(config.build())
    }
}

/// A server as one check sees it: its keys are its own.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) server: Server,
    pub(super) client: Client,
    pub(super) bucket: String,
    prefix: String,
}

impl Target {
    pub(super) fn new(server: &Server, number: u8) -> Self {
        let unique = rand::random::<u32>();
        Self {
            server: server.clone(),
            client: server.client(),
            bucket: server.bucket.clone(),
            prefix: format!("{}check-{number:02}-{unique:08x}/", server.prefix),
        }
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A key of so many bytes.
    pub(super) fn long_key(&self, length: usize) -> String {
        self.key(&"k".repeat(length - self.prefix.len()))
    }

    /// Stores an object under a whole key and gives its ETag.
    pub(super) async fn put(&self, key: &str, body: &[u8]) -> String {
        let request = self.client.put_object().bucket(&self.bucket).key(key);
        let sent = request.body(ByteStream::from(body.to_vec())).send().await;
        sent.unwrap().e_tag.unwrap()
    }

    pub(super) async fn get(&self, key: &str) -> Vec<u8> {
        let request = self.client.get_object().bucket(&self.bucket).key(key);
        let output = request.send().await.unwrap();
        output.body.collect().await.unwrap().to_vec()
    }

    /// Whether there is such an object.
    pub(super) async fn has(&self, key: &str) -> bool {
        let request = self.client.head_object().bucket(&self.bucket).key(key);
        request.send().await.is_ok()
    }

    /// Keys of the check, as a listing shows them, without the prefix.
    pub(super) async fn names(&self) -> Vec<String> {
        let request = self.client.list_objects_v2().bucket(&self.bucket);
        let listed = request.prefix(&self.prefix).send().await.unwrap();
        let keys = listed.contents().iter().filter_map(|object| object.key());
        keys.map(|key| key[self.prefix.len()..].to_owned())
            .collect()
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) async fn begin(&self, key: &str) -> Upload<'_> {
        let request = self.client.create_multipart_upload();
        let begun = request.bucket(&self.bucket).key(key).send().await.unwrap();
        Upload {
            target: self,
            key: key.to_owned(),
            id: begun.upload_id.unwrap(),
        }
    }
}

/// A multipart upload under way.
pub(super) struct Upload<'t> {
    pub(super) target: &'t Target,
    pub(super) key: String,
    pub(super) id: String,
}

impl Upload<'_> {
    pub(super) async fn part(&self, number: i32, body: &[u8]) -> CompletedPart {
        let request = self.target.client.upload_part().bucket(&self.target.bucket);
        let request = request
            .key(&self.key)
            .upload_id(&self.id)
            .part_number(number);
        let sent = request.body(body.to_vec().into()).send().await.unwrap();
        CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build()
    }

    pub(super) fn complete(
        &self,
        parts: &[CompletedPart],
    ) -> aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder
    {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec()));
        let request = self.target.client.complete_multipart_upload();
        let request = request.bucket(&self.target.bucket).key(&self.key);
        request.upload_id(&self.id).multipart_upload(parts.build())
    }
}

/// The refusal of a request by the server; no answer at all is none.
pub(super) fn refused<T: Debug, E: ProvideErrorMetadata + Debug>(
    result: Result<T, SdkError<E>>,
) -> (u16, String) {
    let (status, code) = refusal(result);
    assert!((400..500).contains(&status), "{status} {code}");
    (status, code)
}

/// The CRC64NVME of some bytes as headers spell it.
pub(super) fn crc64nvme(bytes: &[u8]) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    BASE64_STANDARD.encode(crc.to_be_bytes())
}

/// A request without any SDK: its status and the body of the answer. Only over plain HTTP.
pub(super) fn plain(method: &str, url: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let rest = url.strip_prefix("http://").expect("a plain HTTP endpoint");
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let length = body.len();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}
