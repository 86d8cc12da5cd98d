//! Listings: order, pages, folders, and keys of every kind.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{CommonPrefix, EncodingType, Object};
use dev_store::BUCKET;

use crate::support::Store;

#[tokio::test]
async fn pages_come_in_order_without_gaps_and_with_etags() {
    let store = Store::new();
    let mut keys: Vec<String> = (0..53)
        .map(|index| format!("run/{:03}", (index * 29) % 53))
        .collect();
    for key in &keys {
        store.put(key, b"x").await;
    }
    store.put("other", b"x").await;
    keys.sort();
    let pages = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .prefix("run/")
        .max_keys(7)
        .into_paginator()
        .send();
    let pages = pages.collect::<Result<Vec<_>, _>>().await.unwrap();
    assert_eq!(pages.len(), 8);
    let listed: Vec<&str> = pages
        .iter()
        .flat_map(ListObjectsV2Output::contents)
        .filter_map(Object::key)
        .collect();
    assert_eq!(listed, keys);
    let head = store
        .client
        .head_object()
        .bucket(BUCKET)
        .key(listed[9])
        .send()
        .await
        .unwrap();
    assert_eq!(pages[1].contents()[2].e_tag(), head.e_tag());
    assert_eq!(pages[1].contents()[2].size(), Some(1));
}

#[tokio::test]
async fn a_delimiter_shows_one_level_and_start_after_skips() {
    let store = Store::new();
    for key in ["n", "n/x", "n/y/z", "m/1", "o"] {
        store.put(key, key.as_bytes()).await;
    }
    let level = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .delimiter("/")
        .send()
        .await
        .unwrap();
    assert_eq!(
        level
            .contents()
            .iter()
            .filter_map(Object::key)
            .collect::<Vec<_>>(),
        ["n", "o"]
    );
    let folders: Vec<_> = level
        .common_prefixes()
        .iter()
        .filter_map(CommonPrefix::prefix)
        .collect();
    assert_eq!(folders, ["m/", "n/"]);
    let after = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .start_after("n")
        .send()
        .await
        .unwrap();
    let keys: Vec<_> = after.contents().iter().filter_map(Object::key).collect();
    assert_eq!(keys, ["n/x", "n/y/z", "o"]);
    assert_eq!(store.get("n").await.unwrap(), b"n");
    assert_eq!(store.get("n/x").await.unwrap(), b"n/x");
}

#[tokio::test]
async fn odd_and_long_keys_are_stored_under_exactly_their_name() {
    let mut store = Store::new();
    let mut keys: Vec<String> = [
        "with space",
        "plus+and%25",
        "ü/ß/日本",
        "a//b/",
        "&<>\"'",
        "dots/./../x",
        "semi;colon=?#",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.extend([200, 600, 1024].map(|length| "k".repeat(length)));
    for key in &keys {
        store.put(key, key.as_bytes()).await;
    }
    store.restart(|_| {});
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap(), key.as_bytes(), "{key}");
    }
    keys.sort();
    let listed = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .send()
        .await
        .unwrap();
    assert_eq!(
        listed
            .contents()
            .iter()
            .filter_map(Object::key)
            .collect::<Vec<_>>(),
        keys
    );

    let encoded = store
        .client
        .list_objects_v2()
        .bucket(BUCKET)
        .prefix("with ")
        .encoding_type(EncodingType::Url);
    assert_eq!(
        encoded.send().await.unwrap().contents()[0].key(),
        Some("with%20space")
    );
}
