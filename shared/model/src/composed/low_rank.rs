//! Adapters against plain twins, finite differences, merged weights and each other's threads.

use std::collections::BTreeSet;

use super::{
    attention_heads, attention_heads_beside, distance, feed_forward, feed_forward_beside, flat,
    functional, linear, random, setup, small, small_loss,
};
use crate::dropout::{Dropout, Masks};
use crate::ops::{self, BlockSetup, LowRank, Slot};
use crate::{Adapters, LoraSettings, LoraTarget, MtpModel, ParamStore, Products};
use candle_core::{DType, Device, Result, Tensor, Var};

const RANK: usize = 3;
const SCALE: f64 = 0.75;

/// A frozen weight with an adapter on it.
struct Adapted {
    weight: Tensor,
    a: Var,
    b: Var,
}

impl Adapted {
    fn new(seed: u64, outputs: usize, inputs: usize, dtype: DType) -> Self {
        Self {
            weight: random(seed, &[outputs, inputs], dtype).as_detached_tensor(),
            a: random(seed + 100, &[RANK, inputs], dtype),
            b: random(seed + 200, &[outputs, RANK], dtype),
        }
    }

    fn effective(&self) -> Tensor {
        (&self.weight + (self.b.matmul(&self.a).unwrap() * SCALE).unwrap()).unwrap()
    }
}

/// Adapters on those parts that are `Some`; packed weights are the parts behind each other.
fn low_rank(parts: &[Tensor], adapted: &[Option<&Adapted>]) -> LowRank {
    let mut start = 0;
    let mut slots = Vec::new();
    for (part, adapted) in parts.iter().zip(adapted) {
        if let Some(adapted) = adapted {
            let (outputs, inputs) = part.dims2().unwrap();
            let slot = Slot {
                start,
                outputs,
                inputs,
                stream: start as u64,
            };
            let pair = [&adapted.a, &adapted.b].map(|var| var.as_tensor().clone());
            slots.push((slot, pair));
        }
        start += part.elem_count();
    }
    LowRank::new(RANK, SCALE, slots)
}

fn packed(parts: &[Tensor]) -> Tensor {
    let flat: Result<Vec<_>> = parts.iter().map(Tensor::flatten_all).collect();
    Tensor::cat(&flat.unwrap(), 0).unwrap()
}

/// Value and gradients of `x` and all adapters agree, and there is no further gradient.
fn agree(fused: &Tensor, twin: &Tensor, x: &Var, adapted: &[&Adapted], tolerance: f64) {
    let off = distance(fused, twin);
    assert!(off < tolerance, "value is off by {off:e}");
    let grads = functional(fused).backward().unwrap();
    let wanted = functional(twin).backward().unwrap();
    let vars = adapted.iter().flat_map(|one| [&one.a, &one.b]);
    for (index, var) in std::iter::once(x).chain(vars).enumerate() {
        let off = distance(grads.get(var).unwrap(), wanted.get(var).unwrap());
        assert!(off < 4.0 * tolerance, "gradient {index} is off by {off:e}");
    }
}

/// Dropout of the rows of an operation on `[batch, sequence]`, or of some of them.
fn masks(batch: usize, sequence: usize, rows: Option<&[u32]>) -> Masks {
    let dropout = Dropout {
        share: 0.3,
        seed: 17,
    };
    let pass = dropout.of_step(5).of_pass(2);
    pass.masks(sequence, rows, batch * sequence)
}

/// The branch of an adapter that starts at `start` of the packed weights: `s·((x ⊙ M)·Aᵀ)·Bᵀ`.
fn branch(x: &Tensor, adapted: &Adapted, masks: &Masks, start: usize) -> Result<Option<Tensor>> {
    let width = x.dims()[x.dims().len() - 1];
    let mask = masks.dropped(&vec![1.0; x.elem_count()], width, 1, start as u64);
    let mask = Tensor::from_vec(mask, x.dims(), &Device::Cpu)?.to_dtype(x.dtype())?;
    let dropped = (x * mask)?;
    let product = linear(&linear(&dropped, &adapted.a)?, &adapted.b)?;
    Ok(Some((product * SCALE)?))
}

