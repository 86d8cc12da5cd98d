//! Digests on the way in, and damage found on disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};
use dev_store::BUCKET;

use crate::support::{Store, pattern, refusal};

/// SHA-256 of nothing, in base64.
const SHA256_OF_NOTHING: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

#[tokio::test]
async fn every_checksum_algorithm_is_verified_stored_and_returned() {
    let store = Store::new();
    let mut crc64 = BTreeSet::new();
    for algorithm in ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"] {
        let name = ChecksumAlgorithm::from(algorithm);
        let request = store
            .client
            .put_object()
            .bucket(BUCKET)
            .key(algorithm)
            .checksum_algorithm(name);
        request
            .body(ByteStream::from(pattern(100_000, 3)))
            .send()
            .await
            .unwrap();
        let head = store
            .client
            .head_object()
            .bucket(BUCKET)
            .key(algorithm)
            .checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.unwrap();
        let returned = [
            &head.checksum_crc32,
            &head.checksum_crc32_c,
            &head.checksum_sha1,
            &head.checksum_sha256,
        ];
        let of_algorithm = returned.iter().filter(|value| value.is_some()).count();
        assert_eq!(
            of_algorithm,
            usize::from(algorithm != "CRC64NVME"),
            "{algorithm}"
        );
        crc64.insert(head.checksum_crc64_nvme);
        assert_eq!(store.get(algorithm).await.unwrap(), pattern(100_000, 3));
    }
    assert_eq!(
        crc64.len(),
        1,
        "the same bytes have the same CRC64NVME: {crc64:?}"
    );
}

#[tokio::test]
async fn a_body_with_a_wrong_digest_is_refused_and_the_old_object_stays() {
    let store = Store::new();
    store.put("kept", b"old").await;
    let put = || {
        store
            .client
            .put_object()
            .bucket(BUCKET)
            .key("kept")
            .body(ByteStream::from_static(b"new"))
    };
    assert_eq!(
        refusal(put().checksum_sha256(SHA256_OF_NOTHING).send().await),
        (400, "BadDigest".to_owned())
    );
    assert_eq!(
        refusal(put().checksum_crc32("AAAAAA==").send().await),
        (400, "BadDigest".to_owned())
    );
    assert_eq!(
        refusal(put().content_md5("1B2M2Y8AsgTpgAmY7PhCfg==").send().await),
        (400, "BadDigest".to_owned())
    );
    assert_eq!(store.get("kept").await.unwrap(), b"old");
    assert_eq!(store.segments(), 1, "refused bodies leave no data behind");
}

#[tokio::test]
async fn a_damaged_record_is_skipped_and_reported_and_its_data_kept() {
    let mut store = Store::new();
    store.put("good", b"good").await;
    store.put("bad", b"bad").await;
    store.restart(|root| {
        // sha256 of "bad" names its record.
        let record = only_file_containing(&root.join("buckets").join(BUCKET), "\"key\":\"bad\"");
        let text = fs::read_to_string(&record)
            .unwrap()
            .replace("\"size\":3", "\"size\":4");
        fs::write(record, text).unwrap();
    });
    let report = store.server().report();
    assert_eq!(
        (
            report.objects,
            report.damaged.len(),
            report.removed_segments
        ),
        (1, 1, 0)
    );
    assert_eq!(store.get("good").await.unwrap(), b"good");
    assert_eq!(refusal(store.get("bad").await).0, 404);
    assert_eq!(
        store.segments(),
        2,
        "data that a damaged record may name is not an orphan"
    );
    store.put("bad", b"healed").await;
    store.restart(|_| {});
    assert_eq!(
        (
            store.server().report().damaged.len(),
            store.server().report().removed_segments
        ),
        (0, 1)
    );
    assert_eq!(store.get("bad").await.unwrap(), b"healed");
}

#[tokio::test]
async fn a_segment_shorter_than_its_record_is_refused_on_read() {
    let store = Store::new();
    store.put("cut", &pattern(10_000, 4)).await;
    let segments = fs::read_dir(store.root.path().join("segments")).unwrap();
    let path = segments.map(|entry| entry.unwrap().path()).next().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(9_999)
        .unwrap();
    assert_eq!(
        refusal(store.get("cut").await),
        (500, "InternalError".to_owned())
    );
}

#[tokio::test]
async fn orphans_and_temporaries_of_a_killed_server_are_removed_at_start() {
    let mut store = Store::new();
    store.put("x", b"x").await;
    store.restart(|root| {
        fs::write(
            root.join("segments/00000000000000000000000000000000"),
            b"half a body",
        )
        .unwrap();
        fs::write(
            root.join("buckets").join(BUCKET).join(".tmp-1"),
            b"half a record",
        )
        .unwrap();
        fs::create_dir(root.join("uploads/11111111111111111111111111111111")).unwrap();
    });
    assert_eq!(store.server().report().removed_segments, 1);
    assert_eq!(store.segments(), 1);
    assert_eq!(
        fs::read_dir(store.root.path().join("uploads"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(store.root.path().join("buckets").join(BUCKET))
            .unwrap()
            .count(),
        1
    );
}

fn only_file_containing(folder: &Path, text: &str) -> std::path::PathBuf {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found = files.filter(|path| fs::read_to_string(path).unwrap().contains(text));
    let first = found.next().unwrap();
    assert!(found.next().is_none());
    first
}
