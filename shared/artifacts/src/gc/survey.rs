//! What of a store nothing needs.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::{Doomed, GcPlan, GcPolicy, LeakedUpload};
use crate::blob::LOOKUPS_IN_FLIGHT;
use crate::client::Listed;
use crate::inventory::Found;
use crate::manifest::parse_strict;
use crate::{
    ArtifactId, CacheEntry, CheckpointEntry, Digest, Error, Kind, Manifest, Result, RunId,
    RunRequest, RunResult, Store, layout,
};

/// Objects that one plan names at most, so that reading it stays cheap. The rest is for the next one.
const MAX_DOOMED: usize = 100_000;

/// What a look through a store found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GcSurvey {
    /// What can be collected.
    pub plan: GcPlan,
    /// Artifacts that stay.
    pub artifacts_kept: u64,
    /// Contents that artifacts need.
    pub contents_kept: u64,
    /// Bytes of these contents.
    pub bytes_kept: u64,
    /// Contents that nothing needs and that are too young to go.
    pub contents_young: u64,
    /// Whether the store can list unfinished uploads.
    pub lists_uploads: bool,
}

/// Everything that leads to an artifact, and the entries that no longer do.
#[derive(Default)]
struct Pointers {
    roots: BTreeSet<ArtifactId>,
    doomed: Vec<Doomed>,
}

/// What is known of an artifact.
struct Known {
    size: u64,
    may_go: bool,
    inputs: Vec<ArtifactId>,
    contents: Vec<Digest>,
}

/// Tells what may go once nothing leads to it.
struct Judge<'a> {
    now: i64,
    policy: GcPolicy,
    /// Where a plan is carried out, only what it names may go; anything else leads on like a name.
    planned: Option<&'a BTreeSet<&'a str>>,
}

impl Judge<'_> {
    fn lets_go(&self, object: &Listed) -> bool {
        self.lets_go_after(object, self.policy.grace_secs)
    }

    fn lets_go_after(&self, object: &Listed, secs: u64) -> bool {
        let is_planned = |planned: &&BTreeSet<&str>| planned.contains(object.key.as_str());
        self.planned.as_ref().is_none_or(is_planned) && self.age(object.modified) > secs
    }

    /// Told in whole seconds: one that reads 5 s may be 4 s.
    fn age(&self, written: i64) -> u64 {
        u64::try_from(self.now.saturating_sub(written)).unwrap_or(0)
    }
}

impl Store {
    /// What nothing needs, and is old enough to be collected. Changes nothing.
    ///
    /// Needed is what names, results of runs, the newest entry of each cache key, the newest saved states of each run
    /// and the inputs of unfinished runs lead to, with all that it was made from; and whatever is younger than the
    /// grace.
    ///
    /// # Errors
    /// Whatever cannot be read ends it: an unreadable manifest may need what seems to be of no use.
    pub async fn gc_survey(&self, policy: GcPolicy) -> Result<GcSurvey> {
        self.survey(policy, None).await
    }

    /// [`Store::gc_survey`], for all objects or for those of a plan.
    pub(super) async fn survey(
        &self,
        policy: GcPolicy,
        planned: Option<&BTreeSet<&str>>,
    ) -> Result<GcSurvey> {
        let judge = &Judge {
            now: self.bucket.clock().await?,
            policy,
            planned,
        };
        let mut artifacts = self.known(judge).await?;
        let present: BTreeSet<ArtifactId> = artifacts.keys().cloned().collect();
        let mut pointers = Pointers::default();
        self.follow_names(&mut pointers).await?;
        self.follow_cache(judge, &mut pointers).await?;
        self.follow_runs(judge, &present, &mut pointers).await?;
        let fixed = artifacts.iter().filter(|(_, known)| !known.may_go);
        pointers.roots.extend(fixed.map(|(id, _)| id.clone()));
        let reached = closure(pointers.roots, &artifacts);
        let mut survey = GcSurvey {
            plan: GcPlan::none(policy),
            artifacts_kept: reached.len() as u64,
            contents_kept: 0,
            bytes_kept: 0,
            contents_young: 0,
            lists_uploads: true,
        };
        pointers.doomed.sort_by(|a, b| a.key.cmp(&b.key));
        survey.plan.entries = pointers.doomed;
        let doomed = artifacts.extract_if(.., |id, _| !reached.contains(id));
        survey.plan.manifests = doomed
            .map(|(id, known)| Doomed {
                key: layout::manifest(&id),
                bytes: known.size,
                why: "no name, result, cache entry, state or artifact leads to it".to_owned(),
            })
            .collect();
        let needed: BTreeSet<Digest> = artifacts
            .into_values()
            .flat_map(|known| known.contents)
            .collect();
        self.sort_contents(judge, &needed, &mut survey).await?;
        self.find_uploads(judge, &mut survey).await?;
        truncate(&mut survey.plan);
        Ok(survey)
    }