const PRECISIONS: [(DType, f64); 2] = [(DType::F64, 1e-12), (DType::F32, 5e-6)];

#[test]
fn an_adapted_linear_is_a_linear_with_a_branch_of_its_own() {
    for (dtype, tolerance) in PRECISIONS {
        let x = random(1, &[3, 211, 7], dtype);
        let one = Adapted::new(2, 5, 7, dtype);
        let low_rank = low_rank(std::slice::from_ref(&one.weight), &[Some(&one)]);
        let fused = ops::adapted_linear(&x, &one.weight, &low_rank, Products::F32).unwrap();
        let branch = linear(&linear(&x, &one.a).unwrap(), &one.b).unwrap();
        let twin = (linear(&x, &one.weight).unwrap() + (branch * SCALE).unwrap()).unwrap();
        agree(&fused, &twin, &x, &[&one], tolerance);
    }
}

#[test]
fn adapted_attention_equals_its_twin_also_where_only_some_matrices_are_adapted() {
    for (dtype, tolerance) in PRECISIONS {
        let setup = setup(4, 2, 6);
        let x = random(1, &[5, 70, 24], dtype);
        let norm = random(9, &[24], dtype).as_detached_tensor();
        let all = [(2, 24), (3, 12), (4, 12)].map(|(seed, out)| Adapted::new(seed, out, 24, dtype));
        let [q, k, v] = &all;
        let parts = [&norm, &q.weight, &k.weight, &v.weight].map(Tensor::clone);
        let low_rank = low_rank(&parts, &[None, Some(q), None, Some(v)]);
        let fused = ops::adapted_attention_heads(&x, &parts, &low_rank, &setup).unwrap();
        let effective = packed(&[norm, q.effective(), k.weight.clone(), v.effective()]);
        let twin = attention_heads(&x, &effective, &setup).unwrap();
        agree(&fused, &twin, &x, &[q, v], tolerance);
    }
}

#[test]
fn an_adapted_feed_forward_equals_its_twin() {
    for (dtype, tolerance) in PRECISIONS {
        let x = random(1, &[3, 101, 12], dtype);
        let norm = random(9, &[12], dtype).as_detached_tensor();
        let [w1, w3] = [2, 3].map(|seed| Adapted::new(seed, 20, 12, dtype));
        let w2 = Adapted::new(4, 12, 20, dtype);
        let parts = [&norm, &w1.weight, &w3.weight, &w2.weight].map(Tensor::clone);
        let low_rank = low_rank(&parts, &[None, Some(&w1), Some(&w3), Some(&w2)]);
        let fused = ops::adapted_feed_forward(&x, &parts, &low_rank, &setup(1, 1, 2)).unwrap();
        let effective = packed(&[norm, w1.effective(), w3.effective(), w2.effective()]);
        let twin = feed_forward(&x, &effective, 1e-5).unwrap();
        agree(&fused, &twin, &x, &[&w1, &w3, &w2], tolerance);
    }
}

/// Value and gradients, bit by bit.
fn bits(value: &Tensor, vars: &[&Var]) -> Vec<Vec<u64>> {
    let grads = functional(value).backward().unwrap();
    let of_vars = vars.iter().map(|var| grads.get(var).unwrap());
    std::iter::once(value)
        .chain(of_vars)
        .map(|tensor| flat(tensor).into_iter().map(f64::to_bits).collect())
        .collect()
}

