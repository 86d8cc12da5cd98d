//! Adapters in the policy trainer.

use crate::support::{bits, counting, settings, store, tiny};
use candle_core::{DType, Device};
use wmtp_data_sets::TokenFile;
use wmtp_model::{Adapters, LoraSettings, LoraTarget, MtpModel, ParamStore, Params};
use wmtp_training::heads::target_counts;
use wmtp_training::inference::{head_cross_entropies, mean};
use wmtp_training::{PolicyTrainer, Ranks, Rows, StepScorer, Trainer, Weights};
use wmtp_weighting::WeightSettings;

fn adapters(params: &Params) -> Adapters {
    let lora = LoraSettings {
        r: 2,
        alpha: 4.0,
        targets: LoraTarget::ALL.to_vec(),
    };
    Adapters::init(params, lora, 3, DType::F32, &Device::Cpu).unwrap()
}

fn trainer<'a>(
    params: &'a Params,
    base: &'a ParamStore,
    adapters: Option<&'a Adapters>,
    file: &'a TokenFile,
) -> PolicyTrainer<'a> {
    let scorer = Box::new(StepScorer::baseline(WeightSettings::default()));
    let rows = Rows::correct(file);
    let weights = Weights {
        params,
        store: base,
        adapters,
    };
    let (ranks, settings) = (Ranks::alone(), settings());
    PolicyTrainer::new(weights, rows.clone(), rows, scorer, settings, &ranks).unwrap()
}

fn run(trainer: &mut PolicyTrainer<'_>) {
    while trainer.step() < trainer.total_steps() {
        trainer.advance().unwrap();
    }
    trainer.finish().unwrap();
}

#[test]
fn adapters_learn_while_the_base_keeps_every_bit() {
    let (file, params) = (counting(40), tiny(2));
    let base = store(&params, DType::F32);
    let before = bits(&base);
    let adapters = adapters(&params);
    let mut trainer = trainer(&params, &base, Some(&adapters), &file);
    let first = trainer.validate().unwrap().unwrap();
    run(&mut trainer);
    let last = trainer.validate().unwrap().unwrap();
    assert!(last < first - 0.2, "{first} {last}");
    assert_eq!(bits(&base), before);

    // The merged weights are the model that was trained.
    let merged = adapters.merge(&base).unwrap();
    let model = MtpModel::frozen(&params, &merged).unwrap();
    let horizon = params.horizons().next().unwrap();
    let losses = head_cross_entropies(&model, &file, &file.correct_rows(), 3, horizon).unwrap();
    let merged = mean(&losses).unwrap();
    assert!((merged - last).abs() < 1e-6, "{merged} {last}");
    assert_eq!(trainer.best_loss(), Some(last));
}

#[test]
fn the_gradients_of_frozen_weights_are_not_counted() {
    // Eight correct rows, which are the first step.
    let (file, params) = (counting(10), tiny(2));
    let base = store(&params, DType::F32);
    let adapters = adapters(&params);
    let first = |mut trainer: PolicyTrainer<'_>| trainer.advance().unwrap().work;
    let whole = first(trainer(&params, &base, None, &file));
    let adapted = first(trainer(&params, &base, Some(&adapters), &file));
    assert_eq!(
        (whole.positions, whole.sequences, adapted.positions),
        (adapted.positions, 8, whole.positions)
    );

    let positions = whole.positions as usize;
    let horizons: Vec<_> = params.horizons().collect();
    let counts = target_counts(&file, &file.correct_rows(), &horizons);
    let products = params.n_layers as f64 * params.block_product_flops(positions)
        + params.unembedding_flops(counts.iter().sum());
    let of_adapters = 2.0 * (positions * adapters.store().num_elements()) as f64;
    // One pass of three less through the weights, three more through the adapters.
    let expected = whole.flops - products + 3.0 * of_adapters;
    assert!(
        (adapted.flops / expected - 1.0).abs() < 1e-12,
        "{adapted:?}"
    );
}

#[test]
fn a_resumed_run_of_adapters_equals_the_uninterrupted_one_bit_for_bit() {
    let (file, params) = (counting(40), tiny(2));
    let base = store(&params, DType::F32);
    let whole = adapters(&params);
    run(&mut trainer(&params, &base, Some(&whole), &file));
    for stop in [1, 7] {
        let dir = tempfile::tempdir().unwrap();
        let stopped = adapters(&params);
        let mut first = trainer(&params, &base, Some(&stopped), &file);
        for _ in 0..stop {
            first.advance().unwrap();
        }
        first.save(dir.path()).unwrap();
        let resumed = adapters(&params);
        let mut second = trainer(&params, &base, Some(&resumed), &file);
        second.restore(dir.path()).unwrap();
        run(&mut second);
        assert_eq!(bits(resumed.store()), bits(whole.store()), "step {stop}");
    }
}
