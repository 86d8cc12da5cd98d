//! The nano case in f64 and f32, deliberate faults, damaged goldens, and the program's exit codes.
//!
//! The goldens live beside the checkout (`../shared/goldens`) or where `WMTP_GOLDENS` says; without them
//! these tests say so and do nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use parity::{Case, Mutation, Precision, Report, Status};

fn folder() -> Option<PathBuf> {
    let root = std::env::var_os("WMTP_GOLDENS").map_or_else(
        // Tests run in their package's folder; a compiled-in path would be wrong where checkouts share
        // a target folder.
        || Path::new("../../../shared/goldens").to_owned(),
        PathBuf::from,
    );
    let candidates = [root.join("nano"), root.clone()];
    let found = candidates
        .into_iter()
        .find(|folder| folder.join("manifest.json").is_file());
    if found.is_none() {
        announce(&format!(
            "SKIPPED: no golden case under {}; set WMTP_GOLDENS",
            root.display()
        ));
    }
    found
}

#[expect(
    clippy::print_stderr,
    reason = "a skipped test says so where the test output goes"
)]
fn announce(text: &str) {
    eprintln!("{text}");
}

fn compare(precision: Precision, mutation: Option<Mutation>) -> Option<Report> {
    let case = Case::load(&folder()?).expect("the golden case is whole");
    Some(parity::run_mutated(&case, precision, mutation).expect("the subject runs"))
}

fn assert_passes(precision: Precision) {
    let Some(report) = compare(precision, None) else {
        return;
    };
    assert_eq!(report.status, Status::Pass, "{}", report.markdown());
    assert_eq!((report.mismatch_count, report.exit_code()), (0, 0));
    let compared: Vec<_> = report
        .stages
        .iter()
        .map(|stage| (stage.name, stage.compared))
        .collect();
    let expected = [
        ("tokens", 4),
        ("rotary", 2),
        ("embed", 1),
        ("trunk", 6),
        ("heads", 8),
        ("token-loss", 2),
        ("value", 2),
        ("weighting", 5),
        ("loss", 3),
        ("gradients", 39),
    ];
    assert_eq!(compared, expected);
}

#[test]
fn nano_passes_in_f64() {
    assert_passes(Precision::F64);
}

#[test]
fn nano_passes_in_f32() {
    assert_passes(Precision::F32);
}

fn first_divergence(mutation: Mutation) -> Option<(String, String, String, usize)> {
    let report = compare(Precision::F32, Some(mutation))?;
    assert_eq!(report.exit_code(), 1);
    let after = report
        .stages
        .iter()
        .filter(|stage| stage.status == Status::AfterDivergence)
        .count();
    let first = report.first_divergence.expect("a fault diverges somewhere");
    Some((
        first.stage.to_owned(),
        first.key.unwrap_or_default(),
        first.reason,
        after,
    ))
}

#[test]
fn a_wrong_norm_epsilon_is_found_in_the_first_attention() {
    let Some((stage, key, ..)) = first_divergence(Mutation::NormEpsilon) else {
        return;
    };
    assert_eq!(
        (stage.as_str(), key.as_str()),
        ("trunk", "trunk.0.attn_heads")
    );
}

#[test]
fn a_wrong_rotary_table_is_found_in_the_first_attention() {
    let Some((stage, key, ..)) = first_divergence(Mutation::RotaryTable) else {
        return;
    };
    assert_eq!(
        (stage.as_str(), key.as_str()),
        ("trunk", "trunk.0.attn_heads")
    );
}

#[test]
fn a_weight_taken_at_the_source_is_found_at_the_loss() {
    let Some((stage, _, reason, after)) = first_divergence(Mutation::WeightAtSource) else {
        return;
    };
    assert_eq!(
        (stage.as_str(), reason.as_str(), after),
        ("loss", "values", 1)
    );
}

#[test]
fn a_cut_gradient_is_found_by_name_while_every_value_before_it_agrees() {
    let name = "layers.0.attention.wq.weight";
    let Some((stage, key, reason, after)) =
        first_divergence(Mutation::CutGradient(name.to_owned()))
    else {
        return;
    };
    assert_eq!(
        (stage.as_str(), reason.as_str(), after),
        ("gradients", "missing", 0)
    );
    assert_eq!(key, format!("grad.{name}"));
}

#[test]
fn a_stage_that_compares_nothing_fails() {
    let Some(folder) = folder() else { return };
    let mut case = Case::load(&folder).unwrap();
    case.golden.retain(|key, _| !key.starts_with("value."));
    let report = parity::run(&case, Precision::F64).unwrap();
    assert_eq!(report.first_divergence.unwrap().stage, "value");
}

#[test]
fn one_changed_byte_of_a_golden_is_refused_with_exit_code_3() {
    let Some(folder) = folder() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "manifest.json",
        "weights.safetensors",
        "inputs.safetensors",
        "golden.safetensors",
    ] {
        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        if name == "golden.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        }
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let output = program(&["--goldens", dir.path().to_str().unwrap(), "--dtype", "f64"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SHA-256"));
}

#[test]
fn the_program_writes_both_reports_and_exits_0() {
    let Some(folder) = folder() else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().to_str().unwrap();
    let output = program(&[
        "--goldens",
        folder.to_str().unwrap(),
        "--dtype",
        "f64",
        "--report",
        report,
    ]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json = std::fs::read_to_string(dir.path().join("parity_report.json")).unwrap();
    assert!(
        json.contains("\"schema\": \"wmtp.parity-report/1\"")
            && json.contains("\"mismatch_count\": 0")
    );
    assert!(dir.path().join("parity_report.md").is_file());
}

#[test]
fn missing_goldens_and_wrong_usage_have_their_own_exit_codes() {
    assert_eq!(
        program(&["--goldens", "/nowhere", "--dtype", "f64"])
            .status
            .code(),
        Some(3)
    );
    assert_eq!(
        program(&["--dtype", "f16", "--goldens", "/nowhere"])
            .status
            .code(),
        Some(2)
    );
}

fn program(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_parity"))
        .args(args)
        .env_remove("WMTP_GOLDENS")
        .output()
        .expect("the program starts")
}
