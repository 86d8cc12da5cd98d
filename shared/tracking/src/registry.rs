//! Registered models: a version for every checkpoint that a gate let through, and aliases that say where it is used.

use std::collections::BTreeMap;

use wmtp_artifacts::{Alias, ArtifactId, Manifest, Store};

use crate::api::Tracked;
use crate::names::{self, CHECKPOINT, RUN_ID, plain};
use crate::{Error, Server};

/// Gives an alias of a model to a checkpoint and returns the version that holds it; both are created where they are
/// missing. Doing it twice changes nothing.
pub async fn promote(
    server: &Server,
    store: &Store,
    model: &str,
    alias: Alias,
    checkpoint: &ArtifactId,
) -> Result<String, Error> {
    let manifest = store.manifest(checkpoint).await?;
    server.register_model(model).await?;
    let version = version(server, store, model, &manifest).await?;
    server.set_alias(model, alias.as_str(), &version).await?;
    Ok(version)
}

async fn version(
    server: &Server,
    store: &Store,
    model: &str,
    manifest: &Manifest,
) -> Result<String, Error> {
    let id = manifest.id.to_string();
    let run = producer(server, store, manifest).await?;
    let run = run.as_ref().map(|run| run.id.as_str());
    let source = store.address(&manifest.id);
    let (tags, single) = (tags(manifest), server.single());
    server
        .retrying(async || {
            if let Some(version) = single.find_version(model, &id).await? {
                return Ok(version);
            }
            let description = description(manifest);
            single
                .create_version(model, &source, run, &description, &tags)
                .await
        })
        .await
}

/// The run that made a checkpoint, if the server has it.
async fn producer(
    server: &Server,
    store: &Store,
    manifest: &Manifest,
) -> Result<Option<Tracked>, Error> {
    let made = &manifest.provenance;
    let Some(name) = names::experiment(&made.recipe) else {
        return Ok(None);
    };
    let Some(experiment) = server.find_experiment(&name).await? else {
        return Ok(None);
    };
    let store = names::store_tag(store.uri());
    server
        .find_run(&experiment, made.run_id.as_str(), &store)
        .await
}

fn tags(manifest: &Manifest) -> BTreeMap<String, String> {
    let attributes = manifest.content.attributes.iter();
    attributes
        .map(|(name, value)| (plain(name), names::cut(value)))
        .chain([
            (CHECKPOINT.to_owned(), manifest.id.to_string()),
            (RUN_ID.to_owned(), manifest.provenance.run_id.to_string()),
        ])
        .collect()
}

fn description(manifest: &Manifest) -> String {
    let of = |name: &str| manifest.attribute(name).unwrap_or("unknown");
    format!(
        "Version {}, algorithm {}, seed {}, weights of step {}: {}",
        of("version"),
        of("algo"),
        of("seed"),
        of("best_step"),
        manifest.id
    )
}
