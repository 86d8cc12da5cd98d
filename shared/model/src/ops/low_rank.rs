//! Low-rank adapters upon the frozen weights of a fused operation (Hu et al. 2021).
//!
//! Forward and backward multiply by `W + s·B·A`, made anew for every call at the price of `rank` rows, so that each
//! fused kernel serves adapters as it stands; a branch of its own passes over all rows twice more per matrix.
//! Backward never forms `dW = dyᵀ·x`: `dA = s·(dy·B)ᵀ·x` and `dB = s·dyᵀ·(x·Aᵀ)` come from its two factors, which
//! spares a third of a full step's products and the memory of a gradient as large as the weights.
//!
//! That sum serves neither adapters whose input is dropped ([`Masks`]), since merged weights cannot tell what reads them,
//! nor products of bf16: rounded to eight bits it is `W` again wherever `|s·B·A|` is below half a step of `W`, which loses
//! nearly all of what the first steps learn. There the operation multiplies by `W`, and its [`Branch`] adds
//! `s·(drop(x)·Aᵀ)·Bᵀ`, unrounded, to the products of each task. A device has no branch: with bf16 products it still
//! rounds the sum as a whole.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage};
use rayon::prelude::*;

use super::widen::widened;
use super::{
    GRADIENT_TILES, Layer, Products, TASK_ROWS, Wanted, by_dtype, gradient, storage_of,
    tensor_values, values,
};
use crate::dropout::Masks;
use crate::float::Float;
use crate::kernels::{Matrix, MatrixMut, Write, matmul, project};
use crate::tape::Operand;

/// One adapted matrix `[outputs, inputs]` among the packed weights of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// Where it starts in the packed weights.
    pub(crate) start: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// The name of its dropout's choices.
    pub(crate) stream: u64,
}

/// The adapters of one operation: `A [rank, inputs]` and `B [outputs, rank]` for every slot.
#[derive(Debug, Clone)]
pub(crate) struct LowRank {
    pub(super) rank: usize,
    pub(super) scale: f64,
    pub(super) slots: Vec<Slot>,
    /// A and B of the first slot, of the second, and so on.
    tensors: Vec<Tensor>,
    /// What is dropped of the adapters' input.
    masks: Option<Masks>,
}

/// An operation whose weight gradient is a row of products `gradᵀ · input`.
pub(crate) trait Fused: Send + Sync {
    const NAME: &'static str;

    /// How it multiplies.
    fn products(&self) -> Products;

    /// The operation upon the weights, with a `branch` beside them where there is one.
    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        branch: Option<&Branch<'_, T>>,
    ) -> Result<(CpuStorage, Shape)>;

    /// Gradients of `x` and of the weights; with `adapters`, theirs instead of the weights'.
    fn backward<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)>;

    /// The parts of the packed weights: the norm's where there is one, then matrices. Of a part, several that lie
    /// behind each other may take the place.
    #[cfg(feature = "cuda")]
    fn parts<'a, T>(&self, packed: CudaView<'a, T>, x_shape: &Shape) -> Vec<CudaView<'a, T>>;

    /// [`Self::forward`] on a device.
    #[cfg(feature = "cuda")]
    fn cuda_forward<T: Float>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        x_shape: &Shape,
        parts: &[CudaView<'_, T>],
    ) -> Result<(CudaSlice<T>, Shape)>;

    /// [`Self::backward`] on a device; gradients of the weights lie behind each other.
    #[cfg(feature = "cuda")]
    fn cuda_backward<T: Float>(
        &self,
        x: &Tensor,
        parts: &[CudaView<'_, T>],
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
        adapters: Option<AdapterGradient<'_>>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)>;
}

/// The factors of one weight gradient `[outputs, inputs]`: `grad [rows, outputs]`, `input [rows, inputs]`.
pub(crate) struct Factors<'a, T> {
    pub(super) grad: &'a [T],
    pub(super) outputs: usize,
    pub(super) input: &'a [T],
    pub(super) inputs: usize,
}

/// The adapters as backward sees them.
#[derive(Clone, Copy)]
pub(crate) struct AdapterGradient<'a> {
    pub(super) low_rank: &'a LowRank,
    pub(super) flat: &'a Tensor,
    /// Whether the operation ran with a [`Branch`].
    is_beside: bool,
}

