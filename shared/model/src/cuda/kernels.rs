//! Our kernels by name. What each one computes is said in `kernels.cu`.

#![expect(unsafe_code, reason = "kernels take pointers")]

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg,
};
use candle_core::{CudaDevice, Result};

use super::{Factor, OnDevice, empty};
use crate::kernels::HeadLayout;

/// The kernels as PTX, which the driver compiles for its device.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Threads of a block.
const THREADS: u32 = 256;

/// Rows that one part of a norm's weight gradient sums.
const SPAN: usize = 256;

/// Argument of a kernel that may do without this pointer.
const NULL: u64 = 0;

/// Has the driver compile the kernels, so that an old one says so now.
pub(super) fn load(device: &CudaDevice) -> Result<()> {
    function(device, "add_into", "f32").map(drop)
}

pub(super) fn function(device: &CudaDevice, name: &str, types: &str) -> Result<CudaFunction> {
    let function = device.get_or_load_custom_func(&format!("{name}_{types}"), "wmtp", PTX)?;
    Ok(function.into_cuda_function())
}

/// Launches a kernel by name, types and grid.
///
/// SAFETY of every use: the arguments are the kernel's, in its order and its types, and every slice holds what the grid
/// reaches of it, which the function around it made sure of: by allocating it, or by the sizes it checks.
macro_rules! launch {
    ($device:expr, $name:literal, $types:expr, $grid:expr; $($argument:expr),+ $(,)?) => {{
        let (function, stream) = (function($device, $name, $types)?, $device.cuda_stream());
        // SAFETY: see above.
        unsafe { stream.launch_builder(&function)$(.arg($argument))+.launch($grid) }.w()?;
    }};
}
pub(super) use launch;

/// One thread for each of `count` elements.
pub(super) fn each(count: usize) -> LaunchConfig {
    blocks(count.div_ceil(THREADS as usize))
}

/// So many blocks.
pub(super) fn blocks(count: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// One warp for each of `rows` rows.
fn warps(rows: usize) -> LaunchConfig {
    blocks(rows.div_ceil(THREADS as usize / 32))
}

/// An error where a slice does not hold what a kernel takes of it.
pub(super) fn holds(what: &str, found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    let message = format!("{what}: {found} elements on the device, {needed} expected");
    Err(candle_core::Error::msg(message))
}

pub(super) fn cast<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    x: &CudaView<'_, T>,
    mut to: CudaViewMut<'_, F>,
) -> Result<()> {
    let count = x.len();
    holds("factors", to.len(), count)?;
    if count > 0 {
        launch!(device, "cast", F::TYPES, each(count); x, &mut to, &(count as u64));
    }
    Ok(())
}

/// Normed rows of `x [rows, d]`, and each row's inverse root of the mean square.
pub(crate) fn rms_norm<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    x: &CudaView<'_, T>,
    w: &CudaView<'_, T>,
    eps: f64,
) -> Result<(CudaSlice<F>, CudaSlice<T>)> {
    let dim = w.len();
    let rows = x.len() / dim;
    holds("rms-norm", x.len(), rows * dim)?;
    let (mut out, mut inverse) = (empty::<F>(device, x.len())?, empty::<T>(device, rows)?);
    if rows > 0 {
        launch!(device, "rms_norm", F::TYPES, blocks(rows);
            x, w, &eps, &mut out, &mut inverse, &(dim as i32));
    }
    Ok((out, inverse))
}

