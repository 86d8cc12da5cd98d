//! Artifacts over S3: immutable content, create-only manifests, names, cache entries, runs.
//!
//! Jobs hand work to each other only through artifacts. An artifact is a set of files named by their
//! SHA-256 and a [`Manifest`] that lists them; it exists when its manifest exists, and the manifest is
//! written last. Five rules hold everywhere:
//!
//! 1. Content is immutable and named by its digest.
//! 2. The manifest is written last, create-only; a lost reply is read back before it is judged.
//! 3. Everything mutable (names, cache entries, run states) is a hint: losing it costs time, never truth.
//! 4. Claims save work; they are never needed for correctness.
//! 5. A reader verifies what it uses and treats anything missing as a miss.
//!
//! ```no_run
//! # async fn example() -> wmtp_artifacts::Result<()> {
//! use wmtp_artifacts::{Kind, Mirror, Store, StoreOptions};
//!
//! let store = Store::connect(&"s3://research/wmtp".parse()?, StoreOptions::default()).await?;
//! store.preflight().await?;
//! let id = store.resolve(Kind::ProcessedData, "micropy").await?;
//! let mirror = Mirror::open(std::path::Path::new(".cache/wmtp"))?;
//! let folder = store.fetch(&id, &mirror).await?;
//! # let _ = folder; Ok(()) }
//! ```

mod alias;
mod audit;
mod blob;
mod cache;
mod canonical;
mod carry;
mod claim;
mod client;
mod commit;
mod copy;
mod digest;
mod error;
pub mod fault;
mod fetch;
mod fsck;
mod gc;
mod generations;
mod hold;
mod holder;
mod inventory;
mod kind;
mod layout;
mod lineage;
mod manifest;
mod mirror;
mod names;
mod pages;
mod policy;
mod preflight;
mod promotions;
mod publish;
mod remarks;
mod repair;
mod run;
mod scan;
mod store;
mod touches;
mod transfer;
mod tree;
mod upload;
mod uri;

pub use alias::Alias;
pub use audit::{Agent, AuditAct, AuditEntry, AuditEvent};
pub use cache::{CacheEntry, CacheLookup};
pub use canonical::{cache_key, canonical_json, decimals_as_strings};
pub use claim::Claim;
pub use client::{Credentials, StoreOptions, causes};
pub use commit::Outcome;
pub use copy::{CopyReport, CopyScope};
pub use digest::Digest;
pub use error::{Error, ExitClass, Result};
pub use fsck::{Fault, Finding, FsckDepth, FsckPhase, FsckReport};
pub use gc::{Doomed, GcPlan, GcPolicy, GcReport, GcSurvey, LeakedUpload};
pub use kind::{ArtifactId, Kind, RunId};
pub use layout::TRACKED;
pub use lineage::{Direction, Lineage, Link, Node, NodeState};
pub use manifest::{Content, FileEntry, Input, Manifest, Parts, Provenance, SCHEMA};
pub use mirror::Mirror;
pub use names::Naming;
pub use policy::{Role, bucket_policy};
pub use promotions::{GateCheck, Promotion, Promotions};
pub use publish::Draft;
pub use remarks::{Remark, RemarkKind, tags};
pub use repair::{RepairReport, Spare};
pub use run::{
    CheckpointEntry, RunLife, RunProgress, RunRequest, RunResult, RunState, RunView, Status,
};
pub use scan::Crc64;
pub use store::Store;
pub use touches::Touch;
pub use transfer::without_huge_pages;
pub use tree::{Tree, TreeFile};
pub use uri::StoreUri;
