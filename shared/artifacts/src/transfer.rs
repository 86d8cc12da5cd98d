//! What all transfers of contents share: a bound on memory, as many requests at a time as help, parts in their order.

use std::collections::VecDeque;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use crate::blob::{Source, part_bounds};
use crate::{Digest, FileEntry, Result};

/// Bytes of contents that a process holds in memory at a time, over all its transfers, counted in [`GRAIN`]s. A larger
/// part, of a file above 1.1 TB, takes all of it and goes alone.
const GRAINS: u32 = 128 << 10;
const GRAIN: u64 = 1 << 10;
static ROOM: Semaphore = Semaphore::const_new(GRAINS as usize);

/// Requests of one transfer at a time: at first, and at most.
const START_WIDTH: usize = 2;
const MAX_WIDTH: usize = 16;
/// One more request at a time must raise the rate by this factor to be kept.
const WORTHWHILE: f64 = 1.1;

/// Keeps the kernel from backing this process with pages of 2 MiB, which its allocator asks for: for programs that move
/// bytes and compute nothing, whose threads would each have some cleared for the few KiB that they need. Call it first of
/// all; where the kernel declines, all works as well.
pub fn without_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Memory that was set aside; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room(#[expect(dead_code, reason = "it is held")] SemaphorePermit<'static>);

impl Room {
    /// Waits until some bytes may be held.
    pub(crate) async fn take(bytes: u64) -> Self {
        let permit = ROOM.acquire_many(Self::grains(bytes)).await;
        Self(permit.expect("the semaphore is never closed"))
    }

    /// Room that is free now.
    fn try_take(bytes: u64) -> Option<Self> {
        ROOM.try_acquire_many(Self::grains(bytes)).ok().map(Self)
    }

    fn grains(bytes: u64) -> u32 {
        bytes.div_ceil(GRAIN).clamp(1, u64::from(GRAINS)) as u32
    }
}

/// Buffers of one transfer, taken again and again: the kernel pays for fresh memory page by page, and what was given
/// back to an allocator may stay with the process while the next part arrives.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for some bytes.
    pub(crate) fn take(&self, length: u64) -> Buffer {
        let mut bytes = self.free().pop().unwrap_or_default();
        bytes.clear();
        bytes.reserve_exact(length as usize);
        Buffer {
            bytes,
            home: self.clone(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to where it was taken from.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.free().push(std::mem::take(&mut self.bytes));
    }
}

/// The bytes of a part, checked, with the room that they take. Clones share both.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) index: usize,
    pub(crate) bytes: Bytes,
    _room: Arc<Room>,
}

impl Part {
    pub(crate) fn new(index: usize, bytes: Bytes, room: Room) -> Self {
        Self {
            index,
            bytes,
            _room: Arc::new(room),
        }
    }
}

impl Deref for Part {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The SHA-256 of a content, computed beside what else is done with its parts: hashing them takes longer than anything
/// else, and can only be done in their order.
pub(crate) struct Hasher {
    parts: mpsc::Sender<Part>,
    hashing: JoinHandle<Sha256>,
}

impl Hasher {
    /// Goes on after the parts that were hashed before.
    pub(crate) fn new(mut sha: Sha256) -> Self {
        // One part is hashed and one waits: those further behind are still being received or written.
        let (parts, mut given) = mpsc::channel::<Part>(1);
        let hashing = tokio::task::spawn_blocking(move || {
            while let Some(part) = given.blocking_recv() {
                sha.update(&part[..]);
            }
            sha
        });
        Self { parts, hashing }
    }

    /// Takes the next part, once the one before it is being hashed.
    pub(crate) async fn update(&self, part: &Part) {
        let taken = self.parts.send(part.clone()).await;
        taken.expect("parts are taken as long as they may come");
    }

    /// Waits for the last part.
    pub(crate) async fn finish(self) -> Digest {
        drop(self.parts);
        match self.hashing.await {
            Ok(sha) => Digest(sha.finalize().into()),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// A task that ends with whoever waits for it.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    pub(crate) fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx).map(|ended| {
            // Only its owner aborts a task, and then nobody waits for it.
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        })
    }
}

/// How many requests a transfer has under way: one more as long as that makes it faster. On loopback two are best, over
/// a network with 30 ms per request many.
#[derive(Debug)]
pub(crate) struct Width {
    now: usize,
    best_rate: f64,
    is_settled: bool,
    bytes: u64,
    parts: usize,
    since: Instant,
}

impl Width {
    pub(crate) fn new() -> Self {
        Self {
            now: START_WIDTH,
            best_rate: 0.0,
            is_settled: false,
            bytes: 0,
            parts: 0,
            since: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> usize {
        self.now
    }

    /// Counts a part that arrived.
    pub(crate) fn arrived(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.parts += 1;
        if !self.is_settled && self.parts >= 2 * self.now {
            self.measured(self.bytes as f64 / self.since.elapsed().as_secs_f64());
            (self.bytes, self.parts, self.since) = (0, 0, Instant::now());
        }
    }

    fn measured(&mut self, rate: f64) {
        if rate > WORTHWHILE * self.best_rate && self.now < MAX_WIDTH {
            self.best_rate = rate;
            self.now += 1;
        } else {
            self.now = (self.now - 1).max(START_WIDTH);
            self.is_settled = true;
        }
    }
}

/// Parts of a content, in their order, while the next ones are on their way.
pub(crate) struct PartReader {
    source: Source,
    entry: Arc<FileEntry>,
    waiting: VecDeque<usize>,
    arriving: FuturesOrdered<Task<Result<Part>>>,
    buffers: Buffers,
    width: Width,
}

impl PartReader {
    pub(crate) fn new(
        source: Source,
        entry: &FileEntry,
        indices: impl IntoIterator<Item = usize>,
    ) -> Self {
        Self {
            source,
            entry: Arc::new(entry.clone()),
            waiting: indices.into_iter().collect(),
            arriving: FuturesOrdered::new(),
            buffers: Buffers::default(),
            width: Width::new(),
        }
    }

    /// The next part; none after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            let next = self.waiting.front().copied();
            let wanted = next.filter(|_| self.arriving.len() < self.width.now());
            if wanted.is_none() && self.arriving.is_empty() {
                return Ok(None);
            }
            // Room is taken in the order of the parts, so the one that all others wait for always has it.
            tokio::select! {
                biased;
                room = take_room(&self.entry, wanted), if wanted.is_some() => self.start(room),
                Some(part) = self.arriving.next(), if !self.arriving.is_empty() => {
                    let part = part?;
                    self.width.arrived(part.len() as u64);
                    self.fill();
                    return Ok(Some(part));
                }
            }
        }
    }

    /// Begins what may be under way while the caller works on the part that it is about to get.
    fn fill(&mut self) {
        while self.arriving.len() < self.width.now()
            && let Some(&index) = self.waiting.front()
            && let Some(room) = Room::try_take(part_bounds(&self.entry, index).1)
        {
            self.start(room);
        }
    }

    fn start(&mut self, room: Room) {
        if let Some(index) = self.waiting.pop_front() {
            let (source, entry) = (self.source.clone(), Arc::clone(&self.entry));
            let buffers = self.buffers.clone();
            let read = async move { source.part(&entry, index, room, &buffers).await };
            self.arriving.push_back(Task::spawn(read));
        }
    }
}

async fn take_room(entry: &FileEntry, index: Option<usize>) -> Room {
    Room::take(index.map_or(0, |index| part_bounds(entry, index).1)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_widens_as_long_as_it_gains() {
        let mut width = Width::new();
        let mut seen = vec![width.now()];
        for rate in [100.0, 150.0, 180.0, 185.0] {
            width.measured(rate);
            seen.push(width.now());
        }
        assert_eq!(seen, [2, 3, 4, 5, 4], "the fifth request gained 3 %");
        assert!(width.is_settled);
        let mut loopback = Width::new();
        loopback.measured(100.0);
        loopback.measured(70.0);
        assert_eq!((loopback.now(), loopback.is_settled), (START_WIDTH, true));
        let mut endless = Width::new();
        let mut rate = 1.0;
        while !endless.is_settled {
            rate *= 2.0;
            endless.measured(rate);
            assert!(endless.now() <= MAX_WIDTH);
        }
    }

    #[test]
    fn a_buffer_serves_again_when_the_last_who_reads_it_is_done() {
        let buffers = Buffers::default();
        let fill = |byte: u8| {
            let mut buffer = buffers.take(1 << 20);
            assert!(buffer.bytes.is_empty());
            buffer.bytes.resize(1 << 20, byte);
            (buffer.bytes.as_ptr(), buffer.freeze())
        };
        let (first, bytes) = fill(1);
        let reader = bytes.slice(..10);
        drop(bytes);
        let (second, other) = fill(2);
        assert_ne!(first, second);
        assert_eq!(reader, [1; 10][..]);
        drop(reader);
        assert_eq!(fill(3).0, first);
        assert_eq!(other[..], vec![2; 1 << 20]);
    }

    #[tokio::test]
    async fn parts_are_hashed_in_the_order_in_which_they_come() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n >> 7) as u8).collect();
        let mut pieces = bytes.chunks(70_000).enumerate();
        let mut before = Sha256::new();
        before.update(pieces.next().unwrap().1);
        let hasher = Hasher::new(before);
        for (index, piece) in pieces {
            let room = Room::take(piece.len() as u64).await;
            let part = Part::new(index, Bytes::copy_from_slice(piece), room);
            hasher.update(&part).await;
        }
        assert_eq!(hasher.finish().await, Digest::of(&bytes));
    }

    /// A part larger than all the room there is must not wait for ever.
    #[tokio::test]
    async fn the_largest_part_gets_room() {
        drop(Room::take(1 << 40).await);
        drop(Room::take(0).await);
    }
}
