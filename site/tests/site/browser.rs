//! Pages of every kind in real browsers: axe, overflow, requests, errors, scripts off, keyboard, steady pictures, print.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::edges::with_outsider;
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

/// What a model from outside looks otherwise on.
const PAGES_OF_AN_OUTSIDER: [&str; 3] = ["index.html", "v/big-model/index.html", "lineage.html"];

/// Templates in the stored pictures: one page of every kind that is one of words, tables or charts, in English alone, because
/// the fonts of the pictures have no Korean.
fn pictured() -> impl Iterator<Item = &'static str> {
    PAGES
        .into_iter()
        .filter(|page| !page.starts_with("ko/") && !page.starts_with("r/"))
}

/// A browser that the pages are checked in, by the names that its binary goes by.
struct Browser {
    name: &'static str,
    binaries: &'static [&'static str],
    /// What it needs besides.
    beside: &'static [&'static str],
    /// What Node needs for it.
    node_flags: &'static [&'static str],
}

const CHROMIUM: Browser = Browser {
    name: "Chromium",
    binaries: &["chromium", "chromium-browser", "google-chrome"],
    beside: &[],
    node_flags: &[],
};

const FIREFOX: Browser = Browser {
    name: "Firefox",
    binaries: &["firefox-esr", "firefox"],
    beside: &[],
    // There since Node 20.10, and the default since Node 22.
    node_flags: &["--experimental-websocket"],
};

const WEBKIT: Browser = Browser {
    name: "WebKit",
    binaries: &["WebKitWebDriver"],
    beside: &["xvfb-run"],
    node_flags: &[],
};

/// What the checks need besides a site.
struct Tools {
    browser: PathBuf,
    node_flags: &'static [&'static str],
    /// Folder of the packages of `tests/browser/package.json`.
    packages: PathBuf,
}

/// A browser, Node and the packages, or the reason why the checks cannot be made.
fn tools(browser: &Browser) -> Result<Tools, String> {
    let packages = rooted(".wmtp/browser/node_modules");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = |name: &&str| {
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    };
    let missing = |name: &str| format!("no {name} is on the path");
    let found = browser.binaries.iter().find_map(on_path);
    let found = found.ok_or_else(|| missing(browser.name))?;
    for name in ["node"].iter().chain(browser.beside) {
        on_path(name).ok_or_else(|| missing(name))?;
    }
    let knows_flags = Command::new("node")
        .args(browser.node_flags)
        .args(["--eval", ""])
        .output();
    if !knows_flags.is_ok_and(|ended| ended.status.success()) {
        return Err(format!("Node is too old for {:?}", browser.node_flags));
    }
    if !packages.join("axe-core").is_dir() || !packages.join("dejavu-fonts-ttf").is_dir() {
        return Err(
            "axe-core and the fonts are not installed: make .wmtp/browser/installed".to_owned(),
        );
    }
    Ok(Tools {
        browser: found,
        node_flags: browser.node_flags,
        packages,
    })
}

/// A path of the repository.
fn rooted(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The tools, or a line that says that a test was skipped and why.
fn tools_or_skip(test: &str, browser: &Browser) -> Option<Tools> {
    match tools(browser) {
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

impl Tools {
    /// Runs a script of `tests/browser`: whether it found nothing, and what it said.
    fn run(&self, script: &str, arguments: &[&Path], words: &[&str]) -> (bool, String) {
        let ended = Command::new("node")
            .args(self.node_flags)
            .arg(rooted("tests/browser").join(script))
            .arg(&self.browser)
            .args(arguments)
            .args(words)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&ended.stdout).into_owned()
            + &String::from_utf8_lossy(&ended.stderr);
        (ended.status.success(), told)
    }

    fn check(&self, site: &Path, pages: &[&str]) -> (bool, String) {
        let axe = self.packages.join("axe-core/axe.min.js");
        self.run("check.mjs", &[&axe, site], pages)
    }
}

/// A page that does what no page may.
const FAULTY: &str = "<!doctype html><title>t</title><body><p id=w>words</p>\
    <img src=\"http://example.invalid/x.png\"><div style=\"width:3000px\">wide</div><script src=\"faulty.js\"></script></body>";
const FAULTY_SCRIPT: &str = "document.getElementById('w').textContent = 'others'; notThere();";

/// The checks find what they are for, and nothing on the pages of the site.
fn assert_pages_pass(test: &str, browser: &Browser) {
    let Some(tools) = tools_or_skip(test, browser) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("faulty.html"), FAULTY).unwrap();
    std::fs::write(folder.path().join("faulty.js"), FAULTY_SCRIPT).unwrap();
    let (passed, told) = tools.check(folder.path(), &["faulty.html"]);
    assert!(!passed, "{told}");
    // What WebKit does not tell is looked for in the others.
    let error = (browser.name != WEBKIT.name).then_some("notThere is not defined");
    let found = [
        "faulty.html at 390 px, dark: runs over to the side: <div style",
        "faulty.html at 1440 px, light: html-has-lang",
        "faulty.html: light and dark have the paper",
        "faulty.html: says something else without scripts",
        "//example.invalid/x.png",
    ];
    for fault in found.into_iter().chain(error) {
        assert!(told.contains(fault), "{fault} is not in: {told}");
    }

    let out = written(folder.path(), PAGES.into_iter());
    let outsider = folder.path().join("outsider");
    with_outsider(0.4).write(&outsider).unwrap();
    for (site, pages) in [(&out, &PAGES[..]), (&outsider, &PAGES_OF_AN_OUTSIDER[..])] {
        let (passed, told) = tools.check(site, pages);
        let end = format!("{} pages, 0 faults\n", pages.len());
        assert!(passed && told.contains(&end), "{told}");
    }
}

#[test]
#[ignore = "minutes, and needs Chromium, Node and axe-core; part of `make test-full`"]
fn pages_of_every_kind_pass_in_chromium() {
    assert_pages_pass("pages_of_every_kind_pass_in_chromium", &CHROMIUM);
}

#[test]
#[ignore = "minutes, and needs Firefox, Node and axe-core; part of `make test-full`"]
fn pages_of_every_kind_pass_in_firefox() {
    assert_pages_pass("pages_of_every_kind_pass_in_firefox", &FIREFOX);
}

#[test]
#[ignore = "minutes, and needs WebKitGTK with its driver, Xvfb, Node and axe-core; part of `make test-full`"]
fn pages_of_every_kind_pass_in_webkit() {
    assert_pages_pass("pages_of_every_kind_pass_in_webkit", &WEBKIT);
}

/// `make site-pictures` sets `WMTP_SITE_PICTURES=renew` and takes them anew; to be looked at before they are committed.
#[test]
#[ignore = "minutes, and needs Chromium, Node and pinned fonts; part of `make test-full`"]
fn every_template_looks_as_its_stored_pictures() {
    let Some(tools) = tools_or_skip("every_template_looks_as_its_stored_pictures", &CHROMIUM)
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = written(folder.path(), pictured());
    let stored = rooted("tests/browser/pictures");
    let mode = std::env::var("WMTP_SITE_PICTURES").unwrap_or_else(|_| "compare".to_owned());
    let pages: Vec<&str> = pictured().collect();
    let words = [&[mode.as_str()][..], &pages[..]].concat();
    let (passed, told) = tools.run("pictures.mjs", &[&out, &stored], &words);
    // Phone, desk, wall and paper.
    let end = format!("{} pictures, 0 faults\n", 4 * pages.len());
    assert!(passed && told.contains(&end), "{told}");
}
