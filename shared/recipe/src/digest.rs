//! What of a recipe goes into hashes.

use serde_json::{Map, Value};
use wmtp_artifacts::{Digest, canonical_json};

use crate::Error;
use crate::schema::{Recipe, leaves};
use crate::setting::{Affects, Leaf, Shape};

/// Settings that may differ between two rows of one leaderboard: what is compared, and its own means.
const COMPARED: [&str; 8] = [
    "version",
    "seed",
    "experiment.algo",
    "stage1",
    "reference",
    "score",
    "rho1",
    "weights",
];

/// Settings that came after the first runs. At its default such a setting changes nothing, and is left out of what is
/// hashed: recipes of earlier builds keep their digests, and finished runs their cache keys.
const LATER: [&str; 17] = [
    "data.split_by",
    "optim.checkpoint_minutes",
    "optim.keep_last",
    "optim.early_stop_patience",
    "optim.early_stop_min_delta",
    "lora.dropout",
    "evaluation.speculate",
    "evaluation.sandbox",
    "evaluation.top_k",
    "evaluation.beams",
    "evaluation.length_penalty",
    "evaluation.infer_samples",
    "rho1.hard",
    "stage1.lora_r",
    "reference.lora_r",
    "weights.whiten",
    "weights.normalise",
];

/// Whether a setting may differ between two rows of one leaderboard.
pub fn is_compared(key: &str) -> bool {
    COMPARED.iter().any(|name| belongs(key, name))
}

impl Recipe {
    /// The recipe as manifests hold it: numbers with a fraction are texts there.
    ///
    /// # Errors
    /// [`Error::Syntax`] when it is no recipe of this build, such as one with settings that are gone.
    pub fn from_stored(stored: &Value) -> Result<Self, Error> {
        let mut tree = stored.clone();
        for leaf in leaves().filter(|leaf| leaf.shape == Shape::Number) {
            let place = tree.pointer_mut(&pointer(leaf.key));
            if let Some(place) = place
                && let Some(number) = place.as_str().and_then(|text| text.parse::<f64>().ok())
            {
                *place = number.into();
            }
        }
        serde_json::from_value(tree).map_err(|error| Error::Syntax {
            origin: "the recipe of a manifest".to_owned(),
            message: error.to_string(),
        })
    }

    /// The value of a setting; `None` where the schema has no such one.
    pub fn setting(&self, key: &str) -> Option<Value> {
        let leaf = leaves().find(|leaf| leaf.key == key)?;
        Some(at(&self.to_json(), leaf.key).clone())
    }

    /// Whether another recipe differs in nothing but its version: its name, its parent, the words for its change.
    pub fn is_same_but_for_its_name(&self, other: &Self) -> bool {
        self.differences(other)
            .iter()
            .all(|key| belongs(key, "version"))
    }

    /// The recipe with one setting changed.
    ///
    /// # Errors
    /// No such setting, a value of another type, a rule that the changed recipe breaks, or a change that trains the same
    /// bytes: of what the algorithm does not read, or to what the setting stands for already.
    pub fn with_setting(&self, key: &str, value: &Value) -> Result<Self, Error> {
        let (key, value) = crate::layer::leaf(key, value.clone(), "the change")?;
        let mut tree = self.to_json();
        if let Some(place) = tree.pointer_mut(&pointer(key)) {
            *place = value;
        }
        let changed: Self = serde_json::from_value(tree).map_err(|error| Error::Syntax {
            origin: "the changed recipe".to_owned(),
            message: error.to_string(),
        })?;
        changed.validate()?;
        if changed != *self {
            changed.ensure_effect(key, self)?;
        }
        Ok(changed)
    }

    /// The settings in which another recipe differs, in the order of the schema.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (one, other) = (self.to_json(), other.to_json());
        leaves()
            .map(|leaf| leaf.key)
            .filter(|key| at(&one, key) != at(&other, key))
            .collect()
    }

    /// The resolved tree: `recipe.json` of artifacts.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("a recipe has no maps with keys other than texts")
    }

    /// Digest of the whole resolved recipe.
    pub fn digest(&self) -> Digest {
        self.digest_of(|_| true)
    }

    /// Digest of everything that the runs of one leaderboard must share: all settings but the version, the seed,
    /// the algorithm and the sections that only some algorithms read.
    pub fn shared_digest(&self) -> Digest {
        self.digest_of(|leaf| !is_compared(leaf.key))
    }

    /// The output-affecting settings of some sections for a cache key: `section.leaf` to value, numbers as
    /// decimal strings. `seed` counts as a section; a single leaf may be named too.
    ///
    /// # Panics
    /// When the schema has no such section: a mistake of the calling job.
    pub fn section_options(&self, sections: &[&str]) -> Value {
        for name in sections {
            let known = leaves().any(|leaf| belongs(leaf.key, name));
            assert!(known, "the recipe has no section `{name}`");
        }
        self.options(|leaf| {
            leaf.affects == Affects::Output && sections.iter().any(|name| belongs(leaf.key, name))
        })
    }

    fn digest_of(&self, keep: impl Fn(&Leaf) -> bool) -> Digest {
        let canonical = canonical_json(&self.options(keep)).expect("options hold no floats");
        Digest::of(&canonical)
    }

    fn options(&self, keep: impl Fn(&Leaf) -> bool) -> Value {
        let (tree, defaults) = (self.to_json(), Self::default().to_json());
        let is_new = |leaf: &Leaf| {
            LATER.contains(&leaf.key) && at(&tree, leaf.key) == at(&defaults, leaf.key)
        };
        let options: Map<String, Value> = leaves()
            .filter(|leaf| keep(leaf) && !is_new(leaf))
            .map(|leaf| (leaf.key.to_owned(), hashable(at(&tree, leaf.key))))
            .collect();
        Value::Object(options)
    }
}

fn belongs(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The value of a leaf.
pub(crate) fn at<'a>(tree: &'a Value, key: &str) -> &'a Value {
    tree.pointer(&pointer(key))
        .expect("the tree has every leaf of the schema")
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

/// Numbers as the shortest decimal string that reads back as the same number.
fn hashable(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::String(match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) => real.to_string(),
            (None, None) => number.to_string(),
        }),
        Value::Array(items) => Value::Array(items.iter().map(hashable).collect()),
        other => other.clone(),
    }
}
