//! User rules: constraints beside the recipes of a version loop that always win.
//!
//! `user_defined_rules.json` holds values, `user_instruction.md` sentences. Of the sentences, list items of the form
//! `keep KEY` and `forbid KEY=VALUE` bind a program; the others are shown to whoever writes an action by hand.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Error;
use crate::layer::{find, leaf, unknown};
use crate::schema::Recipe;
use crate::setting::Shape;

/// File of the rules, beside the recipes.
pub const RULES_FILE: &str = "user_defined_rules.json";
/// File of the instructions, beside the recipes.
pub const INSTRUCTION_FILE: &str = "user_instruction.md";
/// Versions of a loop where nobody says how many.
const MAX_VERSIONS: u32 = 4;

/// What the user binds a loop to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Training seed of every version.
    pub seed: Option<u64>,
    /// Most versions of the loop.
    pub max_versions: Option<u32>,
    /// Data set of the loop.
    pub dataset_id: Option<String>,
    /// Metric that orders the leaderboard.
    pub primary_metric: Option<String>,
    /// Metrics of the report; all where there are none.
    pub metrics: Vec<String>,
    /// Samples at most that are laid out for people.
    pub infer_samples: Option<usize>,
    /// Settings that every recipe has with this value.
    fixed: BTreeMap<&'static str, (Value, Source)>,
    /// Settings that may move between two numbers.
    bounds: BTreeMap<&'static str, Bounds>,
    /// Values that no recipe may have.
    forbidden: Vec<(&'static str, Value)>,
    /// Settings that no action may touch, whatever their value.
    kept: Vec<&'static str>,
    /// Sentences of the instruction that bind people alone.
    pub for_people: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bounds {
    min: Option<f64>,
    max: Option<f64>,
}

/// Where a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Training,
    Rules(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Training => f.write_str("training_config"),
            Self::Rules(name) => f.write_str(name),
        }
    }
}

