//! Checks of objects, their keys and listings.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, Object, ObjectIdentifier};

use super::target::Target;
use crate::support::pattern;

pub(super) async fn c01_bytes_metadata_and_type(target: Target) {
    let (key, body) = (target.key("model.bin"), pattern(300_000, 1));
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    let request = request
        .content_type("application/x-model")
        .metadata("origin", "check");
    request
        .body(ByteStream::from(body.clone()))
        .send()
        .await
        .unwrap();
    let request = target.client.get_object().bucket(&target.bucket).key(&key);
    let output = request.send().await.unwrap();
    assert_eq!(output.content_type.as_deref(), Some("application/x-model"));
    assert_eq!(output.metadata.unwrap()["origin"], "check");
    assert!(output.body.collect().await.unwrap().to_vec() == body);
    target.put(&key, b"").await;
    assert!(target.get(&key).await.is_empty());
}

pub(super) async fn c02_streamed_body(target: Target) {
    let (key, body) = (target.key("streamed"), pattern(2_500_001, 2));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("source");
    std::fs::write(&file, &body).unwrap();
    let stream = ByteStream::from_path(&file).await.unwrap();
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    request.body(stream).send().await.unwrap();
    assert!(target.get(&key).await == body);
}

pub(super) async fn c24_listing_pages_in_order(target: Target) {
    let mut names: Vec<_> = (0..25)
        .map(|index| format!("{:02}", index * 7 % 25))
        .collect();
    for name in &names {
        target.put(&target.key(name), b"x").await;
    }
    names.sort();
    let request = target.client.list_objects_v2().bucket(&target.bucket);
    let pages = request
        .prefix(target.prefix())
        .max_keys(7)
        .into_paginator()
        .send();
    let pages = pages.collect::<Result<Vec<_>, _>>().await.unwrap();
    assert_eq!(pages.len(), 4);
    let objects = pages.iter().flat_map(ListObjectsV2Output::contents);
    let listed: Vec<_> = objects.filter_map(Object::key).map(str::to_owned).collect();
    let expected: Vec<_> = names.iter().map(|name| target.key(name)).collect();
    assert_eq!(listed, expected);
}

pub(super) async fn c25_listing_has_etags(target: Target) {
    let etag = target.put(&target.key("one"), b"bytes").await;
    let request = target.client.list_objects_v2().bucket(&target.bucket);
    let listed = request.prefix(target.prefix()).send().await.unwrap();
    assert_eq!(listed.contents()[0].e_tag(), Some(etag.as_str()));
    assert_eq!(listed.contents()[0].size(), Some(5));
}

pub(super) async fn c26_odd_keys(target: Target) {
    let mut names = [
        "with space",
        "plus+and%25",
        "ü/ß/日本",
        "a//b/",
        "&<>\"'",
        "semi;colon=?#",
    ];
    for name in names {
        target.put(&target.key(name), name.as_bytes()).await;
    }
    for name in names {
        assert_eq!(
            target.get(&target.key(name)).await,
            name.as_bytes(),
            "{name}"
        );
    }
    names.sort_unstable();
    assert_eq!(target.names().await, names);
}

pub(super) async fn c27_long_keys(target: Target) {
    for length in [200, 600, 1024] {
        let key = target.long_key(length);
        target.put(&key, &pattern(length, 0)).await;
        assert_eq!(target.get(&key).await, pattern(length, 0));
    }
}

pub(super) async fn c28_key_beside_folder(target: Target) {
    for name in ["n", "n/x"] {
        target.put(&target.key(name), name.as_bytes()).await;
    }
    for name in ["n", "n/x"] {
        assert_eq!(target.get(&target.key(name)).await, name.as_bytes());
    }
    assert_eq!(target.names().await, ["n", "n/x"]);
}

pub(super) async fn c41_copy_and_batch_delete(target: Target) {
    let keys = ["a", "b", "copy"].map(|name| target.key(name));
    for key in &keys[..2] {
        target.put(key, key.as_bytes()).await;
    }
    let source = format!("{}/{}", target.bucket, keys[0]);
    let copy = target
        .client
        .copy_object()
        .bucket(&target.bucket)
        .key(&keys[2]);
    copy.copy_source(source).send().await.unwrap();
    assert_eq!(target.get(&keys[2]).await, keys[0].as_bytes());
    let absent = target.key("never");
    let named = [&keys[0], &keys[1], &absent]
        .map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(named.to_vec())).build();
    let request = target.client.delete_objects().bucket(&target.bucket);
    let deleted = request.delete(delete.unwrap()).send().await.unwrap();
    assert!(deleted.errors().is_empty(), "{:?}", deleted.errors());
    assert_eq!(target.names().await, ["copy"]);
}
