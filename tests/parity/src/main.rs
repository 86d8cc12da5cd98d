//! `parity`: compares this workspace's numbers with PyTorch goldens and names the first divergence.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::Device;
use clap::{Parser, ValueEnum};
use parity::{Case, Error, Mode, Precision, Status};
use wmtp_model::Place;

/// Everything compared and within its tolerance.
const EXIT_PASS: u8 = 0;

/// The subject failed or differs.
const EXIT_DIVERGENCE: u8 = 1;

/// Golden missing, corrupt or of the wrong digest.
const EXIT_GOLDEN: u8 = 3;

/// The name that stands for every case in the folder.
const ALL: &str = "all";

/// Compare our numbers with PyTorch goldens, stage by stage.
///
/// Exit codes: 0 pass, 1 divergence, 2 usage, 3 golden missing or corrupt, 4 nothing compared. Over several
/// cases it is the code of the first one that does not pass.
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
    let device = match args.device.open() {
        Ok(device) => device,
        Err(error) => return ExitCode::from(explain(&error.into())),
    };
    let folders = if args.case == ALL {
        parity::find_all(&args.goldens)
    } else {
        parity::find(&args.goldens, &args.case).map(|folder| vec![folder])
    };
    let codes = match folders {
        Ok(folders) => {
            let nested = folders.len() > 1;
            let code = |folder: &PathBuf| {
                compare(&args, &device, folder, nested).unwrap_or_else(|error| explain(&error))
            };
            folders.iter().map(code).collect()
        }
        Err(error) => vec![explain(&error)],
    };
    let failed = codes.into_iter().find(|code| *code != EXIT_PASS);
    ExitCode::from(failed.unwrap_or(EXIT_PASS))
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
fn explain(error: &Error) -> u8 {
    let mut lines = vec![format!("error: {error}")];
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        lines.push(format!("  caused by: {inner}"));
        cause = inner.source();
    }
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    if matches!(error, Error::Golden { .. }) {
        EXIT_GOLDEN
    } else {
        EXIT_DIVERGENCE
    }
}
