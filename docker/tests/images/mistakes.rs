//! Mistakes planted in the Dockerfile and the bake file, each of which is found by its place.

use job_images::{Bake, Dockerfile, check};

use super::{bake, jobs, repository};

/// What is replaced in the Dockerfile, by what, and what is said of it.
const IN_DOCKERFILE: [(&str, &str, &str); 16] = [
    (
        "ENTRYPOINT [\"train-stage1\"]",
        "RUN apt-get update\nENTRYPOINT [\"train-stage1\"]",
        "image train-stage1: RUN in a final stage",
    ),
    (
        "WORKDIR /tmp\n",
        "WORKDIR /tmp\nHEALTHCHECK NONE\n",
        "HEALTHCHECK in a final stage",
    ),
    (
        "USER 10001:10001\nENTRYPOINT [\"evaluate\"]",
        "USER wmtp\nENTRYPOINT [\"evaluate\"]",
        "image evaluate: USER wmtp, expected numbers",
    ),
    (
        "USER 10001:10001\nENTRYPOINT [\"evaluate\"]",
        "USER 0:0\nENTRYPOINT [\"evaluate\"]",
        "image evaluate: USER 0:0, expected numbers that are not root's",
    ),
    (
        "USER 10001:10001\nENTRYPOINT [\"evaluate\"]",
        "ENTRYPOINT [\"evaluate\"]",
        "image evaluate: no USER",
    ),
    (
        "ENTRYPOINT [\"evaluate\"]",
        "ENTRYPOINT evaluate",
        "ENTRYPOINT evaluate, expected [\"evaluate\"]",
    ),
    (
        "ENTRYPOINT [\"evaluate\"]",
        "ENTRYPOINT [\"prepare-data\"]",
        "expected [\"evaluate\"]",
    ),
    (
        "STOPSIGNAL SIGTERM",
        "STOPSIGNAL SIGINT",
        "no STOPSIGNAL SIGTERM",
    ),
    (
        "org.opencontainers.image.base.name",
        "org.opencontainers.image.base",
        "label org.opencontainers.image.base.name is missing",
    ),
    (
        "wmtp.artifact/1",
        "wmtp.artifact/0",
        "label wmtp.schema is \"wmtp.artifact/0\"",
    ),
    (
        "WMTP_SCRATCH=/tmp/wmtp/scratch",
        "WMTP_FOLDER=/tmp",
        "ENV WMTP_SCRATCH is missing",
    ),
    (
        "SSL_CERT_FILE=",
        "CERTIFICATES=",
        "ENV SSL_CERT_FILE is missing",
    ),
    (
        "/sbom/evaluate.cdx.json /usr/share/wmtp/sbom/",
        "/bin/evaluate /usr/share/wmtp/",
        "image evaluate: the list of dependencies (.cdx.json) is not copied",
    ),
    (
        "FROM cuda AS evaluate",
        "FROM cpu AS evaluate",
        "images that stand on CUDA have several bases",
    ),
    (
        "debian:bookworm-slim",
        "debian:latest",
        "CPU_BASE=docker.io/library/debian:latest, expected a tag other than latest",
    ),
    (
        "hands on what the stage below was given.\nARG PROFILE=release\n",
        "hands on what the stage below was given.\n",
        "stage compile-cuda: uses ${PROFILE}, which this stage does not declare: ARG PROFILE",
    ),
];

#[test]
fn mistakes_in_the_dockerfile_are_found() {
    let right = repository("docker/Dockerfile");
    for (old, new, message) in IN_DOCKERFILE {
        assert!(right.contains(old), "{old:?} is in the Dockerfile");
        let wrong = Dockerfile::parse(&right.replace(old, new)).unwrap();
        let found: Vec<String> = check(&wrong, &bake(), &jobs())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            found.iter().any(|line| line.contains(message)),
            "{message:?} is not in {found:#?}"
        );
    }
}

/// The same for the bake file where it can be read.
const IN_BAKE: [(&str, &str, &str); 4] = [
    (
        "          \"train-stage1\",\n",
        "",
        "has no target \"train-stage1\"",
    ),
    (
        "\"target\": \"${job}-cpu\"",
        "\"target\": \"${job}-slim\"",
        "the Dockerfile has no stage \"build-site-slim\"",
    ),
    (
        "\"PROFILE\": \"${PROFILE}\"",
        "\"OPTIMISE\": \"${PROFILE}\"",
        "argument \"OPTIMISE\", which the Dockerfile does not declare",
    ),
    (
        "\"org.opencontainers.image.revision\"",
        "\"org.opencontainers.image.ref\"",
        "label org.opencontainers.image.revision is missing",
    ),
];

#[test]
fn mistakes_in_the_bake_file_are_found() {
    let dockerfile = Dockerfile::parse(&repository("docker/Dockerfile")).unwrap();
    let right = repository("docker/bake.json");
    for (old, new, message) in IN_BAKE {
        assert!(right.contains(old), "{old:?} is in the bake file");
        let wrong = Bake::parse(&right.replace(old, new), |_| None).unwrap();
        let found: Vec<String> = check(&dockerfile, &wrong, &jobs())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            found.iter().any(|line| line.contains(message)),
            "{message:?} is not in {found:#?}"
        );
    }
}

/// And where it cannot: another engine would build something else than buildx.
const UNREADABLE: [(&str, &str, &str); 5] = [
    (
        "\"context\": \".\"",
        "\"contxt\": \".\"",
        "target.common: contxt: unknown field `contxt`",
    ),
    (
        "${REGISTRY}/${job}:",
        "${REGISTRI}/${job}:",
        "there is no variable \"REGISTRI\"",
    ),
    (
        "\"name\": \"${job}-cpu\"",
        "\"name\": \"${job}\"",
        "is made twice",
    ),
    (
        "\"inherits\": [\"common\"]",
        "\"inherits\": [\"commons\"]",
        "inherits \"commons\", which is not there",
    ),
    (
        "\"tags\": [\"${REGISTRY}/${job}:${VERSION}\"]",
        "\"tags\": []",
        "tags is missing",
    ),
];

#[test]
fn a_bake_file_that_means_something_else_to_buildx_is_refused() {
    let right = repository("docker/bake.json");
    for (old, new, message) in UNREADABLE {
        assert!(right.contains(old), "{old:?} is in the bake file");
        let error = Bake::parse(&right.replace(old, new), |_| None).unwrap_err();
        assert!(error.contains(message), "{message:?} is not in {error:?}");
    }
}

#[test]
fn a_stage_without_a_name_is_refused() {
    let error = Dockerfile::parse("FROM debian:bookworm-slim\n").unwrap_err();
    assert!(
        error.contains("line 1: expected FROM BASE AS NAME"),
        "{error}"
    );
    let early = Dockerfile::parse("USER 1:1\nFROM a:1 AS b\n").unwrap_err();
    assert!(
        early.contains("line 1: USER stands before the first FROM"),
        "{early}"
    );
}
