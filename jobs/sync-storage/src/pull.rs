//! `pull`: an artifact becomes a folder.

use std::path::{Path, PathBuf};

use serde_json::json;
use wmtp_job_kit::{JobError, Kind, Manifest, Tool, ToolCx};

use crate::folder::{self, GoOn, Listing};

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// Artifact id or name
    reference: String,
    /// What a name stands for; an id says it itself
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Hash the files of the folder once more
    #[arg(long)]
    verify: bool,
}

impl Tool for Pull {
    const ABOUT: &'static str = "Copies an artifact into a folder, every file verified.";
    const EXAMPLES: &'static str = "
        sync-storage pull micro-mtp --kind base-model --to models_v2/micro-mtp
        sync-storage pull raw-data-0123456789abcdef0123456789abcdef01234567 --to data/mbpp --verify";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let kind = self.kind()?;
        let manifest = {
            let store = cx.store()?;
            store.manifest(&store.resolve(kind, &self.reference)?)?
        };
        let num_files = manifest.content.files.len();
        let what = format!(
            "{} ({num_files} files, {} bytes)",
            manifest.id,
            manifest.size()
        );
        if cx.is_dry_run() {
            cx.print(format!(
                "would write {what} to {}; nothing was touched",
                self.to.display()
            ));
            return Ok(());
        }
        if is_there(&|| cx.go_on(), &self.to, &manifest)? {
            cx.print(format!("already there: {what} in {}", self.to.display()));
        } else {
            self.copy(&manifest, cx)?;
            cx.print(format!("{what} is in {}", self.to.display()));
        }
        if self.verify {
            let progress = cx.progress("verifying", "files", num_files as u64);
            folder::verify(&|| cx.go_on(), &self.to, &manifest, &progress)?;
            progress.finish();
            cx.print("every file has the SHA-256 of the manifest");
        }
        cx.json_result(json!({
            "job": "sync-storage-pull",
            "outputs": {"artifact": manifest.id},
            "folder": self.to.display().to_string(),
        }));
        Ok(())
    }
}

impl Pull {
    fn kind(&self) -> Result<Kind, JobError> {
        if let Some(kind) = self.kind {
            return Ok(kind);
        }
        let id: Result<wmtp_job_kit::ArtifactId, _> = self.reference.parse();
        id.map(|id| id.kind()).map_err(|_| {
            JobError::usage(format!("{:?} is a name: of which kind?", self.reference))
                .hint("add --kind, such as --kind base-model")
        })
    }

    /// Copies beside the target and renames, so that a killed pull leaves no half folder.
    fn copy(&self, manifest: &Manifest, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let source = cx.store()?.fetch(&manifest.id)?;
        let part = part_folder(&self.to);
        let _ = std::fs::remove_dir_all(&part);
        let listing: Listing = manifest
            .content
            .files
            .iter()
            .map(|file| (file.path.clone(), file.sha256))
            .collect();
        let progress = cx.progress("copying", "files", listing.len() as u64);
        folder::create_parent(&self.to)?;
        folder::copy(&|| cx.go_on(), &source, &part, &listing, &progress)?;
        progress.finish();
        std::fs::rename(&part, &self.to).map_err(|error| {
            JobError::from(error).context(format!("renaming to {}", self.to.display()))
        })
    }
}

fn part_folder(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.part"))
}

/// Whether the folder is the artifact already. An empty folder may be replaced.
///
/// # Errors
/// 65 when it holds anything else.
fn is_there(go_on: GoOn<'_>, target: &Path, manifest: &Manifest) -> Result<bool, JobError> {
    let is_empty =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if !target.exists() || is_empty(target) {
        return Ok(false);
    }
    let found = folder::digests_while(go_on, target, &folder::files(target)?)?;
    let expected: Listing = manifest
        .content
        .files
        .iter()
        .map(|file| (file.path.clone(), file.sha256))
        .collect();
    if found == expected {
        return Ok(true);
    }
    Err(
        JobError::bad_input(format!("{} holds other files", target.display()))
            .hint("choose a folder that does not exist yet"),
    )
}
