//! Plain twins of the fused operations, from candle's differentiable ones, and the tests that hold the
//! two together: values, gradients, finite differences, thread counts.

#[cfg(feature = "cuda")]
mod device;
mod low_rank;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kernels::HeadLayout;
use crate::ops::{self, BlockSetup};
use crate::{Horizon, MtpModel, ParamStore, Params, Products, Rotary, loss};

fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(w)
}

fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.broadcast_matmul(&w.t()?)
}

/// What is added to a matrix' products: the matrix' number among those of the operation, and what it reads.
type Beside<'a> = &'a dyn Fn(usize, &Tensor) -> Result<Option<Tensor>>;

fn linear_beside(x: &Tensor, w: &Tensor, number: usize, beside: Beside<'_>) -> Result<Tensor> {
    let products = linear(x, w)?;
    match beside(number, x)? {
        Some(more) => products + more,
        None => Ok(products),
    }
}

fn feed_forward(x: &Tensor, packed: &Tensor, eps: f64) -> Result<Tensor> {
    feed_forward_beside(x, packed, eps, &|_, _| Ok(None))
}

fn feed_forward_beside(
    x: &Tensor,
    packed: &Tensor,
    eps: f64,
    beside: Beside<'_>,
) -> Result<Tensor> {
    let dim = x.dim(D::Minus1)?;
    let ffn = (packed.elem_count() - dim) / (3 * dim);
    let part = |start: usize, shape: (usize, usize)| {
        packed.narrow(0, start, shape.0 * shape.1)?.reshape(shape)
    };
    let normed = rms_norm(x, &packed.narrow(0, 0, dim)?, eps)?;
    let gate = linear_beside(&normed, &part(dim, (ffn, dim))?, 0, beside)?;
    let up = linear_beside(&normed, &part(dim + ffn * dim, (ffn, dim))?, 1, beside)?;
    let down = part(dim + 2 * ffn * dim, (dim, ffn))?;
    x + linear_beside(&(gate.silu()? * up)?, &down, 2, beside)?
}

