//! What is wrong with a file, field by field.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// One field that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Path of the field, such as `resources.preset`.
    pub(crate) field: String,
    /// What was found and what was expected.
    pub(crate) message: String,
}

impl Mistake {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file that cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is no YAML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A file with fields that cannot be used.
    #[error("{}: {}", path.display(), listed(mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All that was found.
        mistakes: Vec<Mistake>,
    },
    /// A recipe that breaks its schema.
    #[error(transparent)]
    Recipe(#[from] wmtp_recipe::Error),
}

fn listed(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Reads a YAML file as a tree.
pub(crate) fn read_tree(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    tree(&text).map_err(|message| Error::Syntax {
        path: path.to_owned(),
        message,
    })
}

/// Parses YAML as a tree.
pub(crate) fn tree(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// Reads a tree as a type; the mistake names the field.
pub(crate) fn typed<T: DeserializeOwned>(tree: Value) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(tree).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // serde tells of an unknown or a missing field at the section around it.
        let inner = ["unknown field `", "missing field `"]
            .iter()
            .find_map(|start| message.strip_prefix(start))
            .and_then(|rest| rest.split('`').next());
        let field = match (path.as_str(), inner) {
            (".", Some(inner)) => inner.to_owned(),
            (".", None) => "the file".to_owned(),
            (_, Some(inner)) if !path.ends_with(&format!(".{inner}")) => format!("{path}.{inner}"),
            _ => path,
        };
        Mistake::new(field, message)
    })
}

/// Reads a YAML file as a type and asks it for its mistakes.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
    rules: impl Fn(&T) -> Vec<Mistake>,
) -> Result<T, Error> {
    let refused = |mistakes| Error::Mistakes {
        path: path.to_owned(),
        mistakes,
    };
    let value = typed(read_tree(path)?).map_err(|mistake| refused(vec![mistake]))?;
    let mistakes = rules(&value);
    if mistakes.is_empty() {
        Ok(value)
    } else {
        Err(refused(mistakes))
    }
}
