//! Export and import: an artifact and its ancestors through a folder, and what a hostile folder is answered.

use super::*;

/// The folder of an exported chain: raw data and what was made from it; and the id of the latter.
async fn exported(world: &World) -> (PathBuf, ArtifactId) {
    let raw = made_from(world, "raw", &[]).await;
    let data = made_from(world, "data", &[("raw", &raw)]).await;
    let folder = world.dir.path().join("export");
    let report = world.store.export(&data, &folder, |_, _| {}).await.unwrap();
    assert_eq!(
        (report.artifacts, report.blobs_copied, report.bytes_copied),
        (2, 2, 7)
    );
    (folder, data)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_comes_over_with_all_that_it_was_made_from() {
    let world = World::new().await;
    let (folder, data) = exported(&world).await;
    let again = world.store.export(&data, &folder, |_, _| {}).await.unwrap();
    assert_eq!(
        (again.blobs_copied, again.blobs_present),
        (0, 2),
        "what is there is kept"
    );
    let there = World::new().await;
    let mut last = (0, 0);
    let (id, report) = there
        .store
        .import(&folder, |done, total| last = (done, total))
        .await
        .unwrap();
    assert_eq!(
        (&id, report.artifacts, report.blobs_copied, last),
        (&data, 2, 2, (7, 7))
    );
    let lineage = there.store.lineage(&id, Direction::Up).await.unwrap();
    assert_eq!(
        lineage,
        world.store.lineage(&data, Direction::Up).await.unwrap()
    );
    let fetched = there.store.fetch(&id, &there.mirror()).await.unwrap();
    assert_eq!(read(&fetched, "text"), b"data");
    assert_eq!(fsck(&there, FsckDepth::Full).await.findings, []);
    let (_, again) = there.store.import(&folder, |_, _| {}).await.unwrap();
    assert_eq!((again.blobs_copied, again.blobs_present), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_of_several_parts_comes_over() {
    let world = World::new().await;
    let large: Vec<u8> = (0..(16 << 20) + 9_u32).map(|n| (n % 251) as u8).collect();
    let id = world.publish("out", &[("large", &large)]).await.id;
    let folder = world.dir.path().join("export");
    world.store.export(&id, &folder, |_, _| {}).await.unwrap();
    let there = World::new().await;
    there.store.import(&folder, |_, _| {}).await.unwrap();
    let fetched = there.store.fetch(&id, &there.mirror()).await.unwrap();
    assert!(read(&fetched, "large") == large);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_lacks_an_ancestor_is_refused_and_unfinished() {
    let world = World::new().await;
    let elsewhere = World::new().await;
    let far = made_from(&elsewhere, "far", &[]).await;
    let id = made_from(&world, "near", &[("far", &far)]).await;
    let folder = world.dir.path().join("export");
    let error = world
        .store
        .export(&id, &folder, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(code(&error), 65, "{error}");
    fs::create_dir_all(&folder).unwrap();
    let error = world.store.import(&folder, |_, _| {}).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no export, or one that was cut off"),
        "{error}"
    );
}

/// Damages an export and says what the refusal must tell.
type Attack = (&'static str, u8, fn(&Path, &ArtifactId));

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_what_it_says_is_refused_and_nothing_is_written() {
    fn content(folder: &Path) -> PathBuf {
        let digest = Digest::of(b"data").to_string();
        folder
            .join("v1/blobs/sha256")
            .join(&digest[..2])
            .join(digest)
    }
    let attacks: [Attack; 8] = [
        ("do not have the size and SHA-256", 76, |folder, _| {
            fs::write(content(folder), b"evil").unwrap();
        }),
        ("do not have the size and SHA-256", 76, |folder, _| {
            fs::write(content(folder), b"dat").unwrap();
        }),
        ("the export lacks it", 65, |folder, _| {
            fs::remove_file(content(folder)).unwrap();
        }),
        ("symbolic link", 65, |folder, _| {
            fs::write(folder.join("outside"), b"data").unwrap();
            fs::remove_file(content(folder)).unwrap();
            std::os::unix::fs::symlink(folder.join("outside"), content(folder)).unwrap();
        }),
        ("symbolic link", 65, |folder, _| {
            fs::rename(folder.join("v1/blobs"), folder.join("moved")).unwrap();
            std::os::unix::fs::symlink(folder.join("moved"), folder.join("v1/blobs")).unwrap();
        }),
        ("its content gives the id", 76, |folder, id| {
            let path = folder.join(manifest_key(id));
            let text = fs::read_to_string(&path)
                .unwrap()
                .replace(r#""rows":"2""#, r#""rows":"3""#);
            fs::write(path, text).unwrap();
        }),
        ("no empty, '.' or '..' part", 65, |folder, id| {
            let path = folder.join(manifest_key(id));
            let text = fs::read_to_string(&path)
                .unwrap()
                .replace(r#""path":"text""#, r#""path":"../text""#);
            fs::write(path, text).unwrap();
        }),
        ("not the last of the list", 65, |folder, _| {
            let path = folder.join("wmtp-export.json");
            let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            index["artifacts"].as_array_mut().unwrap().reverse();
            fs::write(path, index.to_string()).unwrap();
        }),
    ];
    for (message, exit, attack) in attacks {
        let world = World::new().await;
        let (folder, id) = exported(&world).await;
        attack(&folder, &id);
        let there = World::new().await;
        let error = there.store.import(&folder, |_, _| {}).await.unwrap_err();
        assert!(error.to_string().contains(message), "{message}: {error}");
        assert_eq!(code(&error), exit, "{error}");
        assert_eq!(there.keys().await, Vec::<String>::new(), "{message}");
    }
}
