//! Weights laid out once for products with few rows.
//!
//! The general matrix product packs its right side anew for every call. For the handful of rows of a decoding step
//! that costs several times the product itself; a frozen weight is packed once instead.

#![expect(
    clippy::inline_always,
    reason = "loops take the vector width of the function they are inlined into"
)]

use candle_core::Tensor;
use pulp::{Arch, Simd, WithSimd};

use crate::kernels::Write;
use crate::{Error, Result};

/// Outputs that lie side by side: four of the widest vectors.
const PANEL: usize = 64;

/// Rows that one pass over a panel serves: their sums fill three quarters of the vector registers.
const TILE_ROWS: usize = 6;

/// The same of passes over half a panel, where vectors have 16 lanes: seven to twelve rows need one pass instead of two.
const TALL_ROWS: usize = 12;

/// Bytes between the weights that are multiplied and those that are asked for: the processor alone asks too late for a
/// panel that its nearest cache cannot hold. Between 2 and 16 KiB the distance hardly matters.
const AHEAD: usize = 4096;

/// A frozen weight `[width, depth]` for `x · wᵀ`, in panels of 64 outputs: `[width / 64, depth, 64]`, zeros behind the
/// last output.
///
/// Every element of a product is one chain of fused multiply-adds over the inputs in order, from zero. So a row's
/// result depends neither on the rows beside it nor on the processor.
#[derive(Debug)]
pub(super) struct PackedLinear {
    width: usize,
    depth: usize,
    panels: Vec<f32>,
}

impl PackedLinear {
    /// Packs weights `[width, depth]` of one depth, their outputs behind each other.
    pub(super) fn new(parts: &[&Tensor]) -> Result<Self> {
        let stacked = Tensor::cat(parts, 0)?;
        let (width, depth) = stacked.dims2()?;
        if depth == 0 {
            return Err(Error::Shape(format!("weights {width} x 0 take no input")));
        }
        let rows = stacked.flatten_all()?.to_vec1::<f32>()?;
        let mut panels = vec![0.0; width.div_ceil(PANEL) * PANEL * depth];
        for (output, row) in rows.chunks_exact(depth).enumerate() {
            let panel = &mut panels[output / PANEL * PANEL * depth..][..PANEL * depth];
            for (line, weight) in panel.chunks_exact_mut(PANEL).zip(row) {
                line[output % PANEL] = *weight;
            }
        }
        Ok(Self {
            width,
            depth,
            panels,
        })
    }

    /// Outputs of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// `out [rows, width] = x [rows, depth] · wᵀ`, or `out += …`, on this thread.
    pub(super) fn apply(&self, x: &[f32], out: &mut [f32], write: Write) {
        assert!(
            x.len().is_multiple_of(self.depth) && out.len() / self.width == x.len() / self.depth,
            "product of {} values with {} x {} into {}",
            x.len(),
            self.width,
            self.depth,
            out.len()
        );
        Arch::new().dispatch(Product {
            weights: self,
            x,
            out,
            write,
        });
    }
}

struct Product<'a> {
    weights: &'a PackedLinear,
    x: &'a [f32],
    out: &'a mut [f32],
    write: Write,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.x.len() / self.weights.depth;
        match S::F32_LANES {
            16 if rows > TILE_ROWS => self.run::<S, 2, 4>(simd, TALL_ROWS),
            16 => self.run::<S, 4, 4>(simd, TILE_ROWS),
            8 => self.run::<S, 2, 8>(simd, TILE_ROWS),
            4 => self.run::<S, 2, 16>(simd, TILE_ROWS),
            _ => self.run::<S, 2, PANEL>(simd, TILE_ROWS),
        }
    }
}