#[test]
fn weights_in_a_smaller_type_give_every_bit_of_the_same_numbers_in_the_larger_one() {
    for (stored, dtype, products) in [
        (DType::BF16, DType::F32, Products::F32),
        (DType::BF16, DType::F32, Products::Bf16),
        (DType::F16, DType::F32, Products::F32),
        (DType::BF16, DType::F64, Products::F32),
        (DType::F32, DType::F64, Products::F32),
    ] {
        let setup = BlockSetup {
            products,
            ..setup(4, 2, 6)
        };
        let x = random(1, &[5, 70, 24], dtype);
        let norm = random(9, &[24], dtype).as_detached_tensor();
        let matrix = |seed, outputs, inputs| Adapted::new(seed, outputs, inputs, dtype);
        let (q, k, v, o) = (
            matrix(2, 24, 24),
            matrix(3, 12, 24),
            matrix(4, 12, 24),
            matrix(5, 24, 24),
        );
        let (w1, w3, w2) = (matrix(6, 20, 24), matrix(7, 20, 24), matrix(8, 24, 20));
        let run = |is_kept: bool| {
            let as_stored = |weight: &Tensor| {
                let stored = weight.to_dtype(stored).unwrap();
                if is_kept {
                    stored
                } else {
                    stored.to_dtype(dtype).unwrap()
                }
            };
            let parts = [&norm, &q.weight, &k.weight, &v.weight].map(as_stored);
            let upon = low_rank(&parts, &[None, Some(&q), None, Some(&v)]);
            let heads = ops::adapted_attention_heads(&x, &parts, &upon, &setup).unwrap();
            let weight = as_stored(&o.weight);
            let upon = low_rank(std::slice::from_ref(&weight), &[Some(&o)]);
            let out = ops::adapted_linear(&x, &weight, &upon, products).unwrap();
            let parts = [&norm, &w1.weight, &w3.weight, &w2.weight].map(as_stored);
            let upon = low_rank(&parts, &[None, Some(&w1), None, Some(&w2)]);
            let resid = ops::adapted_feed_forward(&x, &parts, &upon, &setup).unwrap();
            [
                bits(&heads, &[&x, &q.a, &q.b, &v.a, &v.b]),
                bits(&out, &[&x, &o.a, &o.b]),
                bits(&resid, &[&x, &w1.a, &w1.b, &w2.a, &w2.b]),
            ]
        };
        assert!(
            run(true) == run(false),
            "{stored:?} under {dtype:?}, {products:?}"
        );
    }
}

#[test]
fn an_adapted_linear_with_dropout_equals_its_twin_at_some_rows() {
    for (dtype, tolerance) in PRECISIONS {
        // Of 9 sequences of 71 positions, more rows than a task takes.
        let rows: Vec<u32> = (0..9 * 71).filter(|row| row % 5 != 2).collect();
        let x = random(1, &[rows.len(), 7], dtype);
        let one = Adapted::new(2, 5, 7, dtype);
        let masks = masks(9, 71, Some(&rows));
        let low_rank = low_rank(std::slice::from_ref(&one.weight), &[Some(&one)]);
        let low_rank = low_rank.masked(Some(masks.clone()));
        let fused = ops::adapted_linear(&x, &one.weight, &low_rank, Products::F32).unwrap();
        let branch = branch(&x, &one, &masks, 0).unwrap().unwrap();
        let twin = (linear(&x, &one.weight).unwrap() + branch).unwrap();
        agree(&fused, &twin, &x, &[&one], tolerance);
    }
}

#[test]
fn adapted_attention_with_dropout_equals_its_twin() {
    for (dtype, tolerance) in PRECISIONS {
        let setup = setup(4, 2, 6);
        let x = random(1, &[5, 70, 24], dtype);
        let norm = random(9, &[24], dtype).as_detached_tensor();
        let all = [(2, 24), (3, 12), (4, 12)].map(|(seed, out)| Adapted::new(seed, out, 24, dtype));
        let [q, k, v] = &all;
        let parts = [&norm, &q.weight, &k.weight, &v.weight].map(Tensor::clone);
        let masks = masks(5, 70, None);
        let low_rank = low_rank(&parts, &[None, Some(q), Some(k), Some(v)]);
        let low_rank = low_rank.masked(Some(masks.clone()));
        let fused = ops::adapted_attention_heads(&x, &parts, &low_rank, &setup).unwrap();
        let starts = [24, 24 + 24 * 24, 24 + 36 * 24];
        let beside = |number: usize, x: &Tensor| branch(x, &all[number], &masks, starts[number]);
        let twin = attention_heads_beside(&x, &packed(&parts), &setup, &beside).unwrap();
        agree(&fused, &twin, &x, &[q, k, v], tolerance);
    }
}

