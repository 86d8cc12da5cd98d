//! How a collection is announced, and how writers and the collector keep out of each other's way.
//!
//! Content is shared: a writer that finds its content in the store does not send it again. So a collector that deletes
//! what nothing refers to races with writers that are about to refer to it, and S3 has no portable conditional delete.
//! The two agree on a few objects instead, each written once:
//!
//! - `plan.json`: what the collector means to delete. It deletes nothing before the plan is as old as the
//!   [notice](NOTICE), and then only what is in the plan.
//! - `verdict.json`: `apply` by the collector or `void` by a writer. It is create-only, so exactly one of them wins.
//! - `done.json`: the collector has sent its last request, or is dead and a writer that waited for it said so. A collector
//!   looks for it after each sign of life, so one that was taken for dead does not go on.
//!
//! A writer looks at the plans **first**, makes a plan void that has something it needs, or waits for the end of one that
//! is being carried out. Only **then** it looks for its content, sends what is missing and commits, all within half the
//! notice; else it begins anew. The collector reads what refers to what **after** its verdict. So a plan that the writer
//! did not see is younger than its look, its verdict comes half a notice after the commit at least, and the collector
//! sees the commit, even where listings lag by as much.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::GcPolicy;
use crate::claim::Stored;
use crate::commit::create_only;
use crate::holder::Holder;
use crate::manifest::Manifest;
use crate::{ArtifactId, Error, Outcome, Result, Store, layout};

/// Time between a plan and the first deletion.
pub(crate) const NOTICE: Duration = Duration::from_hours(1);
/// A request whose answer never came may take effect as long as its signature is valid: 15 minutes.
pub(super) const SETTLE: Duration = Duration::from_mins(15);
/// Time between two looks at a collection that is waited for.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// How long a writer waits for a collection that has what it needs: long enough for one whose process died to be known as
/// dead, and for its last requests.
const MAX_WAIT: Duration = Duration::from_hours(1);
/// Turns after which a writer gives up: each was too slow, or met a collection.
const MAX_TURNS: usize = 20;

/// Something that a plan means to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// Key of the object below the store's prefix.
    pub key: String,
    /// Bytes.
    pub bytes: u64,
    /// Why nothing needs it.
    pub why: String,
}

/// A multipart upload that was begun and never ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakedUpload {
    /// Key of the object that it would have become.
    pub key: String,
    /// The store's id of the upload.
    pub upload: String,
}

/// What a collection deletes, in the order in which it does: pointers, manifests, contents. So a manifest never stays
/// without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPlan {
    /// How long things are kept that nothing refers to.
    pub policy: GcPolicy,
    /// Checkpoint and cache entries.
    pub entries: Vec<Doomed>,
    /// Manifests: each is an artifact.
    pub manifests: Vec<Doomed>,
    /// Contents.
    pub contents: Vec<Doomed>,
    /// Uploads to abort.
    pub uploads: Vec<LeakedUpload>,
}

impl GcPlan {
    /// Whether there is nothing to delete.
    pub fn is_empty(&self) -> bool {
        self.objects().next().is_none() && self.uploads.is_empty()
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects().map(|doomed| doomed.bytes).sum()
    }

    /// All objects, in the order of their deletion.
    pub fn objects(&self) -> impl Iterator<Item = &Doomed> {
        self.entries
            .iter()
            .chain(&self.manifests)
            .chain(&self.contents)
    }
}

/// What was decided about a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The collector carries it out.
    Apply { holder: Holder },
    /// Nothing of it is to be deleted.
    Void { by: String },
}

impl Verdict {
    pub(super) fn is_void(bytes: &[u8]) -> bool {
        matches!(Self::parse(bytes), Some(Self::Void { .. }))
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Stored<Self>>(bytes)
            .ok()
            .map(|stored| stored.value)
    }
}

/// The end of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// Seconds after which no request of the collection can take effect any more.
    pub(super) settle_secs: u64,
    pub(super) ended_at: Timestamp,
}

/// The objects of collections that are in the store: by number, which parts there are.
pub(super) type Collections = BTreeMap<u64, BTreeSet<String>>;

/// A look at the plans, after which a writer may rely on what it finds for half a notice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    steady: Instant,
    /// Goes on while the machine sleeps, unlike the other.
    wall: SystemTime,
    valid: Duration,
}

impl Look {
    fn now(notice: Duration) -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now(),
            valid: notice / 2,
        }
    }

    /// Whether what was found since the look can still be relied on.
    pub(crate) fn is_valid(&self) -> bool {
        let wall = self.wall.elapsed().unwrap_or(Duration::MAX);
        self.steady.elapsed().max(wall) < self.valid
    }
}

/// The turns of a writer: each begins with a look at the plans, and one that took too long is followed by another.
pub(crate) struct Turns<'a> {
    store: &'a Store,
    keys: BTreeSet<String>,
    who: String,
    left: usize,
}