impl LowRank {
    pub(crate) fn new(rank: usize, scale: f64, adapted: Vec<(Slot, [Tensor; 2])>) -> Self {
        let (slots, tensors): (_, Vec<_>) = adapted.into_iter().unzip();
        Self {
            rank,
            scale,
            slots,
            tensors: tensors.into_iter().flatten().collect(),
            masks: None,
        }
    }

    /// The same adapters, whose input these masks drop from.
    pub(crate) fn masked(&self, masks: Option<Masks>) -> Self {
        Self {
            masks,
            ..self.clone()
        }
    }

    /// The branch of which the flat adapters have these values.
    fn branch<T: Float>(&self, flat: &[T]) -> Branch<'_, T> {
        Branch {
            low_rank: self,
            flat: flat.to_vec(),
        }
    }

    /// Every slot with the values of its A and B.
    fn pairs<'a, T>(&'a self, mut flat: &'a [T]) -> impl Iterator<Item = (Slot, &'a [T], &'a [T])> {
        self.slots.iter().map(move |slot| {
            let (a, b);
            (a, flat) = flat.split_at(self.rank * slot.inputs);
            (b, flat) = flat.split_at(slot.outputs * self.rank);
            (*slot, a, b)
        })
    }

    /// Whether backward will ask for the adapters' gradients.
    pub(super) fn tracked(&self) -> bool {
        self.tensors.iter().any(Tensor::track_op)
    }

    /// The weights `parts` behind each other, adapters added, without a graph. A lone part keeps its shape.
    pub(crate) fn effective(&self, parts: &[Tensor]) -> Result<Tensor> {
        self.upon(parts, &self.flat()?)
    }

    /// Runs an operation on the effective weights; gradients go to `x` and the adapters alone.
    pub(super) fn apply<O: Fused + 'static>(
        &self,
        x: &Tensor,
        parts: &[Tensor],
        op: O,
    ) -> Result<Tensor> {
        x.contiguous()?
            .apply_op2(&self.flat()?, self.upon_parts(parts, op))
    }

    /// The operation on the effective weights; its own weights are the flat adapters.
    pub(crate) fn upon_parts<O: Fused>(&self, parts: &[Tensor], op: O) -> Adapted<O> {
        Adapted {
            op,
            low_rank: self.clone(),
            parts: parts.to_vec(),
        }
    }

    /// A and B of the first slot, of the second, and so on.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The adapters' tensors behind each other.
    pub(crate) fn flat(&self) -> Result<Tensor> {
        let flat: Result<Vec<_>> = self.tensors.iter().map(Tensor::flatten_all).collect();
        Tensor::cat(&flat?, 0)
    }

    fn upon(&self, parts: &[Tensor], flat: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if flat.device().is_cuda() {
            return by_dtype!(flat.dtype(), self.cuda_tensor(parts, flat));
        }
        by_dtype!(flat.dtype(), self.tensor(parts, flat))
    }

    fn tensor<T: Float>(&self, parts: &[Tensor], flat: &Tensor) -> Result<Tensor> {
        let (storage, layout) = flat.storage_and_layout();
        let weights = self.sum::<T>(parts, tensor_values(&storage, layout)?)?;
        Tensor::from_vec(weights, packed_shape(parts), flat.device())
    }

    fn sum<T: Float>(&self, parts: &[Tensor], flat: &[T]) -> Result<Vec<T>> {
        let mut packed = widened::<T>(parts)?;
        for (slot, a, b) in self.pairs(flat) {
            let weight = &mut packed[slot.start..][..slot.outputs * slot.inputs];
            self.add_product(weight, slot, a, b);
        }
        Ok(packed)
    }

    /// `weight += s·B·A`, tiled over output rows.
    fn add_product<T: Float>(&self, weight: &mut [T], slot: Slot, a: &[T], b: &[T]) {
        let (rank, inputs) = (self.rank, slot.inputs);
        let tile = slot.outputs.div_ceil(GRADIENT_TILES);
        weight
            .par_chunks_mut(tile * inputs)
            .zip(b.par_chunks(tile * rank))
            .for_each(|(weight, b)| {
                let height = b.len() / rank;
                matmul(
                    MatrixMut::new(weight, height, inputs, inputs),
                    Matrix::new(b, height, rank, rank),
                    Matrix::new(a, rank, inputs, inputs),
                    T::from_f64(self.scale),
                    Write::Add,
                );
            });
    }

    /// `dA` and `dB` of one slot, whose output columns start at `column` of the factors' gradient.
    fn gradients<T: Float>(
        &self,
        slot: Slot,
        (a, b): (&[T], &[T]),
        factors: &Factors<'_, T>,
        column: usize,
        (d_a, d_b): (&mut [T], &mut [T]),
    ) {
        let (rank, inputs, stride) = (self.rank, slot.inputs, factors.outputs);
        let rows = factors.input.len() / inputs;
        if rows == 0 {
            return;
        }
        let dropped = self
            .masks
            .as_ref()
            .map(|masks| masks.dropped(factors.input, inputs, TASK_ROWS, slot.stream));
        let read = dropped.as_deref().unwrap_or(factors.input);
        // x·Aᵀ and dy·B, `[rows, rank]` both.
        let mut down = vec![T::zero(); rows * rank];
        let mut up = vec![T::zero(); rows * rank];
        down.par_chunks_mut(TASK_ROWS * rank)
            .zip(up.par_chunks_mut(TASK_ROWS * rank))
            .zip(read.par_chunks(TASK_ROWS * inputs))
            .zip(factors.grad.par_chunks(TASK_ROWS * stride))
            .for_each(|(((down, up), input), grad)| {
                project(down, input, a, rank, inputs, Write::Replace);
                self.back_to_rank(up, (grad, stride), slot, column, b);
            });
        let scale = T::from_f64(self.scale);
        rayon::join(
            || {
                matmul(
                    MatrixMut::new(d_a, rank, inputs, inputs),
                    Matrix::new(&up, rows, rank, rank).transposed(),
                    Matrix::new(read, rows, inputs, inputs),
                    scale,
                    Write::Replace,
                );
            },
            || {
                matmul(
                    MatrixMut::new(d_b, slot.outputs, rank, rank),
                    Matrix::new(&factors.grad[column..], rows, slot.outputs, stride).transposed(),
                    Matrix::new(&down, rows, rank, rank),
                    scale,
                    Write::Replace,
                );
            },
        );
    }

    /// `dy·B` of a slot whose output columns start at `column` of `grad [rows, stride]`.
    fn back_to_rank<T: Float>(
        &self,
        up: &mut [T],
        (grad, stride): (&[T], usize),
        slot: Slot,
        column: usize,
        b: &[T],
    ) {
        let (rank, rows) = (self.rank, grad.len() / stride);
        matmul(
            MatrixMut::new(up, rows, rank, rank),
            Matrix::new(&grad[column..], rows, slot.outputs, stride),
            Matrix::new(b, slot.outputs, rank, rank),
            T::one(),
            Write::Replace,
        );
    }
}

