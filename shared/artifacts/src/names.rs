//! Names that people give to artifacts.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::kind::check_name;
use crate::manifest::parse_strict;
use crate::{ArtifactId, AuditAct, Error, Kind, Result, Store, fault, generations, layout};

/// One artifact that a name pointed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Naming {
    /// Its number, from 0.
    pub number: u64,
    /// The artifact.
    pub artifact: ArtifactId,
    /// Since when, by the store's clock.
    pub at: Timestamp,
}

impl Store {
    /// Points a name to an artifact. What it pointed to before stays readable in its older generations.
    ///
    /// # Errors
    /// [`Error::Usage`] when the name is not made of letters, digits, `-`, `_` and `.`, looks like an id, or
    /// the artifact is of another kind; [`Error::NotFound`] when the store does not have it.
    pub async fn set_name(&self, kind: Kind, name: &str, id: &ArtifactId) -> Result<()> {
        check_name("name", name)?;
        let wrong = |detail: String| Error::usage(format!("name {name:?}"), detail);
        if name.parse::<ArtifactId>().is_ok() {
            return Err(wrong(
                "a name that looks like an artifact id would hide it".to_owned(),
            ));
        }
        if id.kind() != kind {
            return Err(wrong(format!("{id} is no {kind} artifact")));
        }
        let value = json!({"artifact": id});
        let same = |found: &Value| found["artifact"] == value["artifact"];
        let present = self.name(kind, name).await;
        let mut is_told = matches!(present, Ok(Some(present)) if present == *id);
        let mut turns = self.turns_for([id], format!("name {kind}/{name}"));
        loop {
            let look = turns.next().await?;
            if self.bucket.head(&layout::manifest(id)).await?.is_none() {
                return Err(self.absent(id));
            }
            if !is_told {
                let request = json!({"kind": kind, "name": name, "artifact": id});
                self.audit(AuditAct::Name, request).await?;
                is_told = true;
            }
            generations::append(&self.bucket, &layout::name(kind, name), value.clone(), same)
                .await?;
            if look.is_valid() {
                break;
            }
        }
        fault::point("publish:after-name");
        Ok(())
    }

    /// The artifact that a name points to now.
    pub async fn name(&self, kind: Kind, name: &str) -> Result<Option<ArtifactId>> {
        check_name("name", name)?;
        let folder = layout::name(kind, name);
        let Some((number, bytes)) = generations::newest(&self.bucket, &folder).await? else {
            return Ok(None);
        };
        self.named(&folder, number, &bytes).map(Some)
    }

    fn named(&self, folder: &str, number: u64, bytes: &[u8]) -> Result<ArtifactId> {
        let found = parse_strict(bytes)?;
        let id = found["artifact"]
            .as_str()
            .and_then(|text| text.parse().ok());
        id.ok_or_else(|| {
            Error::corrupt(
                format!("{folder} generation {number} in {}", self.bucket.place()),
                "it names no artifact",
            )
        })
    }

    /// All that a name ever pointed to, the oldest first; nothing where it never was one.
    pub async fn namings(&self, kind: Kind, name: &str) -> Result<Vec<Naming>> {
        check_name("name", name)?;
        let folder = layout::name(kind, name);
        let mut namings = Vec::new();
        for (number, bytes, written) in generations::dated(&self.bucket, &folder).await? {
            namings.push(Naming {
                number,
                artifact: self.named(&folder, number, &bytes)?,
                at: Timestamp::from_second(written).unwrap_or_default(),
            });
        }
        Ok(namings)
    }

    /// All names of a kind with the artifacts that they point to, sorted by name.
    pub async fn names(&self, kind: Kind) -> Result<Vec<(String, ArtifactId)>> {
        let names = self.bucket.list_folders(&layout::names(kind)).await?;
        let found: BTreeMap<_, _> = stream::iter(names)
            .map(|name| {
                let store = Store {
                    bucket: Arc::clone(&self.bucket),
                };
                async move {
                    let id = store.name(kind, &name).await?;
                    Ok::<_, Error>((name, id))
                }
            })
            .buffered(16)
            .try_collect()
            .await?;
        Ok(found
            .into_iter()
            .filter_map(|(name, id)| Some((name, id?)))
            .collect())
    }
}
