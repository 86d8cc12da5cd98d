//! Notes and tags that people leave on a run: numbered records beside what the run wrote, which they never touch.
//!
//! They are for people alone. Nothing that hashes reads them, so they can change no id and no cache key.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kind::check_name;
use crate::manifest::parse_strict;
use crate::{AuditAct, Error, Result, RunId, Store, generations, layout};

/// Bytes that a note may have.
const MOST_OF_A_NOTE: usize = 4096;
/// Bytes that an author's name may have.
const MOST_OF_A_NAME: usize = 128;

/// What a remark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemarkKind {
    /// A text.
    Note,
    /// A word by which runs are found again.
    Tag,
    /// The end of a tag: the record that set it stays.
    Untag,
}

/// One remark on a run. Its text is whatever somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// What it is.
    pub kind: RemarkKind,
    /// The note, or the tag.
    pub text: String,
    /// Who wrote it, by their own word.
    pub author: String,
    /// When, by the author's clock.
    pub at: Timestamp,
}

impl Remark {
    /// Whether it can be kept: a note has a text, a tag is a word, and somebody wrote it.
    fn check(&self) -> Result<()> {
        let wrong = |what: &str, detail: String| Err(Error::usage(what, detail));
        match self.kind {
            RemarkKind::Note if self.text.trim().is_empty() => {
                return wrong("a note", "it is empty".to_owned());
            }
            RemarkKind::Note if self.text.len() > MOST_OF_A_NOTE => {
                let detail = format!(
                    "it has {} bytes, {MOST_OF_A_NOTE} are allowed",
                    self.text.len()
                );
                return wrong("a note", detail);
            }
            RemarkKind::Note => {}
            RemarkKind::Tag | RemarkKind::Untag => check_name("tag", &self.text)?,
        }
        let is_named = !self.author.trim().is_empty() && self.author.len() <= MOST_OF_A_NAME;
        if !is_named || self.author.chars().any(char::is_control) {
            let detail = format!("expected 1 to {MOST_OF_A_NAME} bytes of one line");
            return wrong("an author's name", detail);
        }
        Ok(())
    }

    fn says_the_same(&self, found: &Value) -> bool {
        serde_json::from_value(found.clone()).is_ok_and(|found: Self| {
            (found.kind, &found.text, &found.author) == (self.kind, &self.text, &self.author)
        })
    }
}

/// The tags that remarks, the oldest first, leave a run with.
pub fn tags(remarks: &[Remark]) -> BTreeSet<&str> {
    let mut tags = BTreeSet::new();
    for remark in remarks {
        match remark.kind {
            RemarkKind::Tag => {
                tags.insert(remark.text.as_str());
            }
            RemarkKind::Untag => {
                tags.remove(remark.text.as_str());
            }
            RemarkKind::Note => {}
        }
    }
    tags
}

impl Store {
    /// Adds a remark to a run, unless its newest one says the same of the same author.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such run; [`Error::Usage`] for an empty or overlong note, a tag that is no
    /// word, a nameless author.
    pub async fn remark(&self, run: &RunId, remark: &Remark) -> Result<()> {
        remark.check()?;
        if self.bucket.head(&layout::run_request(run)).await?.is_none() {
            return Err(self.no_run(run));
        }
        let request = json!({"run_id": run, "remark": remark.kind, "author": remark.author});
        self.audit(AuditAct::Remark, request).await?;
        let value = serde_json::to_value(remark).expect("a remark holds only text");
        let same = |found: &Value| remark.says_the_same(found);
        generations::append(&self.bucket, &layout::remarks(run), value, same).await
    }

    /// The remarks on a run, the oldest first, and how many records are none.
    pub async fn remarks(&self, run: &RunId) -> Result<(Vec<Remark>, u64)> {
        let entries = generations::all(&self.bucket, &layout::remarks(run)).await?;
        let total = entries.len();
        let remarks: Vec<Remark> = entries
            .iter()
            .filter_map(|(_, bytes)| serde_json::from_value(parse_strict(bytes).ok()?).ok())
            .filter(|remark: &Remark| remark.check().is_ok())
            .collect();
        let num_bad = (total - remarks.len()) as u64;
        Ok((remarks, num_bad))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(kind: RemarkKind, text: &str, author: &str) -> Remark {
        Remark {
            kind,
            text: text.to_owned(),
            author: author.to_owned(),
            at: "2026-11-28T10:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_tag_counts_until_it_is_taken_back() {
        let of = |kind, text| remark(kind, text, "ada");
        let remarks = [
            of(RemarkKind::Tag, "paper"),
            of(RemarkKind::Tag, "keep"),
            of(RemarkKind::Note, "keep"),
            of(RemarkKind::Untag, "keep"),
            of(RemarkKind::Untag, "never-set"),
            of(RemarkKind::Tag, "again"),
        ];
        assert_eq!(tags(&remarks), BTreeSet::from(["again", "paper"]));
        assert_eq!(tags(&remarks[..2]), BTreeSet::from(["keep", "paper"]));
    }

    #[test]
    fn what_nobody_could_use_is_refused() {
        let long = "x".repeat(MOST_OF_A_NOTE + 1);
        let refused = [
            (RemarkKind::Note, " \n", "ada"),
            (RemarkKind::Note, long.as_str(), "ada"),
            (RemarkKind::Note, "text", " "),
            (RemarkKind::Note, "text", "a\u{1b}[31m"),
            (RemarkKind::Tag, "two words", "ada"),
            (RemarkKind::Untag, "", "ada"),
            (RemarkKind::Tag, "../x", "ada"),
        ];
        for (kind, text, author) in refused {
            assert!(
                remark(kind, text, author).check().is_err(),
                "{text:?} {author:?}"
            );
        }
        remark(RemarkKind::Note, &long[..MOST_OF_A_NOTE], "Ada L.")
            .check()
            .unwrap();
        remark(RemarkKind::Tag, "paper-2", "ada").check().unwrap();
    }
}