#[test]
fn an_adapted_feed_forward_with_dropout_equals_its_twin() {
    for (dtype, tolerance) in PRECISIONS {
        let x = random(1, &[3, 101, 12], dtype);
        let norm = random(9, &[12], dtype).as_detached_tensor();
        let all = [(2, 20, 12), (3, 20, 12), (4, 12, 20)]
            .map(|(seed, outputs, inputs)| Adapted::new(seed, outputs, inputs, dtype));
        let [w1, w3, w2] = &all;
        let parts = [&norm, &w1.weight, &w3.weight, &w2.weight].map(Tensor::clone);
        let masks = masks(3, 101, None);
        let low_rank = low_rank(&parts, &[None, Some(w1), Some(w3), Some(w2)]);
        let low_rank = low_rank.masked(Some(masks.clone()));
        let setup = setup(1, 1, 2);
        let fused = ops::adapted_feed_forward(&x, &parts, &low_rank, &setup).unwrap();
        let starts = [12, 12 + 20 * 12, 12 + 40 * 12];
        let beside = |number: usize, x: &Tensor| branch(x, &all[number], &masks, starts[number]);
        let twin = feed_forward_beside(&x, &packed(&parts), 1e-5, &beside).unwrap();
        agree(&fused, &twin, &x, &[w1, w3, w2], tolerance);
    }
}

/// Numbers of bf16, which its products do not round; the same ones of f64 as of its numbers in f32.
fn in_bf16(tensor: &Tensor) -> Tensor {
    let single = tensor.to_dtype(DType::F32).unwrap();
    let rounded = single.to_dtype(DType::BF16).unwrap();
    rounded.to_dtype(tensor.dtype()).unwrap()
}

