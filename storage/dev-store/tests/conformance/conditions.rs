//! Conditional requests, alone and in races: the primitives that commits, names and claims are built on.

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::put_object::{PutObjectError, PutObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use dev_store::BUCKET;

use crate::support::{Store, pattern, refusal};

async fn create_only(
    store: &Store,
    key: &str,
    body: Vec<u8>,
) -> Result<PutObjectOutput, SdkError<PutObjectError>> {
    store
        .client
        .put_object()
        .bucket(BUCKET)
        .key(key)
        .if_none_match("*")
        .body(ByteStream::from(body))
        .send()
        .await
}

async fn compare_and_swap(
    store: &Store,
    etag: &str,
    body: Vec<u8>,
) -> Result<PutObjectOutput, SdkError<PutObjectError>> {
    store
        .client
        .put_object()
        .bucket(BUCKET)
        .key("counter")
        .if_match(etag)
        .body(ByteStream::from(body))
        .send()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_24_racing_creators_exactly_one_wins_and_its_bytes_stay() {
    let store = Store::new();
    for (round, size) in [16, 16, 16, 16, 16, 200_000, 200_000]
        .into_iter()
        .enumerate()
    {
        let key = format!("race/{round}");
        let attempts = (0..24_u8).map(|writer| create_only(&store, &key, pattern(size, writer)));
        let results = futures::future::join_all(attempts).await;
        let winners: Vec<usize> = (0..results.len())
            .filter(|&writer| results[writer].is_ok())
            .collect();
        assert_eq!(winners.len(), 1, "round {round}");
        for lost in results.into_iter().filter(Result::is_err) {
            assert_eq!(refusal(lost), (412, "PreconditionFailed".to_owned()));
        }
        assert_eq!(
            store.get(&key).await.unwrap(),
            pattern(size, winners[0] as u8)
        );
    }
    assert_eq!(
        (store.records(), store.segments()),
        (7, 2),
        "losers leave no data behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_under_compare_and_swap_loses_no_increment() {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 10;
    let store = Store::new();
    store.put("counter", b"0").await;
    let writers = (0..WRITERS).map(|_| async {
        for _ in 0..INCREMENTS {
            loop {
                let read = store
                    .client
                    .get_object()
                    .bucket(BUCKET)
                    .key("counter")
                    .send()
                    .await
                    .unwrap();
                let etag = read.e_tag.clone().unwrap();
                let text = String::from_utf8(read.body.collect().await.unwrap().to_vec()).unwrap();
                let next = (text.parse::<usize>().unwrap() + 1).to_string();
                match compare_and_swap(&store, &etag, next.into_bytes()).await {
                    Ok(_) => break,
                    lost => assert_eq!(refusal(lost).0, 412),
                }
            }
        }
    });
    futures::future::join_all(writers).await;
    assert_eq!(
        store.get("counter").await.unwrap(),
        (WRITERS * INCREMENTS).to_string().into_bytes()
    );
}

#[tokio::test]
async fn if_match_writes_want_the_current_etag() {
    let store = Store::new();
    assert_eq!(
        refusal(compare_and_swap(&store, "\"none\"", vec![]).await),
        (404, "NoSuchKey".to_owned())
    );
    let etag = store.put("counter", b"1").await;
    assert!(etag.contains('-'), "{etag} must not look like an MD5");
    assert_eq!(
        refusal(compare_and_swap(&store, "\"other\"", vec![]).await).0,
        412
    );
    compare_and_swap(&store, &etag, b"2".to_vec())
        .await
        .unwrap();
    assert_eq!(
        refusal(compare_and_swap(&store, &etag, b"3".to_vec()).await).0,
        412
    );
    let refused = store
        .client
        .delete_object()
        .bucket(BUCKET)
        .key("counter")
        .if_match(&etag)
        .send()
        .await;
    assert_eq!(refusal(refused).0, 412);
    assert_eq!(store.get("counter").await.unwrap(), b"2");
}

#[tokio::test]
async fn reads_honour_etags() {
    let store = Store::new();
    let etag = store.put("page", b"text").await;
    let get = || store.client.get_object().bucket(BUCKET).key("page");
    get().if_match(&etag).send().await.unwrap();
    assert_eq!(refusal(get().if_match("\"other\"").send().await).0, 412);
    assert_eq!(refusal(get().if_none_match(&etag).send().await).0, 304);
    get().if_none_match("\"other\"").send().await.unwrap();
    let head = store
        .client
        .head_object()
        .bucket(BUCKET)
        .key("page")
        .if_none_match(&etag)
        .send()
        .await;
    assert_eq!(refusal(head).0, 304);
}
