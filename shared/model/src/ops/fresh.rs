//! Results that the tasks that write them clear themselves, each its own part and just before: cleared before by all
//! threads, large ones leave the caches in between and cost one more pass over memory.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::float::Float;

/// A vector whose elements are not there yet.
pub(super) struct Fresh<T> {
    values: Vec<T>,
    len: usize,
    /// Elements cleared since [`Fresh::uncleared`].
    cleared: AtomicUsize,
}

/// Part of a [`Fresh`] that no task has cleared.
pub(super) struct Uncleared<'a, T> {
    memory: &'a mut [MaybeUninit<T>],
    cleared: &'a AtomicUsize,
}

impl<T: Float> Fresh<T> {
    pub(super) fn new(len: usize) -> Self {
        Self {
            values: Vec::with_capacity(len),
            len,
            cleared: AtomicUsize::new(0),
        }
    }

    /// All of it, for tasks to share out and clear.
    pub(super) fn uncleared(&mut self) -> Uncleared<'_, T> {
        *self.cleared.get_mut() = 0;
        Uncleared {
            memory: &mut self.values.spare_capacity_mut()[..self.len],
            cleared: &self.cleared,
        }
    }

    /// What the tasks have written.
    pub(super) fn finish(mut self) -> Vec<T> {
        let cleared = *self.cleared.get_mut();
        assert_eq!(cleared, self.len, "every part is cleared by its task");
        // SAFETY: the capacity is at least `len`. The parts handed out by the last `uncleared` do not overlap, each is
        // consumed when it is cleared, and as many elements as there are were cleared: so all of them were.
        #[expect(unsafe_code, reason = "the tasks have written what the vector holds")]
        unsafe {
            self.values.set_len(self.len);
        }
        self.values
    }
}

impl<'a, T: Float> Uncleared<'a, T> {
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        let (left, right) = self.memory.split_at_mut(middle);
        let part = |memory| Uncleared {
            memory,
            cleared: self.cleared,
        };
        (part(left), part(right))
    }

    /// Parts of `size` elements, the last as long as it is.
    pub(super) fn par_chunks(self, size: usize) -> impl IndexedParallelIterator<Item = Self> {
        let cleared = self.cleared;
        let parts = self.memory.par_chunks_mut(size);
        parts.map(move |memory| Uncleared { memory, cleared })
    }

    /// Zeros to write to.
    pub(super) fn cleared(self) -> &'a mut [T] {
        for element in &mut *self.memory {
            element.write(T::zero());
        }
        self.cleared.fetch_add(self.memory.len(), Ordering::Relaxed);
        // SAFETY: the loop has written every element.
        #[expect(unsafe_code, reason = "the elements were written one by one")]
        unsafe {
            self.memory.assume_init_mut()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_clear_and_write_their_parts() {
        let mut fresh = Fresh::<f32>::new(1000);
        let (head, rest) = fresh.uncleared().split_at(10);
        head.cleared()[3] = 3.0;
        rest.par_chunks(100).enumerate().for_each(|(index, part)| {
            let part = part.cleared();
            assert!(part.iter().all(|x| *x == 0.0));
            part[0] = index as f32;
        });
        let values = fresh.finish();
        assert_eq!(values.len(), 1000);
        let marked = values.iter().enumerate().filter(|(_, x)| **x > 0.0);
        let marked: Vec<(usize, u32)> = marked.map(|(at, x)| (at, *x as u32)).collect();
        assert_eq!(marked[..2], [(3, 3), (110, 1)]);
        assert_eq!(marked.len(), 10);
        assert!(Fresh::<f64>::new(0).finish().is_empty());
    }

    #[test]
    #[should_panic(expected = "every part is cleared by its task")]
    fn a_part_left_out_is_noticed() {
        let mut fresh = Fresh::<f32>::new(10);
        fresh.uncleared().split_at(9).0.cleared();
        fresh.finish();
    }

    #[test]
    #[should_panic(expected = "every part is cleared by its task")]
    fn halves_cleared_twice_are_no_whole() {
        let mut fresh = Fresh::<f32>::new(10);
        for _ in 0..2 {
            fresh.uncleared().split_at(5).0.cleared();
        }
        fresh.finish();
    }
}