fn rotate(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (b, h, s, e) = x.dims4()?;
    let half = rotary.half();
    let table = |data: &[f64]| Tensor::from_slice(data, (s, half), x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (table(rotary.cos(s))?, table(rotary.sin(s))?);
    let pairs = x.reshape((b, h, s, half, 2))?;
    let (even, odd) = (
        pairs.narrow(4, 0, 1)?.squeeze(4)?,
        pairs.narrow(4, 1, 1)?.squeeze(4)?,
    );
    let first = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
    let second = (even.broadcast_mul(&sin)? + odd.broadcast_mul(&cos)?)?;
    Tensor::stack(&[first, second], 4)?.reshape((b, h, s, e))
}

fn attention_heads(x: &Tensor, packed: &Tensor, setup: &BlockSetup) -> Result<Tensor> {
    attention_heads_beside(x, packed, setup, &|_, _| Ok(None))
}

fn attention_heads_beside(
    x: &Tensor,
    packed: &Tensor,
    setup: &BlockSetup,
    beside: Beside<'_>,
) -> Result<Tensor> {
    let (b, s, dim) = x.dims3()?;
    let HeadLayout {
        heads,
        kv_heads,
        head_dim,
    } = setup.layout;
    let normed = rms_norm(x, &packed.narrow(0, 0, dim)?, setup.eps)?;
    let mut start = dim;
    let mut take = |number: usize, count: usize| -> Result<Tensor> {
        let w = packed
            .narrow(0, start, count * head_dim * dim)?
            .reshape((count * head_dim, dim))?;
        start += count * head_dim * dim;
        linear_beside(&normed, &w, number, beside)?
            .reshape((b, s, count, head_dim))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (q, k, v) = (take(0, heads)?, take(1, kv_heads)?, take(2, kv_heads)?);
    let (q, k) = (rotate(&q, &setup.rotary)?, rotate(&k, &setup.rotary)?);
    let repeat = |t: Tensor| {
        let copies = heads / kv_heads;
        t.unsqueeze(2)?
            .broadcast_as((b, kv_heads, copies, s, head_dim))?
            .contiguous()?
            .reshape((b, heads, s, head_dim))
    };
    let (k, v) = (repeat(k)?, repeat(v)?);
    let mask: Vec<f64> = (0..s * s)
        .map(|i| {
            if i % s > i / s {
                f64::NEG_INFINITY
            } else {
                0.0
            }
        })
        .collect();
    let mask = Tensor::from_vec(mask, (s, s), x.device())?.to_dtype(x.dtype())?;
    let scores =
        (q.matmul(&k.t()?.contiguous()?)? / (head_dim as f64).sqrt())?.broadcast_add(&mask)?;
    let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?;
    probabilities
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((b, s, heads * head_dim))
}

fn weighted_cross_entropy(
    hidden: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weights: &[f64],
) -> Result<Tensor> {
    let logs = candle_nn::ops::log_softmax(&linear(hidden, w)?, D::Minus1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
    let weights =
        Tensor::from_slice(weights, weights.len(), hidden.device())?.to_dtype(hidden.dtype())?;
    logs.gather(&targets, 1)?
        .squeeze(1)?
        .mul(&weights)?
        .sum_all()?
        .neg()
}

/// Values in −1…1 from a fixed seed.
fn random(seed: u64, shape: &[usize], dtype: DType) -> Var {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product::<usize>())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Var::from_tensor(
        &Tensor::from_vec(values, shape, &Device::Cpu)
            .unwrap()
            .to_dtype(dtype)
            .unwrap(),
    )
    .unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Largest difference relative to the largest expected value.
fn distance(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (flat(actual), flat(expected));
    let scale = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "the twin gives zeros only");
    actual
        .iter()
        .zip(&expected)
        .fold(0f64, |m, (a, b)| m.max((a - b).abs()))
        / scale
}

type Op<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

/// A scalar that gives every output element another gradient.
fn functional(y: &Tensor) -> Tensor {
    let probe = random(99, y.dims(), y.dtype());
    (y * probe.as_detached_tensor()).unwrap().sum_all().unwrap()
}

/// The fused operation equals its twin in value and both gradients, and in f64 finite differences too.
fn check(fused: Op<'_>, twin: Op<'_>, x_shape: &[usize], w_shape: &[usize]) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
        let (x, w) = (random(1, x_shape, dtype), random(2, w_shape, dtype));
        let (y, expected) = (fused(&x, &w).unwrap(), twin(&x, &w).unwrap());
        assert!(
            distance(&y, &expected) < tolerance,
            "{dtype:?} value is off by {:e}",
            distance(&y, &expected)
        );
        let grads = functional(&y).backward().unwrap();
        let wanted = functional(&expected).backward().unwrap();
        for (name, var) in [("x", &x), ("w", &w)] {
            let off = distance(grads.get(var).unwrap(), wanted.get(var).unwrap());
            assert!(
                off < 4.0 * tolerance,
                "{dtype:?} gradient of {name} is off by {off:e}"
            );
        }
    }
    finite_differences(fused, x_shape, w_shape);
}

