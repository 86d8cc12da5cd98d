//! Everything that a store holds: all committed artifacts, one manifest at a time.

use futures::{Stream, StreamExt, stream};

use crate::client::Listed;
use crate::{ArtifactId, Error, Manifest, Result, Store, layout};

/// Manifests read at a time.
const MANIFESTS_IN_FLIGHT: usize = 16;

/// What a listing shows where manifests are kept.
pub(crate) struct Committed {
    /// Artifacts that have a manifest, in order.
    pub(crate) ids: Vec<ArtifactId>,
    /// Objects that are no manifests.
    pub(crate) strays: Vec<Listed>,
}

/// A manifest that was listed.
pub(crate) enum Found {
    /// It is sound.
    Sound(Manifest),
    /// It is there and cannot be used.
    Unreadable(ArtifactId, Error),
}

impl Store {
    /// All artifacts that have a manifest, whether or not it can be read.
    pub(crate) async fn committed(&self) -> Result<Committed> {
        let (mut ids, mut strays) = (Vec::new(), Vec::new());
        self.bucket
            .list_objects(layout::ARTIFACTS, |object| {
                match layout::id_of_manifest(&object.key) {
                    Some(id) => ids.push(id),
                    None => strays.push(object),
                }
            })
            .await?;
        ids.sort();
        Ok(Committed { ids, strays })
    }

    /// Reads manifests, in the order of their ids. One that was deleted since it was listed is none.
    pub(crate) fn inventory(
        &self,
        ids: Vec<ArtifactId>,
    ) -> impl Stream<Item = Result<Option<Found>>> {
        stream::iter(ids)
            .map(|id| {
                let store = self.clone();
                async move { store.look(id).await }
            })
            .buffered(MANIFESTS_IN_FLIGHT)
    }

    /// Reads one manifest; damage is a finding, not an error.
    pub(crate) async fn look(&self, id: ArtifactId) -> Result<Option<Found>> {
        match self.manifest(&id).await {
            Ok(manifest) => Ok(Some(Found::Sound(manifest))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error @ (Error::Corrupt { .. } | Error::BadInput { .. })) => {
                Ok(Some(Found::Unreadable(id, error)))
            }
            Err(error) => Err(error),
        }
    }
}
