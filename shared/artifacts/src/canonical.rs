//! Canonical JSON: one byte sequence for one value, so that values can be hashed.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use crate::{Digest, Error, Input, Result};

/// Deepest nesting of a value that is hashed or read.
pub(crate) const MAX_DEPTH: usize = 32;

/// Canonical JSON: UTF-8, keys sorted by their bytes, no blanks, integers only.
///
/// Floats have no agreed spelling, so hashed values carry decimal strings ([`decimals_as_strings`]).
///
/// ```
/// let value = serde_json::json!({"b": [1, true, null], "a": "x"});
/// assert_eq!(wmtp_artifacts::canonical_json(&value).unwrap(), br#"{"a":"x","b":[1,true,null]}"#);
/// ```
///
/// # Errors
/// [`Error::Usage`] when a number is not an integer or the nesting is deeper than 32.
pub fn canonical_json(value: &Value) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    write(value, "$", 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, at: &str, depth: usize, out: &mut Vec<u8>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::usage(
            "hashed value",
            format!("{at} is nested deeper than {MAX_DEPTH}"),
        ));
    }
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        Value::Number(number) => write_integer(number, at, out)?,
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                separate(index, out);
                write(item, &format!("{at}[{index}]"), depth + 1, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push(b'{');
            for (index, (key, item)) in sorted.into_iter().enumerate() {
                separate(index, out);
                write_string(key, out);
                out.push(b':');
                write(item, &format!("{at}.{key}"), depth + 1, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn separate(index: usize, out: &mut Vec<u8>) {
    if index > 0 {
        out.push(b',');
    }
}

fn write_integer(number: &Number, at: &str, out: &mut Vec<u8>) -> Result<()> {
    if number.is_f64() {
        return Err(Error::usage(
            "hashed value",
            format!("{at} is the float {number}; write it as a decimal string"),
        ));
    }
    out.extend_from_slice(number.to_string().as_bytes());
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // serde_json escapes only what JSON demands, and does so in one way.
    out.extend_from_slice(Value::from(text).to_string().as_bytes());
}

/// The value with every number that is not an integer replaced by its shortest decimal string.
///
/// ```
/// let value = serde_json::json!({"lr": 0.001, "steps": 10});
/// assert_eq!(wmtp_artifacts::decimals_as_strings(&value), serde_json::json!({"lr": "0.001", "steps": 10}));
/// ```
pub fn decimals_as_strings(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => Value::String(number.to_string()),
        Value::Array(items) => items.iter().map(decimals_as_strings).collect(),
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, item)| (key.clone(), decimals_as_strings(item)))
                .collect::<Map<_, _>>(),
        ),
        other => other.clone(),
    }
}

/// Key under which a job's outputs are found again: digest of all that determines their bytes.
///
/// `recipe_version` is the job's own number, raised by hand when its code changes its output.
/// `options` holds every resolved setting that can change a byte of the output, defaults written out.
/// Inputs count by role; their order does not matter.
///
/// # Errors
/// [`Error::Usage`] when `options` holds a float or two inputs share a role.
pub fn cache_key(
    job: &str,
    recipe_version: u32,
    inputs: &[Input],
    options: &Value,
) -> Result<Digest> {
    let mut by_role = Map::new();
    for input in inputs {
        let id = Value::from(input.id.to_string());
        if by_role.insert(input.role.clone(), id).is_some() {
            return Err(Error::usage(
                format!("inputs of {job}"),
                format!("two inputs have the role {}", input.role),
            ));
        }
    }
    let value = json!({
        "schema": crate::manifest::SCHEMA,
        "job": job,
        "recipe_version": recipe_version,
        "inputs": by_role,
        "options": options,
    });
    Ok(Digest::of(&canonical_json(&value)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ArtifactId;

    fn arbitrary_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// The same value with the keys of every object inserted in reverse.
    fn reversed(value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(reversed).collect(),
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().map(|(k, v)| (k.clone(), reversed(v))).collect();
                pairs.reverse();
                Value::Object(pairs.into_iter().collect())
            }
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn canonical_bytes_parse_to_the_same_value(value in arbitrary_value()) {
            let bytes = canonical_json(&value).unwrap();
            let back: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(back, value);
        }

        #[test]
        fn key_order_and_blanks_never_matter(value in arbitrary_value()) {
            let bytes = canonical_json(&value).unwrap();
            prop_assert_eq!(&canonical_json(&reversed(&value)).unwrap(), &bytes);
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let back: Value = serde_json::from_str(&pretty).unwrap();
            prop_assert_eq!(canonical_json(&back).unwrap(), bytes);
        }

        #[test]
        fn any_value_can_be_hashed_once_its_floats_are_strings(x in any::<f64>(), value in arbitrary_value()) {
            prop_assume!(x.is_finite());
            let mixed = json!({"x": x, "rest": value});
            prop_assert!(canonical_json(&decimals_as_strings(&mixed)).is_ok());
        }
    }

    #[test]
    fn a_float_is_refused_and_named() {
        let error = canonical_json(&json!({"optim": {"lr": 0.1}}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("$.optim.lr"), "{error}");
    }

    #[test]
    fn the_cache_key_sees_roles_but_not_their_order() {
        let id = |n: u8| -> ArtifactId {
            format!("raw-data-{}", format!("{n:02x}").repeat(20))
                .parse()
                .unwrap()
        };
        let input = |role: &str, n| Input {
            role: role.to_owned(),
            id: id(n),
        };
        let key = |inputs: &[Input], version, seed| {
            cache_key("prepare-data", version, inputs, &json!({"seed": seed}))
        };
        let (a, b) = (input("a", 1), input("b", 2));
        let both = key(&[a.clone(), b.clone()], 1, 42).unwrap();
        assert_eq!(key(&[b.clone(), a.clone()], 1, 42).unwrap(), both);
        assert_ne!(key(&[input("a", 2), input("b", 1)], 1, 42).unwrap(), both);
        let one = std::slice::from_ref(&a);
        assert_ne!(key(one, 2, 42).unwrap(), key(one, 1, 42).unwrap());
        assert_ne!(key(one, 1, 43).unwrap(), key(one, 1, 42).unwrap());
        assert!(key(&[a.clone(), a], 1, 42).is_err());
    }
}