/// What the rules say to a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Allowed {
    /// As it is.
    Yes,
    /// With another value.
    Changed {
        /// The nearest value that the rules allow.
        value: Value,
        /// Which rule moved it.
        reason: String,
    },
    /// Not at all.
    No(String),
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RulesFile {
    seed: Option<u64>,
    loop_config: LoopConfig,
    dataset_config: DatasetConfig,
    training_config: Map<String, Value>,
    eval_config: EvalConfig,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct LoopConfig {
    max_versions: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct DatasetConfig {
    dataset_id: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct EvalConfig {
    primary_metric: Option<String>,
    metrics: Vec<String>,
    infer_samples: Option<usize>,
}

impl Rules {
    /// Reads the two files, given as their texts; either may be absent.
    ///
    /// # Errors
    /// An unknown field or setting, or a value that the setting cannot have, named with the file.
    pub fn parse(rules: Option<&str>, instruction: Option<&str>) -> Result<Self, Error> {
        let mut parsed = match rules {
            Some(text) => Self::of_file(text)?,
            None => Self::default(),
        };
        if let Some(text) = instruction {
            parsed.add_instruction(text)?;
        }
        Ok(parsed)
    }

    fn of_file(text: &str) -> Result<Self, Error> {
        let file: RulesFile = serde_json::from_str(text).map_err(|error| Error::Syntax {
            origin: RULES_FILE.to_owned(),
            message: error.to_string(),
        })?;
        let mut rules = Self {
            seed: file.seed,
            max_versions: file.loop_config.max_versions,
            dataset_id: file.dataset_config.dataset_id,
            primary_metric: file.eval_config.primary_metric,
            metrics: file.eval_config.metrics,
            infer_samples: file.eval_config.infer_samples,
            ..Self::default()
        };
        if rules.max_versions == Some(0) {
            return Err(Error::rule("loop_config.max_versions", 0, "at least 1"));
        }
        if let Some(seed) = rules.seed {
            rules.fix("seed", seed.into(), Source::Rules("seed"))?;
        }
        if let Some(id) = &rules.dataset_id {
            let id = Value::String(id.clone());
            rules.fix(
                "experiment.dataset",
                id,
                Source::Rules("dataset_config.dataset_id"),
            )?;
        }
        if let Some(most) = rules.infer_samples {
            let source = Source::Rules("eval_config.infer_samples");
            rules.fix("evaluation.infer_samples", most.into(), source)?;
        }
        rules.add_training(&file.training_config, "")?;
        Ok(rules)
    }

    fn fix(&mut self, key: &str, value: Value, source: Source) -> Result<(), Error> {
        let (key, value) = leaf(key, value, RULES_FILE)?;
        self.fixed.insert(key, (value, source));
        Ok(())
    }

    /// `{"optim": {"lr": 0.004}}`, `{"optim.lr": 0.004}` and `{"weights.blend": {"min": 0.25, "max": 1}}`.
    fn add_training(&mut self, section: &Map<String, Value>, prefix: &str) -> Result<(), Error> {
        for (name, value) in section {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            match (find(&key), value.as_object()) {
                (Some(known), Some(range)) => {
                    let bounds = bounds(&key, known.shape, range)?;
                    self.bounds.insert(known.key, bounds);
                }
                (None, Some(inner)) => self.add_training(inner, &key)?,
                _ => self.fix(&key, value.clone(), Source::Training)?,
            }
        }
        Ok(())
    }

    fn add_instruction(&mut self, text: &str) -> Result<(), Error> {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let item = line.trim_start_matches(['-', '*']).trim();
            let is_item = item.len() < line.len();
            if let Some(key) = item.strip_prefix("keep ").filter(|_| is_item) {
                self.kept.push(known(unquoted(key), INSTRUCTION_FILE)?);
            } else if let Some(given) = item.strip_prefix("forbid ").filter(|_| is_item) {
                let given = unquoted(given);
                let (key, value) = given.split_once('=').ok_or_else(|| Error::Syntax {
                    origin: INSTRUCTION_FILE.to_owned(),
                    message: format!("`forbid {given}`: expected forbid KEY=VALUE"),
                })?;
                let rule = crate::layer::scalar(key.trim(), value, INSTRUCTION_FILE)?;
                self.forbidden.push(rule);
            } else if !line.starts_with('#') {
                self.for_people.push(item.to_owned());
            }
        }
        Ok(())
    }

    /// How many versions a loop makes: what the rules say wins over what was asked for.
    pub fn max_versions(&self, asked: Option<u32>) -> u32 {
        self.max_versions.or(asked).unwrap_or(MAX_VERSIONS)
    }

    /// Settings with the one value that the rules give them, and which rule does.
    pub fn fixed(&self) -> impl Iterator<Item = (&'static str, &Value, String)> {
        let fixed = self.fixed.iter();
        fixed.map(|(key, (value, source))| (*key, value, source.to_string()))
    }

    /// What the rules say to a setting's new value.
    pub fn allows(&self, key: &str, value: &Value) -> Allowed {
        if let Some((fixed, source)) = self.fixed.get(key) {
            return Allowed::No(format!("{RULES_FILE}, {source}, fixes {key} to {fixed}"));
        }
        if self.kept.contains(&key) {
            return Allowed::No(format!("{INSTRUCTION_FILE} says to keep {key}"));
        }
        if self.is_forbidden(key, value) {
            return Allowed::No(format!("{INSTRUCTION_FILE} forbids {key}={value}"));
        }
        let (Some(bounds), Some(number)) = (self.bounds.get(key), value.as_f64()) else {
            return Allowed::Yes;
        };
        let nearest = number
            .max(bounds.min.unwrap_or(f64::NEG_INFINITY))
            .min(bounds.max.unwrap_or(f64::INFINITY));
        if (nearest - number).abs() <= f64::EPSILON * number.abs() {
            return Allowed::Yes;
        }
        let changed = whole_if(value.is_u64(), nearest);
        if self.is_forbidden(key, &changed) {
            return Allowed::No(format!("{INSTRUCTION_FILE} forbids {key}={changed}"));
        }
        Allowed::Changed {
            reason: format!(
                "{RULES_FILE}, training_config, bounds {key}: {value} became {changed}"
            ),
            value: changed,
        }
    }

    /// Every setting of a recipe that breaks a rule.
    pub fn broken_by(&self, recipe: &Recipe) -> Vec<String> {
        let mut broken = Vec::new();
        for (key, value, source) in self.fixed() {
            let found = recipe.setting(key).unwrap_or_default();
            if !same(&found, value) {
                broken.push(format!(
                    "{key} is {found}, and {source} fixes it to {value}"
                ));
            }
        }
        for (key, bounds) in &self.bounds {
            let found = recipe.setting(key).and_then(|value| value.as_f64());
            let inside = found.is_none_or(|number| {
                bounds.min.is_none_or(|min| number >= min)
                    && bounds.max.is_none_or(|max| number <= max)
            });
            if let (false, Some(found)) = (inside, found) {
                broken.push(format!(
                    "{key} is {found}, outside of what training_config allows"
                ));
            }
        }
        for (key, value) in &self.forbidden {
            if recipe.setting(key).is_some_and(|found| same(&found, value)) {
                broken.push(format!(
                    "{key} is {value}, which {INSTRUCTION_FILE} forbids"
                ));
            }
        }
        broken
    }

    fn is_forbidden(&self, key: &str, value: &Value) -> bool {
        let mut forbidden = self.forbidden.iter();
        forbidden.any(|(known, no)| *known == key && same(no, value))
    }
}

/// Equal values; 1 and 1.0 are one number.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => (one - other).abs() <= f64::EPSILON * one.abs(),
        _ => one == other,
    }
}

fn whole_if(whole: bool, number: f64) -> Value {
    if whole {
        Value::from(number.round() as u64)
    } else {
        Value::from(number)
    }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('`').trim_end_matches('.').trim()
}

fn known(key: &str, origin: &str) -> Result<&'static str, Error> {
    find(key)
        .map(|leaf| leaf.key)
        .ok_or_else(|| unknown(key, origin))
}

