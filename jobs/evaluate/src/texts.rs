//! One generated text with its time, and all of them by problem and sample.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wmtp_decoding::Timing;
use wmtp_records::{Completion, CompletionTiming};

/// A finished text as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Text {
    #[serde(flatten)]
    completion: Completion,
    prefill_ms: f64,
    token_ms: Option<f64>,
    sample_ms: f64,
}

/// Which text: a problem, and the number of its sample.
pub(crate) type TextKey = (String, Option<u32>);

/// Finished texts; what is there need not be generated.
pub(crate) type Texts = BTreeMap<TextKey, Text>;

impl Text {
    pub(crate) fn new(completion: Completion, timing: Timing, per_token: Option<Duration>) -> Self {
        let millis = |time: Duration| 1000.0 * time.as_secs_f64();
        Self {
            completion,
            prefill_ms: millis(timing.prefill),
            token_ms: per_token.map(millis),
            sample_ms: millis(timing.whole),
        }
    }

    pub(crate) fn num_tokens(&self) -> u64 {
        self.completion.num_tokens.map_or(0, u64::from)
    }

    pub(crate) fn key(&self) -> TextKey {
        (self.completion.problem_id.clone(), self.completion.sample)
    }

    pub(crate) fn from_parts(completion: Completion, timing: CompletionTiming) -> Self {
        Self {
            completion,
            prefill_ms: timing.prefill_ms,
            token_ms: timing.token_ms,
            sample_ms: timing.sample_ms,
        }
    }

    pub(crate) fn into_parts(self) -> (Completion, CompletionTiming) {
        let timing = CompletionTiming {
            problem_id: self.completion.problem_id.clone(),
            sample: self.completion.sample,
            prefill_ms: self.prefill_ms,
            token_ms: self.token_ms,
            sample_ms: self.sample_ms,
        };
        (self.completion, timing)
    }
}
