//! `download`: a revision of the Hugging Face hub becomes a folder, to be converted or pushed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use wmtp_job_kit::{JobError, Progress, Tool, ToolCx, bytes};

use crate::folder;
use crate::hub::{Hub, HubFile, Repo, Snapshot};

/// Time between two looks at whether a signal asks to stop.
const PERIOD: Duration = Duration::from_millis(100);

/// Flags of `download`.
#[derive(Debug, clap::Args)]
pub(crate) struct Download {
    /// hf://OWNER/REPO@REVISION, or hf://datasets/OWNER/REPO@REVISION
    #[arg(value_name = "HF_URI")]
    from: Repo,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only files whose path begins so; again for more
    #[arg(long, value_name = "PATH")]
    only: Vec<String>,
}

impl Tool for Download {
    const ABOUT: &'static str = "Fetches a revision of the Hugging Face hub into a folder, every file verified; goes on where it was cut off.";
    const EXAMPLES: &'static str = "
        sync-storage download hf://facebook/multi-token-prediction@main --only 7B_1T_4/ --to hub/7b
        HF_TOKEN=… sync-storage download hf://datasets/google-research-datasets/mbpp@main --to hub/mbpp --dry-run";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let stop = cx.stop_flag();
        let hub = Hub::from_environment()?;
        let mut snapshot =
            runtime.block_on(unless_stopped(Arc::clone(&stop), hub.snapshot(&self.from)))?;
        self.select(&mut snapshot)?;
        let total = snapshot.files.iter().map(|file| file.size).sum();
        let what = format!(
            "{} files, {} of {} at commit {}",
            snapshot.files.len(),
            bytes(total),
            self.from.name(),
            snapshot.commit
        );
        if cx.is_dry_run() {
            cx.print(format!("would fetch {what}; nothing was touched"));
            for file in &snapshot.files {
                cx.print(format!("  {}  {}", bytes(file.size), file.path));
            }
            return Ok(());
        }
        if is_there(&self.to, &snapshot.files)? {
            cx.print(format!("already there: {what} in {}", self.to.display()));
        } else {
            let part = part_folder(&self.to, &snapshot.commit);
            let progress = cx.progress("fetching", "bytes", total);
            let work = fetch(&hub, &self.from, &snapshot, &part, &progress);
            runtime.block_on(unless_stopped(stop, work))?;
            progress.finish();
            let _ = std::fs::remove_dir(&self.to);
            std::fs::rename(&part, &self.to).map_err(|error| {
                JobError::from(error).context(format!("renaming to {}", self.to.display()))
            })?;
            cx.print(format!("{what} is in {}", self.to.display()));
        }
        cx.json_result(json!({
            "job": "sync-storage-download",
            "repo": self.from.name(),
            "commit": snapshot.commit,
            "files": snapshot.files.len(),
            "bytes": total,
            "folder": self.to.display().to_string(),
        }));
        Ok(())
    }
}

impl Download {
    fn select(&self, snapshot: &mut Snapshot) -> Result<(), JobError> {
        if !self.only.is_empty() {
            let is_wanted = |file: &HubFile| {
                self.only
                    .iter()
                    .any(|start| file.path.starts_with(start.as_str()))
            };
            snapshot.files.retain(is_wanted);
        }
        if snapshot.files.is_empty() {
            let what = format!(
                "{} at {} has no such file",
                self.from.name(),
                snapshot.commit
            );
            return Err(JobError::bad_input(what)
                .hint("leave --only out with --dry-run to see what it has"));
        }
        Ok(())
    }
}

/// Fetches what is not in the folder yet.
async fn fetch(
    hub: &Hub,
    repo: &Repo,
    snapshot: &Snapshot,
    folder: &Path,
    progress: &Progress,
) -> Result<(), JobError> {
    for file in &snapshot.files {
        let path = folder.join(&file.path);
        folder::create_parent(&path)?;
        let here = std::fs::metadata(&path).map_or(0, |found| found.len());
        progress.inc(here.min(file.size));
        let arrived = |bytes| progress.inc(bytes);
        hub.fetch(repo, &snapshot.commit, file, &path, &arrived)
            .await?;
    }
    Ok(())
}

/// Beside the folder, and of one commit: what another commit left is not gone on with.
fn part_folder(target: &Path, commit: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.part", &commit[..12]))
}

/// Whether the folder holds exactly these files. An empty one may be replaced.
///
/// # Errors
/// 65 when it holds anything else.
fn is_there(target: &Path, files: &[HubFile]) -> Result<bool, JobError> {
    let is_empty =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if !target.exists() || is_empty(target) {
        return Ok(false);
    }
    let mut is_same = folder::files(target)?.len() == files.len();
    for file in files {
        is_same = is_same && file.is_at(&target.join(&file.path))?;
    }
    if is_same {
        return Ok(true);
    }
    Err(
        JobError::bad_input(format!("{} holds other files", target.display()))
            .hint("choose a folder that does not exist yet"),
    )
}

/// Waits for work, and drops it where it stands when a signal asks to stop.
async fn unless_stopped<T>(
    stop: Arc<AtomicBool>,
    work: impl Future<Output = Result<T, JobError>>,
) -> Result<T, JobError> {
    let raised = async {
        while !stop.load(Ordering::SeqCst) {
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = raised => {
            Err(JobError::preempted().hint("what was fetched stays; the same command goes on from it"))
        }
    }
}