fn size(tensor: &Tensor) -> f64 {
    flat(tensor).iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A weight of bf16 numbers under an adapter whose product is a thousandth of its size: what some steps learn.
fn young(seed: u64, outputs: usize, inputs: usize) -> Adapted {
    let Adapted { weight, a, b } = Adapted::new(seed, outputs, inputs, DType::F32);
    let weight = in_bf16(&weight);
    let product = (b.matmul(&a).unwrap() * SCALE).unwrap();
    let factor = 1e-3 * size(&weight) / size(&product);
    let b = Var::from_tensor(&(b.as_tensor() * factor).unwrap()).unwrap();
    Adapted { weight, a, b }
}

impl Adapted {
    /// The same numbers, exact in f64.
    fn wide(&self) -> Self {
        let var = |var: &Var| Var::from_tensor(&var.to_dtype(DType::F64).unwrap()).unwrap();
        Self {
            weight: self.weight.to_dtype(DType::F64).unwrap(),
            a: var(&self.a),
            b: var(&self.b),
        }
    }

    /// The frozen weight under an adapter that adds nothing.
    fn fresh(&self) -> Self {
        Self {
            weight: self.weight.clone(),
            a: self.a.clone(),
            b: Var::zeros(self.b.shape(), self.b.dtype(), &Device::Cpu).unwrap(),
        }
    }
}

/// A scalar whose gradient bf16 products do not round.
fn exact_functional(y: &Tensor) -> Tensor {
    let probe = in_bf16(&random(99, y.dims(), y.dtype()).as_detached_tensor());
    (y * probe).unwrap().sum_all().unwrap()
}

#[test]
fn bf16_products_of_a_linear_round_its_weight_and_not_its_adapter() {
    let x = Var::from_tensor(&in_bf16(&random(1, &[3, 211, 64], DType::F32))).unwrap();
    let one = young(2, 48, 64);
    let upon = low_rank(std::slice::from_ref(&one.weight), &[Some(&one)]);
    let found = ops::adapted_linear(&x, &one.weight, &upon, Products::Bf16).unwrap();

    let (x_wide, wide) = (x.to_dtype(DType::F64).unwrap(), one.wide());
    let x_wide = Var::from_tensor(&x_wide).unwrap();
    let branch = linear(&linear(&x_wide, &wide.a).unwrap(), &wide.b).unwrap();
    let branch = (branch * SCALE).unwrap();
    let exact = (linear(&x_wide, &wide.weight).unwrap() + &branch).unwrap();

    let frozen = ops::linear_with(&x, &one.weight, Products::Bf16).unwrap();
    let off = distance(&(&found - frozen).unwrap(), &branch);
    assert!(off < 1e-2, "the branch is off by {off}");
    // Inputs, weights and the gradient are numbers of bf16: nothing is rounded but the sums, to f32.
    assert!(distance(&found, &exact) < 5e-6);
    let grads = exact_functional(&found).backward().unwrap();
    let wanted = exact_functional(&exact).backward().unwrap();
    for (name, var, wide) in [
        ("x", &x, &x_wide),
        ("A", &one.a, &wide.a),
        ("B", &one.b, &wide.b),
    ] {
        let off = distance(grads.get(var).unwrap(), wanted.get(wide).unwrap());
        assert!(off < 2e-5, "the gradient of {name} is off by {off:e}");
    }
}

#[test]
fn adapters_beside_bf16_products_match_finite_differences() {
    const STEP: f64 = 1e-3;
    let x = random(1, &[300, 7], DType::F64);
    let one = Adapted::new(2, 5, 7, DType::F64);
    let value = || {
        let upon = low_rank(std::slice::from_ref(&one.weight), &[Some(&one)]);
        functional(&ops::adapted_linear(&x, &one.weight, &upon, Products::Bf16).unwrap())
    };
    let grads = value().backward().unwrap();
    for var in [&one.a, &one.b] {
        let gradient = flat(grads.get(var).unwrap());
        for (at, gradient) in gradient.into_iter().enumerate() {
            // The value is linear in every number of the adapters: the step may be a long one.
            let slope = slope(var, at, STEP, || flat(&value())[0]);
            assert!((slope - gradient).abs() < 1e-9, "{slope} and {gradient}");
        }
    }
}

/// What `found` has of `expected`, apart from noise that has nothing to do with it.
fn share(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (flat(found), flat(expected));
    let product = |a: &[f64]| a.iter().zip(&expected).map(|(a, b)| a * b).sum::<f64>();
    product(&found) / product(&expected)
}

/// What an operation makes of `x` under these adapters: its value, and the gradient of `x`.
type Made<'a> = &'a dyn Fn(&Var, &[Adapted]) -> Result<Tensor>;

/// Adapters change value and gradient by what they change in f64: both roundings of one number to bf16 differ by more
/// than that, but not in its favour.
fn changes_in_full(fused: Made<'_>, exact: Made<'_>, x: &Var, adapted: &[Adapted]) {
    let change = |made: Made<'_>, x: &Var, adapted: &[Adapted]| {
        let both = |adapted: &[Adapted]| {
            let y = made(x, adapted).unwrap();
            let grads = functional(&y).backward().unwrap();
            [y, grads.get(x).unwrap().clone()]
        };
        let fresh: Vec<_> = adapted.iter().map(Adapted::fresh).collect();
        let [[y, dx], [frozen_y, frozen_dx]] = [both(adapted), both(&fresh)];
        [(y - frozen_y).unwrap(), (dx - frozen_dx).unwrap()]
    };
    let wide: Vec<_> = adapted.iter().map(Adapted::wide).collect();
    let x_wide = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
    let (found, expected) = (change(fused, x, adapted), change(exact, &x_wide, &wide));
    for (name, found, expected) in [
        ("value", &found[0], &expected[0]),
        ("gradient", &found[1], &expected[1]),
    ] {
        let share = share(found, expected);
        assert!((share - 1.0).abs() < 0.1, "the {name} changes by {share}");
    }
}

