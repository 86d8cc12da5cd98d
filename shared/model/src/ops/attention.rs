//! The attention half of a block up to the output projection: norm, q/k/v, rotary, causal softmax.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{norm_width, run_on_device};
use super::low_rank::{AdapterGradient, Branch, Factors, Fused, LowRank, Stack};
use super::{
    Fresh, Products, Right, Saved, TASK_ROWS, Unwritten, Wanted, WeightGradient, add_partials,
    backward, by_dtype, gradient, storage_of, tensor_values, values,
};
use crate::Rotary;
use crate::dropout::{Masks, PassDropout};
use crate::float::Float;
use crate::kernels::{
    AttentionGrad, HeadLayout, attention, attention_back, rms_norm, rms_norm_again, rms_norm_back,
    rotate,
};

/// What a block is, apart from its weights.
#[derive(Debug, Clone)]
pub(crate) struct BlockSetup {
    pub(crate) layout: HeadLayout,
    pub(crate) eps: f64,
    pub(crate) rotary: Arc<Rotary>,
    pub(crate) products: Products,
    /// What is dropped of the adapters' input.
    pub(crate) dropout: Option<PassDropout>,
}

impl BlockSetup {
    /// What is dropped in an operation on all rows of `x [b, s, d]`, or on some; none without dropout.
    pub(crate) fn masks(&self, x: &Tensor, rows: Option<&[u32]>) -> Result<Option<Masks>> {
        let (batch, sequence, _) = x.dims3()?;
        let dropout = self.dropout;
        Ok(dropout.map(|pass| pass.masks(sequence, rows, batch * sequence)))
    }
}

/// Heads' outputs side by side, `[b, s, n·e]`, for `x [b, s, d]`. `packed` is the concatenation
/// `[norm d | wq n·e·d | wk g·e·d | wv g·e·d]`.
pub(crate) fn attention_heads(x: &Tensor, packed: &Tensor, setup: &BlockSetup) -> Result<Tensor> {
    let keep = x.track_op() || packed.track_op();
    x.contiguous()?
        .apply_op2(packed, AttentionHeads::new(setup, keep))
}

/// [`attention_heads`] upon the frozen weights `[norm, wq, wk, wv]` with adapters.
pub(crate) fn adapted_attention_heads(
    x: &Tensor,
    parts: &[Tensor; 4],
    low_rank: &LowRank,
    setup: &BlockSetup,
) -> Result<Tensor> {
    let keep = x.track_op() || low_rank.tracked();
    low_rank.apply(x, parts, AttentionHeads::new(setup, keep))
}

pub(crate) struct AttentionHeads {
    pub(super) setup: BlockSetup,
    /// Whether backward will follow.
    pub(super) keep: bool,
    pub(super) saved: Saved,
}

struct Context<T> {
    inverse: Vec<T>,
    qkv: Vec<T>,
    log_sums: Vec<T>,
}

/// Sizes of one call: tasks take whole sequences, at least [`TASK_ROWS`] rows of them.
pub(super) struct Sizes {
    pub(super) sequence: usize,
    pub(super) dim: usize,
    pub(super) packed: usize,
    pub(super) query: usize,
    task_rows: usize,
}

impl Sizes {
    /// The matrices of queries, keys and values.
    fn stack(&self) -> Stack {
        Stack {
            start: self.dim,
            outputs: self.packed,
            inputs: self.dim,
        }
    }
}

/// The rotary table in the element type of the call.
struct Angles<T> {
    cos: Vec<T>,
    sin: Vec<T>,
    half: usize,
}

/// What the tasks of one call read alike.
struct Call<'a, T: Float> {
    setup: &'a BlockSetup,
    sizes: &'a Sizes,
    angles: Angles<T>,
    norm: &'a [T],
    /// Queries, keys and values: transposed forward, as they are going back.
    weights: Right<'a, T>,
    branch: Option<&'a Branch<'a, T>>,
}

impl<T: Float> Call<'_, T> {
    /// Rotates queries and keys in the rows `[q | k | v]` of one sequence, by +1 forward or −1 going back.
    fn rotate(&self, qkv: &mut [T], direction: T) {
        let (layout, Angles { cos, sin, half }) = (self.setup.layout, &self.angles);
        let num_rotated = layout.heads + layout.kv_heads;
        rotate(
            qkv,
            self.sizes.packed,
            num_rotated,
            cos,
            sin,
            *half,
            direction,
        );
    }
}

