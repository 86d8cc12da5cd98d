//! Large contents: what a broken transfer leaves is gone on with, and nothing is left behind.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType};
use futures::future::join_all;

use super::*;

const PART: usize = 16 << 20;
const PARTS: usize = 8;

impl World {
    /// A folder with one file of as many parts, each of its own byte.
    fn large(&self, name: &str) -> Draft {
        let root = self.dir.path().join(name);
        fs::create_dir_all(&root).unwrap();
        let parts: Vec<_> = (0..PARTS).map(|part| vec![part as u8; PART]).collect();
        fs::write(root.join("large.bin"), parts.concat()).unwrap();
        draft(root)
    }

    /// Parts that each upload under way has.
    async fn uploads(&self) -> Vec<usize> {
        let raw = self.raw();
        let page = raw.list_multipart_uploads().bucket(BUCKET).send().await;
        let mut counts = Vec::new();
        for upload in page.unwrap().uploads() {
            let parts = raw
                .list_parts()
                .bucket(BUCKET)
                .key(upload.key().unwrap())
                .upload_id(upload.upload_id().unwrap());
            // It may end just now.
            counts.push(parts.send().await.map_or(0, |page| page.parts().len()));
        }
        counts
    }

    /// Begins the upload of the large file and sends some parts, each of one byte.
    async fn begin_upload(&self, draft: &Draft, parts: impl IntoIterator<Item = (i32, u8)>) {
        let raw = self.raw();
        let digest = Digest::of_file(&draft.root.join("large.bin"))
            .unwrap()
            .to_string();
        let key = format!("main/v1/blobs/sha256/{}/{digest}", &digest[..2]);
        let begun = raw
            .create_multipart_upload()
            .bucket(BUCKET)
            .key(&key)
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject);
        let upload = begun.send().await.unwrap().upload_id.unwrap();
        for (number, byte) in parts {
            let part = raw
                .upload_part()
                .bucket(BUCKET)
                .key(&key)
                .upload_id(&upload);
            let part = part.part_number(number).body(vec![byte; PART].into());
            part.send().await.unwrap();
        }
    }
}

/// The first parts, as they should be.
fn first_parts(count: usize) -> impl Iterator<Item = (i32, u8)> {
    (0..count).map(|index| (index as i32 + 1, index as u8))
}

/// Share of the whole that travelled, in percent.
fn percent(bytes: u64) -> u64 {
    100 * bytes / (PARTS * PART) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_goes_on_and_leaves_nothing() {
    let world = World::new().await;
    let draft = world.large("out");
    // Of two attempts the one that came further is gone on with.
    world.begin_upload(&draft, first_parts(1)).await;
    world.begin_upload(&draft, first_parts(PARTS / 2)).await;
    assert_eq!(world.keys().await, Vec::<String>::new());
    let before = world.server.received();
    let published = world.store.publish(&draft, &provenance(vec![])).await;
    let manifest = published.unwrap();
    let again = percent(world.server.received() - before);
    assert!(again <= 55, "{again} % were sent again");
    assert_eq!(world.uploads().await, Vec::<usize>::new());
    let folder = world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    let (sent, got) = (draft.root.join("large.bin"), folder.join("large.bin"));
    assert_eq!(
        Digest::of_file(&sent).unwrap(),
        Digest::of_file(&got).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on() {
    let world = World::new().await;
    let draft = world.large("out");
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    let mirror = world.mirror();
    let key = blob_key(&manifest, "large.bin");
    let blob = mirror.root().join(key.strip_prefix("v1/").unwrap());
    let bytes = fs::read(draft.root.join("large.bin")).unwrap();
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(blob.with_extension("part"), &bytes[..PARTS / 2 * PART + 5]).unwrap();
    let before = world.server.sent();
    let folder = world.store.fetch(&manifest.id, &mirror).await.unwrap();
    let again = percent(world.server.sent() - before);
    assert!(again <= 55, "{again} % were sent again");
    let (sent, got) = (draft.root.join("large.bin"), folder.join("large.bin"));
    assert_eq!(
        Digest::of_file(&sent).unwrap(),
        Digest::of_file(&got).unwrap()
    );
    assert!(!blob.with_extension("part").exists());
}

/// A part with one wrong byte is refused, what came before it is kept, and nothing passes for the content meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_part_never_reaches_the_file() {
    let world = World::new().await;
    let draft = world.large("out");
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    let (mirror, key) = (world.mirror(), blob_key(&manifest, "large.bin"));
    let blob = mirror.root().join(key.strip_prefix("v1/").unwrap());
    let bytes = fs::read(draft.root.join("large.bin")).unwrap();
    let mut wrong = bytes.clone();
    wrong[5 * PART + 7] ^= 1;
    world.overwrite(&key, &wrong).await;
    let error = world.store.fetch(&manifest.id, &mirror).await.unwrap_err();
    assert_eq!(code(&error), 76, "{error}");
    assert!(error.to_string().contains("CRC64NVME"), "{error}");
    assert!(!blob.exists());
    let left = fs::read(blob.with_extension("part")).unwrap();
    assert!(left == bytes[..5 * PART], "{} bytes are kept", left.len());
    world.overwrite(&key, &bytes).await;
    world.store.fetch(&manifest.id, &mirror).await.unwrap();
    assert!(fs::read(&blob).unwrap() == bytes);
}

/// Other bytes with the very checksums of the parts are told apart by the SHA-256 of the whole.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_have_the_right_crc_alone_are_refused() {
    // The generator of CRC64NVME, x^64 first: to add it somewhere leaves the checksum as it is.
    const GENERATOR: u128 = 1 | 0x9a6c_9329_ac4b_c9b5 << 1;
    let world = World::new().await;
    let draft = world.large("out");
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    let (mirror, key) = (world.mirror(), blob_key(&manifest, "large.bin"));
    let blob = mirror.root().join(key.strip_prefix("v1/").unwrap());
    let bytes = fs::read(draft.root.join("large.bin")).unwrap();
    let mut forged = bytes.clone();
    let place = &mut forged[3 * PART + 1000..];
    for (byte, add) in place.iter_mut().zip(GENERATOR.to_le_bytes()) {
        *byte ^= add;
    }
    let crc = |bytes: &[u8]| Crc64::of(&bytes[3 * PART..4 * PART]);
    assert!(forged != bytes && crc(&forged) == crc(&bytes));
    world.overwrite(&key, &forged).await;
    let error = world.store.fetch(&manifest.id, &mirror).await.unwrap_err();
    assert_eq!(code(&error), 76, "{error}");
    assert!(error.to_string().contains("SHA-256"), "{error}");
    assert!(!blob.exists());
    // Nothing of it is gone on with, for which part is wrong cannot be told.
    assert_eq!(fs::metadata(blob.with_extension("part")).unwrap().len(), 0);
    world.overwrite(&key, &bytes).await;
    world.store.fetch(&manifest.id, &mirror).await.unwrap();
    assert!(fs::read(&blob).unwrap() == bytes);
}

/// A part of an unfinished upload that has the right size and other bytes is sent once more.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_upload_has_is_checked() {
    let world = World::new().await;
    let draft = world.large("out");
    let wrong = [(1, 0), (2, 99), (3, 2), (4, 3), (9, 8)];
    world.begin_upload(&draft, wrong).await;
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    world
        .store
        .fetch(&manifest.id, &world.mirror())
        .await
        .unwrap();
    assert_eq!(world.uploads().await, Vec::<usize>::new());
}