/// Gradient of the rows, upon `residual` where there is one.
pub(crate) fn rms_norm_back<T: OnDevice>(
    device: &CudaDevice,
    grad: &CudaView<'_, T>,
    x: &CudaView<'_, T>,
    w: &CudaView<'_, T>,
    inverse: &CudaSlice<T>,
    residual: Option<&CudaView<'_, T>>,
) -> Result<CudaSlice<T>> {
    let (rows, dim) = (inverse.len(), w.len());
    holds("gradient of a norm", grad.len(), rows * dim)?;
    holds("input of a norm", x.len(), rows * dim)?;
    let mut dx = empty::<T>(device, x.len())?;
    let width = dim as i32;
    if rows == 0 {
        return Ok(dx);
    }
    match residual {
        Some(residual) => {
            holds("residual of a norm", residual.len(), rows * dim)?;
            launch!(device, "rms_norm_back", T::TYPE, blocks(rows);
                grad, x, w, inverse, residual, &mut dx, &width);
        }
        None => {
            launch!(device, "rms_norm_back", T::TYPE, blocks(rows);
                grad, x, w, inverse, &NULL, &mut dx, &width);
        }
    }
    Ok(dx)
}

/// Gradient of a norm's weights into `out [d]`.
pub(crate) fn rms_norm_weights_back<T: OnDevice>(
    device: &CudaDevice,
    grad: &CudaView<'_, T>,
    x: &CudaView<'_, T>,
    inverse: &CudaSlice<T>,
    mut out: CudaViewMut<'_, T>,
) -> Result<()> {
    let (rows, dim) = (inverse.len(), out.len());
    holds("gradient of a norm", grad.len(), rows * dim)?;
    holds("input of a norm", x.len(), rows * dim)?;
    let count = rows.div_ceil(SPAN).max(1);
    let mut parts = empty::<T>(device, count * dim)?;
    let grid = LaunchConfig {
        grid_dim: (dim.div_ceil(32) as u32, count as u32, 1),
        block_dim: (32, 8, 1),
        shared_mem_bytes: 0,
    };
    launch!(device, "rms_norm_weights_back", T::TYPE, grid;
        grad, x, inverse, &mut parts, &(rows as i32), &(dim as i32), &(SPAN as i32));
    launch!(device, "sum_parts", T::TYPE, each(dim);
        &parts, &mut out, &(count as i32), &(dim as u64));
    Ok(())
}

/// Queries `[b, h, s, e]`, keys and values `[b, g, s, e]`, one head behind the other.
pub(crate) struct Heads<F> {
    pub(crate) q: CudaSlice<F>,
    pub(crate) k: CudaSlice<F>,
    pub(crate) v: CudaSlice<F>,
}

/// Cosines and sines `[s, e / 2]`, and how many positions `s` they are of.
pub(crate) struct Angles<'a, T> {
    pub(crate) cosines: CudaView<'a, T>,
    pub(crate) sines: CudaView<'a, T>,
    pub(crate) sequence: usize,
}

impl<T> Angles<'_, T> {
    fn check(&self, layout: HeadLayout) -> Result<()> {
        let half = layout.head_dim / 2;
        holds("cosines", self.cosines.len(), self.sequence * half)?;
        holds("sines", self.sines.len(), self.sequence * half)
    }
}

/// Rows `[q | k | v]` by head, queries and keys turned.
pub(crate) fn split_heads<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    layout: HeadLayout,
    qkv: &CudaSlice<T>,
    angles: &Angles<'_, T>,
) -> Result<Heads<F>> {
    let rows = qkv.len() / layout.packed();
    let (sequences, left) = (rows / angles.sequence, rows % angles.sequence);
    holds("rows of whole sequences", left, 0)?;
    angles.check(layout)?;
    let of = |heads: usize| {
        empty::<F>(
            device,
            sequences * angles.sequence * heads * layout.head_dim,
        )
    };
    let (mut q, mut k, mut v) = (
        of(layout.heads)?,
        of(layout.kv_heads)?,
        of(layout.kv_heads)?,
    );
    let pairs = rows * layout.packed() / 2;
    launch!(device, "split_heads", F::TYPES, each(pairs);
        qkv, &angles.cosines, &angles.sines, &mut q, &mut k, &mut v, &(angles.sequence as i32),
        &(layout.heads as i32), &(layout.kv_heads as i32), &((layout.head_dim / 2) as i32), &(pairs as u64));
    Ok(Heads { q, k, v })
}

