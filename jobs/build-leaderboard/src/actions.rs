//! `action-extract.md`: the one change that leads from a judged version to the next.
//!
//! The file is Markdown that a program and a person write alike. Reading it is strict where it matters: one change, all
//! six fields, names that exist.

pub mod catalogue;
mod select;

use std::collections::BTreeMap;
use std::fmt::Write;

use wmtp_recipe::{Allowed, Recipe, Rules};
use wmtp_records::{ACTION_PARTS, ActionForm};

pub use select::{Loop, dead_end, is_version_id, number, select, version_after};

use crate::text::inert;

/// Name in `Entry:` of an action that a person wrote.
pub const BY_HAND: &str = "by hand";

/// Why an action cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file is not of the form.
    #[error("line {line}: {what}")]
    Form {
        /// 1-based; 0 for what is missing.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// There is more than one change.
    #[error("line {line}: a second change, and a version has exactly one")]
    SecondChange {
        /// Where it stands.
        line: usize,
    },
    /// The change does not fit the recipe.
    #[error("`{key}`: {reason}")]
    NotApplicable {
        /// The setting.
        key: String,
        /// Why not.
        reason: String,
    },
    /// The user's rules forbid it.
    #[error("`{key}`: {reason}")]
    NotAllowed {
        /// The setting.
        key: String,
        /// Which rule.
        reason: String,
    },
}

/// What was selected after a version was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The version that was judged last.
    pub after: String,
    /// The version that the next one starts from.
    pub from: String,
    /// The next version; none when the loop ends here.
    pub next: Option<String>,
    /// Name in the catalogue, or [`BY_HAND`].
    pub entry: String,
    /// The change; none when the loop ends here.
    pub selected: Option<Selected>,
    /// How it came about.
    pub selection: String,
    /// Candidates that were not taken, and why.
    pub deferred: Vec<(String, String)>,
}

/// One change with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// What is hoped for.
    pub goal: String,
    /// The setting and its values.
    pub change: Change,
    /// Where it is made.
    pub place: String,
    /// What it should do to the primary metric.
    pub expected_impact: String,
    /// What may go wrong.
    pub risk: String,
    /// How one will know.
    pub verification: String,
}

/// One setting, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Dotted path.
    pub key: String,
    /// Its value before, as recipes write it.
    pub old: String,
    /// Its value after.
    pub new: String,
}

impl Change {
    /// The change in a sentence: `version.change` of the next recipe.
    pub fn words(&self) -> String {
        format!("{} from {} to {}", self.key, self.old, self.new)
    }
}

/// The value of a setting as recipes write it.
pub fn scalar(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

impl Action {
    /// The file.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# Action after {}\n\nFrom: {}\nNext: {}\nEntry: {}\n\n## Selected Action\n\n",
            self.after,
            self.from,
            self.next.as_deref().unwrap_or("none"),
            self.entry
        );
        match &self.selected {
            None => text.push_str("None: the loop ends here.\n"),
            Some(selected) => selected.render(&mut text),
        }
        let _ = write!(
            text,
            "\n## Selection\n\n{}\n\n## Deferred\n\n",
            inert(&self.selection)
        );
        if self.deferred.is_empty() {
            text.push_str("None.\n");
        }
        for (name, reason) in &self.deferred {
            let _ = writeln!(text, "- `{name}`: {}", inert(reason));
        }
        text
    }

    /// Reads the file of the version `after`.
    ///
    /// # Errors
    /// [`Error::Form`] names the line and what is expected there; [`Error::SecondChange`].
    pub fn parse(text: &str, after: &str) -> Result<Self, Error> {
        let form = ActionForm::parse(text);
        let selected = selected(&form)?;
        let next = next(&form).map(str::to_owned);
        if selected.is_some() && next.is_none() {
            return Err(missing("the line `Next: VERSION`"));
        }
        let from = form
            .from
            .ok_or_else(|| missing("the line `From: VERSION`"))?;
        for id in next.iter().chain([&from]) {
            if !is_version_id(id) {
                let what = format!("{id:?} is no version; versions are v001, v002 and so on");
                return Err(Error::Form { line: 0, what });
            }
        }
        let deferred = form.deferred.into_iter();
        Ok(Self {
            after: after.to_owned(),
            from,
            next,
            entry: form.entry.unwrap_or_else(|| BY_HAND.to_owned()),
            selected,
            selection: plain(&form.selection),
            deferred: deferred
                .map(|(name, reason)| (name, plain(&reason)))
                .collect(),
        })
    }

    /// The recipe of the next version, made from the one that it starts from.
    ///
    /// # Errors
    /// A change that does not fit, or that the rules forbid or would move.
    pub fn apply(&self, from: &Recipe, rules: &Rules) -> Result<Recipe, Error> {
        let missing = |what: &str| Error::Form {
            line: 0,
            what: what.to_owned(),
        };
        let selected = self.selected.as_ref();
        let change = &selected
            .ok_or_else(|| missing("there is no action"))?
            .change;
        let next = self.next.as_ref();
        let next = next.ok_or_else(|| missing("`Next:` names no version"))?;
        let not_applicable = |reason: String| Error::NotApplicable {
            key: change.key.clone(),
            reason,
        };
        if change.key.starts_with("version.") {
            return Err(not_applicable("names are no change".to_owned()));
        }
        let parse = |text: &str| {
            wmtp_recipe::parse_setting(&change.key, text, "the action")
                .map_err(|error| not_applicable(error.to_string()))
        };
        let ((key, old), (_, new)) = (parse(&change.old)?, parse(&change.new)?);
        let present = from.setting(key).unwrap_or_default();
        let is_same = if present.is_number() {
            present.as_f64() == old.as_f64()
        } else {
            present == old
        };
        if !is_same {
            let present = scalar(&present);
            let reason = format!("it is {present} in {}, not {}", self.from, change.old);
            return Err(not_applicable(reason));
        }
        let not_allowed = |reason: String| Error::NotAllowed {
            key: change.key.clone(),
            reason,
        };
        if !wmtp_recipe::is_compared(key) {
            return Err(not_allowed(SHARED.to_owned()));
        }
        match rules.allows(key, &new) {
            Allowed::Yes => {}
            Allowed::Changed { reason, .. } | Allowed::No(reason) => {
                return Err(not_allowed(reason));
            }
        }
        let mut recipe = from
            .with_setting(key, &new)
            .map_err(|error| not_applicable(error.to_string()))?;
        if recipe == *from {
            return Err(not_applicable(format!("it is {} already", change.new)));
        }
        recipe.version.id.clone_from(next);
        recipe.version.parent = Some(self.from.clone());
        recipe.version.change = Some(change.words());
        Ok(recipe)
    }
}

