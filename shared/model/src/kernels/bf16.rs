//! Matrix products whose factors are rounded to bf16 and whose sums stay f32.
//!
//! Both factors are packed into panels of pairs along the inner dimension, as `VDPBF16PS` reads them: it adds two
//! products to each of 16 sums. A product of two bf16 numbers is exact in f32, so f32's own multiply-and-add gives the
//! same bits wherever nothing is as small as a subnormal number, which the instruction takes for zero. Which of the two
//! is faster depends on who made the processor: AMD's (Zen 4) finish one `VDPBF16PS` a cycle, twice the rate of f32;
//! Intel's (Sapphire Rapids, measured) one in two cycles, half the rate of f32.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::{Matrix, MatrixMut, Write, vectorised};
use crate::float::Float;

/// Rows of a tile of sums: with [`COLS`] it fills 24 of the 32 vector registers.
const ROWS: usize = 12;
/// Columns of a tile of sums.
const COLS: usize = 32;
/// Pairs along the inner dimension that a tile takes at most, and panels of the left factor that are packed at once:
/// together they stay in the second cache.
const PAIRS: usize = 384;
const PANELS: usize = 21;
/// Pairs that are transposed at once while packing.
const STRETCH: usize = 16;

/// The right factor `[depth, width]`, packed once for all rows of the left one.
pub(crate) struct PackedRhs {
    depth: usize,
    width: usize,
    /// Panel by panel of [`COLS`] columns, pair by pair.
    panels: Vec<[u32; COLS]>,
}

impl PackedRhs {
    pub(crate) fn new<T: Float>(rhs: Matrix<'_, T>) -> Self {
        let (depth, width) = (rhs.rows, rhs.cols);
        let pairs = depth.div_ceil(2);
        let mut panels = vec![[0; COLS]; width.div_ceil(COLS) * pairs];
        panels
            .par_chunks_mut(pairs.max(1))
            .enumerate()
            .for_each(|(panel, out)| pack(rhs.transposed(), panel * COLS, 0, out));
        Self {
            depth,
            width,
            panels,
        }
    }

    /// Depth and width.
    pub(crate) fn sides(&self) -> (usize, usize) {
        (self.depth, self.width)
    }
}

/// `dst = scale · lhs · rhs`, or `dst += …`, on one thread. Of the right factor the first rows and columns are taken, as
/// many as `lhs` has columns and `dst` has.
pub(crate) fn matmul<T: Float>(
    dst: MatrixMut<'_, T>,
    lhs: Matrix<'_, T>,
    rhs: &PackedRhs,
    scale: T,
    write: Write,
) {
    assert!(
        lhs.cols <= rhs.depth && dst.rows == lhs.rows && dst.cols <= rhs.width,
        "product of {}x{} and {}x{} into {}x{}",
        lhs.rows,
        lhs.cols,
        rhs.depth,
        rhs.width,
        dst.rows,
        dst.cols
    );
    let all_pairs = lhs.cols.div_ceil(2);
    if all_pairs == 0 && write == Write::Replace {
        for row in dst.data.chunks_mut(dst.row_stride).take(dst.rows) {
            row[..dst.cols].fill(T::zero());
        }
    }
    let tile = Tile::fastest();
    // Parts of one size, so that none is too short to be worth its pass over the sums.
    let part = all_pairs.div_ceil(all_pairs.div_ceil(PAIRS).max(1)).max(1);
    let mut packed = vec![[0; ROWS]; PANELS * part];
    let mut apart = Vec::new();
    let mut sums = [[0.0; COLS]; ROWS];
    for first_pair in (0..all_pairs).step_by(part) {
        let pairs = part.min(all_pairs - first_pair);
        let write = if first_pair == 0 { write } else { Write::Add };
        for top in (0..dst.rows).step_by(PANELS * ROWS) {
            let height = (dst.rows - top).min(PANELS * ROWS);
            let packed = &mut packed[..height.div_ceil(ROWS) * pairs];
            for (panel, out) in packed.chunks_exact_mut(pairs).enumerate() {
                pack(lhs, top + panel * ROWS, first_pair, out);
            }
            if matches!(tile, Tile::Apart(_)) {
                apart.clear();
                apart.extend(packed.iter().map(taken_apart));
            }
            let columns = rhs.panels.chunks_exact(rhs.depth.div_ceil(2).max(1));
            for (column, right) in columns.take(dst.cols.div_ceil(COLS)).enumerate() {
                let right = &right[first_pair..][..pairs];
                let left = column * COLS;
                let across = COLS.min(dst.cols - left);
                for panel in 0..packed.len() / pairs {
                    let panel_pairs = panel * pairs..(panel + 1) * pairs;
                    match tile {
                        Tile::Paired(tile) => tile(&packed[panel_pairs], right, &mut sums),
                        Tile::Apart(tile) => tile(&apart[panel_pairs], right, &mut sums),
                    }
                    let first_row = top + panel * ROWS;
                    let rows = ROWS.min(dst.rows - first_row);
                    let out = &mut dst.data[first_row * dst.row_stride + left..];
                    put(out, (dst.row_stride, across), &sums[..rows], scale, write);
                }
            }
        }
    }
}

