//! Kinds of artifacts, ids of artifacts and runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::is_lower_hex;
use crate::{Digest, Error, Result};

/// What an artifact holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Rows as they came from their source.
    RawData,
    /// Records, problems, token ids, tokenizer, statistics.
    ProcessedData,
    /// A model bundle to start from, with its tokenizer.
    BaseModel,
    /// Value trunk and value head of stage 1.
    ValueModel,
    /// Advantages per target token.
    Advantages,
    /// Tuned reference model and its cross-entropies per target token.
    ReferenceCe,
    /// A trained policy, or the state to resume its training.
    Checkpoint,
    /// Generated programs, not graded: a shard of an evaluation.
    Completions,
    /// Graded samples and scores of one evaluation.
    Scores,
    /// The table over all scores.
    Leaderboard,
}

impl Kind {
    /// All kinds in the order of the data's way.
    pub const ALL: [Self; 10] = [
        Self::RawData,
        Self::ProcessedData,
        Self::BaseModel,
        Self::ValueModel,
        Self::Advantages,
        Self::ReferenceCe,
        Self::Checkpoint,
        Self::Completions,
        Self::Scores,
        Self::Leaderboard,
    ];

    /// The name in keys, ids and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RawData => "raw-data",
            Self::ProcessedData => "processed-data",
            Self::BaseModel => "base-model",
            Self::ValueModel => "value-model",
            Self::Advantages => "advantages",
            Self::ReferenceCe => "reference-ce",
            Self::Checkpoint => "checkpoint",
            Self::Completions => "completions",
            Self::Scores => "scores",
            Self::Leaderboard => "leaderboard",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::as_str).join(", ");
                Error::bad_input(
                    format!("artifact kind {text:?}"),
                    format!("known kinds are {known}"),
                )
            })
    }
}

/// Name of an artifact: its kind and the first 40 hexadecimal digits of the digest of its content.
///
/// Equal content has an equal id, whoever made it, wherever it is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactId {
    kind: Kind,
    digits: String,
}

impl ArtifactId {
    /// The id for a content digest.
    pub(crate) fn new(kind: Kind, content: &Digest) -> Self {
        let mut digits = content.to_string();
        digits.truncate(40);
        Self { kind, digits }
    }

    /// What the artifact holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind, self.digits)
    }
}

impl FromStr for ArtifactId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, digits) = text
            .rsplit_once('-')
            .filter(|(_, digits)| is_lower_hex(digits, 40))
            .ok_or_else(|| {
                Error::bad_input(
                    format!("artifact id {text:?}"),
                    "expected <kind>-<40 hexadecimal digits>",
                )
            })?;
        Ok(Self {
            kind: kind.parse()?,
            digits: digits.to_owned(),
        })
    }
}

/// Name of a run: `<job>-<first 16 digits of its cache key>`, so that the same work is the same run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(String);

impl RunId {
    /// The run that does the work of a cache key.
    pub fn for_work(job: &str, key: &Digest) -> Self {
        Self(format!("{job}-{}", key.short()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RunId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check_name("run id", text)?;
        Ok(Self(text.to_owned()))
    }
}

/// Checks a name that becomes one part of a key: names of artifacts, jobs and runs.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts_well = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= 128 && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::usage(
        format!("{what} {name:?}"),
        "expected 1 to 128 letters, digits, '-', '_' or '.', beginning with a letter or digit",
    ))
}

/// Serialises a type as its text form.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Kind, ArtifactId, RunId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_id_reads_back_from_its_text() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
            let id = ArtifactId::new(kind, &Digest::of(b"x"));
            assert_eq!(id.to_string().parse::<ArtifactId>().unwrap(), id);
        }
    }

    #[test]
    fn near_misses_are_no_ids() {
        for text in [
            "",
            "scores",
            "scores-12",
            "models-0123456789012345678901234567890123456789",
        ] {
            assert!(text.parse::<ArtifactId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_would_leave_their_key_are_refused() {
        for name in ["", ".", "..", "a/b", "-a", "a b", "ä", &"a".repeat(129)] {
            assert!(check_name("name", name).is_err(), "{name}");
        }
        for name in ["v001-s42", "micropy", "a.b_c"] {
            check_name("name", name).unwrap();
        }
    }
}
