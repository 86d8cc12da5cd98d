//! Where runs go: cluster, presets, images, store, secrets; and what an hour costs there.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::mistake::{Error, Mistake, read};
use crate::render::VARIABLES;
use crate::rules::{
    EVALUATE_EXTERNAL, EVALUATE_INFER, JOBS, bad_name, is_hex_digest, literal_secret, no_task,
};
use crate::spec::Spot;

/// One account, cluster and store. Everything that another account would change stands here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Presets by the name that `jobs` uses.
    pub(crate) presets: BTreeMap<String, Preset>,
    /// Preset of each job, or of `evaluate-external`, where it is not the usual one.
    #[serde(default)]
    pub(crate) jobs: BTreeMap<String, String>,
    /// Whether machines may be taken away; jobs go on where they were stopped.
    #[serde(default)]
    pub(crate) spot: Option<Spot>,
    /// Where images are pulled from.
    pub(crate) images: Images,
    /// Where artifacts and runs live: `s3://BUCKET/PREFIX`.
    pub(crate) store: String,
    /// Variables that hold secrets, each with the name of the organization's secret.
    pub(crate) secrets: BTreeMap<String, String>,
    /// What is otherwise for a job, or for `evaluate-external`.
    #[serde(default)]
    pub(crate) overrides: BTreeMap<String, Override>,
    /// Other variables of every run.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Folder in the container that jobs may write.
    pub(crate) scratch: String,
    /// Where the site goes, `s3://BUCKET/PREFIX`; left out, no run builds it.
    #[serde(default)]
    pub(crate) site: Option<String>,
    /// VESSL Cloud's resource spec for each preset.
    #[serde(default)]
    pub(crate) cloud: BTreeMap<String, String>,
    /// What a container of each preset asks Kubernetes for.
    #[serde(default)]
    pub(crate) kubernetes: BTreeMap<String, Share>,
}

/// What one job has of its own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Override {
    /// Whether its machine may be taken away.
    #[serde(default)]
    pub(crate) spot: Option<Spot>,
    /// Variables that hold secrets of its own, in place of or beside those of all.
    #[serde(default)]
    pub(crate) secrets: BTreeMap<String, String>,
}

/// A share of a machine, in Kubernetes' words.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    /// Cores.
    pub(crate) cpu: String,
    /// Memory.
    pub(crate) memory: String,
}

/// One size of machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preset {
    /// VESSL's name for it.
    pub(crate) name: String,
    /// GPUs in it.
    pub(crate) gpus: u32,
}