/// Writes the scaled sums of a tile to the rows of `out`, which start `stride` apart and take `across` of its columns.
fn put<T: Float>(
    out: &mut [T],
    (stride, across): (usize, usize),
    sums: &[[f32; COLS]],
    scale: T,
    write: Write,
) {
    vectorised(
        #[inline(always)]
        || {
            for (out, sums) in out.chunks_mut(stride).zip(sums) {
                let (out, sums) = (&mut out[..across], &sums[..across]);
                match write {
                    Write::Replace => {
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = scale * T::of_single(*sum);
                        }
                    }
                    Write::Add => {
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out += scale * T::of_single(*sum);
                        }
                    }
                }
            }
        },
    );
}

/// Packs `N` rows of `matrix` from `first` on, `out.len()` pairs of columns from `first_pair` on. What lies beyond the
/// matrix is zero.
fn pack<T: Float, const N: usize>(
    matrix: Matrix<'_, T>,
    first: usize,
    first_pair: usize,
    out: &mut [[u32; N]],
) {
    let rows = N.min(matrix.rows - first);
    if rows < N || matrix.cols < 2 * (first_pair + out.len()) {
        out.fill([0; N]);
    }
    let start = first * matrix.row_stride + 2 * first_pair * matrix.col_stride;
    let data = &matrix.data[start..];
    let columns = (matrix.cols - 2 * first_pair).min(2 * out.len());
    vectorised(
        #[inline(always)]
        || match (matrix.row_stride, matrix.col_stride) {
            (stride, 1) => pack_rows(data, stride, rows, columns, out),
            (1, stride) => pack_columns(data, stride, rows, columns, out),
            strides => unreachable!("a matrix or its transpose has a stride of 1, not {strides:?}"),
        },
    );
}

/// Rows that are contiguous: a few pairs of all of them at a time, transposed.
#[inline(always)]
fn pack_rows<T: Float, const N: usize>(
    data: &[T],
    stride: usize,
    rows: usize,
    columns: usize,
    out: &mut [[u32; N]],
) {
    let mut tile = [[0; STRETCH]; N];
    for (part, out) in out.chunks_mut(STRETCH).enumerate() {
        let first = part * 2 * STRETCH;
        let wide = (columns - first).min(2 * STRETCH);
        for (row, line) in tile[..rows].iter_mut().enumerate() {
            let data = &data[row * stride + first..][..wide];
            match data.as_chunks::<2>() {
                (pairs, []) if pairs.len() == STRETCH => {
                    for (out, [even, odd]) in line.iter_mut().zip(pairs) {
                        *out = joined(*even, *odd);
                    }
                }
                (pairs, rest) => {
                    for (out, [even, odd]) in line.iter_mut().zip(pairs) {
                        *out = joined(*even, *odd);
                    }
                    if let [last] = rest {
                        line[pairs.len()] = joined(*last, T::zero());
                    }
                }
            }
        }
        for (pair, out) in out.iter_mut().enumerate() {
            for (out, line) in out.iter_mut().zip(&tile) {
                *out = line[pair];
            }
        }
    }
}

