//! `action-extract.md`: the one action that was selected after a version was judged.

use crate::text::visible;

/// What an action says under each of its names, in the order in which a reader asks.
const FIELDS: [&str; 6] = [
    "Goal",
    "Change",
    "Where",
    "Expected impact",
    "Risk",
    "Verification",
];
const SECTION: &str = "Selected Action";

/// A selected action.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Action {
    /// Version that it was chosen after.
    pub from: Option<String>,
    /// Version that it makes; none at the end of a loop.
    pub next: Option<String>,
    /// Names and texts of its parts, Markdown.
    pub fields: Vec<(&'static str, String)>,
    /// What stands in place of the parts.
    pub sentence: Option<String>,
    /// Parts that it lacks.
    pub missing: Vec<&'static str>,
}

impl Action {
    /// Reads an action. Nothing in it is an error: what is missing is told.
    pub fn parse(text: &str) -> Self {
        let mut action = Self::default();
        let mut section = "";
        let mut prose = Vec::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                section = heading.trim();
                continue;
            }
            if section.is_empty() {
                action.head(line);
            } else if section == SECTION && !line.trim().is_empty() {
                match field(line) {
                    Some((name, text)) => action.fields.push((name, text.to_owned())),
                    None => match action.fields.last_mut() {
                        Some((_, text)) => *text = format!("{text} {}", line.trim()),
                        None => prose.push(line.trim()),
                    },
                }
            }
        }
        if action.fields.is_empty() {
            action.sentence = (!prose.is_empty()).then(|| prose.join(" "));
        }
        if action.sentence.is_none() {
            let has = |name: &&&str| !action.fields.iter().any(|(known, _)| known == *name);
            action.missing = FIELDS.iter().filter(has).copied().collect();
        }
        action
    }

    /// `From: v002` and `Next: v003` before the first section.
    fn head(&mut self, line: &str) {
        let value = |key: &str| {
            let value = line.strip_prefix(key)?.split_whitespace().next()?;
            (value != "none").then(|| visible(value))
        };
        self.from = value("From:").or(self.from.take());
        self.next = value("Next:").or(self.next.take());
    }

    /// The text of a part.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| text.as_str())
    }
}

/// `- **Goal**: text`.
fn field(line: &str) -> Option<(&'static str, &str)> {
    let rest = line.trim_start().strip_prefix("- **")?;
    let (name, text) = rest.split_once("**")?;
    let name = FIELDS
        .iter()
        .find(|known| **known == name.trim_end_matches(':'))?;
    Some((name, text.trim_start_matches(':').trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "# Action after v002\n\nFrom: v002\nNext: v003\nEntry: blend-half\n\n## Selected Action\n\n\
        - **Goal**: more\n  of it\n- **Change**: `a`: `1` -> `0.5`\n- **Where**: `v003.yaml`\n\
        - **Expected impact**: +1.2 points\n- **Risk**: none\n- **Verification**: look\n\n## Deferred\n\n- **Goal**: no\n";

    #[test]
    fn the_parts_of_an_action_are_read() {
        let action = Action::parse(WHOLE);
        assert_eq!(action.from.as_deref(), Some("v002"));
        assert_eq!(action.next.as_deref(), Some("v003"));
        assert_eq!(action.field("Goal"), Some("more of it"));
        assert_eq!(action.field("Expected impact"), Some("+1.2 points"));
        assert_eq!(action.fields.len(), 6);
        assert!(action.missing.is_empty());
    }

    #[test]
    fn the_end_of_a_loop_is_one_sentence() {
        let action = Action::parse(
            "# A\n\nFrom: v004\nNext: none\n\n## Selected Action\n\nAll versions are used.\n",
        );
        assert_eq!(action.next, None);
        assert_eq!(action.sentence.as_deref(), Some("All versions are used."));
        assert!(action.missing.is_empty());
    }

    #[test]
    fn missing_parts_are_named() {
        let action = Action::parse("## Selected Action\n\n- **Goal**: x\n");
        assert_eq!(
            action.missing,
            ["Change", "Where", "Expected impact", "Risk", "Verification"]
        );
        assert_eq!(Action::parse("").missing.len(), 6);
    }
}
