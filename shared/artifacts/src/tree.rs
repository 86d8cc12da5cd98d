//! Plain objects below a prefix of some S3 store, as other programs put them there: a source, not a store of artifacts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use futures::{StreamExt, stream};

use crate::blob::blocking;
use crate::client::Bucket;
use crate::manifest::check_path;
use crate::transfer::Room;
use crate::{Crc64, Error, Result, StoreOptions, StoreUri};

/// Bytes asked for at a time, and requests under way for one file.
const PIECE: u64 = 16 << 20;
const IN_FLIGHT: usize = 4;
/// Bytes read and written at a time.
const BLOCK: usize = 128 << 10;

/// The objects below a prefix.
#[derive(Clone)]
pub struct Tree {
    bucket: Arc<Bucket>,
}

/// One object of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Path below the prefix; it leads nowhere else.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Tells this version of the object from others.
    pub etag: String,
}

impl Tree {
    /// Gets ready to ask a store.
    ///
    /// # Errors
    /// [`Error::Usage`] for an endpoint that may not be used.
    pub async fn connect(uri: &StoreUri, options: StoreOptions) -> Result<Self> {
        let bucket = Bucket::connect(uri, options).await?;
        Ok(Self {
            bucket: Arc::new(bucket),
        })
    }

    /// Bucket, prefix and endpoint, for messages.
    pub fn place(&self) -> String {
        self.bucket.place()
    }

    /// What lies below the prefix, sorted by path. Markers of folders are left out.
    ///
    /// # Errors
    /// [`Error::BadInput`] for a key that is no path of a file; [`Error::Unavailable`] when the store does not answer.
    pub async fn files(&self) -> Result<Vec<TreeFile>> {
        let mut listed = Vec::new();
        self.bucket
            .list_objects("", |object| listed.push(object))
            .await?;
        listed.retain(|object| !(object.key.ends_with('/') && object.size == 0));
        let files = listed.into_iter().map(|object| {
            check_path(&object.key).map_err(|detail| {
                let what = format!("object {:?} in {}", object.key, self.place());
                Error::bad_input(what, detail)
            })?;
            Ok(TreeFile {
                path: object.key,
                size: object.size,
                etag: object.etag,
            })
        });
        let mut files = files.collect::<Result<Vec<_>>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Whether a local file has the size of the object and, where the store keeps one of the whole object, its CRC64NVME.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Unavailable`] when the store does not answer.
    pub async fn is_at(&self, file: &TreeFile, path: &Path) -> Result<bool> {
        if length(path) != Some(file.size) {
            return Ok(false);
        }
        let Some(expected) = self.bucket.whole_crc(&file.path).await? else {
            return Ok(true);
        };
        let path = path.to_owned();
        blocking(move || Ok(crc_of(&path)?.base64() == expected)).await
    }

    /// Fetches an object on from what lies at `path`, until all of it is there. `arrived` is told the bytes of each piece.
    ///
    /// # Errors
    /// [`Error::BadInput`] when the object changes meanwhile; [`Error::Corrupt`] when the bytes are wrong twice.
    pub async fn fetch(&self, file: &TreeFile, path: &Path, arrived: impl Fn(u64)) -> Result<()> {
        for _ in 0..2 {
            let here = length(path).unwrap_or(0).min(file.size);
            self.fetch_rest(file, path, here, &arrived).await?;
            if self.is_at(file, path).await? {
                return Ok(());
            }
            // What an earlier attempt left may be of another object.
            fs::remove_file(path).map_err(|source| Error::io(path, source))?;
        }
        Err(Error::corrupt(
            format!("{} in {}", file.path, self.place()),
            "what arrives does not have the CRC64NVME that the store states",
        ))
    }

    async fn fetch_rest(
        &self,
        file: &TreeFile,
        path: &Path,
        here: u64,
        arrived: &impl Fn(u64),
    ) -> Result<()> {
        let target = path.to_owned();
        let mut out = blocking(move || open_at(&target, here)).await?;
        let starts = (here..file.size).step_by(PIECE as usize);
        let mut pieces = stream::iter(starts)
            .map(|start| self.piece(file, start))
            .buffered(IN_FLIGHT);
        while let Some(piece) = pieces.next().await {
            let (bytes, _room) = piece?;
            arrived(bytes.len() as u64);
            let target = path.to_owned();
            out = blocking(move || append(out, &bytes, &target)).await?;
        }
        Ok(())
    }

    async fn piece(&self, file: &TreeFile, start: u64) -> Result<(Bytes, Room)> {
        let length = PIECE.min(file.size - start);
        let room = Room::take(length).await;
        let _slot = self.bucket.slot().await;
        let found = self
            .bucket
            .get_range_of(&file.path, start, length, &file.etag)
            .await?;
        match found {
            Some(bytes) if bytes.len() as u64 == length => Ok((bytes, room)),
            _ => Err(Error::bad_input(
                format!("{} in {}", file.path, self.place()),
                "the object changed or went while it was fetched; run the same command again",
            )),
        }
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.len())
}

/// Opens a file to write on from a place.
fn open_at(path: &Path, at: u64) -> Result<File> {
    let open = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.set_len(at)?;
        file.seek(SeekFrom::Start(at))?;
        Ok(file)
    };
    open().map_err(|source| Error::io(path, source))
}

fn append(mut file: File, bytes: &[u8], path: &Path) -> Result<File> {
    for block in bytes.chunks(BLOCK) {
        file.write_all(block)
            .map_err(|source| Error::io(path, source))?;
    }
    Ok(file)
}

fn crc_of(path: &Path) -> Result<Crc64> {
    let read = || {
        let mut file = File::open(path)?;
        let mut crc = crc_fast::Digest::new(Crc64Nvme);
        let mut block = vec![0; BLOCK];
        loop {
            match file.read(&mut block)? {
                0 => return Ok::<_, io::Error>(Crc64::from_value(crc.finalize())),
                length => crc.update(&block[..length]),
            }
        }
    };
    read().map_err(|source| Error::io(path, source))
}
