//! The checks on servers that others made: moto, where `WMTP_MOTO` names its program, Ceph RGW, where its programs are
//! installed, and any server that `WMTP_CHECK_BUCKET` and the AWS variables name.

use dev_store::BUCKET;
use foreign_servers::{Moto, Rgw};

use super::hold_against_the_table;
use super::target::Server;

async fn create_bucket(server: &Server) {
    let created = server.client().create_bucket().bucket(BUCKET).send().await;
    created.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs moto, which `make test-full` installs"]
async fn moto_does_what_the_table_says() {
    let Some(moto) = Moto::start_named() else {
        return;
    };
    let server = Server::at(moto.endpoint(), moto.key(), moto.key());
    create_bucket(&server).await;
    hold_against_the_table("moto", &server, 1..=44).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs Ceph's radosgw, ceph-mon and ceph-osd, and half a minute to start them"]
async fn rgw_does_what_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let Some(rgw) = Rgw::start(folder.path(), &[]) else {
        return;
    };
    let mut server = Server::at(rgw.endpoint(), rgw.access_key(), rgw.secret_key());
    server.reads_trailers = false;
    create_bucket(&server).await;
    hold_against_the_table("Ceph RGW", &server, 1..=44).await;
}

/// Everything but 43 and 44, which make buckets of their own and are not needed, has to hold.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs a bucket and its credentials"]
async fn the_named_bucket_does_what_dev_store_does() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(named) = variable("WMTP_CHECK_BUCKET") else {
        super::tell("SKIPPED: a bucket of your own; WMTP_CHECK_BUCKET does not name one");
        return;
    };
    let (bucket, prefix) = named.split_once('/').unwrap_or((&named, ""));
    let required = |name: &str| variable(name).unwrap_or_else(|| panic!("{name} is not set"));
    let server = Server {
        endpoint: variable("AWS_ENDPOINT_URL_S3"),
        region: variable("AWS_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
        access_key: required("AWS_ACCESS_KEY_ID"),
        secret_key: required("AWS_SECRET_ACCESS_KEY"),
        session_token: variable("AWS_SESSION_TOKEN"),
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        reads_trailers: variable("AWS_REQUEST_CHECKSUM_CALCULATION").is_none(),
    };
    hold_against_the_table("dev-store", &server, 1..=42).await;
}
