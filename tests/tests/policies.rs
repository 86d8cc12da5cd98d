//! The policies of `wmtp-store policy`, kept by a server that others made: each role can do its work and nothing else, and
//! a job says what it may not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::SdkError;
use foreign_servers::Rgw;
use trial::Ended;
use wmtp_artifacts::{Credentials, Draft, GcPolicy, Kind, Provenance, Role, Store, StoreOptions};

const BUCKET: &str = "wmtp";
const STORE: &str = "s3://wmtp/shared/store";
/// RGW 16 cannot read the trailers that the SDK sends with every body unless it is told not to.
const CHECKSUMS: (&str, &str) = ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required");
const DENIED: u16 = 403;
/// What somebody else keeps in the bucket.
const SECRET: &str = "shared/other/secret";

/// A gateway whose bucket has the policy, and a folder to work in.
struct Place {
    rgw: Rgw,
    folder: PathBuf,
}

impl Place {
    fn program(&self, keys: (&str, &str), program: &str, args: &[&str]) -> Ended {
        let own = std::env::current_exe().unwrap();
        let programs = own.parent().and_then(Path::parent).unwrap();
        let mut command = Command::new(programs.join(program));
        command
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("AWS_ENDPOINT_URL_S3", self.rgw.endpoint())
            .env("AWS_ACCESS_KEY_ID", keys.0)
            .env("AWS_SECRET_ACCESS_KEY", keys.1)
            .env("WMTP_STORE", STORE)
            .env(CHECKSUMS.0, CHECKSUMS.1)
            .stdin(Stdio::null());
        Ended::of(&mut command)
    }

    fn run(&self, role: Role, program: &str, args: &[&str]) -> Ended {
        let (access_key, secret_key) = Rgw::keys_of(role.name());
        self.program((&access_key, &secret_key), program, args)
    }