/// Matrices `[outputs, inputs]` that lie behind each other in the packed weights and read the same rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack {
    /// Where the first one starts.
    pub(super) start: usize,
    /// Those of all of them.
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Stack {
    /// The first output of a slot among those of the matrices, where it is one of them.
    fn column(self, slot: Slot) -> Option<usize> {
        let end = self.start + self.outputs * self.inputs;
        let holds = (self.start..end).contains(&slot.start);
        holds.then(|| (slot.start - self.start) / self.inputs)
    }
}

/// Adapters beside the frozen weights, because they read less than those do, or more exactly.
pub(crate) struct Branch<'a, T> {
    low_rank: &'a LowRank,
    /// The adapters' values behind each other.
    flat: Vec<T>,
}

impl<T: Float> Branch<'_, T> {
    /// Adds `s·(drop(x)·Aᵀ)·Bᵀ` to the products of the frozen matrices, `out [rows, outputs]`; the first of these rows is
    /// row `first` of the operation.
    pub(super) fn add(&self, out: &mut [T], input: &[T], stack: Stack, first: usize) {
        let (rank, rows) = (self.low_rank.rank, input.len() / stack.inputs);
        for (slot, column, a, b) in self.within(stack) {
            let read = self.read(input, slot, first);
            let mut down = vec![T::zero(); rows * rank];
            project(&mut down, &read, a, rank, stack.inputs, Write::Replace);
            matmul(
                MatrixMut::new(&mut out[column..], rows, slot.outputs, stack.outputs),
                Matrix::new(&down, rows, rank, rank),
                Matrix::new(b, slot.outputs, rank, rank).transposed(),
                self.scale(),
                Write::Add,
            );
        }
    }

    /// Adds what the gradient `[rows, outputs]` of these products sends back through the branch to `input [rows, inputs]`.
    pub(super) fn add_back(&self, input: &mut [T], grad: &[T], stack: Stack, first: usize) {
        let (rank, rows) = (self.low_rank.rank, input.len() / stack.inputs);
        for (slot, column, a, b) in self.within(stack) {
            let mut up = vec![T::zero(); rows * rank];
            self.low_rank
                .back_to_rank(&mut up, (grad, stack.outputs), slot, column, b);
            let through = |out: &mut [T], write| {
                matmul(
                    MatrixMut::new(out, rows, stack.inputs, stack.inputs),
                    Matrix::new(&up, rows, rank, rank),
                    Matrix::new(a, rank, stack.inputs, stack.inputs),
                    self.scale(),
                    write,
                );
            };
            let Some(masks) = &self.low_rank.masks else {
                through(input, Write::Add);
                continue;
            };
            let mut dropped = vec![T::zero(); input.len()];
            through(&mut dropped, Write::Replace);
            masks.drop_from(&mut dropped, stack.inputs, first, slot.stream);
            for (sum, through) in input.iter_mut().zip(&dropped) {
                *sum += *through;
            }
        }
    }

    /// What a slot reads of whole rows, the first of which is row `first` of the operation.
    fn read<'x>(&self, input: &'x [T], slot: Slot, first: usize) -> Cow<'x, [T]> {
        let Some(masks) = &self.low_rank.masks else {
            return Cow::Borrowed(input);
        };
        let mut dropped = input.to_vec();
        masks.drop_from(&mut dropped, slot.inputs, first, slot.stream);
        Cow::Owned(dropped)
    }

    fn scale(&self) -> T {
        T::from_f64(self.low_rank.scale)
    }

    /// Slots of these matrices with their first output, A and B.
    fn within(&self, stack: Stack) -> impl Iterator<Item = (Slot, usize, &[T], &[T])> {
        let pairs = self.low_rank.pairs(&self.flat);
        pairs.filter_map(move |(slot, a, b)| Some((slot, stack.column(slot)?, a, b)))
    }
}

