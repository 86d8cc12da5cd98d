//! Renders the leaderboard and everything it rests on to static HTML.
//!
//! The way of the data: a leaderboard artifact and what it rests on become a [`SiteInput`] ([`input`]); what several pages
//! need is found once ([`facts`]); pages are plain functions of both ([`pages`], with [`headline`] for what may be said and
//! [`charts`] for what is drawn, in the sentences of [`words`]); [`output`] writes what changed, and [`publish`] brings it to
//! a bucket. Pages need no script, no outside host and no server.

pub mod action;
pub mod charts;
pub mod cost;
mod data;
pub mod diff;
pub mod facts;
pub mod headline;
pub mod input;
pub mod marks;
pub mod metrics;
pub mod output;
pub mod pages;
pub mod publish;
pub mod recipe;
pub mod series;
pub mod svg;
mod table;
pub mod text;
pub mod words;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde_json::json;
use wmtp_artifacts::{ArtifactId, Digest, Kind, Store, StoreOptions, StoreUri};
use wmtp_job_kit::{JobError, StoreHandle, Tool, ToolCx};

pub use input::SiteInput;
pub use output::{BuildState, Folder, Sink, Site, Written};
pub use pages::Options;

use crate::input::{RunInfo, is_shown};
use crate::words::Language;

