//! Single objects: bytes, metadata, ranges, copies, deletion, and what survives a restart.

use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Bucket, Delete, Object, ObjectIdentifier};
use dev_store::BUCKET;
use std::time::Duration;

use crate::support::{INLINE, Store, client, pattern, refusal};

#[tokio::test]
async fn an_object_keeps_bytes_type_and_metadata_over_a_restart() {
    let mut store = Store::new();
    let body = pattern(3_000_000, 1);
    let request = store
        .client
        .put_object()
        .bucket(BUCKET)
        .key("model.bin")
        .content_type("application/x-model");
    request
        .metadata("origin", "test")
        .body(ByteStream::from(body.clone()))
        .send()
        .await
        .unwrap();
    store.put("empty", b"").await;
    store.restart(|_| {});
    assert_eq!(store.server().report().objects, 2);
    let output = store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("model.bin")
        .send()
        .await
        .unwrap();
    assert_eq!(output.content_type.as_deref(), Some("application/x-model"));
    assert_eq!(output.metadata.unwrap()["origin"], "test");
    assert_eq!(output.content_length, Some(3_000_000));
    assert_eq!(output.body.collect().await.unwrap().to_vec(), body);
    assert_eq!(store.get("empty").await.unwrap(), b"");
}

#[tokio::test]
async fn a_file_streamed_in_chunks_with_a_trailer_arrives_whole() {
    let store = Store::new();
    let body = pattern(2_500_001, 2);
    let file = store.root.path().join("source");
    std::fs::write(&file, &body).unwrap();
    let stream = ByteStream::from_path(&file).await.unwrap();
    store
        .client
        .put_object()
        .bucket(BUCKET)
        .key("streamed")
        .body(stream)
        .send()
        .await
        .unwrap();
    assert_eq!(store.get("streamed").await.unwrap(), body);
}

#[tokio::test]
async fn ranges_of_the_middle_the_end_and_the_rest() {
    let store = Store::new();
    store.put("digits", b"0123456789").await;
    for (range, bytes, header) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=5-99", "56789", "bytes 5-9/10"),
    ] {
        let output = store
            .client
            .get_object()
            .bucket(BUCKET)
            .key("digits")
            .range(range)
            .send()
            .await
            .unwrap();
        assert_eq!(output.content_range.as_deref(), Some(header));
        assert_eq!(
            output.body.collect().await.unwrap().to_vec(),
            bytes.as_bytes()
        );
    }
    let behind = store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("digits")
        .range("bytes=10-")
        .send()
        .await;
    assert_eq!(refusal(behind).0, 416);
}

#[tokio::test]
async fn a_copy_outlives_its_source_and_a_restart() {
    for (size, segments) in [(0, 0), (INLINE, 0), (INLINE + 1, 1)] {
        copy_and_lose_the_source(&pattern(size, 1), segments).await;
    }
}

async fn copy_and_lose_the_source(body: &[u8], segments: usize) {
    let mut store = Store::new();
    store.put("source", body).await;
    let copy = store
        .client
        .copy_object()
        .bucket(BUCKET)
        .key("copy")
        .copy_source(format!("{BUCKET}/source"));
    copy.send().await.unwrap();
    assert_eq!(store.segments(), segments);
    store
        .client
        .delete_object()
        .bucket(BUCKET)
        .key("source")
        .send()
        .await
        .unwrap();
    assert_eq!(
        refusal(store.get("source").await),
        (404, "NoSuchKey".to_owned())
    );
    store.restart(|_| {});
    assert_eq!(store.get("copy").await.unwrap(), body);
    store
        .client
        .delete_object()
        .bucket(BUCKET)
        .key("copy")
        .send()
        .await
        .unwrap();
    assert_eq!((store.records(), store.segments()), (0, 0));
}

