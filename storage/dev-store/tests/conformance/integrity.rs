//! Digests on the way in, and damage found on disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};
use dev_store::BUCKET;

use crate::support::{INLINE, Store, pattern, refusal};

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
    for (key, size) in [("small", 3), ("large", INLINE + 1)] {
        store.put(key, &pattern(size, 1)).await;
        let put = || {
            store
                .client
                .put_object()
                .bucket(BUCKET)
                .key(key)
                .body(pattern(size, 2).into())
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
        assert_eq!(store.get(key).await.unwrap(), pattern(size, 1));
    }
    assert_eq!(
        (store.records(), store.segments()),
        (2, 1),
        "refused bodies leave no data behind"
    );
}

#[tokio::test]
async fn a_damaged_record_is_skipped_and_reported_and_its_data_kept() {
    let mut store = Store::new();
    let good = pattern(INLINE + 1, 1);
    store.put("good", &good).await;
    store.put("bad", &pattern(INLINE + 2, 2)).await;
    store.restart(|root| {
        // sha256 of "bad" names its record.
        let record = only_file_containing(&root.join("buckets").join(BUCKET), "\"key\":\"bad\"");
        let text = fs::read_to_string(&record)
            .unwrap()
            .replace("\"size\":65538", "\"size\":65539");
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
    assert_eq!(store.get("good").await.unwrap(), good);
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
    store.put("cut", &pattern(100_000, 4)).await;
    let segments = fs::read_dir(store.root.path().join("segments")).unwrap();
    let path = segments.map(|entry| entry.unwrap().path()).next().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(99_999)
        .unwrap();
    assert_eq!(
        refusal(store.get("cut").await),
        (500, "InternalError".to_owned())
    );
}

#[tokio::test]
async fn a_small_object_cut_short_is_refused_on_read_reported_at_start_and_healed_by_a_write() {
    let mut store = Store::new();
    store.put("cut", &pattern(10_000, 4)).await;
    let bucket = store.root.path().join("buckets").join(BUCKET);
    let path = fs::read_dir(bucket).unwrap().next().unwrap().unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path.path())
        .unwrap();
    file.set_len(path.metadata().unwrap().len() - 1).unwrap();
    assert_eq!(
        refusal(store.get("cut").await),
        (500, "InternalError".to_owned())
    );
    store.restart(|_| {});
    let report = store.server().report();
    let reasons: Vec<&str> = report
        .damaged
        .iter()
        .map(|damage| damage.reason.as_str())
        .collect();
    assert_eq!(reasons, ["9999 bytes lie behind the record, it says 10000"]);
    assert_eq!(refusal(store.get("cut").await).0, 404);
    store.put("cut", b"healed").await;
    store.restart(|_| {});
    assert!(store.server().report().damaged.is_empty());
    assert_eq!(store.get("cut").await.unwrap(), b"healed");
}

/// Written by dev-store as of before it kept small bodies behind their record.
const OLD_RECORD: &str = r#"{"crc64nvme":"ecab297bb69a1756","record":{"key":"a/small one","size":18,"etag":"23e4f080f24cc5379c6406dbc5afe1fc-1","modified":"2026-11-28T07:27:20.242229404Z","headers":{"content_type":"text/plain","content_encoding":null,"content_disposition":null,"content_language":null,"cache_control":null,"metadata":{"origin":"old"}},"checksums":{"composite":false,"sums":{"crc64nvme":"Y1GtgOw20LQ=","sha256":"ifQQoMDcwgSTxaTqKBlvcormJySOpH3lJdpqLXToGmQ="}},"segments":[{"name":"79cef7185131aedecaf3ace679341c17","size":18}]}}"#;

#[tokio::test]
async fn what_an_older_server_wrote_is_read_copied_and_replaced() {
    let mut store = Store::new();
    store.restart(|root| {
        let name = "d2a53825229cf5b4fa36eab50d9687594b651ca91681bc9f7801210ceb852089.json";
        let record = root.join("buckets").join(BUCKET).join(name);
        fs::write(record, OLD_RECORD).unwrap();
        let segment = root.join("segments/79cef7185131aedecaf3ace679341c17");
        fs::write(segment, b"of an older server").unwrap();
    });
    let report = store.server().report();
    assert_eq!((report.objects, report.removed_segments), (1, 0));
    assert!(report.damaged.is_empty(), "{report:?}");
    let request = store.client.get_object().bucket(BUCKET).key("a/small one");
    let output = request
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .unwrap();
    assert_eq!(
        output.e_tag(),
        Some("\"23e4f080f24cc5379c6406dbc5afe1fc-1\"")
    );
    assert_eq!(output.content_type(), Some("text/plain"));
    assert_eq!(output.metadata().unwrap()["origin"], "old");
    assert_eq!(output.checksum_crc64_nvme(), Some("Y1GtgOw20LQ="));
    let bytes = output.body.collect().await.unwrap().to_vec();
    assert_eq!(bytes, b"of an older server");
    let copy = store.client.copy_object().bucket(BUCKET).key("copy");
    let source = format!("{BUCKET}/a/small%20one");
    copy.copy_source(source).send().await.unwrap();
    store.put("a/small one", b"new").await;
    store.restart(|_| {});
    assert_eq!(store.get("copy").await.unwrap(), b"of an older server");
    assert_eq!(store.get("a/small one").await.unwrap(), b"new");
    assert_eq!(store.segments(), 1);
}

#[tokio::test]
async fn orphans_and_temporaries_of_a_killed_server_are_removed_at_start() {
    let mut store = Store::new();
    store.put("x", &pattern(INLINE + 1, 1)).await;
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
