//! The right factor of matrix products, made ready for many of them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::bf16::{self, PackedRhs};
use super::{Matrix, MatrixMut, Write, matmul, product, transpose, zeros};
use crate::float::Float;

/// Rows of transposed weights that one parallel task writes.
const BAND: usize = 64;

/// How matrix products are computed. Tensors and what is made of products keep their type either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// Factors and sums as the tensors are, f32 or f64.
    #[default]
    F32,
    /// Factors rounded to bf16, their sums f32: up to twice the rate of f32 on AMD's processors with AVX512-BF16, somewhat
    /// less than f32's with AVX-512 otherwise, far less elsewhere. Adapters are not rounded on the CPU; on a device the
    /// weights are rounded with their adapters in them, and f64 tensors keep f64.
    Bf16,
}

impl Products {
    /// Whether this processor makes them by vector instructions, at about f32's rate or above.
    pub fn are_fast(self) -> bool {
        self == Self::F32 || bf16::is_vectorised()
    }
}

/// The right factor of a product whose rows several tasks compute: made ready once for all of them.
///
/// The f32 product packs this factor anew for every task, at a third of the speed where it has to transpose it; then it
/// is transposed once. The products are the same bit for bit.
pub(crate) enum Right<'a, T: Float> {
    AsItIs(Matrix<'a, T>),
    Transposed {
        depth: usize,
        width: usize,
        data: Vec<T>,
    },
    Bf16(PackedRhs),
}

impl<'a, T: Float> Right<'a, T> {
    /// `wᵀ` of weights `w [width, depth]`, for `rows` rows in all, in tasks of at most `task_rows`.
    pub(crate) fn transposed(
        w: &'a [T],
        (width, depth): (usize, usize),
        (rows, task_rows): (usize, usize),
        products: Products,
    ) -> Self {
        let matrix = Matrix::new(w, width, depth, depth).transposed();
        if products == Products::Bf16 {
            return Self::Bf16(PackedRhs::new(matrix));
        }
        if rows <= task_rows {
            return Self::AsItIs(matrix);
        }
        let mut data = vec![T::zero(); width * depth];
        data.par_chunks_mut(BAND * width)
            .enumerate()
            .for_each(|(band, rows)| transpose(w, depth, band * BAND, rows));
        Self::Transposed { depth, width, data }
    }

    /// Weights `w [depth, width]`.
    pub(crate) fn stored(w: &'a [T], (depth, width): (usize, usize), products: Products) -> Self {
        Self::new(Matrix::new(w, depth, width, width), products)
    }

    /// Any matrix.
    pub(crate) fn new(matrix: Matrix<'a, T>, products: Products) -> Self {
        match products {
            Products::F32 => Self::AsItIs(matrix),
            Products::Bf16 => Self::Bf16(PackedRhs::new(matrix)),
        }
    }

    /// `out = scale · left · right`, or `out += …`, on one thread. Of the right factor the first rows and columns are
    /// taken, as many as `left` has columns and `out` has.
    pub(crate) fn times(&self, out: MatrixMut<'_, T>, left: Matrix<'_, T>, scale: T, write: Write) {
        match self {
            Self::AsItIs(right) => {
                let right = right.beginning(left.cols, out.cols);
                matmul(out, left, right, scale, write);
            }
            Self::Transposed { depth, width, data } => {
                let right = Matrix::new(data, *depth, *width, *width);
                matmul(out, left, right, scale, write);
            }
            Self::Bf16(right) => bf16::matmul(out, left, right, scale, write),
        }
    }

    /// [`Self::times`] for whole rows `left [rows, depth]`.
    pub(crate) fn apply(&self, out: &mut [T], left: &[T], write: Write) {
        let (depth, width) = self.sides();
        let rows = out.len() / width;
        let left = Matrix::new(left, rows, depth, depth);
        let out = MatrixMut::new(out, rows, width, width);
        self.times(out, left, T::one(), write);
    }

    /// `out = left · right` where nothing is yet.
    pub(crate) fn fill<'o>(
        &self,
        out: &'o mut [MaybeUninit<T>],
        left: Matrix<'_, T>,
    ) -> &'o mut [T] {
        match self {
            Self::AsItIs(right) => product(out, left, *right),
            Self::Transposed { depth, width, data } => {
                product(out, left, Matrix::new(data, *depth, *width, *width))
            }
            Self::Bf16(right) => {
                let (out, (_, width)) = (zeros(out), right.sides());
                let dst = MatrixMut::new(out, left.rows, width, width);
                bf16::matmul(dst, left, right, T::one(), Write::Replace);
                out
            }
        }
    }

    /// [`Self::fill`] for whole rows `left [rows, depth]`.
    pub(crate) fn fill_rows<'o>(&self, out: &'o mut [MaybeUninit<T>], left: &[T]) -> &'o mut [T] {
        let (depth, width) = self.sides();
        self.fill(out, Matrix::new(left, out.len() / width, depth, depth))
    }

    /// Depth and width.
    fn sides(&self) -> (usize, usize) {
        match self {
            Self::AsItIs(right) => (right.rows, right.cols),
            Self::Transposed { depth, width, .. } => (*depth, *width),
            Self::Bf16(right) => right.sides(),
        }
    }
}
