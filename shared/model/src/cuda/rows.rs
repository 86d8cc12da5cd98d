//! Kernels of decoding, where each row belongs to a sequence of its own and reads that sequence's keys and values.

#![expect(unsafe_code, reason = "kernels take pointers")]

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtrMut, PushKernelArg};
use candle_core::{CudaDevice, Result};

use super::kernels::{blocks, each, function, holds, launch};
use super::{Factor, Matrix, MatrixMut, empty, product};
use crate::kernels::{HeadLayout, Write};

/// Rows of a product, always: what cuBLAS chooses for a shape decides the order of its sums, so every product has one
/// shape, and a row's numbers do not depend on how many rows are read beside it. A step over few rows takes the time of
/// reading the weights whether or not the other rows are used.
pub(crate) const ROWS: usize = 64;

/// The widest head that the kernel has room for.
const WIDEST_HEAD: usize = 256;

/// Numbers of a place, see [`Places`].
const PLACE: usize = 4;

/// Keys and values of one sequence in one block, `[positions, g, e]` each.
#[derive(Debug)]
pub(crate) struct Lines {
    keys: CudaSlice<f32>,
    values: CudaSlice<f32>,
    line: usize,
}

impl Lines {
    /// Room for so many positions.
    pub(crate) fn with_room(device: &CudaDevice, line: usize, positions: usize) -> Result<Self> {
        let room = positions.next_multiple_of(ROWS).max(ROWS) * line;
        Ok(Self {
            keys: empty(device, room)?,
            values: empty(device, room)?,
            line,
        })
    }

    /// Positions that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.keys.len() / self.line
    }

    /// A copy of the first `len` positions with room for `positions`.
    pub(crate) fn copy(&self, device: &CudaDevice, len: usize, positions: usize) -> Result<Self> {
        let mut copy = Self::with_room(device, self.line, positions)?;
        let own = 0..len * self.line;
        if !own.is_empty() {
            for (from, to) in [
                (&self.keys, &mut copy.keys),
                (&self.values, &mut copy.values),
            ] {
                device.memcpy_dtod(&from.slice(own.clone()), &mut to.slice_mut(own.clone()))?;
            }
        }
        Ok(copy)
    }
}

/// Where rows belong: for each, the device's addresses of its sequence's keys and values, its position there, and its
/// number among the rows of queries, keys and values.
#[derive(Debug, Default)]
pub(crate) struct Places {
    numbers: Vec<u64>,
    /// One more than the highest number of a row.
    rows: usize,
}

impl Places {
    /// Adds the next position of a sequence, which must have room for it.
    pub(crate) fn push(
        &mut self,
        device: &CudaDevice,
        lines: &mut Lines,
        position: usize,
        row: usize,
    ) -> Result<()> {
        if position >= lines.room() {
            let message = format!(
                "position {position} of {} that there is room for",
                lines.room()
            );
            return Err(candle_core::Error::msg(message));
        }
        let stream = device.cuda_stream();
        let (keys, _keys) = lines.keys.device_ptr_mut(&stream);
        let (values, _values) = lines.values.device_ptr_mut(&stream);
        self.numbers
            .extend([keys, values, position as u64, row as u64]);
        self.rows = self.rows.max(row + 1);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len() / PLACE
    }

    /// Those of some of the rows.
    pub(crate) fn of(&self, kept: &[u32]) -> Self {
        let place = |index: &u32| &self.numbers[*index as usize * PLACE..][..PLACE];
        Self {
            numbers: kept.iter().flat_map(place).copied().collect(),
            rows: self.rows,
        }
    }
}