/// The jobs' images, each fixed by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Images {
    /// Registry and path before the name of the job.
    pub(crate) registry: String,
    /// Name of the registry's credential at VESSL.
    #[serde(default)]
    pub(crate) credential: Option<String>,
    /// `sha256:…` of each job's image.
    pub(crate) digests: BTreeMap<String, String>,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// Every field that cannot be used, named.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        read(path, Self::mistakes)
    }

    /// The preset that a task runs on: its name in this profile, and what it is.
    pub(crate) fn preset(&self, task: &str) -> (&str, &Preset) {
        let key = self.preset_key(task);
        // `mistakes` has looked for the presets of all tasks.
        let (key, preset) = self
            .presets
            .get_key_value(key)
            .expect("a checked profile has it");
        (key, preset)
    }

    /// What build-site is told of where the pages lie and where they go, if they go anywhere.
    pub(crate) fn site_arguments(&self) -> Option<String> {
        let site = self.site.as_ref()?;
        Some(format!("--out {}/site --publish {site}", self.scratch))
    }

    /// Whether the machine of a task may be taken away.
    pub(crate) fn spot(&self, task: &str) -> Option<Spot> {
        let own = self.overrides.get(placed(task)).and_then(|own| own.spot);
        own.or(self.spot)
    }

    /// Variables of a task that hold secrets, with the secrets' names.
    pub(crate) fn secrets(&self, task: &str) -> BTreeMap<String, String> {
        let mut secrets = self.secrets.clone();
        if let Some(own) = self.overrides.get(placed(task)) {
            secrets.extend(own.secrets.clone());
        }
        secrets
    }

    fn preset_key<'a>(&'a self, task: &str) -> &'a str {
        let task = placed(task);
        self.jobs
            .get(task)
            .map_or_else(|| usual_preset(task), String::as_str)
    }

    /// Jobs whose digest is one of the examples that no image has.
    pub(crate) fn example_digests(&self) -> Vec<Mistake> {
        let is_example = |digest: &str| {
            let mut digits = digest.trim_start_matches("sha256:").bytes();
            let first = digits.next();
            digits.all(|digit| Some(digit) == first)
        };
        self.images
            .digests
            .iter()
            .filter(|(_, digest)| is_example(digest))
            .map(|(job, _)| {
                let message = "is the example's: put the digest that pushing your image printed";
                Mistake::new(format!("images.digests.{job}"), message)
            })
            .collect()
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        found.extend(bad_name(&self.cluster).map(|message| Mistake::new("cluster", message)));
        found.extend(self.preset_mistakes());
        found.extend(self.image_mistakes());
        for (field, address) in [("store", Some(&self.store)), ("site", self.site.as_ref())] {
            let Some(address) = address else { continue };
            let place = address.strip_prefix("s3://").unwrap_or_default();
            if place.is_empty() || place.starts_with('/') || place.contains(char::is_whitespace) {
                let message = format!("found {address:?}, expected s3://BUCKET/PREFIX");
                found.push(Mistake::new(field, message));
            }
        }
        if self.site.as_ref() == Some(&self.store) {
            let message = "is the store: the site takes a place of its own, for which alone it gets a right to delete";
            found.push(Mistake::new("site", message));
        }
        if !self.scratch.starts_with('/') {
            let message = format!("found {:?}, expected a full path", self.scratch);
            found.push(Mistake::new("scratch", message));
        }
        for (section, keys) in [
            ("cloud", self.cloud.keys().collect::<Vec<_>>()),
            ("kubernetes", self.kubernetes.keys().collect()),
        ] {
            for key in keys
                .into_iter()
                .filter(|key| !self.presets.contains_key(*key))
            {
                let message = "there is no such preset";
                found.push(Mistake::new(format!("{section}.{key}"), message));
            }
        }
        found.extend(secret_mistakes("secrets", &self.secrets));
        for (job, own) in &self.overrides {
            let field = format!("overrides.{job}");
            found.extend(no_place(job).map(|message| Mistake::new(&field, message)));
            found.extend(secret_mistakes(&format!("{field}.secrets"), &own.secrets));
        }
        for (section, variable) in (self.env.keys().map(|name| ("env", name)))
            .chain(self.secrets.keys().map(|name| ("secrets", name)))
            .filter(|(_, name)| VARIABLES.contains(&name.as_str()))
        {
            let message = "the chain sets it itself, to what each step needs: take it out";
            found.push(Mistake::new(format!("{section}.{variable}"), message));
        }
        for variable in self
            .env
            .keys()
            .filter(|name| self.secrets.contains_key(*name))
        {
            let message = "stands under secrets, too: keep one of them";
            found.push(Mistake::new(format!("env.{variable}"), message));
        }
        for (variable, text) in &self.env {
            if let Some(message) = literal_secret(variable, text, &BTreeMap::new()) {
                let message = message.replace("use {secret: NAME}", "name it under secrets");
                found.push(Mistake::new(format!("env.{variable}"), message));
            }
        }
        found
    }

    fn preset_mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        for (key, preset) in &self.presets {
            if let Some(message) = bad_name(&preset.name) {
                found.push(Mistake::new(format!("presets.{key}.name"), message));
            }
        }
        for job in self.jobs.keys() {
            let field = format!("jobs.{job}");
            found.extend(no_place(job).map(|message| Mistake::new(field, message)));
        }
        for job in JOBS.into_iter().chain([EVALUATE_EXTERNAL]) {
            let key = self.preset_key(job);
            let Some(preset) = self.presets.get(key) else {
                let message = format!("{job} runs on {key:?}, and there is no such preset");
                found.push(Mistake::new(format!("presets.{key}"), message));
                continue;
            };
            if preset.gpus > 1 && !is_training(job) {
                let (gpus, idle) = (preset.gpus, preset.gpus - 1);
                let message = format!(
                    "found {gpus}, but {job} computes on one GPU at most: {idle} would be paid for and idle"
                );
                found.push(Mistake::new(format!("presets.{key}.gpus"), message));
            }
        }
        found
    }

    fn image_mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
        let registry = &self.images.registry;
        if registry.is_empty() || !registry.bytes().all(plain) || registry.ends_with('/') {
            let message = format!("found {registry:?}, expected HOST/PATH without / at its end");
            found.push(Mistake::new("images.registry", message));
        }
        for (job, digest) in &self.images.digests {
            let field = format!("images.digests.{job}");
            if !JOBS.contains(&job.as_str()) {
                let message = format!("is no job: expected one of {}", JOBS.join(", "));
                found.push(Mistake::new(field, message));
            } else if !digest.strip_prefix("sha256:").is_some_and(is_hex_digest) {
                let message =
                    format!("found {digest:?}, expected sha256: and 64 digits of 0-9 and a-f");
                found.push(Mistake::new(field, message));
            }
        }
        for job in JOBS
            .iter()
            .filter(|job| !self.images.digests.contains_key(**job))
        {
            let message = "is missing: images are taken by their digest";
            found.push(Mistake::new(format!("images.digests.{job}"), message));
        }
        found
    }
}

