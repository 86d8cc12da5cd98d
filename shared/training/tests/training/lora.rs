//! Adapters in the policy trainer.

use std::sync::Arc;

use crate::policy::scorer;
use crate::ranks::among;
use crate::support::{bits, counting, settings, store, tiny};
use candle_core::{DType, Device};
use wmtp_data_sets::TokenFile;
use wmtp_model::{Adapters, Dropout, LoraSettings, LoraTarget, MtpModel, ParamStore, Params};
use wmtp_training::heads::target_counts;
use wmtp_training::inference::{head_cross_entropies, mean};
use wmtp_training::{PolicySettings, PolicyTrainer, Ranks, Room, Rows, Trainer, Weights};

fn adapters(params: &Params) -> Adapters {
    adapters_of(params, DType::F32)
}

fn adapters_of(params: &Params, dtype: DType) -> Adapters {
    let lora = LoraSettings {
        r: 2,
        alpha: 4.0,
        targets: LoraTarget::ALL.to_vec(),
    };
    Adapters::init(params, lora, 3, dtype, &Device::Cpu).unwrap()
}

fn trainer<'a>(
    params: &'a Params,
    base: &'a ParamStore,
    adapters: Option<&'a Adapters>,
    file: &'a TokenFile,
) -> PolicyTrainer<'a> {
    trainer_with(params, base, adapters, file, ("baseline", settings()))
}

fn trainer_with<'a>(
    params: &'a Params,
    base: &'a ParamStore,
    adapters: Option<&'a Adapters>,
    file: &'a TokenFile,
    of_run: (&str, PolicySettings),
) -> PolicyTrainer<'a> {
    trainer_among(&Ranks::alone(), params, base, adapters, file, of_run)
}

fn trainer_among<'a>(
    ranks: &Arc<Ranks>,
    params: &'a Params,
    base: &'a ParamStore,
    adapters: Option<&'a Adapters>,
    file: &'a TokenFile,
    (algo, settings): (&str, PolicySettings),
) -> PolicyTrainer<'a> {
    let rows = Rows::correct(file);
    let weights = Weights {
        params,
        store: base,
        adapters,
    };
    let scorer = scorer(algo, file);
    PolicyTrainer::new(weights, rows.clone(), rows, scorer, settings, ranks).unwrap()
}

/// The share of most recipes of others.
fn dropping() -> PolicySettings {
    let dropout = Dropout {
        share: 0.05,
        seed: 31,
    };
    PolicySettings {
        dropout: Some(dropout),
        ..settings()
    }
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
    for settings in [settings(), dropping()] {
        check_learning(&params, &base, &file, settings);
    }
}

/// Validations and merged weights know of no dropout.
fn check_learning(params: &Params, base: &ParamStore, file: &TokenFile, settings: PolicySettings) {
    let before = bits(base);
    let adapters = adapters(params);
    let of_run = ("baseline", settings);
    let mut trainer = trainer_with(params, base, Some(&adapters), file, of_run);
    let first = trainer.validate().unwrap().unwrap();
    run(&mut trainer);
    let last = trainer.validate().unwrap().unwrap();
    assert!(last < first - 0.2, "{first} {last}");
    assert_eq!(bits(base), before);

    // The merged weights are the model that was trained.
    let merged = adapters.merge(base).unwrap();
    let model = MtpModel::frozen(params, &merged).unwrap();
    let horizon = params.horizons().next().unwrap();
    let losses = head_cross_entropies(&model, file, &file.correct_rows(), 3, horizon).unwrap();
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
    for settings in [settings(), dropping()] {
        check_resuming(settings);
    }
}

fn check_resuming(settings: PolicySettings) {
    let (file, params) = (counting(40), tiny(2));
    let base = store(&params, DType::F32);
    let of_run = ("baseline", settings);
    let whole = adapters(&params);
    run(&mut trainer_with(
        &params,
        &base,
        Some(&whole),
        &file,
        of_run,
    ));
    for stop in [1, 7] {
        let dir = tempfile::tempdir().unwrap();
        let stopped = adapters(&params);
        let mut first = trainer_with(&params, &base, Some(&stopped), &file, of_run);
        for _ in 0..stop {
            first.advance().unwrap();
        }
        first.save(dir.path()).unwrap();
        let resumed = adapters(&params);
        let mut second = trainer_with(&params, &base, Some(&resumed), &file, of_run);
        second.restore(dir.path()).unwrap();
        run(&mut second);
        assert_eq!(bits(resumed.store()), bits(whole.store()), "step {stop}");
    }
}