impl Product<'_> {
    /// Panel by panel, so that each is read from memory once, whatever the number of rows; at most `most` in a pass.
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize, const LINE: usize>(self, simd: S, most: usize) {
        let PackedLinear { width, depth, .. } = *self.weights;
        let rows = self.x.len() / depth;
        let groups = rows.div_ceil(most);
        // As even as possible: 32 rows are two groups of eleven and one of ten.
        let bounds = |group: usize| group * rows / groups.max(1);
        let transposed = transpose_groups(self.x, depth, groups, bounds);
        for (index, panel) in self.weights.panels.chunks_exact(PANEL * depth).enumerate() {
            let columns = index * PANEL..width.min((index + 1) * PANEL);
            for group in 0..groups {
                let (first, last) = (bounds(group), bounds(group + 1));
                let x = &transposed[first * depth..last * depth];
                let out = &mut self.out[first * width..last * width];
                let rows = x.len() / depth;
                let mut part = Part {
                    out,
                    width,
                    columns: columns.clone(),
                    write: self.write,
                };
                match rows {
                    1 => part.fill::<S, 1, VECTORS, LINE>(simd, panel, x),
                    2 => part.fill::<S, 2, VECTORS, LINE>(simd, panel, x),
                    3 => part.fill::<S, 3, VECTORS, LINE>(simd, panel, x),
                    4 => part.fill::<S, 4, VECTORS, LINE>(simd, panel, x),
                    5 => part.fill::<S, 5, VECTORS, LINE>(simd, panel, x),
                    6 => part.fill::<S, 6, VECTORS, LINE>(simd, panel, x),
                    7 => part.fill::<S, 7, VECTORS, LINE>(simd, panel, x),
                    8 => part.fill::<S, 8, VECTORS, LINE>(simd, panel, x),
                    9 => part.fill::<S, 9, VECTORS, LINE>(simd, panel, x),
                    10 => part.fill::<S, 10, VECTORS, LINE>(simd, panel, x),
                    11 => part.fill::<S, 11, VECTORS, LINE>(simd, panel, x),
                    _ => part.fill::<S, TALL_ROWS, VECTORS, LINE>(simd, panel, x),
                }
            }
        }
    }
}

/// The rows of each group transposed to `[depth, rows]`: what one step over the inputs reads lies together.
#[inline(always)]
fn transpose_groups(
    x: &[f32],
    depth: usize,
    groups: usize,
    bounds: impl Fn(usize) -> usize,
) -> std::borrow::Cow<'_, [f32]> {
    if x.len() == depth {
        return x.into();
    }
    let mut transposed = vec![0.0; x.len()];
    for group in 0..groups {
        let own = bounds(group) * depth..bounds(group + 1) * depth;
        let rows = own.len() / depth;
        let transposed = &mut transposed[own.clone()];
        for (r, row) in x[own].chunks_exact(depth).enumerate() {
            for (line, value) in transposed.chunks_exact_mut(rows).zip(row) {
                line[r] = *value;
            }
        }
    }
    transposed.into()
}

/// Some rows of a product, and the columns of one panel.
struct Part<'a> {
    out: &'a mut [f32],
    width: usize,
    columns: std::ops::Range<usize>,
    write: Write,
}

impl Part<'_> {
    #[inline(always)]
    fn fill<S: Simd, const ROWS: usize, const VECTORS: usize, const LINE: usize>(
        &mut self,
        simd: S,
        panel: &[f32],
        x: &[f32],
    ) {
        let step = VECTORS * S::F32_LANES;
        let (lines, x) = (lines::<S, LINE>(panel), x.as_chunks::<ROWS>().0);
        for first in (0..self.columns.len()).step_by(step) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            tile(simd, lines, first / step, x, &mut sums);
            let columns =
                self.columns.start + first..self.columns.end.min(self.columns.start + first + step);
            for (sums, row) in sums.iter().zip(self.out.chunks_exact_mut(self.width)) {
                let sums: &[f32] = pulp::bytemuck::cast_slice(sums);
                let out = &mut row[columns.clone()];
                match self.write {
                    Write::Replace => out.copy_from_slice(&sums[..out.len()]),
                    Write::Add => {
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out += sum;
                        }
                    }
                }
            }
        }
    }
}

