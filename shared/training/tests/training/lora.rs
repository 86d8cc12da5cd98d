//! Adapters in the policy trainer.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::scorer;
use crate::ranks::among;
use crate::support::{bits, counting, files_of, go_on, settings, store, tiny};
use candle_core::{DType, Device, Var};
use wmtp_data_sets::{TokenFile, pad_batch};
use wmtp_model::{
    Adapters, Dropout, LoraSettings, LoraTarget, MtpModel, ParamStore, Params, Products,
};
use wmtp_recipe::Recipe;
use wmtp_training::heads::target_counts;
use wmtp_training::inference::{head_cross_entropies, mean};
use wmtp_training::session::{Adapted, bundle, load_adapted};
use wmtp_training::{
    Error, PolicySettings, PolicyTrainer, Ranks, Room, Rows, Shortage, Trainer, Weights,
};

fn lora(targets: &[LoraTarget]) -> LoraSettings {
    LoraSettings {
        r: 2,
        alpha: 4.0,
        targets: targets.to_vec(),
    }
}

fn adapters(params: &Params) -> Adapters {
    adapters_on(params, &LoraTarget::ALL)
}

fn adapters_of(params: &Params, dtype: DType) -> Adapters {
    Adapters::init(params, lora(&LoraTarget::ALL), 3, dtype, &Device::Cpu).unwrap()
}

