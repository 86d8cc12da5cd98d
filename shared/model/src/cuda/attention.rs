//! Causal attention of one call on a device, by head.
//!
//! bf16 factors of the usual head sizes go through kernels that keep no scores (`flash.cuh`); all else makes the scores
//! of as many heads at once as fit, with cuBLAS for the products.

use std::f64::consts::LOG2_E;
use std::ops::Range;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, Result};

use super::kernels::{blocks, function, holds};
use super::{
    Factor, Heads, Matrix, MatrixMut, OnDevice, empty, heads_first, heads_last, product, softmax,
    softmax_back,
};
use crate::kernels::{HeadLayout, Write};

/// Elements of scores that exist at once: 1 GiB in f32.
const SCORES: usize = 1 << 28;

/// Rows of a tile in `flash.cuh`.
const TILE: usize = 64;

/// Threads of a block in `flash.cuh`.
const THREADS: u32 = 128;

/// What going back needs besides the output: the heads, and each row's log-sum where the scores were not made.
pub(crate) struct Kept<T, F> {
    pub(crate) heads: Heads<F>,
    log_sums: Option<CudaSlice<T>>,
}

/// Sizes of one call. Every group of query heads that share a key/value head is one matrix of `copies · s` queries.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    layout: HeadLayout,
    batch: usize,
    sequence: usize,
}

impl Attention {
    pub(crate) fn new(layout: HeadLayout, batch: usize, sequence: usize) -> Self {
        Self {
            layout,
            batch,
            sequence,
        }
    }

