//! Segments: immutable files of data with random names.
//!
//! A segment counts the records that name it. One that no record names removes its file when the last handle goes: a
//! refused body leaves nothing behind, and a replaced object stays readable until its last reader ends.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
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

/// Bytes written at a time. Larger writes make the kernel ask for larger pieces of free memory, and where it got those
/// back from a hypervisor, each of their pages costs a fault: 1 GiB takes 0.4 s in blocks of up to 256 KiB, and 4 s in
/// blocks of 1 MiB (virtual machine with Linux 6.18 and free page reporting, 2026-11).
const WRITE_BYTES: usize = 128 << 10;
/// What takes no room on the disk.
static ZEROS: [u8; WRITE_BYTES] = [0; WRITE_BYTES];

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
    folder: PathBuf,
    /// Made with the first block.
    segment: Option<(Arc<Segment>, File)>,
    hasher: BodyHasher,
    size: u64,
}

impl Writer {
    fn new(folder: PathBuf, hasher: BodyHasher) -> Self {
        Self {
            folder,
            segment: None,
            hasher,
            size: 0,
        }
    }

    fn write(mut self, blocks: &[Bytes]) -> Result<Self, Error> {
        let (segment, mut file) = self
            .segment
            .take()
            .map_or_else(|| create(&self.folder), Ok)?;
        for piece in blocks.iter().flat_map(|block| block.chunks(WRITE_BYTES)) {
            self.hasher.update(piece);
            let written = if *piece == ZEROS[..piece.len()] {
                file.seek_relative(piece.len() as i64)
            } else {
                file.write_all(piece)
            };
            written.at(&segment.path)?;
            self.size += piece.len() as u64;
        }
        self.segment = Some((segment, file));
        Ok(self)
    }

    fn finish(self) -> Result<Received, Error> {
        let (segment, file) = self.segment.map_or_else(|| create(&self.folder), Ok)?;
        // A hole at the end is no part of the file yet.
        file.set_len(self.size).at(&segment.path)?;
        Ok(Received {
            segment,
            size: self.size,
            digests: self.hasher.finish(),
            file,
        })
    }
}

fn create(folder: &Path) -> Result<(Arc<Segment>, File), Error> {
    let path = folder.join(random_name());
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&path)
        .at(&path)?;
    Ok((Segment::unlinked(path), file))
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
        disk.sync_shared_dir(&disk.segments())
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
    let mut writer = Writer::new(folder, hasher);
    let (mut batch, mut pending) = (Vec::new(), 0);
    while let Some(block) = body.next().await {
        let block = block.map_err(|error| Error::Body(error.to_string()))?;
        pending += block.len();
        batch.push(block);
        if pending >= BLOCK_BYTES {
            let blocks = std::mem::take(&mut batch);
            writer = blocking(move || writer.write(&blocks)).await?;
            pending = 0;
        }
    }
    blocking(move || writer.write(&batch)?.finish()).await
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

/// A read that has begun: its first block is here, and every segment of it was found whole, so that damage is an error
/// and not a body that breaks off.
pub(crate) struct Reading {
    first: Option<Bytes>,
    rest: Reader,
}

/// Begins a read.
pub(crate) fn begin(spans: Vec<Span>) -> Result<Reading, Error> {
    for span in spans.iter().skip(1) {
        span.segment.open(span.segment_size)?;
    }
    let mut rest = Reader {
        left: spans.iter().map(|span| span.to - span.from).sum(),
        spans: spans.into_iter(),
        current: None,
    };
    let first = rest.next()?;
    Ok(Reading { first, rest })
}

impl Reading {
    /// The bytes, one block at a time.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + Sync + 'static {
        let first = futures::stream::iter(self.first.map(Ok));
        first.chain(futures::stream::try_unfold(
            self.rest,
            |mut reader| async move {
                // Going to another thread only to find the end would cost a small read as much as its bytes.
                if reader.left == 0 {
                    return Ok(None);
                }
                blocking(move || Ok(reader.next()?.map(|block| (block, reader)))).await
            },
        ))
    }
}

struct Reader {
    /// Bytes that are still to come.
    left: u64,
    spans: std::vec::IntoIter<Span>,
    /// The file that is being read, and how much of it is still wanted.
    current: Option<(Span, File)>,
}

impl Reader {
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match &mut self.current {
                Some((span, file)) if span.from < span.to => {
                    let length = (span.to - span.from).min(BLOCK_BYTES as u64);
                    let mut block = Vec::with_capacity(length as usize);
                    let read = file.take(length).read_to_end(&mut block);
                    if read.at(&span.segment.path)? as u64 != length {
                        return Err(Error::Damaged {
                            path: span.segment.path.clone(),
                            reason: "it became shorter while it was read".to_owned(),
                        });
                    }
                    span.from += length;
                    self.left -= length;
                    return Ok(Some(Bytes::from(block)));
                }
                _ => match self.spans.next() {
                    Some(span) => {
                        let mut file = span.segment.open(span.segment_size)?;
                        file.seek(SeekFrom::Start(span.from))
                            .at(&span.segment.path)?;
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
    use super::{Segment, Span, begin, receive};
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
        let bytes: Vec<Bytes> = begin(vec![span])
            .unwrap()
            .stream()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(bytes.concat(), b"\x07end");
        drop(received);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn zeros_are_stored_as_holes() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let text = Bytes::from_static(b"text");
        let blocks = [
            text.clone(),
            Bytes::from(vec![0; 2 << 20]),
            text,
            vec![0; 8 << 20].into(),
        ];
        let sent = blocks.concat();
        let blocks: Vec<Result<Bytes, Infallible>> = blocks.into_iter().map(Ok).collect();
        let body = futures::stream::iter(blocks);
        let hasher = BodyHasher::new([], false);
        let received = receive(folder.path().to_owned(), body, hasher)
            .await
            .unwrap();
        let path = folder.path().join(received.segment.name());
        assert!(std::fs::read(&path).unwrap() == sent);
        let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(
            taken <= 512 << 10,
            "{taken} bytes of {} are on the disk",
            sent.len()
        );
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
        assert!(matches!(begin(vec![span]), Err(Error::Damaged { .. })));
        assert!(folder.path().join("s").exists());
    }
}