/// Gradients by head as those of the rows `[q | k | v]`, turned back.
pub(crate) fn join_heads<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    layout: HeadLayout,
    heads: &Heads<T>,
    angles: &Angles<'_, T>,
) -> Result<CudaSlice<F>> {
    let rows = heads.q.len() / layout.query();
    angles.check(layout)?;
    holds(
        "gradient of keys",
        heads.k.len(),
        rows * layout.kv_heads * layout.head_dim,
    )?;
    holds("gradient of values", heads.v.len(), heads.k.len())?;
    let mut qkv = empty::<F>(device, rows * layout.packed())?;
    let pairs = rows * layout.packed() / 2;
    launch!(device, "join_heads", F::TYPES, each(pairs);
        &heads.q, &heads.k, &heads.v, &angles.cosines, &angles.sines, &mut qkv, &(angles.sequence as i32),
        &(layout.heads as i32), &(layout.kv_heads as i32), &((layout.head_dim / 2) as i32), &(pairs as u64));
    Ok(qkv)
}

/// `[b, s, h, e]` as factors `[b, h, s, e]`.
pub(crate) fn heads_first<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    x: &CudaView<'_, T>,
    sequence: usize,
    layout: HeadLayout,
) -> Result<CudaSlice<F>> {
    let count = x.len();
    let mut out = empty::<F>(device, count)?;
    launch!(device, "heads_first", F::TYPES, each(count);
        x, &mut out, &(sequence as i32), &(layout.heads as i32), &(layout.head_dim as i32), &(count as u64));
    Ok(out)
}

/// `[b, h, s, e]` as `[b, s, h, e]`.
pub(crate) fn heads_last<T: OnDevice>(
    device: &CudaDevice,
    x: &CudaSlice<T>,
    sequence: usize,
    layout: HeadLayout,
) -> Result<CudaSlice<T>> {
    let count = x.len();
    let mut out = empty::<T>(device, count)?;
    launch!(device, "heads_last", T::TYPE, each(count);
        x, &mut out, &(sequence as i32), &(layout.heads as i32), &(layout.head_dim as i32), &(count as u64));
    Ok(out)
}

/// Causal softmax of score rows `[.., s]`.
pub(crate) fn softmax<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    scores: &CudaSlice<T>,
    sequence: usize,
) -> Result<CudaSlice<F>> {
    let rows = scores.len() / sequence;
    let mut out = empty::<F>(device, scores.len())?;
    launch!(device, "causal_softmax", F::TYPES, warps(rows);
        scores, &mut out, &(sequence as i32), &(rows as u64));
    Ok(out)
}

/// Gradient of the scores from that of the probabilities.
pub(crate) fn softmax_back<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    probabilities: &CudaSlice<F>,
    grad: &CudaSlice<T>,
    sequence: usize,
) -> Result<CudaSlice<F>> {
    holds("gradient of probabilities", grad.len(), probabilities.len())?;
    let rows = grad.len() / sequence;
    let mut out = empty::<F>(device, grad.len())?;
    launch!(device, "causal_softmax_back", F::TYPES, warps(rows);
        probabilities, grad, &mut out, &(sequence as i32), &(rows as u64));
    Ok(out)
}

/// `silu(gate) · up` of rows `[gate | up]`.
pub(crate) fn swiglu<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    gate_up: &CudaSlice<T>,
    ffn: usize,
) -> Result<CudaSlice<F>> {
    let count = gate_up.len() / 2;
    let mut out = empty::<F>(device, count)?;
    if count > 0 {
        launch!(device, "swiglu", F::TYPES, each(count); gate_up, &mut out, &(ffn as i32), &(count as u64));
    }
    Ok(out)
}

