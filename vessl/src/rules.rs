//! What a run spec may hold: VESSL's schema, without what it accepts and then ignores, and the rules of this house.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::mistake::{Error, Mistake, read_tree, typed};
use crate::spec::{EnvValue, RunSpec};

/// The programs that images hold, by name of job and image alike.
pub(crate) const JOBS: [&str; 7] = [
    "sync-storage",
    "prepare-data",
    "train-stage1",
    "train-stage2",
    "evaluate",
    "build-leaderboard",
    "build-site",
];

/// The mode of `evaluate` that executes programs of a model from outside: it computes no model, so its machine is another.
pub(crate) const EVALUATE_EXTERNAL: &str = "evaluate-external";

/// The mode of `evaluate` that generates for a shard of the problems. It runs where `evaluate` does, since texts of different
/// devices are not parts of one whole.
pub(crate) const EVALUATE_INFER: &str = "evaluate-infer";

/// Why something is nothing that hours are stated for.
pub(crate) fn no_task(name: &str) -> Option<String> {
    (!JOBS.contains(&name) && ![EVALUATE_EXTERNAL, EVALUATE_INFER].contains(&name)).then(|| {
        let jobs = JOBS.join(", ");
        format!("is no job: expected one of {jobs}, {EVALUATE_EXTERNAL}, {EVALUATE_INFER}")
    })
}

/// Fields that other guides show, or that VESSL has and a job must not use, and why.
const REFUSED: [(&str, &str); 21] = [
    ("import", "jobs read their inputs from S3 themselves"),
    ("mount", "jobs read their inputs from S3 themselves"),
    (
        "export",
        "jobs write to S3 themselves; the site goes there by `build-site --publish`",
    ),
    ("volumes", "an old form; jobs read and write S3 themselves"),
    ("interactive", "a job is a batch run"),
    ("ports", "a job serves nothing"),
    (
        "service_account_name",
        "jobs take credentials from secrets: env: {NAME: {secret: NAME}}",
    ),
    (
        "termination_protection",
        "a run that cannot be stopped keeps its machine",
    ),
    (
        "termination-protection",
        "VESSL writes it with an underscore, and a job must not use it",
    ),
    ("max_runtime", "batch runs have no limit of time at VESSL"),
    ("retries", "VESSL does not retry; `wmtp-vessl submit` does"),
    (
        "restart",
        "VESSL does not restart; `wmtp-vessl submit` does",
    ),
    ("worker_count", "a run has one node"),
    ("shm_size", "VESSL has no such field"),
    (
        "command",
        "commands stand under run: [{command: …, workdir: …}]",
    ),
    ("accelerators", "an old form; the preset says which GPUs"),
    (
        "resources.accelerators",
        "an old form; the preset says which GPUs",
    ),
    (
        "resources.cpu",
        "an old form; the preset says how many cores",
    ),
    (
        "resources.memory",
        "an old form; the preset says how much memory",
    ),
    ("resources.name", "an old form; its name is preset"),
    ("resources.requests", "use a preset: its price is known"),
];

/// Most bytes of a variable; VESSL Cloud's limit.
const MOST_VALUE_BYTES: usize = 8 << 10;
/// Most variables; VESSL Cloud's limit.
const MOST_VARIABLES: usize = 128;
/// Longest value that the check of secrets does not look for: short ones stand everywhere by chance.
const SHORT: usize = 8;

/// Reads a run spec and checks it.
///
/// # Errors
/// Every field that cannot be used, named.
pub(crate) fn read_spec(
    path: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<RunSpec, Error> {
    let tree = read_tree(path)?;
    checked(tree, environment).map_err(|mistakes| Error::Mistakes {
        path: path.to_owned(),
        mistakes,
    })
}

/// Reads a tree as a run spec.
pub(crate) fn checked(
    tree: Value,
    environment: &BTreeMap<String, String>,
) -> Result<RunSpec, Vec<Mistake>> {
    let refused = refused_forms(&tree);
    if !refused.is_empty() {
        return Err(refused);
    }
    let spec: RunSpec = typed(tree).map_err(|mistake| vec![mistake])?;
    let mistakes = mistakes(&spec, environment);
    if mistakes.is_empty() {
        Ok(spec)
    } else {
        Err(mistakes)
    }
}

fn refused_forms(tree: &Value) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (field, reason) in REFUSED {
        if tree
            .pointer(&format!("/{}", field.replace('.', "/")))
            .is_some()
        {
            mistakes.push(Mistake::new(field, format!("refused: {reason}")));
        }
    }
    if tree.get("run").is_some_and(|run| !run.is_array()) {
        mistakes.push(Mistake::new(
            "run",
            "expected a list: [{command: …, workdir: …}]",
        ));
    }
    for (name, value) in section(tree, "env") {
        let field = format!("env.{name}");
        if value.get("secret").is_some_and(Value::is_boolean) {
            let message = "an old form that writes the secret down; use {secret: NAME}";
            mistakes.push(Mistake::new(field, message));
        } else if value.get("source").is_some() {
            let message = "write text as it stands, and a secret as {secret: NAME}, without source";
            mistakes.push(Mistake::new(field, message));
        }
    }
    mistakes
}

