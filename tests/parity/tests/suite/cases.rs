//! Every committed case passes, and a golden that differs in one element fails at the stage that owns it.

use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

use parity::{Case, Mode, Precision, Report, Status, Values};

/// Tests run in their package's folder; a compiled-in path would be wrong where checkouts share a target folder.
pub(crate) const GOLDENS: &str = "goldens";

const ALL: [Precision; 3] = [Precision::F64, Precision::F32, Precision::Bf16];

pub(crate) fn load(name: &str) -> Case {
    Case::load(&Path::new(GOLDENS).join(name)).expect("the committed golden is whole")
}

fn assert_passes(case: &Case) {
    for precision in ALL {
        for mode in [Mode::Chained, Mode::Isolated] {
            let report =
                parity::run(case, precision, mode, &Device::Cpu).expect("the subject runs");
            assert_eq!(report.status, Status::Pass, "{}", report.markdown());
            assert_eq!((report.mismatch_count, report.exit_code()), (0, 0));
            assert_eq!(report.not_compared, [""; 0], "{}", case.name);
            for stage in &report.stages {
                assert_eq!(stage.compared, stage.keys, "{}: {}", case.name, stage.name);
            }
        }
    }
}

#[test]
fn every_committed_case_passes_in_every_precision_and_mode() {
    let folders = parity::find_all(Path::new(GOLDENS)).unwrap();
    let names: Vec<_> = folders
        .iter()
        .filter_map(|folder| folder.file_name())
        .collect();
    let expected = [
        "adamw",
        "fv",
        "generate",
        "layout",
        "lora",
        "nano",
        "nano-h4-mha",
        "passk",
        "rho1",
        "rho1-step",
        "rope",
        "tokenizer",
        "weighting",
    ];
    assert_eq!(names, expected);
    for name in expected {
        assert_passes(&load(name));
    }
}

fn compared(case: &str) -> Vec<(&'static str, usize)> {
    let report =
        parity::run(&load(case), Precision::F32, Mode::Chained, &Device::Cpu).expect("it runs");
    let (contract, stages) = report.stages.split_first().expect("stages");
    assert!(contract.name == "contract" && contract.compared > report.compared_count);
    stages.iter().map(|s| (s.name, s.compared)).collect()
}

#[test]
fn nano_compares_thirteen_stages_behind_the_contract() {
    let expected = [
        ("tokens", 4),
        ("rotary", 2),
        ("embed", 1),
        ("trunk", 6),
        ("heads", 8),
        ("token-loss", 2),
        ("value", 2),
        ("weighting", 6),
        ("loss", 3),
        ("gradients", 39),
        ("clip", 2),
        ("optimizer", 2 * 39),
        ("trace", 2),
    ];
    assert_eq!(compared("nano"), expected);
}

#[test]
fn lora_compares_the_adapters_of_every_matrix_and_no_gradient_of_the_base() {
    let (blocks, matrices) = (3, 7);
    let expected = [
        ("tokens", 4),
        ("rotary", 2),
        ("embed", 1),
        ("trunk", 3),
        ("heads", 8),
        ("token-loss", 2),
        ("loss", 3),
        ("gradients", blocks * matrices * 2),
        ("merge", blocks * matrices + 2),
        ("clip", 2),
        ("optimizer", 2 * blocks * matrices * 2),
        ("trace", 2),
    ];
    assert_eq!(compared("lora"), expected);
}

/// A case from outside the repository: beside the checkout, or where `WMTP_GOLDENS` says.
#[test]
fn a_case_from_outside_passes_where_there_is_one() {
    let root = std::env::var_os("WMTP_GOLDENS").map_or_else(
        || Path::new("../../../shared/goldens").to_owned(),
        PathBuf::from,
    );
    match parity::find(&root, "nano") {
        Ok(folder) => assert_passes(&Case::load(&folder).expect("the golden case is whole")),
        Err(error) => announce(&format!("SKIPPED: {error}; set WMTP_GOLDENS")),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a skipped test says so where the test output goes"
)]
fn announce(text: &str) {
    eprintln!("{text}");
}

