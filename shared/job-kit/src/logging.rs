//! What libraries have to say goes to stderr, without secrets: warnings, or what `WMTP_LOG` asks for.

use std::ffi::OsStr;
use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::JobError;
use crate::secrets::redact;

/// Filter in the syntax of tracing, such as `wmtp_artifacts=debug`.
const FILTER_VARIABLE: &str = "WMTP_LOG";

/// The filter where nothing is asked for.
const WARNINGS: &str = "warn,aws_config=error,aws_smithy_runtime=error";

/// Installs the subscriber of this process.
///
/// # Errors
/// A usage error where `WMTP_LOG` is no filter: who asks for lines and gets none would think that there are none.
pub(crate) fn install() -> Result<(), JobError> {
    let filter = filter(std::env::var_os(FILTER_VARIABLE).as_deref())?;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(|| CleanStderr)
        .with_ansi(false)
        .without_time()
        .with_target(false);
    // Tests start several sessions in one process; the first subscriber serves them all.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init();
    Ok(())
}

fn filter(asked: Option<&OsStr>) -> Result<EnvFilter, JobError> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return Ok(EnvFilter::new(WARNINGS));
    };
    EnvFilter::try_new(asked.to_string_lossy()).map_err(|error| {
        JobError::usage(error)
            .context(format!("{FILTER_VARIABLE} is {}", asked.display()))
            .hint("write a level or TARGET=LEVEL, such as warn,wmtp_artifacts=debug")
    })
}

struct CleanStderr;

impl Write for CleanStderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let clean = redact(&String::from_utf8_lossy(text));
        io::stderr().lock().write_all(clean.as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::{WARNINGS, filter};
    use crate::Exit;

    #[test]
    fn a_filter_that_cannot_be_read_is_said() {
        let error = filter(Some("wmtp_artifacts=loud".as_ref())).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(
            error
                .to_string()
                .contains("WMTP_LOG is wmtp_artifacts=loud"),
            "{error}"
        );

        let asked = filter(Some("wmtp_artifacts=debug".as_ref())).unwrap();
        assert_eq!(asked.to_string(), "wmtp_artifacts=debug");
        for nothing in [None, Some("".as_ref())] {
            let warnings = filter(nothing).unwrap();
            assert_eq!(
                warnings.to_string().split(',').count(),
                WARNINGS.split(',').count()
            );
        }
    }
}