    /// All artifacts with what they need.
    async fn known(&self, judge: &Judge<'_>) -> Result<BTreeMap<ArtifactId, Known>> {
        let mut listed = BTreeMap::new();
        self.bucket
            .list_objects(layout::ARTIFACTS, |object| {
                if let Some(id) = layout::id_of_manifest(&object.key) {
                    listed.insert(id, object);
                }
            })
            .await?;
        let mut known = BTreeMap::new();
        let mut inventory = std::pin::pin!(self.inventory(listed.keys().cloned().collect()));
        while let Some(found) = inventory.try_next().await? {
            let Some(Found { id, manifest }) = found else {
                continue;
            };
            let manifest = manifest?;
            if let Some(object) = listed.remove(&id) {
                known.insert(id, Known::of(&manifest, &object, judge));
            }
        }
        Ok(known)
    }

    async fn follow_names(&self, pointers: &mut Pointers) -> Result<()> {
        for kind in Kind::ALL {
            let names = self.names(kind).await?;
            pointers.roots.extend(names.into_iter().map(|(_, id)| id));
        }
        Ok(())
    }

    /// The newest entry of each key, by which finished work is found again, and older ones for some time.
    async fn follow_cache(&self, judge: &Judge<'_>, pointers: &mut Pointers) -> Result<()> {
        let mut objects = Vec::new();
        self.bucket
            .list_objects(layout::CACHE, |object| objects.push(object))
            .await?;
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for object in &objects {
            if let Some((folder, number)) = generation(&object.key) {
                let newest = newest.entry(folder.to_owned()).or_insert(number);
                *newest = number.max(*newest);
            }
        }
        let (kept, superseded): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| {
            let is_newest = generation(&object.key)
                .is_none_or(|(folder, number)| newest.get(folder) == Some(&number));
            let secs = judge.policy.cache_secs.max(judge.policy.grace_secs);
            is_newest || !judge.lets_go_after(object, secs)
        });
        pointers
            .doomed
            .extend(superseded.into_iter().map(|object| Doomed {
                key: object.key,
                bytes: object.size,
                why: "a newer entry says how this work is found again".to_owned(),
            }));
        let mut entries = stream::iter(kept)
            .map(|object| async move { self.cache_entry(&object.key).await })
            .buffer_unordered(LOOKUPS_IN_FLIGHT);
        while let Some(entry) = entries.try_next().await? {
            let outputs = entry.map(|entry| entry.outputs).unwrap_or_default();
            pointers.roots.extend(outputs.into_values());
        }
        Ok(())
    }

    async fn cache_entry(&self, key: &str) -> Result<Option<CacheEntry>> {
        let Some(bytes) = self.bucket.get(key).await? else {
            return Ok(None);
        };
        let entry = serde_json::from_value(parse_strict(&bytes)?);
        entry.map(Some).map_err(|error| {
            Error::bad_input(
                format!("{key} in {}", self.bucket.place()),
                error.to_string(),
            )
        })
    }

    async fn follow_runs(
        &self,
        judge: &Judge<'_>,
        present: &BTreeSet<ArtifactId>,
        pointers: &mut Pointers,
    ) -> Result<()> {
        let mut runs = stream::iter(self.runs().await?)
            .map(|run| async move { self.follow_run(judge, present, &run).await })
            .buffer_unordered(LOOKUPS_IN_FLIGHT);
        while let Some(of_run) = runs.try_next().await? {
            pointers.roots.extend(of_run.roots);
            pointers.doomed.extend(of_run.doomed);
        }
        Ok(())
    }

    /// A run's outputs and newest states; while it has no result, its inputs too.
    async fn follow_run(
        &self,
        judge: &Judge<'_>,
        present: &BTreeSet<ArtifactId>,
        run: &RunId,
    ) -> Result<Pointers> {
        let mut pointers = Pointers::default();
        let result = self
            .read_json::<RunResult>(&layout::run_result(run))
            .await?;
        if let Some(result) = result {
            pointers.roots.extend(result.outputs.into_values());
        } else {
            let request: Option<RunRequest> = self.read_json(&layout::run_request(run)).await?;
            let inputs = request.map(|request| request.inputs).unwrap_or_default();
            pointers
                .roots
                .extend(inputs.into_iter().map(|input| input.id));
        }
        let mut entries = Vec::new();
        let mut objects = Vec::new();
        self.bucket
            .list_objects(&layout::checkpoints(run), |object| objects.push(object))
            .await?;
        for object in objects {
            if let Some(entry) = self.read_json::<CheckpointEntry>(&object.key).await? {
                entries.push((entry, object));
            }
        }
        sort_states(run, judge, present, entries, &mut pointers);
        Ok(pointers)
    }

    async fn sort_contents(
        &self,
        judge: &Judge<'_>,
        needed: &BTreeSet<Digest>,
        survey: &mut GcSurvey,
    ) -> Result<()> {
        let show = |object: Listed| {
            let Some(digest) = layout::digest_of_blob(&object.key) else {
                return;
            };
            if needed.contains(&digest) {
                survey.contents_kept += 1;
                survey.bytes_kept += object.size;
            } else if judge.lets_go(&object) {
                survey.plan.contents.push(Doomed {
                    key: object.key,
                    bytes: object.size,
                    why: "no artifact that stays lists it".to_owned(),
                });
            } else {
                survey.contents_young += 1;
            }
        };
        self.bucket.list_objects(layout::BLOBS, show).await
    }

    async fn find_uploads(&self, judge: &Judge<'_>, survey: &mut GcSurvey) -> Result<()> {
        let Some(uploads) = self.bucket.open_uploads(layout::BLOBS).await? else {
            survey.lists_uploads = false;
            return Ok(());
        };
        let old = uploads
            .into_iter()
            .filter(|upload| judge.age(upload.begun) > judge.policy.grace_secs);
        survey.plan.uploads = old
            .map(|upload| LeakedUpload {
                key: upload.key,
                upload: upload.id,
            })
            .collect();
        Ok(())
    }
}

