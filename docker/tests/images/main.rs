//! The description of the images, and what the commands say where they cannot go on. The images themselves are built, run
//! and held against the job contract by `make images-check`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod mistakes;
mod release;

use std::path::Path;
use std::process::{Command, Output};

use job_images::{Bake, Dockerfile, check};
use serde_json::Value;

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bake() -> Bake {
    Bake::parse(&repository("docker/bake.json"), |_| None).unwrap()
}

/// The jobs whose images the profile of VESSL names.
fn jobs() -> Vec<String> {
    let profile: Value = serde_saphyr::from_str(&repository("vessl/profile.yaml")).unwrap();
    let digests = profile["images"]["digests"].as_object().unwrap();
    assert_eq!(digests.len(), 7, "the profile's images were found");
    digests.keys().cloned().collect()
}

#[test]
fn our_images_keep_every_rule() {
    let dockerfile = Dockerfile::parse(&repository("docker/Dockerfile")).unwrap();
    let found = check(&dockerfile, &bake(), &jobs());
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(lines, Vec::<String>::new());
}

/// `REVISION=abc docker buildx bake --file docker/bake.json --print`, buildx 0.13.1, printed `bake-print.json`.
#[test]
fn we_read_the_bake_file_as_buildx_does() {
    let ours = Bake::parse(&repository("docker/bake.json"), |name| {
        (name == "REVISION").then(|| "abc".to_owned())
    });
    let theirs: Value = serde_json::from_str(include_str!("bake-print.json")).unwrap();
    assert_eq!(ours.unwrap().print(), theirs);
}

#[test]
fn groups_and_names_select_each_image_once() {
    let bake = bake();
    let names = |wanted: &[&str]| -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let targets = bake.select(&wanted).unwrap();
        targets.iter().map(|target| target.name.clone()).collect()
    };
    assert_eq!(names(&[]).len(), 11);
    assert_eq!(
        names(&["cpu", "evaluate", "build-site-cpu"]),
        [
            "sync-storage-cpu",
            "prepare-data-cpu",
            "build-leaderboard-cpu",
            "build-site-cpu",
            "evaluate"
        ]
    );
    let error = bake.select(&["evaluation".to_owned()]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(r#"no target or group "evaluation""#),
        "{error}"
    );
}

/// A version that the packages have left behind would be told by every image.
#[test]
fn images_have_the_version_of_the_packages() {
    let tags: Vec<String> = bake()
        .targets()
        .flat_map(|target| target.tags.clone())
        .collect();
    assert_eq!(tags.len(), 11);
    for tag in tags {
        let (_, version) = tag.rsplit_once(':').unwrap();
        assert_eq!(
            version.trim_end_matches("-cpu"),
            env!("CARGO_PKG_VERSION"),
            "{tag}"
        );
    }
}

fn images(arguments: &[&str], path: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wmtp-images"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env_clear()
        .env("PATH", path)
        .output()
        .unwrap()
}

#[test]
fn a_machine_without_an_engine_is_told_what_to_install() {
    for command in [
        &["build"][..],
        &["run", "localhost/wmtp/evaluate:0.1.0"],
        &["conform", "localhost/wmtp/evaluate:0.1.0"],
    ] {
        let ended = images(command, "/nowhere");
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(69), "{said}");
        for word in [
            "no container engine",
            "docker",
            "podman",
            "buildah",
            "apt-get install podman",
        ] {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
}

#[test]
fn another_program_is_no_engine() {
    let ended = images(&["build", "--engine", "nerdctl"], "/nowhere");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(69), "{said}");
    assert!(
        said.contains(r#""nerdctl" is none of docker, podman and buildah"#),
        "{said}"
    );
}

#[test]
fn lint_says_that_an_image_is_missing() {
    let ended = images(&["lint", "evaluate", "export-model"], "/nowhere");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(77), "{said}");
    assert!(said.contains(r#"has no target "export-model""#), "{said}");
    let fine = images(&["lint", "evaluate"], "/nowhere");
    assert_eq!(fine.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(fine.stdout).unwrap(),
        "11 images keep every rule\n"
    );
}
