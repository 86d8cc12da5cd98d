//! Aliases: names of models that no hand gives, since they say what was found good enough for whom.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a version of a model is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alias {
    /// By those who try it.
    Staging,
    /// By those who rely on it.
    Production,
}

impl Alias {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Staging, Self::Production];

    /// As MLflow and the store's names spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }

    /// The store's name for what has this alias: `MODEL-staging`.
    pub fn name_in_store(self, model: &str) -> String {
        format!("{model}-{}", self.as_str())
    }

    /// The model, and the alias, of a name of the store.
    pub fn of_name(name: &str) -> Option<(&str, Self)> {
        let of = |alias: Self| {
            let model = name.strip_suffix(alias.as_str())?.strip_suffix('-')?;
            (!model.is_empty()).then_some((model, alias))
        };
        Self::ALL.into_iter().find_map(of)
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Alias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|alias| alias.as_str() == text);
        known.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::Alias;

    #[test]
    fn a_name_of_the_store_tells_model_and_alias() {
        for alias in Alias::ALL {
            let name = alias.name_in_store("micropy-loop");
            assert_eq!(Alias::of_name(&name), Some(("micropy-loop", alias)));
            assert_eq!(alias.to_string().parse(), Ok(alias));
        }
        for name in [
            "staging",
            "-staging",
            "micropy",
            "micropystaging",
            "staging-micropy",
        ] {
            assert_eq!(Alias::of_name(name), None, "{name}");
        }
        assert!("Staging".parse::<Alias>().is_err());
    }
}