impl<'a> AdapterGradient<'a> {
    /// The branch that the operation ran with, if any.
    pub(super) fn branch<T: Float>(self) -> Result<Option<Branch<'a, T>>> {
        if !self.is_beside {
            return Ok(None);
        }
        let (storage, layout) = self.flat.storage_and_layout();
        let flat = tensor_values(&storage, layout)?;
        Ok(Some(self.low_rank.branch(flat)))
    }
}

impl AdapterGradient<'_> {
    /// Gradient of the flat adapters. `factors` are those of the weight matrices that lie behind each other in
    /// the packed weights, from `start` on.
    pub(super) fn gradient<T: Float>(
        &self,
        start: usize,
        factors: &[Factors<'_, T>],
    ) -> Result<Tensor> {
        let (storage, layout) = self.flat.storage_and_layout();
        let mut flat = tensor_values::<T>(&storage, layout)?;
        let mut sums = vec![T::zero(); flat.len()];
        let mut rest = sums.as_mut_slice();
        let mut tasks = Vec::with_capacity(self.low_rank.slots.len());
        for slot in &self.low_rank.slots {
            let (of_a, of_b) = (
                self.low_rank.rank * slot.inputs,
                slot.outputs * self.low_rank.rank,
            );
            let (a, b, d_a, d_b);
            (a, flat) = flat.split_at(of_a);
            (b, flat) = flat.split_at(of_b);
            (d_a, rest) = rest.split_at_mut(of_a);
            (d_b, rest) = rest.split_at_mut(of_b);
            tasks.push((*slot, (a, b), (d_a, d_b)));
        }
        tasks.into_par_iter().for_each(|(slot, pair, gradients)| {
            let sides = factors.iter().map(|one| (one.outputs, one.inputs));
            let (index, column) = located(slot, start, sides);
            self.low_rank
                .gradients(slot, pair, &factors[index], column, gradients);
        });
        gradient(sums, self.flat)
    }
}

