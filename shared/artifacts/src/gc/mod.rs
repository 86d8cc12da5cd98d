//! Collection: deleting what nothing needs, without taking anything from a job that is at work.
//!
//! Three steps: [`Store::gc_survey`] looks and changes nothing; [`Store::gc_plan`] announces what it found;
//! [`Store::gc_apply`] looks again once the notice is over and deletes what was announced and is still not needed.

mod notice;
mod survey;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use self::notice::needs;
use self::notice::{Done, SETTLE, Verdict};
pub use self::notice::{Doomed, GcPlan, LeakedUpload};
pub use self::survey::GcSurvey;
use crate::claim::Stored;
use crate::commit::create_only;
use crate::holder::Holder;
use crate::{AuditAct, Error, Outcome, Result, Store, layout};

/// Objects deleted at a time.
const DELETES_IN_FLIGHT: usize = 32;
/// Objects deleted between two signs of life.
const CHUNK: usize = 1_000;
/// A collector that was not heard of for so long is dead: it stops by itself after half of it.
const TAKEOVER: Duration = Duration::from_secs(2 * SETTLE.as_secs());
/// So long is enough where its process is known to have ended: another that goes on in its place gives signs of its own.
const TAKEOVER_OF_ENDED: Duration = Duration::from_mins(2);

/// How long things are kept that nothing refers to. Ages are those of the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPolicy {
    /// Seconds that an object is kept in any case.
    pub grace_secs: u64,
    /// Seconds that a cache entry is kept after a newer one took its place.
    pub cache_secs: u64,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            grace_secs: 7 * 86_400,
            cache_secs: 30 * 86_400,
        }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Number of the collection.
    pub number: u64,
    /// Checkpoint and cache entries that were deleted.
    pub entries: u64,
    /// Artifacts that were deleted.
    pub artifacts: u64,
    /// Contents that were deleted.
    pub contents: u64,
    /// Bytes of all deleted objects.
    pub bytes: u64,
    /// Unfinished uploads that were aborted.
    pub uploads: u64,
    /// Objects of the plan that came to be needed, or were gone, before the collection began.
    pub spared: u64,
}

impl Store {
    /// Announces a collection: its number and its plan; none where there is nothing to collect. A plan that was not
    /// carried out yet is replaced.
    ///
    /// # Errors
    /// [`Error::NotYet`] while a collection is carried out; as [`Store::gc_survey`].
    pub async fn gc_plan(&self, policy: GcPolicy) -> Result<Option<(u64, GcPlan)>> {
        let collections = self.collections().await?;
        let open = collections
            .iter()
            .filter(|(_, parts)| !parts.contains("done"));
        for (&number, _) in open {
            self.drop_plan(number).await?;
        }
        let plan = self.gc_survey(policy).await?.plan;
        if plan.is_empty() {
            return Ok(None);
        }
        let number = collections.keys().next_back().map_or(0, |last| last + 1);
        let key = layout::collection(number, "plan");
        let (outcome, _) = create_only(&self.bucket, &key, Stored::bytes(&plan), |_| false).await?;
        if outcome == Outcome::TheirsDifferent {
            return Err(Error::NotYet {
                what: format!("collection {number:04}"),
                detail: "another process announced one at the same time".to_owned(),
                hint: "one plan is enough: apply that one".to_owned(),
            });
        }
        Ok(Some((number, plan)))
    }

    /// Makes a plan void that is not being carried out.
    async fn drop_plan(&self, number: u64) -> Result<()> {
        let void = Verdict::Void {
            by: "a newer plan".to_owned(),
        };
        let key = layout::collection(number, "verdict");
        let (outcome, _) =
            create_only(&self.bucket, &key, Stored::bytes(void), Verdict::is_void).await?;
        if outcome == Outcome::TheirsDifferent {
            return Err(Error::NotYet {
                what: "a new plan".to_owned(),
                detail: format!("collection {number:04} is being carried out"),
                hint: "wait for it; where its process died, `wmtp-store gc --apply` ends it"
                    .to_owned(),
            });
        }
        self.end_collection(number, 0).await
    }

