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

/// Templates in the stored pictures: one page of every kind that is one of words, tables or charts, in English alone, because
/// the fonts of the pictures have no Korean.
fn pictured() -> impl Iterator<Item = &'static str> {
    PAGES
        .into_iter()
        .filter(|page| !page.starts_with("ko/") && !page.starts_with("r/"))
}

/// What the checks need besides a site.
struct Tools {
    chromium: PathBuf,
    /// Folder of the packages of `tests/browser/package.json`.
    packages: PathBuf,
}

/// Chromium, Node and the packages, or the reason why the checks cannot be made.
fn tools() -> Result<Tools, &'static str> {
    let packages = rooted(".wmtp/browser/node_modules");
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
    if !packages.join("axe-core").is_dir() || !packages.join("dejavu-fonts-ttf").is_dir() {
        return Err("axe-core and the fonts are not installed: make .wmtp/browser/installed");
    }
    Ok(Tools { chromium, packages })
}

/// A path of the repository.
fn rooted(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The tools, or a line that says that a test was skipped and why.
fn tools_or_skip(test: &str) -> Option<Tools> {
    match tools() {
        Ok(tools) => Some(tools),
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
            None
        }
    }
}

/// Writes the site of the typical world below a folder, two levels below what is served, as under a bucket's prefix.
fn written(folder: &Path, pages: impl Iterator<Item = &'static str>) -> PathBuf {
    let site = rendered(&World::typical().input(folder));
    let out = folder.join("bucket/reports");
    site.write(&out).unwrap();
    for page in pages {
        assert!(site.text(page).is_some(), "there is no {page}");
    }
    out
}

/// Runs a script of `tests/browser` and asserts that it found nothing.
fn assert_no_faults(script: &str, arguments: &[&Path], words: &[&str], pages: &[&str], end: &str) {
    let ended = Command::new("node")
        .arg(rooted("tests/browser").join(script))
        .args(arguments)
        .args(words)
        .args(pages)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert!(told.ends_with(end), "{told}");
}

#[test]
#[ignore = "minutes, and needs Chromium, Node and axe-core; part of `make test-full`"]
fn pages_of_every_kind_pass_in_a_browser() {
    let Some(tools) = tools_or_skip("pages_of_every_kind_pass_in_a_browser") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = written(folder.path(), PAGES.into_iter());
    let axe = tools.packages.join("axe-core/axe.min.js");
    let end = format!("{} pages, 0 faults\n", PAGES.len());
    assert_no_faults(
        "check.mjs",
        &[&tools.chromium, &axe, &out],
        &[],
        &PAGES,
        &end,
    );
}

/// `make site-pictures` sets `WMTP_SITE_PICTURES=renew` and takes them anew; to be looked at before they are committed.
#[test]
#[ignore = "minutes, and needs Chromium, Node and pinned fonts; part of `make test-full`"]
fn every_template_looks_as_its_stored_pictures() {
    let Some(tools) = tools_or_skip("every_template_looks_as_its_stored_pictures") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = written(folder.path(), pictured());
    let stored = rooted("tests/browser/pictures");
    let mode = std::env::var("WMTP_SITE_PICTURES").unwrap_or_else(|_| "compare".to_owned());
    let pages: Vec<&str> = pictured().collect();
    // Phone, desk, wall and paper.
    let end = format!("{} pictures, 0 faults\n", 4 * pages.len());
    assert_no_faults(
        "pictures.mjs",
        &[&tools.chromium, &out, &stored],
        &[&mode],
        &pages,
        &end,
    );
}
