//! The commands of `wmtp-images`.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::bake::Bake;
use crate::conform::conform;
use crate::dockerfile::Dockerfile;
use crate::engine::{EPOCH, Engine, Order, Start, output, shown};
use crate::error::Error;
use crate::rules::Finding;
use crate::{release, rules};

/// Which container engine.
#[derive(Debug, clap::Args)]
struct Which {
    /// Container engine with its own flags [default: the first of docker, podman and buildah that answers]
    #[arg(
        long,
        value_name = "COMMAND",
        env = "WMTP_ENGINE",
        hide_env_values = true
    )]
    engine: Option<String>,
}

/// The bake file.
#[derive(Debug, clap::Args)]
struct Source {
    /// Which images there are; paths in it are seen from the folder where this runs
    #[arg(long, value_name = "FILE", default_value = "docker/bake.json")]
    bake: PathBuf,
}

/// Variables of the bake file that the sources themselves give a value, unless the environment does.
fn variables() -> Vec<(String, String)> {
    let git = |arguments: &[&str]| {
        let said = output(Command::new("git").args(arguments)).ok()?;
        let text = String::from_utf8(said.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let environment =
        |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let mut found = Vec::new();
    let revision = git(&["rev-parse", "HEAD"]).map(|commit| {
        let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some();
        if is_changed {
            commit + "-changed"
        } else {
            commit
        }
    });
    let epoch = environment(EPOCH).or_else(|| git(&["log", "-1", "--format=%ct"]));
    let created = epoch
        .as_deref()
        .and_then(|secs| Timestamp::from_second(secs.parse().ok()?).ok())
        .map(|time| time.to_string());
    for (name, value) in [("REVISION", revision), (EPOCH, epoch), ("CREATED", created)] {
        if let Some(value) = environment(name).or(value) {
            found.push((name.to_owned(), value));
        }
    }
    found
}

impl Source {
    fn read(&self, variables: &[(String, String)]) -> Result<Bake, Error> {
        Bake::read(&self.bake, |name| {
            let own = variables
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone());
            own.or_else(|| std::env::var_os(name)?.into_string().ok())
        })
    }
}

/// Command line of `build`.
#[derive(Debug, clap::Args)]
pub struct Build {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    source: Source,
    /// Folder with finished programs (bin/JOB, sbom/JOB.cdx.json): nothing is compiled
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Take base images as they are on this machine; pull none
    #[arg(long)]
    offline: bool,
    /// Use no layer of an earlier build: the same sources then give the same image
    #[arg(long)]
    fresh: bool,
    /// Targets and groups of the bake file [default: the group `default`]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl Tool for Build {
    const ABOUT: &'static str = "Builds images with docker buildx, podman or buildah.";
    const EXAMPLES: &'static str = "wmtp-images build
        wmtp-images build cpu
        wmtp-images build --programs FOLDER --offline --fresh evaluate";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let variables = variables();
        let bake = self.source.read(&variables)?;
        let targets = bake.select(&self.targets)?;
        let engine = Engine::find(self.which.engine.as_deref())?;
        let order = Order {
            file: &self.source.bake,
            targets: &targets,
            variables: &variables,
            programs: self.programs.as_deref(),
            is_offline: self.offline,
            is_fresh: self.fresh,
        };
        for mut command in engine.build_commands(&order) {
            if cx.is_dry_run() {
                cx.print(shown(&command));
                continue;
            }
            cx.log(shown(&command));
            // Its progress is no result.
            let status = command.stdout(std::io::stderr()).status()?;
            if !status.success() {
                return Err(Error::Engine {
                    command: shown(&command),
                    ended: format!("ended with {status}"),
                }
                .into());
            }
        }
        let mut made = Vec::new();
        for tag in targets.iter().flat_map(|target| &target.tags) {
            if !cx.is_dry_run() {
                let image = engine.inspect(tag)?;
                cx.print(format!("{tag}  {}", identity(&image)));
                made.push(json!({"tag": tag, "id": identity(&image), "bytes": image["Size"]}));
            }
        }
        cx.json_result(json!({"images": made}));
        Ok(())
    }
}

/// What tells two images apart.
fn identity(image: &serde_json::Value) -> &str {
    ["Id", "FromImageID"]
        .iter()
        .find_map(|key| image[*key].as_str())
        .unwrap_or("?")
}

/// Command line of `lint`.
#[derive(Debug, clap::Args)]
pub struct Lint {
    #[command(flatten)]
    source: Source,
    /// Jobs that there must be an image of
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
}

impl Tool for Lint {
    const ABOUT: &'static str = "Holds Dockerfile and bake file against the rules of this house.";
    const EXAMPLES: &'static str = "wmtp-images lint prepare-data train-stage2 evaluate";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let bake = self.source.read(&[])?;
        let path = bake
            .targets()
            .next()
            .map(|target| PathBuf::from(&target.dockerfile));
        let dockerfile =
            Dockerfile::read(path.as_deref().unwrap_or(Path::new("docker/Dockerfile")))?;
        let found = rules::check(&dockerfile, &bake, &self.jobs);
        cx.json_result(
            json!({"findings": found.iter().map(ToString::to_string).collect::<Vec<_>>()}),
        );
        if found.is_empty() {
            cx.print(format!("{} images keep every rule", bake.targets().count()));
            return Ok(());
        }
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        Err(JobError::refused(lines.join("\n")))
    }
}

