//! Segments: immutable files of data with random names.
//!
//! A segment counts the records that name it. One that no record names removes its file when the last handle goes: a
//! refused body leaves nothing behind, and a replaced object stays readable until its last reader ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use crate::checksums::{BodyDigests, BodyHasher};
use crate::disk::{Disk, file_name, random_name};
use crate::error::{AtPath, Error};

/// Bytes moved per trip to a blocking thread, on the way in and out.
const BLOCK_BYTES: usize = 1 << 20;

/// A data file and the number of durable records that name it.
#[derive(Debug)]
pub(crate) struct Segment {
    path: PathBuf,
    links: AtomicUsize,
}

impl Segment {
    /// A segment that no record names yet.
    pub(crate) fn unlinked(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            links: AtomicUsize::new(0),
        })
    }

    pub(crate) fn name(&self) -> &str {
        file_name(&self.path)
    }

    /// Counts a record that names this segment; call it once the record is on disk.
    pub(crate) fn link(&self) {
        self.links.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes back [`Segment::link`]; call it once the record is gone from disk.
    pub(crate) fn unlink(&self) {
        self.links.fetch_sub(1, Ordering::AcqRel);
    }

    /// Opens the file, refusing one that is not as long as its record says.
    fn open(&self, size: u64) -> Result<File, Error> {
        let file = File::open(&self.path).at(&self.path)?;
        let found = file.metadata().at(&self.path)?.len();
        if found == size {
            Ok(file)
        } else {
            Err(Error::Damaged {
                path: self.path.clone(),
                reason: format!("{found} bytes, its record says {size}"),
            })
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.links.load(Ordering::Acquire) == 0
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "unused segment stays until the next start");
        }
    }
}

/// A body that is being written to a new segment.
struct Writer {
    segment: Arc<Segment>,
    file: File,
    hasher: BodyHasher,
    size: u64,
}

impl Writer {
    fn create(folder: &Path, hasher: BodyHasher) -> Result<Self, Error> {
        let path = folder.join(random_name());
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(&path)
            .at(&path)?;
        Ok(Self {
            segment: Segment::unlinked(path),
            file,
            hasher,
            size: 0,
        })
    }

    fn write(&mut self, blocks: &[Bytes]) -> Result<(), Error> {
        for block in blocks {
            self.hasher.update(block);
            self.file.write_all(block).at(&self.segment.path)?;
            self.size += block.len() as u64;
        }
        Ok(())
    }
}

/// A body that has arrived in full; its digests are not yet judged, its bytes not yet durable.
pub(crate) struct Received {
    pub(crate) segment: Arc<Segment>,
    pub(crate) size: u64,
    pub(crate) digests: BodyDigests,
    file: File,
}

impl Received {
    /// Makes the bytes durable; call it before the record that names them is written.
    pub(crate) fn sync(&self, disk: &Disk) -> Result<(), Error> {
        disk.sync_file(&self.file, &self.segment.path)?;
        disk.sync_dir(&disk.segments())
    }
}

/// Writes a request body to a new segment, digesting it on the way.
pub(crate) async fn receive<S, E>(
    folder: PathBuf,
    mut body: S,
    hasher: BodyHasher,
) -> Result<Received, Error>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut writer = blocking(move || Writer::create(&folder, hasher)).await?;
    let (mut batch, mut pending) = (Vec::new(), 0);
    while let Some(block) = body.next().await {
        let block = block.map_err(|error| Error::Body(error.to_string()))?;
        pending += block.len();
        batch.push(block);
        if pending >= BLOCK_BYTES {
            let blocks = std::mem::take(&mut batch);
            writer = blocking(move || writer.write(&blocks).map(|()| writer)).await?;
            pending = 0;
        }
    }
    blocking(move || {
        writer.write(&batch)?;
        let Writer {
            segment,
            file,
            hasher,
            size,
        } = writer;
        Ok(Received {
            segment,
            size,
            digests: hasher.finish(),
            file,
        })
    })
    .await
}

/// A stretch of one segment that a read covers.
pub(crate) struct Span {
    pub(crate) segment: Arc<Segment>,
    /// The size of the whole segment according to its record.
    pub(crate) segment_size: u64,
    /// First byte wanted and the byte after the last one.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Checks that every segment of the read is whole, so that damage is an error and not a body that breaks off.
pub(crate) fn check(spans: &[Span]) -> Result<(), Error> {
    spans
        .iter()
        .try_for_each(|span| span.segment.open(span.segment_size).map(drop))
}

/// The bytes of `spans`, one block at a time.
pub(crate) fn read(
    spans: Vec<Span>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + Sync + 'static {
    let reader = Reader {
        spans: spans.into_iter(),
        current: None,
    };
    futures::stream::try_unfold(reader, |reader| blocking(move || reader.next()))
}

struct Reader {
    spans: std::vec::IntoIter<Span>,
    current: Option<(Span, File)>,
}

impl Reader {
    fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        loop {
            match self.current.take() {
                Some((mut span, file)) if span.from < span.to => {
                    let length = (span.to - span.from).min(BLOCK_BYTES as u64) as usize;
                    let mut block = vec![0; length];
                    file.read_exact_at(&mut block, span.from)
                        .at(&span.segment.path)?;
                    span.from += length as u64;
                    self.current = Some((span, file));
                    return Ok(Some((Bytes::from(block), self)));
                }
                _ => match self.spans.next() {
                    Some(span) => {
                        let file = span.segment.open(span.segment_size)?;
                        self.current = Some((span, file));
                    }
                    None => return Ok(None),
                },
            }
        }
    }
}

/// Runs file work on a thread made for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Segment, Span, check, read, receive};
    use crate::checksums::BodyHasher;
    use crate::error::Error;
    use bytes::Bytes;
    use futures::TryStreamExt as _;
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_body_that_no_record_names_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let blocks: Vec<Result<Bytes, Infallible>> = vec![
            Ok(Bytes::from(vec![7; 3 << 20])),
            Ok(Bytes::from_static(b"end")),
        ];
        let hasher = BodyHasher::new([], false);
        let received = receive(
            folder.path().to_owned(),
            futures::stream::iter(blocks),
            hasher,
        )
        .await
        .unwrap();
        assert_eq!(received.size, (3 << 20) + 3);
        let span = Span {
            segment: received.segment.clone(),
            segment_size: received.size,
            from: (3 << 20) - 1,
            to: received.size,
        };
        let bytes: Vec<Bytes> = read(vec![span]).try_collect().await.unwrap();
        assert_eq!(bytes.concat(), b"\x07end");
        drop(received);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_short_segment_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("s"), b"12").unwrap();
        let segment = Segment::unlinked(folder.path().join("s"));
        segment.link();
        let span = Span {
            segment,
            segment_size: 3,
            from: 0,
            to: 3,
        };
        assert!(matches!(check(&[span]), Err(Error::Damaged { .. })));
        assert!(folder.path().join("s").exists());
    }
}
