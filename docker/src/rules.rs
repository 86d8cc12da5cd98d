//! What our images keep to, as far as the Dockerfile and the bake file show it.

use std::collections::BTreeSet;
use std::fmt;

use wmtp_artifacts::SCHEMA;

use crate::bake::{Bake, Target};
use crate::dockerfile::{Dockerfile, Instruction, Stage};

/// A rule that is broken, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Line of the Dockerfile, or target of the bake file.
    pub place: String,
    /// What was found, and what was expected.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Instructions that a final stage may have: none of them runs anything.
const COPIES: [&str; 8] = [
    "ARG",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "LABEL",
    "STOPSIGNAL",
    "USER",
    "WORKDIR",
];

/// Labels that every image has.
const LABELS: [&str; 9] = [
    "org.opencontainers.image.title",
    "org.opencontainers.image.description",
    "org.opencontainers.image.version",
    "org.opencontainers.image.revision",
    "org.opencontainers.image.created",
    "org.opencontainers.image.licenses",
    "org.opencontainers.image.base.name",
    "wmtp.job",
    "wmtp.schema",
];

/// Variables that say where a job may write.
const FOLDERS: [&str; 2] = ["WMTP_SCRATCH", "WMTP_CACHE"];

/// Holds the Dockerfile and the bake file against the rules and against each other. `jobs` are those that there must be
/// images of.
pub fn check(dockerfile: &Dockerfile, bake: &Bake, jobs: &[String]) -> Vec<Finding> {
    let mut found = Vec::new();
    for target in bake.targets() {
        match dockerfile.stage(&target.stage) {
            Some(stage) => of_image(dockerfile, stage, target, &mut found),
            None => found.push(Finding {
                place: format!("target {}", target.name),
                message: format!("the Dockerfile has no stage {:?}", target.stage),
            }),
        }
    }
    of_all(dockerfile, bake, jobs, &mut found);
    found
}

