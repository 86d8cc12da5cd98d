//! The same chain for Argo Workflows: one template of a graph, for any Kubernetes.
//!
//! The engine tries again by exit code and stops what waits for a failed task, as [`crate::submit`] does.

use std::collections::BTreeMap;

use serde::Serialize;
use wmtp_job_kit::Exit;

use crate::experiment::Experiment;
use crate::mistake::Mistake;
use crate::profile::Profile;
use crate::render::Planned;
use crate::spec::EnvValue;

/// Key that holds the value in each secret.
const SECRET_KEY: &str = "value";
/// Key that holds the number of evaluations in an experiment's limits.
const EVALUATIONS: &str = "evaluations";
/// Volume of the folder that jobs may write.
const SCRATCH: &str = "scratch";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkflowTemplate {
    api_version: &'static str,
    kind: &'static str,
    metadata: Name,
    spec: Spec,
}

/// How many of some runs may be under way at a time: what the engine's semaphores read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigMap {
    api_version: &'static str,
    kind: &'static str,
    metadata: Name,
    data: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
struct Name {
    name: String,
}

#[derive(Debug, Serialize)]
struct Spec {
    entrypoint: &'static str,
    templates: Vec<Template>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Template {
    Graph { name: &'static str, dag: Graph },
    Job(Box<Job>),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Graph {
    /// Branches that do not wait for a failed task go on.
    fail_fast: bool,
    tasks: Vec<Task>,
}

#[derive(Debug, Serialize)]
struct Task {
    name: String,
    template: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dependencies: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    synchronization: Option<Synchronization>,
    retry_strategy: Retry,
    container: Container,
    volumes: Vec<Volume>,
}

#[derive(Debug, Serialize)]
struct Synchronization {
    semaphores: [Semaphore; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Semaphore {
    config_map_key_ref: KeyRef,
}

#[derive(Debug, Serialize)]
struct KeyRef {
    name: String,
    key: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Retry {
    limit: &'static str,
    expression: String,
    backoff: Backoff,
}

#[derive(Debug, Serialize)]
struct Backoff {
    duration: &'static str,
    factor: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    image: String,
    command: Vec<String>,
    args: Vec<String>,
    working_dir: String,
    env: Vec<Variable>,
    resources: Resources,
    volume_mounts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Variable {
    Text {
        name: String,
        value: String,
    },
    #[serde(rename_all = "camelCase")]
    Secret {
        name: String,
        value_from: SecretSource,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SecretSource {
    secret_key_ref: KeyRef,
}

#[derive(Debug, Serialize)]
struct Resources {
    requests: BTreeMap<&'static str, String>,
    limits: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    name: &'static str,
    mount_path: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: &'static str,
    empty_dir: BTreeMap<String, String>,
}

/// A chain as one template.
///
/// # Errors
/// Fields of the profile that are missing, and names that Kubernetes does not take.
pub(crate) fn workflow(
    experiment: &Experiment,
    chain: &[Planned],
    profile: &Profile,
) -> Result<WorkflowTemplate, Vec<Mistake>> {
    let ids = chain.iter().map(|planned| planned.step.id.as_str());
    let refused: Vec<Mistake> = ids
        .chain([experiment.name.as_str()])
        .filter(|name| !is_kubernetes_name(name))
        .map(|name| {
            Mistake::new(
                name,
                "expected lower-case letters, digits and '-', as Kubernetes wants names",
            )
        })
        .collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let tasks = chain
        .iter()
        .map(|planned| Task {
            name: planned.step.id.clone(),
            template: planned.step.id.clone(),
            dependencies: planned.step.after.clone(),
        })
        .collect();
    let graph = Graph {
        fail_fast: false,
        tasks,
    };
    let mut templates = vec![Template::Graph {
        name: "chain",
        dag: graph,
    }];
    for planned in chain {
        let job = job(experiment, planned, profile).map_err(|mistake| vec![mistake])?;
        templates.push(Template::Job(Box::new(job)));
    }
    Ok(WorkflowTemplate {
        api_version: "argoproj.io/v1alpha1",
        kind: "WorkflowTemplate",
        metadata: Name {
            name: name(experiment),
        },
        spec: Spec {
            entrypoint: "chain",
            templates,
        },
    })
}

/// The limits that the template's semaphores read, where the experiment has any.
pub(crate) fn limits(experiment: &Experiment) -> Option<ConfigMap> {
    let most = experiment.evaluation.at_once?;
    Some(ConfigMap {
        api_version: "v1",
        kind: "ConfigMap",
        metadata: Name {
            name: name(experiment),
        },
        data: BTreeMap::from([(EVALUATIONS, most.to_string())]),
    })
}

fn name(experiment: &Experiment) -> String {
    format!("wmtp-{}", experiment.name)
}

fn is_kubernetes_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.bytes().all(plain) && !name.ends_with('-')
}

fn job(experiment: &Experiment, planned: &Planned, profile: &Profile) -> Result<Job, Mistake> {
    let again: Vec<String> = Exit::ALL
        .iter()
        .filter(|exit| exit.is_retryable())
        .map(|exit| exit.code().to_string())
        .collect();
    Ok(Job {
        name: planned.step.id.clone(),
        synchronization: synchronization(experiment, planned),
        retry_strategy: Retry {
            limit: "2",
            expression: format!("asInt(lastRetry.exitCode) in [{}]", again.join(", ")),
            backoff: Backoff {
                duration: "60",
                factor: "2",
            },
        },
        container: container(planned, profile)?,
        volumes: vec![Volume {
            name: SCRATCH,
            empty_dir: BTreeMap::new(),
        }],
    })
}

fn synchronization(experiment: &Experiment, planned: &Planned) -> Option<Synchronization> {
    let limit = experiment.evaluation.at_once;
    limit.filter(|_| planned.step.is_evaluation())?;
    let config_map_key_ref = KeyRef {
        name: name(experiment),
        key: EVALUATIONS,
    };
    let semaphores = [Semaphore { config_map_key_ref }];
    Some(Synchronization { semaphores })
}

fn container(planned: &Planned, profile: &Profile) -> Result<Container, Mistake> {
    let spec = &planned.spec;
    let env = spec.env.iter().map(|(name, value)| {
        let name = name.clone();
        match value {
            EnvValue::Text(text) => Variable::Text {
                name,
                value: text.clone(),
            },
            EnvValue::Secret { secret } => Variable::Secret {
                name,
                value_from: SecretSource {
                    secret_key_ref: KeyRef {
                        name: secret.clone(),
                        key: SECRET_KEY,
                    },
                },
            },
        }
    });
    Ok(Container {
        image: spec.image.url().to_owned(),
        command: vec![planned.step.job().to_owned()],
        args: planned.step.arguments.clone(),
        working_dir: spec.run[0].workdir.clone(),
        env: env.collect(),
        resources: resources(planned.step.task, profile)?,
        volume_mounts: vec![Mount {
            name: SCRATCH,
            mount_path: profile.scratch.clone(),
        }],
    })
}

fn resources(task: &str, profile: &Profile) -> Result<Resources, Mistake> {
    let (key, preset) = profile.preset(task);
    let share = profile.kubernetes.get(key).ok_or_else(|| {
        let message = "is missing: what a container of this preset asks for, {cpu: …, memory: …}";
        Mistake::new(format!("kubernetes.{key}"), message)
    })?;
    let requests = BTreeMap::from([("cpu", share.cpu.clone()), ("memory", share.memory.clone())]);
    // Cores are asked for and not capped: a capped job waits beside idle ones.
    let mut limits = BTreeMap::from([("memory", share.memory.clone())]);
    if preset.gpus > 0 {
        limits.insert("nvidia.com/gpu", preset.gpus.to_string());
    }
    Ok(Resources { requests, limits })
}
