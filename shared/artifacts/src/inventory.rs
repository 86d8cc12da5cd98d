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

/// An artifact that was listed, and its manifest if that is sound.
pub(crate) struct Found {
    pub(crate) id: ArtifactId,
    /// Damage is a finding, not a failure of the reading.
    pub(crate) manifest: Result<Manifest>,
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

    async fn look(&self, id: ArtifactId) -> Result<Option<Found>> {
        match self.manifest(&id).await {
            Err(Error::NotFound { .. }) => Ok(None),
            manifest @ (Ok(_) | Err(Error::Corrupt { .. } | Error::BadInput { .. })) => {
                Ok(Some(Found { id, manifest }))
            }
            Err(error) => Err(error),
        }
    }
}