/// Columns that are contiguous: two of them are joined. An odd last one is paired with zero.
#[inline(always)]
fn pack_columns<T: Float, const N: usize>(
    data: &[T],
    stride: usize,
    rows: usize,
    columns: usize,
    out: &mut [[u32; N]],
) {
    let zeros = [T::zero(); N];
    for (pair, out) in out.iter_mut().enumerate() {
        let line = |column: usize| match data.get(column * stride..) {
            Some(line) if column < columns => line,
            _ => &zeros,
        };
        let (even, odd) = (line(2 * pair), line(2 * pair + 1));
        // Whole lines have a length that the compiler knows.
        if let (true, Some(even), Some(odd)) =
            (rows == N, even.first_chunk::<N>(), odd.first_chunk::<N>())
        {
            for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
                *out = joined(*even, *odd);
            }
        } else {
            for ((out, even), odd) in out[..rows].iter_mut().zip(even).zip(odd) {
                *out = joined(*even, *odd);
            }
        }
    }
}

#[inline(always)]
fn joined<T: Float>(even: T, odd: T) -> u32 {
    rounded(even.single()) >> 16 | rounded(odd.single()) & 0xffff_0000
}

/// The nearest bf16 number, ties to even, in the upper half; NaN stays NaN.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    // Only a NaN can overflow here, and is not taken. A checked sum would keep the loop from being vectorised.
    let nearest = bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1);
    let quiet = bits | 0x0040_0000;
    if x.is_nan() { quiet } else { nearest }
}

/// A pair of each row, and the same with the first numbers of all pairs before the second ones.
type Pairs = [u32; ROWS];
type Numbers = [[f32; ROWS]; 2];
type Sums = [[f32; COLS]; ROWS];

fn taken_apart(pairs: &Pairs) -> Numbers {
    [pairs.map(first_of), pairs.map(second_of)]
}

#[inline(always)]
fn first_of(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

#[inline(always)]
fn second_of(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

/// A way to the sums of one tile over all pairs, in each pair of the second product first. All give the same bits.
#[derive(Clone, Copy)]
enum Tile {
    Paired(fn(&[Pairs], &[[u32; COLS]], &mut Sums)),
    Apart(fn(&[Numbers], &[[u32; COLS]], &mut Sums)),
}

impl Tile {
    /// The fastest on this processor. Not found by trying: a run that goes on after a stop must take the same.
    fn fastest() -> Self {
        static FASTEST: OnceLock<Tile> = OnceLock::new();
        *FASTEST.get_or_init(|| Self::of_this_processor()[0])
    }

    /// All that this processor can, the fastest first.
    fn of_this_processor() -> Vec<Self> {
        let mut ways = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            ways.extend(is_vectorised().then_some(Self::Apart(x86::apart)));
            ways.extend(x86::has_bf16().then_some(Self::Paired(x86::paired)));
            if x86::is_amd() {
                ways.reverse();
            }
        }
        ways.push(Self::Paired(plain));
        ways
    }
}

/// Whether this processor has a faster way to these products than the plain loop.
pub(crate) fn is_vectorised() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

fn plain(lhs: &[Pairs], rhs: &[[u32; COLS]], sums: &mut Sums) {
    vectorised(
        #[inline(always)]
        || {
            *sums = [[0.0; COLS]; ROWS];
            for (lhs, rhs) in lhs.iter().zip(rhs) {
                for (sums, lhs) in sums.iter_mut().zip(lhs) {
                    for (sum, rhs) in sums.iter_mut().zip(rhs) {
                        *sum += second_of(*lhs) * second_of(*rhs);
                        *sum += first_of(*lhs) * first_of(*rhs);
                    }
                }
            }
        },
    );
}

#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "vector registers are made of arrays, and instructions are called where they were found"
)]
mod x86 {
    use std::arch::x86_64::{
        __cpuid, __m512, __m512bh, __m512i, _mm512_and_si512, _mm512_castsi512_ps,
        _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi32,
    };
    use std::mem::transmute;