/// Rules of one image.
fn of_image(file: &Dockerfile, stage: &Stage, target: &Target, found: &mut Vec<Finding>) {
    let line = file.line_of(&stage.name);
    let at = |line: usize, message: String| Finding {
        place: format!("Dockerfile line {line}, image {}", target.name),
        message,
    };
    let all: Vec<&Instruction> = line.iter().flat_map(|stage| &stage.instructions).collect();
    // The upmost stage decides: its instructions come last, and stand first here.
    let last = |word: &str| {
        line.iter()
            .find_map(|stage| stage.instructions.iter().rev().find(|one| one.word == word))
    };
    for one in all
        .iter()
        .filter(|one| !COPIES.contains(&one.word.as_str()))
    {
        found.push(at(
            one.line,
            format!(
                "{} in a final stage, which may only copy: {}",
                one.word,
                COPIES.join(", ")
            ),
        ));
    }
    match last("USER") {
        Some(user) if is_plain_user(&user.rest) => {}
        Some(user) => found.push(at(
            user.line,
            format!(
                "USER {}, expected numbers that are not root's, such as 10001:10001",
                user.rest
            ),
        )),
        None => found.push(at(stage.line, "no USER: it would run as root".to_owned())),
    }
    match last("STOPSIGNAL") {
        Some(signal) if signal.rest == "SIGTERM" => {}
        _ => found.push(at(
            stage.line,
            "no STOPSIGNAL SIGTERM, which is what jobs listen to".to_owned(),
        )),
    }
    let labels: Vec<(String, String)> = all
        .iter()
        .filter(|one| one.word == "LABEL")
        .flat_map(|one| pairs(&one.rest))
        .chain(target.labels.clone())
        .collect();
    let label = |name: &str| {
        labels
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    for name in LABELS
        .iter()
        .filter(|name| label(name).is_none_or(str::is_empty))
    {
        found.push(at(stage.line, format!("label {name} is missing")));
    }
    if let Some(schema) = label("wmtp.schema").filter(|schema| *schema != SCHEMA) {
        found.push(at(
            stage.line,
            format!("label wmtp.schema is {schema:?}, but the jobs write {SCHEMA:?}"),
        ));
    }
    let job = label("wmtp.job").unwrap_or_default();
    match last("ENTRYPOINT") {
        Some(entry) if entry.rest == format!("[\"{job}\"]") => {}
        Some(entry) => found.push(at(
            entry.line,
            format!(
                "ENTRYPOINT {}, expected [\"{job}\"]: the program, in the form without a shell",
                entry.rest
            ),
        )),
        None => found.push(at(stage.line, "no ENTRYPOINT".to_owned())),
    }
    let variables: BTreeSet<String> = all
        .iter()
        .filter(|one| one.word == "ENV")
        .flat_map(|one| pairs(&one.rest))
        .map(|(key, _)| key)
        .collect();
    for name in FOLDERS.iter().filter(|name| !variables.contains(**name)) {
        found.push(at(
            stage.line,
            format!("ENV {name} is missing: the root cannot be written"),
        ));
    }
    if !variables.contains("SSL_CERT_FILE") {
        found.push(at(
            stage.line,
            "ENV SSL_CERT_FILE is missing: the store's certificate cannot be verified".to_owned(),
        ));
    }
    let copies = |what: &str| {
        all.iter()
            .any(|one| one.word == "COPY" && one.rest.contains(what))
    };
    for (what, why) in [
        ("ca-certificates.crt", "the CA bundle"),
        (".cdx.json", "the list of dependencies"),
    ] {
        if !copies(what) {
            found.push(at(stage.line, format!("{why} ({what}) is not copied")));
        }
    }
    for name in target.args.keys().filter(|name| !is_declared(file, name)) {
        found.push(Finding {
            place: format!("target {}", target.name),
            message: format!("argument {name:?}, which the Dockerfile does not declare"),
        });
    }
}

/// Rules of the images together.
fn of_all(file: &Dockerfile, bake: &Bake, jobs: &[String], found: &mut Vec<Finding>) {
    for job in jobs {
        if bake.targets().all(|target| target.name != *job) {
            found.push(Finding {
                place: "the bake file".to_owned(),
                message: format!("has no target {job:?}: VESSL's specs want its image"),
            });
        }
    }
    let is_slim = |target: &&Target| target.name.ends_with("-cpu");
    let grounds = [("stand on CUDA", false), ("are for the CPU", true)];
    for (which, slim) in grounds {
        let bases: BTreeSet<Option<String>> = bake
            .targets()
            .filter(|target| is_slim(target) == slim)
            .map(|target| file.base_image(&target.stage))
            .collect();
        if bases.len() > 1 {
            let names: Vec<String> = bases.into_iter().map(Option::unwrap_or_default).collect();
            found.push(Finding {
                place: "Dockerfile".to_owned(),
                message: format!(
                    "images that {which} have several bases, so a node pulls each: {}",
                    names.join(", ")
                ),
            });
        }
    }
    for stage in &file.stages {
        of_arguments(file, stage, found);
    }
    for (name, base) in &file.args {
        if name.ends_with("_BASE") && !is_fixed(base) {
            found.push(Finding {
                place: "Dockerfile".to_owned(),
                message: format!("{name}={base}, expected a tag other than latest, or a digest"),
            });
        }
    }
}

/// Arguments that a stage uses are declared in it: buildah hands on none of those of the stage below, and what is not handed
/// on is empty.
fn of_arguments(file: &Dockerfile, stage: &Stage, found: &mut Vec<Finding>) {
    let mut known = BTreeSet::new();
    for one in &stage.instructions {
        known.extend(declared(one));
        for name in used(&one.rest).filter(|name| is_declared(file, name) && !known.contains(name))
        {
            found.push(Finding {
                place: format!("Dockerfile line {}, stage {}", one.line, stage.name),
                message: format!("uses ${{{name}}}, which this stage does not declare: ARG {name}"),
            });
        }
    }
}

/// Names in `${NAME}`.
fn used(text: &str) -> impl Iterator<Item = &str> {
    text.split("${")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| name)
}

/// `UID:GID` in numbers, neither of them root's.
fn is_plain_user(text: &str) -> bool {
    let numbers: Vec<Option<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    matches!(numbers[..], [Some(1..), Some(1..)])
}

fn is_fixed(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    name.contains("@sha256:")
        || name
            .split_once(':')
            .is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest")
}

fn is_declared(file: &Dockerfile, name: &str) -> bool {
    let mut inside = file.stages.iter().flat_map(|stage| &stage.instructions);
    file.args.contains_key(name) || inside.any(|one| declared(one).any(|declared| declared == name))
}

/// What an ARG declares; of another instruction nothing.
fn declared(one: &Instruction) -> impl Iterator<Item = &str> {
    let names = if one.word == "ARG" { &*one.rest } else { "" };
    names
        .split_whitespace()
        .filter_map(|word| word.split('=').next())
}

/// `key=value` pairs, values with or without double quotes.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((key, behind)) = rest.split_once('=') {
        let (value, after) = match behind.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => behind
                .split_once(char::is_whitespace)
                .unwrap_or((behind, "")),
        };
        found.push((key.trim().to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    found
}
