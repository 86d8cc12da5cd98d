//! `parity`: compares this workspace's numbers with PyTorch goldens and names the first divergence.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::Device;
use clap::{Parser, ValueEnum};
use parity::{Case, Error, Mode, Precision, Report, Status};
use wmtp_model::Place;

/// Everything compared and within its tolerance.
const EXIT_PASS: u8 = 0;

/// The subject failed or differs.
const EXIT_DIVERGENCE: u8 = 1;

/// Usage or configuration: no such device, a report that cannot be written.
const EXIT_CONFIGURATION: u8 = 2;

/// Golden missing, corrupt or of the wrong digest.
const EXIT_GOLDEN: u8 = 3;

/// The name that stands for every case in the folder.
const ALL: &str = "all";

/// Compare our numbers with PyTorch goldens, stage by stage.
///
/// Exit codes: 0 pass, 1 divergence (also where the code under test fails on its way: the report has what it found
/// before), 2 usage or configuration (no such device, a report that cannot be written), 3 golden missing, corrupt or of
/// inputs and settings that fit no model, 4 nothing compared. Over several cases it is the code of the first one that does
/// not pass.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  parity --goldens tests/parity/goldens --case nano --dtype f64 --report target/parity"
)]
struct Args {
    /// Folder of golden cases, or of one case
    #[arg(long, env = "WMTP_GOLDENS")]
    goldens: PathBuf,

    /// Element type of the run
    #[arg(long, value_enum)]
    dtype: Dtype,

    /// Case to compare; `all` takes every case in the folder
    #[arg(long, default_value = ALL)]
    case: String,

    /// What a stage is given: our own upstream results, or the golden's
    #[arg(long, value_enum, default_value = "chained")]
    mode: InputMode,

    /// Where our side computes: cpu, cuda, or cuda:1 for the second device
    #[arg(long, default_value_t = Place::Cpu)]
    device: Place,

    /// Write parity_report.json and parity_report.md into this folder, or into one folder a case of `all`
    #[arg(long)]
    report: Option<PathBuf>,

    /// Commit of the code under test, for the report
    #[arg(long)]
    commit: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F64,
    /// f32 with products of bf16 factors; cases without such products run in f32
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum InputMode {
    Chained,
    Isolated,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let codes = run(&args).unwrap_or_else(|error| vec![explain(&error)]);
    let failed = codes.into_iter().find(|code| *code != EXIT_PASS);
    ExitCode::from(failed.unwrap_or(EXIT_PASS))
}

/// The exit code of each case.
fn run(args: &Args) -> Result<Vec<u8>, Failure> {
    if args.case != ALL {
        args.forget(&args.case)?;
    }
    let folders = if args.case == ALL {
        parity::find_all(&args.goldens)?
    } else {
        vec![parity::find(&args.goldens, &args.case)?]
    };
    for name in folders.iter().filter_map(|folder| folder.file_name()) {
        args.forget(name)?;
    }
    let device = args.device.open().map_err(Failure::Device)?;
    let nested = folders.len() > 1;
    let code = |folder: &PathBuf| {
        compare(args, &device, folder, nested).unwrap_or_else(|error| explain(&error.into()))
    };
    Ok(folders.iter().map(code).collect())
}

impl Args {
    /// Removes the reports that earlier runs left of a case, alone or as one of all.
    fn forget(&self, case: impl AsRef<Path>) -> Result<(), Error> {
        let Some(target) = &self.report else {
            return Ok(());
        };
        Report::remove(target)?;
        Report::remove(&target.join(case))
    }
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("nothing can be compared on that device")]
    Device(#[source] wmtp_model::Error),
    #[error(transparent)]
    Case(#[from] Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Device(_) | Self::Case(Error::Write { .. }) => EXIT_CONFIGURATION,
            Self::Case(Error::Golden { .. }) => EXIT_GOLDEN,
            Self::Case(_) => EXIT_DIVERGENCE,
        }
    }
}

/// Compares one case and prints its report: to stdout when it passes, to stderr when it does not.
fn compare(args: &Args, device: &Device, folder: &Path, nested: bool) -> Result<u8, Error> {
    let case = Case::load(folder)?;
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::F64 => Precision::F64,
        Dtype::Bf16 => Precision::Bf16,
    };
    let mode = match args.mode {
        InputMode::Chained => Mode::Chained,
        InputMode::Isolated => Mode::Isolated,
    };
    let mut report = parity::run(&case, precision, mode, device)?;
    report.subject.commit.clone_from(&args.commit);
    if let Some(target) = &args.report {
        let own = folder.file_name().filter(|_| nested);
        report.write(&own.map_or_else(|| target.clone(), |name| target.join(name)))?;
    }
    let text = report.markdown();
    // A closed stream leaves the exit code, which says the same.
    let _ = if report.status == Status::Pass {
        writeln!(std::io::stdout(), "{text}")
    } else {
        writeln!(std::io::stderr(), "{text}")
    };
    Ok(report.exit_code())
}

/// Prints an error with its causes and gives its exit code.
fn explain(failure: &Failure) -> u8 {
    let mut lines = vec![format!("error: {failure}")];
    let mut cause = std::error::Error::source(failure);
    while let Some(inner) = cause {
        lines.push(format!("  caused by: {inner}"));
        cause = inner.source();
    }
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    failure.exit_code()
}
