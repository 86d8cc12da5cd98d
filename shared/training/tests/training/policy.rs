//! The policy trainer on a tiny model.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{
    bits, counting, counting_to, files_of, go_on, settings, some_scores, stops, store, tiny,
};
use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use wmtp_artifacts::fault;
use wmtp_data_sets::{TokenFile, pad_batch};
use wmtp_model::{Horizon, MtpModel, ParamStore, Params, Products};
use wmtp_training::heads::{HeadTargets, Learner, StepLoss, Target, accumulate, target_counts};
use wmtp_training::inference::{head_cross_entropies, mean};
use wmtp_training::optimizer::{Gradients, Parameter, parameters};
use wmtp_training::scorer::{StepRow, StepStats};
use wmtp_training::{
    EarlyStop, Error, PolicySettings, PolicyTrainer, Ranks, Rho1Scorer, Rho1Settings,
    Rho1Weighting, Room, Rows, Scorer, Shortage, StepReport, StepScorer, Trainer, Update, Weights,
};
use wmtp_weighting::rho1::{ExcessMode, Selection};
use wmtp_weighting::{WeightSettings, Whitening};

const WHITENING: Whitening = Whitening {
    mean: 0.1,
    std: 0.7,
};

pub(crate) fn scorer(name: &str, file: &TokenFile) -> Box<dyn Scorer> {
    let weights = WeightSettings::default();
    let scores = Arc::new(some_scores(file));
    let seeds: BTreeMap<usize, u64> = (0..file.len()).map(|row| (row, row as u64)).collect();
    let rho1 = Rho1Settings {
        mode: ExcessMode::SignedExcess,
        weighting: Rho1Weighting::Continuous,
        selection: Selection {
            ratio: 0.6,
            hard: true,
        },
        min_ce_diff: 0.01,
    };
    let paper = Rho1Settings {
        weighting: Rho1Weighting::Topk,
        ..rho1
    };
    match name {
        "baseline" => Box::new(StepScorer::baseline(weights)),
        "verifiable" => Box::new(StepScorer::verifiable(scores, WHITENING, weights)),
        "random_matched" => Box::new(StepScorer::random_matched(scores, WHITENING, weights, 3)),
        "shuffled" => Box::new(StepScorer::shuffled(scores, WHITENING, weights, seeds)),
        "rho1" => Box::new(Rho1Scorer::new(scores, rho1, weights)),
        "rho1_paper" => Box::new(Rho1Scorer::new(scores, paper, weights)),
        other => panic!("no scorer {other}"),
    }
}

/// Loss and gradients of some rows in micro-batches of the given size.
fn loss_and_gradients(
    params: &Params,
    store: &ParamStore,
    file: &TokenFile,
    rows: &[usize],
    micro: usize,
) -> (StepLoss, Vec<Parameter>, Gradients) {
    let model = MtpModel::new(params, store).unwrap();
    let parameters = parameters(store, 1.0);
    let mut gradients = Gradients::zeros(&parameters).unwrap();
    let horizons: Vec<Horizon> = params.horizons().collect();
    let mut loss = StepLoss::new(&target_counts(file, rows, &horizons));
    let mut scorer = scorer("verifiable", file);
    let targets = |&row: &usize| StepRow {
        row,
        targets: file.row(row).response_len(),
    };
    scorer
        .begin_step(0, &rows.iter().map(targets).collect::<Vec<_>>())
        .unwrap();
    let mut first_slot = 0;
    for chunk in rows.chunks(micro) {
        let batch = pad_batch(file, chunk);
        let learner = Learner {
            model: &model,
            parameters: &parameters,
            activation_bytes: None,
            dropout: None,
        };
        let finite = accumulate(
            &learner,
            &batch,
            first_slot,
            scorer.as_mut(),
            &mut loss,
            &mut gradients,
        );
        assert!(finite.unwrap());
        first_slot += chunk.len();
    }
    (loss, parameters, gradients)
}

pub(crate) fn trainer<'a>(
    params: &'a Params,
    store: &'a ParamStore,
    file: &'a TokenFile,
    algo: &str,
    settings: PolicySettings,
) -> PolicyTrainer<'a> {
    let validation = Rows {
        file,
        rows: file.correct_rows().into_iter().take(9).collect(),
    };
    let weights = Weights {
        params,
        store,
        adapters: None,
    };
    let rows = Rows::correct(file);
    PolicyTrainer::new(
        weights,
        rows,
        validation,
        scorer(algo, file),
        settings,
        &Ranks::alone(),
    )
    .unwrap()
}

