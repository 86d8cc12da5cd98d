//! The S3 operations: requests to backend calls, backend results and errors to responses.
//!
//! What is not here (versioning, tagging, lifecycle, ACL, the old listing) is answered 501 by `s3s`.

#[macro_use]
mod fields;
mod convert;
mod reads;

use std::sync::Arc;

use futures::StreamExt;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket as BucketEntry,
    ChecksumAlgorithm, CommonPrefix, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag,
    ETagCondition, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output,
    ListPartsInput, ListPartsOutput, Metadata, MetadataDirective, MultipartUpload,
    Part as PartEntry, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};

use self::convert::{
    KeyEncoding, announced_trailers, checksum_type, decode_token, encode_token, error_entry,
    is_composite, object_entry, page_limit, stored_encoding, timestamp, trailing_sums,
    unknown_algorithm,
};
use self::reads::{ReadConditions, Selection};
use crate::REGION;
use crate::backend::listing::{Query, Start};
use crate::backend::multipart::{MAX_PART_NUMBER, NamedPart};
use crate::backend::record::{Headers, ObjectRecord, UploadRecord, new_etag};
use crate::backend::segment::{self, Received, blocking};
use crate::backend::{Backend, Condition};
use crate::checksums::{Algorithm, Checksums, Expected, Sums};
use crate::disk::random_name;
use crate::error::Error;

/// The S3 face of a backend.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    backend: Arc<Backend>,
}

impl Service {
    pub(crate) fn new(backend: Arc<Backend>) -> Self {
        Self { backend }
    }