    use super::{COLS, Numbers, Pairs, ROWS, Sums};

    pub(super) fn has_bf16() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    pub(super) fn is_amd() -> bool {
        let maker = __cpuid(0);
        [maker.ebx, maker.edx, maker.ecx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"AuthenticAMD"
    }

    /// With `VDPBF16PS`.
    pub(super) fn paired(lhs: &[Pairs], rhs: &[[u32; COLS]], sums: &mut Sums) {
        assert!(has_bf16(), "a processor with AVX512-BF16");
        // SAFETY: the processor has both features (above).
        unsafe { paired_on_avx512(lhs, rhs, sums) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn paired_on_avx512(lhs: &[Pairs], rhs: &[[u32; COLS]], sums: &mut Sums) {
        let mut tile = [[_mm512_setzero_ps(); 2]; ROWS];
        for (lhs, rhs) in lhs.iter().zip(rhs) {
            // SAFETY: 64 bytes of plain numbers on both sides, every pattern of which is a value.
            let [left, right] = unsafe { transmute::<[u32; COLS], [__m512bh; 2]>(*rhs) };
            for (sums, pair) in tile.iter_mut().zip(lhs) {
                // SAFETY: as above.
                let pair: __m512bh = unsafe { transmute(_mm512_set1_epi32(*pair as i32)) };
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, left);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, right);
            }
        }
        // SAFETY: as above.
        *sums = unsafe { transmute::<[[__m512; 2]; ROWS], Sums>(tile) };
    }

    /// With f32's multiply-and-add.
    pub(super) fn apart(lhs: &[Numbers], rhs: &[[u32; COLS]], sums: &mut Sums) {
        assert!(super::is_vectorised(), "a processor with AVX-512");
        // SAFETY: the processor has the feature (above).
        unsafe { apart_on_avx512(lhs, rhs, sums) }
    }

    #[target_feature(enable = "avx512f")]
    fn apart_on_avx512(lhs: &[Numbers], rhs: &[[u32; COLS]], sums: &mut Sums) {
        let mut tile = [[_mm512_setzero_ps(); 2]; ROWS];
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for ([firsts, seconds], rhs) in lhs.iter().zip(rhs) {
            // SAFETY: 64 bytes of plain numbers on both sides, every pattern of which is a value.
            let [left, right] = unsafe { transmute::<[u32; COLS], [__m512i; 2]>(*rhs) };
            let seconds_of = |half| _mm512_castsi512_ps(_mm512_and_si512(half, upper));
            add_products(&mut tile, seconds, seconds_of(left), seconds_of(right));
            let firsts_of = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half));
            add_products(&mut tile, firsts, firsts_of(left), firsts_of(right));
        }
        // SAFETY: as above.
        *sums = unsafe { transmute::<[[__m512; 2]; ROWS], Sums>(tile) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_products(
        tile: &mut [[__m512; 2]; ROWS],
        lhs: &[f32; ROWS],
        left: __m512,
        right: __m512,
    ) {
        for (sums, number) in tile.iter_mut().zip(lhs) {
            let number = _mm512_set1_ps(*number);
            sums[0] = _mm512_fmadd_ps(number, left, sums[0]);
            sums[1] = _mm512_fmadd_ps(number, right, sums[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn bf16(x: f32) -> f64 {
        f64::from(f32::from_bits(rounded(x) & 0xffff_0000))
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_to_even() {
        let of = |x: f32| f32::from_bits(rounded(x) & 0xffff_0000);
        // The numbers above 1 are 1/128 apart.
        for (x, nearest) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
            (1.0 + 1.1 / 256.0, 1.0 + 1.0 / 128.0),
            (-0.0, -0.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
        ] {
            assert_eq!(of(x).to_bits(), nearest.to_bits(), "{x}");
        }
        assert!(of(f32::from_bits(0x7f80_0001)).is_nan() && of(f32::NAN).is_nan());
    }

    #[test]
    fn products_equal_those_of_the_rounded_factors_in_every_layout() {
        for (m, n, k) in [
            (1, 1, 1),
            (13, 33, 7),
            (30, 70, 500),
            (260, 40, 3),
            (12, 32, 0),
        ] {
            let (a, b) = (numbers(1, m * k), numbers(2, k * n));
            let start = numbers(3, m * n);
            let expected = |i: usize, j: usize| -> f64 {
                (0..k)
                    .map(|p| bf16(a[i * k + p]) * bf16(b[p * n + j]))
                    .sum()
            };
            let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols)
                    .map(|at| x[at % rows * cols + at / rows])
                    .collect()
            };
            let (a_columns, b_columns) = (transposed(&a, m, k), transposed(&b, k, n));
            let lefts = [
                Matrix::new(&a, m, k, k),
                Matrix::new(&a_columns, k, m, m).transposed(),
            ];
            let rights = [
                Matrix::new(&b, k, n, n),
                Matrix::new(&b_columns, n, k, k).transposed(),
            ];
            let mut first = None;
            for (left, right) in lefts
                .iter()
                .flat_map(|l| rights.iter().map(move |r| (*l, *r)))
            {
                let rhs = PackedRhs::new(right);
                for write in [Write::Replace, Write::Add] {
                    let mut out = start.clone();
                    matmul(MatrixMut::new(&mut out, m, n, n), left, &rhs, 0.5, write);
                    for (at, found) in out.iter().enumerate() {
                        let before = if write == Write::Add { start[at] } else { 0.0 };
                        let sum = f64::from(before) + 0.5 * expected(at / n, at % n);
                        let gap = (f64::from(*found) - sum).abs();
                        assert!(
                            gap < 2e-5,
                            "{m}x{n}x{k} {write:?} at {at}: {found} not {sum}"
                        );
                    }
                    if write == Write::Replace {
                        assert_eq!(&out, first.get_or_insert_with(|| out.clone()));
                    }
                }
            }
        }
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped comparison must be seen")]
    fn every_way_gives_the_bits_of_the_plain_loop() {
        let ways = Tile::of_this_processor();
        if ways.len() < 3 {
            eprintln!("SKIPPED in part: this processor has no AVX-512 or no AVX512-BF16");
        }
        let pack_of = |seed, width: usize| -> Vec<u32> {
            let numbers = numbers(seed, 2 * 300 * width);
            numbers
                .as_chunks()
                .0
                .iter()
                .map(|[even, odd]| joined(*even, *odd))
                .collect()
        };
        let (lhs, rhs) = (pack_of(4, ROWS), pack_of(5, COLS));
        let (lhs, rhs) = (lhs.as_chunks().0, rhs.as_chunks().0);
        let apart: Vec<Numbers> = lhs.iter().map(taken_apart).collect();
        let mut expected = [[0.0; COLS]; ROWS];
        plain(lhs, rhs, &mut expected);
        for way in ways {
            let mut sums = [[f32::NAN; COLS]; ROWS];
            match way {
                Tile::Paired(tile) => tile(lhs, rhs, &mut sums),
                Tile::Apart(tile) => tile(&apart, rhs, &mut sums),
            }
            assert_eq!(
                sums.map(|row| row.map(f32::to_bits)),
                expected.map(|row| row.map(f32::to_bits))
            );
        }
    }
}