#[test]
fn every_trainable_tensor_gets_a_gradient_that_matches_finite_differences() {
    let params = tiny(2);
    let store = store(&params, DType::F64);
    let file = counting(6);
    let rows = [4, 0, 1];
    let (_, parameters, gradients) = loss_and_gradients(&params, &store, &file, &rows, 2);
    assert_eq!(parameters.len(), store.len());
    let loss_at = |parameter: &Parameter, values: &[f64]| {
        let moved = Tensor::from_slice(values, parameter.var.dims(), &Device::Cpu).unwrap();
        parameter.var.set(&moved).unwrap();
        loss_and_gradients(&params, &store, &file, &rows, 3)
            .0
            .weighted()
    };
    let h = 1e-5;
    for (index, parameter) in parameters.iter().enumerate() {
        let found = gradients.get(index).clone().into_f64().unwrap();
        assert!(
            found.iter().any(|x| *x != 0.0),
            "{} has no gradient",
            parameter.name
        );
        let values = parameter
            .var
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        let largest = (0..found.len()).max_by(|&a, &b| found[a].abs().total_cmp(&found[b].abs()));
        for element in [largest.unwrap(), found.len() / 3, found.len() - 1] {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[element] += by;
                values
            };
            let slope =
                (loss_at(parameter, &moved(h)) - loss_at(parameter, &moved(-h))) / (2.0 * h);
            let error = (slope - found[element]).abs();
            let name = &parameter.name;
            assert!(
                error < 1e-8 + 1e-6 * slope.abs(),
                "{name}[{element}]: {} {slope}",
                found[element]
            );
        }
        loss_at(parameter, &values);
    }
}

#[test]
fn the_divisor_is_the_number_of_targets_of_the_whole_step() {
    let params = tiny(2);
    let store = store(&params, DType::F64);
    let file = counting(9);
    let rows = [0, 5, 2, 8];
    let (loss, _, gradients) = loss_and_gradients(&params, &store, &file, &rows, 4);
    let targets: usize = rows.iter().map(|&row| file.row(row).response_len()).sum();
    assert_eq!(
        loss.heads.iter().map(|head| head.count).collect::<Vec<_>>(),
        [targets, targets]
    );
    let by_hand: f64 = loss
        .heads
        .iter()
        .map(|head| head.weighted / targets as f64)
        .sum();
    assert!((loss.weighted() - by_hand / 2.0).abs() < 1e-12);

    let (split, parameters, split_gradients) = loss_and_gradients(&params, &store, &file, &rows, 1);
    assert!((split.weighted() - loss.weighted()).abs() < 1e-12);
    for (index, parameter) in parameters.iter().enumerate() {
        let pairs = gradients
            .get(index)
            .clone()
            .into_f64()
            .unwrap()
            .into_iter()
            .zip(split_gradients.get(index).clone().into_f64().unwrap());
        for (one, other) in pairs {
            assert!((one - other).abs() < 1e-12, "{}", parameter.name);
        }
    }
}

#[test]
fn heads_predict_from_within_the_prompt_and_never_before_the_sequence() {
    let mut file = TokenFile::default();
    let ids = vec![1, 5, 6, 7, 2];
    file.push(
        &wmtp_tokens::TokenizedSample { ids, prompt_len: 1 },
        Some(true),
    );
    let batch = pad_batch(&file, &[0]);
    let third = HeadTargets::of(&batch, Horizon::new(3).unwrap(), 4);
    assert_eq!((third.sources, third.ids), (vec![0, 1], vec![7, 2]));
    assert_eq!(
        third
            .targets
            .iter()
            .map(|t| (t.slot, t.index))
            .collect::<Vec<_>>(),
        [(4, 2), (4, 3)]
    );
    let horizons: Vec<Horizon> = (1..=5).filter_map(Horizon::new).collect();
    assert_eq!(target_counts(&file, &[0], &horizons), [4, 3, 2, 1, 0]);
}

#[test]
fn heads_without_targets_do_not_enter_the_mean() {
    let mut loss = StepLoss::new(&[2, 0]);
    loss.heads[0].weighted = 3.0;
    loss.heads[0].unweighted = 5.0;
    assert!((loss.weighted() - 1.5).abs() < 1e-15);
    assert!((loss.unweighted() - 2.5).abs() < 1e-15);
}

