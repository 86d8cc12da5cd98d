//! Multipart uploads, from the first part to one object without a copy.

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadError;
use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart, Part,
};
use dev_store::BUCKET;

use crate::support::{Store, pattern, refusal};

const PART_BYTES: usize = 5 << 20;

struct Upload<'s> {
    store: &'s Store,
    key: &'static str,
    id: String,
}

impl<'s> Upload<'s> {
    async fn begin(store: &'s Store, key: &'static str, algorithm: ChecksumAlgorithm) -> Self {
        let request = store
            .client
            .create_multipart_upload()
            .bucket(BUCKET)
            .key(key)
            .checksum_algorithm(algorithm);
        let id = request
            .metadata("kind", "multipart")
            .send()
            .await
            .unwrap()
            .upload_id
            .unwrap();
        Self { store, key, id }
    }

    async fn part(
        &self,
        number: i32,
        body: Vec<u8>,
        algorithm: ChecksumAlgorithm,
    ) -> CompletedPart {
        let request = self
            .store
            .client
            .upload_part()
            .bucket(BUCKET)
            .key(self.key)
            .upload_id(&self.id);
        let request = request
            .part_number(number)
            .checksum_algorithm(algorithm)
            .body(ByteStream::from(body));
        let output = request.send().await.unwrap();
        CompletedPart::builder()
            .part_number(number)
            .set_e_tag(output.e_tag)
            .set_checksum_crc64_nvme(output.checksum_crc64_nvme)
            .set_checksum_sha256(output.checksum_sha256)
            .build()
    }

    fn complete(&self, parts: &[CompletedPart]) -> CompleteMultipartUploadFluentBuilder {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts.to_vec()))
            .build();
        let request = self
            .store
            .client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key(self.key);
        request.upload_id(&self.id).multipart_upload(parts)
    }

    async fn listed_parts(&self) -> Vec<i32> {
        let parts = self
            .store
            .client
            .list_parts()
            .bucket(BUCKET)
            .key(self.key)
            .upload_id(&self.id)
            .send()
            .await
            .unwrap();
        parts.parts().iter().filter_map(Part::part_number).collect()
    }
}

fn code(result: Result<impl std::fmt::Debug, SdkError<CompleteMultipartUploadError>>) -> String {
    refusal(result).1
}

#[tokio::test]
async fn parts_out_of_order_survive_a_restart_and_become_one_object() {
    let mut store = Store::new();
    store.put("whole", b"what was there before").await;
    let algorithm = ChecksumAlgorithm::Crc64Nvme;
    let (id, mut parts) = {
        let upload = Upload::begin(&store, "whole", algorithm.clone()).await;
        let third = upload.part(3, b"the end".to_vec(), algorithm.clone()).await;
        let first = upload
            .part(1, pattern(PART_BYTES, 9), algorithm.clone())
            .await;
        (upload.id, vec![first, third])
    };
    store.restart(|_| {});
    assert_eq!(store.server().report().uploads, 1);
    let upload = Upload {
        store: &store,
        key: "whole",
        id,
    };
    assert_eq!(upload.listed_parts().await, [1, 3]);
    let uploads = store
        .client
        .list_multipart_uploads()
        .bucket(BUCKET)
        .prefix("wh")
        .send()
        .await
        .unwrap();
    assert_eq!(uploads.uploads()[0].upload_id(), Some(upload.id.as_str()));
    upload
        .part(2, b"replaced".to_vec(), algorithm.clone())
        .await;
    parts.insert(1, upload.part(2, pattern(PART_BYTES, 2), algorithm).await);
    assert_eq!(store.get("whole").await.unwrap(), b"what was there before");

    let done = upload.complete(&parts).send().await.unwrap();
    assert!(done.e_tag.unwrap().ends_with("-3\""));
    let expected = [
        pattern(PART_BYTES, 9),
        pattern(PART_BYTES, 2),
        b"the end".to_vec(),
    ]
    .concat();
    assert_eq!(store.get("whole").await.unwrap(), expected);
    assert_eq!(store.segments(), 3, "the parts are the object");
    let across = store.client.get_object().bucket(BUCKET).key("whole");
    let across = across
        .range(format!("bytes={}-{}", PART_BYTES - 2, 2 * PART_BYTES + 2))
        .send()
        .await
        .unwrap();
    assert_eq!(
        across.body.collect().await.unwrap().to_vec(),
        expected[PART_BYTES - 2..=2 * PART_BYTES + 2]
    );
    let last = store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("whole")
        .part_number(3)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            last.parts_count,
            last.body.collect().await.unwrap().to_vec()
        ),
        (Some(3), b"the end".to_vec())
    );
    let head = store
        .client
        .head_object()
        .bucket(BUCKET)
        .key("whole")
        .send()
        .await
        .unwrap();
    assert_eq!(head.metadata.unwrap()["kind"], "multipart");
    assert_eq!(code(upload.complete(&parts).send().await), "NoSuchUpload");

    // One PUT of the same bytes must have the same whole-object CRC that was combined from the parts.
    let combined = full_crc(&store, "whole").await;
    store.put("single", &expected).await;
    assert_eq!(combined, full_crc(&store, "single").await);
}

