//! How long texts took.

use serde_json::json;
use wmtp_job_kit::Run;
use wmtp_records::{CompletionTiming, Latency, Percentiles};

use crate::generate::TEXTS_AT_ONCE;

/// The percentiles over all samples.
pub(crate) fn summary(timings: &[CompletionTiming]) -> Latency {
    Latency {
        num_samples: timings.len(),
        prefill_ms: Percentiles::of(timings.iter().map(|timing| timing.prefill_ms)),
        token_ms: Percentiles::of(timings.iter().filter_map(|timing| timing.token_ms)),
        sample_ms: Percentiles::of(timings.iter().map(|timing| timing.sample_ms)),
        texts_at_once: TEXTS_AT_ONCE,
        threads: rayon::current_num_threads(),
        dtype: "f32".to_owned(),
    }
}

/// Tells people and programs.
pub(crate) fn tell(latency: &Latency, run: &Run) {
    run.event("latency", &json!(latency));
    let line = |name: &str, percentiles: Percentiles| {
        let Percentiles { p50, p90, p99 } = percentiles;
        format!("{name} {p50:.1} / {p90:.1} / {p99:.1}")
    };
    run.log(format!(
        "milliseconds (half / 9 in 10 / 99 in 100): {}, {}, {}",
        line("prompt", latency.prefill_ms),
        line("token", latency.token_ms),
        line("sample", latency.sample_ms),
    ));
}
