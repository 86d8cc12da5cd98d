//! What libraries have to say goes to stderr, without secrets: warnings, or what `WMTP_LOG` asks for.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::secrets::redact;

/// Filter in the syntax of tracing, such as `wmtp_artifacts=debug`.
const FILTER_VARIABLE: &str = "WMTP_LOG";

/// Installs the subscriber of this process.
pub(crate) fn install() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE)
        .unwrap_or_else(|_| EnvFilter::new("warn,aws_config=error,aws_smithy_runtime=error"));
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