#[test]
fn training_lowers_the_loss_for_every_algorithm() {
    let file = counting(40);
    for algo in ALGORITHMS {
        let params = tiny(2);
        let store = store(&params, DType::F32);
        let settings = PolicySettings {
            epochs: 8.0,
            ..settings()
        };
        let mut trainer = trainer(&params, &store, &file, algo, settings);
        let before = trainer.validate().unwrap().unwrap();
        let first = trainer
            .advance()
            .unwrap()
            .metric("train_loss_unweighted")
            .unwrap();
        let mut last = first;
        while trainer.step() < trainer.total_steps() {
            last = trainer
                .advance()
                .unwrap()
                .metric("train_loss_unweighted")
                .unwrap();
        }
        trainer.finish().unwrap();
        let after = trainer.validate().unwrap().unwrap();
        assert!(
            after < 0.8 * before,
            "{algo}: validation {before} -> {after}"
        );
        assert!(last < 0.8 * first, "{algo}: training {first} -> {last}");
        assert!(
            (after - trainer.best_loss().unwrap()).abs() < 1e-12,
            "best weights are adopted"
        );
        assert!(trainer.histogram().total() > 0);
        assert_eq!(
            trainer.metrics().iter().count() as u64,
            trainer.total_steps()
        );
        assert_eq!(trainer.shown_weights().count(), 6);
    }
}

/// Curves are part of the artifact, whose bytes stay; losses of the other heads are for whoever looks on.
#[test]
fn a_validation_tells_the_loss_of_every_head_and_keeps_that_of_the_first() {
    let file = counting(12);
    let params = tiny(3);
    let store = store(&params, DType::F32);
    let mut trainer = trainer(&params, &store, &file, "baseline", settings());
    let mut told = Vec::new();
    while !trainer.is_done() {
        let report = trainer.advance().unwrap();
        let is_loss = |(name, _): &&(String, f64)| name.starts_with("validation_ce_head_");
        let heads: Vec<_> = report.live.iter().filter(is_loss).cloned().collect();
        let kept = report.metric("validation_loss");
        assert_eq!(heads.first().map(|(_, loss)| *loss), kept);
        if kept.is_some() {
            told = heads;
        }
    }
    assert_eq!(told.len(), 3, "the last step is followed by a validation");
    let model = MtpModel::frozen(&params, &store).unwrap();
    for (horizon, (name, loss)) in params.horizons().zip(told) {
        assert_eq!(name, format!("validation_ce_head_{}", horizon.get()));
        let rows = file.correct_rows();
        let alone = head_cross_entropies(&model, &file, &rows, 1, horizon).unwrap();
        let alone = mean(&alone).unwrap();
        assert!((alone - loss).abs() < 1e-5, "{name}: {loss}, alone {alone}");
    }
    let mut curves = trainer.metrics().iter();
    assert!(curves.all(|line| !line.contains("validation_ce")));
}

const ALGORITHMS: [&str; 6] = [
    "baseline",
    "verifiable",
    "random_matched",
    "shuffled",
    "rho1",
    "rho1_paper",
];

