//! From sources to a recipe: flag > `WMTP_SET_*` variable > `WMTP_CONFIG` > recipe file > default.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use serde_json::Value;

use crate::layer::{Layer, flatten, parse, scalar};
use crate::schema::{Recipe, leaves};
use crate::{Error, validate};

/// Variable that holds settings as one JSON object.
pub const CONFIG_VARIABLE: &str = "WMTP_CONFIG";
/// Prefix of variables that hold one setting each: `WMTP_SET_OPTIM__LR` is `optim.lr`.
pub const SETTING_PREFIX: &str = "WMTP_SET_";

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The schema.
    Default,
    /// A recipe file or object.
    Recipe(String),
    /// The variable `WMTP_CONFIG`.
    Config,
    /// A variable of its own.
    Variable(String),
    /// `--set`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Recipe(location) => f.write_str(location),
            Self::Config => f.write_str(CONFIG_VARIABLE),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// Reads the text behind a path or URI.
pub type Loader<'a> = &'a dyn Fn(&str) -> Result<String, Box<dyn StdError + Send + Sync>>;

/// Everything that settings can come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Path or URI of the recipe.
    pub recipe: Option<String>,
    /// `--set` arguments, `key=value`; later ones win.
    pub assignments: Vec<String>,
    /// Environment variables; others than those of this module are ignored.
    pub environment: BTreeMap<String, String>,
}

/// A recipe that knows where each setting comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The settings.
    pub recipe: Recipe,
    /// Origin per leaf, in the order of the schema.
    pub origins: Vec<(&'static str, Origin)>,
}

impl Resolved {
    /// Origin of one leaf.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins
            .iter()
            .find_map(|(known, origin)| (*known == key).then_some(origin))
    }
}

impl Sources {
    /// Resolves with recipes read from the file system.
    pub fn resolve(&self) -> Result<Resolved, Error> {
        self.resolve_with(&|path| Ok(std::fs::read_to_string(path)?))
    }

    /// Resolves with recipes read by `load`.
    ///
    /// # Errors
    /// The first unknown key, wrong type or broken rule, named with its source.
    pub fn resolve_with(&self, load: Loader<'_>) -> Result<Resolved, Error> {
        let mut values: BTreeMap<&'static str, (Value, Origin)> = BTreeMap::new();
        for (layer, origin) in self.layers(load)? {
            for (key, value) in layer {
                values.insert(key, (value, origin.clone()));
            }
        }
        let mut tree = Recipe::default().to_json();
        let mut origins = Vec::new();
        for leaf in leaves() {
            let origin = match values.remove(leaf.key) {
                Some((value, origin)) => {
                    put(&mut tree, leaf.key, value);
                    origin
                }
                None => Origin::Default,
            };
            origins.push((leaf.key, origin));
        }
        let recipe = whole(tree)?;
        let resolved = Resolved { recipe, origins };
        // First, because it knows who set what.
        validate::origins(&resolved, self.recipe.as_deref())?;
        resolved.recipe.validate()?;
        Ok(resolved)
    }

    /// All sources, weakest first.
    fn layers(&self, load: Loader<'_>) -> Result<Vec<(Layer, Origin)>, Error> {
        let mut layers = Vec::new();
        if let Some(location) = &self.recipe {
            chain(location, load, &mut Vec::new(), &mut layers)?;
        }
        if let Some(text) = self.environment.get(CONFIG_VARIABLE) {
            let layer = flatten(&parse(text, CONFIG_VARIABLE)?, CONFIG_VARIABLE)?;
            layers.push((layer, Origin::Config));
        }
        for (name, value) in &self.environment {
            if let Some(setting) = name.strip_prefix(SETTING_PREFIX) {
                let key = setting.to_lowercase().replace("__", ".");
                let layer = vec![scalar(&key, value, name)?];
                layers.push((layer, Origin::Variable(name.clone())));
            }
        }
        for given in &self.assignments {
            let (key, value) = given.split_once('=').ok_or_else(|| Error::BadAssignment {
                given: given.clone(),
            })?;
            layers.push((vec![scalar(key.trim(), value, "--set")?], Origin::Flag));
        }
        Ok(layers)
    }
}

