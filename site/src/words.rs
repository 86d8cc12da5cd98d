//! The languages of the interface.
//!
//! Sentences stand in English where they are used, with places for values in braces; a translation is looked up by the
//! English sentence. What was written by people or models (analyses, programs, logs) is never translated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// A language of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// At the top of the site.
    English,
    /// Below `ko/`.
    Korean,
}

impl Language {
    /// All languages, the one at the top first.
    pub const ALL: [Self; 2] = [Self::English, Self::Korean];

    /// The code of the `lang` attribute.
    pub fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Korean => "ko",
        }
    }

    /// Its name in itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::English => "English",
            Self::Korean => "한국어",
        }
    }

    /// Folder of its pages, with the slash behind it.
    pub fn folder(self) -> &'static str {
        match self {
            Self::English => "",
            Self::Korean => "ko/",
        }
    }

    /// The other language.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::English => Self::Korean,
            Self::Korean => Self::English,
        }
    }
}

/// Sentences of one language.
#[derive(Debug)]
pub struct Words {
    language: Language,
    translations: BTreeMap<String, String>,
    missing: Mutex<BTreeSet<String>>,
}

impl Words {
    /// The sentences of a language.
    pub fn of(language: Language) -> Self {
        let translations = match language {
            Language::English => BTreeMap::new(),
            Language::Korean => serde_json::from_str(include_str!("../translations/ko.json"))
                .expect("the translations are an object of texts; a test reads them"),
        };
        Self {
            language,
            translations,
            missing: Mutex::default(),
        }
    }

    /// Whose sentences these are.
    pub fn language(&self) -> Language {
        self.language
    }

    /// A sentence with its values in place. One without a translation stays English and is remembered.
    pub fn say(&self, sentence: &str, values: &[(&str, &str)]) -> String {
        if self.language == Language::English {
            return filled(sentence, values);
        }
        if let Some(translated) = self.translations.get(sentence) {
            return filled(translated, values);
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.insert(sentence.to_owned());
        filled(sentence, values)
    }

    /// A number with its noun, both forms of which are given with `{n}` in place of the number.
    pub fn count(&self, number: usize, one: &str, many: &str) -> String {
        self.say(
            if number == 1 { one } else { many },
            &[("n", &number.to_string())],
        )
    }

    /// `a`, `a and b`, `a, b and c`.
    pub fn listed(&self, names: &[&str]) -> String {
        match names {
            [] => String::new(),
            [only] => (*only).to_owned(),
            [start @ .., last] => self.say(
                "{names} and {last}",
                &[("names", &start.join(", ")), ("last", last)],
            ),
        }
    }

    /// English sentences that were asked for and have no translation.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.iter().cloned().collect()
    }
}

/// Two lists of values as one.
pub fn both<'a>(
    first: &[(&'a str, &'a str)],
    second: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    [first, second].concat()
}

/// Puts values in place of `{name}`. Braces inside values stay; a name without a value stays as it is written.
fn filled(sentence: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some(open) = rest.find('{') {
        let Some(length) = rest[open..].find('}') else {
            break;
        };
        let name = &rest[open + 1..open + length];
        text.push_str(&rest[..open]);
        match values.iter().find(|(key, _)| *key == name) {
            Some((_, value)) => text.push_str(value),
            None => text.push_str(&rest[open..=open + length]),
        }
        rest = &rest[open + length + 1..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_place_once() {
        assert_eq!(
            filled("{a} and {b}", &[("a", "{b}"), ("b", "x")]),
            "{b} and x"
        );
        assert_eq!(filled("{c} {", &[]), "{c} {");
    }

    #[test]
    fn lists_read_as_lists() {
        let words = Words::of(Language::English);
        assert_eq!(words.listed(&["a"]), "a");
        assert_eq!(words.listed(&["a", "b", "c"]), "a, b and c");
        assert_eq!(words.listed(&[]), "");
    }

    #[test]
    fn a_sentence_without_a_translation_is_remembered() {
        let words = Words::of(Language::Korean);
        assert_eq!(
            words.say("no such sentence {n}", &[("n", "1")]),
            "no such sentence 1"
        );
        assert_eq!(words.missing(), ["no such sentence {n}"]);
        assert_ne!(words.say("Leaderboard", &[]), "Leaderboard");
    }
}