#[test]
fn bf16_products_of_attention_leave_its_adapters_their_full_effect() {
    let setup = BlockSetup {
        products: Products::Bf16,
        ..setup(4, 2, 6)
    };
    let norm = random(9, &[24], DType::F32).as_detached_tensor();
    let all = [(2, 24), (3, 12), (4, 12)].map(|(seed, outputs)| young(seed, outputs, 24));
    let fused = |x: &Var, all: &[Adapted]| {
        let [q, k, v] = all else { unreachable!() };
        let parts = [&norm, &q.weight, &k.weight, &v.weight].map(Tensor::clone);
        let upon = low_rank(&parts, &[None, Some(q), Some(k), Some(v)]);
        ops::adapted_attention_heads(x, &parts, &upon, &setup)
    };
    let exact = |x: &Var, all: &[Adapted]| {
        let mut parts = vec![norm.to_dtype(DType::F64)?];
        parts.extend(all.iter().map(Adapted::effective));
        attention_heads(x, &packed(&parts), &setup)
    };
    changes_in_full(&fused, &exact, &random(1, &[5, 70, 24], DType::F32), &all);
}

#[test]
fn bf16_products_of_a_feed_forward_leave_its_adapters_their_full_effect() {
    let setup = BlockSetup {
        products: Products::Bf16,
        ..setup(1, 1, 2)
    };
    let norm = random(9, &[24], DType::F32).as_detached_tensor();
    let all = [(2, 40, 24), (3, 40, 24), (4, 24, 40)]
        .map(|(seed, outputs, inputs)| young(seed, outputs, inputs));
    let fused = |x: &Var, all: &[Adapted]| {
        let [w1, w3, w2] = all else { unreachable!() };
        let parts = [&norm, &w1.weight, &w3.weight, &w2.weight].map(Tensor::clone);
        let upon = low_rank(&parts, &[None, Some(w1), Some(w3), Some(w2)]);
        ops::adapted_feed_forward(x, &parts, &upon, &setup)
    };
    let exact = |x: &Var, all: &[Adapted]| {
        let mut parts = vec![norm.to_dtype(DType::F64)?];
        parts.extend(all.iter().map(Adapted::effective));
        feed_forward(x, &packed(&parts), 1e-5)
    };
    changes_in_full(&fused, &exact, &random(1, &[5, 101, 24], DType::F32), &all);
}

fn settings() -> LoraSettings {
    LoraSettings {
        r: 2,
        alpha: 3.0,
        targets: LoraTarget::ALL.to_vec(),
    }
}

/// A base and adapters none of which is zero.
fn stores(dtype: DType) -> (ParamStore, Adapters) {
    let base = ParamStore::init(&small(), 11, dtype, &Device::Cpu).unwrap();
    let adapters = Adapters::init(&small(), settings(), 5, dtype, &Device::Cpu).unwrap();
    for (index, (_, var)) in adapters.store().iter().enumerate() {
        let noise = random(index as u64, var.dims(), dtype).as_detached_tensor();
        var.set(&(noise * 0.2).unwrap()).unwrap();
    }
    (base, adapters)
}

fn value(model: &MtpModel) -> f64 {
    flat(&small_loss(model).0)[0]
}

#[test]
fn merged_weights_give_what_the_adapters_give() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
        let (base, adapters) = stores(dtype);
        let merged = adapters.merge(&base).unwrap();
        let frozen = |store| MtpModel::frozen(&small(), store).unwrap();
        let adapted = MtpModel::adapted(&small(), &base, &adapters).unwrap();
        let same = MtpModel::adapted_frozen(&small(), &base, &adapters).unwrap();
        let expected = value(&frozen(&merged));
        for found in [value(&adapted), value(&same)] {
            assert!((found - expected).abs() < tolerance, "{found} {expected}");
        }
        assert!((expected - value(&frozen(&base))).abs() > 1e-3);
    }
}

#[test]
fn fresh_adapters_change_no_bit() {
    let base = ParamStore::init(&small(), 11, DType::F32, &Device::Cpu).unwrap();
    let fresh = Adapters::init(&small(), settings(), 5, DType::F32, &Device::Cpu).unwrap();
    let merged = fresh.merge(&base).unwrap();
    for ((name, before), (_, after)) in base.iter().zip(merged.iter()) {
        assert_eq!(flat(before), flat(after), "{name}");
    }
}