impl Recipe {
    /// What [`Recipe::to_json`] wrote of a resolved recipe; every number is the same, of which JSON parsers may round the
    /// last bit.
    ///
    /// # Errors
    /// A text that is no resolved recipe.
    pub fn from_resolved(text: &str) -> Result<Self, Error> {
        whole(parse(text, RESOLVED)?)
    }
}

/// What errors call a recipe that no file holds.
const RESOLVED: &str = "the resolved recipe";

fn whole(tree: Value) -> Result<Recipe, Error> {
    serde_json::from_value(tree).map_err(|error| Error::Syntax {
        origin: RESOLVED.to_owned(),
        message: error.to_string(),
    })
}

/// A recipe that is being read: its place without detours, and its text.
struct Seen {
    place: String,
    text: String,
}

/// Reads a recipe after the one that it extends.
fn chain(
    location: &str,
    load: Loader<'_>,
    seen: &mut Vec<Seen>,
    layers: &mut Vec<(Layer, Origin)>,
) -> Result<(), Error> {
    let text = load(location).map_err(|source| Error::Unreadable {
        location: location.to_owned(),
        source,
    })?;
    let place = without_detours(location);
    // The text, too: behind a linked folder, `..` leads elsewhere than it says.
    if seen
        .iter()
        .any(|earlier| earlier.place == place && earlier.text == text)
    {
        return Err(Error::Loop {
            location: place,
            through: seen
                .last()
                .map_or_else(String::new, |last| last.place.clone()),
        });
    }
    let mut tree = parse(&text, location)?;
    seen.push(Seen { place, text });
    let parent = tree
        .as_object_mut()
        .and_then(|sections| sections.shift_remove("extends"));
    match parent {
        None => {}
        Some(Value::String(parent)) => {
            chain(&beside(location, &parent), load, seen, layers)?;
        }
        Some(other) => {
            return Err(Error::WrongType {
                key: "extends".to_owned(),
                origin: location.to_owned(),
                found: crate::setting::describe(&other),
                expected: "the path of a recipe".to_owned(),
            });
        }
    }
    layers.push((
        flatten(&tree, location)?,
        Origin::Recipe(location.to_owned()),
    ));
    Ok(())
}

/// A path or URI relative to the folder of another.
fn beside(location: &str, other: &str) -> String {
    if other.starts_with('/') || other.contains("://") {
        return other.to_owned();
    }
    let Some((folder, _)) = location.rsplit_once('/') else {
        return other.to_owned();
    };
    let joined = format!("{folder}/{other}");
    if joined.contains("://") {
        without_dots(&joined)
    } else {
        joined
    }
}

/// A place without the parts `.` and `..`, to tell whether two are the same; a file system may lead elsewhere behind a link.
fn without_detours(location: &str) -> String {
    if location.contains("://") {
        return without_dots(location);
    }
    let mut parts: Vec<&str> = Vec::new();
    for (index, part) in location.split('/').enumerate() {
        match (part, parts.last()) {
            // Above the root there is nothing.
            (".", _) | ("..", Some(&"")) => {}
            ("", _) if index > 0 => {}
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// A URI without the parts `.` and `..`, which no store follows as a file system does. Above its root there is nothing.
fn without_dots(uri: &str) -> String {
    // The scheme, nothing, and the host or bucket.
    const ROOT: usize = 3;
    let mut parts: Vec<&str> = Vec::new();
    for part in uri.split('/') {
        match part {
            "." => {}
            ".." => parts.truncate((parts.len() - 1).max(ROOT)),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Replaces one leaf of a tree that has it.
fn put(tree: &mut Value, key: &str, value: Value) {
    let pointer = format!("/{}", key.replace('.', "/"));
    if let Some(place) = tree.pointer_mut(&pointer) {
        *place = value;
    }
}
