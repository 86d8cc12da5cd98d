//! Finding again what was computed before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::check_name;
use crate::manifest::parse_strict;
use crate::{ArtifactId, Digest, Error, Result, RunId, Store, fault, generations, layout};

/// What a piece of work gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// Artifacts by their role among the outputs.
    pub outputs: BTreeMap<String, ArtifactId>,
    /// The run that made them.
    pub run_id: RunId,
    /// When.
    pub created_at: Timestamp,
}

/// What the cache knows about a piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheLookup {
    /// It was done, and all of it is there.
    Hit(CacheEntry),
    /// It was never done here.
    Miss,
    /// It was done, but something of it is missing or damaged; it has to be done again.
    Damaged {
        /// What the entry says, when it can be read.
        entry: Option<CacheEntry>,
        /// What is wrong.
        reason: String,
    },
}

impl Store {
    /// The outputs of earlier equal work, if they are all there. Damage is warned about and is a miss.
    pub async fn cached(&self, job: &str, key: &Digest) -> Result<Option<CacheEntry>> {
        match self.lookup(job, key).await? {
            CacheLookup::Hit(entry) => Ok(Some(entry)),
            CacheLookup::Miss => Ok(None),
            CacheLookup::Damaged { reason, .. } => {
                tracing::warn!(job, %key, reason, "a cached result is damaged; it is computed again");
                Ok(None)
            }
        }
    }

    /// Looks for the outputs of earlier equal work. A hit counts only after every manifest was read and
    /// checked and every content was found with its right size.
    pub async fn lookup(&self, job: &str, key: &Digest) -> Result<CacheLookup> {
        check_name("job", job)?;
        let folder = layout::cache(job, key);
        let Some((_, bytes)) = generations::newest(&self.bucket, &folder).await? else {
            return Ok(CacheLookup::Miss);
        };
        let entry: CacheEntry = match parse_strict(&bytes).map(serde_json::from_value) {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => {
                return Ok(CacheLookup::Damaged {
                    entry: None,
                    reason: error.to_string(),
                });
            }
            Err(error) => {
                return Ok(CacheLookup::Damaged {
                    entry: None,
                    reason: error.to_string(),
                });
            }
        };
        for id in entry.outputs.values() {
            match self.check(id).await {
                Ok(()) => {}
                Err(
                    error @ (Error::Corrupt { .. }
                    | Error::NotFound { .. }
                    | Error::BadInput { .. }),
                ) => {
                    return Ok(CacheLookup::Damaged {
                        entry: Some(entry),
                        reason: error.to_string(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(CacheLookup::Hit(entry))
    }

    async fn check(&self, id: &ArtifactId) -> Result<()> {
        let manifest = self.manifest(id).await?;
        self.verify(&manifest).await
    }

    /// Records what a piece of work gave. An entry that names the same outputs is left as it is.
    pub async fn record_cache(&self, job: &str, key: &Digest, entry: &CacheEntry) -> Result<()> {
        check_name("job", job)?;
        let value = serde_json::to_value(entry).expect("an entry holds only text");
        let same = |found: &Value| found["outputs"] == value["outputs"];
        let mut turns = self.turns_for(entry.outputs.values(), format!("run {}", entry.run_id));
        loop {
            let look = turns.next().await?;
            generations::append(&self.bucket, &layout::cache(job, key), value.clone(), same)
                .await?;
            if look.is_valid() {
                break;
            }
        }
        fault::point("publish:after-cache");
        Ok(())
    }
}
