//! Collection: what goes, what stays, and how writers and collectors keep out of each other's way.

use wmtp_artifacts::{GcPlan, GcReport};

use super::*;

const DAY: Duration = Duration::from_hours(24);
const HOUR: Duration = Duration::from_hours(1);
const KIND: Kind = Kind::ProcessedData;

impl World {
    async fn plan(&self) -> GcPlan {
        let (_, plan) = self
            .store
            .gc_plan(GcPolicy::default())
            .await
            .unwrap()
            .unwrap();
        plan
    }

    async fn apply(&self) -> Result<GcReport, Error> {
        self.store.gc_apply(|_, _| {}).await
    }

    /// Lets the notice of a plan pass.
    fn pass_notice(&self) {
        self.server.advance(HOUR + Duration::from_secs(5));
    }

    /// A blob that no manifest lists.
    async fn orphan(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        let key = format!("v1/blobs/sha256/{}/{digest}", &digest[..2]);
        self.overwrite(&key, bytes).await;
        key
    }

    /// A multipart upload that its writer never ended.
    async fn leak_upload(&self) {
        let key = format!("main/v1/blobs/sha256/00/{}", "0".repeat(64));
        let begun = self.raw().create_multipart_upload().bucket(BUCKET).key(key);
        begun.send().await.unwrap();
    }

    async fn num_uploads(&self) -> usize {
        let listed = self.raw().list_multipart_uploads().bucket(BUCKET);
        listed.send().await.unwrap().uploads().len()
    }
}

fn keys(objects: &[wmtp_artifacts::Doomed]) -> Vec<&str> {
    objects.iter().map(|doomed| doomed.key.as_str()).collect()
}

