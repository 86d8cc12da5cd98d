//! `train_retry_report.md`: how often a training was begun, and how each attempt ended.

use std::fmt::Write;

use crate::text::inert;
use crate::training::Attempt;

/// The report of one version; attempts of all its seeds.
pub(crate) fn render(version_id: &str, attempts: &[Attempt]) -> String {
    let mut text = format!(
        "# Training of {}\n\n| seed | attempt | state | exit code | message | resumed from step | fallbacks |\n|---|---:|---|---:|---|---:|---:|\n",
        inert(version_id)
    );
    for attempt in attempts {
        let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            number(attempt.seed),
            attempt.number,
            attempt.state,
            number(attempt.exit_code),
            inert(&attempt.message),
            number(attempt.resumed_from),
            attempt.fallbacks
        );
    }
    text
}