fn finite_differences(op: Op<'_>, x_shape: &[usize], w_shape: &[usize]) {
    const STEP: f64 = 1e-5;
    let operands = [
        random(1, x_shape, DType::F64),
        random(2, w_shape, DType::F64),
    ];
    let value = |a: &Tensor, b: &Tensor| functional(&op(a, b).unwrap()).to_scalar::<f64>().unwrap();
    // The rounding of a long sum, divided by the step: the noise of every slope.
    let noise = 1e-14 * value(&operands[0], &operands[1]).abs() / STEP;
    let grads = functional(&op(&operands[0], &operands[1]).unwrap())
        .backward()
        .unwrap();
    for (which, var) in operands.iter().enumerate() {
        let gradient = flat(grads.get(var).unwrap());
        let scale = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
        let base = flat(var);
        for i in (0..base.len()).step_by((base.len() / 40).max(1)) {
            let moved = |by: f64| {
                let mut values = base.clone();
                values[i] += by;
                let moved = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
                if which == 0 {
                    value(&moved, &operands[1])
                } else {
                    value(&operands[0], &moved)
                }
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!(
                (slope - gradient[i]).abs() < 1e-7 * scale.max(1.0) + noise,
                "operand {which}, element {i}: {slope} and {}",
                gradient[i]
            );
        }
    }
}

fn setup(heads: usize, kv_heads: usize, head_dim: usize) -> BlockSetup {
    let params = Params {
        dim: heads * head_dim,
        n_heads: heads,
        n_kv_heads: kv_heads,
        ..Params::micro_mtp(17)
    };
    BlockSetup {
        layout: HeadLayout::new(&params),
        eps: 1e-5,
        rotary: Rotary::new(&params).into(),
        products: Products::F32,
        dropout: None,
    }
}

#[test]
fn linear_equals_its_twin() {
    check(&ops::linear, &linear, &[3, 11, 7], &[5, 7]);
    // More rows than a task takes, and sides that no tile divides.
    check(&ops::linear, &linear, &[3, 101, 37], &[21, 37]);
}

#[test]
fn rms_norm_equals_its_twin() {
    check(
        &|x, w| ops::rms_norm(x, w, 1e-5),
        &|x, w| rms_norm(x, w, 1e-5),
        &[2, 9, 21],
        &[21],
    );
}

#[test]
fn feed_forward_equals_its_twin_over_several_tasks() {
    check(
        &|x, w| ops::feed_forward(x, w, &setup(1, 1, 2)),
        &|x, w| feed_forward(x, w, 1e-5),
        &[3, 101, 12],
        &[12 + 3 * 12 * 20],
    );
}

#[test]
fn attention_equals_its_twin_with_grouped_heads_and_several_score_blocks() {
    let setup = setup(4, 2, 6);
    let packed = 24 + (4 + 2 + 2) * 6 * 24;
    let fused = |x: &Tensor, w: &Tensor| ops::attention_heads(x, w, &setup);
    check(
        &fused,
        &|x, w| attention_heads(x, w, &setup),
        &[5, 70, 24],
        &[packed],
    );
    check(
        &fused,
        &|x, w| attention_heads(x, w, &setup),
        &[2, 1, 24],
        &[packed],
    );
}

#[test]
fn weighted_cross_entropy_equals_its_twin_and_reports_every_row() {
    let rows = 1100;
    let targets: Vec<u32> = (0..rows).map(|i| i * 7 % 19).collect();
    let weights: Vec<f64> = (0..rows).map(|i| f64::from(i % 4)).collect();
    let fused = |h: &Tensor, w: &Tensor| {
        ops::linear_cross_entropy(h, w, &targets, &weights, Products::F32).map(|(sum, _)| sum)
    };
    check(
        &fused,
        &|h, w| weighted_cross_entropy(h, w, &targets, &weights),
        &[1100, 6],
        &[19, 6],
    );

    let (hidden, w) = (
        random(1, &[1100, 6], DType::F64),
        random(2, &[19, 6], DType::F64),
    );
    let ce = loss::cross_entropy(&hidden, &w, &targets, Products::F32).unwrap();
    let only_first =
        weighted_cross_entropy(&hidden.narrow(0, 0, 1).unwrap(), &w, &targets[..1], &[1.0])
            .unwrap();
    assert!(
        (ce[0] - only_first.to_scalar::<f64>().unwrap()).abs() < 1e-12,
        "row 0 has weight 0 and still a loss"
    );
    assert_eq!(ce.len(), 1100);
}

/// The gradient of an unembedding that no row reads.
fn gradient_without_rows(place: &Device) -> Vec<f64> {
    let hidden = Tensor::zeros((0, 6), DType::F32, place).unwrap();
    let unembedding = random(2, &[19, 6], DType::F32).to_device(place).unwrap();
    let unembedding = Var::from_tensor(&unembedding).unwrap();
    let made = ops::cross_entropy_gradients(&hidden, &unembedding, &[], &[], Products::F32);
    flat(&made.unwrap().unembedding.unwrap())
}

#[test]
fn without_rows_the_unembeddings_gradient_is_zero() {
    assert_eq!(gradient_without_rows(&Device::Cpu), [0.0; 19 * 6]);
}

#[test]
fn embedding_adds_the_gradients_of_repeated_rows() {
    let table = random(3, &[5, 2], DType::F64);
    let y = ops::embedding(&table, &[4, 1, 4]).unwrap();
    assert_eq!(flat(&y)[..2], flat(&table)[8..]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    let expected = [0, 0, 1, 1, 0, 0, 0, 0, 2, 2].map(f64::from).to_vec();
    assert_eq!(flat(grads.get(&table).unwrap()), expected);
    assert!(
        ops::embedding(&table, &[5])
            .unwrap_err()
            .to_string()
            .contains("row 5")
    );
}

#[test]
fn wrong_arguments_are_named() {
    let (h, w) = (
        random(1, &[2, 3], DType::F32),
        random(2, &[4, 3], DType::F32),
    );
    let fails = |targets: &[u32]| {
        loss::weighted_cross_entropy(&h, &w, targets, &[1.0, 1.0], Products::F32).unwrap_err()
    };
    assert!(format!("{:?}", fails(&[0, 4])).contains("target 4 of a vocabulary of 4"));
    assert!(format!("{:?}", fails(&[0])).contains("1 targets"));
    let half = h.to_dtype(DType::BF16).unwrap();
    assert!(
        ops::linear(&half, &w)
            .unwrap_err()
            .to_string()
            .contains("f32 or f64")
    );
}

#[test]
fn a_nan_weight_shows_in_the_loss() {
    let params = small();
    let store = ParamStore::init(&params, 1, DType::F32, &Device::Cpu).unwrap();
    let var = store.get("layers.0.feed_forward.w2.weight").unwrap();
    var.set(&var.affine(f64::NAN, 0.0).unwrap()).unwrap();
    let (total, ce) = small_loss(&MtpModel::new(&params, &store).unwrap());
    assert!(total.to_scalar::<f32>().unwrap().is_nan() && ce[0].is_nan());
}

fn small() -> Params {
    Params {
        dim: 24,
        n_layers: 5,
        n_heads: 4,
        n_kv_heads: 2,
        multiple_of: 8,
        n_future_tokens: 3,
        ..Params::micro_mtp(31)
    }
}

/// The mean of all heads over rows that span several parallel tasks.
fn small_loss(model: &MtpModel) -> (Tensor, Vec<f64>) {
    let (batch, sequence) = (9, 70);
    let ids: Vec<u32> = (0..batch * sequence).map(|i| i * 7919 % 31).collect();
    let ids_bs =
        Tensor::from_slice(&ids, (batch as usize, sequence as usize), &Device::Cpu).unwrap();
    let trunk = model.trunk(&ids_bs).unwrap();
    let mut sums = Vec::new();
    let mut all = Vec::new();
    for horizon in model.params().horizons() {
        let k = horizon.get() as u32;
        let targets: Vec<u32> = (0..batch * sequence)
            .filter(|i| i % sequence >= k)
            .collect();
        let rows: Vec<u32> = targets.iter().map(|i| i - k).collect();
        let targets: Vec<u32> = targets.iter().map(|i| ids[*i as usize]).collect();
        let hidden = model.head_hidden_at(horizon, &trunk, &rows).unwrap();
        let head = loss::weighted_cross_entropy(
            &hidden,
            model.unembedding(),
            &targets,
            &vec![1.0; rows.len()],
            model.products(),
        )
        .unwrap();
        sums.push((head.sum / rows.len() as f64).unwrap());
        all.extend(head.ce);
    }
    (Tensor::stack(&sums, 0).unwrap().mean_all().unwrap(), all)
}

#[test]
fn every_trained_tensor_gets_a_finite_gradient_and_no_frozen_one_any() {
    let params = small();
    let store = ParamStore::init(&params, 11, DType::F32, &Device::Cpu).unwrap();
    let grads = small_loss(&MtpModel::new(&params, &store).unwrap())
        .0
        .backward()
        .unwrap();
    for (name, var) in store.iter() {
        let size = flat(
            grads
                .get(var)
                .unwrap_or_else(|| panic!("{name} has no gradient")),
        )
        .iter()
        .map(|g| g.abs())
        .sum::<f64>();
        assert!(size.is_finite() && size > 0.0, "{name}: {size}");
    }
    let frozen = small_loss(&MtpModel::frozen(&params, &store).unwrap()).0;
    let grads = frozen.backward().unwrap();
    assert!(store.iter().all(|(_, var)| grads.get(var).is_none()));
}

#[test]
fn a_fresh_model_starts_half_a_nat_above_the_uniform_loss() {
    let params = small();
    let store = ParamStore::init(&params, 11, DType::F64, &Device::Cpu).unwrap();
    let total = small_loss(&MtpModel::frozen(&params, &store).unwrap())
        .0
        .to_scalar::<f64>()
        .unwrap();
    // Normed rows times a matrix of deviation 1/√d give v standard normal logits z: E[exp z] = √e, and the mean of
    // v such terms has the relative variance (e - 1)/v, half of which the logarithm of that mean lies below 1/2.
    let above_uniform = 0.5 - (1f64.exp() - 1.0) / (2.0 * 31.0);
    assert!((total - 31f64.ln() - above_uniform).abs() < 0.1, "{total}");
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let params = small();
            let store = ParamStore::init(&params, 11, DType::F32, &Device::Cpu).unwrap();
            let (total, _) = small_loss(&MtpModel::new(&params, &store).unwrap());
            let grads = total.backward().unwrap();
            let gradients = store
                .iter()
                .flat_map(|(_, var)| flat(grads.get(var).unwrap()));
            gradients
                .chain(flat(&total))
                .map(f64::to_bits)
                .collect::<Vec<u64>>()
        })
    };
    assert_eq!(bits(1), bits(2));
}

