//! JSON with its decimals exact. `serde_json`, without a feature that would change it for the whole workspace, reads one
//! in some tens of decimals as its neighbour; a server is told the number that the store holds.

use serde_json::{Number, Value};

/// Reads JSON; every decimal is the number nearest to its text.
pub(crate) fn parse(text: &str) -> Option<Value> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    // Objects keep the order of the text, so numbers are met in the order of their words.
    restore(&mut value, &mut words(text).into_iter());
    Some(value)
}

fn restore<'a>(value: &mut Value, words: &mut impl Iterator<Item = &'a str>) {
    match value {
        Value::Number(number) => {
            let exact = words.next().and_then(|word| word.parse::<f64>().ok());
            if number.is_f64()
                && let Some(exact) = exact.and_then(Number::from_f64)
            {
                *number = exact;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| restore(item, words)),
        Value::Object(members) => members.values_mut().for_each(|item| restore(item, words)),
        _ => {}
    }
}

/// The numbers of a text, as they are spelled.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut in_string, mut is_escaped) = (None, false, false);
    for (at, byte) in text.bytes().enumerate() {
        let is_part = byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        match start {
            Some(begun) if !is_part => {
                words.push(&text[begun..at]);
                start = None;
            }
            None if !in_string && (byte.is_ascii_digit() || byte == b'-') => start = Some(at),
            _ => {}
        }
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
        } else {
            in_string = byte == b'"';
        }
    }
    words.extend(start.map(|begun| &text[begun..]));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_the_numbers_nearest_to_their_texts() {
        // Python: json.loads(text) of the first gives back each of these texts.
        let text = r#"{"a": 0.9413739620393037, "b": [1.2380059653026185, 7], "c": {"d": 0.1779350937890911}}"#;
        let value = parse(text).unwrap();
        assert_eq!(value["a"].to_string(), "0.9413739620393037");
        assert_eq!(value["b"][0].to_string(), "1.2380059653026185");
        assert_eq!(value["b"][1], 7);
        assert_eq!(value["c"]["d"].to_string(), "0.1779350937890911");
    }

    #[test]
    fn digits_in_texts_are_no_numbers() {
        let text = r#"{"1": "2\"3", "\\": -4.5e-3, "e": true, "-5": "\\\\", "f": null, "g": 6}"#;
        assert_eq!(words(text), ["-4.5e-3", "6"]);
        let value = parse(text).unwrap();
        assert_eq!(value["\\"], -0.0045);
        assert_eq!(value["g"], 6);
        assert_eq!(parse("12").unwrap(), 12);
        assert!(parse("{").is_none());
    }
}
