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

use super::Body;
use super::inline;
use super::record::SegmentEntry;
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

/// A body that is being written to a new segment; one that turns out to be small never is.
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
            size: self.size,
            digests: self.hasher.finish(),
            body: Arrived::Written(segment, file),
        })
    }

    /// Takes all of a small body.
    fn small(mut self, blocks: Vec<Bytes>) -> Received {
        let bytes = match <[Bytes; 1]>::try_from(blocks) {
            Ok([bytes]) => bytes,
            Err(blocks) => blocks.concat().into(),
        };
        self.hasher.update(&bytes);
        Received {
            size: bytes.len() as u64,
            digests: self.hasher.finish(),
            body: Arrived::Small(bytes),
        }
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
    pub(crate) size: u64,
    pub(crate) digests: BodyDigests,
    body: Arrived,
}

enum Arrived {
    Small(Bytes),
    Written(Arc<Segment>, File),
}

impl Received {
    /// How the record of an object names the bytes.
    pub(crate) fn entry(&self) -> SegmentEntry {
        SegmentEntry {
            name: match &self.body {
                Arrived::Small(_) => None,
                Arrived::Written(segment, _) => Some(segment.name().to_owned()),
            },
            size: self.size,
        }
    }

    /// The body of an object, durable where it lies in a file of its own.
    pub(crate) fn into_body(self, disk: &Disk) -> Result<Body, Error> {
        match self.body {
            Arrived::Small(bytes) => Ok(Body::Small(bytes)),
            Arrived::Written(segment, file) => {
                sync(&segment, &file, disk)?;
                Ok(Body::Segments(vec![segment]))
            }
        }
    }

    /// The same as a durable segment, however small: a part of an object.
    pub(crate) fn into_segment(self, disk: &Disk) -> Result<Arc<Segment>, Error> {
        let (segment, file) = match self.body {
            Arrived::Small(bytes) => {
                let (segment, mut file) = create(&disk.segments())?;
                file.write_all(&bytes).at(&segment.path)?;
                (segment, file)
            }
            Arrived::Written(segment, file) => (segment, file),
        };
        sync(&segment, &file, disk)?;
        Ok(segment)
    }
}

/// Makes the bytes of a segment durable; call it before the record that names them is written.
fn sync(segment: &Segment, file: &File, disk: &Disk) -> Result<(), Error> {
    disk.sync_file(file, &segment.path)?;
    disk.sync_shared_dir(&disk.segments())
}

/// Takes a request body in, digesting it on the way: a small one into memory, any other into a new segment.
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
    if writer.segment.is_none() && pending <= inline::MOST_BYTES {
        return Ok(writer.small(batch));
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
    /// A read of bytes that are here.
    pub(crate) fn of(bytes: Bytes) -> Self {
        let rest = Reader {
            left: 0,
            spans: Vec::new().into_iter(),
            current: None,
        };
        Self {
            first: (!bytes.is_empty()).then_some(bytes),
            rest,
        }
    }

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
    use super::{Segment, Span, begin, inline, receive};
    use crate::backend::Body;
    use crate::checksums::BodyHasher;
    use crate::disk::Disk;
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
        let size = received.size;
        assert_eq!(size, (3 << 20) + 3);
        let disk = tempfile::tempdir().unwrap();
        let disk = Disk::open(disk.path(), false).unwrap();
        let segment = received.into_segment(&disk).unwrap();
        let span = Span {
            segment: segment.clone(),
            segment_size: size,
            from: (3 << 20) - 1,
            to: size,
        };
        let bytes: Vec<Bytes> = begin(vec![span])
            .unwrap()
            .stream()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(bytes.concat(), b"\x07end");
        drop(segment);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_small_body_makes_a_file_only_as_a_part() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path(), false).unwrap();
        let most = vec![7; inline::MOST_BYTES];
        for (blocks, is_small) in [
            (vec![], true),
            (vec![most.clone()], true),
            (vec![b"two ".to_vec(), b"blocks".to_vec()], true),
            (vec![most, vec![7]], false),
        ] {
            let sent = blocks.concat();
            let blocks = move || {
                let blocks = blocks.clone().into_iter();
                futures::stream::iter(blocks.map(|block| Ok::<_, Infallible>(Bytes::from(block))))
            };
            let hasher = BodyHasher::new([], false);
            let received = receive(disk.segments(), blocks(), hasher).await.unwrap();
            assert_eq!(received.entry().name.is_none(), is_small, "{}", sent.len());
            match received.into_body(&disk).unwrap() {
                Body::Small(bytes) => assert!(is_small && bytes == sent),
                Body::Segments(_) => assert!(!is_small),
            }
            let hasher = BodyHasher::new([], false);
            let received = receive(disk.segments(), blocks(), hasher).await.unwrap();
            let part = received.into_segment(&disk).unwrap();
            let path = disk.segments().join(part.name());
            assert!(std::fs::read(path).unwrap() == sent);
        }
        let left = std::fs::read_dir(disk.segments()).unwrap().count();
        assert_eq!(left, 0, "no record names any of them");
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
        let path = folder.path().join(received.entry().name.unwrap());
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
