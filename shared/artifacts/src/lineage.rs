//! Lineage: what an artifact was made from, and what was made from it.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;

use crate::inventory::Found;
use crate::{ArtifactId, Error, Kind, Manifest, Result, RunId, Store};

/// Which way a lineage goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To what an artifact was made from.
    Up,
    /// To what was made from it.
    Down,
}

/// One step of a lineage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Link {
    /// What the one was used as when the other was made.
    pub role: String,
    /// The next artifact: up, the one that was used; down, the one that was made.
    pub id: ArtifactId,
}

/// What the store knows about an artifact of a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NodeState {
    /// Its manifest is sound.
    Present {
        /// Job that made it first.
        job: String,
        /// Run of that job.
        run_id: RunId,
        /// When.
        created_at: Timestamp,
        /// Number of files.
        files: u64,
        /// Bytes of all files.
        bytes: u64,
    },
    /// It has no manifest in this store: it was read from another one, or was deleted.
    Missing,
    /// Its manifest is damaged.
    Unreadable {
        /// How.
        detail: String,
    },
}

/// An artifact of a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// What is known about it.
    #[serde(flatten)]
    pub state: NodeState,
    /// The next artifacts, sorted by role.
    pub links: Vec<Link>,
}

/// An artifact with all that it was made from, or with all that was made from it.
///
/// A graph, not a tree: two artifacts may share a third. An id covers content alone, so an artifact can even be among
/// its own ancestors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lineage {
    /// The artifact that was asked for.
    pub root: ArtifactId,
    /// Which way it goes.
    pub direction: Direction,
    /// Every artifact that is reached, the root among them.
    pub nodes: BTreeMap<ArtifactId, Node>,
    /// Artifacts whose manifests could not be read; down, what was made from the root may be among them.
    pub unreadable: Vec<ArtifactId>,
}

impl Store {
    /// The artifact that an id, a name, or `KIND/NAME` means.
    ///
    /// # Errors
    /// [`Error::NotFound`] tells which names there are; [`Error::Usage`] when artifacts of several kinds have the
    /// name.
    pub async fn resolve_any(&self, reference: &str) -> Result<ArtifactId> {
        if let Ok(id) = reference.parse() {
            return Ok(id);
        }
        if let Some((kind, name)) = reference.split_once('/') {
            return self.resolve(kind.parse()?, name).await;
        }
        let mut matches = Vec::new();
        for kind in Kind::ALL {
            if let Some(id) = self.name(kind, reference).await? {
                matches.push(id);
            }
        }
        match matches.len() {
            0 => Err(self.unknown_name(reference).await?),
            1 => Ok(matches.remove(0)),
            _ => {
                let choices: Vec<_> = matches
                    .iter()
                    .map(|id| format!("{}/{reference}", id.kind()))
                    .collect();
                Err(Error::usage(
                    format!("name {reference:?}"),
                    format!("several artifacts have it: say {}", choices.join(" or ")),
                ))
            }
        }
    }

    async fn unknown_name(&self, name: &str) -> Result<Error> {
        let mut known = Vec::new();
        for kind in Kind::ALL {
            let names = self.names(kind).await?.into_iter();
            known.extend(names.map(|(name, _)| format!("{kind}/{name}")));
        }
        let hint = if known.is_empty() {
            "no artifact of this store has a name yet; check --store, or give an id".to_owned()
        } else {
            format!("the names of this store are {}", known.join(", "))
        };
        Ok(Error::NotFound {
            what: format!("artifact {name:?}"),
            store: self.bucket.place(),
            hint: Some(hint),
        })
    }

    /// What an artifact was made from, or what was made from it, to the ends. Downwards it reads every manifest of
    /// the store: they name their inputs, and nothing names their outputs.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`] or [`Error::BadInput`] when the artifact itself has no sound manifest;
    /// others without one are part of the answer.
    pub async fn lineage(&self, id: &ArtifactId, direction: Direction) -> Result<Lineage> {
        let root = self.manifest(id).await?;
        match direction {
            Direction::Up => self.ancestors(root).await,
            Direction::Down => self.descendants(root).await,
        }
    }

