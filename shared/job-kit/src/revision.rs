//! Which sources a program was built from. It cannot know by itself: whoever builds or starts it says so.

use std::path::{Path, PathBuf};

use crate::JobError;

/// The commit, followed by `-dirty` where its checkout had changes of its own.
const VARIABLE: &str = "WMTP_REVISION";
/// The image that a program was started from, with its digest: what runs in it cannot find that out.
const IMAGE_VARIABLE: &str = "WMTP_IMAGE";
/// Where images hold theirs.
const FILE: &str = "/usr/share/wmtp/revision";
/// What a release calls its own, beside the folder of its programs.
const OF_RELEASE: &str = "revision";
/// What is recorded where nobody said it.
const UNKNOWN: &str = "unknown";
const LONGEST: usize = 128;

/// What [`VARIABLE`] says, else the file of the image or of the release, else that nobody knows.
///
/// # Errors
/// 2 for what could be no revision.
pub(crate) fn revision() -> Result<String, JobError> {
    let variable = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned());
    let program = std::env::current_exe().ok();
    let release = program.as_deref().and_then(of_release);
    let files = [Some(PathBuf::from(FILE)), release];
    let said = files.into_iter().flatten().filter_map(|path| {
        let text = std::fs::read_to_string(&path).ok()?;
        Some((path.display().to_string(), text))
    });
    let variable = variable.map(|text| (VARIABLE.to_owned(), text));
    first(variable.into_iter().chain(said))
}

/// The file of the release that a program lies in.
fn of_release(program: &Path) -> Option<PathBuf> {
    Some(program.parent()?.parent()?.join(OF_RELEASE))
}

/// What whoever started this program said of its image.
pub(crate) fn image() -> Option<String> {
    let image = std::env::var_os(IMAGE_VARIABLE)?
        .to_string_lossy()
        .into_owned();
    Some(image).filter(|image| !image.is_empty())
}

/// The first of these texts, each with its place, that is not blank.
fn first(said: impl IntoIterator<Item = (String, String)>) -> Result<String, JobError> {
    let mut said = said.into_iter();
    let Some((place, text)) = said.find(|(_, text)| !text.trim().is_empty()) else {
        return Ok(UNKNOWN.to_owned());
    };
    let text = text.trim();
    if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let error = format!("{place} holds {text:?}, which is no revision");
        return Err(JobError::usage(error)
            .hint("expected the commit that the program was built from, or nothing"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{first, of_release};

    #[test]
    fn whoever_starts_a_program_is_heard_first() {
        let found = |texts: &[&str]| {
            let said = texts
                .iter()
                .map(|text| ("place".to_owned(), (*text).to_owned()));
            first(said)
        };
        for (texts, expected) in [
            (&["0123abcd-dirty", "image\n"][..], "0123abcd-dirty"),
            (&[" ", "image\n"], "image"),
            (&["", "", "release"], "release"),
            (&[""], "unknown"),
            (&[], "unknown"),
        ] {
            assert_eq!(found(texts).unwrap(), expected);
        }
        for wrong in ["two words", "a\u{1b}[31m", &"x".repeat(129), "\u{e9}"] {
            assert_eq!(found(&[wrong]).unwrap_err().exit().code(), 2);
        }
    }

    #[test]
    fn a_program_of_a_release_finds_its_file() {
        let found = of_release(Path::new("/opt/wmtp/bin/evaluate"));
        assert_eq!(found.as_deref(), Some(Path::new("/opt/wmtp/revision")));
    }
}
