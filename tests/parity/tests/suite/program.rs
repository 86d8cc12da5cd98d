//! The `parity` program: reports, exit codes, thread counts.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::cases::GOLDENS;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parity"));
    command.args(args).env_remove("WMTP_GOLDENS");
    command
}

fn program(args: &[&str]) -> Output {
    command(args).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_program_writes_both_reports_and_exits_0() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().to_str().unwrap();
    let output = program(&[
        "--goldens",
        GOLDENS,
        "--case",
        "nano",
        "--dtype",
        "f64",
        "--report",
        report,
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = std::fs::read(dir.path().join("parity_report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["schema"], "wmtp.parity-report/1");
    assert_eq!(
        (&json["status"], &json["mode"]),
        (&"pass".into(), &"chained".into())
    );
    assert_eq!(
        (&json["mismatch_count"], &json["compared_count"]),
        (&0.into(), &155.into())
    );
    let again = "make parity CASE=nano DTYPE=f64 GOLDENS=goldens";
    assert_eq!(json["rerun"], again);
    assert!(dir.path().join("parity_report.md").is_file());
}

#[test]
fn all_runs_every_case_and_reports_each() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().to_str().unwrap();
    let output = program(&["--goldens", GOLDENS, "--dtype", "f32", "--report", report]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for case in ["adamw", "nano-h4-mha", "weighting"] {
        assert!(
            dir.path().join(case).join("parity_report.json").is_file(),
            "{case}"
        );
    }
}

#[test]
fn one_and_two_threads_give_the_same_report() {
    let report = |case: &str, dtype: &str, threads: &str| {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().to_str().unwrap();
        let args = ["--goldens", GOLDENS, "--case", case, "--dtype", dtype];
        let output = command(&[&args[..], &["--report", report]].concat())
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        std::fs::read_to_string(dir.path().join("parity_report.json")).unwrap()
    };
    for case in ["nano", "lora", "fv"] {
        for dtype in ["f32", "f64"] {
            let one = report(case, dtype, "1");
            assert_eq!(one, report(case, dtype, "2"), "{case} {dtype}");
        }
    }
}

/// A copy of a committed case in which files may be changed.
fn copy(case: &str, change: impl Fn(&str, &mut Vec<u8>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    copy_into(dir.path(), case, change);
    dir
}

fn copy_into(dir: &Path, case: &str, change: impl Fn(&str, &mut Vec<u8>)) {
    std::fs::create_dir_all(dir).expect("a folder");
    let entries = std::fs::read_dir(Path::new(GOLDENS).join(case)).expect("a committed case");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().and_then(OsStr::to_str).expect("a name");
        let mut bytes = std::fs::read(&path).expect("a file");
        change(name, &mut bytes);
        std::fs::write(dir.join(name), bytes).expect("a copy");
    }
}

#[test]
fn a_case_that_cannot_be_read_leaves_no_report_of_an_earlier_run() {
    let (goldens, reports) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = |case: &str| goldens.path().join(case);
    for case in ["passk", "weighting"] {
        copy_into(&folder(case), case, |_, _| ());
    }
    let run = |case: &str| {
        let (goldens, reports) = (goldens.path().to_str(), reports.path().to_str());
        let at = ["--goldens", goldens.unwrap(), "--report", reports.unwrap()];
        let what = ["--case", case, "--dtype", "f64"];
        program(&[at, what].concat()).status.code()
    };
    let of_all = reports.path().join("passk/parity_report.json");
    let alone = reports.path().join("parity_report.json");
    assert_eq!((run("all"), run("passk")), (Some(0), Some(0)));
    assert!(alone.is_file() && !of_all.exists(), "the newer one alone");
    assert_eq!(run("all"), Some(0));
    assert!(of_all.is_file() && !alone.exists(), "the newer one alone");

    copy_into(&folder("passk"), "passk", |name, bytes| {
        if name == "golden.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        }
    });
    assert_eq!(run("all"), Some(3));
    assert!(!of_all.exists() && !of_all.with_extension("md").exists());
    let other = reports.path().join("weighting/parity_report.json");
    assert!(other.is_file(), "the sound case is compared all the same");

    copy_into(&folder("passk"), "passk", |_, _| ());
    assert_eq!(run("passk"), Some(0));
    std::fs::remove_dir_all(folder("passk")).unwrap();
    assert_eq!(run("passk"), Some(3));
    assert!(!alone.exists());
}

#[test]
fn a_manifest_must_say_which_weights_have_no_gradient() {
    for (absent, reason) in [
        ("\"norm.weight\"", "norm.weight, which has a gradient"),
        ("\"other.weight\"", "other.weight, which is no weight"),
        ("", "value_head.weight has no gradient"),
    ] {
        let dir = copy("nano", |name, bytes| {
            if name == "manifest.json" {
                let text = String::from_utf8(bytes.clone()).unwrap();
                assert_eq!(text.matches("\"value_head.weight\"").count(), 1);
                *bytes = text.replace("\"value_head.weight\"", absent).into_bytes();
            }
        });
        let output = program(&["--goldens", dir.path().to_str().unwrap(), "--dtype", "f64"]);
        assert_eq!(output.status.code(), Some(3), "{reason}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
}

#[test]
fn one_changed_byte_of_any_file_is_refused_with_exit_code_3() {
    for file in ["golden.safetensors", "inputs.safetensors"] {
        let dir = copy("passk", |name, bytes| {
            if name == file {
                *bytes.last_mut().unwrap() ^= 1;
            }
        });
        let output = program(&["--goldens", dir.path().to_str().unwrap(), "--dtype", "f64"]);
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("SHA-256"), "{}", stderr(&output));
    }
}

type Alteration = fn(&mut HashMap<String, Tensor>, &mut Json);

/// A copy of a committed case with other inputs or another manifest, and digests that fit.
fn altered(case: &str, change: Alteration) -> tempfile::TempDir {
    let dir = copy(case, |_, _| ());
    let (inputs, manifest) = (
        dir.path().join("inputs.safetensors"),
        dir.path().join("manifest.json"),
    );
    let mut tensors = candle_core::safetensors::load(&inputs, &Device::Cpu).expect("inputs");
    let text = std::fs::read(&manifest).expect("a manifest");
    let mut json: Json = serde_json::from_slice(&text).expect("JSON");
    change(&mut tensors, &mut json);
    candle_core::safetensors::save(&tensors, &inputs).expect("a copy");
    let digest = Sha256::digest(std::fs::read(&inputs).expect("inputs"));
    let digest = digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    });
    json["files"]["inputs.safetensors"] = digest.into();
    std::fs::write(&manifest, json.to_string()).expect("a copy");
    dir
}

/// All but the last of a tensor's rows.
fn shorten(tensors: &mut HashMap<String, Tensor>, key: &str) {
    let tensor = &tensors[key];
    let rows = tensor.dim(0).expect("rows") - 1;
    let shorter = tensor.narrow(0, 0, rows).expect("rows").contiguous();
    tensors.insert(key.to_owned(), shorter.expect("a copy"));
}

#[test]
fn inputs_and_settings_that_do_not_fit_are_refused_with_exit_code_3() {
    let alterations: [(&str, Alteration, &str); 13] = [
        (
            "nano",
            |inputs, _| shorten(inputs, "reward"),
            "input reward has shape [2], expected [3]",
        ),
        (
            "nano",
            |inputs, _| shorten(inputs, "mask"),
            "input mask has shape [2, 12], expected [3, 12]",
        ),
        (
            "nano",
            |inputs, _| {
                let ones = inputs["mask"].ones_like().unwrap();
                inputs.insert("mask".to_owned(), ones);
            },
            "input mask has a row",
        ),
        (
            "nano",
            |inputs, _| {
                let none = inputs["mask"].zeros_like().unwrap();
                inputs.insert("mask".to_owned(), none);
            },
            "no response target",
        ),
        (
            "nano",
            |inputs, _| {
                let far = (inputs["ids"].ones_like().unwrap() * 61.0).unwrap();
                inputs.insert("ids".to_owned(), far);
            },
            "input ids holds 61, expected whole numbers below 61",
        ),
        (
            "nano",
            |inputs, _| shorten(inputs, "rope.sin"),
            "input rope.sin has shape [11, 4], expected [12, 4]",
        ),
        (
            "nano",
            |_, manifest| manifest["config"]["theta"] = 0.into(),
            "rope_theta",
        ),
        (
            "nano",
            |_, manifest| manifest["config"]["n_heads"] = 5.into(),
            "does not split into 5 heads",
        ),
        (
            "nano",
            |_, manifest| manifest["config"]["n_kv"] = 4.into(),
            "has shape [16, 32], expected [32, 32]",
        ),
        (
            "nano",
            |_, manifest| manifest["config"]["w_max"] = 0.5.into(),
            "weights.w_max is 0.5",
        ),
        (
            "adamw",
            |inputs, _| shorten(inputs, "grad.long"),
            "input grad.long has shape [9",
        ),
        (
            "lora",
            |inputs, _| shorten(inputs, "weights"),
            "input weights has shape [2, 13], expected [3, 13]",
        ),
        (
            "fv",
            |inputs, _| shorten(inputs, "trial.0.slots"),
            "trial 0",
        ),
    ];
    for (case, alteration, reason) in alterations {
        let dir = altered(case, alteration);
        let report = dir.path().join("report");
        let (goldens, target) = (dir.path().to_str().unwrap(), report.to_str().unwrap());
        let at = ["--goldens", goldens, "--report", target];
        let output = program(&[&at[..], &["--dtype", "f32"]].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{case}, {reason}: {said}");
        assert!(said.contains(reason), "{case}, {reason}: {said}");
        assert!(!report.join("parity_report.json").exists());
    }
    let same = altered("nano", |_, _| ());
    let output = program(&["--goldens", same.path().to_str().unwrap(), "--dtype", "f32"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_divergence_exits_1_and_the_json_names_it() {
    // Another base than the golden's: the tables part at the second position.
    let dir = copy("rope", |name, bytes| {
        if name == "manifest.json" {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replacen("10000.0", "10001.0", 1).into_bytes();
        }
    });
    let report = dir.path().join("report");
    let goldens = dir.path().to_str().unwrap();
    let output = program(&[
        "--goldens",
        goldens,
        "--dtype",
        "f64",
        "--report",
        report.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let json = std::fs::read(report.join("parity_report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let first = &json["first_divergence"];
    assert_eq!(
        (&first["stage"], &first["file"]),
        (&"rotary".into(), &"golden.safetensors".into())
    );
    assert_eq!(
        (&first["key"], &first["isolated"]),
        (&"cos.e64-theta10000".into(), &"fail".into())
    );
    assert_eq!(first["index"].as_array().map(Vec::len), Some(2));
    assert!(first["expected"].is_number() && first["actual"].is_number());
    assert!(stderr(&output).contains("First divergence"));
}

#[test]
fn missing_goldens_and_wrong_usage_have_their_own_exit_codes() {
    let code = |args: &[&str]| program(args).status.code();
    assert_eq!(code(&["--goldens", "/nowhere", "--dtype", "f64"]), Some(3));
    assert_eq!(
        code(&["--goldens", GOLDENS, "--case", "none", "--dtype", "f64"]),
        Some(3)
    );
    assert_eq!(code(&["--dtype", "f16", "--goldens", "/nowhere"]), Some(2));
    assert_eq!(
        code(&["--dtype", "f64", "--goldens", GOLDENS, "--mode", "other"]),
        Some(2)
    );
}

#[test]
fn what_cannot_be_opened_or_written_is_a_matter_of_configuration() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("report");
    for report in [file.path(), &below] {
        let report = report.to_str().unwrap();
        let case = ["--goldens", GOLDENS, "--case", "passk", "--dtype", "f64"];
        let output = program(&[&case[..], &["--report", report]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(report), "{}", stderr(&output));
    }
    if cfg!(not(feature = "cuda")) {
        let case = ["--goldens", GOLDENS, "--case", "passk", "--dtype", "f64"];
        let output = program(&[&case[..], &["--device", "cuda"]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("cuda-build"),
            "{}",
            stderr(&output)
        );
    }
}
