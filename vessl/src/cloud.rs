//! The same runs for VESSL Cloud, which has no run spec: argument lists of its client, `vesslctl`.

use std::num::NonZeroU16;

use serde::Serialize;

use crate::experiment::Experiment;
use crate::mistake::Mistake;
use crate::profile::Profile;
use crate::render::Planned;
use crate::spec::EnvValue;

/// Most bytes of a command.
const MOST_COMMAND_BYTES: usize = 256 << 10;

/// One call of `vesslctl`.
#[derive(Debug, Serialize)]
pub(crate) struct Call {
    /// The step.
    id: String,
    /// Steps that have to be done before.
    after: Vec<String>,
    /// Of the calls that have it, so many may be under way at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_once: Option<NonZeroU16>,
    /// The program and its arguments, none of which needs quoting by a shell.
    arguments: Vec<String>,
}

/// The calls that submit a chain, in its order.
///
/// # Errors
/// Fields of the profile that are missing, and commands that are too long.
pub(crate) fn calls(
    experiment: &Experiment,
    chain: &[Planned],
    profile: &Profile,
) -> Result<Vec<Call>, Vec<Mistake>> {
    chain
        .iter()
        .map(|planned| call(experiment, planned, profile).map_err(|mistake| vec![mistake]))
        .collect()
}

fn call(experiment: &Experiment, planned: &Planned, profile: &Profile) -> Result<Call, Mistake> {
    let spec = &planned.spec;
    let key = profile.preset(planned.step.task).0;
    let resources = profile.cloud.get(key).ok_or_else(|| {
        Mistake::new(
            format!("cloud.{key}"),
            "is missing: VESSL Cloud's resource spec for this preset",
        )
    })?;
    let command = &spec.run[0].command;
    if command.len() > MOST_COMMAND_BYTES {
        let message = format!(
            "found {} bytes, expected at most {MOST_COMMAND_BYTES}",
            command.len()
        );
        return Err(Mistake::new(
            format!("{}: run[0].command", planned.step.id),
            message,
        ));
    }
    let mut arguments: Vec<String> = [
        "vesslctl",
        "job",
        "create",
        "-n",
        &spec.name,
        "-r",
        resources,
        "-i",
        spec.image.url(),
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(["--image-pull-policy", "IfNotPresent", "--cmd", command].map(str::to_owned));
    for (name, value) in &spec.env {
        arguments.extend(match value {
            EnvValue::Text(text) => ["--env".to_owned(), format!("{name}={text}")],
            EnvValue::Secret { secret } => ["--secret".to_owned(), format!("{name}={secret}")],
        });
    }
    for tag in &spec.tags {
        arguments.extend(["--tag".to_owned(), tag.clone()]);
    }
    arguments.extend(["-o", "json"].map(str::to_owned));
    Ok(Call {
        id: planned.step.id.clone(),
        after: planned.step.after.clone(),
        at_once: experiment
            .evaluation
            .at_once
            .filter(|_| planned.step.is_evaluation()),
        arguments,
    })
}
