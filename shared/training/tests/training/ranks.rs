//! Several ranks, here threads of one process, share the steps of a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use wmtp_artifacts::fault;
use wmtp_data_sets::TokenFile;
use wmtp_job_kit::{Exit, JobError, Links};
use wmtp_model::{HeadKind, Horizon, ParamStore, Params};
use wmtp_training::heads::Target;
use wmtp_training::scorer::{StepRow, StepStats};
use wmtp_training::{
    Error, Objective, PolicySettings, PolicyTrainer, Ranks, Room, Rows, Scorer, Shortage, Side,
    StepReport, Trainer, Update, ValueTrainer, Weights,
};

use crate::policy::scorer;
use crate::support::{counting, files_of, settings, store, tiny};
use crate::value;

/// What every rank of a run ended with, in their order.
pub(crate) fn among<T: Send>(world: usize, body: impl Fn(&Arc<Ranks>) -> T + Sync) -> Vec<T> {
    let links = Links::among_threads(world).unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let started: Vec<_> = links
            .into_iter()
            .map(|links| scope.spawn(move || body(&Ranks::linked(links))))
            .collect();
        let ended = started.into_iter();
        ended
            .map(|rank| rank.join().expect("the rank did not panic"))
            .collect()
    })
}

/// What a run of four micro-batches a step needs.
struct Run {
    params: Params,
    file: TokenFile,
    dtype: DType,
    settings: PolicySettings,
}

impl Run {
    fn new(dtype: DType) -> Self {
        let mut settings = settings();
        settings.optim.micro_batch_sequences = 2;
        Self {
            params: tiny(2),
            file: counting(44),
            dtype,
            settings,
        }
    }

    fn store(&self) -> ParamStore {
        store(&self.params, self.dtype)
    }

    fn trainer<'a>(
        &'a self,
        store: &'a ParamStore,
        scorer: Box<dyn Scorer>,
        settings: PolicySettings,
        ranks: &Arc<Ranks>,
    ) -> PolicyTrainer<'a> {
        let weights = Weights {
            params: &self.params,
            store,
            adapters: None,
        };
        let held_out = Rows {
            file: &self.file,
            rows: self.file.correct_rows().into_iter().take(9).collect(),
        };
        let rows = Rows::correct(&self.file);
        PolicyTrainer::new(weights, rows, held_out, scorer, settings, ranks).unwrap()
    }

    /// The reports of a whole run of one rank, and the bits of its weights.
    fn whole(&self, algo: &str, ranks: &Arc<Ranks>) -> (Vec<StepReport>, Vec<u64>) {
        let store = self.store();
        let scorer = scorer(algo, &self.file);
        let mut trainer = self.trainer(&store, scorer, self.settings, ranks);
        let mut reports = Vec::new();
        while !trainer.is_done() {
            reports.push(trainer.advance().unwrap());
        }
        (reports, bits(&store))
    }
}

fn bits(store: &ParamStore) -> Vec<u64> {
    let values = |var: &candle_core::Var| {
        let wide = var.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        wide.to_vec1::<f64>().unwrap()
    };
    let all = store.iter().flat_map(|(_, var)| values(var));
    all.map(f64::to_bits).collect()
}

fn numbers(reports: &[StepReport]) -> impl Iterator<Item = (&str, f64)> {
    reports.iter().flat_map(|report| {
        let all = report.metrics.iter().chain(&report.live);
        all.map(|(name, value)| (name.as_str(), *value))
    })
}

#[test]
fn ranks_learn_what_one_learns_and_end_with_the_same_weights() {
    let run = Run::new(DType::F64);
    for algo in [
        "baseline",
        "verifiable",
        "random_matched",
        "shuffled",
        "rho1",
    ] {
        let (alone, weights) = run.whole(algo, &Ranks::alone());
        for world in [2, 3, 4] {
            let ended = among(world, |ranks| run.whole(algo, ranks));
            for (rank, (reports, same)) in ended.iter().enumerate() {
                let which = format!("{algo}, rank {rank} of {world}");
                assert!(*same == ended[0].1, "{which}: other weights than rank 0");
                assert_eq!(*reports, ended[0].0, "{which}");
            }
            assert_eq!(ended[0].0.len(), alone.len());
            for (found, expected) in ended[0].0.iter().zip(&alone) {
                assert_eq!(found.work, expected.work);
            }
            for (found, expected) in numbers(&ended[0].0).zip(numbers(&alone)) {
                assert_eq!(found.0, expected.0);
                let near = (found.1 - expected.1).abs() <= 1e-9 * expected.1.abs().max(1e-3);
                assert!(near, "{algo}, {world} ranks: {found:?}, alone {expected:?}");
            }
            for (found, expected) in ended[0].1.iter().zip(&weights) {
                let (found, expected) = (f64::from_bits(*found), f64::from_bits(*expected));
                assert!(
                    (found - expected).abs() < 1e-7,
                    "{algo}: {found}, {expected}"
                );
            }
        }
    }
}