/// Everything that a finished run leaves: its last state (parameters, moments, best weights, metrics, trace of the
/// token weights) and the model that it publishes.
pub(crate) fn finished(
    trainer: &mut PolicyTrainer<'_>,
    store: &ParamStore,
) -> BTreeMap<String, Vec<u8>> {
    while !trainer.is_done() {
        trainer.advance().unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    trainer.save(dir.path()).unwrap();
    trainer.finish().unwrap();
    store.save(&dir.path().join("model.safetensors")).unwrap();
    let files = files_of(dir.path());
    assert_eq!(files.len(), 8);
    files
}

#[test]
fn a_run_stopped_anywhere_any_number_of_times_equals_the_uninterrupted_one_bit_for_bit() {
    let file = counting(40);
    let params = tiny(2);
    for (index, algo) in ALGORITHMS.into_iter().enumerate() {
        let whole_store = store(&params, DType::F32);
        let mut whole = trainer(&params, &whole_store, &file, algo, settings());
        let expected = finished(&mut whole, &whole_store);
        for seed in [index as u64, 10 + index as u64] {
            let stops = stops(seed, whole.total_steps());
            let mut saved = None;
            for &stop in &stops {
                let store = store(&params, DType::F32);
                let mut leg = trainer(&params, &store, &file, algo, settings());
                saved = Some(go_on(&mut leg, saved.as_ref(), stop));
            }
            let store = store(&params, DType::F32);
            let mut last = trainer(&params, &store, &file, algo, settings());
            last.restore(saved.unwrap().path()).unwrap();
            let found = finished(&mut last, &store);
            for (name, bytes) in &expected {
                assert!(
                    found[name] == *bytes,
                    "{algo}, seed {seed}, stopped after {stops:?}: {name} differs"
                );
            }
        }
    }
}

/// What a run leaves when rayon has so many threads.
fn finished_with_threads(threads: usize, settings: PolicySettings) -> BTreeMap<String, Vec<u8>> {
    finished_of(&counting(40), threads, settings)
}

fn finished_of(
    file: &TokenFile,
    threads: usize,
    settings: PolicySettings,
) -> BTreeMap<String, Vec<u8>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let params = tiny(2);
        let store = store(&params, DType::F32);
        let mut trainer = trainer(&params, &store, file, "rho1", settings);
        finished(&mut trainer, &store)
    })
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    let expected = finished_with_threads(1, settings());
    assert!(
        finished_with_threads(2, settings()) == expected,
        "two threads"
    );
    for activation_bytes in [0, 60_000] {
        let settings = PolicySettings {
            activation_bytes: Some(activation_bytes),
            ..settings()
        };
        let same = finished_with_threads(2, settings) == expected;
        assert!(same, "{activation_bytes} bytes for activations");
    }
}

/// Work is handed out by 256 rows, attention by whole sequences: a micro-batch of 12 rows of 100 tokens makes five tasks of
/// the one and four of the other, and its 1,164 targets two spans of logits.
#[test]
fn threads_change_no_bit_of_steps_that_are_several_tasks() {
    let file = counting_to(16, |_| 96);
    for products in [Products::F32, Products::Bf16] {
        let mut settings = PolicySettings {
            products,
            epochs: 3.0,
            batch_sequences: 12,
            ..settings()
        };
        settings.optim.micro_batch_sequences = 12;
        let expected = finished_of(&file, 1, settings);
        for threads in [2, 3] {
            let same = finished_of(&file, threads, settings) == expected;
            assert!(same, "{threads} threads, {products:?}");
        }
        settings.activation_bytes = Some(0);
        let same = finished_of(&file, 3, settings) == expected;
        assert!(same, "3 threads, nothing kept, {products:?}");
    }
}

#[test]
fn bf16_products_learn_what_f32_learns() {
    let file = counting(20);
    let params = tiny(2);
    let of = |products| {
        let store = store(&params, DType::F32);
        let settings = PolicySettings {
            products,
            ..settings()
        };
        let mut trainer = trainer(&params, &store, &file, "baseline", settings);
        let mut losses = Vec::new();
        while !trainer.is_done() {
            losses.push(
                trainer
                    .advance()
                    .unwrap()
                    .metric("train_loss_unweighted")
                    .unwrap(),
            );
        }
        losses
    };
    let (full, half) = (of(Products::F32), of(Products::Bf16));
    assert_ne!(full, half);
    for (step, (full, half)) in full.iter().zip(&half).enumerate() {
        assert!(
            (full / half - 1.0).abs() < 0.02,
            "step {step}: {full} and {half}"
        );
    }
    assert!(half.last().unwrap() + 0.2 < half[0], "{half:?}");
    let settings = PolicySettings {
        products: Products::Bf16,
        ..settings()
    };
    assert!(finished_with_threads(1, settings) == finished_with_threads(2, settings));
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let file = counting(12);
    let params = tiny(2);
    let store = store(&params, DType::F32);
    let mut trainer = trainer(&params, &store, &file, "rho1", settings());
    trainer.advance().unwrap();
    for name in [
        "parameters.safetensors",
        "optimizer.safetensors",
        "engine.json",
        "policy.json",
    ] {
        let dir = tempfile::tempdir().unwrap();
        trainer.save(dir.path()).unwrap();
        let path = dir.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = trainer.restore(dir.path()).unwrap_err();
        assert!(
            matches!(error, Error::BadFile { .. } | Error::Rows(_)),
            "{name}: {error}"
        );
    }
}

