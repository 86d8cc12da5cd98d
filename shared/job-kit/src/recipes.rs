//! Where recipes are read from: files, and S3 with the endpoint and the credentials of the environment.

use std::error::Error as StdError;

use tokio::runtime::Runtime;
use wmtp_artifacts::{Store, StoreOptions, StoreUri};
use wmtp_recipe::{Error, Resolved, Sources};

use crate::JobError;

/// Resolves a recipe, with those that it extends beside it.
///
/// # Errors
/// 2 for what is wrong with the recipe, or where there is none; that of the store where it cannot be asked.
pub(crate) fn resolve(sources: &Sources, runtime: &Runtime) -> Result<Resolved, JobError> {
    let load = |location: &str| {
        if location.starts_with("s3://") {
            runtime.block_on(stored(location))
        } else {
            Ok(std::fs::read_to_string(location)?)
        }
    };
    sources.resolve_with(&load).map_err(|error| match error {
        Error::Unreadable { location, source } => {
            match source.downcast::<wmtp_artifacts::Error>() {
                Ok(error) => JobError::from(*error).context(format!("reading recipe {location}")),
                Err(source) => Error::Unreadable { location, source }.into(),
            }
        }
        error => error.into(),
    })
}

/// The text of an object.
async fn stored(location: &str) -> Result<String, Box<dyn StdError + Send + Sync>> {
    let (folder, file) = location.rsplit_once('/').unwrap_or((location, ""));
    let uri: StoreUri = folder.parse()?;
    let store = Store::connect(&uri, StoreOptions::default()).await?;
    let bytes = store.page(file).await?.ok_or("there is no such object")?;
    Ok(String::from_utf8(bytes.into())?)
}
