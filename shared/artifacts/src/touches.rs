//! The register of looks at what should be looked at once, such as a test set.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::check_name;
use crate::manifest::parse_strict;
use crate::{Digest, Error, Result, RunId, Store, generations, layout};

/// One look. It is written before what it looks at is read, and nothing removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Digest of all that determines the look's result: looks of an equal key are one, however often they are begun.
    pub key: Digest,
    /// Digest of the way of looking, by which looks are told apart.
    pub protocol: Digest,
    /// The run that looked.
    pub run_id: RunId,
    /// When it began, by its own clock.
    pub begun_at: Timestamp,
}

impl Store {
    /// Registers a look at `set` on behalf of `by`; returns the looks up to this one, the oldest first and this one last.
    ///
    /// A look whose key is there already is not written again: the earlier entry stands for it.
    ///
    /// # Errors
    /// [`Error::Usage`] when `by` is not made of letters, digits, `-`, `_` and `.`; [`Error::Corrupt`] when an entry is none.
    pub async fn register_touch(
        &self,
        set: &Digest,
        by: &str,
        touch: &Touch,
    ) -> Result<Vec<Touch>> {
        let folder = folder(set, by)?;
        let value = serde_json::to_value(touch).expect("a touch holds only text");
        let same = |found: &Value| found["key"] == value["key"];
        let entries = generations::append_once(&self.bucket, &folder, value.clone(), same).await?;
        self.parsed(&folder, entries)
    }

    /// The looks that were registered, the oldest first.
    ///
    /// # Errors
    /// As of [`Store::register_touch`].
    pub async fn touches(&self, set: &Digest, by: &str) -> Result<Vec<Touch>> {
        let folder = folder(set, by)?;
        let entries = generations::all(&self.bucket, &folder).await?;
        self.parsed(&folder, entries)
    }

    fn parsed(&self, folder: &str, entries: Vec<(u64, Bytes)>) -> Result<Vec<Touch>> {
        let parse = |(number, bytes): (u64, Bytes)| {
            serde_json::from_value(parse_strict(&bytes)?).map_err(|error| {
                let what = format!("{folder} generation {number} in {}", self.bucket.place());
                Error::corrupt(what, error.to_string())
            })
        };
        entries.into_iter().map(parse).collect()
    }
}

fn folder(set: &Digest, by: &str) -> Result<String> {
    check_name("who touches", by)?;
    Ok(layout::touches(set, by))
}
