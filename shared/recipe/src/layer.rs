//! One source of settings, flattened to leaves and checked against the schema.

use serde_json::Value;

use crate::Error;
use crate::schema::leaves;
use crate::setting::{Leaf, Shape, describe};

/// Leaves of one source: key and value, in the order given.
pub(crate) type Layer = Vec<(&'static str, Value)>;

/// Parses YAML (of which JSON is a part) into a tree; an empty text is an empty section.
pub(crate) fn parse(text: &str, origin: &str) -> Result<Value, Error> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let tree: Value = serde_saphyr::from_str(text).map_err(|error| Error::Syntax {
        origin: origin.to_owned(),
        message: error.to_string(),
    })?;
    if tree.is_object() {
        return Ok(tree);
    }
    Err(Error::Syntax {
        origin: origin.to_owned(),
        message: format!("found {}, expected sections of settings", describe(&tree)),
    })
}

/// Flattens a tree to leaves; every key and type is checked.
pub(crate) fn flatten(tree: &Value, origin: &str) -> Result<Layer, Error> {
    let mut layer = Layer::new();
    walk(tree, "", origin, &mut layer)?;
    Ok(layer)
}

fn walk(tree: &Value, prefix: &str, origin: &str, layer: &mut Layer) -> Result<(), Error> {
    let Some(section) = tree.as_object() else {
        return Err(Error::WrongType {
            key: prefix.to_owned(),
            origin: origin.to_owned(),
            found: describe(tree),
            expected: "a section".to_owned(),
        });
    };
    for (name, value) in section {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        if is_section(&key) {
            // `optim:` with nothing below it is an empty section.
            if !value.is_null() {
                walk(value, &key, origin, layer)?;
            }
        } else {
            layer.push(leaf(&key, value.clone(), origin)?);
        }
    }
    Ok(())
}

fn is_section(key: &str) -> bool {
    leaves().any(|leaf| {
        leaf.key
            .strip_prefix(key)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// One checked leaf.
pub(crate) fn leaf(key: &str, value: Value, origin: &str) -> Result<(&'static str, Value), Error> {
    if let Some(reason) = refusal(key, &value) {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        return Err(Error::rule(key, value, reason));
    }
    let leaf = find(key).ok_or_else(|| unknown(key, origin))?;
    if leaf.shape.accepts(&value) {
        return Ok((leaf.key, value));
    }
    Err(Error::WrongType {
        key: key.to_owned(),
        origin: origin.to_owned(),
        found: describe(&value),
        expected: leaf.shape.describe(),
    })
}

/// Why a setting that other trainers have is none here.
fn refusal(key: &str, value: &Value) -> Option<&'static str> {
    match (key, value.as_str()) {
        ("model.dtype", Some("f16" | "fp16" | "float16")) => Some(
            "f16 ends at 65504 and loses gradients below 6e-8, and nothing here scales the loss; weights stored as \
             f16 are widened when they are read, so train in f32 or bf16",
        ),
        _ => None,
    }
}

/// The setting of that name.
pub(crate) fn find(key: &str) -> Option<&'static Leaf> {
    leaves().find(|leaf| leaf.key == key)
}

/// What other trainers call a setting, and what it is called here.
const CUSTOMARY: [(&str, &str); 6] = [
    ("learning_rate", "lr"),
    ("precision", "dtype"),
    ("batch_size", "batch_sequences"),
    ("max_grad_norm", "grad_clip"),
    ("rank", "r"),
    ("training", "optim"),
];

/// The error for a key that no setting has.
pub(crate) fn unknown(key: &str, origin: &str) -> Error {
    Error::UnknownKey {
        key: key.to_owned(),
        origin: origin.to_owned(),
        meant: meant(key),
    }
}

/// The settings that were probably meant; where nothing is near, those that the section has.
fn meant(key: &str) -> String {
    let (section, word) = key.rsplit_once('.').unwrap_or(("", key));
    let (section, word) = (customary(section), customary(word));
    let near = alike(section, word)
        .or_else(|| elsewhere(key, word))
        .or_else(|| fewest_edits(key));
    if let Some(near) = near {
        let near: Vec<String> = near.iter().map(|key| format!("`{key}`")).collect();
        return format!("did you mean {}?", near.join(" or "));
    }
    match settings_of(section).as_slice() {
        [] => format!("the sections are {}", names().join(", ")),
        settings => {
            let words: Vec<&str> = settings.iter().map(|key| last_word(key)).collect();
            format!("the settings of `{section}` are {}", words.join(", "))
        }
    }
}

/// Our word for another trainer's, of which the beginning is enough.
fn customary(word: &str) -> &str {
    const LEAST: usize = 4;
    let mut known = CUSTOMARY.iter();
    let found = known.find(|(theirs, _)| word.len() >= LEAST && theirs.starts_with(word));
    found.map_or(word, |(_, ours)| ours)
}

/// Sections, and `seed`, in the order of the schema.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = leaves()
        .map(|leaf| leaf.key.split('.').next().unwrap_or(leaf.key))
        .collect();
    names.dedup();
    names
}

