//! `action-extract.md`: the one change that was chosen after a version was judged, as programs and people write it.
//!
//! Made by build-leaderboard and by hand; read by build-leaderboard, which holds it to its rules, and by the site, which
//! shows what is there.

/// Names of the parts of a selected action, in the order in which a reader asks.
pub const ACTION_PARTS: [&str; 6] = [
    "Goal",
    "Change",
    "Where",
    "Expected impact",
    "Risk",
    "Verification",
];

/// The file as its Markdown reads. Nothing in it is an error; texts are Markdown still.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActionForm {
    /// `From:`, the version that the next one starts from.
    pub from: Option<String>,
    /// `Next:`, the version that it makes; `none` at the end of a loop.
    pub next: Option<String>,
    /// `Entry:`, its name in the catalogue.
    pub entry: Option<String>,
    /// Parts of the selected action, as they stand there.
    pub parts: Vec<ActionPart>,
    /// What else stands among them, such as the sentence that ends a loop.
    pub prose: String,
    /// How it was selected.
    pub selection: String,
    /// Candidates that were not taken, and why.
    pub deferred: Vec<(String, String)>,
}

/// One item of the selected action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionPart {
    /// 1-based.
    pub line: usize,
    /// Which of [`ACTION_PARTS`] it is; the name as it stands there where it is none of them.
    pub name: Result<&'static str, String>,
    /// What it says.
    pub text: String,
}

impl ActionForm {
    /// Reads the file.
    ///
    /// ```
    /// use wmtp_records::ActionForm;
    ///
    /// let text = "From: v002\n\n## Selected Action\n\n- **Goal**: more\n  of it\n* risk: none\n\nThe rest.\n";
    /// let form = ActionForm::parse(text);
    /// assert_eq!(form.from.as_deref(), Some("v002"));
    /// assert_eq!((form.parts[0].name.as_deref(), form.parts[0].text.as_str()), (Ok("Goal"), "more of it"));
    /// assert_eq!((form.parts[1].name.as_deref(), form.parts[1].line), (Ok("Risk"), 7));
    /// assert_eq!(form.prose, "The rest.");
    /// ```
    pub fn parse(text: &str) -> Self {
        let mut form = Self::default();
        let mut section = "";
        // Whether a line would go on with the part above it.
        let mut is_open = false;
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(heading) = line.trim_start().strip_prefix("## ") {
                section = heading.trim();
                continue;
            }
            match section {
                "" => form.head(line.trim()),
                "Selected Action" => is_open = form.selected(number, line, is_open),
                "Selection" => append(&mut form.selection, line),
                "Deferred" => form.deferred.extend(deferred(line)),
                _ => {}
            }
        }
        form
    }

    fn head(&mut self, line: &str) {
        for (name, place) in [
            ("From:", &mut self.from),
            ("Next:", &mut self.next),
            ("Entry:", &mut self.entry),
        ] {
            if let Some(value) = line.strip_prefix(name) {
                *place = Some(value.trim().trim_matches('`').to_owned());
            }
        }
    }

    fn selected(&mut self, number: usize, line: &str, is_open: bool) -> bool {
        if line.trim().is_empty() {
            return false;
        }
        if let Some((name, text)) = part(line) {
            self.parts.push(ActionPart {
                line: number,
                name,
                text: text.to_owned(),
            });
            return true;
        }
        // As in Markdown: behind a blank line only what is indented belongs to the item above it.
        let goes_on = is_open || line.starts_with([' ', '\t']);
        match self.parts.last_mut().filter(|_| goes_on) {
            Some(part) => append(&mut part.text, line),
            None => append(&mut self.prose, line),
        }
        is_open
    }
}

fn append(text: &mut String, line: &str) {
    let line = line.trim();
    if !text.is_empty() && !line.is_empty() {
        text.push(' ');
    }
    text.push_str(line);
}

fn item(line: &str) -> Option<&str> {
    let line = line.trim();
    line.strip_prefix("- ").or_else(|| line.strip_prefix("* "))
}

/// `- **Goal**: text`; `- **Goal:** text` and `* Goal: text` are as common.
fn part(line: &str) -> Option<(Result<&'static str, String>, &str)> {
    let (name, text) = item(line)?.split_once(':')?;
    let name = name.trim().trim_matches('*').trim();
    let known = ACTION_PARTS
        .into_iter()
        .find(|part| part.eq_ignore_ascii_case(name));
    let text = text.trim().trim_start_matches("**").trim();
    Some((known.ok_or_else(|| name.to_owned()), text))
}

fn deferred(line: &str) -> Option<(String, String)> {
    let (name, reason) = item(line)?.split_once(':')?;
    let name = name.trim().trim_matches('`');
    Some((name.to_owned(), reason.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_way_to_write_a_part_reads_the_same() {
        for line in [
            "- **Goal**: more",
            "- **Goal:** more",
            "* **Goal**: more",
            "- Goal: more",
            "  - goal: more",
        ] {
            let form = ActionForm::parse(&format!("## Selected Action\n{line}\n"));
            let expected = ActionPart {
                line: 2,
                name: Ok("Goal"),
                text: "more".to_owned(),
            };
            assert_eq!(form.parts, [expected], "{line}");
        }
    }

    #[test]
    fn a_part_ends_with_its_paragraph_and_an_unknown_one_is_kept() {
        let text = "# Action\n\nFrom: `v002`\nNext: none\nEntry: x\n\n## Selected Action\n\n\
            Before.\n- Danger: a\n  b\nc\n\n  d\n\ne\n- no part\n\n## Selection\n\nf\ng\n\n## Deferred\n\n\
            - `one`: h: i\n* two: j\n\n## Else\n\n- Goal: k\n";
        let form = ActionForm::parse(text);
        let head = [&form.from, &form.next, &form.entry].map(|value| value.as_deref());
        assert_eq!(head, [Some("v002"), Some("none"), Some("x")]);
        let danger = ActionPart {
            line: 10,
            name: Err("Danger".to_owned()),
            text: "a b c d".to_owned(),
        };
        assert_eq!(form.parts, [danger]);
        assert_eq!(form.prose, "Before. e - no part");
        assert_eq!(form.selection, "f g");
        let deferred = [("one", "h: i"), ("two", "j")];
        assert_eq!(
            form.deferred,
            deferred.map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        );
    }
}