/// The adapters after a run, bit by bit.
fn learned(threads: usize, settings: PolicySettings) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(|| {
        let (file, params) = (counting(24), tiny(2));
        let base = store(&params, DType::F32);
        let adapters = adapters(&params);
        let of_run = ("rho1", settings);
        run(&mut trainer_with(
            &params,
            &base,
            Some(&adapters),
            &file,
            of_run,
        ));
        bits(adapters.store())
    })
}

#[test]
fn threads_and_recomputation_change_no_bit_of_a_run_with_dropout_and_its_seed_does() {
    let expected = learned(1, dropping());
    assert!(learned(2, dropping()) == expected, "two threads");
    let nothing_kept = PolicySettings {
        activation_bytes: Some(0),
        ..dropping()
    };
    assert!(learned(2, nothing_kept) == expected, "nothing kept");
    assert!(learned(1, settings()) != expected, "no dropout");
    let seeded = dropping().dropout.map(|dropout| Dropout {
        seed: dropout.seed + 1,
        ..dropout
    });
    let seeded = PolicySettings {
        dropout: seeded,
        ..settings()
    };
    assert!(learned(1, seeded) != expected, "another seed");
}

/// A row's place within the step says what is dropped, not its place within a micro-batch; the cross-entropies that Rho-1
/// compares are those of the pass that drops.
#[test]
fn smaller_micro_batches_drop_the_same_and_change_no_more_than_rounding() {
    let (file, params) = (counting(40), tiny(2));
    let base = store(&params, DType::F64);
    for algo in ["baseline", "rho1"] {
        let steps = |room| {
            let adapters = adapters_of(&params, DType::F64);
            let mut settings = dropping();
            settings.optim.micro_batch_sequences = 8;
            settings.optim.room = room;
            let of_run = (algo, settings);
            let mut trainer = trainer_with(&params, &base, Some(&adapters), &file, of_run);
            let mut numbers = Vec::new();
            while !trainer.is_done() {
                let report = trainer.advance().unwrap();
                let of_step = ["train_loss", "grad_norm"].map(|name| report.metric(name).unwrap());
                numbers.push((of_step, report.halved.len()));
            }
            numbers
        };
        let calm = steps(Room::Bytes(u64::MAX));
        let tight = steps(Room::Bytes(ROOM));
        assert!(calm.iter().all(|(_, halved)| *halved == 0));
        assert_eq!(tight.iter().map(|(_, halved)| halved).sum::<usize>(), 2);
        for ((calm, _), (tight, _)) in calm.into_iter().zip(tight) {
            for (calm, tight) in calm.into_iter().zip(tight) {
                assert!(
                    (calm - tight).abs() < 1e-9 * calm.abs(),
                    "{algo}: {calm} {tight}"
                );
            }
        }
    }
}

/// Memory in which two sequences of [`counting`] at once fit, and four do not: they are reckoned at 861,504 bytes in f64 and
/// 1,344,960.
const ROOM: u64 = 1_100_000;

#[test]
fn ranks_drop_what_one_drops() {
    let (file, params) = (counting(24), tiny(2));
    let base = store(&params, DType::F64);
    let losses = |ranks: &Arc<Ranks>| {
        let adapters = adapters_of(&params, DType::F64);
        let mut settings = dropping();
        settings.optim.micro_batch_sequences = 2;
        let of_run = ("rho1", settings);
        let mut trainer = trainer_among(ranks, &params, &base, Some(&adapters), &file, of_run);
        let mut losses = Vec::new();
        while !trainer.is_done() {
            let report = trainer.advance().unwrap();
            losses.push(report.metric("train_loss").unwrap());
        }
        losses
    };
    let alone = losses(&Ranks::alone());
    for shared in among(2, losses) {
        for (found, expected) in shared.iter().zip(&alone) {
            let near = (found - expected).abs() < 1e-9 * expected.abs();
            assert!(near, "{found}, alone {expected}");
        }
        assert_eq!(shared.len(), alone.len());
    }
}
