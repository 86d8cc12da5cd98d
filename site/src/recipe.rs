//! Recipes as flat lists of settings, and groups of versions that differ in one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::facts::Facts;
use crate::input::VersionInput;

/// Dotted keys of a recipe, without what names the version itself or the seed.
pub fn leaves(recipe: &Value) -> BTreeMap<String, String> {
    fn walk(prefix: &str, value: &Value, found: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    walk(&path, value, found);
                }
            }
            Value::String(text) => {
                found.insert(prefix.to_owned(), text.clone());
            }
            other => {
                found.insert(prefix.to_owned(), other.to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", recipe, &mut found);
    found.retain(|key, _| key != "seed" && !key.starts_with("version"));
    found
}

/// A setting that two recipes do not share: key, value before, value now; none where one lacks it.
pub type Changed<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// Settings that differ, by key.
pub fn changed<'a>(
    before: &'a BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> Vec<Changed<'a>> {
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != now.get(*key))
        .map(|key| {
            let of = |map: &'a BTreeMap<String, String>| map.get(key).map(String::as_str);
            (key.as_str(), of(before), of(now))
        })
        .collect()
}

/// Of settings that differ, those that both recipes have: a recipe holds what its algorithm reads, so that others come and
/// go with it.
pub fn proper<'a>(changed: &[Changed<'a>]) -> Vec<Changed<'a>> {
    let both = |one: &&Changed<'_>| one.1.is_some() && one.2.is_some();
    changed.iter().filter(both).copied().collect()
}

/// Versions that took one version and changed the same one setting.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// The setting.
    pub key: &'a str,
    /// The version that they all changed.
    pub parent: &'a VersionInput,
    /// Its value there.
    pub parent_value: &'a str,
    /// The others with their values, in the order of the values: numbers by size, words by version.
    pub settings: Vec<(&'a VersionInput, &'a str)>,
}

impl Sweep<'_> {
    /// Whether every value is a number.
    pub fn is_numeric(&self) -> bool {
        let values = self.settings.iter().map(|(_, value)| *value);
        values
            .chain([self.parent_value])
            .all(|value| value.parse::<f64>().is_ok())
    }

    /// Name of its page without the ending.
    pub fn stem(&self, taken: &mut BTreeSet<String>) -> String {
        let stem = crate::facts::slug(self.key);
        if taken.insert(stem.clone()) {
            return stem;
        }
        let longer = format!("{stem}-from-{}", self.parent.row.version_id);
        taken.insert(longer.clone());
        longer
    }
}

/// Value of a setting that a recipe does not name.
const UNSET: &str = "\u{2013}";

/// Every group of at least two versions that differ from one parent in the same setting alone.
pub fn sweeps<'a>(facts: &'a Facts<'a>) -> Vec<Sweep<'a>> {
    let mut groups: BTreeMap<(&str, usize), Sweep<'a>> = BTreeMap::new();
    for version in &facts.lineage {
        let id = version.row.version_id.as_str();
        let Some(parent) = version
            .row
            .parent
            .as_deref()
            .and_then(|parent| facts.version(parent))
        else {
            continue;
        };
        let parent_id = parent.row.version_id.as_str();
        let (Some(before), Some(now)) = (facts.settings.get(parent_id), facts.settings.get(id))
        else {
            continue;
        };
        if let [(key, old, new)] = proper(&changed(before, now))[..] {
            let place = facts.place(parent_id).unwrap_or_default();
            groups
                .entry((key, place))
                .or_insert_with(|| Sweep {
                    key,
                    parent,
                    parent_value: old.unwrap_or(UNSET),
                    settings: Vec::new(),
                })
                .settings
                .push((version, new.unwrap_or(UNSET)));
        }
    }
    let mut sweeps: Vec<Sweep<'a>> = groups
        .into_values()
        .filter(|sweep| sweep.settings.len() > 1)
        .collect();
    for sweep in &mut sweeps {
        if sweep.is_numeric() {
            let number = |value: &str| value.parse::<f64>().unwrap_or_default();
            sweep
                .settings
                .sort_by(|a, b| number(a.1).total_cmp(&number(b.1)));
        }
    }
    sweeps
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_changed_setting_is_told_with_both_values() {
        let before = leaves(
            &json!({"version": {"id": "v001"}, "seed": 1, "optim": {"lr": 0.1, "epochs": 2}}),
        );
        let now = leaves(
            &json!({"version": {"id": "v002"}, "seed": 2, "optim": {"lr": 0.2, "epochs": 2}, "new": "x"}),
        );
        assert_eq!(
            changed(&before, &now),
            [
                ("new", None, Some("x")),
                ("optim.lr", Some("0.1"), Some("0.2"))
            ]
        );
    }

    #[test]
    fn what_comes_with_a_change_is_no_change_of_its_own() {
        let before = leaves(&json!({"experiment": {"algo": "baseline"}, "lr": 1}));
        let now = leaves(&json!({"experiment": {"algo": "rho1"}, "lr": 1, "rho1": {"ratio": 0.6}}));
        let changed = changed(&before, &now);
        assert_eq!(changed.len(), 2);
        assert_eq!(
            proper(&changed),
            [("experiment.algo", Some("baseline"), Some("rho1"))]
        );
    }
}
