//! Slice kernels shared by the fused operations: matrix product, norm, gate, rotary, attention.
//!
//! Each works on one thread; the operations split rows into tasks whose bounds depend on shapes only.

#![expect(
    clippy::inline_always,
    reason = "loops take the vector width of the function they are inlined into"
)]

use std::mem::MaybeUninit;

use crate::Params;
use crate::float::Float;

mod bf16;
mod right;

pub use right::Products;
pub(crate) use right::Right;

/// Width of the partial sums of a reduction: fixed, so that the result does not depend on the processor.
const LANES: usize = 16;

/// Rows of attention scores that are held at once.
const SCORE_ROWS: usize = 64;

/// Runs a loop compiled for the widest vector unit present. Mark the closure `#[inline(always)]`: left as
/// a call it keeps the baseline width.
#[inline]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major `rows × cols` whose rows start `stride` elements apart.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, stride);
        Self {
            data,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// The first rows and columns.
    fn beginning(self, rows: usize, cols: usize) -> Self {
        assert!(
            rows <= self.rows && cols <= self.cols,
            "{rows}x{cols} of {}x{}",
            self.rows,
            self.cols
        );
        Self { rows, cols, ..self }
    }

    /// The transposed view.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A row-major matrix to write to.
pub(crate) struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// Row-major `rows × cols` whose rows start `stride` elements apart.
    pub(crate) fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, stride);
        Self {
            data,
            rows,
            cols,
            row_stride: stride,
        }
    }
}

fn assert_fits(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(stride >= cols, "rows of {cols} overlap at stride {stride}");
    let needed = if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * stride + cols
    };
    assert!(
        len >= needed,
        "a slice of {len} cannot hold {rows} x {cols} at stride {stride}"
    );
}

/// Whether a product replaces its destination or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Add,
}

/// `dst = scale · lhs · rhs`, or `dst += …`, on one thread.
pub(crate) fn matmul<T: Float>(
    dst: MatrixMut<'_, T>,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    scale: T,
    write: Write,
) {
    assert!(
        lhs.cols == rhs.rows && dst.rows == lhs.rows && dst.cols == rhs.cols,
        "product of {}x{} and {}x{} into {}x{}",
        lhs.rows,
        lhs.cols,
        rhs.rows,
        rhs.cols,
        dst.rows,
        dst.cols
    );
    // SAFETY: the constructor checked that every (row, column) of `dst` lies inside its slice, which is borrowed
    // mutably and holds values, and the sizes agree (above).
    #[expect(unsafe_code, reason = "the slice of `dst` is as large as its sides")]
    unsafe {
        multiply(
            dst.data.as_mut_ptr(),
            dst.row_stride,
            lhs,
            rhs,
            scale,
            write,
        );
    }
}

/// `lhs · rhs`, row-major, where nothing is yet.
pub(crate) fn product<'a, T: Float>(
    out: &'a mut [MaybeUninit<T>],
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) -> &'a mut [T] {
    assert!(
        lhs.cols == rhs.rows && out.len() == lhs.rows * rhs.cols,
        "product of {}x{} and {}x{} into {} elements",
        lhs.rows,
        lhs.cols,
        rhs.rows,
        rhs.cols,
        out.len()
    );
    // SAFETY: `out` has as many elements as the product, one row behind the other; a product that replaces reads none
    // of them and writes every one, so all are there afterwards.
    #[expect(unsafe_code, reason = "the product writes what the slice holds")]
    unsafe {
        let dst = out.as_mut_ptr().cast();
        multiply(dst, rhs.cols, lhs, rhs, T::one(), Write::Replace);
        out.assume_init_mut()
    }
}

/// Zeros where nothing is yet.
pub(crate) fn zeros<T: Float>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    for element in &mut *out {
        element.write(T::zero());
    }
    // SAFETY: the loop has written every element.
    #[expect(unsafe_code, reason = "the elements were written one by one")]
    unsafe {
        out.assume_init_mut()
    }
}