fn settings_of(section: &str) -> Vec<&'static str> {
    let keys = leaves().map(|leaf| leaf.key);
    keys.filter(|key| {
        key.rsplit_once('.')
            .is_some_and(|(name, _)| name == section)
    })
    .collect()
}

/// Settings of the section, or sections, of the same word; else those of which it is a part, and then those that are a part of
/// it.
fn alike(section: &str, word: &str) -> Option<Vec<&'static str>> {
    // Fewer letters begin too much.
    const LEAST: usize = 3;
    let known = if section.is_empty() {
        names()
    } else {
        settings_of(section)
    };
    let is_long = word.len() >= LEAST;
    let tiers: [&dyn Fn(&str) -> bool; 5] = [
        &|known| known == word,
        &|known| known.split('_').any(|part| part == word),
        &|known| is_long && known.starts_with(word),
        &|known| is_long && known.contains(word),
        &|known| {
            let begins = known.len() > LEAST && word.starts_with(known);
            begins || word.split('_').any(|part| part == known)
        },
    ];
    tiers.iter().find_map(|is_alike| {
        let found = known.iter().filter(|key| is_alike(last_word(key)));
        let found: Vec<&str> = found.copied().collect();
        (!found.is_empty()).then_some(found)
    })
}

/// The setting of another section that has this word.
fn elsewhere(key: &str, word: &str) -> Option<Vec<&'static str>> {
    let edits = |known: &&str| strsim::damerau_levenshtein(key, known);
    let same = leaves().map(|leaf| leaf.key);
    let same = same
        .filter(|known| last_word(known) == word)
        .min_by_key(edits);
    same.map(|key| vec![key])
}

/// The setting or section with the fewest edits, at most a third of its length.
fn fewest_edits(key: &str) -> Option<Vec<&'static str>> {
    let edits = |known: &&str| strsim::damerau_levenshtein(key, known);
    let known = leaves().map(|leaf| leaf.key).chain(names());
    let near = known.filter(|known| edits(known) * 3 <= known.len().max(key.len()));
    near.min_by_key(edits).map(|key| vec![key])
}

fn last_word(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The value of `--set key=value` or of a variable: a YAML scalar or flow list; what the schema holds as text is
/// taken as it stands.
pub(crate) fn scalar(key: &str, text: &str, origin: &str) -> Result<(&'static str, Value), Error> {
    let text = text.trim();
    let verbatim = Value::String(text.to_owned());
    // What is no YAML is text, and never nothing: nothing is a value of some settings.
    let parsed = serde_saphyr::from_str(text).unwrap_or_else(|_| verbatim.clone());
    let value = match find(key).map(|leaf| leaf.shape) {
        Some(Shape::Text) => verbatim,
        Some(Shape::OptionalText) if !parsed.is_null() => verbatim,
        _ => parsed,
    };
    leaf(key, value, origin)
}
