//! A policy trained through adapters goes the same way as one that is trained whole.

use std::path::{Path, PathBuf};

use crate::place::Place;
use crate::steps::beginning;

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