/// Under which name a profile speaks of a task: shards run where evaluate does.
fn placed(task: &str) -> &str {
    match task {
        EVALUATE_INFER => "evaluate",
        task => task,
    }
}

/// Why something is nothing that a profile speaks of.
fn no_place(task: &str) -> Option<String> {
    match task {
        EVALUATE_INFER => Some("shards run where evaluate does: name that".to_owned()),
        task => no_task(task),
    }
}

fn secret_mistakes(section: &str, secrets: &BTreeMap<String, String>) -> Vec<Mistake> {
    let mistake = |(variable, secret): (&String, &String)| {
        let message = bad_name(secret)?;
        Some(Mistake::new(format!("{section}.{variable}"), message))
    };
    secrets.iter().filter_map(mistake).collect()
}

/// Whether a task shares its work among all GPUs of its machine.
pub(crate) fn is_training(task: &str) -> bool {
    ["train-stage1", "train-stage2"].contains(&task)
}

/// Preset of the jobs that can compute on a GPU.
pub(crate) const ONE_GPU: &str = "one_gpu";

/// What a task runs on unless the profile says otherwise.
pub(crate) fn usual_preset(task: &str) -> &'static str {
    match task {
        "train-stage1" | "train-stage2" | "evaluate" | EVALUATE_INFER => ONE_GPU,
        _ => "cpu",
    }
}

/// What an hour costs, on one day.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prices {
    /// The day of the look-up.
    pub(crate) as_of: jiff::civil::Date,
    /// Currency of all prices.
    pub(crate) currency: String,
    /// Where they were looked up.
    pub(crate) source: String,
    /// Price of an hour, by VESSL's name of the preset.
    pub(crate) per_hour: BTreeMap<String, f64>,
}

impl Prices {
    /// Reads a price file.
    ///
    /// # Errors
    /// Every field that cannot be used, named.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        read(path, |prices: &Self| {
            prices
                .per_hour
                .iter()
                .filter(|(_, price)| !price.is_finite() || **price < 0.0)
                .map(|(preset, price)| {
                    let message = format!("found {price}, expected a price of at least 0");
                    Mistake::new(format!("per_hour.{preset}"), message)
                })
                .collect()
        })
    }
}