/// Command line of `conform`.
#[derive(Debug, clap::Args)]
pub struct Conform {
    #[command(flatten)]
    which: Which,
    /// Job of the image [default: its label wmtp.job]
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Folder with the programs of all jobs and wmtp-store, which make what the image reads [default: this program's]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Names of images on this machine
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Tool for Conform {
    const ABOUT: &'static str = "Holds images against the contract that every job keeps to; any image, however it was made.";
    const EXAMPLES: &'static str = "wmtp-images conform localhost/wmtp/evaluate:0.1.0
        wmtp-images conform --job evaluate registry.example.com/other/evaluate:7";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let engine = Engine::find_runner(self.which.engine.as_deref())?;
        let own = std::env::current_exe()?;
        let default = own.parent().unwrap_or(Path::new("."));
        let programs = self.programs.as_deref().unwrap_or(default);
        let mut all = Vec::new();
        let mut num_broken = 0;
        for image in &self.images {
            cx.print(image);
            let verdicts = conform(&engine, image, self.job.as_deref(), programs)?;
            for verdict in &verdicts {
                let mark = if verdict.is_kept { "kept  " } else { "BROKEN" };
                cx.print(format!("  {mark} {}: {}", verdict.promise, verdict.said));
            }
            num_broken += verdicts.iter().filter(|verdict| !verdict.is_kept).count();
            all.push(json!({"image": image, "verdicts": verdicts}));
        }
        cx.json_result(json!({"images": all, "broken": num_broken}));
        if num_broken > 0 {
            return Err(JobError::refused(format!(
                "{num_broken} promises of the job contract are broken"
            )));
        }
        Ok(())
    }
}

/// Command line of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// Folder of this machine that the image sees under the same path; may be repeated
    #[arg(long = "mount", value_name = "DIR")]
    mounts: Vec<PathBuf>,
    /// Image, then the arguments of its job
    #[arg(
        value_name = "IMAGE",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

/// Variables that a job reads and that go into the container with it.
const PASSED: [&str; 4] = ["AWS_", "WMTP_", "RAYON_", "MIMALLOC_"];

impl Tool for Run {
    const ABOUT: &'static str = "Runs a job's image as its user, on a root that nobody writes, without capabilities, on this machine's network.";
    const EXAMPLES: &'static str = "wmtp-images run --mount $PWD localhost/wmtp/train-stage2:0.1.0 --recipe v002.yaml --data micropy --base micropy-mtp";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let engine = Engine::find_runner(self.which.engine.as_deref())?;
        let here = std::env::current_dir()?;
        let (image, arguments) = self
            .words
            .split_first()
            .ok_or_else(|| JobError::usage("no image given"))?;
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| PASSED.iter().any(|start| name.starts_with(start)))
            .collect();
        let start = Start {
            image: image.clone(),
            // Where relative paths mean the same inside as outside.
            folder: self
                .mounts
                .iter()
                .any(|folder| here.starts_with(folder) || folder.starts_with(&here))
                .then(|| here.clone()),
            mounts: self.mounts.clone(),
            variables,
            ..Start::default()
        };
        let mut command = engine.run_command(&start, arguments);
        if cx.is_dry_run() {
            cx.print(shown(&command));
            return Ok(());
        }
        // From here on this process is the engine: signals and the exit code are its own.
        let error = std::os::unix::process::CommandExt::exec(&mut command);
        Err(Error::Engine {
            command: shown(&command),
            ended: format!("does not start: {error}"),
        }
        .into())
    }
}

/// Command line of `release`.
#[derive(Debug, clap::Args)]
pub struct Release {
    /// Version that the programs and the notes tell
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Folder of the machine that built it, below which no file of the release may name a path
    #[arg(long, value_name = "FOLDER", value_parser = builder)]
    without: Vec<PathBuf>,
    /// Folder of the release
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Programs that it holds
    #[arg(value_name = "PROGRAM", required = true)]
    programs: Vec<String>,
}

/// A folder that a path can be below of: every path is below `/`.
fn builder(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path.components().collect());
    }
    Err("expected a full path, and not /".to_owned())
}

impl Tool for Release {
    const ABOUT: &'static str = "Looks whether what a release holds belongs together (programs, their lists of dependencies, notes, checksums), and that nothing in it names a folder of the machine that built it.";
    const EXAMPLES: &'static str =
        "wmtp-images release --without $HOME --without $PWD .wmtp/release train-stage2 evaluate";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let found = release::check(&self.folder, &self.programs, &self.version, &self.without)?;
        let num_programs = self.programs.len();
        tell(cx, &self.folder, &found, |num_files| {
            format!("{num_files} files of {num_programs} programs belong together")
        })
    }
}

/// Says what was found in the files of a folder, or that all is well.
fn tell(
    cx: &mut ToolCx<'_>,
    folder: &Path,
    found: &[Finding],
    well: impl FnOnce(usize) -> String,
) -> Result<(), JobError> {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    cx.json_result(json!({"findings": lines}));
    if found.is_empty() {
        cx.print(well(release::files(folder)?.len()));
        return Ok(());
    }
    Err(JobError::integrity(lines.join("\n")))
}

/// Command line of `traces`.
#[derive(Debug, clap::Args)]
pub struct Traces {
    /// Folder of the machine that built the files, below which none of them may name a path
    #[arg(long, value_name = "FOLDER", value_parser = builder, required = true)]
    without: Vec<PathBuf>,
    /// Folder of the files
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Tool for Traces {
    const ABOUT: &'static str = "Looks whether a file names a folder of the machine that built it, as `release` does with what it holds.";
    const EXAMPLES: &'static str =
        "wmtp-images traces --without $HOME --without $PWD target/cuda/bin";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let found = release::traces(&self.folder, &self.without)?;
        tell(cx, &self.folder, &found, |num_files| {
            format!("{num_files} files name no folder of the machine that built them")
        })
    }
}
