//! The value trainer on a tiny model.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::support::{bits, counting, counting_to, files_of, go_on, optim, stops, store, tiny};
use candle_core::{DType, Device, Tensor};
use wmtp_artifacts::fault;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Exit, JobError};
use wmtp_model::{
    Adapters, HeadKind, LoraSettings, LoraTarget, ParamStore, Params, Products, Rotary, ValueModel,
};
use wmtp_tokens::TokenizedSample;
use wmtp_training::{
    Judged, Objective, OptimSettings, Ranks, Room, Rows, Side, StepReport, Trainer,
    ValueParameters, ValueQuality, ValueSettings, ValueTrainer, balanced_rows, session,
};

pub(crate) fn settings(objective: Objective, head: HeadKind, lr_trunk: f64) -> ValueSettings {
    ValueSettings {
        objective,
        head,
        lr_trunk,
        lr_head: 1e-2,
        optim: OptimSettings {
            eval_every_steps: 5,
            ..optim()
        },
        epochs: 12.0,
        batch_sequences: 8,
        products: Products::F32,
        activation_bytes: None,
        order_seed: 3,
    }
}

fn parameters(params: &Params, objective: Objective, head: HeadKind) -> ValueParameters {
    parameters_in(DType::F32, params, objective, head)
}

pub(crate) fn parameters_in(
    dtype: DType,
    params: &Params,
    objective: Objective,
    head: HeadKind,
) -> ValueParameters {
    let base = store(params, dtype);
    let (seed, bias) = (11, objective.bias());
    ValueParameters {
        trunk: ParamStore::value_trunk_from(params, &base).unwrap(),
        adapters: None,
        head: ParamStore::init_value_head(head, params, seed, bias, dtype, &Device::Cpu).unwrap(),
    }
}

/// The same with adapters upon the trunk, where they are wanted.
pub(crate) fn adapted(store: ValueParameters, params: &Params, wanted: bool) -> ValueParameters {
    let dtype = store.trunk.dtype();
    let made = || Adapters::init_value_trunk(params, lora(), 3, dtype, &Device::Cpu).unwrap();
    ValueParameters {
        adapters: wanted.then(made),
        ..store
    }
}

fn lora() -> LoraSettings {
    LoraSettings {
        r: 2,
        alpha: 4.0,
        targets: LoraTarget::ALL.to_vec(),
    }
}

fn trainer<'a>(
    params: &'a Params,
    store: &'a ValueParameters,
    file: &'a TokenFile,
    settings: ValueSettings,
) -> ValueTrainer<'a> {
    let rows = || Rows {
        file,
        rows: file.labelled_rows(),
    };
    ValueTrainer::new(params, store, rows(), rows(), settings, &Ranks::alone()).unwrap()
}

fn quality(trainer: &mut ValueTrainer<'_>, file: &TokenFile) -> ValueQuality {
    let rows = file.labelled_rows();
    let judged: Vec<Judged> = rows
        .iter()
        .zip(trainer.score(Side::Train, &rows).unwrap().of_rows)
        .map(|(&row, values)| {
            assert_eq!(values.len(), file.row(row).response_len());
            let correct = file.row(row).is_correct == Some(true);
            Judged {
                problem: "p".to_owned(),
                correct,
                values,
            }
        })
        .collect();
    ValueQuality::of(&judged)
}

#[test]
fn values_learn_to_tell_right_from_wrong() {
    let file = counting(60);
    let params = tiny(2);
    for (objective, head) in [
        (Objective::MseMc, HeadKind::Linear),
        (Objective::Bce, HeadKind::Mlp),
    ] {
        let store = parameters(&params, objective, head);
        let settings = ValueSettings {
            epochs: 80.0,
            ..settings(objective, head, 5e-3)
        };
        let mut trainer = trainer(&params, &store, &file, settings);
        let before = trainer.validate().unwrap().unwrap();
        while trainer.step() < trainer.total_steps() {
            trainer.advance().unwrap();
        }
        trainer.finish().unwrap();
        let quality = quality(&mut trainer, &file);
        assert!(trainer.validate().unwrap().unwrap() < before);
        assert!(
            quality.pairwise_accuracy.unwrap() > 0.8,
            "{objective:?}: {quality:?}"
        );
        assert!(
            quality.explained_variance.unwrap() > 0.05,
            "{objective:?}: {quality:?}"
        );
        assert!(quality.std_value.unwrap() > 0.0);
    }
}

