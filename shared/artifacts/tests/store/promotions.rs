//! What a gate was asked stays, in the order in which it was answered.

use wmtp_artifacts::{Alias, ArtifactId, GateCheck, Kind, Promotion};

use crate::{World, blob_key, code, made_up, now};

fn checkpoint(text: &str) -> ArtifactId {
    made_up(Kind::Checkpoint, text)
}

fn promotion(text: &str, to: Alias, granted: bool) -> Promotion {
    Promotion {
        at: now(),
        version_id: text.to_owned(),
        checkpoint: Some(checkpoint(text)),
        from: None,
        to,
        granted,
        gate: vec![GateCheck {
            condition: "it is asked".to_owned(),
            holds: granted,
            found: "so it is".to_owned(),
        }],
        leaderboard: made_up(Kind::Leaderboard, "board"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_remembered_for_its_model_alone() {
    let world = World::new().await;
    let steps = [
        promotion("a", Alias::Staging, true),
        promotion("a", Alias::Production, false),
        promotion("b", Alias::Staging, true),
        promotion("a", Alias::Production, true),
    ];
    for step in &steps {
        let before = world.store.promotions("m").await.unwrap();
        let recorded = world.store.record_promotion("m", &before, step);
        recorded.await.unwrap();
    }
    let found = world.store.promotions("m").await.unwrap();
    assert_eq!(found.entries, steps);
    assert_eq!(found.stage_of(&checkpoint("a")), Some(Alias::Production));
    assert_eq!(found.stage_of(&checkpoint("b")), Some(Alias::Staging));
    assert_eq!(found.stage_of(&checkpoint("c")), None);
    assert_eq!(world.store.promoted_models().await.unwrap(), ["m"]);
    let other = world.store.promotions("other").await.unwrap();
    assert_eq!(other.stage_of(&checkpoint("a")), None);
    assert_eq!(code(&world.store.promotions("a/b").await.unwrap_err()), 2);
    world.overwrite("v1/promotions/m/0002.json", b"{}").await;
    assert_eq!(code(&world.store.promotions("m").await.unwrap_err()), 76);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_decide_on_the_same_one_decides_anew() {
    let world = World::new().await;
    let before = world.store.promotions("m").await.unwrap();
    let racers = ["a", "b", "c", "d"].map(|text| {
        let (store, before) = (world.store.clone(), before.clone());
        tokio::spawn(async move {
            let step = promotion(text, Alias::Staging, true);
            store.record_promotion("m", &before, &step).await
        })
    });
    let mut lost = 0;
    for racer in racers {
        if let Err(error) = racer.await.unwrap() {
            assert_eq!(code(&error), 75, "{error}");
            lost += 1;
        }
    }
    assert_eq!(lost, 3);
    assert_eq!(world.store.promotions("m").await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_an_artifact_is_compared() {
    let world = World::new().await;
    let large = vec![7; 33 << 20];
    let files: [(&str, &[u8]); 2] = [("large", &large), ("small", b"right")];
    let manifest = world.publish("out", &files).await;
    world.store.verify_bytes(&manifest).await.unwrap();
    let mut altered = large.clone();
    altered[32 << 20] ^= 1;
    for (path, wrong, right) in [
        ("small", &b"wrong"[..], &b"right"[..]),
        ("large", &altered[..], &large[..]),
    ] {
        let key = blob_key(&manifest, path);
        world.overwrite(&key, wrong).await;
        world.store.verify(&manifest).await.unwrap();
        let error = world.store.verify_bytes(&manifest).await.unwrap_err();
        assert_eq!(code(&error), 76, "{error}");
        assert!(error.to_string().contains(path), "{error}");
        world.overwrite(&key, right).await;
    }
    world.store.verify_bytes(&manifest).await.unwrap();
    world.delete(&blob_key(&manifest, "small")).await;
    let error = world.store.verify_bytes(&manifest).await.unwrap_err();
    assert!(error.to_string().contains("small"), "{error}");
}