async fn full_crc(store: &Store, key: &str) -> String {
    let head = store
        .client
        .head_object()
        .bucket(BUCKET)
        .key(key)
        .checksum_mode(ChecksumMode::Enabled);
    head.send().await.unwrap().checksum_crc64_nvme.unwrap()
}

#[tokio::test]
async fn completion_refuses_what_was_not_uploaded_and_the_upload_goes_on() {
    let store = Store::new();
    let algorithm = ChecksumAlgorithm::Sha256;
    let upload = Upload::begin(&store, "strict", algorithm.clone()).await;
    let first = upload
        .part(1, pattern(PART_BYTES, 1), algorithm.clone())
        .await;
    let small = upload
        .part(2, b"too small for the middle".to_vec(), algorithm.clone())
        .await;
    let last = upload.part(3, b"end".to_vec(), algorithm).await;
    let with_etag = |etag: &str| CompletedPart::builder().part_number(1).e_tag(etag).build();
    let sha256 = Some("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned());
    let wrong_sum = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(first.e_tag.clone())
        .set_checksum_sha256(sha256)
        .build();
    let absent = CompletedPart::builder().part_number(9).e_tag("x").build();

    assert_eq!(
        code(upload.complete(&[with_etag("\"other\"")]).send().await),
        "InvalidPart"
    );
    assert_eq!(
        code(upload.complete(&[wrong_sum]).send().await),
        "InvalidPart"
    );
    assert_eq!(
        code(upload.complete(&[first.clone(), absent]).send().await),
        "InvalidPart"
    );
    assert_eq!(
        code(upload.complete(&[last.clone(), first.clone()]).send().await),
        "InvalidPartOrder"
    );
    assert_eq!(
        code(
            upload
                .complete(&[first.clone(), small, last.clone()])
                .send()
                .await
        ),
        "EntityTooSmall"
    );
    let chosen = [first, last];
    let wrong_whole = upload
        .complete(&chosen)
        .checksum_sha256("AAAA-2")
        .send()
        .await;
    assert_eq!(code(wrong_whole), "BadDigest");
    assert_eq!(refusal(store.get("strict").await).0, 404);

    let done = upload.complete(&chosen).send().await.unwrap();
    assert!(
        done.checksum_sha256.unwrap().ends_with("-2"),
        "SHA-256 over parts is composite"
    );
    assert_eq!(store.segments(), 2, "the part that was left out is gone");
}

#[tokio::test]
async fn conditional_completion_and_abort() {
    let store = Store::new();
    store.put("taken", b"first").await;
    let algorithm = ChecksumAlgorithm::Crc64Nvme;
    let upload = Upload::begin(&store, "taken", algorithm.clone()).await;
    let part = [upload.part(1, b"second".to_vec(), algorithm).await];
    let refused = upload.complete(&part).if_none_match("*").send().await;
    assert_eq!(refusal(refused), (412, "PreconditionFailed".to_owned()));
    let refused = upload
        .complete(&part)
        .checksum_crc64_nvme("AAAAAAAAAAA=")
        .send()
        .await;
    assert_eq!(refusal(refused), (400, "BadDigest".to_owned()));
    assert_eq!(store.get("taken").await.unwrap(), b"first");

    let abort = || {
        store
            .client
            .abort_multipart_upload()
            .bucket(BUCKET)
            .key("taken")
            .upload_id(&upload.id)
    };
    abort().send().await.unwrap();
    assert_eq!(
        refusal(abort().send().await),
        (404, "NoSuchUpload".to_owned())
    );
    assert_eq!((store.records(), store.segments()), (1, 0));
    assert_eq!(
        std::fs::read_dir(store.root.path().join("uploads"))
            .unwrap()
            .count(),
        0
    );
}