fn bounds(key: &str, shape: Shape, range: &Map<String, Value>) -> Result<Bounds, Error> {
    let wrong = |found: String| Error::WrongType {
        key: key.to_owned(),
        origin: RULES_FILE.to_owned(),
        found,
        expected: "a value, or {\"min\": number, \"max\": number} for a number".to_owned(),
    };
    if !matches!(shape, Shape::Number | Shape::Count) {
        return Err(wrong("a range for what is no number".to_owned()));
    }
    if let Some(name) = range
        .keys()
        .find(|name| !["min", "max"].contains(&name.as_str()))
    {
        return Err(wrong(format!("the field {name:?}")));
    }
    let end = |name: &str| match range.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| wrong(format!("{name}: {value}"))),
    };
    Ok(Bounds {
        min: end("min")?,
        max: end("max")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(value: Value, instruction: &str) -> Result<Rules, Error> {
        Rules::parse(Some(&value.to_string()), Some(instruction))
    }

    #[test]
    fn every_rule_is_read_and_binds() {
        let rules = rules(
            json!({
                "seed": 7,
                "loop_config": {"max_versions": 3},
                "dataset_config": {"dataset_id": "micropy"},
                "training_config": {"optim": {"lr": 0.004}, "optim.epochs": 2, "weights.blend": {"min": 0.25}},
                "eval_config": {"primary_metric": "pass_at_1", "metrics": ["pass_at_1"], "infer_samples": 5}
            }),
            "# Please\n\nWe have little time.\n- keep `weights.w_max`\n- forbid experiment.algo=rho1.\n- be bold\n",
        )
        .unwrap();
        assert_eq!(rules.max_versions(Some(9)), 3, "a rule wins over a flag");
        assert_eq!(Rules::default().max_versions(Some(9)), 9);
        assert_eq!(rules.for_people, ["We have little time.", "be bold"]);
        let fixed: Vec<&str> = rules.fixed().map(|(key, _, _)| key).collect();
        assert_eq!(
            fixed,
            [
                "evaluation.infer_samples",
                "experiment.dataset",
                "optim.epochs",
                "optim.lr",
                "seed"
            ]
        );
        let no = |key, value| match rules.allows(key, &value) {
            Allowed::No(reason) => reason,
            other => panic!("{key}: {other:?}"),
        };
        assert!(no("optim.lr", json!(0.1)).contains("training_config"));
        assert!(no("seed", json!(8)).contains("fixes seed to 7"));
        assert!(no("weights.w_max", json!(2.0)).contains("keep weights.w_max"));
        assert!(no("experiment.algo", json!("rho1")).contains("forbids"));
        assert_eq!(
            rules.allows("experiment.algo", &json!("verifiable")),
            Allowed::Yes
        );
        assert_eq!(rules.allows("weights.blend", &json!(0.5)), Allowed::Yes);
        let Allowed::Changed { value, reason } = rules.allows("weights.blend", &json!(0.125))
        else {
            panic!("a value outside of its bounds is moved");
        };
        assert_eq!(value, json!(0.25));
        assert!(reason.contains("0.125 became 0.25"), "{reason}");
    }

    #[test]
    fn a_recipe_that_breaks_rules_is_told_every_one() {
        let rules = rules(
            json!({"seed": 7, "training_config": {"weights.blend": {"max": 0.5}}}),
            "- forbid experiment.algo=baseline",
        )
        .unwrap();
        let broken = rules.broken_by(&Recipe::default());
        assert_eq!(broken.len(), 3, "{broken:?}");
        assert!(broken[0].contains("seed is 42"), "{broken:?}");
        let mut recipe = Recipe::default();
        (recipe.seed, recipe.weights.blend) = (7, 0.5);
        recipe.experiment.algo = crate::Algo::Rho1;
        assert!(rules.broken_by(&recipe).is_empty());
    }

    #[test]
    fn mistakes_are_named_with_their_file() {
        let said =
            |value: Value, instruction: &str| rules(value, instruction).unwrap_err().to_string();
        assert!(
            said(json!({"sede": 1}), "").contains("user_defined_rules.json: unknown field `sede`")
        );
        assert!(said(json!({"training_config": {"optim.lrr": 1}}), "").contains("optim.lr"));
        assert!(said(json!({"training_config": {"optim.lr": {"least": 1}}}), "").contains("least"));
        assert!(
            said(json!({"training_config": {"model.dtype": {"min": 1}}}), "").contains("no number")
        );
        assert!(
            said(json!({"seed": "x"}), "").contains("seed")
                || said(json!({"seed": "x"}), "").contains("u64")
        );
        assert!(said(json!({}), "- keep weights.wmax").contains("did you mean `weights.w_max`"));
        assert!(said(json!({}), "- forbid weights.w_max").contains("KEY=VALUE"));
        assert!(said(json!({"loop_config": {"max_versions": 0}}), "").contains("at least 1"));
    }
}
