//! VESSL's run spec: the part of its schema that jobs need, and nothing else.
//!
//! Fields and their meaning are those of `V1RunSpecFormBodyInput`, the class of VESSL's own client. A batch run has no
//! time limit, no retry and no second node there: limits and states are the jobs' business, retries [`crate::submit`]'s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunSpec {
    /// Name in VESSL's lists.
    pub(crate) name: String,
    /// A sentence for people.
    pub(crate) description: String,
    /// Words to find it by.
    pub(crate) tags: Vec<String>,
    /// Where it computes.
    pub(crate) resources: Resources,
    /// Image of the job.
    pub(crate) image: Image,
    /// Variables of the job.
    pub(crate) env: BTreeMap<String, EnvValue>,
    /// Commands, one after the other.
    pub(crate) run: Vec<Command>,
}

/// Cluster and preset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Name of the preset: processor, memory, GPUs.
    pub(crate) preset: String,
    /// Whether the machine may be taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spot: Option<Spot>,
}

/// Machines that may be taken away are cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Spot {
    /// Only such.
    #[serde(rename = "SpotOnly")]
    Only,
    /// Such if there are any.
    #[serde(rename = "SpotFirst")]
    First,
    /// None of them.
    #[serde(rename = "OnDemandOnly")]
    Never,
}

/// An image, with the name of the credential where its registry asks for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected NAME@sha256:DIGEST, or {url: NAME@sha256:DIGEST, credential_name: NAME}"
)]
pub(crate) enum Image {
    /// Anybody may pull it.
    Public(String),
    /// Its registry wants a credential of the organization.
    Private {
        /// The image.
        url: String,
        /// Name of the credential.
        credential_name: String,
    },
}

impl Image {
    /// Name and digest.
    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Public(url) | Self::Private { url, .. } => url,
        }
    }
}

/// The value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected text, or {secret: NAME} for a secret of the organization"
)]
pub(crate) enum EnvValue {
    /// As it stands.
    Text(String),
    /// A secret of the organization, by its name.
    Secret {
        /// The name.
        secret: String,
    },
}

/// One command in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    /// What a shell is given.
    pub(crate) command: String,
    /// Where it starts.
    pub(crate) workdir: String,
}

impl RunSpec {
    /// The text that VESSL's client is given.
    pub(crate) fn to_yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        yaml(self)
    }
}

/// YAML with each text on one line: commands can be found and copied.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String, serde_saphyr::SerializeError> {
    let options = serde_saphyr::ser_options! {
        prefer_block_scalars: false,
    };
    serde_saphyr::to_string_with_options(value, options)
}
