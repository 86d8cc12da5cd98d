//! The protocol on servers that others made: moto, where `WMTP_MOTO` names its program, Ceph RGW, where its programs are
//! installed, and any store that `WMTP_CONFORMANCE_STORE` names, with the AWS variables. Each run has a prefix of its own
//! and stays there.

use std::process::Command;

use foreign_servers::{Moto, Rgw};

use super::*;

async fn create_bucket(endpoint: &str, access_key: &str, secret_key: &str) {
    let keys = aws_sdk_s3::config::Credentials::new(access_key, secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    client.create_bucket().bucket(BUCKET).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs moto, which `make test-full` installs"]
async fn the_protocol_holds_on_moto() {
    let Some(server) = Moto::start_named() else {
        return;
    };
    create_bucket(server.endpoint(), server.key(), server.key()).await;
    let options = StoreOptions {
        endpoint: Some(server.endpoint().to_owned()),
        region: Some("us-east-1".to_owned()),
        credentials: Some(Credentials::new(server.key(), server.key())),
        ..StoreOptions::default()
    };
    the_protocol_holds(&format!("s3://{BUCKET}"), options).await;
}

/// Asked as a user of it asks: by the AWS variables, one of which keeps the SDK from sending trailers. A process of its
/// own has them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs Ceph's radosgw, ceph-mon and ceph-osd, and half a minute to start them"]
async fn the_protocol_holds_on_rgw() {
    let folder = tempfile::tempdir().unwrap();
    let Some(rgw) = Rgw::start(folder.path(), &[]) else {
        return;
    };
    create_bucket(rgw.endpoint(), rgw.access_key(), rgw.secret_key()).await;
    let test = "foreign::the_protocol_holds_on_the_named_store";
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env("WMTP_CONFORMANCE_STORE", format!("s3://{BUCKET}"))
        .env("AWS_ENDPOINT_URL_S3", rgw.endpoint())
        .env("AWS_ACCESS_KEY_ID", rgw.access_key())
        .env("AWS_SECRET_ACCESS_KEY", rgw.secret_key())
        .env("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    let complaints = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}\n{complaints}");
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs a store and its credentials"]
async fn the_protocol_holds_on_the_named_store() {
    let Ok(store) = std::env::var("WMTP_CONFORMANCE_STORE") else {
        #[expect(clippy::print_stderr, reason = "what is not tested must be seen")]
        {
            eprintln!("SKIPPED: a store of your own; WMTP_CONFORMANCE_STORE does not name one");
        }
        return;
    };
    the_protocol_holds(store.trim_end_matches('/'), StoreOptions::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_holds_on_the_embedded_store() {
    let world = World::new().await;
    let options = StoreOptions {
        endpoint: Some(world.server.endpoint().to_owned()),
        region: Some(world.server.region().to_owned()),
        credentials: Some(Credentials::new(
            world.server.access_key(),
            world.server.secret_key(),
        )),
        ..StoreOptions::default()
    };
    the_protocol_holds(&format!("s3://{BUCKET}"), options).await;
}

/// What every store must do for us, the races too.
async fn the_protocol_holds(root: &str, options: StoreOptions) {
    let dir = tempfile::tempdir().unwrap();
    let unique = dir.path().file_name().unwrap().to_string_lossy();
    let uri = format!("{root}/conformance{unique}").parse().unwrap();
    let store = Store::connect(&uri, options.clone()).await.unwrap();
    store.preflight().await.unwrap();
    let id = publishing_and_fetching(&store, dir.path()).await;
    broken_off(&store, dir.path()).await;
    races(&store, &id).await;
    let report = store.fsck(FsckDepth::Full, |_, _, _| {}).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    let young = store.gc_survey(GcPolicy::default()).await.unwrap();
    assert!(young.plan.is_empty(), "{young:?}");
    let options = StoreOptions {
        collection_notice: Some(Duration::from_secs(2)),
        ..options
    };
    collection(
        &Store::connect(&uri, options).await.unwrap(),
        &id,
        dir.path(),
    )
    .await;
}

/// Of what has no name nothing stays, and all of what has one.
async fn collection(store: &Store, named: &ArtifactId, dir: &Path) {
    let found = store.resolve(Kind::ProcessedData, "name").await.unwrap();
    assert_eq!(found, *named);
    let all = store.artifacts(Kind::ProcessedData).await.unwrap();
    assert_eq!(
        all.len(),
        2,
        "the named one, and the one that was broken off"
    );
    // Older than no grace at all is what was written in an earlier second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let policy = GcPolicy {
        grace_secs: 0,
        cache_secs: 0,
    };
    let (_, plan) = store.gc_plan(policy).await.unwrap().unwrap();
    assert_eq!(plan.manifests.len(), 1, "{plan:?}");
    let mut applied = store.gc_apply(|_, _| {}).await;
    assert!(matches!(applied, Err(Error::NotYet { .. })), "{applied:?}");
    for _ in 0..60 {
        if !matches!(applied, Err(Error::NotYet { .. })) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        applied = store.gc_apply(|_, _| {}).await;
    }
    let report = applied.unwrap();
    assert_eq!((report.artifacts, report.contents), (1, 1), "{report:?}");
    let left = store.artifacts(Kind::ProcessedData).await.unwrap();
    assert_eq!(left, std::slice::from_ref(named));
    let report = store.fsck(FsckDepth::Full, |_, _, _| {}).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    let mirror = Mirror::open(&dir.join("another mirror")).unwrap();
    store.fetch(named, &mirror).await.unwrap();
}

async fn publishing_and_fetching(store: &Store, dir: &Path) -> ArtifactId {
    let root = dir.join("out");
    let odd = "deep/with blank, plus+ and ünïcode.txt";
    let files: [(&str, Vec<u8>); 4] = [
        (
            "large.bin",
            [vec![1; 16 << 20], vec![2; (17 << 20) + 7]].concat(),
        ),
        ("small.json", b"{}".to_vec()),
        (odd, b"odd".to_vec()),
        ("empty", Vec::new()),
    ];
    for (path, bytes) in &files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let draft = draft(root);
    let manifest = store.publish(&draft, &provenance(vec![])).await.unwrap();
    let again = store.publish(&draft, &provenance(vec![])).await.unwrap();
    assert_eq!(again, manifest, "the second publication finds the first");
    let mirror = Mirror::open(&dir.join("mirror")).unwrap();
    let folder = store.fetch(&manifest.id, &mirror).await.unwrap();
    for (path, bytes) in &files {
        assert!(read(&folder, path) == *bytes, "{path}");
    }
    manifest.id
}

/// An upload that was broken off does not stand in the way of the next, and is not left behind.
async fn broken_off(store: &Store, dir: &Path) {
    let root = dir.join("broken");
    fs::create_dir(&root).unwrap();
    let bytes = [vec![3; 32 << 20], vec![4; (32 << 20) + 3]].concat();
    fs::write(root.join("large.bin"), bytes).unwrap();
    let draft = draft(root);
    let (near, wanted) = (store.clone(), draft.clone());
    let publication = tokio::spawn(async move { near.publish(&wanted, &provenance(vec![])).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    publication.abort();
    let _ = publication.await;
    let manifest = store.publish(&draft, &provenance(vec![])).await.unwrap();
    store.verify(&manifest).await.unwrap();
    let mirror = Mirror::open(&dir.join("mirror")).unwrap();
    store.fetch(&manifest.id, &mirror).await.unwrap();
}

/// Of many who want one thing at a time exactly one gets it, and no name is lost.
async fn races(store: &Store, id: &ArtifactId) {
    for round in 0..3 {
        let work = request(&format!("race {round}"));
        let contenders = (0..12).map(|_| Claim::take(store, &work));
        let claims = futures::future::join_all(contenders).await;
        let won = claims.iter().filter(|claim| claim.is_ok()).count();
        assert_eq!(won, 1, "round {round}");
        for error in claims.into_iter().filter_map(Result::err) {
            assert_eq!(code(&error), 75, "{error}");
        }
    }
    let names = (0..8).map(|_| store.set_name(Kind::ProcessedData, "name", id));
    for named in futures::future::join_all(names).await {
        named.unwrap();
    }
    let found = store.name(Kind::ProcessedData, "name").await.unwrap();
    assert_eq!(found.as_ref(), Some(id));
}
