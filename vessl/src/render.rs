//! From steps and a profile to run specs.

use std::collections::BTreeMap;

use crate::experiment::{Experiment, Step};
use crate::mistake::Mistake;
use crate::profile::{ONE_GPU, Profile, is_training, usual_preset};
use crate::rules::mistakes;
use crate::spec::{Command, EnvValue, Image, Resources, RunSpec};

/// A step with the spec of its run.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// The step.
    pub(crate) step: Step,
    /// What VESSL is given.
    pub(crate) spec: RunSpec,
}

/// Renders every step of a chain.
///
/// # Errors
/// Every field of a spec that breaks a rule, named with its step.
pub(crate) fn render(
    experiment: &Experiment,
    steps: Vec<Step>,
    profile: &Profile,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<Planned>, Vec<Mistake>> {
    let planned: Vec<Planned> = steps
        .into_iter()
        .map(|step| Planned {
            spec: spec(experiment, &step, profile),
            step,
        })
        .collect();
    let found: Vec<Mistake> = planned
        .iter()
        .flat_map(|planned| {
            idle_gpus(&planned.step, profile)
                .into_iter()
                .chain(mistakes(&planned.spec, environment))
                .map(|mistake| {
                    Mistake::new(
                        format!("{}: {}", planned.step.id, mistake.field),
                        mistake.message,
                    )
                })
        })
        .collect();
    if found.is_empty() {
        Ok(planned)
    } else {
        Err(found)
    }
}

/// GPUs of a training for which a step has no micro-batch.
fn idle_gpus(step: &Step, profile: &Profile) -> Option<Mistake> {
    let gpus = profile.preset(step.task).1.gpus;
    let count = step.micro_batches?;
    (gpus as usize > count).then(|| {
        let message = format!(
            "its {gpus} GPUs share the micro-batches of an optimizer step, and its recipe makes {count}: lower \
             optim.micro_batch_sequences, or take a preset with fewer GPUs"
        );
        Mistake::new("resources.preset", message)
    })
}

fn spec(experiment: &Experiment, step: &Step, profile: &Profile) -> RunSpec {
    let command = format!("{} {}", step.job(), step.arguments.join(" "));
    RunSpec {
        name: format!("wmtp-{}-{}", experiment.name, step.id),
        description: format!("Step {} of experiment {}", step.id, experiment.name),
        tags: step.tags.clone(),
        resources: Resources {
            cluster: profile.cluster.clone(),
            preset: profile.preset(step.task).1.name.clone(),
            spot: profile.spot(step.task),
        },
        image: image(step.job(), profile),
        env: env(step, profile),
        run: vec![Command {
            command,
            workdir: "/tmp".to_owned(),
        }],
    }
}

fn image(job: &str, profile: &Profile) -> Image {
    let images = &profile.images;
    let url = format!("{}/{job}@{}", images.registry, images.digests[job]);
    match &images.credential {
        None => Image::Public(url),
        Some(credential) => Image::Private {
            url,
            credential_name: credential.clone(),
        },
    }
}

const CONFIG: &str = "WMTP_CONFIG";
const STORE: &str = "WMTP_STORE";
const SCRATCH: &str = "WMTP_SCRATCH";
const CACHE: &str = "WMTP_CACHE";
const DEVICE: &str = "WMTP_DEVICE";
const RANKS: &str = "WMTP_RANKS";
const IMAGE: &str = "WMTP_IMAGE";

/// Variables that the chain sets, whatever a profile says.
pub(crate) const VARIABLES: [&str; 7] = [CONFIG, STORE, SCRATCH, CACHE, DEVICE, RANKS, IMAGE];

/// The recipe travels as a variable: a container has no file of it, and the command stays one plain line.
fn env(step: &Step, profile: &Profile) -> BTreeMap<String, EnvValue> {
    let scratch = &profile.scratch;
    let mut text = profile.env.clone();
    text.insert(CONFIG.to_owned(), step.config.to_string());
    text.insert(STORE.to_owned(), profile.store.clone());
    text.insert(SCRATCH.to_owned(), format!("{scratch}/scratch"));
    text.insert(CACHE.to_owned(), format!("{scratch}/cache"));
    // What runs in an image cannot find out which it is, and the store's audit log tells it.
    let image = image(step.job(), profile).url().to_owned();
    text.insert(IMAGE.to_owned(), image);
    if usual_preset(step.task) == ONE_GPU {
        // Said outright: a program that was built without a GPU in mind would compute on the CPU beside an idle one.
        let device = if profile.preset(step.task).1.gpus > 0 {
            "cuda"
        } else {
            "cpu"
        };
        text.insert(DEVICE.to_owned(), device.to_owned());
    }
    let gpus = profile.preset(step.task).1.gpus;
    if is_training(step.task) && gpus > 1 {
        text.insert(RANKS.to_owned(), gpus.to_string());
    }
    let secrets = profile.secrets(step.task).into_iter();
    let secrets = secrets.map(|(variable, secret)| (variable, EnvValue::Secret { secret }));
    text.into_iter()
        .map(|(variable, text)| (variable, EnvValue::Text(text)))
        .chain(secrets)
        .collect()
}
