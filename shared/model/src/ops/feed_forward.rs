//! The feed-forward half of a block: `y = x + w2 · (silu(w1 n) ⊙ w3 n)` with `n = rmsnorm(x)`.

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
    BlockSetup, Fresh, Products, Right, Saved, TASK_ROWS, Unwritten, Wanted, WeightGradient,
    add_partials, backward, by_dtype, copied, gradient, rows_and_width, storage_of, tensor_values,
    values,
};
use crate::float::Float;
use crate::kernels::{Write, rms_norm, rms_norm_again, rms_norm_back, swiglu, swiglu_back};

/// Norm, gated projection, down projection and residual in one. `packed` is the concatenation
/// `[norm d | w1 f·d | w3 f·d | w2 d·f]`.
pub(crate) fn feed_forward(x: &Tensor, packed: &Tensor, setup: &BlockSetup) -> Result<Tensor> {
    let keep = x.track_op() || packed.track_op();
    x.contiguous()?
        .apply_op2(packed, FeedForward::new(setup, keep))
}

/// [`feed_forward`] upon the frozen weights `[norm, w1, w3, w2]` with adapters.
pub(crate) fn adapted_feed_forward(
    x: &Tensor,
    parts: &[Tensor; 4],
    low_rank: &LowRank,
    setup: &BlockSetup,
) -> Result<Tensor> {
    let keep = x.track_op() || low_rank.tracked();
    low_rank.apply(x, parts, FeedForward::new(setup, keep))
}

pub(crate) struct FeedForward {
    pub(super) eps: f64,
    products: Products,
    /// Whether backward will follow.
    pub(super) keep: bool,
    pub(super) saved: Saved,
}

impl FeedForward {
    /// With `keep`, going back will follow.
    pub(crate) fn new(setup: &BlockSetup, keep: bool) -> Self {
        Self {
            eps: setup.eps,
            products: setup.products,
            keep,
            saved: Saved::new(),
        }
    }
}

struct Context<T> {
    inverse: Vec<T>,
    gate_up: Vec<T>,
}

/// The weights inside the packed operand.
struct Weights<'a, T> {
    dim: usize,
    ffn: usize,
    norm: &'a [T],
    gate_up: &'a [T],
    down: &'a [T],
}

impl<'a, T> Weights<'a, T> {
    fn split(packed: &'a [T], dim: usize) -> Result<Self> {
        let ffn = packed.len().saturating_sub(dim) / (3 * dim);
        if ffn == 0 || packed.len() != dim + 3 * dim * ffn {
            return Err(candle_core::Error::msg(format!(
                "feed-forward: {} packed weights for width {dim}",
                packed.len()
            )));
        }
        let (norm, rest) = packed.split_at(dim);
        let (gate_up, down) = rest.split_at(2 * dim * ffn);
        Ok(Self {
            dim,
            ffn,
            norm,
            gate_up,
            down,
        })
    }

    /// The matrices of gate and way up.
    fn up_stack(&self) -> Stack {
        Stack {
            start: self.dim,
            outputs: 2 * self.ffn,
            inputs: self.dim,
        }
    }

    /// That of the way down.
    fn down_stack(&self) -> Stack {
        Stack {
            start: self.dim + self.gate_up.len(),
            outputs: self.dim,
            inputs: self.ffn,
        }
    }
}

/// What the tasks of one call read alike.
struct Call<'a, T: Float> {
    eps: f64,
    /// The matrices as factors: transposed forward, as they are going back.
    into_ffn: Right<'a, T>,
    out_of_ffn: Right<'a, T>,
    weights: Weights<'a, T>,
    branch: Option<&'a Branch<'a, T>>,
}

/// Rows on their way forward.
struct Forward<'a, T> {
    /// The first one's place in the operation.
    first: usize,
    x: &'a [T],
    /// What the result is added to.
    out: &'a mut [T],
    inverse: &'a mut [T],
}

