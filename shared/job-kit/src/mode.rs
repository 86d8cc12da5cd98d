//! The command line: one program, one or several modes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::args::{Common, FilesOnly, JobOnly, StoreOnly};
use crate::life::{self, Session};
use crate::{Exit, Follower, Job, JobError, Tool, ToolCx, crew};

/// One thing that a program can do.
pub struct Mode {
    name: &'static str,
    about: &'static str,
    examples: &'static str,
    /// Whether its runs go to a tracking server where there is one.
    is_tracked: bool,
    augment: fn(Command) -> Command,
    /// The kit's own flags: how they are added and read.
    common: (fn(Command) -> Command, CommonReader),
    run: fn(&ArgMatches, Session) -> Result<(), JobError>,
}

type CommonReader = fn(&ArgMatches) -> Result<Common, clap::Error>;

impl Mode {
    /// A job as a mode.
    pub fn job<J: Job>(name: &'static str) -> Self {
        Self {
            name,
            about: J::ABOUT,
            examples: J::EXAMPLES,
            is_tracked: true,
            augment: J::augment_args,
            common: (JobOnly::augment_args, |matches| {
                JobOnly::from_arg_matches(matches).map(Common::from)
            }),
            run: |matches, session| {
                let job = parsed::<J>(matches)?;
                match crew::rank()? {
                    None => life::run_job(&job, &session),
                    Some(rank) => {
                        let followed = Follower::join(rank, &session).and_then(|it| job.follow(it));
                        followed.map_err(|error| error.context(format!("rank {rank}")))
                    }
                }
            },
        }
    }

    /// A tool as a mode.
    pub fn tool<T: Tool>(name: &'static str) -> Self {
        Self {
            name,
            about: T::ABOUT,
            examples: T::EXAMPLES,
            is_tracked: false,
            augment: T::augment_args,
            common: (Common::augment_args, Common::from_arg_matches),
            run: |matches, session| {
                let tool = parsed::<T>(matches)?;
                crew::refuse_to_follow()?;
                let mut cx = ToolCx::new(&session, None);
                let done = tool.run(&mut cx);
                cx.end();
                done
            },
        }
    }

    /// A tool as a mode that takes `--store` and `--json` of the kit's flags and no others: it has no recipe, no name to
    /// give and nothing to try out.
    pub fn store_tool<T: Tool>(name: &'static str) -> Self {
        Self {
            common: (StoreOnly::augment_args, |matches| {
                StoreOnly::from_arg_matches(matches).map(Common::from)
            }),
            ..Self::tool::<T>(name)
        }
    }

    /// A tool as a mode that takes `--dry-run` and `--json` of the kit's flags and no others: it has neither store nor recipe.
    pub fn file_tool<T: Tool>(name: &'static str) -> Self {
        Self {
            common: (FilesOnly::augment_args, |matches| {
                FilesOnly::from_arg_matches(matches).map(Common::from)
            }),
            ..Self::tool::<T>(name)
        }
    }

    fn command(&self) -> Command {
        self.extend(Command::new(self.name), self.about)
    }

    /// Adds flags and texts. The sentence comes last: each struct of flags brings its own docs as one.
    fn extend(&self, command: Command, about: &'static str) -> Command {
        let mut after = format!("Examples:\n{}", indent(self.examples));
        if self.is_tracked {
            after.push_str("\n\nTracking with MLflow:\n");
            after.push_str(&tracking_variables());
        }
        (self.common.0)((self.augment)(command))
            .about(about)
            .long_about(None)
            .after_help(after)
    }
}

fn parsed<T: FromArgMatches>(matches: &ArgMatches) -> Result<T, JobError> {
    T::from_arg_matches(matches).map_err(JobError::usage)
}

/// The variables of tracking, one a line.
fn tracking_variables() -> String {
    let lines = wmtp_tracking::ENVIRONMENT.map(|(name, doc)| format!("  {name:<33} {doc}"));
    lines.join("\n")
}

fn indent(lines: &str) -> String {
    let lines: Vec<String> = lines
        .trim()
        .lines()
        .map(|line| format!("  {}", line.trim()))
        .collect();
    lines.join("\n")
}

/// Runs a program that is one job.
pub fn main<J: Job>() -> ExitCode {
    let mode = Mode::job::<J>(J::NAME);
    main_with_modes(J::NAME, J::ABOUT, Vec::new(), Some(mode))
}

/// Runs a program with modes. The default mode takes its flags directly, the others are subcommands.
pub fn main_with_modes(
    name: &'static str,
    about: &'static str,
    modes: Vec<Mode>,
    default: Option<Mode>,
) -> ExitCode {
    dispatch(name, about, &modes, default.as_ref(), std::env::args_os()).into()
}

/// The whole command line.
fn command(
    name: &'static str,
    about: &'static str,
    modes: &[Mode],
    default: Option<&Mode>,
) -> Command {
    let command = Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommands(modes.iter().map(Mode::command));
    match default {
        Some(mode) => mode
            .extend(command, about)
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true),
        None => command
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true),
    }
}

fn dispatch(
    name: &'static str,
    about: &'static str,
    modes: &[Mode],
    default: Option<&Mode>,
    args: impl Iterator<Item = OsString>,
) -> Exit {
    let matches = match command(name, about, modes, default).try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            if exit != Exit::Done {
                life::print_exit(name, exit);
            }
            // Help and version are what was asked for; a closed pipe is nothing to report.
            let _ = error.print();
            return exit;
        }
    };
    let (mode, matches) = match matches.subcommand() {
        Some((chosen, matches)) => (modes.iter().find(|mode| mode.name == chosen), matches),
        None => (default, &matches),
    };
    let Some(mode) = mode else {
        return Exit::Usage;
    };
    let is_default = default.is_some_and(|default| std::ptr::eq(default, mode));
    let full_name = if is_default {
        name.to_owned()
    } else {
        format!("{name} {}", mode.name)
    };
    let outcome = (mode.common.1)(matches)
        .map_err(JobError::usage)
        .and_then(|common| {
            life::guarded(&full_name, common, |session| (mode.run)(matches, session))
        });
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            // How a run ended its leader says.
            if !matches!(crew::rank(), Ok(Some(_))) {
                life::print_exit(&full_name, error.exit());
            }
            life::print_error(&error);
            error.exit()
        }
    }
}
