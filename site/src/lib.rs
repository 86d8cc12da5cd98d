//! Renders the leaderboard and one page per version to static HTML.
//!
//! The way of the data: a leaderboard artifact and what it rests on become a [`SiteInput`] ([`input`]); pages are
//! plain functions of it ([`pages`], with [`headline`] for what may be said and [`charts`] for what is drawn); and
//! [`output`] writes what changed. Pages need no script, no outside host and no server.

pub mod charts;
pub mod diff;
pub mod headline;
pub mod input;
pub mod marks;
pub mod output;
pub mod pages;
pub mod series;
pub mod svg;
pub mod text;

use std::path::PathBuf;

use wmtp_artifacts::{ArtifactId, Kind};
use wmtp_job_kit::{JobError, Tool, ToolCx};

pub use input::SiteInput;
pub use output::{Site, Written};

/// Why a site could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of an artifact is missing or is not what it should be.
    #[error(transparent)]
    Rows(#[from] wmtp_records::jsonl::Error),
    /// A name from an artifact cannot be the name of a page.
    #[error("version id {0:?} is no plain name (letters, digits, . _ -), so it cannot name a page")]
    VersionId(String),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A template failed; a defect of the generator.
    #[error("template: {0:#}")]
    Template(#[from] minijinja::Error),
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        match error {
            Error::Rows(error) => error.into(),
            Error::Io { .. } | Error::Template(_) => Self::internal(error),
            Error::VersionId(_) => Self::bad_input(error),
        }
    }
}

/// Command line of the generator.
#[derive(Debug, clap::Args)]
pub struct BuildSite {
    /// Leaderboard to show: name or id
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
    /// Folder for the pages; files that are already right are left alone
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Tool for BuildSite {
    const ABOUT: &'static str = "Renders a leaderboard and one page per version to static HTML.";
    const EXAMPLES: &'static str =
        "build-site --store s3://wmtp/demo --leaderboard micropy --out site-out";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?;
        let id = store.resolve(Kind::Leaderboard, &self.leaderboard)?;
        let folder = |reference: &str| -> Result<PathBuf, JobError> {
            let id: ArtifactId = reference.parse()?;
            store.fetch(&id)
        };
        let input = SiteInput::load(&id.to_string(), folder)?;
        let site = pages::render(&input)?;
        let index = self.out.join("index.html");
        if cx.is_dry_run() {
            cx.print(format!(
                "would write {} files to {}",
                site.len(),
                self.out.display()
            ));
            return Ok(());
        }
        let written = site.write(&self.out)?;
        cx.print(written.to_string());
        cx.print(format!("site {}", index.display()));
        cx.json_result(serde_json::json!({
            "site": index.display().to_string(),
            "leaderboard": id.to_string(),
            "written": written.changed,
            "removed": written.removed,
        }));
        Ok(())
    }
}