impl<T: Float> Forward<'_, T> {
    fn run(self, call: &Call<'_, T>, gate_up: Unwritten<'_, T>) {
        let weights = &call.weights;
        let mut normed = vec![T::zero(); self.x.len()];
        let mut act = vec![T::zero(); self.inverse.len() * weights.ffn];
        rms_norm(self.x, weights.norm, call.eps, &mut normed, self.inverse);
        let gate_up = gate_up.product(&call.into_ffn, &normed);
        if let Some(branch) = call.branch {
            branch.add(gate_up, &normed, weights.up_stack(), self.first);
        }
        swiglu(gate_up, weights.ffn, &mut act);
        call.out_of_ffn.apply(self.out, &act, Write::Add);
        if let Some(branch) = call.branch {
            branch.add(self.out, &act, weights.down_stack(), self.first);
        }
    }
}

/// What going back reads of some rows.
struct Given<'a, T> {
    /// The first one's place in the operation.
    first: usize,
    x: &'a [T],
    grad: &'a [T],
    inverse: &'a [T],
    gate_up: &'a [T],
}

impl<T: Float> Given<'_, T> {
    /// Back through the way down and the gate, whose output is made again in `act`.
    fn back_to_ffn<'d>(
        &self,
        call: &Call<'_, T>,
        act: &mut [T],
        d_gate_up: &'d mut [T],
    ) -> &'d [T] {
        let weights = &call.weights;
        let mut d_act = Fresh::new(act.len());
        let d_act = d_act.unwritten().product(&call.out_of_ffn, self.grad);
        if let Some(branch) = call.branch {
            branch.add_back(d_act, self.grad, weights.down_stack(), self.first);
        }
        swiglu_back(self.gate_up, d_act, weights.ffn, d_gate_up, act);
        d_gate_up
    }

    /// On through the way up and the norm. `dx` holds the residual's gradient on entry; `partial`, the gradient of the
    /// norm's weights, is zero.
    fn back_to_input(
        &self,
        call: &Call<'_, T>,
        d_gate_up: &[T],
        dx: &mut [T],
        normed: &mut [T],
        partial: &mut [T],
    ) {
        let weights = &call.weights;
        rms_norm_again(self.x, weights.norm, self.inverse, normed);
        let mut d_normed = Fresh::new(self.x.len());
        let d_normed = d_normed.unwritten().product(&call.into_ffn, d_gate_up);
        if let Some(branch) = call.branch {
            branch.add_back(d_normed, d_gate_up, weights.up_stack(), self.first);
        }
        rms_norm_back(d_normed, self.x, weights.norm, self.inverse, dx, partial);
    }
}

impl CustomOp2 for FeedForward {
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

impl Fused for FeedForward {
    const NAME: &'static str = "feed-forward";

    fn products(&self) -> Products {
        self.products
    }

    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        branch: Option<&Branch<'_, T>>,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, dim) = rows_and_width(x_layout.shape())?;
        let x = values::<T>(x, x_layout)?;
        let weights = Weights::split(values::<T>(w, w_layout)?, dim)?;
        let ffn = weights.ffn;
        let tasks = (rows, TASK_ROWS);
        let call = Call {
            eps: self.eps,
            into_ffn: Right::transposed(weights.gate_up, (2 * ffn, dim), tasks, self.products),
            out_of_ffn: Right::transposed(weights.down, (dim, ffn), tasks, self.products),
            weights,
            branch,
        };
        let mut out = copied(x);
        let mut inverse = vec![T::zero(); rows];
        let tasks = (
            x.par_chunks(TASK_ROWS * dim),
            out.par_chunks_mut(TASK_ROWS * dim),
            inverse.par_chunks_mut(TASK_ROWS),
        );
        let tasks = tasks.into_par_iter().enumerate();
        let tasks = tasks.map(|(index, (x, out, inverse))| Forward {
            first: index * TASK_ROWS,
            x,
            out,
            inverse,
        });
        if self.keep {
            let mut gate_up = Fresh::<T>::new(rows * 2 * ffn);
            tasks
                .zip(gate_up.unwritten().par_chunks(TASK_ROWS * 2 * ffn))
                .for_each(|(task, gate_up)| task.run(&call, gate_up));
            let gate_up = gate_up.finish();
            self.saved.put(Context { inverse, gate_up })?;
        } else {
            tasks.for_each(|task| {
                let mut gate_up = Fresh::new(task.inverse.len() * 2 * ffn);
                task.run(&call, gate_up.unwritten());
            });
        }
        Ok((storage_of(out), x_layout.shape().clone()))
    }

