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
    let leaf = find(key).ok_or_else(|| Error::UnknownKey {
        key: key.to_owned(),
        origin: origin.to_owned(),
        nearest: nearest(key),
    })?;
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

/// The key (or section) that was probably meant: one that ends in the same word, such as a setting looked for in
/// another section; else the one with the fewest edits, at most a third of its length.
pub(crate) fn nearest(key: &str) -> Option<String> {
    let edits = |known: &&str| strsim::damerau_levenshtein(key, known);
    let sections = leaves().filter_map(|leaf| leaf.key.split_once('.').map(|(name, _)| name));
    leaves()
        .map(|leaf| leaf.key)
        .filter(|known| last_word(known) == last_word(key))
        .min_by_key(edits)
        .or_else(|| {
            leaves()
                .map(|leaf| leaf.key)
                .chain(sections)
                .filter(|known| edits(known) * 3 <= known.len().max(key.len()))
                .min_by_key(edits)
        })
        .map(str::to_owned)
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