#[test]
fn threads_change_no_bit_of_values_and_advantages() {
    // Rows of several tasks.
    let file = counting_to(12, |row| 60 + row);
    let params = tiny(2);
    for (objective, head) in [
        (Objective::MseMc, HeadKind::Linear),
        (Objective::Bce, HeadKind::Mlp),
    ] {
        let learned = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let store = parameters(&params, objective, head);
                let settings = ValueSettings {
                    epochs: 3.0,
                    ..settings(objective, head, 1e-3)
                };
                let mut trainer = trainer(&params, &store, &file, settings);
                while !trainer.is_done() {
                    trainer.advance().unwrap();
                }
                let scored = trainer.score(Side::Train, &file.labelled_rows()).unwrap();
                let values = scored.of_rows.concat().into_iter().map(f64::to_bits);
                let curves: Vec<_> = trainer.metrics().iter().map(str::to_owned).collect();
                (
                    [bits(&store.trunk), bits(&store.head)],
                    values.collect::<Vec<_>>(),
                    curves,
                )
            })
        };
        let expected = learned(1);
        for threads in [2, 3] {
            assert!(learned(threads) == expected, "{threads} threads, {head:?}");
        }
    }
}

#[test]
fn a_frozen_trunk_stays_as_it_was() {
    let file = counting(16);
    let params = tiny(2);
    let store = parameters(&params, Objective::MseMc, HeadKind::Linear);
    let embedding = || {
        let tensor = store.trunk.get("tok_embeddings.weight").unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let before = embedding();
    let mut trainer = trainer(
        &params,
        &store,
        &file,
        settings(Objective::MseMc, HeadKind::Linear, 0.0),
    );
    let first = trainer.validate().unwrap().unwrap();
    while trainer.step() < trainer.total_steps() {
        trainer.advance().unwrap();
    }
    assert_eq!(embedding(), before);
    assert!(trainer.validate().unwrap().unwrap() < first);
}

/// The weights of the trunk as they are published.
fn published(store: &ValueParameters) -> ParamStore {
    match &store.adapters {
        Some(adapters) => adapters.merge(&store.trunk).unwrap(),
        None => store.trunk.clone(),
    }
}

#[test]
fn a_trunk_that_keeps_the_type_of_its_file_learns_and_is_merged_to_the_same_bits() {
    let (file, params) = (counting(24), tiny(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    store(&params, DType::BF16).save(&path).unwrap();
    let learned = |base: &ParamStore| {
        let plain = parameters(&params, Objective::MseMc, HeadKind::Mlp);
        let trunk = ParamStore::value_trunk_from(&params, base).unwrap();
        let store = adapted(ValueParameters { trunk, ..plain }, &params, true);
        let mut trainer = trainer(
            &params,
            &store,
            &file,
            settings(Objective::MseMc, HeadKind::Mlp, 1e-3),
        );
        while !trainer.is_done() {
            trainer.advance().unwrap();
        }
        let adapters = store.adapters.as_ref().unwrap();
        let merged = adapters.merge(&store.trunk).unwrap();
        let stores = [adapters.store(), &store.head, &merged];
        (
            stores.map(bits),
            store
                .trunk
                .iter()
                .any(|(_, var)| var.dtype() == DType::BF16),
        )
    };
    let wide = ParamStore::load(&path, &params, DType::F32, &Device::Cpu).unwrap();
    let kept = ParamStore::load_adapted(&path, &params, &lora(), DType::F32, &Device::Cpu).unwrap();
    let ((expected, is_wide_kept), (found, is_kept)) = (learned(&wide), learned(&kept));
    assert!(is_kept && !is_wide_kept);
    assert!(found == expected);
}

#[test]
fn adapters_learn_while_the_trunk_keeps_every_bit() {
    let file = counting(60);
    let params = tiny(2);
    let (objective, head) = (Objective::Bce, HeadKind::Mlp);
    let store = adapted(parameters(&params, objective, head), &params, true);
    let before = bits(&store.trunk);
    let settings = ValueSettings {
        epochs: 80.0,
        ..settings(objective, head, 1e-2)
    };
    let mut trainer = trainer(&params, &store, &file, settings);
    let first = trainer.validate().unwrap().unwrap();
    while trainer.step() < trainer.total_steps() {
        trainer.advance().unwrap();
    }
    trainer.finish().unwrap();
    let last = trainer.validate().unwrap().unwrap();
    let quality = quality(&mut trainer, &file);
    assert!(
        last < first - 0.1 && quality.pairwise_accuracy.unwrap() > 0.8,
        "{first} {last} {quality:?}"
    );
    assert_eq!(bits(&store.trunk), before);

    // The merged weights are the model that was trained, bit for bit.
    let merged = published(&store);
    let model = ValueModel::frozen(&params, head, &merged, &store.head).unwrap();
    let row = file.row(5);
    let ids = Tensor::from_slice(row.ids, (1, row.ids.len()), &Device::Cpu).unwrap();
    let values = model.values(&ids).unwrap().flatten_all().unwrap();
    let values: Vec<f64> = values.to_vec1::<f32>().unwrap()[row.prompt_len - 1..row.ids.len() - 1]
        .iter()
        .map(|&output| objective.value(f64::from(output)))
        .collect();
    assert_eq!(trainer.score(Side::Train, &[5]).unwrap().of_rows, [values]);
}

/// Everything that a finished run leaves: its last state, the published weights and the values that they give.
fn finished(
    trainer: &mut ValueTrainer<'_>,
    store: &ValueParameters,
) -> (BTreeMap<String, Vec<u8>>, Vec<Vec<f64>>) {
    while trainer.step() < trainer.total_steps() {
        trainer.advance().unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    trainer.save(dir.path()).unwrap();
    trainer.finish().unwrap();
    published(store).save(&dir.path().join("trunk")).unwrap();
    store.head.save(&dir.path().join("head")).unwrap();
    let files = files_of(dir.path());
    assert_eq!(files.len(), 7);
    (files, trainer.score(Side::Train, &[0, 3]).unwrap().of_rows)
}

#[test]
fn a_run_stopped_anywhere_any_number_of_times_equals_the_uninterrupted_one_bit_for_bit() {
    let file = counting(24);
    let params = tiny(2);
    for (objective, head, lr_trunk, with_adapters) in [
        (Objective::MseMc, HeadKind::Linear, 5e-3, false),
        (Objective::Bce, HeadKind::Mlp, 0.0, false),
        (Objective::MseMc, HeadKind::Mlp, 5e-3, true),
    ] {
        let settings = settings(objective, head, lr_trunk);
        let parameters = || {
            let store = parameters(&params, objective, head);
            adapted(store, &params, with_adapters)
        };
        let whole_store = parameters();
        let mut whole = trainer(&params, &whole_store, &file, settings);
        let expected = finished(&mut whole, &whole_store);
        for seed in [1, 2, 3] {
            let stops = stops(seed, whole.total_steps());
            let mut saved = None;
            for &stop in &stops {
                let store = parameters();
                let mut leg = trainer(&params, &store, &file, settings);
                saved = Some(go_on(&mut leg, saved.as_ref(), stop));
            }
            let store = parameters();
            let mut last = trainer(&params, &store, &file, settings);
            last.restore(saved.unwrap().path()).unwrap();
            let found = finished(&mut last, &store);
            assert!(
                found == expected,
                "{objective:?}, seed {seed}, stopped after {stops:?}"
            );
        }
    }
}

#[test]
fn recomputation_changes_no_bit() {
    let file = counting(24);
    let params = tiny(2);
    for (head, with_adapters) in [
        (HeadKind::Linear, false),
        (HeadKind::Mlp, false),
        (HeadKind::Linear, true),
    ] {
        let of = |activation_bytes| {
            let settings = ValueSettings {
                activation_bytes,
                ..settings(Objective::MseMc, head, 5e-3)
            };
            let store = parameters(&params, Objective::MseMc, head);
            let store = adapted(store, &params, with_adapters);
            finished(&mut trainer(&params, &store, &file, settings), &store)
        };
        let expected = of(None);
        // Room for one of the two blocks of a micro-batch of three short rows, and for none.
        let tensors = params.tensor_shapes().into_iter();
        let of_block = tensors.filter(|(name, _)| name.starts_with("layers.0."));
        let weights: usize = of_block
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let one_block = params.block_activation_bytes(3 * 16, DType::F32) + 4 * weights;
        for bytes in [one_block, 0] {
            assert!(of(Some(bytes)) == expected, "{head:?}, {bytes} bytes");
        }
    }
}

#[test]
fn less_memory_for_activations_lets_more_sequences_through_at_once() {
    let file = counting(24);
    let params = Params {
        n_layers: 14,
        ..tiny(2)
    };
    let head = HeadKind::Linear;
    let whole = parameters(&params, Objective::MseMc, head);
    let with_adapters = adapted(parameters(&params, Objective::MseMc, head), &params, true);
    // How often a first step is halved in so much room.
    let halved = |store: &ValueParameters, activation_bytes, lr_trunk, bytes| {
        let settings = ValueSettings {
            activation_bytes,
            optim: OptimSettings {
                micro_batch_sequences: 8,
                room: Room::Bytes(bytes),
                ..optim()
            },
            ..settings(Objective::MseMc, head, lr_trunk)
        };
        let mut trainer = trainer(&params, store, &file, settings);
        trainer.advance().map(|report| report.halved.len()).ok()
    };
    // The least room in which nothing is halved.
    let needed = |store: &ValueParameters, activation_bytes, lr_trunk| {
        let (mut too_little, mut enough) = (0_u64, 1 << 30);
        while enough - too_little > 1 {
            let middle = u64::midpoint(too_little, enough);
            if halved(store, activation_bytes, lr_trunk, middle) == Some(0) {
                enough = middle;
            } else {
                too_little = middle;
            }
        }
        enough
    };
    let all = needed(&whole, None, 1e-3);
    let none = needed(&whole, Some(0), 1e-3);
    let frozen = needed(&whole, None, 0.0);
    let of_block = params.block_activation_bytes(8 * 8, DType::F32) as u64;
    // Twelve trunk blocks; half as much again is reckoned for what no formula knows.
    assert!(
        all - none >= 12 * of_block * 3 / 2,
        "{all} and {none}, {of_block} each"
    );
    assert!(frozen < none, "{frozen} and {none}");
    assert!(halved(&whole, None, 1e-3, none).is_some_and(|times| times > 0));
    // Adapters save gradients, moments and packed weights of the trunk, but no activations.
    let (kept, again) = (
        needed(&with_adapters, None, 1e-3),
        needed(&with_adapters, Some(0), 1e-3),
    );
    let trunk = 4 * whole.trunk.num_elements() as u64;
    assert!(all - kept >= 4 * trunk, "{all} and {kept}, {trunk}");
    assert!(kept - again >= 12 * of_block * 3 / 2, "{kept} and {again}");
    assert!(again > frozen, "{again} and {frozen}");
}

#[test]
fn scoring_piece_by_piece_gives_what_all_rows_at_once_do_and_ends_between_two() {
    let file = counting(120);
    let params = tiny(2);
    let (objective, head) = (Objective::Bce, HeadKind::Mlp);
    let store = parameters(&params, objective, head);
    let mut trainer = trainer(&params, &store, &file, settings(objective, head, 5e-3));
    while trainer.step() < 3 {
        trainer.advance().unwrap();
    }
    // Not in their order, and 40 batches of three: three pieces.
    let rows: Vec<usize> = (0..120).map(|index| index * 7 % 120).collect();
    assert_eq!(trainer.pieces(Side::Train, &rows).len(), 3);
    let goes_on = || ControlFlow::Continue(());
    let scored = session::score_in_pieces(&mut trainer, Side::Train, &rows, goes_on).unwrap();
    assert!(scored.of_rows == trainer.score(Side::Train, &rows).unwrap().of_rows);

    let asked = Cell::new(0);
    let ends = || {
        asked.set(asked.get() + 1);
        if asked.get() == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let error = session::score_in_pieces(&mut trainer, Side::Train, &rows, ends).unwrap_err();
    assert_eq!(error.exit(), Exit::Preempted);
    assert_eq!(asked.get(), 3);
}

#[test]
fn rows_longer_than_the_positions_of_models_are_bad_data() {
    assert_eq!(wmtp_recipe::MAX_LENGTH, Rotary::POSITIONS);
    let params = tiny(2);
    let short = counting(8);
    let of_length = |length: usize| {
        let mut file = counting(8);
        let ids = vec![3; length];
        file.push(&TokenizedSample { ids, prompt_len: 3 }, Some(true));
        file
    };
    let store = parameters(&params, Objective::MseMc, HeadKind::Linear);
    let made = |train: &TokenFile, validation: &TokenFile| {
        let settings = settings(Objective::MseMc, HeadKind::Linear, 0.0);
        let rows = |file| Rows {
            file,
            rows: vec![0, 1],
        };
        let (train, validation) = (rows(train), rows(validation));
        let made = ValueTrainer::new(
            &params,
            &store,
            train,
            validation,
            settings,
            &Ranks::alone(),
        );
        made.map(drop)
    };
    made(&of_length(4096), &short).unwrap();
    for (train, validation, split) in [
        (of_length(4097), short.clone(), "training"),
        (short.clone(), of_length(5000), "validation"),
    ] {
        let error = made(&train, &validation).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(split) && text.contains("at most 4096"),
            "{text}"
        );
        assert_eq!(JobError::from(error).exit(), Exit::BadInput);
    }
}

#[test]
fn a_step_goes_through_a_frozen_trunk_once_and_through_one_that_learns_three_times() {
    let (file, params) = (counting(16), tiny(2));
    let store = parameters(&params, Objective::MseMc, HeadKind::Linear);
    let flops = |lr_trunk| {
        let settings = settings(Objective::MseMc, HeadKind::Linear, lr_trunk);
        let mut trainer = trainer(&params, &store, &file, settings);
        trainer.advance().unwrap().work.flops
    };
    let (learning, frozen) = (flops(1e-3), flops(0.0));
    assert!(frozen > 0.0);
    assert!((learning / frozen - 3.0).abs() < 1e-12);
}

#[test]
fn a_step_computes_no_gradient_of_the_weights_under_adapters() {
    let (file, params) = (counting(16), tiny(2));
    let first = |with_adapters| {
        let store = parameters(&params, Objective::MseMc, HeadKind::Linear);
        let store = adapted(store, &params, with_adapters);
        let settings = settings(Objective::MseMc, HeadKind::Linear, 1e-3);
        let work = trainer(&params, &store, &file, settings)
            .advance()
            .unwrap()
            .work;
        let adapters = store.adapters.map_or(0, |one| one.store().num_elements());
        (work, adapters)
    };
    let ((whole, _), (work, adapters)) = (first(false), first(true));
    let positions = work.positions as usize;
    let products =
        params.num_trunk_blocks() as f64 * params.block_product_flops(positions, positions);
    let of_adapters = 2.0 * (positions * adapters) as f64;
    // One pass of three less through the weights, three more through the adapters.
    let expected = whole.flops - products + 3.0 * of_adapters;
    assert!(adapters > 0 && (work.flops / expected - 1.0).abs() < 1e-12);
}

#[test]
fn out_of_memory_in_a_pass_without_gradients_halves_what_passes_at_once_and_loses_no_number() {
    let file = counting(40);
    let params = tiny(1);
    let (objective, head) = (Objective::Bce, HeadKind::Mlp);
    let mut settings = settings(objective, head, 5e-3);
    settings.optim.micro_batch_sequences = 4;
    let run = |in_training: &str, in_scoring: &str| {
        let store = parameters_in(DType::F64, &params, objective, head);
        let mut trainer = trainer(&params, &store, &file, settings);
        let planned = fault::plan(in_training);
        let reports: Vec<StepReport> = (0..trainer.total_steps())
            .map(|_| trainer.advance().unwrap())
            .collect();
        let best = trainer.finish().unwrap();
        drop(planned);
        let _planned = fault::plan(in_scoring);
        let scored = trainer.score(Side::Train, &[5, 0, 11, 3, 8]).unwrap();
        (reports, best, scored)
    };
    let (calm, calm_best, calm_scored) = run("", "");
    // The last batch of the first validation, and the second of the scores.
    let (tight, best, scored) = run("train:inference:10", "train:inference:2");
    assert_eq!(best, calm_best);
    for (number, (calm, tight)) in calm.iter().zip(&tight).enumerate() {
        let halved: Vec<_> = tight.halved.iter().map(|one| (one.from, one.to)).collect();
        assert_eq!(
            halved,
            if number == 4 {
                vec![(4, 2)]
            } else {
                Vec::new()
            }
        );
        for (name, calm) in &calm.metrics {
            let tight = tight.metric(name).unwrap();
            assert!(
                (calm - tight).abs() <= 1e-9 * calm.abs(),
                "{name}: {calm} {tight}"
            );
        }
    }
    assert!(calm_scored.halved.is_empty());
    assert_eq!((scored.halved[0].from, scored.halved[0].to), (2, 1));
    let (calm, tight) = (calm_scored.of_rows.concat(), scored.of_rows.concat());
    assert_eq!(calm.len(), tight.len());
    assert!(
        calm.iter()
            .zip(&tight)
            .all(|(calm, tight)| (calm - tight).abs() < 1e-9)
    );
}

#[test]
fn balanced_rows_hold_both_labels_of_each_problem_alike() {
    let file = counting(40);
    let problems: Vec<String> = (0..40).map(|row| format!("p{}", row / 10)).collect();
    let rows = balanced_rows(&file, &problems, 1);
    for problem in ["p0", "p1", "p2", "p3"] {
        let of = |correct| {
            let matching = |&&row: &&usize| {
                problems[row] == problem && file.row(row).is_correct == Some(correct)
            };
            rows.iter().filter(matching).count()
        };
        assert_eq!(of(true), of(false));
        assert!(of(true) >= 2);
    }
    assert_ne!(rows, balanced_rows(&file, &problems, 2));
    let single: Vec<String> = (0..40).map(|row| format!("q{row}")).collect();
    assert_eq!(balanced_rows(&file, &single, 1), file.labelled_rows());
}
