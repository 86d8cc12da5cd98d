//! One source of settings, flattened to leaves and checked against the schema.

use serde_json::Value;

use crate::Error;
use crate::schema::leaves;
use crate::setting::{Leaf, describe};

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

/// The setting of that name.
pub(crate) fn find(key: &str) -> Option<&'static Leaf> {
    leaves().find(|leaf| leaf.key == key)
}

/// The key (or section) that was probably meant: the one with the fewest edits, at most a third of its length;
/// else a key that ends in the same word.
fn nearest(key: &str) -> Option<String> {
    let sections = leaves().filter_map(|leaf| leaf.key.split_once('.').map(|(name, _)| name));
    let close = leaves()
        .map(|leaf| leaf.key)
        .chain(sections)
        .map(|known| (strsim::damerau_levenshtein(key, known), known))
        .filter(|(edits, known)| edits * 3 <= known.len().max(key.len()))
        .min();
    if let Some((_, known)) = close {
        return Some(known.to_owned());
    }
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    leaves()
        .map(|leaf| leaf.key)
        .find(|known| last(known) == last(key))
        .map(str::to_owned)
}

/// The value of `--set key=value` or of a variable: a YAML scalar or flow list; what the schema holds as text is
/// taken as it stands.
pub(crate) fn scalar(key: &str, text: &str, origin: &str) -> Result<(&'static str, Value), Error> {
    let text = text.trim();
    let parsed = serde_saphyr::from_str::<Value>(text).unwrap_or(Value::Null);
    match leaf(key, parsed, origin) {
        Err(Error::WrongType {
            found, expected, ..
        }) => {
            let verbatim = Value::String(text.to_owned());
            leaf(key, verbatim, origin).map_err(|_| Error::WrongType {
                key: key.to_owned(),
                origin: origin.to_owned(),
                found,
                expected,
            })
        }
        checked => checked,
    }
}