#[test]
fn three_steps_that_are_not_finite_end_the_run() {
    let file = counting(24);
    let params = tiny(2);
    for algo in ["baseline", "rho1"] {
        let store = store(&params, DType::F32);
        let mut trainer = trainer(&params, &store, &file, algo, settings());
        let norm = store.get("norm.weight").unwrap();
        norm.set(&(norm.as_tensor() * f64::NAN).unwrap()).unwrap();
        let expected = [(1, 0.5), (2, 0.25)];
        for (in_a_row, lr_factor) in expected {
            let update = trainer.advance().unwrap().update;
            assert_eq!(
                update,
                Update::Skipped {
                    in_a_row,
                    lr_factor
                }
            );
        }
        let is_third = |ended: Result<StepReport, Error>| {
            matches!(
                ended,
                Err(Error::Numeric {
                    step: 3,
                    in_a_row: 3
                })
            )
        };
        assert!(is_third(trainer.advance()));
        // What goes on from there tries the third once more.
        let saved = go_on(&mut trainer, None, 2);
        let mut again = self::trainer(&params, &store, &file, algo, settings());
        again.restore(saved.path()).unwrap();
        norm.set(&(norm.as_tensor() * f64::NAN).unwrap()).unwrap();
        assert!(is_third(again.advance()));
    }
}

/// Weights so large in one step that the loss, a sum in f64, is a number and its gradient in f32 is none.
struct TooLarge {
    step: u64,
    now: bool,
}

impl Scorer for TooLarge {
    fn begin_step(&mut self, step: u64, _: &[StepRow]) -> wmtp_training::Result<()> {
        self.now = step == self.step;
        Ok(())
    }