/// A run with some saved states, each an artifact; its result is the last one if it is finished.
async fn run_with_states(
    world: &World,
    name: &str,
    keep_last: u32,
    is_done: bool,
) -> Vec<ArtifactId> {
    let input = made_from(world, &format!("{name}-input"), &[]).await;
    let request = RunRequest {
        inputs: vec![Input {
            role: "data".to_owned(),
            id: input.clone(),
        }],
        ..request(name)
    };
    let claim = Claim::take(&world.store, &request).await.unwrap();
    let mut ids = vec![input];
    for step in 1..=4 {
        let id = made_from(world, &format!("{name}-{step}"), &[]).await;
        claim.checkpoint(step, &id, None, keep_last).await.unwrap();
        ids.push(id);
    }
    if is_done {
        let result = RunResult {
            outputs: BTreeMap::from([("checkpoint".to_owned(), ids[4].clone())]),
            attempt: 1,
            finished_at: now(),
            summary: json!({}),
        };
        claim.finish(&result).await.unwrap();
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_needs_goes_and_all_else_stays() {
    let world = World::new().await;
    let raw = made_from(&world, "raw", &[]).await;
    let named = made_from(&world, "named", &[("raw", &raw)]).await;
    world.store.set_name(KIND, "current", &named).await.unwrap();
    let open = run_with_states(&world, "open", 3, false).await;
    let done = run_with_states(&world, "done", 1, true).await;
    let (first, second) = (
        made_from(&world, "first", &[]).await,
        made_from(&world, "second", &[]).await,
    );
    let work = Digest::of(b"work");
    for id in [&first, &second] {
        let entry = CacheEntry {
            outputs: BTreeMap::from([("data".to_owned(), id.clone())]),
            run_id: RunId::for_work("job", &work),
            created_at: now(),
        };
        world
            .store
            .record_cache("job", &work, &entry)
            .await
            .unwrap();
    }
    let lost = world
        .publish("lost", &[("own", b"own"), ("shared", b"named")])
        .await;
    let orphan = world.orphan(b"orphan").await;
    world.leak_upload().await;
    let before = world.keys().await;

    let young = world.store.gc_survey(GcPolicy::default()).await.unwrap();
    assert!(young.plan.is_empty(), "{young:?}");
    assert_eq!(young.contents_young, 1);
    world.server.advance(8 * DAY);
    let survey = world.store.gc_survey(GcPolicy::default()).await.unwrap();
    assert_eq!(world.keys().await, before, "looking changes nothing");
    let entry_of = |run: &str, step: u32| {
        let run = RunId::for_work("train-stage2", &Digest::of(run.as_bytes()));
        format!("v1/runs/{run}/checkpoints/{step:010}-001.json")
    };
    let mut entries = vec![
        entry_of("open", 1),
        entry_of("done", 1),
        entry_of("done", 2),
        entry_of("done", 3),
    ];
    entries.sort();
    let mut found = keys(&survey.plan.entries);
    found.sort_unstable();
    assert_eq!(found, entries);
    // The input of the finished run stays nobody's: its states do not name it.
    let mut gone = [&lost.id, &open[1], &done[0], &done[1], &done[2], &done[3]];
    gone.sort();
    let manifests: Vec<_> = gone.iter().map(|id| manifest_key(id)).collect();
    assert_eq!(keys(&survey.plan.manifests), manifests);
    assert!(keys(&survey.plan.contents).contains(&orphan.as_str()));
    assert!(!keys(&survey.plan.contents).contains(&blob_key(&lost, "shared").as_str()));
    assert_eq!(survey.plan.contents.len(), 1 + 1 + 5);

    assert_eq!(world.plan().await, survey.plan);
    assert_eq!(
        code(&world.apply().await.unwrap_err()),
        75,
        "before the notice is over"
    );
    world.pass_notice();
    let report = world.apply().await.unwrap();
    assert_eq!(
        (
            report.entries,
            report.artifacts,
            report.contents,
            report.uploads
        ),
        (4, 6, 7, 1)
    );
    assert_eq!((report.spared, report.bytes), (0, survey.plan.bytes()));
    assert_eq!(world.num_uploads().await, 0);
    let checked = fsck(&world, FsckDepth::Full).await;
    assert_eq!(checked.findings, [], "no damage and no orphan");
    for id in [
        &raw, &named, &open[0], &open[2], &open[4], &done[4], &first, &second,
    ] {
        world.store.fetch(id, &world.mirror()).await.unwrap();
    }
    assert_eq!(
        code(&world.apply().await.unwrap_err()),
        65,
        "nothing is announced any more"
    );
    world.server.advance(31 * DAY);
    let plan = world.plan().await;
    assert_eq!(
        keys(&plan.entries),
        [format!("v1/cache/job/{work}/0000.json")]
    );
    assert_eq!(keys(&plan.manifests), [manifest_key(&first)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_need_doomed_things_makes_the_plan_void() {
    let world = World::new().await;
    let old = world.publish("old", &[("a", b"content")]).await;
    for need in ["content", "name", "input"] {
        world.server.advance(8 * DAY);
        world.plan().await;
        match need {
            "content" => {
                world.publish("new", &[("b", b"content")]).await;
            }
            "name" => world.store.set_name(KIND, "n", &old.id).await.unwrap(),
            _ => {
                made_from(&world, "child", &[("parent", &old.id)]).await;
            }
        }
        world.pass_notice();
        let error = world.apply().await.unwrap_err();
        assert_eq!(code(&error), 75);
        assert!(error.to_string().contains("void"), "{need}: {error}");
        world.store.fetch(&old.id, &world.mirror()).await.unwrap();
        if need == "name" {
            world.delete("v1/names/processed-data/n/0000.json").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_needs_what_is_being_deleted_waits_and_sends_it_again() {
    let world = World::new().await;
    let old = world.publish("old", &[("a", b"content")]).await;
    world.server.advance(8 * DAY);
    world.plan().await;
    let verdict = json!({"verdict": "apply", "holder": {"host": "elsewhere", "process": null}});
    world
        .overwrite("v1/gc/0000/verdict.json", verdict.to_string().as_bytes())
        .await;
    let (store, folder) = (
        world.store.clone(),
        world.folder("again", &[("a", b"content")]),
    );
    let writer =
        tokio::spawn(async move { store.publish(&draft(folder), &provenance(vec![])).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        !writer.is_finished(),
        "the content may be deleted at any moment"
    );
    world.delete(&manifest_key(&old.id)).await;
    world.delete(&blob_key(&old, "a")).await;
    let done = json!({"settle_secs": 0, "ended_at": now()});
    world
        .overwrite("v1/gc/0000/done.json", done.to_string().as_bytes())
        .await;
    assert_eq!(writer.await.unwrap().unwrap().id, old.id);
    assert_eq!(fsck(&world, FsckDepth::Full).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_still_be_under_way_is_waited_for() {
    let world = World::new().await;
    world.publish("old", &[("a", b"content")]).await;
    world.server.advance(8 * DAY);
    world.plan().await;
    let verdict = json!({"verdict": "apply", "holder": {"host": "elsewhere", "process": null}});
    world
        .overwrite("v1/gc/0000/verdict.json", verdict.to_string().as_bytes())
        .await;
    world.pass_notice();
    let report = world.apply().await.unwrap();
    assert_eq!(
        report.contents, 1,
        "the other collector is silent for an hour: it is dead"
    );
    let done: Value =
        serde_json::from_slice(&world.stored("main", "v1/gc/0000/done.json").await).unwrap();
    assert_eq!(done["settle_secs"], 900);
    let (store, folder) = (
        world.store.clone(),
        world.folder("again", &[("a", b"content")]),
    );
    let writer =
        tokio::spawn(async move { store.publish(&draft(folder), &provenance(vec![])).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!writer.is_finished(), "its last requests may still arrive");
    world.server.advance(Duration::from_secs(901));
    writer.await.unwrap().unwrap();
}

/// Nobody has to come and end a collection whose process died: who waits for it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_ends_a_collection_whose_process_died() {
    let world = World::new().await;
    let old = world.publish("old", &[("a", b"content")]).await;
    world.server.advance(8 * DAY);
    world.plan().await;
    let verdict = json!({"verdict": "apply", "holder": {"host": "elsewhere", "process": null}});
    let verdict = verdict.to_string();
    world
        .overwrite("v1/gc/0000/verdict.json", verdict.as_bytes())
        .await;
    let (store, folder) = (
        world.store.clone(),
        world.folder("again", &[("a", b"content")]),
    );
    let writer =
        tokio::spawn(async move { store.publish(&draft(folder), &provenance(vec![])).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        world.is_absent("v1/gc/0000/done.json").await,
        "a collector that was heard of just now is not dead"
    );
    world.server.advance(HOUR / 2);
    while world.is_absent("v1/gc/0000/done.json").await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!writer.is_finished(), "its last requests may still arrive");
    world.delete(&blob_key(&old, "a")).await;
    world.server.advance(Duration::from_secs(901));
    assert_eq!(writer.await.unwrap().unwrap().id, old.id);
    assert_eq!(fsck(&world, FsckDepth::Full).await.findings, []);
}

/// A collector that was taken for dead finds that out before it deletes more.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_was_taken_for_dead_deletes_nothing_more() {
    let world = World::new().await;
    let old = world.publish("old", &[("a", b"content")]).await;
    world.server.advance(8 * DAY);
    world.plan().await;
    world.pass_notice();
    let done = json!({"settle_secs": 900, "ended_at": now()}).to_string();
    let end = || {
        let runtime = tokio::runtime::Handle::current();
        let written = world.overwrite("v1/gc/0000/done.json", done.as_bytes());
        tokio::task::block_in_place(|| runtime.block_on(written));
    };
    let applied = world.store.gc_apply(|deleted, _| {
        assert_eq!(deleted, 1, "the manifest, and then nothing more");
        end();
    });
    let error = applied.await.unwrap_err();
    assert_eq!(code(&error), 75);
    assert!(
        error.to_string().contains("took this process for dead"),
        "{error}"
    );
    assert!(world.is_absent(&manifest_key(&old.id)).await);
    assert!(!world.is_absent(&blob_key(&old, "a")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_collectors_do_not_meet() {
    let world = World::new().await;
    world.orphan(b"orphan").await;
    world.server.advance(8 * DAY);
    world.plan().await;
    world.pass_notice();
    let verdict = json!({"verdict": "apply", "holder": {"host": "elsewhere", "process": null}});
    world
        .overwrite("v1/gc/0000/verdict.json", verdict.to_string().as_bytes())
        .await;
    for error in [
        world.apply().await.unwrap_err(),
        world.store.gc_plan(GcPolicy::default()).await.unwrap_err(),
    ] {
        assert_eq!(code(&error), 75, "{error}");
    }
    world.server.advance(HOUR);
    assert_eq!(world.apply().await.unwrap().contents, 1);
}

/// What is found to be needless only when a plan is carried out is not deleted, so what it needs must stay.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_plan_keeps_what_it_needs() {
    let world = World::new().await;
    let orphan = world.orphan(b"content").await;
    world.server.advance(8 * DAY);
    assert_eq!(keys(&world.plan().await.contents), [orphan]);
    // As by a writer that looked before the plan was there.
    let elsewhere = World::new().await;
    let late = elsewhere.publish("late", &[("a", b"content")]).await;
    let manifest = elsewhere.stored("main", &manifest_key(&late.id)).await;
    world.overwrite(&manifest_key(&late.id), &manifest).await;
    world.server.advance(8 * DAY);
    let report = world.apply().await.unwrap();
    assert_eq!(
        (report.contents, report.artifacts, report.spared),
        (0, 0, 1)
    );
    world.store.fetch(&late.id, &world.mirror()).await.unwrap();
    assert_eq!(
        keys(&world.plan().await.manifests),
        [manifest_key(&late.id)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_plan_takes_the_place_of_one_that_waits() {
    let world = World::new().await;
    world.orphan(b"one").await;
    world.server.advance(8 * DAY);
    world.plan().await;
    world.orphan(b"two").await;
    world.server.advance(8 * DAY);
    assert_eq!(world.plan().await.contents.len(), 2);
    world.pass_notice();
    let report = world.apply().await.unwrap();
    assert_eq!((report.number, report.contents), (1, 2));
    assert_eq!(
        world.store.gc_plan(GcPolicy::default()).await.unwrap(),
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_cannot_be_read_ends_a_collection() {
    for key in [
        "v1/names/processed-data/n/0000.json",
        "v1/cache/job/key/0000.json",
        "v1/runs/run-1/result.json",
        "v1/runs/run-1/run.json",
        "v1/runs/run-1/checkpoints/0000000001-001.json",
    ] {
        let world = World::new().await;
        world.orphan(b"orphan").await;
        world.overwrite(key, b"{}").await;
        world.server.advance(8 * DAY);
        let error = world.store.gc_plan(GcPolicy::default()).await.unwrap_err();
        assert!([65, 76].contains(&code(&error)), "{key}: {error}");
    }
    let world = World::new().await;
    let manifest = world.publish("out", &[("a", b"x")]).await;
    world.overwrite(&manifest_key(&manifest.id), b"{}").await;
    world.server.advance(8 * DAY);
    let error = world
        .store
        .gc_survey(GcPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(code(&error), 65, "{error}");
}
