//! Listings of keys, and of uploads that were begun.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_smithy_types::DateTime;

use super::Bucket;
use super::failure::status;
use crate::Result;

/// An object as a listing shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Without the store's own prefix.
    pub(crate) key: String,
    /// Bytes.
    pub(crate) size: u64,
    /// When it was written, in seconds of the store's clock.
    pub(crate) modified: i64,
    /// Tells this version of the object from others.
    pub(crate) etag: String,
}

/// A multipart upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone)]
pub(crate) struct OpenUpload {
    /// Without the store's own prefix.
    pub(crate) key: String,
    pub(crate) id: String,
    /// When it was begun, in seconds of the store's clock.
    pub(crate) begun: i64,
}

/// A part that an upload under way has.
#[derive(Debug, Clone)]
pub(crate) struct StoredPart {
    /// From 1.
    pub(crate) number: i32,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// CRC64NVME as headers spell it, where the store keeps it.
    pub(crate) crc: Option<String>,
}

impl Bucket {
    /// All keys that begin with a prefix, in order, without the store's own prefix.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        self.list_objects(prefix, |object| keys.push(object.key))
            .await?;
        keys.sort();
        Ok(keys)
    }

    /// Shows every object whose key begins with a prefix, page by page: what the caller does not keep is not held.
    pub(crate) async fn list_objects(
        &self,
        prefix: &str,
        mut show: impl FnMut(Listed),
    ) -> Result<()> {
        self.list_some(prefix, usize::MAX, &mut show).await?;
        Ok(())
    }

    /// [`Bucket::list_objects`], but at most so many pages; false when there are more.
    pub(crate) async fn list_some(
        &self,
        prefix: &str,
        max_pages: usize,
        mut show: impl FnMut(Listed),
    ) -> Result<bool> {
        self.list_pages(prefix, None, max_pages, |page| {
            for object in page.contents() {
                if let Some(key) = object.key().and_then(|key| self.own_key(key)) {
                    let size = u64::try_from(object.size().unwrap_or(0)).unwrap_or(0);
                    let modified = object.last_modified().map_or(i64::MAX, DateTime::secs);
                    show(Listed {
                        key,
                        size,
                        modified,
                        etag: object.e_tag().unwrap_or_default().to_owned(),
                    });
                }
            }
        })
        .await
    }

    /// The names directly below a prefix that ends with `/`, in order.
    pub(crate) async fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.list_pages(prefix, Some("/"), usize::MAX, |page| {
            let folders = page.common_prefixes().iter();
            names.extend(folders.filter_map(|folder| {
                let folder = self.own_key(folder.prefix()?)?;
                Some(
                    folder
                        .strip_prefix(prefix)?
                        .trim_end_matches('/')
                        .to_owned(),
                )
            }));
        })
        .await?;
        names.sort();
        Ok(names)
    }

    /// A key as the store spells it, without the store's own prefix.
    fn own_key(&self, key: &str) -> Option<String> {
        key.strip_prefix(self.key("").as_str()).map(str::to_owned)
    }

    async fn list_pages(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        max_pages: usize,
        mut show: impl FnMut(&ListObjectsV2Output),
    ) -> Result<bool> {
        let mut token = None;
        for _ in 0..max_pages {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.uri.bucket)
                .prefix(self.key(prefix))
                .set_delimiter(delimiter.map(str::to_owned))
                .set_continuation_token(token);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) => return Err(self.failure(&format!("list {prefix}"), error).await),
            };
            show(&page);
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The uploads under way for keys that begin with a prefix; none where the store cannot list them.
    pub(crate) async fn open_uploads(&self, prefix: &str) -> Result<Option<Vec<OpenUpload>>> {
        let mut uploads = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.uri.bucket)
                .prefix(self.key(prefix))
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if status(&error) == Some(501) => return Ok(None),
                Err(error) => return Err(self.failure("list unfinished uploads", error).await),
            };
            uploads.extend(page.uploads().iter().filter_map(|upload| {
                Some(OpenUpload {
                    key: self.own_key(upload.key()?)?,
                    id: upload.upload_id()?.to_owned(),
                    begun: upload.initiated()?.secs(),
                })
            }));
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || key_marker.is_none() {
                return Ok(Some(uploads));
            }
        }
    }

    /// The parts that an upload has; none when there is no such upload.
    pub(crate) async fn list_parts(&self, key: &str, id: &str) -> Result<Option<Vec<StoredPart>>> {
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let request = self
                .client
                .list_parts()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .upload_id(id)
                .set_part_number_marker(marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if status(&error) == Some(404) => return Ok(None),
                Err(error) => {
                    let operation = format!("list the parts of {key}");
                    return Err(self.failure(&operation, error).await);
                }
            };
            parts.extend(page.parts().iter().filter_map(|part| {
                Some(StoredPart {
                    number: part.part_number()?,
                    size: u64::try_from(part.size()?).ok()?,
                    etag: part.e_tag().map(str::to_owned),
                    crc: part.checksum_crc64_nvme().map(str::to_owned),
                })
            }));
            marker = page.next_part_number_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || marker.is_none() {
                return Ok(Some(parts));
            }
        }
    }

    /// Ends an upload and frees its parts; one that is not there counts as ended.
    pub(crate) async fn abort_upload(&self, key: &str, id: &str) -> Result<()> {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.uri.bucket)
            .key(self.key(key))
            .upload_id(id);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(self
                .failure(&format!("abort the upload of {key}"), error)
                .await),
        }
    }
}
