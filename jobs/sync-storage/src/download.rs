//! `download`: a revision of the Hugging Face hub, or objects of another S3 store, become a folder, to be converted or
//! pushed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use wmtp_artifacts::StoreOptions;
use wmtp_job_kit::{JobError, Progress, Tool, ToolCx, bytes};

use crate::folder::{self, SUMS};
use crate::source::{File, Found, Source};

/// Time between two looks at whether a signal asks to stop.
const PERIOD: Duration = Duration::from_millis(100);

/// Flags of `download`.
#[derive(Debug, clap::Args)]
pub(crate) struct Download {
    /// hf://OWNER/REPO@REVISION, hf://datasets/OWNER/REPO@REVISION, or s3://BUCKET/PREFIX
    #[arg(value_name = "URI")]
    from: Source,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only files whose path begins so; again for more
    #[arg(long, value_name = "PATH")]
    only: Vec<String>,
    /// Server of an s3:// source; that of AWS is https://s3.REGION.amazonaws.com. The AWS variables by default
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Profile of the AWS configuration files with the credentials for an s3:// source; the AWS variables by default
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    profile: Option<String>,
}

impl Tool for Download {
    const ABOUT: &'static str = "Fetches a revision of the Hugging Face hub or objects of an S3 store into a folder, every file checked; goes on where it was cut off.";
    const EXAMPLES: &'static str = "
        sync-storage download hf://facebook/multi-token-prediction@main --only 7B_1T_4/ --to hub/7b
        HF_TOKEN=… sync-storage download hf://meta-llama/Llama-2-7b-hf@main --to hub/Llama-2-7b-hf --dry-run
        sync-storage download hf://datasets/Muennighoff/mbpp@main --only data/mbpp.jsonl --to hub/mbpp
        sync-storage download s3://lab-models/7b --endpoint https://s3.example.org --profile lab --to models/7b";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let stop = cx.stop_flag();
        let options = StoreOptions {
            endpoint: self.endpoint.clone(),
            profile: self.profile.clone(),
            ..StoreOptions::default()
        };
        let opened = unless_stopped(Arc::clone(&stop), self.from.open(options));
        let mut found = runtime.block_on(opened)?;
        self.select(&mut found)?;
        let total = found.size();
        let what = format!(
            "{} files, {} of {}",
            found.files.len(),
            bytes(total),
            found.name
        );
        if cx.is_dry_run() {
            cx.print(format!("would fetch {what}; nothing was touched"));
            for file in &found.files {
                cx.print(format!("  {}  {}", bytes(file.size()), file.path()));
            }
            return Ok(());
        }
        if runtime.block_on(is_there(&self.to, &found))? {
            cx.print(format!("already there: {what} in {}", self.to.display()));
        } else {
            let part = part_folder(&self.to, &found.version);
            let progress = cx.progress("fetching", "bytes", total);
            runtime.block_on(unless_stopped(stop, fetch(&found, &part, &progress)))?;
            progress.finish();
            check_sums(&part)?;
            let _ = std::fs::remove_dir(&self.to);
            std::fs::rename(&part, &self.to).map_err(|error| {
                JobError::from(error).context(format!("renaming to {}", self.to.display()))
            })?;
            cx.print(format!("{what} is in {}", self.to.display()));
        }
        cx.json_result(json!({
            "job": "sync-storage-download",
            "source": found.name,
            "version": found.version,
            "files": found.files.len(),
            "bytes": total,
            "folder": self.to.display().to_string(),
        }));
        Ok(())
    }
}

impl Download {
    fn select(&self, found: &mut Found) -> Result<(), JobError> {
        if !self.only.is_empty() {
            let is_wanted = |file: &File| {
                self.only
                    .iter()
                    .any(|start| file.path().starts_with(start.as_str()))
            };
            found.files.retain(is_wanted);
        }
        if found.files.is_empty() {
            return Err(
                JobError::bad_input(format!("{} has no such file", found.name))
                    .hint("leave --only out with --dry-run to see what it has"),
            );
        }
        Ok(())
    }
}

/// Fetches what is not in the folder yet.
async fn fetch(found: &Found, folder: &Path, progress: &Progress) -> Result<(), JobError> {
    for file in &found.files {
        let path = folder.join(file.path());
        folder::create_parent(&path)?;
        let here = std::fs::metadata(&path).map_or(0, |found| found.len());
        progress.inc(here.min(file.size()));
        let arrived = |bytes| progress.inc(bytes);
        found.fetch(file, &path, &arrived).await?;
    }
    Ok(())
}

/// Checks what was fetched against the checksum file that came with it, if one did. It may list files that were not asked
/// for.
fn check_sums(folder: &Path) -> Result<(), JobError> {
    let path = folder.join(SUMS);
    if !path.exists() {
        return Ok(());
    }
    let listing = folder::digests(folder, &folder::files(folder)?)?;
    folder::check_present(&path, &listing)
}

/// Beside the folder, and of one version: what another version left is not gone on with.
fn part_folder(target: &Path, version: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.part", &version[..12]))
}

/// Whether the folder holds exactly these files. An empty one may be replaced.
///
/// # Errors
/// 65 when it holds anything else.
async fn is_there(target: &Path, found: &Found) -> Result<bool, JobError> {
    let is_empty =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if !target.exists() || is_empty(target) {
        return Ok(false);
    }
    let mut is_same = folder::files(target)?.len() == found.files.len();
    for file in &found.files {
        is_same = is_same && found.is_at(file, &target.join(file.path())).await?;
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