    async fn ancestors(&self, root: Manifest) -> Result<Lineage> {
        let mut lineage = Lineage::new(&root.id, Direction::Up);
        let inputs = links_up(&root);
        let mut waiting: Vec<_> = inputs.iter().map(|link| link.id.clone()).collect();
        lineage.nodes.insert(root.id.clone(), node(&root, inputs));
        while !waiting.is_empty() {
            waiting.sort();
            waiting.dedup();
            waiting.retain(|id| !lineage.nodes.contains_key(id));
            let mut generation = std::pin::pin!(self.inventory(waiting.clone()));
            let mut next = Vec::new();
            while let Some(found) = generation.try_next().await? {
                match found {
                    Some(Found {
                        id,
                        manifest: Ok(manifest),
                    }) => {
                        let inputs = links_up(&manifest);
                        next.extend(inputs.iter().map(|link| link.id.clone()));
                        lineage.nodes.insert(id, node(&manifest, inputs));
                    }
                    Some(Found {
                        id,
                        manifest: Err(error),
                    }) => lineage.add_unreadable(id, &error),
                    None => {}
                }
            }
            for id in waiting {
                lineage.nodes.entry(id).or_insert(Node {
                    state: NodeState::Missing,
                    links: Vec::new(),
                });
            }
            waiting = next;
        }
        Ok(lineage)
    }

    async fn descendants(&self, root: Manifest) -> Result<Lineage> {
        let mut lineage = Lineage::new(&root.id, Direction::Down);
        let mut products: BTreeMap<ArtifactId, Vec<Link>> = BTreeMap::new();
        let mut states = BTreeMap::from([(root.id.clone(), state(&root))]);
        let ids = self.committed().await?.ids;
        let mut inventory = std::pin::pin!(self.inventory(ids));
        while let Some(found) = inventory.try_next().await? {
            match found {
                Some(Found {
                    id,
                    manifest: Ok(manifest),
                }) => {
                    for input in &manifest.provenance.inputs {
                        products.entry(input.id.clone()).or_default().push(Link {
                            role: input.role.clone(),
                            id: id.clone(),
                        });
                    }
                    states.insert(id, state(&manifest));
                }
                Some(Found { id, .. }) => lineage.unreadable.push(id),
                None => {}
            }
        }
        let mut waiting = vec![root.id.clone()];
        while let Some(id) = waiting.pop() {
            // Taken out, not copied: an artifact that was reached before has none left and is not entered again.
            let Some(state) = states.remove(&id) else {
                continue;
            };
            let mut links = products.remove(&id).unwrap_or_default();
            links.sort();
            waiting.extend(links.iter().map(|link| link.id.clone()));
            lineage.nodes.insert(id, Node { state, links });
        }
        Ok(lineage)
    }
}

impl Lineage {
    fn new(root: &ArtifactId, direction: Direction) -> Self {
        Self {
            root: root.clone(),
            direction,
            nodes: BTreeMap::new(),
            unreadable: Vec::new(),
        }
    }

    fn add_unreadable(&mut self, id: ArtifactId, error: &Error) {
        self.unreadable.push(id.clone());
        let state = NodeState::Unreadable {
            detail: error.to_string(),
        };
        let links = Vec::new();
        self.nodes.insert(id, Node { state, links });
    }
}

/// The inputs of an artifact.
fn links_up(manifest: &Manifest) -> Vec<Link> {
    let inputs = manifest.provenance.inputs.iter();
    let mut links: Vec<_> = inputs
        .map(|input| Link {
            role: input.role.clone(),
            id: input.id.clone(),
        })
        .collect();
    links.sort();
    links
}

fn node(manifest: &Manifest, links: Vec<Link>) -> Node {
    Node {
        state: state(manifest),
        links,
    }
}

fn state(manifest: &Manifest) -> NodeState {
    NodeState::Present {
        job: manifest.provenance.job.clone(),
        run_id: manifest.provenance.run_id.clone(),
        created_at: manifest.provenance.created_at,
        files: manifest.content.files.len() as u64,
        bytes: manifest.size(),
    }
}