/// `dst = scale · lhs · rhs`, or `dst += …`, with the rows of `dst` `stride` elements apart.
///
/// # Safety
/// `lhs.cols` is `rhs.rows`; every element of `dst [lhs.rows, rhs.cols]` can be written, overlaps neither factor, and
/// holds a value where it is added to.
#[expect(
    unsafe_code,
    reason = "the matrix product of the gemm crate takes raw pointers"
)]
unsafe fn multiply<T: Float>(
    dst: *mut T,
    stride: usize,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    scale: T,
    write: Write,
) {
    if lhs.rows == 0 || rhs.cols == 0 {
        return;
    }
    let (keep, old) = if write == Write::Add {
        (true, T::one())
    } else {
        (false, T::zero())
    };
    // SAFETY: the constructor of both factors checked that every (row, column) lies inside its slice; the rest is the
    // caller's word.
    unsafe {
        gemm::gemm(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            dst,
            1,
            stride as isize,
            keep,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            old,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out [rows, width] = x [rows, depth] · wᵀ` with `w [width, depth]`.
pub(crate) fn project<T: Float>(
    out: &mut [T],
    x: &[T],
    w: &[T],
    width: usize,
    depth: usize,
    write: Write,
) {
    let rows = x.len() / depth;
    matmul(
        MatrixMut::new(out, rows, width, width),
        Matrix::new(x, rows, depth, depth),
        Matrix::new(w, width, depth, depth).transposed(),
        T::one(),
        write,
    );
}

/// Side of the square tiles that [`transpose`] works in.
const TILE: usize = 16;

/// Rows `first..` of the transpose of `w [width, depth]`, as many as `transposed [.., width]` has.
fn transpose<T: Float>(w: &[T], depth: usize, first: usize, transposed: &mut [T]) {
    let width = w.len() / depth;
    for (band, rows) in transposed.chunks_mut(TILE * width).enumerate() {
        let first = first + band * TILE;
        let height = rows.len() / width;
        for left in (0..width).step_by(TILE) {
            let across = TILE.min(width - left);
            let mut tile = [[T::zero(); TILE]; TILE];
            for (j, line) in tile[..across].iter_mut().enumerate() {
                line[..height].copy_from_slice(&w[(left + j) * depth + first..][..height]);
            }
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                for (out, line) in row[left..left + across].iter_mut().zip(&tile) {
                    *out = line[i];
                }
            }
        }
    }
}

/// Dot product in a fixed order.
#[inline(always)]
pub(crate) fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    let mut total = T::zero();
    for lane in lanes {
        total += lane;
    }
    for (x, y) in a_rest.iter().zip(b_rest) {
        total += *x * *y;
    }
    total
}

/// Replaces each x by exp(x − shift) and returns the sum, in a fixed order.
#[inline(always)]
pub(crate) fn exp_sum<T: Float>(row: &mut [T], shift: T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let e = (chunk[i] - shift).exp_fast();
            chunk[i] = e;
            lanes[i] += e;
        }
    }
    let mut total = T::zero();
    for lane in lanes {
        total += lane;
    }
    // All lanes at once, though only some of them count.
    let mut last = [shift; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for x in &mut last {
        *x = (*x - shift).exp_fast();
    }
    for (x, e) in rest.iter_mut().zip(last) {
        *x = e;
        total += e;
    }
    total
}

/// Largest element of a non-empty slice; NaN is passed over (the sum that follows shows it).
#[inline(always)]
pub(crate) fn maximum<T: Float>(row: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [row[0]; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    rest.iter().chain(&lanes).fold(row[0], |m, x| larger(m, *x))
}

/// RMSNorm of rows: `out = x · r · w` with `r = 1/√(mean x² + eps)`; `r` goes to `inverse`.
pub(crate) fn rms_norm<T: Float>(x: &[T], w: &[T], eps: f64, out: &mut [T], inverse: &mut [T]) {
    let dim = w.len();
    let (eps, count) = (T::from_f64(eps), T::from_f64(dim as f64));
    vectorised(
        #[inline(always)]
        || {
            for ((x, out), inverse) in x
                .chunks_exact(dim)
                .zip(out.chunks_exact_mut(dim))
                .zip(inverse)
            {
                let r = T::one() / (dot(x, x) / count + eps).root();
                *inverse = r;
                normed(x, r, w, out);
            }
        },
    );
}

/// One row of [`rms_norm`]. Zipped: with indices the compiler checks each and takes the numbers one by one.
#[inline(always)]
fn normed<T: Float>(x: &[T], r: T, w: &[T], out: &mut [T]) {
    for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
        *out = *x * r * *w;
    }
}

/// Recomputes the output of [`rms_norm`] from the stored `inverse`.
pub(crate) fn rms_norm_again<T: Float>(x: &[T], w: &[T], inverse: &[T], out: &mut [T]) {
    let dim = w.len();
    vectorised(
        #[inline(always)]
        || {
            for ((x, out), r) in x
                .chunks_exact(dim)
                .zip(out.chunks_exact_mut(dim))
                .zip(inverse)
            {
                normed(x, *r, w, out);
            }
        },
    );
}

/// Backward of [`rms_norm`]: with h = grad·w, `dx += r·(h − x·r²·mean(h·x))` and `dw += Σ grad·x·r`.
pub(crate) fn rms_norm_back<T: Float>(
    grad: &[T],
    x: &[T],
    w: &[T],
    inverse: &[T],
    dx: &mut [T],
    dw: &mut [T],
) {
    let dim = w.len();
    assert_eq!(dw.len(), dim, "one gradient for each weight of the norm");
    let count = T::from_f64(dim as f64);
    let mut scaled = vec![T::zero(); dim];
    vectorised(
        #[inline(always)]
        || {
            let rows = grad
                .chunks_exact(dim)
                .zip(x.chunks_exact(dim))
                .zip(dx.chunks_exact_mut(dim));
            for (((grad, x), dx), r) in rows.zip(inverse) {
                // Zipped as in `normed`.
                let sums = scaled.iter_mut().zip(&mut *dw);
                for ((((scaled, dw), grad), x), w) in sums.zip(grad).zip(x).zip(w) {
                    *scaled = *grad * *w;
                    *dw += *grad * *x * *r;
                }
                let pull = *r * *r * dot(&scaled, x) / count;
                for ((dx, scaled), x) in dx.iter_mut().zip(&scaled).zip(x) {
                    *dx += *r * (*scaled - *x * pull);
                }
            }
        },
    );
}

/// SwiGLU of rows `[gate | up]`: `out = gate·σ(gate)·up`.
pub(crate) fn swiglu<T: Float>(gate_up: &[T], width: usize, out: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for (row, out) in gate_up
                .chunks_exact(2 * width)
                .zip(out.chunks_exact_mut(width))
            {
                let (gate, up) = row.split_at(width);
                for i in 0..width {
                    let sigma = T::one() / (T::one() + (-gate[i]).exp_fast());
                    out[i] = gate[i] * sigma * up[i];
                }
            }
        },
    );
}

/// Backward of [`swiglu`]: writes the gradient of `[gate | up]`; `act` receives the forward output again
/// and `grad` is its gradient.
pub(crate) fn swiglu_back<T: Float>(
    gate_up: &[T],
    grad: &[T],
    width: usize,
    d_gate_up: &mut [T],
    act: &mut [T],
) {
    vectorised(
        #[inline(always)]
        || {
            let rows = gate_up
                .chunks_exact(2 * width)
                .zip(grad.chunks_exact(width));
            let outs = d_gate_up
                .chunks_exact_mut(2 * width)
                .zip(act.chunks_exact_mut(width));
            for ((row, grad), (d_row, act)) in rows.zip(outs) {
                let (gate, up) = row.split_at(width);
                let (d_gate, d_up) = d_row.split_at_mut(width);
                for i in 0..width {
                    let sigma = T::one() / (T::one() + (-gate[i]).exp_fast());
                    let silu = gate[i] * sigma;
                    act[i] = silu * up[i];
                    d_up[i] = grad[i] * silu;
                    d_gate[i] = grad[i] * up[i] * (sigma + silu * (T::one() - sigma));
                }
            }
        },
    );
}

/// Rotates the interleaved pairs of the first `heads` heads of each row by the row's angles; `direction`
/// is +1 forward and −1 for gradients.
pub(crate) fn rotate<T: Float>(
    rows: &mut [T],
    stride: usize,
    heads: usize,
    cos: &[T],
    sin: &[T],
    half: usize,
    direction: T,
) {
    vectorised(
        #[inline(always)]
        || {
            for (position, row) in rows.chunks_exact_mut(stride).enumerate() {
                let (cos, sin) = (
                    &cos[position * half..][..half],
                    &sin[position * half..][..half],
                );
                for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                    for (pair, (c, s)) in head
                        .as_chunks_mut::<2>()
                        .0
                        .iter_mut()
                        .zip(cos.iter().zip(sin))
                    {
                        let [a, b] = *pair;
                        let s = *s * direction;
                        *pair = [a * *c - b * s, a * s + b * *c];
                    }
                }
            }
        },
    );
}

/// Sizes of one attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLayout {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl HeadLayout {
    pub(crate) fn new(params: &Params) -> Self {
        Self {
            heads: params.n_heads,
            kv_heads: params.n_kv_heads,
            head_dim: params.head_dim(),
        }
    }

    /// Width of a packed row `[q | k | v]`.
    pub(crate) fn packed(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of all query heads together.
    pub(crate) fn query(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Queries `[rows, e]` of one head.
    fn queries<'a, T>(
        &self,
        qkv: &'a [T],
        head: usize,
        rows: std::ops::Range<usize>,
    ) -> Matrix<'a, T> {
        let start = rows.start * self.packed() + head * self.head_dim;
        Matrix::new(&qkv[start..], rows.len(), self.head_dim, self.packed())
    }

    /// Keys `[s, e]` that a query head attends to.
    fn keys<'a, T>(&self, qkv: &'a [T], head: usize) -> Matrix<'a, T> {
        let start = self.key_offset(self.kv_head(head));
        let len = qkv.len() / self.packed();
        Matrix::new(&qkv[start..], len, self.head_dim, self.packed())
    }

    /// Values `[s, e]` that a query head attends to.
    fn values<'a, T>(&self, qkv: &'a [T], head: usize) -> Matrix<'a, T> {
        let start = self.value_offset(self.kv_head(head));
        let len = qkv.len() / self.packed();
        Matrix::new(&qkv[start..], len, self.head_dim, self.packed())
    }

    fn key_offset(&self, kv_head: usize) -> usize {
        (self.heads + kv_head) * self.head_dim
    }

    fn value_offset(&self, kv_head: usize) -> usize {
        (self.heads + self.kv_heads + kv_head) * self.head_dim
    }

    fn scale<T: Float>(&self) -> T {
        T::one() / T::from_f64(self.head_dim as f64).root()
    }
}

/// Causal attention of one sequence. `qkv [s, packed]` is rotated already; writes `out [s, n·e]` and the
/// log-sum-exp of every row, `log_sums [n, s]`, from which backward recomputes the probabilities.
pub(crate) fn attention<T: Float>(
    layout: HeadLayout,
    products: Products,
    qkv: &[T],
    out: &mut [T],
    log_sums: &mut [T],
    scores: &mut Vec<T>,
) {
    let (packed, query, e) = (layout.packed(), layout.query(), layout.head_dim);
    let len = qkv.len() / packed;
    for head in 0..layout.heads {
        let keys = Right::new(layout.keys(qkv, head).transposed(), products);
        let values = Right::new(layout.values(qkv, head), products);
        for first in (0..len).step_by(SCORE_ROWS) {
            let last = len.min(first + SCORE_ROWS);
            let rows = last - first;
            scores.resize(rows * last, T::zero());
            keys.times(
                MatrixMut::new(scores, rows, last, last),
                layout.queries(qkv, head, first..last),
                layout.scale(),
                Write::Replace,
            );
            let sums = &mut log_sums[head * len + first..head * len + last];
            vectorised(
                #[inline(always)]
                || {
                    for (i, (row, log_sum)) in scores.chunks_exact_mut(last).zip(sums).enumerate() {
                        let (seen, hidden) = row.split_at_mut(first + i + 1);
                        let top = maximum(seen);
                        let sum = exp_sum(seen, top);
                        let share = T::one() / sum;
                        for p in seen {
                            *p *= share;
                        }
                        hidden.fill(T::zero());
                        *log_sum = top + T::from_f64(sum.to_f64().ln());
                    }
                },
            );
            values.times(
                MatrixMut::new(&mut out[first * query + head * e..], rows, e, query),
                Matrix::new(scores, rows, last, last),
                T::one(),
                Write::Replace,
            );
        }
    }
}

/// What backward of [`attention`] reads for one sequence.
pub(crate) struct AttentionGrad<'a, T> {
    pub(crate) qkv: &'a [T],
    pub(crate) log_sums: &'a [T],
    pub(crate) out: &'a [T],
    pub(crate) grad: &'a [T],
}

/// Backward of [`attention`]; `d_qkv [s, packed]` must be zero on entry. Probabilities are recomputed
/// block by block, so nothing of size s×s is kept.
pub(crate) fn attention_back<T: Float>(
    layout: HeadLayout,
    products: Products,
    given: &AttentionGrad<'_, T>,
    d_qkv: &mut [T],
    scores: &mut Vec<T>,
    d_scores: &mut Vec<T>,
) {
    let (packed, query, e) = (layout.packed(), layout.query(), layout.head_dim);
    let len = given.qkv.len() / packed;
    let scale: T = layout.scale();
    for head in 0..layout.heads {
        let kv = layout.kv_head(head);
        let (keys, values) = (layout.keys(given.qkv, head), layout.values(given.qkv, head));
        let keys_transposed = Right::new(keys.transposed(), products);
        let values_transposed = Right::new(values.transposed(), products);
        let keys = Right::new(keys, products);
        for first in (0..len).step_by(SCORE_ROWS) {
            let last = len.min(first + SCORE_ROWS);
            let rows = last - first;
            scores.resize(rows * last, T::zero());
            d_scores.resize(rows * last, T::zero());
            let grad_rows = &given.grad[first * query..last * query];
            let out_rows = &given.out[first * query..last * query];
            let grad = Matrix::new(&grad_rows[head * e..], rows, e, query);
            let queries = layout.queries(given.qkv, head, first..last);
            keys_transposed.times(
                MatrixMut::new(scores, rows, last, last),
                queries,
                scale,
                Write::Replace,
            );
            values_transposed.times(
                MatrixMut::new(d_scores, rows, last, last),
                grad,
                T::one(),
                Write::Replace,
            );
            let sums = &given.log_sums[head * len + first..head * len + last];
            vectorised(
                #[inline(always)]
                || {
                    let blocks = scores
                        .chunks_exact_mut(last)
                        .zip(d_scores.chunks_exact_mut(last));
                    for (i, ((p, dp), log_sum)) in blocks.zip(sums).enumerate() {
                        let own = i * query + head * e..i * query + (head + 1) * e;
                        let pull = dot(&grad_rows[own.clone()], &out_rows[own]);
                        let seen = first + i + 1;
                        // Whole lanes: what is not seen is cleared behind.
                        let lanes = seen.next_multiple_of(LANES).min(last);
                        for (p, dp) in p[..lanes].iter_mut().zip(&mut dp[..lanes]) {
                            *p = (*p - *log_sum).exp_fast();
                            *dp = *p * (*dp - pull) * scale;
                        }
                        p[seen..].fill(T::zero());
                        dp[seen..].fill(T::zero());
                    }
                },
            );
            Right::new(grad, products).times(
                MatrixMut::new(&mut d_qkv[layout.value_offset(kv)..], last, e, packed),
                Matrix::new(scores, rows, last, last).transposed(),
                T::one(),
                Write::Add,
            );
            keys.times(
                MatrixMut::new(&mut d_qkv[first * packed + head * e..], rows, e, packed),
                Matrix::new(d_scores, rows, last, last),
                T::one(),
                Write::Replace,
            );
            Right::new(queries, products).times(
                MatrixMut::new(&mut d_qkv[layout.key_offset(kv)..], last, e, packed),
                Matrix::new(d_scores, rows, last, last).transposed(),
                T::one(),
                Write::Add,
            );
        }
    }
}