/// Each finds what the others began, and all end well.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_one_content_share_an_upload() {
    let world = World::new().await;
    let draft = world.large("out");
    world.begin_upload(&draft, first_parts(1)).await;
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(connect(&world.server, "main", |_| {}).await);
    }
    let provenance = provenance(vec![]);
    let published = stores
        .iter()
        .map(|store| store.publish(&draft, &provenance));
    let manifests: Vec<_> = join_all(published)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(
        manifests
            .iter()
            .all(|manifest| manifest.id == manifests[0].id)
    );
    world
        .store
        .fetch(&manifests[0].id, &world.mirror())
        .await
        .unwrap();
    assert_eq!(world.uploads().await, Vec::<usize>::new());
}

/// An export that was cut off goes on with the content it was at, and mends what is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_goes_on() {
    let world = World::new().await;
    let draft = world.large("out");
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    let folder = world.dir.path().join("export");
    let blob = folder.join(blob_key(&manifest, "large.bin"));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let bytes = fs::read(draft.root.join("large.bin")).unwrap();
    fs::write(blob.with_extension("part"), &bytes[..PARTS / 2 * PART + 5]).unwrap();
    let before = world.server.sent();
    world
        .store
        .export(&manifest.id, &folder, |_, _| {})
        .await
        .unwrap();
    let sent = percent(world.server.sent() - before);
    assert!(sent <= 55, "{sent} % were sent");
    assert!(fs::read(&blob).unwrap() == bytes);
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, b"damaged").unwrap();
    world
        .store
        .export(&manifest.id, &folder, |_, _| {})
        .await
        .unwrap();
    assert!(fs::read(&blob).unwrap() == bytes);
}

/// Many contents are looked up by listing; what is there, is gone or was cut off is told apart all the same.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_are_sent_once() {
    let world = World::new().await;
    let root = world.dir.path().join("many");
    fs::create_dir(&root).unwrap();
    for number in 0..150 {
        let text = format!("content {number}").repeat(100);
        fs::write(root.join(number.to_string()), text).unwrap();
    }
    let draft = draft(root);
    let manifest = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    let before = world.server.received();
    world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    assert!(
        world.server.received() - before < 60_000,
        "the manifest alone"
    );
    world.delete(&blob_key(&manifest, "7")).await;
    world.overwrite(&blob_key(&manifest, "8"), b"short").await;
    world.store.verify(&manifest).await.unwrap_err();
    fs::write(draft.root.join("more"), "more").unwrap();
    let more = world
        .store
        .publish(&draft, &provenance(vec![]))
        .await
        .unwrap();
    assert_ne!(more.id, manifest.id);
    let folder = world.store.fetch(&manifest.id, &world.mirror()).await;
    assert_eq!(read(&folder.unwrap(), "7"), b"content 7".repeat(100));
    let report = fsck(&world, FsckDepth::Full).await;
    assert!(report.is_sound(), "{report:?}");
}