/// Gradient of `[gate | up]`, and the activation.
pub(crate) fn swiglu_back<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    gate_up: &CudaSlice<T>,
    grad: &CudaSlice<T>,
    ffn: usize,
) -> Result<(CudaSlice<F>, CudaSlice<F>)> {
    let count = grad.len();
    holds("gate and up", gate_up.len(), 2 * count)?;
    let (mut d_gate_up, mut act) = (empty::<F>(device, 2 * count)?, empty::<F>(device, count)?);
    if count > 0 {
        launch!(device, "swiglu_back", F::TYPES, each(count);
            gate_up, grad, &mut d_gate_up, &mut act, &(ffn as i32), &(count as u64));
    }
    Ok((d_gate_up, act))
}

/// Cross-entropies `[rows]` of logits `[rows, v]`; with `keep`, the gradients of their weighted sum besides. The targets
/// are below `v`, which the caller has checked.
pub(crate) fn cross_entropy<T: OnDevice, F: Factor<T>>(
    device: &CudaDevice,
    logits: &CudaView<'_, T>,
    targets: &CudaView<'_, u32>,
    weights: &CudaView<'_, f64>,
    mut ce: CudaViewMut<'_, f64>,
    keep: bool,
) -> Result<Option<CudaSlice<F>>> {
    let rows = targets.len();
    let vocab = logits.len() / rows;
    holds("weights", weights.len(), rows)?;
    holds("cross-entropies", ce.len(), rows)?;
    holds("logits", logits.len(), rows * vocab)?;
    if !keep {
        launch!(device, "cross_entropy", F::TYPES, blocks(rows);
            logits, targets, weights, &mut ce, &NULL, &(vocab as i32));
        return Ok(None);
    }
    let mut out = empty::<F>(device, logits.len())?;
    launch!(device, "cross_entropy", F::TYPES, blocks(rows);
        logits, targets, weights, &mut ce, &mut out, &(vocab as i32));
    Ok(Some(out))
}

/// Rows of `table [.., dim]`. The ids are below its number of rows, which the caller has checked.
pub(crate) fn gather_rows<T: OnDevice>(
    device: &CudaDevice,
    table: &CudaView<'_, T>,
    ids: &[u32],
    dim: usize,
) -> Result<CudaSlice<T>> {
    let mut out = empty::<T>(device, ids.len() * dim)?;
    if !ids.is_empty() {
        let on_device = device.clone_htod(ids)?;
        launch!(device, "gather_rows", T::TYPE, blocks(ids.len()); table, &on_device, &mut out, &(dim as i32));
    }
    Ok(out)
}

/// Sums of the rows `grad [ids, dim]` by id, `[rows, dim]`, each in the order of the ids. The ids are below `rows`,
/// which the caller has checked.
pub(crate) fn scatter_rows<T: OnDevice>(
    device: &CudaDevice,
    grad: &CudaView<'_, T>,
    ids: &[u32],
    (rows, dim): (usize, usize),
) -> Result<CudaSlice<T>> {
    holds("gradient of rows", grad.len(), ids.len() * dim)?;
    let mut out = device.alloc_zeros::<T>(rows * dim)?;
    if ids.is_empty() {
        return Ok(out);
    }
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&index| ids[index as usize]);
    let (mut starts, mut distinct) = (Vec::new(), Vec::new());
    for (place, &index) in order.iter().enumerate() {
        let id = ids[index as usize];
        if distinct.last() != Some(&id) {
            starts.push(place as u32);
            distinct.push(id);
        }
    }
    starts.push(order.len() as u32);
    let count = distinct.len();
    let (order, starts) = (device.clone_htod(&order)?, device.clone_htod(&starts)?);
    let distinct = device.clone_htod(&distinct)?;
    launch!(device, "scatter_rows", T::TYPE, blocks(count);
        grad, &order, &starts, &distinct, &mut out, &(dim as i32));
    Ok(out)
}