/// Why most settings of training and evaluation cannot change within a loop.
pub(crate) const SHARED: &str =
    "all versions of one leaderboard share this setting; begin another loop with the new value";

impl Selected {
    fn render(&self, text: &mut String) {
        let change = format!(
            "`{}`: `{}` -> `{}`",
            self.change.key, self.change.old, self.change.new
        );
        let texts = [
            inert(&self.goal),
            change,
            format!("`{}`", self.place),
            inert(&self.expected_impact),
            inert(&self.risk),
            inert(&self.verification),
        ];
        for (name, value) in ACTION_PARTS.into_iter().zip(texts) {
            let _ = writeln!(text, "- **{name}**: {value}");
        }
    }
}

fn missing(what: &str) -> Error {
    Error::Form {
        line: 0,
        what: format!("{what} is missing"),
    }
}

/// The selected action of a form, its parts complete; none where the loop ends.
fn selected(form: &ActionForm) -> Result<Option<Selected>, Error> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    let mut made = None;
    for part in &form.parts {
        let line = part.line;
        let name = part.name.as_ref().map_err(|name| {
            let what = format!(
                "the field {name:?}; the fields are {}",
                ACTION_PARTS.join(", ")
            );
            Error::Form { line, what }
        })?;
        if *name == "Change" {
            if made.is_some() {
                return Err(Error::SecondChange { line });
            }
            made = Some(change(line, &part.text)?);
        } else if texts.contains_key(name) {
            let what = format!("{name} stands there twice");
            return Err(Error::Form { line, what });
        }
        texts.insert(*name, plain(&part.text));
    }
    if form.parts.is_empty() && next(form).is_none() {
        return Ok(None);
    }
    let mut text = |name: &str| {
        let text = texts.remove(name).filter(|text| !text.is_empty());
        text.ok_or_else(|| missing(&format!("the field {name} of the selected action")))
    };
    let selected = Selected {
        goal: text("Goal")?,
        change: made.ok_or_else(|| missing("the field Change of the selected action"))?,
        place: text("Where")?.trim_matches('`').to_owned(),
        expected_impact: text("Expected impact")?,
        risk: text("Risk")?,
        verification: text("Verification")?,
    };
    Ok(Some(selected))
}

/// The version that an action makes.
fn next(form: &ActionForm) -> Option<&str> {
    form.next.as_deref().filter(|next| *next != "none")
}

/// `key: old -> new`, with or without backticks.
fn change(line: usize, text: &str) -> Result<Change, Error> {
    let bare = text.replace('`', "").replace('\u{2192}', "->");
    if bare.matches("->").count() > 1 {
        return Err(Error::SecondChange { line });
    }
    let parts = bare
        .split_once("->")
        .and_then(|(before, new)| Some((before.split_once(':')?, new)));
    let Some(((key, old), new)) = parts else {
        let what = format!("the change {text:?}; expected `key`: `old` -> `new`");
        return Err(Error::Form { line, what });
    };
    Ok(Change {
        key: key.trim().to_owned(),
        old: old.trim().to_owned(),
        new: new.trim().to_owned(),
    })
}

/// Text without the backslashes that keep Markdown from meaning something.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_escape =
            character == '\\' && characters.peek().is_some_and(char::is_ascii_punctuation);
        plain.extend(if is_escape {
            characters.next()
        } else {
            Some(character)
        });
    }
    plain
}

#[cfg(test)]
mod tests;