/// Changes the last element of a golden by a tenth of the largest one.
fn damage(case: &Case, key: &str) -> Case {
    let mut case = case.clone();
    let data = &mut case.golden.get_mut(key).expect("a golden key").data;
    let top = data.iter().fold(0f64, |m, x| m.max(x.abs()));
    *data.last_mut().expect("an element") += if top.is_finite() && top > 0.0 {
        top / 10.0
    } else {
        1.0
    };
    case
}

#[test]
fn one_wrong_element_fails_at_its_stage_key_and_index() {
    for folder in parity::find_all(Path::new(GOLDENS)).unwrap() {
        let case = Case::load(&folder).unwrap();
        // Its stages are nano's.
        if case.name == "nano-h4-mha" {
            continue;
        }
        let passing = parity::run(&case, Precision::F32, Mode::Chained, &Device::Cpu).unwrap();
        // The contract compares no values.
        for stage in &passing.stages[1..] {
            let worst = &stage.worst.as_ref().expect("every stage compares").key;
            // Steps are differences of parameters, which come first.
            let key = &match worst.strip_prefix("step.") {
                Some(name) => format!("param.step1.{name}"),
                None => worst.clone(),
            };
            // A trace of one step is what was clipped.
            let golden = case.golden.get(key);
            if golden.is_none_or(|golden| stage.name == "trace" && golden.data.len() == 1) {
                continue;
            }
            let damaged = damage(&case, key);
            let report =
                parity::run(&damaged, Precision::F32, Mode::Chained, &Device::Cpu).unwrap();
            let first = report
                .first_divergence
                .as_ref()
                .expect("a difference is found");
            assert_eq!((first.stage, first.key.as_ref()), (stage.name, Some(key)));
            let values = &damaged.golden[key];
            assert_eq!(
                first.index,
                Some(values.index(values.data.len() - 1)),
                "{key}"
            );
            assert_eq!(report.exit_code(), 1);
        }
    }
}

#[test]
fn rho1_step_compares_from_the_losses_to_the_step() {
    let parameters = 3 * 9 + 3;
    let expected = [
        ("token-loss", 2),
        ("excess", 2),
        ("weighting", 2),
        ("loss", 3),
        ("gradients", parameters),
        ("clip", 2),
        ("optimizer", 2 * parameters),
        ("trace", 2),
    ];
    assert_eq!(compared("rho1-step"), expected);
}

#[test]
fn a_wrong_step_fails_where_its_parameter_passes() {
    let mut case = load("nano");
    let name = "layers.0.attention.wq.weight";
    let weights = candle_core::safetensors::load(case_file("nano"), &Device::Cpu).unwrap();
    let before = Values::of(&weights[name]).unwrap().data;
    let after = case.golden.get_mut(&format!("param.step1.{name}")).unwrap();
    for (after, before) in after.data.iter_mut().zip(before) {
        *after += 1e-8 * (*after - before);
    }
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    let first = report.first_divergence.expect("a difference is found");
    let expected = ("optimizer", Some(format!("step.{name}")), Some("rel_l2"));
    assert_eq!((first.stage, first.key, first.metric), expected);
    assert_eq!(report.mismatch_count, 1);
}

fn case_file(case: &str) -> PathBuf {
    Path::new(GOLDENS).join(case).join("weights.safetensors")
}

#[test]
fn function_vectors_compare_every_step_from_the_trials_to_the_logits() {
    let expected = [
        ("trials", 1),
        ("means", 1),
        ("effects", 4),
        ("top-heads", 2),
        ("vector", 2),
        ("injection", 6),
    ];
    assert_eq!(compared("fv"), expected);
}

fn first_reason(report: Report) -> (String, String) {
    let first = report.first_divergence.expect("it differs");
    (first.stage.to_owned(), first.reason)
}

#[test]
fn keys_on_one_side_only_are_mismatches() {
    let mut case = load("nano");
    let gone = case.golden.remove("grad.norm.weight").unwrap();
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!(
        first_reason(report),
        ("gradients".into(), "unexpected".into())
    );
    case.golden.insert("grad.norm.weight".into(), gone.clone());
    case.golden.insert("grad.value_head.weight".into(), gone);
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!(first_reason(report), ("gradients".into(), "missing".into()));
}