    /// Takes a body in and holds it against everything the client said about it.
    async fn receive(
        &self,
        body: Option<StreamingBlob>,
        length: Option<i64>,
        expected: Expected,
        also: Option<Algorithm>,
        trailers: Option<TrailingHeaders>,
    ) -> Result<Received, Error> {
        self.backend
            .disk
            .require_space(length.unwrap_or_default().unsigned_abs())?;
        let body = body.map_or_else(|| futures::stream::empty().boxed(), StreamExt::boxed);
        let received =
            segment::receive(self.backend.disk.segments(), body, expected.hasher(also)).await?;
        if length.is_some_and(|length| length.unsigned_abs() != received.size) {
            return Err(Error::Body(format!(
                "{} bytes came, {} were announced",
                received.size,
                length.unwrap_or_default()
            )));
        }
        let trailing = trailers
            .and_then(|trailers| trailers.read(trailing_sums))
            .unwrap_or_default();
        expected.check(&received.digests, &trailing)?;
        Ok(received)
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn list_buckets(
        &self,
        _: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self
            .backend
            .buckets()
            .into_iter()
            .map(|(name, bucket)| BucketEntry {
                name: Some(name),
                creation_date: Some(Timestamp::from(bucket.created())),
                ..BucketEntry::default()
            });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            ..ListBucketsOutput::default()
        }))
    }

    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let (backend, name) = (Arc::clone(&self.backend), request.input.bucket);
        let location = Some(format!("/{name}"));
        blocking(move || backend.create_bucket(&name)).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.backend.bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(REGION.to_owned()),
            ..HeadBucketOutput::default()
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let S3Request {
            input,
            headers,
            trailing_headers,
            ..
        } = request;
        let bucket = self.backend.bucket(&input.bucket)?;
        let expected = Expected {
            sums: sent_sums!(input),
            trailers: announced_trailers(&headers),
            md5: input.content_md5.clone(),
        };
        let attached = attached_headers!(input);
        let condition = Condition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
        };
        let received = self
            .receive(
                input.body,
                input.content_length,
                expected,
                None,
                trailing_headers,
            )
            .await?;
        let record = ObjectRecord {
            key: input.key,
            size: received.size,
            etag: new_etag(1),
            modified: self.backend.clock.now(),
            headers: attached,
            checksums: Checksums {
                composite: false,
                sums: received.digests.sums.clone(),
            },
            segments: vec![received.entry()],
        };
        let backend = Arc::clone(&self.backend);
        let object = blocking(move || {
            let body = received.into_body(&backend.disk)?;
            backend.put(&bucket, record, body, &condition)
        })
        .await?;
        let mut output = PutObjectOutput {
            e_tag: Some(ETag::Strong(object.record.etag.clone())),
            checksum_type: Some(checksum_type(false)),
            ..PutObjectOutput::default()
        };
        set_sums!(output, &object.record.checksums.sums);
        Ok(S3Response::new(output))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let bucket = self.backend.bucket(&input.bucket)?;
        let object = bucket.get(&input.key)?;
        let conditions = ReadConditions {
            matching: input.if_match,
            none_matching: input.if_none_match,
            modified_since: input.if_modified_since,
            unmodified_since: input.if_unmodified_since,
        };
        conditions.check(&object.record)?;
        let selection = Selection::of(&object.record, input.range, input.part_number)?;
        let (read, bytes) = (Arc::clone(&object), selection.bytes.clone());
        let reading = blocking(move || bucket.read(&read, bytes)).await?;
        let mut output = GetObjectOutput {
            body: Some(StreamingBlob::wrap(reading.stream())),
            ..GetObjectOutput::default()
        };
        describe!(output, object, &selection, input.checksum_mode.is_some());
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.backend.bucket(&input.bucket)?.get(&input.key)?;
        let conditions = ReadConditions {
            matching: input.if_match,
            none_matching: input.if_none_match,
            modified_since: input.if_modified_since,
            unmodified_since: input.if_unmodified_since,
        };
        conditions.check(&object.record)?;
        let selection = Selection::of(&object.record, input.range, input.part_number)?;
        let mut output = HeadObjectOutput::default();
        describe!(output, object, &selection, input.checksum_mode.is_some());
        Ok(S3Response::new(output))
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let CopySource::Bucket {
            bucket: from_bucket,
            key: from_key,
            version_id: None,
        } = &input.copy_source
        else {
            return Err(s3_error!(
                NotImplemented,
                "a copy source is a bucket and a key, without a version"
            ));
        };
        let from = self.backend.bucket(from_bucket)?;
        let source = from.get(from_key)?;
        let conditions = ReadConditions {
            matching: input.copy_source_if_match.clone(),
            none_matching: input.copy_source_if_none_match.clone(),
            modified_since: input.copy_source_if_modified_since.clone(),
            unmodified_since: input.copy_source_if_unmodified_since.clone(),
        };
        conditions
            .check(&source.record)
            .map_err(|_| Error::PreconditionFailed("x-amz-copy-source-if-*"))?;
        let mut record = source.record.clone();
        record.key.clone_from(&input.key);
        record.etag = new_etag(record.segments.len());
        record.modified = self.backend.clock.now();
        if input
            .metadata_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE)
        {
            record.headers = attached_headers!(input);
        }
        let bucket = self.backend.bucket(&input.bucket)?;
        let backend = Arc::clone(&self.backend);
        let object = blocking(move || {
            let body = from.body(&source)?;
            backend.put(&bucket, record, body, &Condition::default())
        })
        .await?;
        let mut result = CopyObjectResult {
            e_tag: Some(ETag::Strong(object.record.etag.clone())),
            last_modified: Some(timestamp(object.record.modified)),
            checksum_type: Some(checksum_type(object.record.checksums.composite)),
            ..CopyObjectResult::default()
        };
        set_sums!(result, &object.record.checksums.sums);
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        let (backend, bucket) = (
            Arc::clone(&self.backend),
            self.backend.bucket(&input.bucket)?,
        );
        let condition = Condition {
            if_match: input.if_match,
            if_none_match: None,
        };
        blocking(move || backend.delete(&bucket, &input.key, &condition)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        let (backend, bucket) = (
            Arc::clone(&self.backend),
            self.backend.bucket(&input.bucket)?,
        );
        let quiet = input.delete.quiet.unwrap_or_default();
        let (deleted, errors) = blocking(move || {
            let (mut deleted, mut errors) = (Vec::new(), Vec::new());
            for object in input.delete.objects {
                let condition = Condition {
                    if_match: object.e_tag.map(ETagCondition::ETag),
                    if_none_match: None,
                };
                match backend.delete(&bucket, &object.key, &condition) {
                    Ok(()) => deleted.push(DeletedObject {
                        key: Some(object.key),
                        ..DeletedObject::default()
                    }),
                    Err(error) => errors.push(error_entry(object.key, error)),
                }
            }
            Ok((deleted, errors))
        })
        .await?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let limit = page_limit(input.max_keys)?;
        let start = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => decode_token(token)?,
            (None, Some(key)) => Start::AfterKey(key.clone()),
            (None, None) => Start::Beginning,
        };
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            start,
            limit: limit as usize,
        };
        let page = self.backend.bucket(&input.bucket)?.list(&query);
        let encode = KeyEncoding::of(input.encoding_type.as_ref());
        let contents: Vec<_> = page
            .objects
            .iter()
            .map(|object| object_entry(&object.record, encode))
            .collect();
        let prefixes: Vec<CommonPrefix> = page
            .prefixes
            .iter()
            .map(|prefix| CommonPrefix {
                prefix: Some(encode.apply(prefix)),
            })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix.map(|text| encode.apply(&text)),
            delimiter: input.delimiter.map(|text| encode.apply(&text)),
            start_after: input.start_after.map(|text| encode.apply(&text)),
            max_keys: Some(limit),
            key_count: Some((contents.len() + prefixes.len()) as i32),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.as_ref().map(encode_token),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.backend.bucket(&input.bucket)?;
        let algorithm = match &input.checksum_algorithm {
            Some(name) => {
                Some(Algorithm::from_name(name.as_str()).ok_or_else(|| unknown_algorithm(name))?)
            }
            None => None,
        };
        let record = UploadRecord {
            id: random_name(),
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            initiated: self.backend.clock.now(),
            headers: attached_headers!(input),
            algorithm,
            composite: is_composite(algorithm, input.checksum_type.as_ref()),
        };
        let output = CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(record.id.clone()),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: algorithm.map(|_| checksum_type(record.composite)),
            ..CreateMultipartUploadOutput::default()
        };
        let backend = Arc::clone(&self.backend);
        blocking(move || backend.create_upload(record)).await?;
        Ok(S3Response::new(output))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let S3Request {
            input,
            headers,
            trailing_headers,
            ..
        } = request;
        let number = u16::try_from(input.part_number)
            .ok()
            .filter(|&number| number > 0 && i32::from(number) <= MAX_PART_NUMBER)
            .ok_or_else(|| {
                s3_error!(
                    InvalidArgument,
                    "part numbers run from 1 to {MAX_PART_NUMBER}"
                )
            })?;
        let upload = self
            .backend
            .upload(&input.upload_id, &input.bucket, &input.key)?;
        let expected = Expected {
            sums: sent_sums!(input),
            trailers: announced_trailers(&headers),
            md5: input.content_md5,
        };
        let also = upload.record.algorithm;
        let received = self
            .receive(
                input.body,
                input.content_length,
                expected,
                also,
                trailing_headers,
            )
            .await?;
        let backend = Arc::clone(&self.backend);
        let part = blocking(move || backend.add_part(&upload, number, received)).await?;
        let mut output = UploadPartOutput {
            e_tag: Some(ETag::Strong(part.etag)),
            ..UploadPartOutput::default()
        };
        set_sums!(output, &part.sums);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let upload = self
            .backend
            .upload(&input.upload_id, &input.bucket, &input.key)?;
        let sent = sent_sums!(input);
        let condition = Condition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
        };
        let named: Vec<NamedPart> = input
            .multipart_upload
            .and_then(|list| list.parts)
            .unwrap_or_default()
            .into_iter()
            .map(|part| NamedPart {
                number: part.part_number.unwrap_or_default(),
                sums: sent_sums!(part),
                etag: part.e_tag.map(ETag::into_value),
            })
            .collect();
        let backend = Arc::clone(&self.backend);
        let object =
            blocking(move || backend.complete_upload(&upload, &named, &sent, &condition)).await?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(object.record.etag.clone())),
            checksum_type: Some(checksum_type(object.record.checksums.composite)),
            ..CompleteMultipartUploadOutput::default()
        };
        set_sums!(output, &object.record.checksums.sums);
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let upload = self
            .backend
            .upload(&input.upload_id, &input.bucket, &input.key)?;
        let backend = Arc::clone(&self.backend);
        blocking(move || backend.abort_upload(&upload)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let limit = page_limit(input.max_parts)?;
        let upload = self
            .backend
            .upload(&input.upload_id, &input.bucket, &input.key)?;
        let after = input.part_number_marker.unwrap_or_default();
        let mut rest = upload
            .parts()
            .into_iter()
            .filter(|part| i32::from(part.number) > after);
        let parts: Vec<PartEntry> = rest
            .by_ref()
            .take(limit as usize)
            .map(|part| {
                let mut entry = PartEntry {
                    part_number: Some(i32::from(part.number)),
                    e_tag: Some(ETag::Strong(part.etag)),
                    size: Some(part.segment.size as i64),
                    last_modified: Some(timestamp(part.modified)),
                    ..PartEntry::default()
                };
                set_sums!(entry, &part.sums);
                entry
            })
            .collect();
        let more = rest.next().is_some();
        let record = &upload.record;
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            part_number_marker: Some(after),
            max_parts: Some(limit),
            is_truncated: Some(more),
            next_part_number_marker: parts
                .last()
                .filter(|_| more)
                .and_then(|part| part.part_number),
            checksum_algorithm: record
                .algorithm
                .map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
            checksum_type: record.algorithm.map(|_| checksum_type(record.composite)),
            parts: Some(parts),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        if input
            .delimiter
            .as_ref()
            .is_some_and(|delimiter| !delimiter.is_empty())
        {
            return Err(s3_error!(
                NotImplemented,
                "uploads are listed by prefix, without a delimiter"
            ));
        }
        self.backend.bucket(&input.bucket)?;
        let limit = page_limit(input.max_uploads)?;
        let encode = KeyEncoding::of(input.encoding_type.as_ref());
        let prefix = input.prefix.clone().unwrap_or_default();
        let uploads = self.backend.uploads_of(&input.bucket);
        let mut rest = uploads
            .iter()
            .filter(|record| record.key.starts_with(&prefix))
            .filter(|record| {
                let Some(key) = &input.key_marker else {
                    return true;
                };
                input
                    .upload_id_marker
                    .as_ref()
                    .map_or(record.key > *key, |id| {
                        (&record.key, &record.id) > (key, id)
                    })
            });
        let page: Vec<&UploadRecord> = rest.by_ref().take(limit as usize).collect();
        let last = page.last().filter(|_| rest.next().is_some());
        let entries = page.iter().map(|record| MultipartUpload {
            key: Some(encode.apply(&record.key)),
            upload_id: Some(record.id.clone()),
            initiated: Some(timestamp(record.initiated)),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(entries.collect()),
            is_truncated: Some(last.is_some()),
            next_key_marker: last.map(|record| encode.apply(&record.key)),
            next_upload_id_marker: last.map(|record| record.id.clone()),
            bucket: Some(input.bucket),
            prefix: input.prefix.map(|text| encode.apply(&text)),
            key_marker: input.key_marker.map(|text| encode.apply(&text)),
            upload_id_marker: input.upload_id_marker,
            max_uploads: Some(limit),
            encoding_type: input.encoding_type,
            ..ListMultipartUploadsOutput::default()
        }))
    }
}
