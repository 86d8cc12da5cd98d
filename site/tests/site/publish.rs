//! A folder on its way to a bucket of the embedded S3 server.

use std::path::Path;

use build_site::output::MANIFEST;
use build_site::publish::publish;
use build_site::{Options, Site, Written, pages};
use dev_store::TestServer;
use wmtp_artifacts::Store;

use crate::fixture::World;
use crate::rendered;

async fn bucket(server: &TestServer) -> Store {
    let uri = format!("s3://{}/reports/micropy", dev_store::BUCKET);
    trial::connect(server, &uri).await
}

/// Every file of a folder lies in the bucket, byte for byte.
async fn assert_equal(root: &Path, store: &Store, site: &Site) {
    for (path, _) in site.files() {
        let there = store
            .page(path)
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("{path} was not sent"));
        assert_eq!(
            there.as_ref(),
            std::fs::read(root.join(path)).unwrap(),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_follows_a_folder_and_is_cleaned_last() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("server"));
    let store = bucket(&server).await;
    let out = dir.path().join("site");
    let mut input = World::typical().input(dir.path());
    let site = rendered(&input);
    site.write(&out).unwrap();
    let first = publish(&out, &store, false).await.unwrap();
    assert_eq!(first.changed, site.len(), "{first:?}");
    assert_equal(&out, &store, &site).await;

    let again = publish(&out, &store, false).await.unwrap();
    assert_eq!((again.changed, again.removed), (0, 0), "{again:?}");

    input
        .versions
        .retain(|version| version.row.version_id != "v005");
    input.board.rows.retain(|row| row.version_id != "v005");
    let options = Options {
        snapshot: false,
        ..Options::default()
    };
    let smaller = pages::render(&input, &options).unwrap();
    smaller.write(&out).unwrap();
    let cleaned = publish(&out, &store, false).await.unwrap();
    assert!(cleaned.removed > 0, "{cleaned:?}");
    assert_equal(&out, &store, &smaller).await;
    assert!(store.page("v/v005/index.html").await.unwrap().is_none());
    assert!(
        store
            .page("r/2026-11-21_12-05/v/v005/index.html")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_cut_off_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("server"));
    let store = bucket(&server).await;
    let out = dir.path().join("site");
    let site = rendered(&World::typical().input(dir.path()));
    site.write(&out).unwrap();
    publish(&out, &store, false).await.unwrap();
    // The manifest is sent last: without it nothing counts as sent.
    store.delete_page(MANIFEST).await.unwrap();
    store.delete_page("v/v002/index.html").await.unwrap();
    let mended: Written = publish(&out, &store, false).await.unwrap();
    assert!(mended.changed > 0);
    assert_equal(&out, &store, &site).await;
}