impl Turns<'_> {
    /// Begins a turn: nothing of what the writer needs is or comes to be deleted while the look is valid.
    pub(crate) async fn next(&mut self) -> Result<Look> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::NotYet {
            what: self.who.clone(),
            detail: format!("looking for its contents took too long, {MAX_TURNS} times in a row"),
            hint: "the store answers too slowly for a safe commit; run the same command again"
                .to_owned(),
        })?;
        self.store.look_out(&self.keys, &self.who).await
    }
}

impl Store {
    /// For a writer that is about to commit or name something: see [`Turns::next`].
    pub(crate) fn turns(&self, keys: BTreeSet<String>, who: String) -> Turns<'_> {
        Turns {
            store: self,
            keys,
            who,
            left: MAX_TURNS,
        }
    }

    /// [`Store::turns`] for whoever points to artifacts.
    pub(crate) fn turns_for<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a ArtifactId>,
        who: String,
    ) -> Turns<'_> {
        self.turns(ids.into_iter().map(layout::manifest).collect(), who)
    }

    pub(super) fn notice(&self) -> Duration {
        self.bucket.options.collection_notice.unwrap_or(NOTICE)
    }

    /// Which objects of collections there are.
    pub(super) async fn collections(&self) -> Result<Collections> {
        let mut found = Collections::new();
        for key in self.bucket.list(layout::COLLECTIONS).await? {
            if let Some((number, what)) = layout::collection_of(&key) {
                found.entry(number).or_default().insert(what.to_owned());
            }
        }
        Ok(found)
    }

    async fn look_out(&self, keys: &BTreeSet<String>, who: &str) -> Result<Look> {
        let began = Instant::now();
        loop {
            let look = Look::now(self.notice());
            let mut busy = None;
            for (number, parts) in self.collections().await? {
                if self.is_in_the_way(number, &parts, keys, who).await? {
                    busy = Some(number);
                }
            }
            let Some(number) = busy else {
                return Ok(look);
            };
            if began.elapsed() >= MAX_WAIT {
                return Err(Error::NotYet {
                    what: who.to_owned(),
                    detail: format!(
                        "collection {number:04} deletes what this needs and does not end"
                    ),
                    hint: "look whether its process still works, then run this again".to_owned(),
                });
            }
            if self.end_if_abandoned(number).await? {
                tracing::warn!(
                    "collection {number:04} was left by a process that died; going on once its last requests cannot \
                     arrive any more, in {} minutes",
                    SETTLE.as_secs() / 60
                );
            }
            tokio::time::sleep(LOOK_PERIOD.min(self.notice())).await;
        }
    }

    /// Whether a collection deletes, or may yet delete, one of the objects. Where it has not begun, it is made void.
    async fn is_in_the_way(
        &self,
        number: u64,
        parts: &BTreeSet<String>,
        keys: &BTreeSet<String>,
        who: &str,
    ) -> Result<bool> {
        if parts.contains("done") && self.is_settled(number).await? {
            return Ok(false);
        }
        if parts.contains("verdict")
            && matches!(self.verdict(number).await?, Some(Verdict::Void { .. }))
        {
            return Ok(false);
        }
        let Some(plan) = self.plan(number).await? else {
            return Ok(false);
        };
        if !plan.objects().any(|doomed| keys.contains(&doomed.key)) {
            return Ok(false);
        }
        let void = Verdict::Void { by: who.to_owned() };
        let key = layout::collection(number, "verdict");
        let (outcome, _) =
            create_only(&self.bucket, &key, Stored::bytes(void), Verdict::is_void).await?;
        Ok(outcome == Outcome::TheirsDifferent)
    }

    /// Whether no request of an ended collection can take effect any more.
    async fn is_settled(&self, number: u64) -> Result<bool> {
        let key = layout::collection(number, "done");
        let Some(done) = self.read_json::<Done>(&key).await? else {
            return Ok(false);
        };
        if done.settle_secs == 0 {
            return Ok(true);
        }
        let age = self.bucket.head(&key).await?.and_then(|head| head.age);
        Ok(age.is_some_and(|age| age.as_secs() > done.settle_secs))
    }

    /// A plan, if it was written.
    pub(super) async fn plan(&self, number: u64) -> Result<Option<GcPlan>> {
        self.read_json(&layout::collection(number, "plan")).await
    }

    /// What was decided about a plan.
    pub(super) async fn verdict(&self, number: u64) -> Result<Option<Verdict>> {
        self.read_json(&layout::collection(number, "verdict")).await
    }
}

/// What a commit relies on: its contents, what it was made from, and its manifest, should that be there already.
pub(crate) fn needs(manifest: &Manifest) -> BTreeSet<String> {
    let files = manifest.content.files.iter();
    let mut keys: BTreeSet<_> = files.map(|file| layout::blob(&file.sha256)).collect();
    let inputs = manifest.provenance.inputs.iter();
    keys.extend(inputs.map(|input| layout::manifest(&input.id)));
    keys.insert(layout::manifest(&manifest.id));
    keys
}
