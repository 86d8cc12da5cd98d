//! The operations on a CUDA device against the host's in f64, values and gradients. Skipped by name without a device.

use std::io::Write;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{distance, gradient_without_rows, random, setup};
use crate::ops::{self, BlockSetup};
use crate::{Place, Products};

fn device(test: &str) -> Option<Device> {
    match Place::Cuda(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            None
        }
    }
}

/// Value and gradients of `Σ probe · op(x, w)`.
fn value_and_gradients(
    op: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
    (x, w): (&Tensor, &Tensor),
) -> [Tensor; 3] {
    let (x, w) = (Var::from_tensor(x).unwrap(), Var::from_tensor(w).unwrap());
    let y = op(&x, &w).unwrap();
    let probe = random(99, y.dims(), DType::F64);
    let probe = probe
        .to_device(y.device())
        .unwrap()
        .to_dtype(y.dtype())
        .unwrap();
    let grads = (&y * probe.detach())
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    [
        y.detach(),
        grads.get(&x).unwrap().clone(),
        grads.get(&w).unwrap().clone(),
    ]
}

/// The device's numbers lie within the tolerance of the host's in f64, relative to the largest of them, and are the
/// same when asked for again.
fn check(
    place: &Device,
    op: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
    host: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
    shapes: (&[usize], &[usize]),
    (dtype, tolerance): (DType, f64),
) {
    // Weights of a size that leaves softmax with more than one probability.
    let w = random(2, shapes.1, DType::F64).affine(0.4, 0.0).unwrap();
    let (x, w) = (
        random(1, shapes.0, DType::F64),
        Var::from_tensor(&w).unwrap(),
    );
    // The same numbers on both sides.
    let narrow = |t: &Var| t.to_dtype(dtype).unwrap();
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let expected = value_and_gradients(host, (&wide(&narrow(&x)), &wide(&narrow(&w))));
    let there = |t: &Var| narrow(t).to_device(place).unwrap();
    let (x, w) = (there(&x), there(&w));
    let found = value_and_gradients(op, (&x, &w));
    let again = value_and_gradients(op, (&x, &w));
    let names = ["value", "gradient of x", "gradient of w"];
    for (((name, found), again), expected) in names.iter().zip(&found).zip(&again).zip(&expected) {
        let off = distance(found, expected);
        assert!(
            off < tolerance,
            "{dtype:?} {shapes:?}: {name} is off by {off:e}"
        );
        assert_eq!(
            super::flat(found),
            super::flat(again),
            "{name} does not repeat"
        );
    }
}

const EXACT: [(DType, f64); 2] = [(DType::F64, 1e-12), (DType::F32, 2e-5)];

#[test]
fn linear_norm_and_embedding_are_those_of_the_host() {
    let Some(place) = device("linear_norm_and_embedding_are_those_of_the_host") else {
        return;
    };
    for kind in EXACT {
        check(
            &place,
            &ops::linear,
            &ops::linear,
            (&[3, 101, 37], &[21, 37]),
            kind,
        );
        let norm = |x: &Tensor, w: &Tensor| ops::rms_norm(x, w, 1e-5);
        check(&place, &norm, &norm, (&[3, 211, 45], &[45]), kind);
        let ids = [4, 1, 4, 0, 6, 4];
        let rows = |x: &Tensor, w: &Tensor| ops::embedding(w, &ids)?.broadcast_mul(x);
        check(&place, &rows, &rows, (&[6, 33], &[7, 33]), kind);
    }
    assert!(
        ops::embedding(
            &random(1, &[2, 3], DType::F32).to_device(&place).unwrap(),
            &[2]
        )
        .is_err()
    );
}

fn with_products(setup: &BlockSetup, products: Products) -> BlockSetup {
    BlockSetup {
        products,
        ..setup.clone()
    }
}

#[test]
fn blocks_are_those_of_the_host() {
    let Some(place) = device("blocks_are_those_of_the_host") else {
        return;
    };
    // Heads, key/value heads, width of a head, batch, sequence.
    for (heads, kv_heads, width, batch, sequence) in [
        (4, 2, 6, 5, 70),
        (2, 1, 64, 2, 200),
        (4, 2, 64, 1, 64),
        (2, 2, 128, 2, 130),
        (3, 1, 128, 1, 300),
        (2, 2, 128, 1, 1),
    ] {
        let setup = setup(heads, kv_heads, width);
        let dim = heads * width;
        let packed = dim + (heads + 2 * kv_heads) * width * dim;
        let shapes: (&[usize], &[usize]) = (&[batch, sequence, dim], &[packed]);
        let host = |x: &Tensor, w: &Tensor| ops::attention_heads(x, w, &setup);
        for kind in EXACT {
            check(&place, &host, &host, shapes, kind);
        }
        let rounded = with_products(&setup, Products::Bf16);
        let rounded = |x: &Tensor, w: &Tensor| ops::attention_heads(x, w, &rounded);
        check(&place, &rounded, &host, shapes, (DType::F32, 3e-2));
    }
    let setup = setup(1, 1, 2);
    let shapes: (&[usize], &[usize]) = (&[3, 101, 12], &[12 + 3 * 12 * 20]);
    let host = |x: &Tensor, w: &Tensor| ops::feed_forward(x, w, &setup);
    for kind in EXACT {
        check(&place, &host, &host, shapes, kind);
    }
    let rounded = with_products(&setup, Products::Bf16);
    let rounded = |x: &Tensor, w: &Tensor| ops::feed_forward(x, w, &rounded);
    check(&place, &rounded, &host, shapes, (DType::F32, 3e-2));
}

#[test]
fn the_loss_is_that_of_the_host_over_several_spans() {
    let Some(place) = device("the_loss_is_that_of_the_host_over_several_spans") else {
        return;
    };
    let rows = 5000;
    let targets: Vec<u32> = (0..rows).map(|i| i * 7 % 19).collect();
    let weights: Vec<f64> = (0..rows).map(|i| f64::from(i % 4) / 4.0).collect();
    let loss = |products: Products| {
        let (targets, weights) = (&targets, &weights);
        move |h: &Tensor, w: &Tensor| {
            ops::linear_cross_entropy(h, w, targets, weights, products).map(|(sum, _)| sum)
        }
    };
    let host = loss(Products::F32);
    let shapes: (&[usize], &[usize]) = (&[rows as usize, 8], &[19, 8]);
    for kind in EXACT {
        check(&place, &host, &host, shapes, kind);
    }
    check(
        &place,
        &loss(Products::Bf16),
        &host,
        shapes,
        (DType::F32, 3e-2),
    );
}

#[test]
fn without_rows_the_unembeddings_gradient_is_zero_on_a_device() {
    let Some(place) = device("without_rows_the_unembeddings_gradient_is_zero_on_a_device") else {
        return;
    };
    // Memory that was something else before.
    let busy = random(3, &[19, 6], DType::F32).to_device(&place).unwrap();
    drop(busy);
    assert_eq!(gradient_without_rows(&place), [0.0; 19 * 6]);
}
