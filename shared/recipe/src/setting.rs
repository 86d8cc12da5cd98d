//! Leaves of the schema: their type, their default and what they affect.

use serde_json::Value;

/// What a leaf holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any text.
    Text,
    /// Text or nothing.
    OptionalText,
    /// A whole number of at least 0.
    Count,
    /// A whole number of at least 0, or nothing.
    OptionalCount,
    /// Any finite number.
    Number,
    /// `true` or `false`.
    Flag,
    /// One of the words listed.
    Choice(&'static [&'static str]),
    /// A list of whole numbers of at least 0.
    Counts,
    /// A list of some of the words listed.
    Words(&'static [&'static str]),
}

impl Shape {
    /// Whether a value fits.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::OptionalText => value.is_string() || value.is_null(),
            Self::Count => value.is_u64(),
            Self::OptionalCount => value.is_u64() || value.is_null(),
            Self::Number => value.as_f64().is_some_and(f64::is_finite),
            Self::Flag => value.is_boolean(),
            Self::Choice(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Counts => value
                .as_array()
                .is_some_and(|items| items.iter().all(Value::is_u64)),
            Self::Words(words) => value.as_array().is_some_and(|items| {
                let known = |item: &Value| item.as_str().is_some_and(|word| words.contains(&word));
                items.iter().all(known)
            }),
        }
    }

    /// The type in words, for messages.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::OptionalText => "a text or null".to_owned(),
            Self::Count => "a whole number of at least 0".to_owned(),
            Self::OptionalCount => "a whole number of at least 0, or null".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Counts => "a list of whole numbers".to_owned(),
            Self::Words(words) => format!("a list of some of {}", words.join(", ")),
        }
    }
}

/// Names a value in words, for messages.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("the flag {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text \"{text}\""),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
    }
}

/// Whether a setting can change a byte of some artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affects {
    /// It belongs into cache keys.
    Output,
    /// It does not: how often to save, or the name of an input whose id the key holds anyway.
    Runtime,
}

/// One setting of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Dotted path, for example `optim.lr`.
    pub key: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// What it can change.
    pub affects: Affects,
    /// What it means.
    pub doc: &'static str,
}

/// A type that can be a leaf.
pub(crate) trait Setting {
    /// What the recipe may hold for it.
    const SHAPE: Shape;
}

macro_rules! shapes {
    ($($ty:ty => $shape:expr;)+) => { $(impl Setting for $ty { const SHAPE: Shape = $shape; })+ };
}

shapes! {
    String => Shape::Text;
    Option<String> => Shape::OptionalText;
    bool => Shape::Flag;
    u32 => Shape::Count;
    u64 => Shape::Count;
    usize => Shape::Count;
    Option<usize> => Shape::OptionalCount;
    f64 => Shape::Number;
    Vec<u32> => Shape::Counts;
    Vec<crate::schema::LoraTarget> => Shape::Words(&["wq", "wk", "wv", "wo", "w1", "w2", "w3"]);
    wmtp_records::Split => Shape::Choice(&["train", "validation", "test"]);
}

/// Declares an enumeration whose values are words of the recipe.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// All values in their customary order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in recipes, file names and messages.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|value| value.as_str() == word)
                    .ok_or_else(|| format!("{word:?} is not one of {}", [$($word),+].join(", ")))
            }
        }

        impl $crate::setting::Setting for $name {
            const SHAPE: $crate::setting::Shape = $crate::setting::Shape::Choice(&[$($word),+]);
        }
    };
}

/// Declares a section: the struct, its defaults and its leaves, each setting in one place.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident($path:literal) {
            $($(#[doc = $doc:expr])+ $field:ident: $ty:ty = $default:expr $(=> $affects:ident)?;)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $ty,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// The settings of this section.
            pub const LEAVES: &'static [$crate::setting::Leaf] = &[$($crate::setting::Leaf {
                key: concat!($path, ".", stringify!($field)),
                shape: <$ty as $crate::setting::Setting>::SHAPE,
                affects: section!(@affects $($affects)?),
                doc: concat!($($doc),+),
            },)+];
        }
    };
    (@affects) => { $crate::setting::Affects::Output };
    (@affects $affects:ident) => { $crate::setting::Affects::$affects };
}

pub(crate) use {section, words};
