//! Memory: what is left of it, and how many sequences go through the model at once.

use std::path::{Path, PathBuf};

use wmtp_artifacts::fault;

use crate::error::{Error, Result, Shortage};
use crate::ranks::Ranks;

/// Memory that a step may take on top of what the process holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// What the machine, and the control groups that the process runs in, have left.
    Measured,
    /// So many bytes.
    Bytes(u64),
    /// What the allocator gives: a device's fails with an error, which is soon enough.
    Allocator,
}

impl Room {
    /// Bytes left; `None` where the system does not say.
    fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Allocator => None,
            Self::Measured if fault::fails("train:memory") => Some(0),
            Self::Measured => [machine(), control_groups()].into_iter().flatten().min(),
        }
    }
}

/// Passes a point at which a device's allocator may fail.
pub(crate) fn allocator(point: &str) -> Result<()> {
    if fault::fails(point) {
        let planned = Shortage::Allocator(point.to_owned());
        return Err(Error::OutOfMemory(planned));
    }
    Ok(())
}

/// Memory ran out: the step began again with fewer sequences at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halved {
    /// Sequences at once until then.
    pub from: usize,
    /// Sequences at once from now on.
    pub to: usize,
    /// What was missing, in words and numbers.
    pub cause: String,
    /// Bytes that the micro-batch needs, where that was computed beforehand.
    pub needed_bytes: Option<u64>,
    /// Bytes that there were.
    pub available_bytes: Option<u64>,
}

/// How many sequences go through the model at once: as many as the settings say, and half as many each time that
/// memory runs out.
///
/// A CPU's memory never runs out with an error: the kernel ends the process. So the need of a micro-batch is computed
/// and compared with what is left before it starts. A device's allocator does fail, and that error counts as well.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    sequences: usize,
    room: Room,
    /// Bytes of buffers of the run that are reserved but not yet written, counted with the first micro-batch.
    unwritten: u64,
    /// The largest micro-batch that was let through, the same on all ranks: a smaller one fits as well.
    largest: u64,
}

impl MicroBatch {
    pub(crate) fn new(sequences: usize, room: Room, unwritten: u64) -> Self {
        Self {
            sequences: sequences.max(1),
            room,
            unwritten,
            largest: 0,
        }
    }

    pub(crate) fn sequences(&self) -> usize {
        self.sequences
    }

    /// Goes on with the number that a saved run had come to, if that is known, and with buffers of which its state has
    /// filled the others.
    pub(crate) fn resume(&mut self, sequences: Option<usize>, unwritten: u64) {
        if let Some(sequences) = sequences {
            self.set_sequences(sequences);
        }
        self.unwritten = unwritten;
    }

    pub(crate) fn set_sequences(&mut self, sequences: usize) {
        self.sequences = sequences.max(1);
    }

    /// Lets a micro-batch through that needs so many bytes, on all ranks or on none.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when there are fewer.
    pub(crate) fn admit(&mut self, ranks: &Ranks, bytes: u64) -> Result<()> {
        if bytes <= self.largest {
            return Ok(());
        }
        // Each measures the room for all, so nobody may be taking memory meanwhile: not yet, for what it learns from, and not
        // already, for its step.
        ranks.share(())?;
        ranks.agree(self.measure(bytes))?;
        self.largest = bytes;
        self.unwritten = 0;
        Ok(())
    }

    fn measure(&self, bytes: u64) -> Result<()> {
        let needed = bytes + self.unwritten;
        match self.room.bytes() {
            Some(available) if available < needed => {
                Err(Error::OutOfMemory(Shortage::MicroBatch {
                    sequences: self.sequences,
                    needed,
                    available,
                }))
            }
            _ => Ok(()),
        }
    }

    /// Halves the number when `error` says that memory ran out, which every rank does with it.
    ///
    /// # Errors
    /// The error itself, when it says something else or when there is one sequence at a time already.
    pub(crate) fn halve(&mut self, error: Error) -> Result<Halved> {
        let shortage = match error {
            Error::NoRoom(shortage) if self.sequences > 1 => shortage,
            other => return Err(other),
        };
        let from = self.sequences;
        self.sequences /= 2;
        let (needed_bytes, available_bytes) = match shortage {
            Shortage::MicroBatch {
                needed, available, ..
            } => (Some(needed), Some(available)),
            Shortage::Allocator(_) => (None, None),
        };
        Ok(Halved {
            from,
            to: self.sequences,
            cause: shortage.to_string(),
            needed_bytes,
            available_bytes,
        })
    }
}

