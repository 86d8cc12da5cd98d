//! Plain objects of another store as a source.

use wmtp_artifacts::Tree;

use super::*;

const PIECE: usize = 16 << 20;

async fn tree(world: &World, options: StoreOptions) -> Tree {
    let uri = format!("s3://{BUCKET}/main/models").parse().unwrap();
    let options = StoreOptions {
        endpoint: Some(world.server.endpoint().to_owned()),
        ..options
    };
    Tree::connect(&uri, options).await.unwrap()
}

fn with_keys(world: &World) -> StoreOptions {
    StoreOptions {
        first_backoff: Some(Duration::from_millis(1)),
        ..trial::options(&world.server)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_fetched_on_from_where_it_broke_off() {
    let world = World::new().await;
    let large: Vec<u8> = (0..2 * PIECE + 9)
        .map(|index| (index % 251) as u8)
        .collect();
    world.overwrite("models/7b/large.bin", &large).await;
    world.overwrite("models/7b/", b"").await;
    world.overwrite("models/empty", b"").await;
    world.overwrite("models-other/x", b"x").await;
    let tree = tree(&world, with_keys(&world)).await;
    let files = tree.files().await.unwrap();
    let paths: Vec<_> = files.iter().map(|file| (&*file.path, file.size)).collect();
    assert_eq!(paths, [("7b/large.bin", large.len() as u64), ("empty", 0)]);
    let path = world.dir.path().join("large.bin");
    fs::write(&path, &large[..PIECE + 5]).unwrap();
    let before = world.server.sent();
    tree.fetch(&files[0], &path, |_| {}).await.unwrap();
    assert!(fs::read(&path).unwrap() == large);
    let sent = world.server.sent() - before;
    assert!(sent < (PIECE + 4096) as u64, "{sent} bytes were sent");
    // What an earlier attempt left is dropped where it is wrong.
    fs::write(&path, vec![9; PIECE]).unwrap();
    tree.fetch(&files[0], &path, |_| {}).await.unwrap();
    assert!(fs::read(&path).unwrap() == large);
    let empty = world.dir.path().join("empty");
    tree.fetch(&files[1], &empty, |_| {}).await.unwrap();
    assert!(tree.is_at(&files[1], &empty).await.unwrap());
    fs::write(&path, vec![9; large.len()]).unwrap();
    assert!(!tree.is_at(&files[0], &path).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_meanwhile_is_refused() {
    let world = World::new().await;
    world.overwrite("models/a", b"one").await;
    let tree = tree(&world, with_keys(&world)).await;
    let files = tree.files().await.unwrap();
    world.overwrite("models/a", b"two").await;
    let path = world.dir.path().join("a");
    let error = tree.fetch(&files[0], &path, |_| {}).await.unwrap_err();
    assert_eq!(code(&error), 65, "{error}");
    assert!(error.to_string().contains("changed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_paths_of_files_are_refused() {
    let world = World::new().await;
    world.overwrite("models/a//b", b"x").await;
    let tree = tree(&world, with_keys(&world)).await;
    let error = tree.files().await.unwrap_err();
    assert_eq!(code(&error), 65, "{error}");
    assert!(error.to_string().contains("a//b"), "{error}");
}
