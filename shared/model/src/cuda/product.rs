//! Matrix products by cuBLAS, row-major, one or a batch of equal shape.

use std::ffi::c_void;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublas::{result, sys};
use candle_core::cuda::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use candle_core::{CudaDevice, Result};

use super::{Factor, OnDevice};
use crate::kernels::Write;

/// A row-major factor; of a batch, the first of its matrices.
pub(crate) struct Matrix<'a, F> {
    data: CudaView<'a, F>,
    rows: usize,
    cols: usize,
    /// Elements from one stored row to the next.
    stride: usize,
    turned: bool,
    /// Elements from one matrix of the batch to the next.
    step: usize,
}

impl<'a, F> Matrix<'a, F> {
    /// `[rows, cols]`, its rows `stride` apart.
    pub(crate) fn new(data: CudaView<'a, F>, rows: usize, cols: usize, stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            stride,
            turned: false,
            step: rows * stride,
        }
    }

    /// The same numbers as `[cols, rows]`.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            turned: !self.turned,
            ..self
        }
    }

    /// Rows and columns.
    pub(crate) fn sides(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Elements that a batch of them reaches over.
    fn reach(&self, batch: usize) -> usize {
        let (rows, cols) = if self.turned {
            (self.cols, self.rows)
        } else {
            (self.rows, self.cols)
        };
        reach((rows, cols), self.stride, self.step, batch)
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.turned {
            sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            sys::cublasOperation_t::CUBLAS_OP_N
        }
    }
}

/// Where a product goes: `[rows, cols]` contiguous, one of a batch behind the other.
pub(crate) struct MatrixMut<'a, T> {
    data: CudaViewMut<'a, T>,
    rows: usize,
    cols: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    pub(crate) fn new(data: CudaViewMut<'a, T>, rows: usize, cols: usize) -> Self {
        Self { data, rows, cols }
    }
}

fn reach((rows, cols): (usize, usize), stride: usize, step: usize, batch: usize) -> usize {
    if rows == 0 || cols == 0 || batch == 0 {
        return 0;
    }
    (batch - 1) * step + (rows - 1) * stride + cols
}

/// `out = scale · left · right`, or `out += …`, for `batch` matrices each.
#[expect(unsafe_code, reason = "cuBLAS takes pointers")]
pub(crate) fn product<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    out: MatrixMut<'_, T>,
    left: &Matrix<'_, F>,
    right: &Matrix<'_, F>,
    scale: f64,
    write: Write,
    batch: usize,
) -> Result<()> {
    let MatrixMut {
        data: mut to,
        rows,
        cols,
    } = out;
    let depth = left.cols;
    let fits = left.rows == rows && right.cols == cols && right.rows == depth;
    let enough = left.reach(batch) <= left.data.len()
        && right.reach(batch) <= right.data.len()
        && batch * rows * cols <= to.len();
    if !(fits && enough) {
        return Err(candle_core::Error::msg(format!(
            "product of [{}, {depth}] and [{}, {}] into [{rows}, {cols}], {batch} times: sizes do not agree",
            left.rows, right.rows, right.cols
        )));
    }
    if batch * rows * cols == 0 {
        return Ok(());
    }
    let beta = if write == Write::Add { 1.0 } else { 0.0 };
    let double = T::COMPUTE == sys::cublasComputeType_t::CUBLAS_COMPUTE_64F;
    let (wide, narrow) = ([scale, beta], [scale as f32, beta as f32]);
    let scalar = |index: usize| -> *const c_void {
        if double {
            std::ptr::from_ref(&wide[index]).cast()
        } else {
            std::ptr::from_ref(&narrow[index]).cast()
        }
    };
    let (blas, stream) = (device.cublas_handle(), device.cuda_stream());
    let (a, _a) = right.data.device_ptr(&stream);
    let (b, _b) = left.data.device_ptr(&stream);
    let (c, _c) = to.device_ptr_mut(&stream);
    // SAFETY: the three ranges were checked against their slices just above, the scalars live until the call returns
    // and have the type that the sums have, and the handle works on the stream that the slices were made on.
    // cuBLAS counts columns first: what it sees of each matrix is its transpose, so the factors change places.
    unsafe {
        result::gemm_strided_batched_ex(
            *blas.handle(),
            right.operation(),
            left.operation(),
            cols as i32,
            rows as i32,
            depth as i32,
            scalar(0),
            a as *const c_void,
            F::KIND,
            right.stride as i32,
            right.step as i64,
            b as *const c_void,
            F::KIND,
            left.stride as i32,
            left.step as i64,
            scalar(1),
            c as *mut c_void,
            <T as Factor<T>>::KIND,
            cols as i32,
            (rows * cols) as i64,
            batch as i32,
            T::COMPUTE,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}

/// `dst [out, in] = gradᵀ · input`, or `dst += …`.
pub(crate) fn weight_gradient<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    dst: CudaViewMut<'_, T>,
    (grad, outputs): (CudaView<'_, F>, usize),
    (input, inputs): (CudaView<'_, F>, usize),
    write: Write,
) -> Result<()> {
    let rows = grad.len() / outputs;
    product(
        device,
        MatrixMut::new(dst, outputs, inputs),
        &Matrix::new(grad, rows, outputs, outputs).transposed(),
        &Matrix::new(input, rows, inputs, inputs),
        1.0,
        write,
        1,
    )
}