/// Whole sequences on their way forward.
struct Forward<'a, T> {
    /// Their first row in the operation.
    first: usize,
    x: &'a [T],
    out: Unwritten<'a, T>,
    inverse: &'a mut [T],
    log_sums: &'a mut [T],
}

impl<T: Float> Forward<'_, T> {
    fn run(self, call: &Call<'_, T>, qkv: Unwritten<'_, T>) {
        let (setup, sizes) = (call.setup, call.sizes);
        let mut normed = vec![T::zero(); self.x.len()];
        rms_norm(self.x, call.norm, setup.eps, &mut normed, self.inverse);
        let qkv = qkv.product(&call.weights, &normed);
        if let Some(branch) = call.branch {
            branch.add(qkv, &normed, sizes.stack(), self.first);
        }
        let mut scores = Vec::new();
        let sequences = qkv
            .chunks_exact_mut(sizes.sequence * sizes.packed)
            .zip(
                self.out
                    .cleared()
                    .chunks_exact_mut(sizes.sequence * sizes.query),
            )
            .zip(
                self.log_sums
                    .chunks_exact_mut(sizes.sequence * setup.layout.heads),
            );
        for ((qkv, out), log_sums) in sequences {
            call.rotate(qkv, T::one());
            attention(
                setup.layout,
                setup.products,
                qkv,
                out,
                log_sums,
                &mut scores,
            );
        }
    }
}

/// What going back reads of whole sequences.
struct Given<'a, T> {
    /// Their first row in the operation.
    first: usize,
    x: &'a [T],
    grad: &'a [T],
    out: &'a [T],
    qkv: &'a [T],
    inverse: &'a [T],
    log_sums: &'a [T],
}

impl<T: Float> Given<'_, T> {
    /// From the heads' outputs to queries, keys and values before their rotation; `d_qkv` is zero on entry.
    fn back_to_qkv<'d>(&self, call: &Call<'_, T>, d_qkv: &'d mut [T]) -> &'d [T] {
        let (setup, sizes) = (call.setup, call.sizes);
        let (mut scores, mut d_scores) = (Vec::new(), Vec::new());
        let sequences = d_qkv.chunks_exact_mut(sizes.sequence * sizes.packed);
        for (index, d_qkv) in sequences.enumerate() {
            let part = |data, width| sequence_part(data, index, sizes.sequence * width);
            let given = AttentionGrad {
                qkv: part(self.qkv, sizes.packed),
                log_sums: part(self.log_sums, setup.layout.heads),
                out: part(self.out, sizes.query),
                grad: part(self.grad, sizes.query),
            };
            let (layout, products) = (setup.layout, setup.products);
            attention_back(layout, products, &given, d_qkv, &mut scores, &mut d_scores);
            call.rotate(d_qkv, -T::one());
        }
        d_qkv
    }

    /// On through projection and norm; `dx` and `partial`, the gradient of the norm's weights, are zero on entry.
    fn back_to_input(
        &self,
        call: &Call<'_, T>,
        d_qkv: &[T],
        dx: &mut [T],
        normed: &mut [T],
        partial: &mut [T],
    ) {
        rms_norm_again(self.x, call.norm, self.inverse, normed);
        let mut d_normed = Fresh::new(self.x.len());
        let d_normed = d_normed.unwritten().product(&call.weights, d_qkv);
        if let Some(branch) = call.branch {
            branch.add_back(d_normed, d_qkv, call.sizes.stack(), self.first);
        }
        rms_norm_back(d_normed, self.x, call.norm, self.inverse, dx, partial);
    }
}

impl CustomOp2 for AttentionHeads {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.forward(x, x_layout, w, w_layout, None))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_dtype!(x.dtype(), run_on_device(self, x, x_layout, w, w_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = Wanted::by_graph(x, w);
        backward(self, x, w, res, &grad.contiguous()?, wanted, None)
    }
}

