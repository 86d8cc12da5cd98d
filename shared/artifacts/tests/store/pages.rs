//! Files for browsers, and artifacts of which only some files are wanted.

use super::{BUCKET, World, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_served_with_its_headers_and_replaced_in_place() {
    let world = World::new().await;
    for text in ["first", "second"] {
        world
            .store
            .put_page(
                "index.html",
                text.into(),
                "text/html; charset=utf-8",
                "no-cache",
            )
            .await
            .unwrap();
        let found = world.store.page("index.html").await.unwrap().unwrap();
        assert_eq!(found.as_ref(), text.as_bytes());
    }
    let head = world
        .raw()
        .head_object()
        .bucket(BUCKET)
        .key("main/index.html")
        .send()
        .await
        .unwrap();
    assert_eq!(head.content_type(), Some("text/html; charset=utf-8"));
    assert_eq!(head.cache_control(), Some("no-cache"));
    for _ in 0..2 {
        world.store.delete_page("index.html").await.unwrap();
        assert!(world.store.page("index.html").await.unwrap().is_none());
    }
    let refused = world
        .store
        .put_page("v1/names/x.json", "{}".into(), "text/plain", "no-cache")
        .await;
    assert_eq!(refused.unwrap_err().exit_class().code(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn some_files_of_an_artifact_are_fetched_and_the_rest_on_demand() {
    let world = World::new().await;
    let manifest = world
        .publish(
            "model",
            &[("recipe.json", b"{}"), ("model.safetensors", b"heavy")],
        )
        .await;
    let light = world
        .store
        .fetch_files(&manifest.id, &world.mirror(), |file| {
            file.path == "recipe.json"
        })
        .await
        .unwrap();
    assert_eq!(read(&light, "recipe.json"), b"{}");
    assert!(!light.join("model.safetensors").exists());
    let whole = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    assert_eq!(whole, light);
    assert_eq!(read(&whole, "model.safetensors"), b"heavy");
}
