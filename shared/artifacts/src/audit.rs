//! The audit log: who changed what people rely on, with which program, and when.
//!
//! An event is written before the act that it tells of, create-only, under a key of its own; nobody may delete it
//! ([`crate::Role::policy`]). So an act without an event cannot be, while a kill may leave an event without its act. What
//! jobs do has records of its own: requests, claims and results of runs, which nothing overwrites.

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::Listed;
use crate::commit::create_only;
use crate::manifest::{new_write_id, parse_strict};
use crate::{Result, Store, layout};

/// Events read at a time.
const EVENTS_IN_FLIGHT: usize = 16;

/// The program that works on a store, as its audit log tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub program: String,
    /// The commit that it was built from, or `unknown`.
    pub revision: String,
    /// The image that it runs in, with its digest, where whoever started it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The machine, for people.
    pub host: String,
}

/// What somebody did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditAct {
    /// Pointed a name to an artifact.
    Name,
    /// Asked a gate to let a version through, and wrote down its answer.
    Promote,
    /// Began to delete what an announced collection holds.
    Collect,
    /// Left a note or a tag on a run.
    Remark,
}

impl AuditAct {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Promote => "promote",
            Self::Collect => "collect",
            Self::Remark => "remark",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditEvent {
    /// When, by the store's clock.
    pub at: Timestamp,
    /// All that the writer said.
    #[serde(flatten)]
    pub entry: AuditEntry,
}

/// An event as its writer told it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// What was done.
    pub act: AuditAct,
    /// Id of the access key that signed it; its secret stands nowhere.
    pub key_id: Option<String>,
    /// With which program.
    pub agent: Agent,
    /// What was asked for, whole.
    pub request: Value,
}

impl Store {
    /// Writes down an act that follows.
    pub(crate) async fn audit(&self, act: AuditAct, request: Value) -> Result<()> {
        let entry = AuditEntry {
            act,
            key_id: self.bucket.key_id().await,
            agent: self.bucket.options.agent.clone(),
            request,
        };
        let id = new_write_id();
        // In the order of time for whoever lists them; the random part keeps two of one moment apart.
        let key = layout::audit_event(Timestamp::now().as_millisecond(), &id);
        let mut value = json!(entry);
        value["write_id"] = id.into();
        create_only(&self.bucket, &key, value.to_string().into_bytes(), |_| {
            false
        })
        .await?;
        Ok(())
    }

    /// The events since a time by the store's clock, the oldest first, and how many objects are none.
    pub async fn audit_log(&self, since: Option<Timestamp>) -> Result<(Vec<AuditEvent>, u64)> {
        let first = since.map_or(i64::MIN, Timestamp::as_second);
        let mut listed = Vec::new();
        self.bucket
            .list_objects(layout::AUDIT, |object| {
                if object.modified >= first {
                    listed.push(object);
                }
            })
            .await?;
        listed.sort_by(|a, b| (a.modified, &a.key).cmp(&(b.modified, &b.key)));
        let total = listed.len() as u64;
        let found: Vec<Option<AuditEvent>> = stream::iter(listed)
            .map(|object| self.audit_event(object))
            .buffered(EVENTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let events: Vec<AuditEvent> = found.into_iter().flatten().collect();
        let num_bad = total - events.len() as u64;
        Ok((events, num_bad))
    }

    async fn audit_event(&self, object: Listed) -> Result<Option<AuditEvent>> {
        let bytes = self.bucket.get(&object.key).await?.unwrap_or_default();
        let entry = parse_strict(&bytes)
            .ok()
            .and_then(|value| serde_json::from_value(value).ok());
        let at = Timestamp::from_second(object.modified).unwrap_or_default();
        Ok(entry.map(|entry| AuditEvent { at, entry }))
    }
}