impl AttentionHeads {
    /// With `keep`, going back will follow.
    pub(crate) fn new(setup: &BlockSetup, keep: bool) -> Self {
        Self {
            setup: setup.clone(),
            keep,
            saved: Saved::new(),
        }
    }

    pub(super) fn sizes(&self, shape: &Shape, num_weights: usize) -> Result<Sizes> {
        let (_, sequence, dim) = shape.dims3()?;
        let layout = self.setup.layout;
        let (packed, query) = (layout.packed(), layout.query());
        if num_weights != dim + packed * dim {
            return Err(candle_core::Error::msg(format!(
                "attention: {num_weights} packed weights for width {dim}"
            )));
        }
        if sequence == 0 || sequence > self.setup.rotary.positions() {
            let most = self.setup.rotary.positions();
            return Err(candle_core::Error::msg(format!(
                "attention: {sequence} positions, between 1 and {most} are possible"
            )));
        }
        if 2 * self.setup.rotary.half() != layout.head_dim {
            return Err(candle_core::Error::msg(
                "attention: the rotary table belongs to another head size",
            ));
        }
        Ok(Sizes {
            sequence,
            dim,
            packed,
            query,
            task_rows: TASK_ROWS.div_ceil(sequence) * sequence,
        })
    }

    fn angles<T: Float>(&self, sequence: usize) -> Angles<T> {
        let cast = |table: &[f64]| table.iter().map(|x| T::from_f64(*x)).collect();
        let rotary = &self.setup.rotary;
        Angles {
            cos: cast(rotary.cos(sequence)),
            sin: cast(rotary.sin(sequence)),
            half: rotary.half(),
        }
    }
}

impl Fused for AttentionHeads {
    const NAME: &'static str = "attention-heads";