    fn backward<T: Float>(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let context = self.saved.get::<Context<T>>()?;
        let (rows, dim) = rows_and_width(x.shape())?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = packed.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let x_values = tensor_values::<T>(&x_storage, x_layout)?;
        let grad = tensor_values::<T>(&grad_storage, grad_layout)?;
        let weights = Weights::split(tensor_values::<T>(&w_storage, w_layout)?, dim)?;
        let ffn = weights.ffn;
        let branch = adapters.map(AdapterGradient::branch).transpose()?.flatten();

        let call = Call {
            eps: self.eps,
            into_ffn: Right::stored(weights.gate_up, (2 * ffn, dim), self.products),
            out_of_ffn: Right::stored(weights.down, (dim, ffn), self.products),
            weights,
            branch: branch.as_ref(),
        };
        let mut dx = copied(grad);
        let mut normed = Fresh::<T>::new(rows * dim);
        let mut act = Fresh::<T>::new(rows * ffn);
        let mut d_gate_up = Fresh::<T>::new(rows * 2 * ffn);
        let mut partials = vec![T::zero(); rows.div_ceil(TASK_ROWS) * dim];
        let given = (
            x_values.par_chunks(TASK_ROWS * dim),
            grad.par_chunks(TASK_ROWS * dim),
            context.inverse.par_chunks(TASK_ROWS),
            context.gate_up.par_chunks(TASK_ROWS * 2 * ffn),
        );
        let made = (
            dx.par_chunks_mut(TASK_ROWS * dim),
            normed.unwritten().par_chunks(TASK_ROWS * dim),
            act.unwritten().par_chunks(TASK_ROWS * ffn),
            d_gate_up.unwritten().par_chunks(TASK_ROWS * 2 * ffn),
            partials.par_chunks_mut(dim),
        );
        let tasks = given.into_par_iter().zip(made).enumerate();
        tasks.for_each(|(index, (given, (dx, normed, act, d_gate_up, partial)))| {
            let (x, grad, inverse, gate_up) = given;
            let given = Given {
                first: index * TASK_ROWS,
                x,
                grad,
                inverse,
                gate_up,
            };
            let d_gate_up = given.back_to_ffn(&call, act.cleared(), d_gate_up.cleared());
            given.back_to_input(&call, d_gate_up, dx, normed.cleared(), partial);
        });

        let (normed, act, d_gate_up) = (normed.finish(), act.finish(), d_gate_up.finish());
        let dx = wanted.input.then(|| gradient(dx, x)).transpose()?;
        if let Some(adapters) = adapters {
            let up = Factors {
                grad: &d_gate_up,
                outputs: 2 * ffn,
                input: &normed,
                inputs: dim,
            };
            let down = Factors {
                grad,
                outputs: dim,
                input: &act,
                inputs: ffn,
            };
            return Ok((dx, Some(adapters.gradient(dim, &[up, down])?)));
        }
        let d_packed = wanted.weights.then(|| {
            let mut d_packed = Fresh::<T>::new(packed.elem_count());
            let (d_norm, rest) = d_packed.unwritten().split_at(dim);
            let (d_weights, d_down) = rest.split_at(2 * ffn * dim);
            add_partials(d_norm.cleared(), &partials);
            let (up, input) = ((&*d_gate_up, 2 * ffn), (&*normed, dim));
            rayon::join(
                || WeightGradient::new(up, input, self.products).make(d_weights),
                || WeightGradient::new((grad, dim), (&act, ffn), self.products).make(d_down),
            );
            gradient(d_packed.finish(), packed)
        });
        Ok((dx, d_packed.transpose()?))
    }

    #[cfg(feature = "cuda")]
    fn parts<'a, T>(&self, packed: CudaView<'a, T>, x_shape: &Shape) -> Vec<CudaView<'a, T>> {
        let dim = norm_width(x_shape).min(packed.len());
        let (norm, rest) = packed.split_at(dim);
        let (gate_up, down) = rest.split_at(rest.len() / 3 * 2);
        vec![norm, gate_up, down]
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward<T: Float>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)> {
        match self.products {
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
        match self.products {
            Products::F32 => self.back_on_device::<T, T>(x, parts, res, grad, wanted, adapters),
            Products::Bf16 => {
                self.back_on_device::<T, T::Bf16>(x, parts, res, grad, wanted, adapters)
            }
        }
    }
}