/// What makes a golden unfit to be the input of a later stage.
const UNFIT: [fn(&mut Values); 3] = [
    |values| {
        values.shape[0] -= 1;
        let left = values.shape.iter().product();
        values.data.truncate(left);
    },
    |values| *values.data.last_mut().expect("an element") = f64::NAN,
    |values| {
        values.shape = vec![1, 1];
        values.data.truncate(1);
    },
];

#[test]
fn a_golden_that_no_stage_can_take_leaves_the_chained_report_as_it_is() {
    let inputs_of_later_stages: [(&str, &[&str]); 6] = [
        (
            "nano",
            &[
                "trunk.0.resid",
                "value.v",
                "td.delta",
                "td.advantage",
                "weight.projected",
                "grad.norm.weight",
                "grad.output.weight",
            ],
        ),
        ("lora", &["grad.layers.0.attention.wq.lora_a"]),
        ("rho1-step", &["rho1.policy_ce", "rho1.reference_ce"]),
        (
            "fv",
            &[
                "mean_activations",
                "effect.average",
                "top.heads",
                "fv_resid",
            ],
        ),
        ("adamw", &["schedule.factor"]),
        ("weighting", &["td.delta.right"]),
    ];
    for (name, keys) in inputs_of_later_stages {
        let sound = load(name);
        for (key, unfit) in keys.iter().flat_map(|key| UNFIT.map(|unfit| (key, unfit))) {
            let mut case = sound.clone();
            unfit(case.golden.get_mut(*key).expect("a golden key"));
            let report = parity::run(&case, Precision::F32, Mode::Chained, &Device::Cpu)
                .expect("the subject is sound");
            let first = report.first_divergence.expect("a difference is found");
            assert_eq!(first.key.as_deref(), Some(*key));
            assert_eq!(first.isolated, Some(Status::Fail), "{key}");
        }
    }
}

#[test]
fn a_golden_key_that_no_stage_compares_fails_the_contract() {
    let mut case = load("nano");
    let other = Values::vector(vec![1.0]);
    case.golden.insert("router.logits".to_owned(), other);
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!((report.exit_code(), report.mismatch_count), (1, 1));
    assert_eq!(report.not_compared, ["router.logits"]);
    let first = report.first_divergence.expect("it differs");
    let place = (first.stage, first.file, first.key.as_deref());
    let expected = ("contract", "golden.safetensors", Some("router.logits"));
    assert_eq!(place, expected);
    assert_eq!(first.reason, "no stage of this program compares it");
}

#[test]
fn a_golden_stored_in_another_type_fails_the_contract() {
    let mut case = load("nano");
    let resid = case.golden.get_mut("trunk.0.resid").unwrap();
    assert_eq!(resid.dtype.replace(DType::F32), Some(DType::F64));
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!((report.exit_code(), report.mismatch_count), (1, 1));
    let first = report.first_divergence.expect("it differs");
    let place = (first.stage, first.key.as_deref(), first.reason.as_str());
    let reason = "stored in f32, expected f64";
    assert_eq!(place, ("contract", Some("trunk.0.resid"), reason));
}

#[test]
fn a_stage_that_compares_nothing_fails() {
    let mut case = load("nano");
    case.golden.retain(|key, _| !key.starts_with("value."));
    let report = parity::run(&case, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!(first_reason(report).0, "value");
    let mut empty = load("passk");
    empty.golden.clear();
    let report = parity::run(&empty, Precision::F64, Mode::Chained, &Device::Cpu).unwrap();
    assert_eq!(report.exit_code(), 4);
}

#[test]
fn the_committed_goldens_stay_small() {
    let files = parity::find_all(Path::new(GOLDENS))
        .unwrap()
        .into_iter()
        .flat_map(|folder| {
            let entries = std::fs::read_dir(folder).unwrap();
            entries.map(|entry| entry.unwrap().metadata().unwrap().len())
        });
    assert!(files.sum::<u64>() < 5_000_000);
}