fn section<'a>(tree: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    tree.get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// Everything that is wrong with a spec whose shape is right.
pub(crate) fn mistakes(spec: &RunSpec, environment: &BTreeMap<String, String>) -> Vec<Mistake> {
    let mut found = Vec::new();
    if let Some(message) = without_digest(spec.image.url()) {
        found.push(Mistake::new("image", message));
    }
    for (field, name) in [
        ("name", &spec.name),
        ("resources.cluster", &spec.resources.cluster),
        ("resources.preset", &spec.resources.preset),
    ] {
        if let Some(message) = bad_name(name) {
            found.push(Mistake::new(field, message));
        }
    }
    found.extend(env_mistakes(&spec.env, environment));
    found.extend(command_mistakes(spec));
    found
}

fn command_mistakes(spec: &RunSpec) -> Vec<Mistake> {
    let mut found = Vec::new();
    let [command] = spec.run.as_slice() else {
        let message = format!(
            "found {} commands, expected one: a run is one job",
            spec.run.len()
        );
        return vec![Mistake::new("run", message)];
    };
    let program = command.command.split(' ').next().unwrap_or_default();
    if !JOBS.contains(&program) {
        let message = format!("{program:?} is no job: expected one of {}", JOBS.join(", "));
        found.push(Mistake::new("run[0].command", message));
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || " -_./=:,+@%".contains(letter);
    if let Some(letter) = command.command.chars().find(|letter| !plain(*letter)) {
        let message = format!("{letter:?} means something to a shell: write one plain command");
        found.push(Mistake::new("run[0].command", message));
    }
    if !command.workdir.starts_with('/') {
        let message = format!("found {:?}, expected a full path", command.workdir);
        found.push(Mistake::new("run[0].workdir", message));
    }
    found
}

fn env_mistakes(
    env: &BTreeMap<String, EnvValue>,
    environment: &BTreeMap<String, String>,
) -> Vec<Mistake> {
    let mut found = Vec::new();
    if env.len() > MOST_VARIABLES {
        let message = format!(
            "found {} variables, expected at most {MOST_VARIABLES}",
            env.len()
        );
        found.push(Mistake::new("env", message));
    }
    for (name, value) in env {
        let message = match value {
            EnvValue::Secret { secret } => bad_name(secret),
            EnvValue::Text(text) => literal_secret(name, text, environment).or_else(|| {
                (text.len() > MOST_VALUE_BYTES).then(|| {
                    let bytes = text.len();
                    format!("found {bytes} bytes, expected at most {MOST_VALUE_BYTES}")
                })
            }),
        };
        if let Some(message) = message {
            found.push(Mistake::new(format!("env.{name}"), message));
        }
    }
    found
}

/// Why a variable's text must not be written down.
pub(crate) fn literal_secret(
    name: &str,
    text: &str,
    environment: &BTreeMap<String, String>,
) -> Option<String> {
    if is_secret_name(name) {
        return Some("a secret must not be written down: use {secret: NAME}".to_owned());
    }
    if let Some(kind) = looks_like(text) {
        return Some(format!(
            "holds what looks like {kind}: use {{secret: NAME}}"
        ));
    }
    environment
        .iter()
        .find(|(known, secret)| {
            is_secret_name(known) && secret.len() > SHORT && text.contains(secret.as_str())
        })
        .map(|(known, _)| {
            format!("holds the value of this machine's {known}: use {{secret: NAME}}")
        })
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "SECRET",
        "TOKEN",
        "PASSWORD",
        "ACCESS_KEY",
        "CREDENTIAL",
        "API_KEY",
    ]
    .iter()
    .any(|word| name.contains(word))
}

/// Keys that can be told by their looks.
fn looks_like(text: &str) -> Option<&'static str> {
    let words = || text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let upper = |word: &str| {
        word.bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    if text.contains("-----BEGIN") {
        return Some("a private key");
    }
    if words().any(|word| {
        word.len() == 20 && (word.starts_with("AKIA") || word.starts_with("ASIA")) && upper(word)
    }) {
        return Some("an AWS access key");
    }
    if words().any(|word| word.len() >= 30 && (word.starts_with("hf_") || word.starts_with("ghp_")))
    {
        return Some("an access token");
    }
    None
}

/// Why an image is not fixed by its digest.
fn without_digest(image: &str) -> Option<String> {
    let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
    if digest.is_some_and(is_hex_digest) {
        return None;
    }
    Some(format!(
        "found {image:?}, expected NAME@sha256:DIGEST: a tag may mean another image tomorrow"
    ))
}

pub(crate) fn is_hex_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Why something is no name of VESSL's, of an artifact or of a secret.
pub(crate) fn bad_name(name: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.len() <= 128
        && name.bytes().all(plain);
    (!is_name)
        .then(|| format!("found {name:?}, expected 1 to 128 letters, digits, '-', '_' or '.'"))
}
