//! Pages of every kind in a real browser: axe, overflow, requests, scripts off, steady pictures, print.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixture::World;
use crate::rendered;

/// One page of every kind, in both languages where it is one of words.
const PAGES: [&str; 28] = [
    "index.html",
    "v/v002/index.html",
    "v/v002/analysis.html",
    "v/v002/samples.html",
    "v/v002/log.html",
    "t/index.html",
    "t/micropy/clamp/0003.html",
    "compare/index.html",
    "compare/v001-v002.html",
    "algorithms.html",
    "lineage.html",
    "sweeps/index.html",
    "sweeps/experiment-algo.html",
    "cost.html",
    "method.html",
    "final.html",
    "card.html",
    "present.html",
    "changes.html",
    "runs/index.html",
    "runs/train-running/index.html",
    "runs/train-failed/index.html",
    "search.html",
    "ko/index.html",
    "ko/v/v002/index.html",
    "ko/method.html",
    "ko/runs/train-lost/index.html",
    "r/2026-11-21_12-05/index.html",
];

/// Chromium and axe, or the reason why the checks cannot be made.
fn tools() -> Result<(PathBuf, PathBuf), &'static str> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let axe = root.join(".wmtp/browser/node_modules/axe-core/axe.min.js");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = |name: &str| {
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    };
    let chromium = on_path("chromium")
        .or_else(|| on_path("chromium-browser"))
        .or_else(|| on_path("google-chrome"));
    let chromium = chromium.ok_or("no Chromium is on the path")?;
    on_path("node").ok_or("no Node is on the path")?;
    if !axe.is_file() {
        return Err("axe-core is not installed: make .wmtp/browser/installed");
    }
    Ok((chromium, axe))
}

#[test]
#[ignore = "minutes, and needs Chromium, Node and axe-core; part of `make test-full`"]
fn pages_of_every_kind_pass_in_a_browser() {
    let (chromium, axe) = match tools() {
        Ok(tools) => tools,
        Err(reason) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED pages_of_every_kind_pass_in_a_browser: {reason}"
            );
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let site = rendered(&World::typical().input(folder.path()));
    // Two levels below what is served, as under a bucket's prefix.
    let out = folder.path().join("bucket/reports");
    site.write(&out).unwrap();
    for page in PAGES {
        assert!(site.text(page).is_some(), "there is no {page}");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/browser/check.mjs");
    let ended = Command::new("node")
        .arg(script)
        .args([&chromium, &axe, &out])
        .args(PAGES)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert!(
        told.ends_with(&format!("{} pages, 0 faults\n", PAGES.len())),
        "{told}"
    );
}
