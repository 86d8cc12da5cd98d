//! `dev-store serve`: the embedded S3 server as a process. Reads and writes one folder; tells clients by an env file.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dev_store::{Error, Options, Server};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The allocator of the jobs: requests take and give back many small pieces of memory, on all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Internal failure.
const EXIT_INTERNAL: u8 = 70;
/// The root or the port cannot be used.
const EXIT_UNAVAILABLE: u8 = 69;
/// The disk is full.
const EXIT_NO_ROOM: u8 = 73;
/// Another server holds the root.
const EXIT_HELD: u8 = 75;

const EXAMPLES: &str = "\
Examples:
  Serve a folder on a free port and let a shell use it:
    dev-store serve --root .store &
    until [ -f .store/dev-store.env ]; do sleep 0.1; done
    . .store/dev-store.env
    sync-storage push --store s3://wmtp/runs ...

  Serve for the life of a script, with the environment file elsewhere:
    dev-store serve --root /data/store --env-file /run/store.env --exit-with-parent &

Exit codes: 0 stopped by SIGTERM or Ctrl-C, 2 usage, 69 root or port not usable, 70 internal, 73 disk full,
75 the root is held by another server.";

/// A small S3 server for one machine: durable, with true conditional writes, on loopback only.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a folder as an S3 store with the bucket `wmtp` until SIGTERM or Ctrl-C.
    #[command(after_help = EXAMPLES)]
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// Folder that holds everything; made if missing, locked while the server runs.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Loopback port; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where endpoint and keys are written for clients, mode 0600, once the server listens [default: DIR/dev-store.env].
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Do not wait for the disk on writes: faster, and a power cut may lose what was acknowledged.
    #[arg(long)]
    no_sync: bool,
    /// Stop when the process (to be exact: the thread) that started this one ends, however it ends.
    #[arg(long)]
    exit_with_parent: bool,
}

fn main() -> ExitCode {
    let Cli {
        command: Command::Serve(arguments),
    } = Cli::parse();
    // s3s calls every refusal an error, lost races included; our own failures are logged by dev_store.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,dev_store=info,s3s=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do about a closed stderr.
            let _ = writeln!(io::stderr(), "error: {error}\n\nhint: {}", hint(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn serve(arguments: &Serve) -> Result<(), Error> {
    if arguments.exit_with_parent {
        exit_with_parent()?;
    }
    without_huge_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Error::Internal(error.to_string()))?;
    let server = Server::bind(
        &arguments.root,
        Options {
            port: arguments.port,
            sync: !arguments.no_sync,
        },
    )?;
    let env_file = arguments
        .env_file
        .clone()
        .unwrap_or_else(|| arguments.root.join("dev-store.env"));
    runtime.block_on(async {
        // The handlers stand before the file appears, so whoever waits for the file may stop us at once.
        let stop = stop_signal()?;
        server.write_env_file(&env_file)?;
        tracing::info!(endpoint = server.endpoint(), env_file = %env_file.display(), report = ?server.report(), "listening");
        let endpoint = server.endpoint();
        let served = server.run(stop).await;
        remove_env_file(&env_file, &endpoint);
        served
    })
}

/// Completes at the first SIGTERM or Ctrl-C.
fn stop_signal() -> Result<impl Future<Output = ()>, Error> {
    let install = |kind| signal(kind).map_err(|error| Error::Internal(error.to_string()));
    let (mut terminate, mut interrupt) = (
        install(SignalKind::terminate())?,
        install(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A file that names a server which is gone only misleads; one that names another server stays.
fn remove_env_file(path: &Path, endpoint: &str) {
    if fs::read_to_string(path).is_ok_and(|text| text.contains(endpoint)) {
        let _ = fs::remove_file(path);
    }
}

/// Keeps the kernel from backing memory with pages of 2 MiB, which the allocator asks for: every thread that waits for
/// the disk would have one cleared for the few KiB that it needs. Where the kernel declines, all works as well.
fn without_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Asks the kernel for SIGTERM when the parent ends.
fn exit_with_parent() -> Result<(), Error> {
    let parent = std::os::unix::process::parent_id();
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Error::Internal(format!("--exit-with-parent: {error}")))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(Error::Internal(
            "--exit-with-parent: the parent has ended already".to_owned(),
        ));
    }
    Ok(())
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Io { .. } | Error::Listen { .. } | Error::Damaged { .. } => EXIT_UNAVAILABLE,
        Error::NoSpace { .. } => EXIT_NO_ROOM,
        Error::RootHeld { .. } => EXIT_HELD,
        _ => EXIT_INTERNAL,
    }
}

fn hint(error: &Error) -> &'static str {
    match error {
        Error::RootHeld { .. } => "stop the other server, or give this one another --root",
        Error::Listen { .. } => "--port 0 takes a free port",
        Error::NoSpace { .. } => "free some disk space, or choose a --root on another disk",
        Error::Damaged { .. } => "restore the file, or remove it to have a new one made",
        _ => "check that --root and the folder of --env-file exist and can be written",
    }
}