#[test]
fn adapters_alone_get_gradients_and_those_match_finite_differences() {
    const STEP: f64 = 1e-5;
    let (base, adapters) = stores(DType::F64);
    let model = MtpModel::adapted(&small(), &base, &adapters).unwrap();
    let dropout = Dropout {
        share: 0.4,
        seed: 23,
    };
    let dropping = model.clone().with_dropout(dropout.of_step(1), 6);
    let (plain, dropped) = (value(&model), value(&dropping));
    assert!((plain - dropped).abs() > 1e-4, "{plain} and {dropped}");
    for model in [model, dropping] {
        check_slopes(&model, &base, &adapters, STEP);
    }
}

/// By how much a value grows with one number of a variable.
fn slope(var: &Var, at: usize, step: f64, value: impl Fn() -> f64) -> f64 {
    let before = flat(var);
    let moved = |by: f64| {
        let mut values = before.clone();
        values[at] += by;
        let values = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
        var.set(&values).unwrap();
        value()
    };
    let slope = (moved(step) - moved(-step)) / (2.0 * step);
    moved(0.0);
    slope
}

/// Only adapters get gradients, and a step of this length to either side says the same as every third of them.
fn check_slopes(model: &MtpModel, base: &ParamStore, adapters: &Adapters, step: f64) {
    let grads = small_loss(model).0.backward().unwrap();
    for (name, var) in base.iter() {
        assert!(grads.get(var).is_none(), "{name} is frozen");
    }
    for (index, (name, var)) in adapters.store().iter().enumerate() {
        let gradient = flat(grads.get(var).unwrap_or_else(|| panic!("{name}")));
        assert!(gradient.iter().any(|g| *g != 0.0), "{name} learns nothing");
        if index % 3 > 0 {
            continue;
        }
        let at = index % var.elem_count();
        let slope = slope(var, at, step, || value(model));
        let off = (slope - gradient[at]).abs();
        assert!(off < 1e-8, "{name}: {slope} and {}", gradient[at]);
    }
}

/// What backward leaves behind holds no tensor but the adapters' gradients and those of activations: the one that
/// candle's residual sum in the first block hands to the untracked embeddings.
#[test]
fn the_gradient_store_holds_the_adapters_and_nothing_of_the_weights() {
    let (base, adapters) = stores(DType::F32);
    let model = MtpModel::adapted(&small(), &base, &adapters).unwrap();
    let grads = small_loss(&model).0.backward().unwrap();
    let kept: BTreeSet<String> = grads.get_ids().map(|id| format!("{id:?}")).collect();
    let expected: BTreeSet<String> = adapters
        .store()
        .iter()
        .map(|(_, var)| format!("{:?}", var.id()))
        .collect();
    assert!(kept.is_superset(&expected));
    let others: Vec<_> = grads
        .get_ids()
        .filter(|id| !expected.contains(&format!("{id:?}")))
        .map(|id| grads.get_id(*id).unwrap().dims().to_vec())
        .collect();
    assert_eq!(others, [vec![9, 70, 24]]);
}

#[test]
fn one_and_two_threads_give_the_same_adapter_gradients() {
    let dropout = Dropout {
        share: 0.1,
        seed: 23,
    };
    let bits = |threads: usize, dropout: Option<Dropout>, products: Products| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let (base, adapters) = stores(DType::F32);
            let mut model = MtpModel::adapted(&small(), &base, &adapters)
                .unwrap()
                .with_products(products);
            if let Some(dropout) = dropout {
                model = model.with_dropout(dropout.of_step(0), 0);
            }
            let grads = small_loss(&model).0.backward().unwrap();
            let all = adapters.store().iter();
            all.flat_map(|(_, var)| flat(grads.get(var).unwrap()))
                .map(f64::to_bits)
                .collect::<Vec<u64>>()
        })
    };
    let kinds = [
        (None, Products::F32),
        (Some(dropout), Products::F32),
        (None, Products::Bf16),
    ];
    let all = kinds.map(|(dropout, products)| {
        let of_one = bits(1, dropout, products);
        assert!(of_one == bits(2, dropout, products), "{dropout:?}");
        of_one
    });
    assert!(all[0] != all[1] && all[0] != all[2]);
}
