//! Training on a CUDA device: the CPU's run but for rounding, and resumed bit for bit. Skipped by name without a device.

use std::io::Write;

use candle_core::{DType, Device};
use wmtp_model::{ParamStore, Params, Place, Products};
use wmtp_training::Trainer;

use crate::policy::{finished, trainer};
use crate::support::{counting, go_on, settings, store, tiny};

fn device(test: &str) -> Option<Device> {
    match Place::Cuda(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            None
        }
    }
}

/// The same weights there.
fn store_on(device: &Device, params: &Params, dtype: DType) -> ParamStore {
    let here = store(params, dtype);
    let tensors = here
        .iter()
        .map(|(name, var)| (name.to_owned(), var.to_device(device).unwrap()));
    ParamStore::from_tensors(tensors.collect()).unwrap()
}

fn losses(trainer: &mut dyn Trainer) -> Vec<f64> {
    let mut losses = Vec::new();
    while !trainer.is_done() {
        losses.push(trainer.advance().unwrap().metric("train_loss").unwrap());
    }
    losses
}

#[test]
fn a_run_on_a_device_is_that_of_the_cpu_but_for_rounding() {
    let Some(device) = device("a_run_on_a_device_is_that_of_the_cpu_but_for_rounding") else {
        return;
    };
    let (file, params) = (counting(40), tiny(2));
    for algorithm in ["baseline", "verifiable", "rho1"] {
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 2e-2)] {
            let here = store(&params, dtype);
            let expected = losses(&mut trainer(&params, &here, &file, algorithm, settings()));
            let there = store_on(&device, &params, dtype);
            let found = losses(&mut trainer(&params, &there, &file, algorithm, settings()));
            assert_eq!(found.len(), expected.len());
            for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = (found - expected).abs() / expected;
                assert!(
                    off < tolerance,
                    "{algorithm} {dtype:?}, step {step}: {off:e}"
                );
            }
        }
    }
}

#[test]
fn a_run_on_a_device_resumes_bit_for_bit() {
    let Some(device) = device("a_run_on_a_device_resumes_bit_for_bit") else {
        return;
    };
    let (file, params) = (counting(40), tiny(2));
    for products in [Products::F32, Products::Bf16] {
        let mut settings = settings();
        settings.products = products;
        let whole_store = store_on(&device, &params, DType::F32);
        let mut whole = trainer(&params, &whole_store, &file, "rho1", settings);
        let expected = finished(&mut whole, &whole_store);

        let first_store = store_on(&device, &params, DType::F32);
        let mut first = trainer(&params, &first_store, &file, "rho1", settings);
        let saved = go_on(&mut first, None, 5);
        let second_store = store_on(&device, &params, DType::F32);
        let mut second = trainer(&params, &second_store, &file, "rho1", settings);
        second.restore(saved.path()).unwrap();
        assert!(finished(&mut second, &second_store) == expected);
    }
}
