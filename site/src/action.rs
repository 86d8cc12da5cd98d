//! `action-extract.md`: the one action that was selected after a version was judged.

use wmtp_records::{ACTION_PARTS, ActionForm};

use crate::text::visible;

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
        let form = ActionForm::parse(text);
        let mut fields: Vec<(&str, String)> = Vec::new();
        let mut sentence = form.prose;
        for part in form.parts {
            match part.name {
                Ok(name) => fields.push((name, part.text)),
                // Nobody asks for it, and whoever wrote it may mean what stands above it.
                Err(name) => {
                    let above = fields.last_mut().map_or(&mut sentence, |(_, text)| text);
                    let text = format!("{above} {name}: {}", part.text);
                    text.trim_start().clone_into(above);
                }
            }
        }
        let is_sentence = fields.is_empty() && !sentence.is_empty();
        let is_missing = |name: &&str| !fields.iter().any(|(known, _)| known == name);
        Self {
            from: version(form.from),
            next: version(form.next),
            missing: if is_sentence {
                Vec::new()
            } else {
                ACTION_PARTS.into_iter().filter(is_missing).collect()
            },
            sentence: is_sentence.then_some(sentence),
            fields,
        }
    }

    /// The text of a part.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| text.as_str())
    }
}

/// The version that a line of the head names.
fn version(value: Option<String>) -> Option<String> {
    let value = value?.split_whitespace().next().map(visible);
    value.filter(|value| value != "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "# Action after v002\n\nFrom: v002\nNext: v003\nEntry: blend-half\n\n## Selected Action\n\n\
        * **Goal:** more\n  of it\n- **Change**: `a`: `1` -> `0.5`\n- **Where**: `v003.yaml`\n\
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
