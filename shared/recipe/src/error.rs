//! What can be wrong with a recipe.

use std::error::Error as StdError;

/// Why no recipe could be resolved. Every variant is the caller's to mend: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or object could not be read.
    #[error("recipe {location}: cannot be read")]
    Unreadable {
        /// Path or URI.
        location: String,
        /// What the system said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The text is no YAML (or JSON) mapping.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where the text comes from.
        origin: String,
        /// What the parser said, with line and column where it knows them.
        message: String,
    },
    /// `extends` leads back to a recipe that is already being read.
    #[error("recipe {location}: extends itself through {through}")]
    Loop {
        /// The recipe met twice.
        location: String,
        /// The recipe that names it again.
        through: String,
    },
    /// A key that the schema does not have.
    #[error("unknown key `{key}` in {origin}; {meant}")]
    UnknownKey {
        /// Dotted path as given.
        key: String,
        /// Where it was given.
        origin: String,
        /// The keys that were probably meant, or those that there are.
        meant: String,
    },
    /// A value of another type than the key's.
    #[error("`{key}` in {origin}: found {found}, expected {expected}")]
    WrongType {
        /// Dotted path.
        key: String,
        /// Where it was given.
        origin: String,
        /// What stands there.
        found: String,
        /// What the schema wants.
        expected: String,
    },
    /// A `--set` argument without `=`.
    #[error("`--set {given}`: expected key=value")]
    BadAssignment {
        /// The argument.
        given: String,
    },
    /// A value of the right type that breaks a rule of the schema.
    #[error("`{key}` is {value}, which is not allowed: {rule}")]
    Rule {
        /// Dotted path.
        key: String,
        /// The value found.
        value: String,
        /// The rule.
        rule: String,
    },
}

impl Error {
    pub(crate) fn rule(key: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self::Rule {
            key: key.to_owned(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }
}