/// What the machine can give without swapping.
fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "MemAvailable:").map(|kib| kib << 10)
}

/// What the limits of this process's control groups leave, the tightest of them.
fn control_groups() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = Path::new("/sys/fs/cgroup");
    groups
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            match rest.split_once(':')? {
                ("", path) => Some((mounts.to_owned(), path)),
                ("memory", path) => Some((mounts.join("memory"), path)),
                _ => None,
            }
        })
        .flat_map(|(mount, path)| group_and_parents(&mount, path))
        .filter_map(|group| headroom(&group))
        .min()
}

/// The folders of a group and of all groups around it. Inside a container the path may be the host's, of which only
/// the mount itself is seen.
fn group_and_parents(mount: &Path, path: &str) -> Vec<PathBuf> {
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        .map(|group| mount.join(group))
        .collect()
}

/// What one group's limit leaves; pages of files that nobody uses are given back on demand and count as free.
fn headroom(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used, idle) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?, "inactive_file"),
        None => (
            number("memory.limit_in_bytes")?,
            number("memory.usage_in_bytes")?,
            "total_inactive_file",
        ),
    };
    let idle = read("memory.stat").and_then(|text| field(&text, idle));
    Some(limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))))
}

/// The number behind a name in a file of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(found: Result<()>) -> Option<usize> {
        match found {
            Err(Error::NoRoom(Shortage::MicroBatch { sequences, .. })) => Some(sequences),
            _ => None,
        }
    }

    #[test]
    fn buffers_not_yet_written_count_once_and_smaller_micro_batches_are_not_asked_about() {
        let alone = Ranks::alone();
        let mut micro = MicroBatch::new(8, Room::Bytes(100), 30);
        assert_eq!(sequences(micro.admit(&alone, 71)), Some(8));
        assert!(micro.admit(&alone, 70).is_ok());
        assert!(micro.admit(&alone, 100).is_ok());
        assert_eq!(sequences(micro.admit(&alone, 101)), Some(8));
        micro.room = Room::Bytes(0);
        assert!(micro.admit(&alone, 99).is_ok());
    }

    #[test]
    fn halving_ends_at_one_sequence_and_other_errors_pass() {
        let alone = Ranks::alone();
        let mut micro = MicroBatch::new(5, Room::Bytes(10), 0);
        for (from, to) in [(5, 2), (2, 1)] {
            let error = micro.admit(&alone, 11).unwrap_err();
            let halved = micro.halve(error).unwrap();
            assert_eq!((halved.from, halved.to), (from, to));
            assert_eq!(
                (halved.needed_bytes, halved.available_bytes),
                (Some(11), Some(10))
            );
        }
        let error = micro.admit(&alone, 11).unwrap_err();
        assert_eq!(sequences(micro.halve(error).map(drop)), Some(1));
        let mut micro = MicroBatch::new(4, Room::Measured, 0);
        let other = Error::BadData("x".to_owned());
        assert!(matches!(micro.halve(other), Err(Error::BadData(_))));
        let device = || {
            let text = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
            wmtp_model::Error::from(candle_core::Error::Msg(text.to_owned()))
        };
        // What the other ranks do not know, they would not halve for.
        let untold = micro.halve(device().into());
        assert!(matches!(untold, Err(Error::OutOfMemory(_))));
        let told = alone.agree::<()>(Err(device().into())).unwrap_err();
        let halved = micro.halve(told).unwrap();
        assert_eq!((halved.to, halved.needed_bytes), (2, None));
        let cause = "an allocator had nothing to give: tensor operation failed: \
                     DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(halved.cause, cause);
    }

    #[test]
    fn the_tightest_group_counts_and_idle_pages_are_free() {
        let mount = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = mount.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("pods/memory.max", "max\n");
        write("pods/memory.current", "70\n");
        write("pods/job/memory.max", "100\n");
        write("pods/job/memory.current", "80\n");
        write("pods/job/memory.stat", "anon 50\ninactive_file 30\n");
        write("old/memory.limit_in_bytes", "40\n");
        write("old/memory.usage_in_bytes", "60\n");
        let left = |path: &str| -> Vec<u64> {
            let groups = group_and_parents(mount.path(), path);
            groups.iter().filter_map(|group| headroom(group)).collect()
        };
        assert_eq!(left("/pods/job"), [50]);
        assert_eq!(left("/old"), [0]);
        assert_eq!(left("/"), Vec::<u64>::new());
    }

    #[test]
    fn this_machine_has_some_memory_left() {
        assert!(Room::Measured.bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