#[test]
fn a_head_at_some_rows_is_that_head_at_every_row() {
    let params = small();
    let store = ParamStore::init(&params, 4, DType::F64, &Device::Cpu).unwrap();
    let model = MtpModel::new(&params, &store).unwrap();
    let horizon = Horizon::new(2).unwrap();
    let ids: Vec<u32> = (0..10 * 60).map(|i| i * 7919 % 31).collect();
    let ids_bs = Tensor::from_slice(&ids, (10, 60), &Device::Cpu).unwrap();
    let trunk = Var::from_tensor(&model.trunk(&ids_bs).unwrap().detach()).unwrap();
    // All rows of some sequences, some of others, and none of the last.
    let rows: Vec<u32> = (0..9 * 60).filter(|i| i / 60 < 6 || i % 5 == 2).collect();
    let whole = loss::select_rows(&model.head_hidden(horizon, &trunk).unwrap(), &rows).unwrap();
    let some = model.head_hidden_at(horizon, &trunk, &rows).unwrap();
    assert_eq!(flat(&some), flat(&whole));
    let grads = |y: &Tensor| functional(y).backward().unwrap();
    let (of_whole, of_some) = (grads(&whole), grads(&some));
    let vars = store.iter().map(|(_, var)| var.as_tensor());
    for var in vars.chain([trunk.as_tensor()]) {
        let (Some(expected), Some(found)) = (of_whole.get(var), of_some.get(var)) else {
            assert!(of_whole.get(var).is_none() && of_some.get(var).is_none());
            continue;
        };
        assert!(distance(found, expected) < 1e-12);
    }
}

