//! Checks of conditional writes, alone and in races: what commits, names and claims are built on.

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::put_object::{PutObjectError, PutObjectOutput};
use futures::future::join_all;

use super::target::{Target, refused};
use crate::support::{pattern, refusal};

const RACERS: u8 = 24;
const COUNTERS: usize = 16;
const INCREMENTS: usize = 20;
const OTHER: &str = "\"0123456789abcdef0123456789abcdef\"";

type Written = Result<PutObjectOutput, SdkError<PutObjectError>>;

async fn create(target: &Target, key: &str, body: Vec<u8>) -> Written {
    let request = target.client.put_object().bucket(&target.bucket).key(key);
    request.if_none_match("*").body(body.into()).send().await
}

async fn swap(target: &Target, key: &str, etag: &str, body: Vec<u8>) -> Written {
    let request = target.client.put_object().bucket(&target.bucket).key(key);
    request.if_match(etag).body(body.into()).send().await
}

pub(super) async fn c29_create_only(target: Target) {
    let key = target.key("once");
    create(&target, &key, b"first".to_vec()).await.unwrap();
    assert_eq!(
        refused(create(&target, &key, b"second".to_vec()).await).0,
        412
    );
    assert_eq!(target.get(&key).await, b"first");
}

pub(super) async fn c30_race_of_small_writers(target: Target) {
    for round in 0..10 {
        race(&target, &target.key(&round.to_string()), 16).await;
    }
}

pub(super) async fn c31_race_of_large_writers(target: Target) {
    for round in 0..3 {
        race(&target, &target.key(&round.to_string()), 2 << 20).await;
    }
}

/// Of many creators exactly one wins, and its bytes stay.
async fn race(target: &Target, key: &str, size: usize) {
    let attempts = (0..RACERS).map(|writer| create(target, key, pattern(size, writer)));
    let results = join_all(attempts).await;
    let winners: Vec<_> = (0..RACERS)
        .zip(&results)
        .filter(|(_, result)| result.is_ok())
        .collect();
    assert_eq!(winners.len(), 1, "winners of {key}");
    assert!(target.get(key).await == pattern(size, winners[0].0));
    for lost in results.into_iter().filter(Result::is_err) {
        // A store may also say that it saw the race: then the writer tries again.
        assert!(matches!(refused(lost).0, 409 | 412));
    }
}

pub(super) async fn c32_put_if_match(target: Target) {
    let key = target.key("page");
    assert_eq!(
        refused(swap(&target, &key, OTHER, b"0".to_vec()).await).0,
        404
    );
    let etag = target.put(&key, b"1").await;
    assert_eq!(
        refused(swap(&target, &key, OTHER, b"2".to_vec()).await).0,
        412
    );
    swap(&target, &key, &etag, b"3".to_vec()).await.unwrap();
    assert_eq!(target.get(&key).await, b"3");
}

pub(super) async fn c33_counter(target: Target) {
    let key = target.key("counter");
    target.put(&key, b"0").await;
    let counters = (0..COUNTERS).map(|_| async {
        for _ in 0..INCREMENTS {
            while !increment(&target, &key).await {}
        }
    });
    join_all(counters).await;
    let total = (COUNTERS * INCREMENTS).to_string();
    assert_eq!(target.get(&key).await, total.as_bytes());
}

/// Tries to add one; false when another was faster.
async fn increment(target: &Target, key: &str) -> bool {
    let request = target.client.get_object().bucket(&target.bucket).key(key);
    let read = request.send().await.unwrap();
    let etag = read.e_tag.clone().unwrap();
    let text = String::from_utf8(read.body.collect().await.unwrap().to_vec()).unwrap();
    let next = (text.parse::<usize>().unwrap() + 1).to_string();
    match swap(target, key, &etag, next.into_bytes()).await {
        Ok(_) => true,
        lost => {
            assert!(matches!(refusal(lost).0, 409 | 412));
            false
        }
    }
}

pub(super) async fn c34_conditional_complete(target: Target) {
    let key = target.key("taken");
    target.put(&key, b"first").await;
    let upload = target.begin(&key).await;
    let part = [upload.part(1, b"second").await];
    let request = upload.complete(&part).if_none_match("*");
    assert_eq!(refused(request.send().await).0, 412);
    assert_eq!(target.get(&key).await, b"first");
}

pub(super) async fn c35_conditional_delete(target: Target) {
    let key = target.key("kept");
    target.put(&key, b"bytes").await;
    let request = target
        .client
        .delete_object()
        .bucket(&target.bucket)
        .key(&key);
    assert_eq!(refused(request.if_match(OTHER).send().await).0, 412);
    assert_eq!(target.get(&key).await, b"bytes");
}