/// `xᵀ · lines` for one part of each line, `VECTORS` vectors wide: `x [depth, ROWS]`, `lines [depth, LINE vectors]`.
#[inline(always)]
pub(super) fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const LINE: usize>(
    simd: S,
    lines: &[[S::f32s; LINE]],
    part: usize,
    x: &[[f32; ROWS]],
    out: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // Sums of their own, that nothing points to: they stay in registers.
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (line, x) in lines.iter().zip(x) {
        let Some(line) = line.as_chunks::<VECTORS>().0.get(part) else {
            break;
        };
        fetch_ahead(line);
        for r in 0..ROWS {
            let factor = simd.splat_f32s(x[r]);
            for v in 0..VECTORS {
                sums[r][v] = simd.mul_add_f32s(factor, line[v], sums[r][v]);
            }
        }
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            out[r][v] = sums[r][v];
        }
    }
}

/// Asks for what lies [`AHEAD`] of these vectors.
#[inline(always)]
fn fetch_ahead<V>(vectors: &[V]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const CACHE_LINE: usize = 64;
        let start = vectors.as_ptr().cast::<i8>().wrapping_add(AHEAD);
        for offset in (0..size_of_val(vectors)).step_by(CACHE_LINE) {
            #[expect(unsafe_code, reason = "the intrinsic takes an address")]
            // SAFETY: every x86-64 processor has the instruction. It is a hint: nothing is read by it, and an address
            // that is not mapped is passed over.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = vectors;
}

/// A panel's lines as vectors, `LINE` of them each.
#[inline(always)]
pub(super) fn lines<S: Simd, const LINE: usize>(panel: &[f32]) -> &[[S::f32s; LINE]] {
    S::as_simd_f32s(panel).0.as_chunks::<LINE>().0
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    fn packed(width: usize, depth: usize) -> (PackedLinear, Vec<f32>) {
        let w = wave(width * depth, 0.37);
        let tensor = Tensor::from_slice(&w, (width, depth), &Device::Cpu).unwrap();
        (PackedLinear::new(&[&tensor]).unwrap(), w)
    }

    fn apply(weights: &PackedLinear, x: &[f32], rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * weights.width()];
        weights.apply(x, &mut out, Write::Replace);
        out
    }

    /// One chain of multiply-adds over the inputs.
    fn expected(w: &[f32], x: &[f32], depth: usize) -> Vec<f32> {
        let chain = |x: &[f32], w: &[f32]| {
            x.iter()
                .zip(w)
                .fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))
        };
        x.chunks_exact(depth)
            .flat_map(|x| w.chunks_exact(depth).map(move |w| chain(x, w)))
            .collect()
    }

    #[test]
    fn a_product_is_the_stated_chain_bit_for_bit_at_any_size() {
        for (width, depth) in [(1, 1), (61, 32), (64, 7), (130, 33), (192, 64)] {
            let (weights, w) = packed(width, depth);
            for rows in [1, 2, 3, 4, 5, 6, 7, 13, 32] {
                let x = wave(rows * depth, 0.11);
                assert_eq!(
                    apply(&weights, &x, rows),
                    expected(&w, &x, depth),
                    "{rows} x {depth} x {width}"
                );
            }
        }
    }

    #[test]
    fn stacked_weights_give_their_outputs_behind_each_other_and_can_be_added() {
        let (device, depth) = (Device::Cpu, 5);
        let (a, b) = (wave(3 * depth, 0.2), wave(70 * depth, 0.3));
        let tensor = |w: &[f32]| Tensor::from_slice(w, (w.len() / depth, depth), &device).unwrap();
        let weights = PackedLinear::new(&[&tensor(&a), &tensor(&b)]).unwrap();
        let x = wave(depth, 0.7);
        let product = expected(&[a, b].concat(), &x, depth);
        let mut out = vec![1.0; weights.width()];
        weights.apply(&x, &mut out, Write::Add);
        let sum: Vec<f32> = product.iter().map(|value| 1.0 + value).collect();
        assert_eq!(out, sum);
    }
}