    /// Carries out the announced collection. `watch` is told how many objects are deleted, and of how many.
    ///
    /// # Errors
    /// [`Error::NotFound`] when none was announced; [`Error::NotYet`] before its notice is over, while another process
    /// carries it out, and when a writer made it void.
    pub async fn gc_apply(&self, mut watch: impl FnMut(u64, u64)) -> Result<GcReport> {
        let number = self.announced().await?;
        let plan = self
            .plan(number)
            .await?
            .unwrap_or_else(|| GcPlan::none(GcPolicy::default()));
        self.await_notice(number).await?;
        let is_resumed = self.begin_collection(number).await?;
        let request = serde_json::json!({ "collection": number });
        self.audit(AuditAct::Collect, request).await?;
        let planned = plan.objects().map(|doomed| doomed.key.as_str()).collect();
        let doomed = self.survey(plan.policy, Some(&planned)).await?.plan;
        let mut report = GcReport {
            number,
            spared: plan.objects().count() as u64 - doomed.objects().count() as u64,
            ..GcReport::default()
        };
        let total = doomed.objects().count() as u64;
        let mut collector = Collector {
            store: self,
            number,
            heard: Instant::now(),
            was_answered: !is_resumed,
        };
        let mut done = 0;
        // One after the other: a pointer never outlives what it points to, nor a manifest its content.
        for (objects, count) in [
            (&doomed.entries, &mut report.entries),
            (&doomed.manifests, &mut report.artifacts),
            (&doomed.contents, &mut report.contents),
        ] {
            for chunk in objects.chunks(CHUNK) {
                collector.delete(chunk).await?;
                done += chunk.len() as u64;
                *count += chunk.len() as u64;
                watch(done, total);
            }
        }
        report.bytes = doomed.bytes();
        for upload in &doomed.uploads {
            self.bucket
                .abort_upload(&upload.key, &upload.upload)
                .await?;
            report.uploads += 1;
        }
        let settle = if collector.was_answered {
            0
        } else {
            SETTLE.as_secs()
        };
        self.end_collection(number, settle).await?;
        Ok(report)
    }

    /// The collection that was announced and has not ended.
    async fn announced(&self) -> Result<u64> {
        let collections = self.collections().await?;
        let mut open = collections
            .iter()
            .rev()
            .filter(|(_, parts)| parts.contains("plan") && !parts.contains("done"));
        open.next()
            .map(|(number, _)| *number)
            .ok_or_else(|| Error::NotFound {
                what: "an announced collection".to_owned(),
                store: self.bucket.place(),
                hint: Some("announce one with `wmtp-store gc --plan`".to_owned()),
            })
    }

    async fn await_notice(&self, number: u64) -> Result<()> {
        let head = self
            .bucket
            .head(&layout::collection(number, "plan"))
            .await?;
        let age = head.and_then(|head| head.age).unwrap_or_default();
        // Ages are told in whole seconds: one that reads 5 s may be 4 s.
        let Some(left) = (self.notice() + Duration::from_secs(1)).checked_sub(age) else {
            return Ok(());
        };
        Err(Error::NotYet {
            what: format!("collection {number:04}"),
            detail: format!(
                "writers have notice of it for {} s more",
                left.as_secs() + 1
            ),
            hint: "apply it after that".to_owned(),
        })
    }

    /// Decides to carry the plan out; true when another process began it and died.
    async fn begin_collection(&self, number: u64) -> Result<bool> {
        let key = layout::collection(number, "verdict");
        let apply = Verdict::Apply {
            holder: Holder::this_process("collector"),
        };
        let (outcome, found) =
            create_only(&self.bucket, &key, Stored::bytes(apply), |_| false).await?;
        if outcome != Outcome::TheirsDifferent {
            return Ok(false);
        }
        match Verdict::parse(&found) {
            Some(Verdict::Void { by }) => {
                self.end_collection(number, 0).await?;
                Err(Error::NotYet {
                    what: format!("collection {number:04}"),
                    detail: format!("it is void: {by} came to need some of it"),
                    hint: "announce a new one with `wmtp-store gc --plan`".to_owned(),
                })
            }
            Some(Verdict::Apply { holder })
                if holder.is_gone() || self.is_silent(number, TAKEOVER).await? =>
            {
                Ok(true)
            }
            Some(Verdict::Apply { .. }) => Err(Error::NotYet {
                what: format!("collection {number:04}"),
                detail: "another process carries it out".to_owned(),
                hint: format!(
                    "wait for it; when it died on another machine, it can be ended {} minutes after its last sign of life",
                    TAKEOVER.as_secs() / 60
                ),
            }),
            None => Err(Error::corrupt(key, "it is no verdict on a collection")),
        }
    }