impl Known {
    fn of(manifest: &Manifest, object: &Listed, judge: &Judge<'_>) -> Self {
        let inputs = manifest.provenance.inputs.iter();
        Self {
            size: object.size,
            may_go: judge.lets_go(object),
            inputs: inputs.map(|input| input.id.clone()).collect(),
            contents: manifest
                .content
                .files
                .iter()
                .map(|file| file.sha256)
                .collect(),
        }
    }
}

/// The artifacts that are reached from some, going to what they were made from.
fn closure(
    roots: BTreeSet<ArtifactId>,
    artifacts: &BTreeMap<ArtifactId, Known>,
) -> BTreeSet<ArtifactId> {
    let mut waiting: Vec<ArtifactId> = roots.into_iter().collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        let Some(known) = artifacts.get(&id) else {
            continue;
        };
        if reached.insert(id) {
            waiting.extend(known.inputs.iter().cloned());
        }
    }
    reached
}

/// Keeps the newest states that are there, as many as the newest one says; those before it go when they are old enough.
fn sort_states(
    run: &RunId,
    judge: &Judge<'_>,
    present: &BTreeSet<ArtifactId>,
    mut entries: Vec<(CheckpointEntry, Listed)>,
    pointers: &mut Pointers,
) {
    entries.sort_by_key(|(entry, _)| std::cmp::Reverse((entry.step, entry.attempt)));
    let keep_last = entries
        .first()
        .map_or(0, |(entry, _)| entry.keep_last.max(1));
    let mut kept = 0;
    for (entry, object) in entries {
        if kept < keep_last || !judge.lets_go(&object) {
            kept += u32::from(present.contains(&entry.id));
            pointers.roots.insert(entry.id);
        } else {
            pointers.doomed.push(Doomed {
                key: object.key,
                bytes: object.size,
                why: format!("run {run} has {keep_last} newer states"),
            });
        }
    }
}

/// Folder and number of a numbered object.
fn generation(key: &str) -> Option<(&str, u64)> {
    let (folder, name) = key.rsplit_once('/')?;
    Some((folder, name.strip_suffix(".json")?.parse().ok()?))
}

/// Takes from the end: what stays refers to nothing that was taken out.
fn truncate(plan: &mut GcPlan) {
    let mut left = MAX_DOOMED;
    for objects in [&mut plan.entries, &mut plan.manifests, &mut plan.contents] {
        objects.truncate(left);
        left -= objects.len();
    }
}