fn adapters_on(params: &Params, targets: &[LoraTarget]) -> Adapters {
    Adapters::init(params, lora(targets), 3, DType::F32, &Device::Cpu).unwrap()
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
    let of_heads = counts.iter().map(|&targets| {
        params.block_product_flops(positions, targets) + params.unembedding_flops(targets)
    });
    let trunk = params.num_trunk_blocks() as f64 * params.block_product_flops(positions, positions);
    let products = trunk + of_heads.sum::<f64>();
    let of_adapters = adapters.product_flops(&params, positions, &counts);
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

/// A base in a file of this type: all of it in f32, and as a training through adapters on these matrices holds it.
fn loaded(params: &Params, stored: DType, targets: &[LoraTarget]) -> [ParamStore; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    store(params, stored).save(&path).unwrap();
    let (lora, place) = (lora(targets), Device::Cpu);
    [
        ParamStore::load(&path, params, DType::F32, &place).unwrap(),
        ParamStore::load_adapted(&path, params, &lora, DType::F32, &place).unwrap(),
    ]
}

/// Everything that a training leaves behind: its state before the last step, the adapters, and the merged model.
fn left_behind(
    params: &Params,
    base: &ParamStore,
    targets: &[LoraTarget],
    settings: PolicySettings,
) -> [BTreeMap<String, Vec<u8>>; 3] {
    let file = counting(40);
    let stopped = adapters_on(params, targets);
    let mut first = trainer_with(params, base, Some(&stopped), &file, ("baseline", settings));
    let saved = go_on(&mut first, None, 3);
    // The rest as another process would do it.
    let resumed = adapters_on(params, targets);
    let mut second = trainer_with(params, base, Some(&resumed), &file, ("baseline", settings));
    let last = second.total_steps() - 1;
    let late = go_on(&mut second, Some(&saved), last);
    run(&mut second);
    let export = tempfile::tempdir().unwrap();
    let path = |name: &str| export.path().join(name);
    resumed.save(&path("adapter.safetensors")).unwrap();
    let merged = resumed.merge(base).unwrap();
    merged.save(&path("model.safetensors")).unwrap();
    second.metrics().write(&path("metrics.jsonl")).unwrap();
    [saved.path(), late.path(), export.path()].map(files_of)
}

#[test]
fn a_base_that_keeps_the_type_of_its_file_trains_and_exports_the_same_bytes() {
    const SOME: [LoraTarget; 3] = [LoraTarget::Wv, LoraTarget::Wo, LoraTarget::W2];
    let params = tiny(2);
    for (stored, targets, products, activation_bytes) in [
        (DType::BF16, &LoraTarget::ALL[..], Products::F32, None),
        (DType::BF16, &LoraTarget::ALL, Products::Bf16, Some(0)),
        (DType::BF16, &SOME, Products::F32, Some(0)),
        (DType::BF16, &SOME[..1], Products::Bf16, None),
        (DType::F16, &LoraTarget::ALL, Products::F32, None),
    ] {
        let [wide, kept] = loaded(&params, stored, targets);
        let is_kept = |(_, var): (&str, &Var)| var.dtype() == stored;
        assert!(kept.iter().any(is_kept) && !wide.iter().any(is_kept));
        let settings = PolicySettings {
            products,
            activation_bytes,
            ..settings()
        };
        let found = left_behind(&params, &kept, targets, settings);
        let expected = left_behind(&params, &wide, targets, settings);
        assert!(
            found == expected,
            "{stored:?}, {targets:?}, {products:?}, {activation_bytes:?}"
        );
    }
}

#[test]
fn a_recipe_of_adapters_keeps_the_matrices_of_a_bf16_bundle_and_one_of_all_weights_widens_them() {
    let params = tiny(2);
    let dir = tempfile::tempdir().unwrap();
    for path in [bundle::WEIGHTS, bundle::PARAMS] {
        let folder = dir.path().join(path);
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    }
    params.save(&dir.path().join(bundle::PARAMS)).unwrap();
    let stored = store(&params, DType::BF16);
    stored.save(&dir.path().join(bundle::WEIGHTS)).unwrap();
    let bytes = |r: usize| -> usize {
        let mut recipe = Recipe::default();
        recipe.lora.r = r;
        let (_, store) = load_adapted(dir.path(), &recipe, Adapted::Policy, &Device::Cpu).unwrap();
        let of = |(_, var): (&str, &Var)| var.elem_count() * var.dtype().size_in_bytes();
        store.iter().map(of).sum()
    };
    let all = params.num_params();
    // Embeddings, unembedding and the last norm go through no adapter.
    let outside = 2 * params.vocab_size * params.dim + params.dim;
    assert_eq!(bytes(0), 4 * all);
    assert_eq!(bytes(2), 2 * (all - outside) + 4 * outside);
}

#[test]
fn the_reckoned_memory_of_a_step_knows_that_blocks_under_adapters_pack_no_weights() {
    let (file, params) = (counting(3), tiny(2));
    let [wide, kept] = loaded(&params, DType::BF16, &LoraTarget::ALL);
    let needed = |base: &ParamStore, targets: &[LoraTarget], activation_bytes| {
        let adapters = adapters_on(&params, targets);
        let mut settings = PolicySettings {
            activation_bytes,
            ..settings()
        };
        settings.optim.micro_batch_sequences = 1;
        settings.optim.room = Room::Bytes(1);
        let mut trainer = trainer_with(
            &params,
            base,
            Some(&adapters),
            &file,
            ("baseline", settings),
        );
        match trainer.advance() {
            Err(Error::NoRoom(Shortage::MicroBatch { needed, .. })) => needed,
            other => panic!("{other:?}"),
        }
    };
    // What a kept block adds, of which half as much again is reckoned with.
    let of_block = |base, targets: &[LoraTarget]| {
        let added = needed(base, targets, None) - needed(base, targets, Some(0));
        added / 3 * 2 / params.num_trunk_blocks() as u64
    };
    let longest = pad_batch(&file, &[2]).ids.len();
    let activations = params.block_activation_bytes(longest, DType::F32) as u64;
    assert_eq!(of_block(&wide, &LoraTarget::ALL), activations);
    assert_eq!(of_block(&kept, &LoraTarget::ALL), activations);
    let (dim, ffn) = (params.dim as u64, params.ffn_dim() as u64);
    let feed_forward = 4 * (dim + 3 * dim * ffn);
    let beside_it = LoraTarget::ALL.split_at(4).0;
    assert_eq!(of_block(&wide, beside_it), activations + feed_forward);
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