    /// Ends a collection whose process died, in place of it: true when that was done just now. What it left in the store
    /// is found by the next one.
    async fn end_if_abandoned(&self, number: u64) -> Result<bool> {
        let key = layout::collection(number, "done");
        if self.bucket.head(&key).await?.is_some() {
            return Ok(false);
        }
        let Some(Verdict::Apply { holder }) = self.verdict(number).await? else {
            return Ok(false);
        };
        let patience = if holder.is_gone() {
            TAKEOVER_OF_ENDED
        } else {
            TAKEOVER
        };
        if !self.is_silent(number, patience).await? {
            return Ok(false);
        }
        self.end_collection(number, SETTLE.as_secs()).await?;
        Ok(true)
    }

    /// Whether a collector was not heard of for so long.
    async fn is_silent(&self, number: u64, patience: Duration) -> Result<bool> {
        let status = self
            .bucket
            .head(&layout::collection(number, "status"))
            .await?;
        let head = match status {
            Some(head) => Some(head),
            None => {
                self.bucket
                    .head(&layout::collection(number, "verdict"))
                    .await?
            }
        };
        Ok(head
            .and_then(|head| head.age)
            .is_some_and(|age| age >= patience))
    }

    async fn end_collection(&self, number: u64, settle_secs: u64) -> Result<()> {
        let done = Done {
            settle_secs,
            ended_at: Timestamp::now(),
        };
        let key = layout::collection(number, "done");
        create_only(&self.bucket, &key, Stored::bytes(done), |_| true).await?;
        Ok(())
    }
}

/// A process that carries out a collection.
struct Collector<'a> {
    store: &'a Store,
    number: u64,
    /// When it last gave a sign of life.
    heard: Instant,
    /// Whether every request so far was answered.
    was_answered: bool,
}

impl Collector<'_> {
    async fn delete(&mut self, objects: &[Doomed]) -> Result<()> {
        self.give_sign().await?;
        let keys: Vec<String> = objects.iter().map(|doomed| doomed.key.clone()).collect();
        let answers: Vec<bool> = stream::iter(keys)
            .map(|key| {
                let store = self.store.clone();
                async move { store.bucket.delete(&key).await }
            })
            .buffer_unordered(DELETES_IN_FLIGHT)
            .try_collect()
            .await?;
        self.was_answered &= !answers.contains(&false);
        Ok(())
    }

    /// Says that the collector lives. One that slept for long may have been taken for dead, and writers rely on that.
    async fn give_sign(&mut self) -> Result<()> {
        if self.heard.elapsed() >= SETTLE {
            return Err(Error::NotYet {
                what: format!("collection {:04}", self.number),
                detail: "this process stood still for too long".to_owned(),
                hint: "run the same command again".to_owned(),
            });
        }
        let key = layout::collection(self.number, "status");
        let status = serde_json::json!({"at": Timestamp::now()}).to_string();
        self.store.bucket.put(&key, Bytes::from(status)).await?;
        self.heard = Instant::now();
        let done = layout::collection(self.number, "done");
        if self.store.bucket.head(&done).await?.is_none() {
            return Ok(());
        }
        Err(Error::NotYet {
            what: format!("collection {:04}", self.number),
            detail: "a writer that needs some of it took this process for dead and ended it"
                .to_owned(),
            hint: "announce a new one with `wmtp-store gc --plan`".to_owned(),
        })
    }
}

impl GcPlan {
    fn none(policy: GcPolicy) -> Self {
        Self {
            policy,
            entries: Vec::new(),
            manifests: Vec::new(),
            contents: Vec::new(),
            uploads: Vec::new(),
        }
    }
}
