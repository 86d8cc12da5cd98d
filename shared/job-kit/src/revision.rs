//! Which sources a program was built from. It cannot know by itself: whoever builds or starts it says so.

use crate::JobError;

/// The commit, followed by `-dirty` where its checkout had changes of its own.
const VARIABLE: &str = "WMTP_REVISION";
/// The image that a program was started from, with its digest: what runs in it cannot find that out.
const IMAGE_VARIABLE: &str = "WMTP_IMAGE";
/// Where images hold theirs.
const FILE: &str = "/usr/share/wmtp/revision";
/// What is recorded where nobody said it.
const UNKNOWN: &str = "unknown";
const LONGEST: usize = 128;

/// What [`VARIABLE`] says, else the file of the image, else that nobody knows.
///
/// # Errors
/// 2 for what could be no revision.
pub(crate) fn revision() -> Result<String, JobError> {
    let variable = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned());
    let file = std::fs::read_to_string(FILE).ok();
    of(variable.as_deref(), file.as_deref())
}

/// What whoever started this program said of its image.
pub(crate) fn image() -> Option<String> {
    let image = std::env::var_os(IMAGE_VARIABLE)?
        .to_string_lossy()
        .into_owned();
    Some(image).filter(|image| !image.is_empty())
}

fn of(variable: Option<&str>, file: Option<&str>) -> Result<String, JobError> {
    for (place, text) in [(VARIABLE, variable), (FILE, file)] {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            continue;
        };
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let error = format!("{place} holds {text:?}, which is no revision");
            return Err(JobError::usage(error)
                .hint("expected the commit that the program was built from, or nothing"));
        }
        return Ok(text.to_owned());
    }
    Ok(UNKNOWN.to_owned())
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn whoever_starts_a_program_is_heard_first() {
        for (variable, file, expected) in [
            (Some("0123abcd-dirty"), Some("image\n"), "0123abcd-dirty"),
            (Some(" "), Some("image\n"), "image"),
            (None, Some(""), "unknown"),
            (None, None, "unknown"),
        ] {
            assert_eq!(of(variable, file).unwrap(), expected);
        }
        for wrong in ["two words", "a\u{1b}[31m", &"x".repeat(129), "\u{e9}"] {
            assert_eq!(of(Some(wrong), None).unwrap_err().exit().code(), 2);
        }
    }
}
