//! What a change rewrites, and what it leaves alone.

use std::collections::BTreeSet;

use build_site::{Options, Site, pages};

use crate::fixture::World;
use crate::rendered;

/// Paths whose bytes differ, snapshots left out: one that stands is never written again.
fn changed(before: &Site, after: &Site) -> BTreeSet<String> {
    let text = |site: &Site| -> std::collections::BTreeMap<String, Vec<u8>> {
        let own = site.files().filter(|(path, _)| !path.starts_with("r/"));
        own.map(|(path, bytes)| (path.to_owned(), bytes.to_vec()))
            .collect()
    };
    let (before, after) = (text(before), text(after));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    differ.cloned().collect()
}

#[test]
fn an_edit_to_one_version_rewrites_its_pages_the_index_pages_and_the_manifest() {
    let root = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    let before = rendered(&input);
    before.write(out.path()).unwrap();
    let edited = input
        .versions
        .iter_mut()
        .find(|version| version.row.version_id == "v003")
        .unwrap();
    edited
        .analysis
        .insert_str(0, "One sentence before all others.\n\n");
    let after = rendered(&input);
    let expected: BTreeSet<String> = [
        "data/manifest.json",
        "data/search-index-ko.js",
        "data/search-index.js",
        "ko/v/v003/analysis.html",
        "ko/v/v003/index.html",
        "v/v003/analysis.html",
        "v/v003/index.html",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(changed(&before, &after), expected);
    assert_eq!(after.write(out.path()).unwrap().changed, expected.len());
}

#[test]
fn a_new_score_of_one_version_leaves_the_pages_of_others_alone() {
    let root = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    let before = rendered(&input);
    // A version that neither leads nor is a parent or control of another.
    let rescored = |row: &mut wmtp_stats::leaderboard::LeaderboardRow| {
        row.latency_ms = row.latency_ms.map(|millis| millis + 1.0);
    };
    input
        .versions
        .iter_mut()
        .filter(|version| version.row.version_id == "v003")
        .for_each(|version| rescored(&mut version.row));
    let after = rendered(&input);
    for path in changed(&before, &after) {
        let own = path.contains("v003");
        assert!(own || path == "data/manifest.json", "{path}");
    }
}

#[test]
fn what_is_gone_is_removed_and_what_is_foreign_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    rendered(&input).write(out.path()).unwrap();
    std::fs::write(out.path().join("theirs.txt"), "kept").unwrap();
    input
        .versions
        .retain(|version| version.row.version_id != "v005");
    input.board.rows.retain(|row| row.version_id != "v005");
    let options = Options {
        snapshot: false,
        ..Options::default()
    };
    let written = pages::render(&input, &options)
        .unwrap()
        .write(out.path())
        .unwrap();
    assert!(written.removed > 0);
    assert!(!out.path().join("v/v005").exists(), "empty folders go too");
    assert!(out.path().join("theirs.txt").exists());
    let snapshot = out.path().join("r/2026-11-21_12-05/v/v005/index.html");
    assert!(snapshot.exists(), "a snapshot keeps what it has");
}