    /// The heads' outputs side by side, `[b, s, h·e]`, and what going back needs.
    pub(crate) fn forward<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: Heads<F>,
    ) -> Result<(CudaSlice<T>, Kept<T, F>)> {
        self.check(&heads)?;
        let (out, log_sums) = if self.has_kernel::<T, F>() {
            let (out, log_sums) = self.attend::<T, F>(device, &heads)?;
            (out, Some(log_sums))
        } else {
            let out = self.with_scores::<T, F>(device, &heads)?;
            (heads_last(device, &out, self.sequence, self.layout)?, None)
        };
        Ok((out, Kept { heads, log_sums }))
    }

    /// Gradients of queries, keys and values by head, from the output and its gradient, `[b, s, h·e]`.
    pub(crate) fn backward<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        kept: &Kept<T, F>,
        out: &CudaView<'_, T>,
        grad: &CudaView<'_, T>,
    ) -> Result<Heads<T>> {
        self.check(&kept.heads)?;
        holds("gradient of the heads", grad.len(), kept.heads.q.len())?;
        if let Some(log_sums) = &kept.log_sums {
            return self.attend_back(device, &kept.heads, log_sums, out, grad);
        }
        let grad = heads_first::<T, F>(device, grad, self.sequence, self.layout)?;
        self.with_scores_back(device, &kept.heads, &grad)
    }

    fn has_kernel<T, F: Factor<T>>(&self) -> bool {
        F::ATTENDS && matches!(self.layout.head_dim, 64 | 128)
    }

    fn check<F>(&self, heads: &Heads<F>) -> Result<()> {
        let of = |count: usize| self.batch * count * self.sequence * self.layout.head_dim;
        holds("queries", heads.q.len(), of(self.layout.heads))?;
        holds("keys", heads.k.len(), of(self.layout.kv_heads))?;
        holds("values", heads.v.len(), of(self.layout.kv_heads))
    }

    fn groups(&self) -> usize {
        self.batch * self.layout.kv_heads
    }

    fn queries(&self) -> usize {
        self.layout.heads / self.layout.kv_heads * self.sequence
    }

    fn scale(&self) -> f64 {
        1.0 / (self.layout.head_dim as f64).sqrt()
    }

    /// One block for every tile of every one of `heads` heads, with room for so many tiles.
    fn grid(&self, heads: usize, tiles: usize) -> LaunchConfig {
        let sums = if tiles > 2 {
            2 * TILE * size_of::<f32>()
        } else {
            0
        };
        LaunchConfig {
            grid_dim: (
                self.sequence.div_ceil(TILE) as u32,
                (self.batch * heads) as u32,
                1,
            ),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: (tiles * TILE * self.layout.head_dim * 2 + sums) as u32,
        }
    }

    /// Output `[b, s, h·e]` and log-sums `[b, h, s]`.
    #[expect(unsafe_code, reason = "kernels take pointers")]
    fn attend<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
    ) -> Result<(CudaSlice<T>, CudaSlice<T>)> {
        let rows = self.batch * self.layout.heads * self.sequence;
        let mut out = empty::<T>(device, heads.q.len())?;
        let mut log_sums = empty::<T>(device, rows)?;
        let name = format!("attend_{}", self.layout.head_dim);
        let (function, stream) = (function(device, &name, F::TYPES)?, device.cuda_stream());
        let scale = (self.scale() * LOG2_E) as f32;
        // SAFETY: the arguments are the kernel's; `check` made sure of the heads' sizes, and the outputs have theirs.
        unsafe {
            stream
                .launch_builder(&function)
                .arg(&heads.q)
                .arg(&heads.k)
                .arg(&heads.v)
                .arg(&mut out)
                .arg(&mut log_sums)
                .arg(&(self.sequence as i32))
                .arg(&(self.layout.heads as i32))
                .arg(&(self.layout.kv_heads as i32))
                .arg(&scale)
                .launch(self.grid(self.layout.heads, 2))
        }
        .w()?;
        Ok((out, log_sums))
    }

    #[expect(unsafe_code, reason = "kernels take pointers")]
    fn attend_back<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
        log_sums: &CudaSlice<T>,
        out: &CudaView<'_, T>,
        grad: &CudaView<'_, T>,
    ) -> Result<Heads<T>> {
        let HeadLayout {
            heads: count,
            kv_heads,
            head_dim,
        } = self.layout;
        let rows = self.batch * count * self.sequence;
        holds("heads' outputs", out.len(), heads.q.len())?;
        holds("log-sums", log_sums.len(), rows)?;
        let mut factors = empty::<F>(device, grad.len())?;
        let mut along = empty::<T>(device, rows)?;
        let mut back = Heads {
            q: empty::<T>(device, heads.q.len())?,
            k: empty::<T>(device, heads.k.len())?,
            v: empty::<T>(device, heads.v.len())?,
        };
        let kernel = |name: &str| function(device, name, F::TYPES);
        let stream = device.cuda_stream();
        let begin = kernel("attend_back_begin")?;
        let of_queries = kernel(&format!("attend_back_queries_{head_dim}"))?;
        let of_keys = kernel(&format!("attend_back_keys_{head_dim}"))?;
        let keys_grid = self.grid(kv_heads, 4);
        of_keys
            .set_attribute(
                CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                keys_grid.shared_mem_bytes as i32,
            )
            .w()?;
        let (sequence, count_arg, kv_arg) = (self.sequence as i32, count as i32, kv_heads as i32);
        let (scale, factor) = ((self.scale() * LOG2_E) as f32, self.scale() as f32);
        // SAFETY: the arguments are the kernels'; `check` made sure of the heads' sizes, the lines above of the others.
        unsafe {
            stream
                .launch_builder(&begin)
                .arg(out)
                .arg(grad)
                .arg(&mut factors)
                .arg(&mut along)
                .arg(&sequence)
                .arg(&count_arg)
                .arg(&(head_dim as i32))
                .arg(&(rows as u64))
                .launch(blocks(rows.div_ceil(8)))
                .w()?;
            stream
                .launch_builder(&of_queries)
                .arg(&heads.q)
                .arg(&heads.k)
                .arg(&heads.v)
                .arg(&factors)
                .arg(log_sums)
                .arg(&along)
                .arg(&mut back.q)
                .arg(&sequence)
                .arg(&count_arg)
                .arg(&kv_arg)
                .arg(&scale)
                .arg(&factor)
                .launch(self.grid(count, 2))
                .w()?;
            stream
                .launch_builder(&of_keys)
                .arg(&heads.q)
                .arg(&heads.k)
                .arg(&heads.v)
                .arg(&factors)
                .arg(log_sums)
                .arg(&along)
                .arg(&mut back.k)
                .arg(&mut back.v)
                .arg(&sequence)
                .arg(&count_arg)
                .arg(&kv_arg)
                .arg(&scale)
                .arg(&factor)
                .launch(keys_grid)
                .w()?;
        }
        Ok(back)
    }

    /// Ranges of groups whose scores exist together.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let at_once = (SCORES / (self.queries() * self.sequence)).max(1);
        let groups = self.groups();
        (0..groups)
            .step_by(at_once)
            .map(move |first| first..groups.min(first + at_once))
    }

    /// Groups of a tensor whose matrices have `rows` rows of the head's width.
    fn part<'a, F>(
        &self,
        data: &'a CudaSlice<F>,
        groups: &Range<usize>,
        rows: usize,
    ) -> Matrix<'a, F> {
        let width = self.layout.head_dim;
        let size = rows * width;
        let data = data.slice(groups.start * size..groups.end * size);
        Matrix::new(data, rows, width, width)
    }

    fn part_mut<'a, T>(
        &self,
        data: &'a mut CudaSlice<T>,
        groups: &Range<usize>,
        rows: usize,
    ) -> MatrixMut<'a, T> {
        let width = self.layout.head_dim;
        let size = rows * width;
        let data = data.slice_mut(groups.start * size..groups.end * size);
        MatrixMut::new(data, rows, width)
    }

    /// `scale · a · bᵀ`, `[groups, queries, s]`.
    fn scores<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        a: &Matrix<'_, F>,
        b: Matrix<'_, F>,
        scale: f64,
        groups: usize,
    ) -> Result<CudaSlice<T>> {
        let (queries, sequence) = (self.queries(), self.sequence);
        let mut scores = empty::<T>(device, groups * queries * sequence)?;
        let out = MatrixMut::new(scores.as_view_mut(), queries, sequence);
        product(
            device,
            out,
            a,
            &b.transposed(),
            scale,
            Write::Replace,
            groups,
        )?;
        Ok(scores)
    }

    /// Probabilities `[groups, queries, s]`.
    fn probabilities<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
        groups: &Range<usize>,
    ) -> Result<CudaSlice<F>> {
        let q = self.part(&heads.q, groups, self.queries());
        let k = self.part(&heads.k, groups, self.sequence);
        let scores = self.scores::<T, F>(device, &q, k, self.scale(), groups.len())?;
        softmax(device, &scores, self.sequence)
    }

    fn square<'a, F>(&self, data: &'a CudaSlice<F>) -> Matrix<'a, F> {
        Matrix::new(data.as_view(), self.queries(), self.sequence, self.sequence)
    }

    /// `[b, h, s, e]`.
    fn with_scores<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
    ) -> Result<CudaSlice<T>> {
        let mut out = empty::<T>(device, heads.q.len())?;
        for groups in self.spans() {
            let p = self.probabilities::<T, F>(device, heads, &groups)?;
            let v = self.part(&heads.v, &groups, self.sequence);
            let to = self.part_mut(&mut out, &groups, self.queries());
            product(
                device,
                to,
                &self.square(&p),
                &v,
                1.0,
                Write::Replace,
                groups.len(),
            )?;
        }
        Ok(out)
    }

    /// From the gradient `[b, h, s, e]` of the heads' outputs.
    fn with_scores_back<T: OnDevice, F: Factor<T>>(
        &self,
        device: &CudaDevice,
        heads: &Heads<F>,
        grad: &CudaSlice<F>,
    ) -> Result<Heads<T>> {
        let (queries, sequence, scale) = (self.queries(), self.sequence, self.scale());
        let mut back = Heads {
            q: empty::<T>(device, heads.q.len())?,
            k: empty::<T>(device, heads.k.len())?,
            v: empty::<T>(device, heads.v.len())?,
        };
        for groups in self.spans() {
            let count = groups.len();
            let p = self.probabilities::<T, F>(device, heads, &groups)?;
            let d_out = self.part(grad, &groups, queries);
            let d_v = self.part_mut(&mut back.v, &groups, sequence);
            let turned = self.square(&p).transposed();
            product(device, d_v, &turned, &d_out, 1.0, Write::Replace, count)?;
            let v = self.part(&heads.v, &groups, sequence);
            let d_p = self.scores::<T, F>(device, &d_out, v, 1.0, count)?;
            let d_scores = softmax_back::<T, F>(device, &p, &d_p, sequence)?;
            drop((p, d_p));
            let d_q = self.part_mut(&mut back.q, &groups, queries);
            let k = self.part(&heads.k, &groups, sequence);
            product(
                device,
                d_q,
                &self.square(&d_scores),
                &k,
                scale,
                Write::Replace,
                count,
            )?;
            let d_k = self.part_mut(&mut back.k, &groups, sequence);
            let (turned, q) = (
                self.square(&d_scores).transposed(),
                self.part(&heads.q, &groups, queries),
            );
            product(device, d_k, &turned, &q, scale, Write::Replace, count)?;
        }
        Ok(back)
    }
}