    fn weigh(
        &mut self,
        _: Horizon,
        targets: &[Target],
        _: Option<&[f64]>,
    ) -> wmtp_training::Result<Vec<f64>> {
        Ok(vec![if self.now { 1e300 } else { 1.0 }; targets.len()])
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        Vec::new()
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_skipped_though_the_loss_is() {
    let (file, params) = (counting(40), tiny(2));
    let store = store(&params, DType::F32);
    let weights = Weights {
        params: &params,
        store: &store,
        adapters: None,
    };
    let rows = Rows::correct(&file);
    let scorer = Box::new(TooLarge {
        step: 1,
        now: false,
    });
    let (settings, ranks) = (settings(), Ranks::alone());
    let mut trainer =
        PolicyTrainer::new(weights, rows.clone(), rows, scorer, settings, &ranks).unwrap();
    let applied = |report: &StepReport| matches!(report.update, Update::Applied { .. });
    assert!(applied(&trainer.advance().unwrap()));
    let before = bits(&store);
    let report = trainer.advance().unwrap();
    assert!(report.metric("train_loss").unwrap().is_finite());
    let skipped = Update::Skipped {
        in_a_row: 1,
        lr_factor: 0.5,
    };
    assert_eq!(report.update, skipped);
    assert!(bits(&store) == before, "nothing moved");
    assert!(applied(&trainer.advance().unwrap()));
    assert!(
        bits(&store)
            .into_iter()
            .all(|bits| f32::from_bits(bits).is_finite())
    );
}

/// Memory in which two sequences of [`counting`] at once fit, and three do not: the first step says that two need 581,024
/// bytes in f32 and four 807,392.
fn room_for_two(dtype: DType) -> Room {
    Room::Bytes(160_000 * dtype.size_in_bytes() as u64)
}

#[test]
fn out_of_memory_halves_the_micro_batch_and_changes_no_more_than_rounding() {
    let file = counting(40);
    let params = tiny(2);
    let run = |algo, products, room| {
        let store = store(&params, DType::F64);
        let mut settings = settings();
        settings.optim.micro_batch_sequences = 4;
        settings.optim.room = room;
        settings.products = products;
        let mut trainer = trainer(&params, &store, &file, algo, settings);
        let reports: Vec<StepReport> = (0..trainer.total_steps())
            .map(|_| trainer.advance().unwrap())
            .collect();
        (reports, trainer.validate().unwrap().unwrap())
    };
    let (plenty, scarce) = (Room::Bytes(u64::MAX), room_for_two(DType::F64));
    for algo in ALGORITHMS {
        let (calm, calm_loss) = run(algo, Products::F32, plenty);
        let (tight, tight_loss) = run(algo, Products::F32, scarce);
        let halved: Vec<_> = tight.iter().flat_map(|step| &step.halved).collect();
        assert_eq!(
            halved
                .iter()
                .map(|one| (one.from, one.to))
                .collect::<Vec<_>>(),
            [(4, 2)]
        );
        assert!(halved[0].needed_bytes > halved[0].available_bytes);
        assert_eq!(tight[0].metric("micro_batch_sequences"), Some(2.0));
        assert!(calm.iter().all(|step| step.halved.is_empty()));
        for (calm, tight) in calm.iter().zip(&tight) {
            let names = ["train_loss", "grad_norm", "lr"];
            for (calm, tight) in names.map(|name| (calm.metric(name), tight.metric(name))) {
                let (calm, tight) = (calm.unwrap(), tight.unwrap());
                assert!(
                    (calm - tight).abs() < 1e-9 * calm.abs(),
                    "{algo}: {calm} {tight}"
                );
            }
        }
        assert!(
            (calm_loss - tight_loss).abs() < 1e-9,
            "{algo}: {calm_loss} {tight_loss}"
        );
    }
    // What Rho-1 weighs by is rounded as the step is that it weighs: in f32 it is something else.
    let weighed_by = |products, room| {
        let (reports, _) = run("rho1", products, room);
        let mut live = reports[0].live.iter();
        let (_, ce) = live.find(|(name, _)| name == "rho1_policy_ce").unwrap();
        *ce
    };
    let (calm, tight) = (
        weighed_by(Products::Bf16, plenty),
        weighed_by(Products::Bf16, scarce),
    );
    let unrounded = weighed_by(Products::F32, scarce);
    assert!(
        10.0 * (calm - tight).abs() < (calm - unrounded).abs(),
        "{calm} {tight}, in f32 {unrounded}"
    );
}

#[test]
fn a_run_that_ran_out_of_memory_resumes_with_the_smaller_micro_batch() {
    let file = counting(40);
    let params = tiny(2);
    let tight = |room| {
        let mut settings = settings();
        settings.optim.micro_batch_sequences = 4;
        settings.optim.room = room;
        settings
    };
    let whole_store = store(&params, DType::F32);
    let scarce = tight(room_for_two(DType::F32));
    let mut whole = trainer(&params, &whole_store, &file, "rho1", scarce);
    let expected = finished(&mut whole, &whole_store);

    let first_store = store(&params, DType::F32);
    let mut first = trainer(&params, &first_store, &file, "rho1", scarce);
    let saved = go_on(&mut first, None, 5);
    let store = store(&params, DType::F32);
    let plenty = tight(Room::Bytes(u64::MAX));
    let mut second = trainer(&params, &store, &file, "rho1", plenty);
    second.restore(saved.path()).unwrap();
    assert!(finished(&mut second, &store) == expected);
}

#[test]
fn memory_too_small_for_one_sequence_ends_the_run_with_the_numbers() {
    let file = counting(24);
    let params = tiny(2);
    let store = store(&params, DType::F32);
    let mut settings = settings();
    settings.optim.room = Room::Bytes(300_000);
    let mut trainer = trainer(&params, &store, &file, "baseline", settings);
    let error = trainer.advance().unwrap_err();
    let numbers = Shortage::MicroBatch {
        sequences: 1,
        needed: needed(&file, None),
        available: 300_000,
    };
    assert!(
        matches!(&error, Error::NoRoom(shortage) if *shortage == numbers),
        "{error}"
    );
    assert_eq!(trainer.step(), 0);
    // All that was tried is told, and a later attempt begins as this one did.
    let tried = trainer.engine_mut().take_halved();
    let tried: Vec<_> = tried.iter().map(|one| (one.from, one.to)).collect();
    assert_eq!(tried, [(3, 1)]);
    assert_eq!(trainer.engine().micro_batch_sequences(), 3);
}

#[test]
fn longer_rows_that_only_pass_through_are_reckoned_with_beforehand() {
    let (short, long) = (counting(24), counting_to(24, |_| 200));
    let params = tiny(2);
    // How often a first step, and the validation behind it, are halved in so much room.
    let halved = |held_out: &TokenFile, bytes| {
        let store = store(&params, DType::F32);
        let mut settings = settings();
        settings.optim.room = Room::Bytes(bytes);
        settings.optim.eval_every_steps = 1;
        let weights = Weights {
            params: &params,
            store: &store,
            adapters: None,
        };
        let (rows, held_out) = (Rows::correct(&short), Rows::correct(held_out));
        let (scorer, ranks) = (scorer("baseline", &short), Ranks::alone());
        let made = PolicyTrainer::new(weights, rows, held_out, scorer, settings, &ranks);
        let mut trainer = made.unwrap();
        trainer.advance().map(|report| report.halved)
    };
    let enough = 1 << 20;
    assert!(halved(&short, enough).unwrap().is_empty());
    let tight = halved(&long, enough).unwrap();
    let [only] = &tight[..] else {
        panic!("one halving: {tight:?}");
    };
    assert_eq!((only.from, only.to), (3, 1));
    assert!(only.needed_bytes > only.available_bytes, "{only:?}");
}

/// Bytes that one sequence at a time needs in the next step of a run, fresh or from a saved state.
fn needed(file: &TokenFile, saved: Option<&TempDir>) -> u64 {
    let params = tiny(2);
    let store = store(&params, DType::F32);
    let mut settings = settings();
    settings.epochs = 10.0;
    settings.optim.micro_batch_sequences = 1;
    settings.optim.room = Room::Bytes(1);
    let mut trainer = trainer(&params, &store, file, "baseline", settings);
    if let Some(saved) = saved {
        trainer.restore(saved.path()).unwrap();
    }
    match trainer.advance() {
        Err(Error::NoRoom(Shortage::MicroBatch { needed, .. })) => needed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resumed_run_asks_for_no_memory_that_its_state_has_filled() {
    // All rows are in each step: what its activations need is always the same.
    let (file, params) = (counting(3), tiny(2));
    let mut settings = settings();
    settings.epochs = 10.0;
    settings.optim.micro_batch_sequences = 1;
    let saved = |until| {
        let store = store(&params, DType::F32);
        let mut trainer = trainer(&params, &store, &file, "baseline", settings);
        go_on(&mut trainer, None, until)
    };
    let buffer = store(&params, DType::F32).num_elements() as u64 * 4;
    let fresh = needed(&file, None);
    let (moments, best_too) = (saved(1), saved(5));
    assert_eq!(fresh - needed(&file, Some(&moments)), 2 * buffer);
    assert_eq!(fresh - needed(&file, Some(&best_too)), 3 * buffer);
}

#[test]
fn out_of_memory_in_a_validation_halves_the_micro_batch_and_loses_no_number() {
    let (file, params) = (counting(40), tiny(2));
    let run = |fault: &str| {
        let store = store(&params, DType::F64);
        let mut settings = settings();
        settings.optim.micro_batch_sequences = 4;
        let mut trainer = trainer(&params, &store, &file, "baseline", settings);
        let _planned = fault::plan(fault);
        let reports: Vec<StepReport> = (0..trainer.total_steps())
            .map(|_| trainer.advance().unwrap())
            .collect();
        (reports, trainer.finish().unwrap())
    };
    let (calm, calm_best) = run("");
    // Nine rows are three batches, of which the last of the second validation fails.
    let (tight, best) = run("train:inference:6");
    assert_eq!(best, calm_best);
    for (calm, tight) in calm.iter().zip(&tight) {
        let halved: Vec<_> = tight.halved.iter().map(|one| (one.from, one.to)).collect();
        let expected = if calm.step == 8 {
            vec![(4, 2)]
        } else {
            Vec::new()
        };
        assert_eq!(halved, expected, "step {}", calm.step);
        for (name, calm) in calm.metrics.iter().chain(&calm.live) {
            let mut tight = tight.metrics.iter().chain(&tight.live);
            let (_, tight) = tight.find(|(other, _)| other == name).unwrap();
            assert!(
                (calm - tight).abs() <= 1e-9 * calm.abs(),
                "{name}: {calm} {tight}"
            );
        }
    }
    assert_eq!(tight[7].metric("micro_batch_sequences"), Some(2.0));
}

#[test]
fn without_room_a_run_is_between_two_steps_unless_the_step_is_counted() {
    let (file, params) = (counting(40), tiny(2));
    let mut settings = settings();
    settings.optim.micro_batch_sequences = 1;
    let whole_store = store(&params, DType::F32);
    let mut whole = trainer(&params, &whole_store, &file, "rho1", settings);
    let expected = finished(&mut whole, &whole_store);
    // At most eight sequences a step, and as many micro-batches: one of the sixth step.
    for (fault, step, is_between) in [
        ("train:allocator:43", 5, true),
        ("train:inference:1", 4, false),
    ] {
        let first_store = store(&params, DType::F32);
        let mut first = trainer(&params, &first_store, &file, "rho1", settings);
        let planned = fault::plan(fault);
        let (before, error) = loop {
            let before = first.step();
            if let Err(error) = first.advance() {
                break (before, error);
            }
        };
        drop(planned);
        assert!(
            matches!(error, Error::NoRoom(Shortage::Allocator(_))),
            "{error}"
        );
        assert_eq!((first.step(), first.step() == before), (step, is_between));
        if is_between {
            let saved = go_on(&mut first, None, step);
            let store = store(&params, DType::F32);
            let mut second = trainer(&params, &store, &file, "rho1", settings);
            second.restore(saved.path()).unwrap();
            assert!(finished(&mut second, &store) == expected);
        }
    }
}

/// A run that may stop early, at a learning rate at which the validation loss soon rises.
fn impatient(patience: usize, min_delta: f64) -> PolicySettings {
    let mut settings = PolicySettings {
        lr: 0.3,
        epochs: 12.0,
        ..settings()
    };
    settings.optim.eval_every_steps = 2;
    settings.optim.early_stop = Some(EarlyStop {
        patience,
        min_delta,
    });
    settings
}

#[test]
fn training_stops_when_so_many_validations_in_a_row_brought_no_improvement() {
    let file = counting(40);
    let params = tiny(2);
    for (patience, min_delta) in [(1, 0.0), (3, 0.0), (3, 0.5)] {
        let store = store(&params, DType::F32);
        let settings = impatient(patience, min_delta);
        let mut trainer = trainer(&params, &store, &file, "baseline", settings);
        let (mut losses, mut mark, mut waited) = (Vec::new(), f64::INFINITY, 0);
        while !trainer.is_done() {
            assert!(waited < patience, "it should have stopped: {losses:?}");
            if let Some(loss) = trainer.advance().unwrap().metric("validation_loss") {
                losses.push(loss);
                if loss < mark - min_delta {
                    (mark, waited) = (loss, 0);
                } else {
                    waited += 1;
                }
            }
        }
        let stopped = trainer.stopped_early().expect("it stops early");
        assert!(stopped.step < trainer.total_steps());
        assert_eq!(
            (stopped.step, stopped.validations),
            (trainer.step(), patience)
        );
        assert_eq!(waited, patience);
        let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(stopped.best_loss.to_bits(), best.to_bits());
        assert_eq!(trainer.finish().unwrap(), stopped.best_step);
        let after = trainer.validate().unwrap().unwrap();
        assert_eq!(
            after.to_bits(),
            best.to_bits(),
            "the best weights are adopted"
        );
    }
}

#[test]
fn a_resumed_run_stops_early_at_the_same_step() {
    let file = counting(40);
    let params = tiny(2);
    let whole_store = store(&params, DType::F32);
    let mut whole = trainer(&params, &whole_store, &file, "rho1", impatient(3, 0.0));
    let expected = finished(&mut whole, &whole_store);
    let end = whole.stopped_early().expect("it stops early").step;
    // Just before the stop two validations are counted; at the stop nothing is left to do.
    for stop in [end - 1, end] {
        let first_store = store(&params, DType::F32);
        let mut first = trainer(&params, &first_store, &file, "rho1", impatient(3, 0.0));
        let saved = go_on(&mut first, None, stop);
        let store = store(&params, DType::F32);
        let mut second = trainer(&params, &store, &file, "rho1", impatient(3, 0.0));
        second.restore(saved.path()).unwrap();
        assert_eq!(second.is_done(), stop == end);
        assert!(
            finished(&mut second, &store) == expected,
            "stopped after {stop}"
        );
    }
}

#[test]
fn a_split_without_correct_rows_is_bad_data() {
    let mut file = TokenFile::default();
    let sample = wmtp_tokens::TokenizedSample {
        ids: vec![1, 4, 5, 2],
        prompt_len: 2,
    };
    file.push(&sample, Some(false));
    let params = tiny(2);
    let store = store(&params, DType::F32);
    let rows = Rows::correct(&file);
    let weights = Weights {
        params: &params,
        store: &store,
        adapters: None,
    };
    let made = PolicyTrainer::new(
        weights,
        rows.clone(),
        rows,
        scorer("baseline", &file),
        settings(),
        &Ranks::alone(),
    );
    assert!(matches!(made, Err(Error::BadData(_))));
}