/// Turns the queries of rows `[q | k | v]` where they lie, and puts keys, turned, and values at their places. Every row
/// has one place, in order.
pub(crate) fn store(
    device: &CudaDevice,
    layout: HeadLayout,
    qkv: &mut CudaSlice<f32>,
    angles: (&CudaSlice<f32>, &CudaSlice<f32>),
    places: &Places,
) -> Result<()> {
    let (rows, half) = (places.len(), layout.head_dim / 2);
    fits(layout, qkv, places)?;
    holds("sines", angles.1.len(), angles.0.len())?;
    let last = places.numbers.iter().skip(2).step_by(PLACE).max();
    if last.is_some_and(|last| (*last as usize + 1) * half > angles.0.len()) {
        let message = format!("angles of {} positions", angles.0.len() / half);
        return Err(candle_core::Error::msg(message));
    }
    let numbers = device.clone_htod(&places.numbers)?;
    let pairs = rows * layout.packed() / 2;
    // Beside what `launch` asks for: the addresses are those of caches that the caller borrows mutably until the
    // stream, which runs in order, has passed this kernel's launch, and each has room for its position.
    launch!(device, "store_rows", "f32", each(pairs);
        qkv, angles.0, angles.1, &numbers, &(layout.heads as i32), &(layout.kv_heads as i32), &(half as i32),
        &(pairs as u64));
    Ok(())
}

/// Mixtures of values `[padded, n·e]` of the rows at these places, zeros behind the last: softmax(q·k / √e) per head over
/// the positions up to their own.
pub(crate) fn attend(
    device: &CudaDevice,
    layout: HeadLayout,
    qkv: &CudaSlice<f32>,
    places: &Places,
) -> Result<CudaSlice<f32>> {
    fits(layout, qkv, places)?;
    if layout.head_dim > WIDEST_HEAD {
        let message = format!("heads of {} are wider than {WIDEST_HEAD}", layout.head_dim);
        return Err(candle_core::Error::msg(message));
    }
    let rows = places.len();
    let mut out = device.alloc_zeros::<f32>(padded(rows) * layout.query())?;
    if rows > 0 {
        let numbers = device.clone_htod(&places.numbers)?;
        // As in `store`; what is read of a cache are positions that were stored.
        launch!(device, "attend_rows", "f32", blocks(rows * layout.heads);
            qkv, &numbers, &mut out, &(layout.heads as i32), &(layout.kv_heads as i32), &(layout.head_dim as i32));
    }
    Ok(out)
}

fn fits(layout: HeadLayout, qkv: &CudaSlice<f32>, places: &Places) -> Result<()> {
    if places.rows * layout.packed() <= qkv.len() {
        return Ok(());
    }
    let message = format!(
        "{} rows of queries, keys and values in {}",
        places.rows,
        qkv.len()
    );
    Err(candle_core::Error::msg(message))
}

/// Rows of which a buffer has room for `rows` rows.
pub(crate) fn padded(rows: usize) -> usize {
    rows.next_multiple_of(ROWS)
}

/// `out [padded, outputs] = x [padded, inputs] · wᵀ`, or `out += …`, with `w [outputs, inputs]`.
pub(crate) fn times<F: Factor<f32>>(
    device: &CudaDevice,
    x: &CudaSlice<f32>,
    w: &CudaSlice<F>,
    (outputs, inputs): (usize, usize),
    out: &mut CudaSlice<f32>,
    write: Write,
) -> Result<()> {
    let rows = x.len() / inputs;
    holds("whole products", rows % ROWS, 0)?;
    holds("rows of results", out.len(), rows * outputs)?;
    let x = F::of(device, x.as_view())?;
    for first in (0..rows).step_by(ROWS) {
        let left = x.view();
        let left = left.slice(first * inputs..(first + ROWS) * inputs);
        let to = out.slice_mut(first * outputs..(first + ROWS) * outputs);
        product(
            device,
            MatrixMut::new(to, ROWS, outputs),
            &Matrix::new(left, ROWS, inputs, inputs),
            &Matrix::new(w.as_view(), outputs, inputs, inputs).transposed(),
            1.0,
            write,
            1,
        )?;
    }
    Ok(())
}