#[tokio::test]
async fn a_batch_of_deletions_names_each_and_absent_ones_are_fine() {
    let store = Store::new();
    for key in ["a", "b", "c"] {
        store.put(key, key.as_bytes()).await;
    }
    let named =
        ["a", "b", "never"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder()
        .set_objects(Some(named.to_vec()))
        .build()
        .unwrap();
    let output = store
        .client
        .delete_objects()
        .bucket(BUCKET)
        .delete(delete)
        .send()
        .await
        .unwrap();
    assert_eq!(output.deleted().len(), 3);
    let left = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .send()
        .await
        .unwrap();
    assert_eq!(
        left.contents()
            .iter()
            .filter_map(Object::key)
            .collect::<Vec<_>>(),
        ["c"]
    );
}

#[tokio::test]
async fn readers_during_overwrites_see_one_version_each() {
    let store = Store::new();
    store.put("live", &pattern(4 << 20, 0)).await;
    let writer = async {
        for seed in 1..=6 {
            store.put("live", &pattern(4 << 20, seed)).await;
        }
    };
    let reader = async {
        for _ in 0..12 {
            let bytes = store.get("live").await.unwrap();
            assert_eq!(bytes, pattern(4 << 20, bytes[0]));
        }
    };
    tokio::join!(writer, reader);
    assert_eq!(
        store.segments(),
        1,
        "replaced data is removed once its readers end"
    );
}

/// A small object's file goes with each write: whoever is about to read it gets all of one version nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_small_object_see_one_version_while_it_is_replaced_and_deleted() {
    let store = Store::new();
    let writer = async {
        for seed in 1..=120 {
            store.put("live", &pattern(20_000, seed)).await;
            store.put("live", &pattern(INLINE + 1, seed)).await;
            let delete = store.client.delete_object().bucket(BUCKET).key("live");
            delete.send().await.unwrap();
        }
    };
    let reader = || async {
        let mut found = 0;
        for _ in 0..400 {
            match store.get("live").await {
                Ok(bytes) => {
                    assert_eq!(bytes, pattern(bytes.len(), bytes[0]));
                    found += 1;
                }
                absent => assert_eq!(refusal(absent).0, 404),
            }
        }
        found
    };
    let ((), first, second) = tokio::join!(writer, reader(), reader());
    assert!(first + second > 0, "nothing was read");
    assert_eq!((store.records(), store.segments()), (0, 0));
}

#[tokio::test]
async fn a_small_object_is_its_only_part() {
    let store = Store::new();
    store.put("small", b"0123456789").await;
    let part = |number| {
        let request = store.client.get_object().bucket(BUCKET).key("small");
        request.part_number(number).send()
    };
    let first = part(1).await.unwrap();
    assert_eq!(first.parts_count(), Some(1));
    assert_eq!(first.body.collect().await.unwrap().to_vec(), b"0123456789");
    assert_eq!(refusal(part(2).await).0, 416);
}

#[tokio::test]
async fn only_the_keys_of_the_root_open_it() {
    let store = Store::new();
    store.put("x", b"x").await;
    let server = store.server();
    let wrong_secret = client(server.endpoint(), server.access_key(), "wrong");
    let refused = wrong_secret
        .get_object()
        .bucket(BUCKET)
        .key("x")
        .send()
        .await;
    assert_eq!(refusal(refused), (403, "SignatureDoesNotMatch".to_owned()));
    let unknown_key = client(server.endpoint(), "NOBODY", server.secret_key());
    assert_eq!(
        refusal(
            unknown_key
                .get_object()
                .bucket(BUCKET)
                .key("x")
                .send()
                .await
        )
        .0,
        403
    );

    let hour = PresigningConfig::expires_in(Duration::from_hours(1)).unwrap();
    let presigned = store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("x")
        .presigned(hour)
        .await
        .unwrap();
    assert_eq!(plain_get(presigned.uri()).0, 200);
    assert_eq!(plain_get(&presigned.uri().replace("/x?", "/y?")).0, 403);
    let anonymous = format!("{}/{BUCKET}/x", server.endpoint());
    let (status, body) = plain_get(&anonymous);
    assert_eq!(status, 403);
    assert!(body.contains("AccessDenied"), "{body}");
}

/// A GET without any SDK, closed by the server.
fn plain_get(url: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn missing_buckets_and_what_is_not_implemented_say_so() {
    let store = Store::new();
    let request = store
        .client
        .put_object()
        .bucket("nowhere")
        .key("x")
        .body(ByteStream::from_static(b"x"));
    assert_eq!(
        refusal(request.send().await),
        (404, "NoSuchBucket".to_owned())
    );
    assert_eq!(
        refusal(store.client.head_bucket().bucket("nowhere").send().await).0,
        404
    );
    assert_eq!(
        refusal(
            store
                .client
                .get_bucket_versioning()
                .bucket(BUCKET)
                .send()
                .await
        )
        .0,
        501
    );
    assert_eq!(
        refusal(
            store
                .client
                .get_object_tagging()
                .bucket(BUCKET)
                .key("x")
                .send()
                .await
        )
        .0,
        501
    );

    store
        .client
        .create_bucket()
        .bucket("second")
        .send()
        .await
        .unwrap();
    let twice = store.client.create_bucket().bucket("second").send().await;
    assert_eq!(refusal(twice), (409, "BucketAlreadyOwnedByYou".to_owned()));
    let buckets = store.client.list_buckets().send().await.unwrap();
    assert_eq!(
        buckets
            .buckets()
            .iter()
            .filter_map(Bucket::name)
            .collect::<Vec<_>>(),
        ["second", BUCKET]
    );
}
