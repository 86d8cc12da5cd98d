//! Keys under the store's prefix. The only place that spells them.

use crate::{ArtifactId, Digest, Kind, RunId};

/// Folder for what a tracking server shows of runs. It lies beside the protocol's keys: nothing here reads it.
pub const TRACKED: &str = "mlflow/";

/// Content of a file.
pub(crate) fn blob(digest: &Digest) -> String {
    let text = digest.to_string();
    format!("v1/blobs/sha256/{}/{text}", &text[..2])
}

/// Contents of all files.
pub(crate) const BLOBS: &str = "v1/blobs/";

/// The content that a key holds, if it is the key of one.
pub(crate) fn digest_of_blob(key: &str) -> Option<Digest> {
    let digest = key.rsplit('/').next()?.parse().ok()?;
    (blob(&digest) == key).then_some(digest)
}

/// Manifests of all kinds.
pub(crate) const ARTIFACTS: &str = "v1/artifacts/";

/// The artifact that a key commits, if it is the key of a manifest.
pub(crate) fn id_of_manifest(key: &str) -> Option<ArtifactId> {
    let id = key.rsplit('/').nth(1)?.parse().ok()?;
    (manifest(&id) == key).then_some(id)
}

/// Manifests of a kind.
pub(crate) fn artifacts(kind: Kind) -> String {
    format!("v1/artifacts/{kind}/")
}

/// The commit object of an artifact.
pub(crate) fn manifest(id: &ArtifactId) -> String {
    format!("v1/artifacts/{}/{id}/manifest.json", id.kind())
}

/// Cache entries of one piece of work, numbered.
pub(crate) fn cache(job: &str, key: &Digest) -> String {
    format!("v1/cache/{job}/{key}/")
}

/// Names of all kinds.
pub(crate) const NAMES: &str = "v1/names/";

/// Names of a kind.
pub(crate) fn names(kind: Kind) -> String {
    format!("{NAMES}{kind}/")
}

/// What one name pointed to over time, numbered.
pub(crate) fn name(kind: Kind, name: &str) -> String {
    format!("{NAMES}{kind}/{name}/")
}

/// Events of the audit log.
pub(crate) const AUDIT: &str = "v1/audit/";

/// One event, written at a time by its writer's clock.
pub(crate) fn audit_event(at_ms: i64, id: &str) -> String {
    format!("{AUDIT}{at_ms:013}-{id}.json")
}

/// Promotions of all models.
pub(crate) const PROMOTIONS: &str = "v1/promotions/";

/// What the gate was asked for a model, numbered.
pub(crate) fn promotions(model: &str) -> String {
    format!("{PROMOTIONS}{model}/")
}

/// Looks at all sets.
pub(crate) const TOUCHES: &str = "v1/touches/";

/// Looks at a set on behalf of somebody, numbered.
pub(crate) fn touches(set: &Digest, by: &str) -> String {
    format!("{TOUCHES}{set}/{by}/")
}

/// Cache entries of all work.
pub(crate) const CACHE: &str = "v1/cache/";

/// Collections, numbered.
pub(crate) const COLLECTIONS: &str = "v1/gc/";

/// One object of a collection; `what` is `plan`, `verdict`, `status` or `done`.
pub(crate) fn collection(number: u64, what: &str) -> String {
    format!("{COLLECTIONS}{number:04}/{what}.json")
}

/// Number and part of a collection, if the key is that of one.
pub(crate) fn collection_of(key: &str) -> Option<(u64, &str)> {
    let (number, what) = key.strip_prefix(COLLECTIONS)?.split_once('/')?;
    Some((number.parse().ok()?, what.strip_suffix(".json")?))
}

/// All runs.
pub(crate) const RUNS: &str = "v1/runs/";

/// Written twice, create-only, to see whether the store keeps conditions.
pub(crate) const PROBE: &str = "v1/probe.json";

/// Request of a run.
pub(crate) fn run_request(run: &RunId) -> String {
    format!("{RUNS}{run}/run.json")
}

/// Terminal result of a run.
pub(crate) fn run_result(run: &RunId) -> String {
    format!("{RUNS}{run}/result.json")
}

/// Remarks of people on a run, numbered.
pub(crate) fn remarks(run: &RunId) -> String {
    format!("{RUNS}{run}/remarks/")
}

/// Checkpoint entries of a run.
pub(crate) fn checkpoints(run: &RunId) -> String {
    format!("{RUNS}{run}/checkpoints/")
}

/// One checkpoint entry.
pub(crate) fn checkpoint(run: &RunId, step: u64, attempt: u32) -> String {
    format!("{RUNS}{run}/checkpoints/{step:010}-{attempt:03}.json")
}

/// Attempts of a run.
pub(crate) fn attempts(run: &RunId) -> String {
    format!("{RUNS}{run}/attempts/")
}

/// The fence of an attempt.
pub(crate) fn claim(run: &RunId, attempt: u32) -> String {
    format!("{RUNS}{run}/attempts/{attempt:03}/claim.json")
}

/// State of an attempt, overwritten by its holder.
pub(crate) fn status(run: &RunId, attempt: u32) -> String {
    format!("{RUNS}{run}/attempts/{attempt:03}/status.json")
}

/// Batches of lines of an attempt; `what` is `events` or `logs`.
pub(crate) fn lines(run: &RunId, attempt: u32, what: &str) -> String {
    format!("{RUNS}{run}/attempts/{attempt:03}/{what}/")
}