    #[track_caller]
    fn succeeds(&self, role: Role, program: &str, args: &[&str]) -> String {
        let ended = self.run(role, program, args);
        assert_eq!(ended.code, Some(0), "{role:?} {args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// Runs what the role may not, and returns what it is told.
    #[track_caller]
    fn is_denied(&self, role: Role, program: &str, args: &[&str]) -> String {
        let ended = self.run(role, program, args);
        assert_eq!(ended.code, Some(69), "{role:?} {args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("AccessDenied"), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("wmtp-store policy"),
            "{}",
            ended.stderr
        );
        ended.stderr
    }

    fn client(&self, access_key: &str, secret_key: &str) -> Client {
        let keys = aws_sdk_s3::config::Credentials::new(access_key, secret_key, None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(self.rgw.endpoint())
            .force_path_style(true)
            .credentials_provider(keys)
            .retry_config(RetryConfig::disabled())
            .request_checksum_calculation(
                aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired,
            )
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        Client::from_conf(config)
    }

    fn client_of(&self, role: Role) -> Client {
        let (access_key, secret_key) = Rgw::keys_of(role.name());
        self.client(&access_key, &secret_key)
    }

    async fn store_of(&self, role: Role) -> Store {
        let (access_key, secret_key) = Rgw::keys_of(role.name());
        let options = StoreOptions {
            endpoint: Some(self.rgw.endpoint().to_owned()),
            credentials: Some(Credentials::new(access_key, secret_key)),
            collection_notice: Some(Duration::from_secs(1)),
            ..StoreOptions::default()
        };
        Store::connect(&STORE.parse().unwrap(), options)
            .await
            .unwrap()
    }

    /// The bucket, with the policy that the binary prints for the three users.
    async fn prepare(&self) {
        let grants = Role::ALL.map(|role| format!("{0}=arn:aws:iam:::user/{0}", role.name()));
        let mut args = vec!["policy"];
        args.extend(grants.iter().map(String::as_str));
        let policy = self.succeeds(Role::Reader, "wmtp-store", &args);
        let owner = self.client(self.rgw.access_key(), self.rgw.secret_key());
        owner.create_bucket().bucket(BUCKET).send().await.unwrap();
        let put = owner.put_bucket_policy().bucket(BUCKET).policy(policy);
        put.send().await.unwrap();
        assert_eq!(self::put(&owner, SECRET).await, 200);
    }
}

/// The status of an answer.
fn status<T, E>(answer: Result<T, SdkError<E>>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(error) => {
            let response = error.raw_response();
            response.map_or(0, |response| response.status().as_u16())
        }
    }
}

async fn put(client: &Client, key: &str) -> u16 {
    let body = b"x".to_vec().into();
    let request = client.put_object().bucket(BUCKET).key(key).body(body);
    status(request.if_none_match("*").send().await)
}

async fn get(client: &Client, key: &str) -> u16 {
    status(client.get_object().bucket(BUCKET).key(key).send().await)
}

async fn delete(client: &Client, key: &str) -> u16 {
    status(client.delete_object().bucket(BUCKET).key(key).send().await)
}

async fn list(client: &Client, prefix: &str) -> u16 {
    let request = client.list_objects_v2().bucket(BUCKET).prefix(prefix);
    status(request.send().await)
}

/// What each role may ask of S3 itself, whatever program asks.
async fn requests(place: &Place) {
    let [reader, trainer, admin] = Role::ALL.map(|role| place.client_of(role));
    let key = |name: &str| format!("shared/store/v1/{name}");
    let name = key("names/raw-data/x/0000.json");
    assert_eq!(put(&reader, &name).await, DENIED);
    assert_eq!(put(&trainer, &name).await, 200);
    assert_eq!(
        put(&trainer, &name).await,
        412,
        "create-only is the store's to keep"
    );
    for client in [&reader, &trainer, &admin] {
        assert_eq!(get(client, &name).await, 200);
        // Absent is told from forbidden: the protocol lives from it.
        assert_eq!(get(client, &key("names/raw-data/y/0000.json")).await, 404);
        assert_eq!(list(client, &key("names/")).await, 200);
        assert_eq!(list(client, "shared/other/").await, DENIED);
        assert_eq!(get(client, SECRET).await, DENIED);
        assert_eq!(put(client, SECRET).await, DENIED);
        assert_eq!(put(client, "shared/store/index.html").await, DENIED);
    }
    let index = "shared/store/mlflow/mtp-rho1-micropy/1/artifacts/artifacts.json";
    assert_eq!(put(&reader, index).await, DENIED);
    assert_eq!(put(&trainer, index).await, 200);
    assert_eq!(delete(&trainer, index).await, DENIED);
    // What tells who did what is added to by those who do it, and is nobody's to delete.
    for record in [
        key("audit/0000000000007-x.json"),
        key("promotions/m/0000.json"),
    ] {
        assert_eq!(put(&reader, &record).await, DENIED);
        assert_eq!(put(&trainer, &record).await, 200);
        for client in [&reader, &trainer, &admin] {
            assert_eq!(get(client, &record).await, 200);
            assert_eq!(delete(client, &record).await, DENIED);
        }
    }
    let plan = key("gc/0007/plan.json");
    assert_eq!(put(&trainer, &plan).await, DENIED);
    assert_eq!(put(&trainer, &key("gc/0007/verdict.json")).await, 200);
    assert_eq!(put(&admin, &plan).await, 200);
    for client in [&reader, &trainer] {
        assert_eq!(delete(client, &name).await, DENIED);
        assert_eq!(delete(client, &plan).await, DENIED);
    }
    for key in [&name, &plan, &key("gc/0007/verdict.json")] {
        assert_eq!(delete(&admin, key).await, 200);
        assert_eq!(get(&reader, key).await, 404);
    }
}

/// What each role can do with the programs.
fn programs(place: &Place) {
    std::fs::create_dir(place.folder.join("raw")).unwrap();
    std::fs::write(place.folder.join("raw/rows.jsonl"), "{}\n").unwrap();
    // Two parts, so that an upload of parts is under way, is found and is ended.
    std::fs::write(place.folder.join("raw/large.bin"), vec![7; 33 << 20]).unwrap();
    let push = [
        "push", "--kind", "raw-data", "--folder", "raw", "--name", "raw",
    ];
    let said = place.is_denied(Role::Reader, "sync-storage", &push);
    assert!(said.contains("create v1/probe.json"), "{said}");
    place.succeeds(Role::Trainer, "sync-storage", &push);
    place.succeeds(Role::Trainer, "sync-storage", &push);

    let runs = place.succeeds(Role::Reader, "wmtp-store", &["runs", "--json"]);
    let runs: serde_json::Value = serde_json::from_str(&runs).unwrap();
    let run = runs["runs"][0]["run_id"].as_str().unwrap();
    let note = ["note", run, "looks well", "--author", "ada"];
    place.is_denied(Role::Reader, "wmtp-store", &note);
    place.succeeds(Role::Trainer, "wmtp-store", &note);

    for role in Role::ALL {
        let to = format!("pulled-{}", role.name());
        let pull = ["pull", "raw", "--kind", "raw-data", "--to", &to];
        place.succeeds(role, "sync-storage", &pull);
        let pulled = std::fs::read(place.folder.join(to).join("rows.jsonl")).unwrap();
        assert_eq!(pulled, b"{}\n");
        place.succeeds(role, "wmtp-store", &["lineage", "raw"]);
        place.succeeds(role, "wmtp-store", &["fsck", "--full"]);
    }
    place.succeeds(Role::Admin, "wmtp-store", &["gc"]);
}

/// What nothing needs goes by the hand of an admin and of nobody else.
async fn collection(place: &Place) {
    let root = place.folder.join("unneeded");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), "nobody needs this").unwrap();
    let draft = Draft {
        kind: Kind::RawData,
        root,
        attributes: BTreeMap::new(),
    };
    let provenance = Provenance {
        job: "test".to_owned(),
        run_id: "test-0123456789abcdef".parse().unwrap(),
        attempt: 1,
        code_version: "0".to_owned(),
        code_revision: None,
        recipe_version: 1,
        recipe: serde_json::Value::Null,
        options: serde_json::Value::Null,
        inputs: Vec::new(),
        created_at: "2026-11-21T10:00:00Z".parse().unwrap(),
    };
    let trainer = place.store_of(Role::Trainer).await;
    let id = trainer.publish(&draft, &provenance).await.unwrap().id;
    // Ages are told in whole seconds, and what is to go must be older than none.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let policy = GcPolicy {
        grace_secs: 0,
        ..GcPolicy::default()
    };
    let denied = trainer.gc_plan(policy).await.unwrap_err().to_string();
    assert!(denied.contains("AccessDenied"), "{denied}");
    let admin = place.store_of(Role::Admin).await;
    let (_, plan) = admin.gc_plan(policy).await.unwrap().unwrap();
    assert!(!plan.manifests.is_empty(), "{plan:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = admin.gc_apply(|_, _| {}).await.unwrap();
    assert_eq!((report.artifacts, report.contents), (1, 1), "{report:?}");
    assert!(trainer.manifest(&id).await.is_err());
    let raw = trainer.name(Kind::RawData, "raw").await.unwrap();
    trainer.manifest(&raw.unwrap()).await.unwrap();
}

#[test]
#[ignore = "it needs Ceph's radosgw, ceph-mon and ceph-osd, and half a minute to start them"]
fn each_role_can_do_its_work_on_rgw_and_nothing_else() {
    const NAME: &str = "each_role_can_do_its_work_on_rgw_and_nothing_else";
    // The library takes this from the environment of its process, and a process should not change its own.
    if std::env::var(CHECKSUMS.0).is_err() {
        let own = std::env::current_exe().unwrap();
        let again = Command::new(own)
            .args(["--exact", NAME, "--ignored", "--nocapture"])
            .env(CHECKSUMS.0, CHECKSUMS.1)
            .status();
        assert!(again.unwrap().success(), "see the messages above");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let users = Role::ALL.map(Role::name);
    let Some(rgw) = Rgw::start(&folder.path().join("rgw"), &users) else {
        return;
    };
    let place = Place {
        rgw,
        folder: folder.path().to_owned(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(place.prepare());
    runtime.block_on(requests(&place));
    programs(&place);
    runtime.block_on(collection(&place));
}
