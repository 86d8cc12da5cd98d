//! Every act that the audit log tells of has its event, and no act goes without.

use wmtp_artifacts::{Agent, AuditAct, GcPolicy, Remark, RemarkKind};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn names_remarks_and_collections_are_told_with_who_did_them() {
    let world = World::new().await;
    let agent = Agent {
        program: "a-program".to_owned(),
        revision: "0123abcd".to_owned(),
        image: None,
        host: "here".to_owned(),
    };
    let store = connect(&world.server, "main", |options| {
        options.agent = agent.clone();
        options.collection_notice = Some(Duration::from_secs(1));
    })
    .await;
    let needed = world.publish("needed", &[("a", b"needed")]).await.id;
    let unneeded = world.publish("unneeded", &[("a", b"unneeded")]).await.id;
    for _ in 0..2 {
        store.set_name(needed.kind(), "n", &needed).await.unwrap();
    }
    let absent = made_up(Kind::ProcessedData, "absent");
    assert!(store.set_name(absent.kind(), "n", &absent).await.is_err());
    // Ages are told in whole seconds, and what is to go must be older than none.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let policy = GcPolicy {
        grace_secs: 0,
        ..GcPolicy::default()
    };
    store.gc_plan(policy).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.gc_apply(|_, _| {}).await.unwrap();
    assert!(store.manifest(&unneeded).await.is_err());
    let run: RunId = "job-0123456789abcdef".parse().unwrap();
    world
        .overwrite(&format!("v1/runs/{run}/run.json"), b"{}")
        .await;
    let remark = Remark {
        kind: RemarkKind::Tag,
        text: "paper".to_owned(),
        author: "ada".to_owned(),
        at: now(),
    };
    store.remark(&run, &remark).await.unwrap();

    let (events, num_bad) = store.audit_log(None).await.unwrap();
    let acts: Vec<_> = events.iter().map(|event| event.entry.act).collect();
    assert_eq!(acts, [AuditAct::Name, AuditAct::Collect, AuditAct::Remark]);
    assert_eq!(num_bad, 0);
    for event in &events {
        assert_eq!(event.entry.agent, agent);
        assert_eq!(
            event.entry.key_id.as_deref(),
            Some(world.server.access_key())
        );
    }
    let named = json!({"kind": "processed-data", "name": "n", "artifact": needed});
    assert_eq!(events[0].entry.request, named);
    assert_eq!(events[1].entry.request, json!({"collection": 0}));
    let (since, _) = store.audit_log(Some(events[1].at)).await.unwrap();
    assert_eq!(since, events[1..]);
}
