//! The arrows of the house: who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Our libraries from the lowest floor up; an arrow may only point to a lower floor.
const FLOORS: [&str; 14] = [
    "wmtp-artifacts",
    "wmtp-records",
    "wmtp-recipe",
    "wmtp-tracking",
    "wmtp-job-kit",
    "wmtp-stats",
    "wmtp-weighting",
    "wmtp-grading",
    "wmtp-execution",
    "wmtp-tokens",
    "wmtp-data-sets",
    "wmtp-model",
    "wmtp-training",
    "wmtp-decoding",
];

/// The only packages that see candle.
const NUMERIC: [&str; 4] = ["wmtp-model", "wmtp-training", "wmtp-decoding", "parity"];

/// Libraries that know nothing of S3: they hold mathematics and verdicts.
const PURE: [&str; 3] = ["wmtp-weighting", "wmtp-stats", "wmtp-grading"];

fn workspace() -> Metadata {
    MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo describes the workspace")
}

/// Package to the names of its dependencies; those for tests alone do not count.
fn arrows(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let dependencies = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal)
                .map(|dependency| dependency.name.clone());
            (package.name.to_string(), dependencies.collect())
        })
        .collect()
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|library| *library == name)
}

#[test]
fn libraries_depend_on_lower_floors_only() {
    for (package, dependencies) in arrows(&workspace()) {
        let Some(own) = floor(&package) else { continue };
        for dependency in dependencies {
            if let Some(other) = floor(&dependency) {
                assert!(other < own, "{package} may not depend on {dependency}");
            }
        }
    }
}

#[test]
fn every_library_has_a_floor() {
    for package in arrows(&workspace())
        .into_keys()
        .filter(|name| name.starts_with("wmtp-"))
    {
        assert!(
            package == "wmtp-tests" || floor(&package).is_some(),
            "{package} has no floor"
        );
    }
}

#[test]
fn nothing_depends_on_a_job() {
    let metadata = workspace();
    let jobs: BTreeSet<String> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|package| {
            let path = package.manifest_path.as_str();
            path.contains("/jobs/") || path.ends_with("/site/Cargo.toml")
        })
        .map(|package| package.name.to_string())
        .collect();
    assert!(jobs.contains("evaluate"), "the jobs were found");
    for (package, dependencies) in arrows(&metadata) {
        for dependency in dependencies {
            assert!(
                !jobs.contains(&dependency),
                "{package} may not depend on the job {dependency}"
            );
        }
    }
}

#[test]
fn only_the_numeric_rooms_see_candle() {
    for (package, dependencies) in arrows(&workspace()) {
        let sees_candle = dependencies.iter().any(|name| name.starts_with("candle"));
        assert!(
            !sees_candle || NUMERIC.contains(&package.as_str()),
            "{package} may not see candle"
        );
    }
}

#[test]
fn pure_rooms_do_not_reach_the_store() {
    let arrows = arrows(&workspace());
    for package in PURE {
        let mut reached = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(name) = open.pop() {
            for dependency in arrows.get(&name).into_iter().flatten() {
                if reached.insert(dependency.clone()) {
                    open.push(dependency.clone());
                }
            }
        }
        assert!(
            !reached.contains("wmtp-artifacts"),
            "{package} may not reach the store"
        );
    }
}