/// Why a site could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of an artifact is missing or is not what it should be.
    #[error(transparent)]
    Rows(#[from] wmtp_records::jsonl::Error),
    /// A name from an artifact cannot be the name of a page.
    #[error("version id {0:?} is no plain name (letters, digits, . _ -), so it cannot name a page")]
    VersionId(String),
    /// A mirror lacks an artifact.
    #[error("{} holds no folder {id}, directly or below trees/", mirror.display())]
    NotMirrored {
        /// The artifact.
        id: String,
        /// The folder that was searched.
        mirror: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A bucket refused a page.
    #[error(transparent)]
    Store(#[from] wmtp_artifacts::Error),
    /// A table could not be written; a defect of the generator.
    #[error("table: {0}")]
    Table(#[from] polars::prelude::PolarsError),
    /// A template failed; a defect of the generator.
    #[error("template: {0:#}")]
    Template(#[from] minijinja::Error),
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        match error {
            Error::Rows(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::Io { .. } | Error::Template(_) | Error::Table(_) => Self::internal(error),
            Error::VersionId(_) => Self::bad_input(error),
            Error::NotMirrored { .. } => Self::bad_input(error)
                .hint("fetch it with a job that uses this folder as WMTP_CACHE, or leave --mirror out and give --store"),
        }
    }
}

/// Command line of the generator.
#[derive(Debug, clap::Args)]
pub struct BuildSite {
    /// Leaderboard to show: name or id; an id with --mirror
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
    /// Folder for the pages; files that are already right are left alone
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Reads artifacts from a local folder (a job's WMTP_CACHE) and asks no store; nothing is known of runs then
    #[arg(long, value_name = "DIR")]
    mirror: Option<PathBuf>,
    /// Brings the finished folder to a bucket: changed files are sent, what is gone is deleted last
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    publish: Option<String>,
    /// Leaves out the copy below r/ that never changes
    #[arg(long)]
    no_snapshot: bool,
}

impl Tool for BuildSite {
    const ABOUT: &'static str =
        "Renders a leaderboard, its versions, tasks, comparisons and runs to static HTML.";
    const EXAMPLES: &'static str = "\
build-site --store s3://wmtp/demo --leaderboard micropy --out site-out
build-site --store s3://wmtp/demo --leaderboard micropy --out site-out --publish s3://reports/micropy
build-site --mirror .wmtp/cache --leaderboard leaderboard-0123456789012345678901234567890123456789 --out site-out";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let source = match &self.mirror {
            Some(mirror) => Source::Mirror(mirror.clone()),
            None => Source::Store(cx.store()?.clone()),
        };
        let leaderboard = source.resolve(&self.leaderboard)?;
        let runs = source.runs()?;
        let options = Options {
            languages: Language::ALL.to_vec(),
            snapshots: output::snapshots(&self.out),
            snapshot: !self.no_snapshot,
        };
        let key = build_key(&leaderboard, runs.as_deref(), &options);
        let unchanged = BuildState::unchanged(&self.out, &key);
        if cx.is_dry_run() {
            cx.print(match unchanged {
                Some(files) => format!(
                    "nothing to do, {files} files in {} are up to date",
                    self.out.display()
                ),
                None => format!(
                    "would write the site of {leaderboard} to {}",
                    self.out.display()
                ),
            });
            return Ok(());
        }
        let written = match unchanged {
            Some(files) => Written {
                unchanged: files,
                ..Written::default()
            },
            None => build(&source, &leaderboard, runs, &options, &self.out, &key)?,
        };
        cx.print(written.to_string());
        let published = self
            .publish
            .as_deref()
            .map(|target| self.send(target, cx))
            .transpose()?;
        let index = self.out.join("index.html");
        cx.print(format!("site {}", index.display()));
        cx.json_result(json!({
            "site": index.display().to_string(),
            "leaderboard": leaderboard,
            "written": written.changed,
            "removed": written.removed,
            "published": published.map(|sent| json!({"to": self.publish, "sent": sent.changed, "removed": sent.removed})),
        }));
        Ok(())
    }
}

impl BuildSite {
    fn send(&self, target: &str, cx: &mut ToolCx<'_>) -> Result<Written, JobError> {
        let uri: StoreUri = target.parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let sent = runtime.block_on(async {
            let store = Store::connect(&uri, StoreOptions::default()).await?;
            store.reach().await?;
            publish::publish(&self.out, &store, false).await
        })?;
        cx.print(format!(
            "{target}: {} sent, {} unchanged, {} removed",
            sent.changed, sent.unchanged, sent.removed
        ));
        Ok(sent)
    }
}

/// Where artifacts come from.
enum Source {
    Store(StoreHandle),
    Mirror(PathBuf),
}

impl Source {
    /// The leaderboard artifact behind a name or an id.
    fn resolve(&self, reference: &str) -> Result<String, JobError> {
        match self {
            Self::Store(store) => Ok(store.resolve(Kind::Leaderboard, reference)?.to_string()),
            Self::Mirror(_) => match reference.parse::<ArtifactId>() {
                Ok(id) if id.kind() == Kind::Leaderboard => Ok(id.to_string()),
                _ => Err(JobError::usage(format!(
                    "--leaderboard {reference:?}: a mirror knows no names"
                ))
                .hint("give the id of a leaderboard artifact, as build-leaderboard prints it")),
            },
        }
    }

    /// The local folder of an artifact, with the files that pages show.
    fn folder(&self, id: &str) -> Result<PathBuf, JobError> {
        match self {
            Self::Store(store) => store.fetch_files(&id.parse()?, is_shown),
            Self::Mirror(mirror) => Ok(mirrored(mirror, id)?),
        }
    }

    /// Every run of the store; none without a store.
    fn runs(&self) -> Result<Option<Vec<RunInfo>>, JobError> {
        let Self::Store(handle) = self else {
            return Ok(None);
        };
        let store = handle.store();
        let mut runs = Vec::new();
        for id in handle.block_on(store.runs())? {
            match handle.block_on(store.run(&id)) {
                Ok(view) => runs.push(RunInfo::of(&view)),
                // A run whose request was never written is none.
                Err(wmtp_artifacts::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(runs))
    }

    /// Bytes of an artifact, where a store tells them.
    fn stored_bytes(&self, id: &str) -> Option<u64> {
        match self {
            Self::Store(store) => Some(store.manifest(&id.parse().ok()?).ok()?.size()),
            Self::Mirror(_) => None,
        }
    }
}

/// The folder of an artifact in a mirror: `ID` or `trees/ID`.
fn mirrored(mirror: &Path, id: &str) -> Result<PathBuf, Error> {
    // An id from a file is a path until it is looked at.
    let is_id = id.parse::<ArtifactId>().is_ok();
    let places = [mirror.join("trees").join(id), mirror.join(id)];
    let found = places.into_iter().find(|place| is_id && place.is_dir());
    found.ok_or_else(|| Error::NotMirrored {
        id: id.to_owned(),
        mirror: mirror.to_owned(),
    })
}

fn build(
    source: &Source,
    leaderboard: &str,
    runs: Option<Vec<RunInfo>>,
    options: &Options,
    out: &Path,
    key: &str,
) -> Result<Written, JobError> {
    let read = RefCell::new(Vec::new());
    let folder = |id: &str| -> Result<PathBuf, JobError> {
        let folder = source.folder(id)?;
        read.borrow_mut().push(folder.clone());
        Ok(folder)
    };
    let mut input = SiteInput::load(leaderboard, folder)?;
    input.runs = runs;
    for version in &input.versions {
        for run in &version.row.runs {
            let checkpoint = run.checkpoint.as_ref();
            let size = checkpoint.and_then(|id| Some((id.clone(), source.stored_bytes(id)?)));
            input.stored_bytes.extend(size);
        }
    }
    let mut site = Folder::open(out)?;
    pages::render_to(&input, options, &mut site)?;
    let written = site.finish()?;
    let mut folders = read.into_inner();
    folders.sort();
    folders.dedup();
    BuildState::after(out, key.to_owned(), folders)?.save(out)?;
    Ok(written)
}

/// Digest of what a build depends on besides its files: the program itself, the leaderboard, the state of all runs.
fn build_key(leaderboard: &str, runs: Option<&[RunInfo]>, options: &Options) -> String {
    let program = std::env::current_exe()
        .and_then(std::fs::metadata)
        .map(|found| (found.len(), found.modified().ok()));
    let text = format!("{program:?}\n{leaderboard}\n{runs:?}\n{}", options.snapshot);
    Digest::of(text.as_bytes()).to_string()
}
