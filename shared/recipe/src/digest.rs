//! What of a recipe goes into hashes.

use serde_json::{Map, Value};
use wmtp_artifacts::{Digest, canonical_json};

use crate::schema::{Recipe, leaves};
use crate::setting::{Affects, Leaf};

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
const LATER: [&str; 9] = [
    "optim.checkpoint_minutes",
    "optim.keep_last",
    "optim.early_stop_patience",
    "optim.early_stop_min_delta",
    "evaluation.speculate",
    "evaluation.sandbox",
    "evaluation.top_k",
    "evaluation.beams",
    "evaluation.length_penalty",
];

impl Recipe {
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
        self.digest_of(|leaf| !COMPARED.iter().any(|name| belongs(leaf.key, name)))
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
    tree.pointer(&format!("/{}", key.replace('.', "/")))
        .expect("the tree has every leaf of the schema")
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