/// Advances every rank to a step, saves there, and tells the files of the folder and the last weights.
fn leg(run: &Run, world: usize, from: Option<&Path>, (until, into): (u64, &Path)) -> Vec<Vec<u64>> {
    among(world, |ranks| {
        let store = run.store();
        let scorer = scorer("rho1", &run.file);
        let mut trainer = run.trainer(&store, scorer, run.settings, ranks);
        if let Some(from) = from {
            trainer.restore(from).unwrap();
        }
        while trainer.step() < until {
            trainer.advance().unwrap();
        }
        trainer.save(into).unwrap();
        bits(&store)
    })
}

#[test]
fn ranks_stop_and_go_on_bit_for_bit() {
    let run = Run::new(DType::F32);
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let whole = leg(&run, 3, None, (12, dirs[0].path()));
    leg(&run, 3, None, (5, dirs[1].path()));
    leg(&run, 3, Some(dirs[1].path()), (9, dirs[2].path()));
    let resumed = leg(&run, 3, Some(dirs[2].path()), (12, dirs[3].path()));
    assert!(resumed == whole);
    assert!(files_of(dirs[3].path()) == files_of(dirs[0].path()));
}

#[test]
fn every_rank_keeps_its_share_of_the_moments() {
    let run = Run::new(DType::F32);
    let (alone, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    leg(&run, 1, None, (1, alone.path()));
    leg(&run, 2, None, (1, shared.path()));
    let tensors = |dir: &Path, name: &str| -> BTreeMap<String, usize> {
        let bytes = std::fs::read(dir.join(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let sizes = file.tensors().into_iter();
        sizes
            .map(|(name, view)| (name, view.data().len()))
            .collect()
    };
    let first = tensors(shared.path(), "optimizer.safetensors");
    let second = tensors(shared.path(), "optimizer.1.safetensors");
    let (one, other): (usize, usize) = (first.values().sum(), second.values().sum());
    assert!(one.abs_diff(other) * 10 < one, "{one} and {other} bytes");
    let mut both = first;
    both.extend(second);
    assert_eq!(both, tensors(alone.path(), "optimizer.safetensors"));
}

#[test]
fn memory_that_one_rank_lacks_halves_the_micro_batches_of_all() {
    let run = Run::new(DType::F64);
    let (expected, _) = run.whole("rho1", &Ranks::alone());
    // The first step where the second rank has so many bytes.
    let with_room = |bytes: u64| {
        among(2, |ranks| {
            let mut settings = run.settings;
            if ranks.rank() == 1 {
                settings.optim.room = Room::Bytes(bytes);
            }
            let store = run.store();
            let mut trainer = run.trainer(&store, scorer("rho1", &run.file), settings, ranks);
            trainer.advance()
        })
    };
    // Not even one sequence fits, which both find out together.
    let needed = with_room(1).into_iter().map(|ended| match ended {
        Err(Error::NoRoom(Shortage::MicroBatch {
            sequences: 1,
            needed,
            ..
        })) => needed,
        other => panic!("{other:?}"),
    });
    let needed: Vec<u64> = needed.collect();
    assert_eq!(needed[0], needed[1]);
    // One fits, two do not.
    let ended = with_room(needed[0]);
    let reports: Vec<StepReport> = ended.into_iter().map(Result::unwrap).collect();
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[0].halved.len(), 1, "{:?}", reports[0].halved);
    assert_eq!((reports[0].halved[0].from, reports[0].halved[0].to), (2, 1));
    let (found, expected) = (
        reports[0].metric("train_loss"),
        expected[0].metric("train_loss"),
    );
    let (found, expected) = (found.unwrap(), expected.unwrap());
    assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
}

/// A scorer of ones that goes wrong once.
struct Wrong {
    inner: Box<dyn Scorer>,
    step: u64,
    at: u64,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Fails(fn() -> Error),
    FailsOnce(fn() -> Error),
    NotFinite,
    Never,
}

impl Scorer for Wrong {
    fn begin_step(&mut self, step: u64, rows: &[StepRow]) -> Result<(), Error> {
        self.step = step;
        self.inner.begin_step(step, rows)
    }

    fn weigh(
        &mut self,
        horizon: Horizon,
        targets: &[Target],
        policy_ce: Option<&[f64]>,
    ) -> Result<Vec<f64>, Error> {
        let mut weights = self.inner.weigh(horizon, targets, policy_ce)?;
        if self.step == self.at {
            match self.how {
                How::Fails(error) => return Err(error()),
                How::FailsOnce(error) => {
                    self.how = How::Never;
                    return Err(error());
                }
                How::NotFinite => weights.fill(f64::NAN),
                How::Never => {}
            }
        }
        Ok(weights)
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        self.inner.end_step()
    }
}

/// Four steps, of which the third goes wrong on the second of three ranks; so many sequences go through the model at once.
fn with_a_wrong_rank(at_once: usize, how: How) -> Vec<Result<Vec<StepReport>, Error>> {
    let mut run = Run::new(DType::F32);
    // Three full steps an epoch.
    run.file = counting(32);
    run.settings.optim.micro_batch_sequences = at_once;
    let run = &run;
    among(3, |ranks| {
        let scorer = Wrong {
            inner: scorer("baseline", &run.file),
            step: 0,
            at: 2,
            how: if ranks.rank() == 1 { how } else { How::Never },
        };
        let store = run.store();
        let mut trainer = run.trainer(&store, Box::new(scorer), run.settings, ranks);
        (0..4).map(|_| trainer.advance()).collect()
    })
}

#[test]
fn what_is_not_finite_on_one_rank_is_skipped_by_all() {
    let ended = with_a_wrong_rank(2, How::NotFinite);
    let ended: Vec<_> = ended.into_iter().map(Result::unwrap).collect();
    // As text: what is not a number is not equal to itself.
    let text = |rank: usize| format!("{:?}", ended[rank]);
    assert_eq!(text(0), text(1));
    assert_eq!(text(0), text(2));
    let skipped = |report: &StepReport| matches!(report.update, Update::Skipped { .. });
    let skipped: Vec<bool> = ended[0].iter().map(skipped).collect();
    assert_eq!(skipped, [false, false, true, false]);
}

#[test]
fn what_fails_on_one_rank_ends_all_with_its_reason_and_exit_code() {
    type Fails = fn() -> Error;
    let cases: [(Fails, &str, Exit); 3] = [
        (
            || Error::BadData("a row is gone".to_owned()),
            "a row is gone",
            Exit::BadInput,
        ),
        (
            || candle("shapes differ"),
            "tensor operation failed: shapes differ",
            Exit::Internal,
        ),
        (
            || Error::Io {
                path: "/state".into(),
                source: std::io::ErrorKind::StorageFull.into(),
            },
            "/state: no storage space",
            Exit::NoRoom,
        ),
    ];
    for (error, said, exit) in cases {
        let ended = with_a_wrong_rank(2, How::Fails(error));
        for (rank, ended) in ended.into_iter().enumerate() {
            let error = ended.unwrap_err();
            match &error {
                Error::Rank {
                    rank: 1, reason, ..
                } if rank != 1 => assert_eq!(reason, said),
                other if rank == 1 => assert!(!matches!(other, Error::Rank { .. }), "{other}"),
                other => panic!("rank {rank}: {other}"),
            }
            assert_eq!(JobError::from(error).exit(), exit, "rank {rank}");
        }
    }
}

/// An error of the model's as candle gives it.
fn candle(text: &str) -> Error {
    wmtp_model::Error::from(candle_core::Error::Msg(text.to_owned())).into()
}

/// What cudarc says through candle, within an error of the model's.
fn no_device_memory() -> Error {
    candle("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
}

const SAID: &str = "an allocator had nothing to give: tensor operation failed: \
                    DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";

#[test]
fn an_allocator_that_fails_on_one_rank_halves_the_micro_batches_of_all() {
    let calm = with_a_wrong_rank(2, How::Never).remove(0).unwrap();
    let ended = with_a_wrong_rank(2, How::FailsOnce(no_device_memory));
    for (rank, ended) in ended.into_iter().enumerate() {
        let reports = ended.unwrap();
        for (number, (report, calm)) in reports.iter().zip(&calm).enumerate() {
            let halved: Vec<_> = report.halved.iter().map(|one| (one.from, one.to)).collect();
            let expected = if number == 2 {
                vec![(2, 1)]
            } else {
                Vec::new()
            };
            assert_eq!(halved, expected, "rank {rank}, step {}", report.step);
            let (found, calm) = (report.metric("train_loss"), calm.metric("train_loss"));
            let (found, calm) = (found.unwrap(), calm.unwrap());
            assert!((found / calm - 1.0).abs() < 1e-4, "{found} {calm}");
        }
        assert_eq!(reports[2].halved[0].cause, SAID);
    }
    // One sequence at a time cannot be halved: all end with it, and say why.
    for ended in with_a_wrong_rank(1, How::FailsOnce(no_device_memory)) {
        let error = ended.unwrap_err();
        assert!(
            matches!(error, Error::NoRoom(Shortage::Allocator(_))),
            "{error:?}"
        );
        let error = JobError::from(error);
        assert_eq!(
            (error.exit(), error.to_string().as_str()),
            (Exit::NoRoom, SAID)
        );
    }
}

#[test]
fn no_rank_begins_a_step_before_all_have_room_for_it() {
    let mut run = Run::new(DType::F32);
    run.settings.optim.micro_batch_sequences = 1;
    let run = &run;
    let ended = among(2, |ranks| {
        let (mut settings, store) = (run.settings, run.store());
        let scorer = Wrong {
            inner: scorer("baseline", &run.file),
            step: 0,
            at: 0,
            how: if ranks.leads() {
                How::Fails(|| Error::BadData("the step has begun".to_owned()))
            } else {
                settings.optim.room = Room::Bytes(1);
                How::Never
            },
        };
        let mut trainer = run.trainer(&store, Box::new(scorer), settings, ranks);
        trainer.advance().unwrap_err()
    });
    for error in ended {
        assert!(matches!(error, Error::NoRoom(_)), "{error}");
    }
}

#[test]
fn memory_that_one_rank_lacks_in_a_validation_halves_that_of_all() {
    let run = Run::new(DType::F64);
    let steps = |ranks: &Arc<Ranks>, fault: &str| -> Vec<StepReport> {
        let _planned = fault::plan(fault);
        let store = run.store();
        let algo = scorer("verifiable", &run.file);
        let mut trainer = run.trainer(&store, algo, run.settings, ranks);
        (0..6).map(|_| trainer.advance().unwrap()).collect()
    };
    let calm = steps(&Ranks::alone(), "");
    let ended = among(2, |ranks| {
        let fault = if ranks.leads() {
            ""
        } else {
            "train:inference:2"
        };
        steps(ranks, fault)
    });
    assert_eq!(ended[0], ended[1]);
    for (found, calm) in ended[0].iter().zip(&calm) {
        assert_eq!(found.halved.len(), usize::from(found.step == 4));
        for (name, calm) in &calm.metrics {
            let found = found.metric(name).unwrap();
            assert!(
                (found - calm).abs() <= 1e-9 * calm.abs(),
                "{name}: {found} {calm}"
            );
        }
    }
}

#[test]
fn a_rank_that_goes_is_missed_and_nobody_waits_for_it() {
    let run = Run::new(DType::F32);
    let ended = among(3, |ranks| {
        let store = run.store();
        let algo = scorer("rho1", &run.file);
        let mut trainer = run.trainer(&store, algo, run.settings, ranks);
        trainer.advance().unwrap();
        if ranks.rank() == 2 {
            return None;
        }
        Some(trainer.advance().unwrap_err())
    });
    assert!(
        matches!(ended[0], Some(Error::RankLost { .. })),
        "{ended:?}"
    );
    assert!(
        matches!(ended[1], Some(Error::RankLost { .. })),
        "{ended:?}"
    );
}

#[test]
fn a_value_model_learns_on_several_ranks_what_it_learns_on_one() {
    for with_adapters in [false, true] {
        value_model_on_several_ranks(with_adapters);
    }
}

fn value_model_on_several_ranks(with_adapters: bool) {
    let run = |ranks: &Arc<Ranks>| {
        let (file, params) = (counting(40), tiny(1));
        let (objective, head) = (Objective::Bce, HeadKind::Mlp);
        let store = value::parameters_in(DType::F64, &params, objective, head);
        let store = value::adapted(store, &params, with_adapters);
        let mut settings = value::settings(objective, head, 5e-3);
        settings.optim.micro_batch_sequences = 2;
        let rows = || Rows {
            file: &file,
            rows: file.labelled_rows(),
        };
        let made = ValueTrainer::new(&params, &store, rows(), rows(), settings, ranks);
        let mut trainer = made.unwrap();
        let mut reports = Vec::new();
        while !trainer.is_done() {
            reports.push(trainer.advance().unwrap());
        }
        let last = bits(&store.head);
        trainer.finish().unwrap();
        let best = bits(&store.head);
        let values = trainer
            .score(Side::Train, &[5, 0, 11, 3, 8])
            .unwrap()
            .of_rows;
        let adapters = store.adapters.as_ref().map(|one| bits(one.store()));
        (reports, (bits(&store.trunk), adapters), last, best, values)
    };
    let (alone, .., expected) = run(&Ranks::alone());
    let ended = among(3, run);
    assert!(ended[0] == ended[1] && ended[0] == ended[2]);
    let (.., last, best, values) = &ended[0];
    assert!(
        last != best,
        "the last weights are the best: nothing is shown"
    );
    assert_eq!(values.len(), expected.len());
    for (found, expected) in values.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-9, "{found}, alone {expected}");
    }
    for (found, expected) in numbers(&ended[0].0).zip(numbers(&alone)) {
        assert_eq!(found.0, expected.0);
        let near = (found.1 - expected.1).abs() <= 1e-9 * expected.1.abs().max(1e-3);
        assert!(near, "{found:?}, alone {expected:?}");
    }
}
