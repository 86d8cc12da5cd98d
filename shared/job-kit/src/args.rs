//! Arguments that every job and tool takes.

use std::path::PathBuf;
use std::time::Duration;

use wmtp_artifacts::Alias;

use crate::JobError;
use crate::usage::Rates;

/// Flags of the kit, the same in every mode.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Common options")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, and any of them may be combined"
)]
pub(crate) struct Common {
    /// Recipe of the experiment (YAML): a file, or s3://BUCKET/KEY
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<String>,
    /// Where artifacts and runs live
    #[arg(
        long,
        value_name = "s3://BUCKET/PREFIX",
        env = "WMTP_STORE",
        hide_env_values = true
    )]
    pub(crate) store: Option<String>,
    /// Second store that inputs are read from when the first does not have them
    #[arg(
        long,
        value_name = "s3://BUCKET/PREFIX",
        env = "WMTP_DATA_STORE",
        hide_env_values = true
    )]
    pub(crate) data_store: Option<String>,
    /// Overrides one setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) assignments: Vec<String>,
    /// Name given to the outputs
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Print what would be read, computed and written; touch nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print each setting with its source and why work is or is not needed; touch nothing
    #[arg(long)]
    pub(crate) explain: bool,
    /// End stdout with one JSON object that holds the artifact ids
    #[arg(long)]
    pub(crate) json: bool,
    /// Compute even when the result is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Folder for files that are being made
    #[arg(long, value_name = "DIR", env = SCRATCH_VARIABLE, default_value = "./.wmtp/scratch")]
    pub(crate) scratch: PathBuf,
    /// Of a job.
    #[arg(skip)]
    pub(crate) rates: Rates,
    /// Of a job.
    #[arg(skip)]
    pub(crate) grace: Duration,
}

/// Flags of a job: a tool's work is not recorded, and none of it is saved for a later attempt.
#[derive(Debug, clap::Args)]
pub(crate) struct JobOnly {
    #[command(flatten)]
    common: Common,
    /// Seconds between a signal to stop and the kill behind it: a state is saved where it fits into them
    // By default less than the half minute that Kubernetes leaves: the run's last events have to reach the store, too.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "WMTP_GRACE_SECS",
        default_value_t = 20,
        help_heading = "Common options"
    )]
    grace_secs: u16,
    #[command(flatten)]
    rates: Rates,
}

impl From<JobOnly> for Common {
    fn from(flags: JobOnly) -> Self {
        Self {
            rates: flags.rates,
            grace: Duration::from_secs(u64::from(flags.grace_secs)),
            ..flags.common
        }
    }
}

/// Flags of a tool that works on a store and on nothing else.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct StoreOnly {
    /// Where artifacts and runs live
    #[arg(
        long,
        value_name = "s3://BUCKET/PREFIX",
        env = "WMTP_STORE",
        hide_env_values = true
    )]
    store: Option<String>,
    /// End stdout with one JSON object that holds what was found or done
    #[arg(long)]
    json: bool,
}

/// Flags of a tool that works on files and on no store.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct FilesOnly {
    /// Print what would be done; touch nothing
    #[arg(long)]
    dry_run: bool,
    /// End stdout with one JSON object that holds what was found or done
    #[arg(long)]
    json: bool,
}

impl From<FilesOnly> for Common {
    fn from(flags: FilesOnly) -> Self {
        Self {
            dry_run: flags.dry_run,
            json: flags.json,
            ..Self::default()
        }
    }
}

impl From<StoreOnly> for Common {
    fn from(flags: StoreOnly) -> Self {
        Self {
            store: flags.store,
            json: flags.json,
            ..Self::default()
        }
    }
}

/// Refuses a name that says what a gate found: those are given by promotion alone.
///
/// # Errors
/// 77 for `MODEL-staging` and `MODEL-production`.
pub fn refuse_alias(name: Option<&str>) -> Result<(), JobError> {
    let Some((model, alias)) = name.and_then(Alias::of_name) else {
        return Ok(());
    };
    let error = format!(
        "{} is the {alias} of model {model}, and only promotion moves it",
        alias.name_in_store(model)
    );
    Err(JobError::refused(error).hint(format!(
        "give another name; then `build-leaderboard promote --to {alias} --name {model}` moves it, if its gate lets the \
         version through"
    )))
}

/// Folder for files that are being made.
const SCRATCH_VARIABLE: &str = "WMTP_SCRATCH";
/// Folder of the local copies of artifacts.
const CACHE_VARIABLE: &str = "WMTP_CACHE";

/// Most bytes of that folder.
const CACHE_LIMIT_VARIABLE: &str = "WMTP_CACHE_LIMIT";

/// Most bytes of the local copies of artifacts: `WMTP_CACHE_LIMIT`, such as `500G`; without it there is no limit.
///
/// # Errors
/// 2 for anything but a number with or without K, M, G or T.
pub(crate) fn cache_limit() -> Result<Option<u64>, JobError> {
    let Some(text) = std::env::var_os(CACHE_LIMIT_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let limit = parse_bytes(&text).ok_or_else(|| {
        JobError::usage(format!(
            "{CACHE_LIMIT_VARIABLE}={text} is no number of bytes"
        ))
        .hint("write it as 500G; K, M, G and T are powers of 1024")
    })?;
    Ok(Some(limit))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let power = match &text[digits.len()..] {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1024_u64.pow(power))
}

/// Folder of the local copies of artifacts: `WMTP_CACHE`, else `./.wmtp/cache`.
pub(crate) fn cache_folder() -> PathBuf {
    std::env::var_os(CACHE_VARIABLE).map_or_else(|| PathBuf::from("./.wmtp/cache"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::{parse_bytes, refuse_alias};

    #[test]
    fn names_of_promotion_are_given_by_nothing_else() {
        for name in ["d-staging", "d-production", "d-staging-production"] {
            assert_eq!(refuse_alias(Some(name)).unwrap_err().exit().code(), 77);
        }
        for name in [
            None,
            Some("d"),
            Some("production"),
            Some("d-production-s42"),
        ] {
            refuse_alias(name).unwrap();
        }
    }

    #[test]
    fn a_cache_limit_is_a_number_of_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("3K", 3072),
            ("500G", 500 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1g", "1GB", "10 G", "99999999T"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
