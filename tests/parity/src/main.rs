//! `parity`: compares this workspace's numbers with PyTorch goldens and names the first divergence.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use parity::{Error, Precision, Status};

/// Golden missing, corrupt or of the wrong digest.
const EXIT_GOLDEN: u8 = 3;

/// The subject failed or differs.
const EXIT_DIVERGENCE: u8 = 1;

/// Compare our numbers with PyTorch goldens, stage by stage.
///
/// Exit codes: 0 pass, 1 divergence, 2 usage, 3 golden missing or corrupt, 4 nothing compared.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  parity --goldens ../shared/goldens --dtype f64 --report target/parity"
)]
struct Args {
    /// Folder of golden cases, or of one case
    #[arg(long, env = "WMTP_GOLDENS")]
    goldens: PathBuf,

    /// Element type of the run
    #[arg(long, value_enum)]
    dtype: Dtype,

    /// Case to compare
    #[arg(long, default_value = "nano")]
    case: String,

    /// Write parity_report.json and parity_report.md into this folder
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
}

fn main() -> ExitCode {
    let args = Args::parse();
    match compare(&args) {
        Ok(code) => code,
        Err(error) => {
            let mut lines = vec![format!("error: {error}")];
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                lines.push(format!("  caused by: {inner}"));
                cause = inner.source();
            }
            // A closed stderr leaves the exit code, which says the same.
            let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
            ExitCode::from(if matches!(error, Error::Golden { .. }) {
                EXIT_GOLDEN
            } else {
                EXIT_DIVERGENCE
            })
        }
    }
}

fn compare(args: &Args) -> Result<ExitCode, Error> {
    let case = parity::load(&args.goldens, &args.case)?;
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::F64 => Precision::F64,
    };
    let mut report = parity::run(&case, precision)?;
    report.subject.commit.clone_from(&args.commit);
    if let Some(folder) = &args.report {
        report.write(folder)?;
    }
    let text = report.markdown();
    // Data to stdout when it passes, the same text to stderr when it does not.
    let _ = if report.status == Status::Pass {
        writeln!(std::io::stdout(), "{text}")
    } else {
        writeln!(std::io::stderr(), "{text}")
    };
    Ok(ExitCode::from(report.exit_code()))
}
