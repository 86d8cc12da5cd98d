//! The three levels of the split rule: what the recipe says, what the rows say, what holds else.

use std::path::Path;

use wmtp_data_sets::{Shares, SplitLevel, codecontests};
use wmtp_job_kit::{JobError, Manifest};
use wmtp_recipe::{Data, DataSource, SplitBy};

/// The recipe's shares.
pub(crate) const SHARES: [&str; 2] = ["data.validation_share", "data.test_share"];

/// Who decides the splits of a data set: mostly one, two where some files of CodeContests name their split and some do not.
///
/// `set` is the share that the recipe sets, if it sets one.
///
/// # Errors
/// Exit code 2 for a share that would change nothing, because the rows tell the splits of all problems.
pub(crate) fn levels(
    data: &Data,
    raw: Option<&Manifest>,
    set: Option<&str>,
) -> Result<Vec<SplitLevel>, JobError> {
    let by_shares = match (data.split_by, set) {
        (SplitBy::Shares, _) | (SplitBy::Auto, Some(_)) => SplitLevel::Recipe,
        (SplitBy::Auto, None) => SplitLevel::Default,
    };
    let (named, unnamed) = match (data.split_by, data.source) {
        (SplitBy::Shares, _) | (_, DataSource::Micropy) => (false, true),
        (_, DataSource::Mbpp) => (true, false),
        (_, DataSource::CodeContests) => {
            let files = || raw.into_iter().flat_map(|raw| &raw.content.files);
            let rows = || {
                let paths = files().map(|file| Path::new(&file.path));
                paths.filter(|path| codecontests::holds_rows(path))
            };
            let names = |path: &Path| codecontests::named_split(path).is_some();
            (rows().any(names), rows().any(|path| !names(path)))
        }
    };
    match set {
        Some(share) if named && !unnamed => {
            let what = format!(
                "{share} is set, but the rows of {} tell the split of every problem",
                data.source
            );
            Err(JobError::usage(what)
                .hint("leave the shares out, or overrule the rows with data.split_by: shares"))
        }
        _ => {
            let stored = named.then_some(SplitLevel::Stored);
            Ok(stored
                .into_iter()
                .chain(unnamed.then_some(by_shares))
                .collect())
        }
    }
}

/// The levels as one word for an artifact.
pub(crate) fn told(levels: &[SplitLevel]) -> String {
    let words: Vec<&str> = levels.iter().map(|level| level.as_str()).collect();
    words.join("+")
}

/// What is kept from training, by the recipe or by the defaults.
pub(crate) fn shares(data: &Data) -> Shares {
    Shares {
        validation: data.validation_share,
        test: data.test_share,
        seed: data.split_seed,
    }
}