    fn products(&self) -> Products {
        self.setup.products
    }

    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        branch: Option<&Branch<'_, T>>,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(x_layout.shape(), w_layout.shape().elem_count())?;
        let (batch, sequence, _) = x_layout.shape().dims3()?;
        let (x, packed) = (values::<T>(x, x_layout)?, values::<T>(w, w_layout)?);
        let (norm, weights) = packed.split_at(sizes.dim);
        let (layout, rows) = (self.setup.layout, batch * sequence);
        let sides = (sizes.packed, sizes.dim);
        let tasks = (rows, sizes.task_rows);
        let call = Call {
            setup: &self.setup,
            sizes: &sizes,
            angles: self.angles(sequence),
            norm,
            weights: Right::transposed(weights, sides, tasks, self.setup.products),
            branch,
        };
        let mut out = Fresh::<T>::new(rows * sizes.query);
        let mut inverse = vec![T::zero(); rows];
        let mut log_sums = vec![T::zero(); rows * layout.heads];
        let tasks = (
            x.par_chunks(sizes.task_rows * sizes.dim),
            out.unwritten().par_chunks(sizes.task_rows * sizes.query),
            inverse.par_chunks_mut(sizes.task_rows),
            log_sums.par_chunks_mut(sizes.task_rows * layout.heads),
        );
        let tasks = tasks.into_par_iter().enumerate();
        let tasks = tasks.map(|(index, (x, out, inverse, log_sums))| Forward {
            first: index * sizes.task_rows,
            x,
            out,
            inverse,
            log_sums,
        });
        if self.keep {
            let mut qkv = Fresh::<T>::new(rows * sizes.packed);
            tasks
                .zip(qkv.unwritten().par_chunks(sizes.task_rows * sizes.packed))
                .for_each(|(task, qkv)| task.run(&call, qkv));
            self.saved.put(Context {
                inverse,
                qkv: qkv.finish(),
                log_sums,
            })?;
        } else {
            tasks.for_each(|task| {
                let mut qkv = Fresh::new(task.inverse.len() * sizes.packed);
                task.run(&call, qkv.unwritten());
            });
        }
        let shape = Shape::from((batch, sequence, sizes.query));
        Ok((storage_of(out.finish()), shape))
    }

    fn backward<T: Float>(
        &self,
        x: &Tensor,
        packed: &Tensor,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let context = self.saved.get::<Context<T>>()?;
        let sizes = self.sizes(x.shape(), packed.elem_count())?;
        let (layout, rows) = (self.setup.layout, context.inverse.len());
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = packed.storage_and_layout();
        let (res_storage, res_layout) = res.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let out = tensor_values::<T>(&res_storage, res_layout)?;
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let (norm, weights) = tensor_values::<T>(&w_storage, w_layout)?.split_at(sizes.dim);
        let branch = adapters.map(AdapterGradient::branch).transpose()?.flatten();

        let products = self.setup.products;
        let call = Call {
            setup: &self.setup,
            sizes: &sizes,
            angles: self.angles(sizes.sequence),
            norm,
            weights: Right::stored(weights, (sizes.packed, sizes.dim), products),
            branch: branch.as_ref(),
        };
        let mut dx = Fresh::<T>::new(x_values.len());
        let mut normed = Fresh::<T>::new(x_values.len());
        let mut d_qkv = Fresh::<T>::new(context.qkv.len());
        let mut partials = vec![T::zero(); rows.div_ceil(sizes.task_rows) * sizes.dim];
        let task_rows = sizes.task_rows;
        let given = (
            x_values.par_chunks(task_rows * sizes.dim),
            grad.par_chunks(task_rows * sizes.query),
            out.par_chunks(task_rows * sizes.query),
            context.qkv.par_chunks(task_rows * sizes.packed),
            context.inverse.par_chunks(task_rows),
            context.log_sums.par_chunks(task_rows * layout.heads),
        );
        let made = (
            dx.unwritten().par_chunks(task_rows * sizes.dim),
            normed.unwritten().par_chunks(task_rows * sizes.dim),
            d_qkv.unwritten().par_chunks(task_rows * sizes.packed),
            partials.par_chunks_mut(sizes.dim),
        );
        let tasks = given.into_par_iter().zip(made).enumerate();
        tasks.for_each(|(index, (given, (dx, normed, d_qkv, partial)))| {
            let (x, grad, out, qkv, inverse, log_sums) = given;
            let given = Given {
                first: index * task_rows,
                x,
                grad,
                out,
                qkv,
                inverse,
                log_sums,
            };
            let d_qkv = given.back_to_qkv(&call, d_qkv.cleared());
            given.back_to_input(&call, d_qkv, dx.cleared(), normed.cleared(), partial);
        });

        let (normed, d_qkv) = (normed.finish(), d_qkv.finish());
        let dx = wanted.input.then(|| gradient(dx.finish(), x)).transpose()?;
        if let Some(adapters) = adapters {
            let factors = Factors {
                grad: &d_qkv,
                outputs: sizes.packed,
                input: &normed,
                inputs: sizes.dim,
            };
            return Ok((dx, Some(adapters.gradient(sizes.dim, &[factors])?)));
        }
        let d_packed = wanted.weights.then(|| {
            let mut d_packed = Fresh::<T>::new(packed.elem_count());
            let (d_norm, d_weights) = d_packed.unwritten().split_at(sizes.dim);
            add_partials(d_norm.cleared(), &partials);
            let (grad, input) = ((&*d_qkv, sizes.packed), (&*normed, sizes.dim));
            WeightGradient::new(grad, input, products).make(d_weights);
            gradient(d_packed.finish(), packed)
        });
        Ok((dx, d_packed.transpose()?))
    }

    #[cfg(feature = "cuda")]
    fn parts<'a, T>(&self, packed: CudaView<'a, T>, x_shape: &Shape) -> Vec<CudaView<'a, T>> {
        let (norm, weights) = packed.split_at(norm_width(x_shape).min(packed.len()));
        vec![norm, weights]
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward<T: Float>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        match self.setup.products {
            Products::F32 => self.on_device::<T, T>(device, x, x_shape, parts),
            Products::Bf16 => self.on_device::<T, T::Bf16>(device, x, x_shape, parts),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward<T: Float>(
        &self,
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match self.setup.products {
            Products::F32 => self.back_on_device::<T, T>(x, parts, res, grad, wanted, adapters),
            Products::Bf16 => {
                self.back_on_device::<T, T::Bf16>(x, parts, res, grad, wanted, adapters)
            }
        }
    }
}

fn sequence_part<T>(data: &[T], index: usize, size: usize) -> &[T] {
    &data[index * size..][..size]
}