/// Which of the matrices `[outputs, inputs]` that lie behind each other from `start` on holds a slot, and the column of
/// their gradient's factor at which the slot's outputs start.
pub(super) fn located(
    slot: Slot,
    mut start: usize,
    sides: impl Iterator<Item = (usize, usize)>,
) -> (usize, usize) {
    for (index, (outputs, inputs)) in sides.enumerate() {
        let end = start + outputs * inputs;
        if slot.start < end {
            return (index, (slot.start - start) / inputs);
        }
        start = end;
    }
    unreachable!("a slot lies inside the packed weights")
}

pub(super) fn packed_shape(parts: &[Tensor]) -> Shape {
    match parts {
        [one] => one.shape().clone(),
        _ => Shape::from(parts.iter().map(Tensor::elem_count).sum::<usize>()),
    }
}

/// An operation on `x` and the flat adapters. The weights that it multiplies by are made again for backward, so that
/// those of one block exist at a time.
///
/// On the CPU products of bf16 round `W` and what it reads, not the adapters. On a device they round `W + s·B·A` as a
/// whole, of which adapters that are small beside `W` are lost.
pub(crate) struct Adapted<O> {
    pub(super) op: O,
    pub(super) low_rank: LowRank,
    pub(super) parts: Vec<Tensor>,
}

impl<O: Fused> Adapted<O> {
    fn forward<T: Float>(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        flat: &CpuStorage,
        flat_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let flat = values::<T>(flat, flat_layout)?;
        let weights = storage_of(self.multiplied(flat)?);
        let layout = Layout::contiguous(packed_shape(&self.parts));
        let branch = self.is_beside().then(|| self.low_rank.branch(flat));
        self.op
            .forward::<T>(x, x_layout, &weights, &layout, branch.as_ref())
    }

    /// Whether the adapters run beside the frozen weights, which the operation then multiplies by as they are.
    fn is_beside(&self) -> bool {
        self.low_rank.masks.is_some() || self.op.products() == Products::Bf16
    }

    /// The weights that the operation multiplies by, with these values of the flat adapters.
    fn multiplied<T: Float>(&self, flat: &[T]) -> Result<Vec<T>> {
        if self.is_beside() {
            return widened(&self.parts);
        }
        self.low_rank.sum(&self.parts, flat)
    }

    /// [`Self::multiplied`] where the tensors are.
    fn multiplied_tensor(&self, flat: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if flat.device().is_cuda() {
            return self.low_rank.upon(&self.parts, flat);
        }
        by_dtype!(flat.dtype(), self.multiplied_here(flat))
    }

    fn multiplied_here<T: Float>(&self, flat: &Tensor) -> Result<Tensor> {
        let (storage, layout) = flat.storage_and_layout();
        let weights = self.multiplied::<T>(tensor_values(&storage, layout)?)?;
        Tensor::from_vec(weights, packed_shape(&self.parts), flat.device())
    }
}

impl<O: Fused> CustomOp2 for Adapted<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        flat: &CpuStorage,
        flat_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.forward(x, x_layout, flat, flat_layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        flat: &CudaStorage,
        flat_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        if self.low_rank.masks.is_some() {
            let reason = "adapters with dropout run on the CPU alone";
            return Err(candle_core::Error::msg(reason));
        }
        by_dtype!(x.dtype(), self.cuda_run(x, x_layout, flat, flat_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.back_to(x, flat, res, grad, Wanted::by_graph(x, flat))
    }
}

impl<O: Fused> Layer for Adapted<O> {
    fn run(&self, x: &Tensor, w: &Operand) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(w.flat()?, self)
    }

    fn back(
        &self,
        x: &Tensor,
        w: &Operand,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.back_to(x, w.flat()?, res, grad, wanted)
    }
}

impl<O: Fused> Adapted<O> {
    fn back_to(
        &self,
        x: &Tensor,
        flat: &Tensor,
        res: &Tensor,
        grad: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (op, grad) = (&self.op, grad.contiguous()?);
        let weights = self.multiplied_tensor(flat)?;
        let adapters = Some(AdapterGradient {
            low_rank: &self.low_rank,
            flat,
            is_beside: self.is_beside(),
        });
        super::backward(op, x, &weights, res, &grad, wanted, adapters)
    }
}