#[test]
fn bf16_products_stay_within_their_rounding() {
    let params = small();
    let store = ParamStore::init(&params, 11, DType::F32, &Device::Cpu).unwrap();
    let of = |products| {
        let model = MtpModel::new(&params, &store)
            .unwrap()
            .with_products(products);
        let (total, _) = small_loss(&model);
        let grads = total.backward().unwrap();
        (total.to_scalar::<f32>().unwrap(), grads)
    };
    let ((full, full_grads), (half, half_grads)) = (of(Products::F32), of(Products::Bf16));
    assert!(
        full.to_bits() != half.to_bits() && (full - half).abs() < 2e-3,
        "{full} and {half}"
    );
    for (name, var) in store.iter() {
        let (full, half) = (full_grads.get(var).unwrap(), half_grads.get(var).unwrap());
        // Eight bits: single products err by up to 2^-7 of themselves, and a gradient passes a dozen of them.
        let gap = distance(half, full);
        assert!(gap < 4e-2, "{name}: {gap}");
    }
}

#[test]
fn later_tokens_never_reach_earlier_positions() {
    let params = small();
    let store = ParamStore::init(&params, 4, DType::F64, &Device::Cpu).unwrap();
    let model = MtpModel::frozen(&params, &store).unwrap();
    let hidden = |last: u32| {
        let ids = Tensor::new(&[[1u32, 2, 3, 4, last]], &Device::Cpu).unwrap();
        flat(&model.trunk(&ids).unwrap().narrow(1, 0, 4).unwrap())
    };
    assert_eq!(hidden(5), hidden(6));
}
