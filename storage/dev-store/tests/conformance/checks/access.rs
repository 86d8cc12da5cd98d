//! Checks of who may do what, of what is not there, and of what a store need not have.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketVersioningStatus, ExpirationStatus, LifecycleExpiration,
    LifecycleRule, LifecycleRuleFilter, Tag, Tagging, VersioningConfiguration,
};

use super::target::{Target, plain, refused};

fn for_an_hour() -> PresigningConfig {
    PresigningConfig::expires_in(Duration::from_hours(1)).unwrap()
}

async fn presigned_get(target: &Target, key: &str, until: PresigningConfig) -> String {
    let request = target.client.get_object().bucket(&target.bucket).key(key);
    request.presigned(until).await.unwrap().uri().to_owned()
}

pub(super) async fn c36_presigned(target: Target) {
    let key = target.key("shared");
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    let put = request.presigned(for_an_hour()).await.unwrap();
    assert_eq!(plain("PUT", put.uri(), b"bytes").0, 200);
    assert_eq!(target.get(&key).await, b"bytes");
    let get = presigned_get(&target, &key, for_an_hour()).await;
    let (status, body) = plain("GET", &get, b"");
    assert_eq!(status, 200);
    assert!(body.ends_with(b"bytes"));
}

pub(super) async fn c37_presigned_wrongly(target: Target) {
    let keys = ["shared", "secret"].map(|name| target.key(name));
    for key in &keys {
        target.put(key, b"bytes").await;
    }
    let get = presigned_get(&target, &keys[0], for_an_hour()).await;
    let altered = get.replace("/shared?", "/secret?");
    assert!(
        (400..500).contains(&plain("GET", &altered, b"").0),
        "altered"
    );
    let past = PresigningConfig::builder()
        .start_time(SystemTime::now() - Duration::from_hours(2))
        .expires_in(Duration::from_mins(1));
    let expired = presigned_get(&target, &keys[0], past.build().unwrap()).await;
    assert!(
        (400..500).contains(&plain("GET", &expired, b"").0),
        "expired"
    );
}

pub(super) async fn c38_anonymous(target: Target) {
    let key = target.key("private");
    target.put(&key, b"bytes").await;
    let presigned = presigned_get(&target, &key, for_an_hour()).await;
    let url = presigned.split('?').next().unwrap();
    assert!((400..500).contains(&plain("GET", url, b"").0));
    assert!((400..500).contains(&plain("PUT", url, b"other").0));
    assert_eq!(target.get(&key).await, b"bytes");
}

pub(super) async fn c39_wrong_credentials(target: Target) {
    let key = target.key("private");
    target.put(&key, b"bytes").await;
    let server = &target.server;
    for client in [
        server.client_with(&server.access_key, "wrong"),
        server.client_with("NOBODYATALL", &server.secret_key),
    ] {
        let request = client.get_object().bucket(&target.bucket).key(&key);
        refused(request.send().await);
    }
}

pub(super) async fn c40_nothing_there(target: Target) {
    let request = target.client.get_object().bucket(&target.bucket);
    let refusal = refused(request.key(target.key("nothing")).send().await);
    assert_eq!(refusal, (404, "NoSuchKey".to_owned()));
    let request = target.client.put_object().bucket("wmtp-no-such-bucket");
    let request = request.key("x").body(b"x".to_vec().into());
    assert_eq!(
        refused(request.send().await),
        (404, "NoSuchBucket".to_owned())
    );
}

/// A bucket of the check's own, as settings of a bucket are no matter of one prefix.
async fn own_bucket(target: &Target) -> String {
    let name = format!("wmtp-check-{:08x}", rand::random::<u32>());
    target
        .client
        .create_bucket()
        .bucket(&name)
        .send()
        .await
        .unwrap();
    name
}

pub(super) async fn c43_tagging_and_lifecycle(target: Target) {
    let bucket = own_bucket(&target).await;
    let request = target.client.put_object().bucket(&bucket).key("x");
    request.body(b"x".to_vec().into()).send().await.unwrap();
    let tag = Tag::builder().key("kind").value("check").build().unwrap();
    let tags = Tagging::builder().tag_set(tag).build().unwrap();
    let request = target.client.put_object_tagging().bucket(&bucket).key("x");
    request.tagging(tags).send().await.unwrap();
    let request = target.client.get_object_tagging().bucket(&bucket).key("x");
    assert_eq!(request.send().await.unwrap().tag_set()[0].value(), "check");
    let rule = LifecycleRule::builder()
        .id("old")
        .filter(LifecycleRuleFilter::builder().prefix("old/").build())
        .status(ExpirationStatus::Enabled)
        .expiration(LifecycleExpiration::builder().days(30).build());
    let rules = BucketLifecycleConfiguration::builder().rules(rule.build().unwrap());
    let request = target.client.put_bucket_lifecycle_configuration();
    let request = request
        .bucket(&bucket)
        .lifecycle_configuration(rules.build().unwrap());
    request.send().await.unwrap();
}

pub(super) async fn c44_versioning(target: Target) {
    let bucket = own_bucket(&target).await;
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let request = target.client.put_bucket_versioning().bucket(&bucket);
    let request = request.versioning_configuration(enabled.build());
    request.send().await.unwrap();
    for body in [b"1", b"2"] {
        let request = target.client.put_object().bucket(&bucket).key("x");
        request.body(body.to_vec().into()).send().await.unwrap();
    }
    let request = target.client.list_object_versions().bucket(&bucket);
    assert_eq!(request.send().await.unwrap().versions().len(), 2);
}
