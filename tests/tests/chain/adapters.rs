//! A policy trained through adapters goes the same way as one that is trained whole.

use std::path::{Path, PathBuf};

use trial::Ended;

use crate::place::Place;
use crate::steps::{VERIFIABLE, beginning};
use crate::stops::of;

#[test]
fn a_checkpoint_of_adapters_is_evaluated_like_any_other() {
    let place = Place::new();
    place.chain("here", beginning());
    let train = [
        "--set=lora.r=2",
        "--set=lora.targets=[wq, w2]",
        "--set=lora.dropout=0.05",
        "--data=d",
        "--base=base",
        "--name=v001",
        "--recipe=tiny.yaml",
    ];
    let on_a_device = [&train[..], &["--device=cuda"]].concat();
    let refused = place.run("here", "train-stage2", &on_a_device).expect(2);
    refused.says(&["lora.dropout is 0.05", "give --device cpu"]);
    place.run("here", "train-stage2", &train).expect(0);
    let evaluate = ["--data=d", "--checkpoint=v001", "--recipe=tiny.yaml"];
    place.run("here", "evaluate", &evaluate).expect(0);
    let adapter = find(&place.path("here-cache"), "adapter.safetensors").expect("an adapter file");
    let merged = adapter.with_file_name("model.safetensors");
    let size = |path: &Path| std::fs::metadata(path).expect("a file").len();
    // micro-mtp: 64 wide, 192 inside, 10 blocks; rank 2 on wq and w2, 4 bytes each, and a header.
    let numbers = 10 * 2 * ((64 + 64) + (192 + 64));
    assert!((4 * numbers..4 * numbers + 10_000).contains(&size(&adapter)));
    assert!(size(&merged) > 10 * size(&adapter));
}

#[test]
fn value_model_and_reference_of_adapters_have_the_form_of_those_trained_whole() {
    let place = Place::new();
    for prefix in ["calm", "here"] {
        place.chain(prefix, beginning());
    }
    for (objective, base, kind, rank) in [
        ("value", "base", "value-model", "--set=stage1.lora_r=2"),
        (
            "reference",
            "ref",
            "reference-ce",
            "--set=reference.lora_r=2",
        ),
    ] {
        let arguments = |name, rank| {
            [
                "--objective",
                objective,
                "--data=d",
                "--base",
                base,
                "--recipe=tiny.yaml",
                "--json",
                "--name",
                name,
                rank,
            ]
        };
        let whole = place.run("calm", "train-stage1", &arguments("whole", "--set=seed=42"));
        let adapted = arguments("adapted", rank);
        let expected = place.run("calm", "train-stage1", &adapted).expect(0);
        assert_ne!(
            expected.result()["outputs"],
            whole.expect(0).result()["outputs"]
        );

        // Killed in its third step and begun again, it ends with the same artifacts.
        let mut job = place.job("here", "train-stage1", &adapted);
        let killed = Ended::of(job.env("WMTP_FAULT_POINT", "train:step:3"));
        assert_eq!(killed.code, None, "{}", killed.stderr);
        let again = place.run("here", "train-stage1", &adapted).expect(0);
        assert_eq!(of(&again, "resumed")[0]["step"], 2);
        assert_eq!(
            again.result()["outputs"],
            expected.result()["outputs"],
            "{objective}"
        );

        let model = |name| {
            let folder = place.path(&format!("{objective}-{name}"));
            let to = folder.to_str().expect("temporary folders have plain names");
            let pull = ["pull", name, "--kind", kind, "--to", to];
            place.run("calm", "sync-storage", &pull).expect(0);
            std::fs::read(folder.join("model.safetensors")).expect("the weights")
        };
        let (whole, merged) = (model("whole"), model("adapted"));
        // Names, types, shapes and places of all tensors.
        let length = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes"));
        let header = 8 + usize::try_from(length).expect("it fits");
        assert!(whole[..header] == merged[..header] && whole != merged);
    }
    let verifiable = [
        "--data=d",
        "--base=base",
        "--advantages=adapted",
        "--recipe=tiny.yaml",
    ];
    let verifiable = [&VERIFIABLE[..], &verifiable].concat();
    place.run("here", "train-stage2", &verifiable).expect(0);
    let paper = [
        "--set=experiment.algo=rho1",
        "--set=rho1.weighting=topk",
        "--set=rho1.hard=true",
        "--data=d",
        "--base=base",
        "--reference-ce=adapted",
        "--recipe=tiny.yaml",
        "--name=paper",
    ];
    place.run("here", "train-stage2", &paper).expect(0);
    let statistics = place.file("here", "checkpoint", "paper", "weights.jsonl");
    assert!(!statistics.is_empty());
    for line in statistics {
        let line: serde_json::Value = serde_json::from_str(&line).expect("a line");
        let number = |key: &str| line[key].as_f64().expect("a number");
        assert!(
            (number("mean") - 1.0).abs() < 1e-9 && number("entropy") < 1.0,
            "{line}"
        );
        assert!(number("min") == 0.0 && number("max") < 3.0, "{line}");
        assert!((number("clip_low") - 0.4).abs() < 0.1, "{line}");
    }
}

/// The first file of this name below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let here = paths
        .iter()
        .find(|path| path.is_file() && path.ends_with(name));
    here.cloned().or_else(|| {
        let mut folders = paths.iter().filter(|path| path.is_dir());
        folders.find_map(|path| find(path, name))
    })
}
