//! Results that hold nothing before the tasks that write them fill or clear their parts: cleared before by all threads,
//! large ones leave the caches in between and cost one more pass over memory.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::float::Float;
use crate::kernels::{Matrix, Right, zeros};

/// A vector whose elements are not there yet.
pub(super) struct Fresh<T> {
    values: Vec<T>,
    len: usize,
    /// Elements written since [`Fresh::unwritten`].
    written: AtomicUsize,
}

/// Part of a [`Fresh`] that no task has written.
pub(super) struct Unwritten<'a, T> {
    memory: &'a mut [MaybeUninit<T>],
    written: &'a AtomicUsize,
}

impl<T: Float> Fresh<T> {
    pub(super) fn new(len: usize) -> Self {
        Self {
            values: Vec::with_capacity(len),
            len,
            written: AtomicUsize::new(0),
        }
    }

    /// All of it, for tasks to share out and write.
    pub(super) fn unwritten(&mut self) -> Unwritten<'_, T> {
        *self.written.get_mut() = 0;
        Unwritten {
            memory: &mut self.values.spare_capacity_mut()[..self.len],
            written: &self.written,
        }
    }

    /// What the tasks have written.
    pub(super) fn finish(mut self) -> Vec<T> {
        let written = *self.written.get_mut();
        assert_eq!(written, self.len, "every part is written by its task");
        // SAFETY: the capacity is at least `len`. The parts handed out by the last `unwritten` do not overlap, each is
        // consumed when it is written, and as many elements as there are were written: so all of them were.
        #[expect(unsafe_code, reason = "the tasks have written what the vector holds")]
        unsafe {
            self.values.set_len(self.len);
        }
        self.values
    }
}

impl<'a, T: Float> Unwritten<'a, T> {
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        let (left, right) = self.memory.split_at_mut(middle);
        let part = |memory| Unwritten {
            memory,
            written: self.written,
        };
        (part(left), part(right))
    }

    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Parts of `size` elements, the last as long as it is.
    pub(super) fn par_chunks(self, size: usize) -> impl IndexedParallelIterator<Item = Self> {
        let written = self.written;
        let parts = self.memory.par_chunks_mut(size);
        parts.map(move |memory| Unwritten { memory, written })
    }

    /// Zeros to write to.
    pub(super) fn cleared(self) -> &'a mut [T] {
        self.filled(zeros)
    }

    /// What `of` makes of each of as many numbers.
    pub(super) fn each<N: Copy>(self, numbers: &[N], of: impl Fn(N) -> T) -> &'a mut [T] {
        self.filled(|memory| {
            assert_eq!(memory.len(), numbers.len(), "one number for each element");
            for (element, number) in memory.iter_mut().zip(numbers) {
                element.write(of(*number));
            }
            // SAFETY: there are as many numbers as elements, and the loop has written one for each.
            #[expect(unsafe_code, reason = "the elements were written one by one")]
            unsafe {
                memory.assume_init_mut()
            }
        })
    }

    /// The product of whole rows `left [rows, depth]`.
    pub(super) fn product(self, right: &Right<'_, T>, left: &[T]) -> &'a mut [T] {
        self.filled(|memory| right.fill_rows(memory, left))
    }

    /// The product of any matrix.
    pub(super) fn product_of(self, right: &Right<'_, T>, left: Matrix<'_, T>) -> &'a mut [T] {
        self.filled(|memory| right.fill(memory, left))
    }

    fn filled(self, fill: impl FnOnce(&'a mut [MaybeUninit<T>]) -> &'a mut [T]) -> &'a mut [T] {
        let memory: *const [MaybeUninit<T>] = self.memory;
        let values = fill(self.memory);
        let found: *const [T] = values;
        assert!(
            std::ptr::addr_eq(memory, found) && memory.len() == found.len(),
            "a part is filled where it lies"
        );
        self.written.fetch_add(values.len(), Ordering::Relaxed);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Products, Write};

    #[test]
    fn tasks_clear_and_write_their_parts() {
        let mut fresh = Fresh::<f32>::new(1000);
        let (head, rest) = fresh.unwritten().split_at(10);
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
    fn products_are_written_where_nothing_was() {
        let numbers =
            |len: usize| -> Vec<f32> { (0..len).map(|at| (at % 7) as f32 - 3.0).collect() };
        for products in [Products::F32, Products::Bf16] {
            for (rows, depth, width) in [(70, 33, 40), (1, 5, 3), (4, 1, 1), (3, 0, 2)] {
                let (left, weights) = (numbers(rows * depth), numbers(depth * width));
                let right = Right::stored(&weights, (depth, width), products);
                let mut expected = vec![0.0; rows * width];
                right.apply(&mut expected, &left, Write::Replace);
                let mut fresh = Fresh::new(rows * width);
                fresh.unwritten().product(&right, &left);
                assert_eq!(
                    fresh.finish(),
                    expected,
                    "{products:?} {rows}x{depth}x{width}"
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "every part is written by its task")]
    fn a_part_left_out_is_noticed() {
        let mut fresh = Fresh::<f32>::new(10);
        fresh.unwritten().split_at(9).0.cleared();
        fresh.finish();
    }

    #[test]
    #[should_panic(expected = "every part is written by its task")]
    fn halves_cleared_twice_are_no_whole() {
        let mut fresh = Fresh::<f32>::new(10);
        for _ in 0..2 {
            fresh.unwritten().split_at(5).0.cleared();
        }
        fresh.finish();
    }
}
