//! One event of a run, as the store holds it.

use jiff::Timestamp;
use serde_json::Value;

use crate::exact;

/// Events that MLflow has a place for; all others stay in the store.
pub(crate) const TOLD: [&str; 5] = ["started", "metrics", "completed", "failed", "preempted"];

/// A value at a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) at_ms: i64,
    pub(crate) step: i64,
}

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) kind: String,
    pub(crate) at_ms: i64,
    pub(crate) attempt: u64,
    pub(crate) data: Value,
}

impl Line {
    fn of(event: &Value) -> Option<Self> {
        let kind = event["type"].as_str().filter(|kind| TOLD.contains(kind))?;
        let at: Timestamp = event["ts"].as_str()?.parse().ok()?;
        Some(Self {
            kind: kind.to_owned(),
            at_ms: at.as_millisecond(),
            attempt: event["attempt"].as_u64().unwrap_or(0),
            data: event["data"].clone(),
        })
    }

    /// The event of a line of the log; none where it is no event that is told.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::of(&exact::parse(text)?)
    }

    /// The points of a `metrics` event, and the names of those that were not finite.
    pub(crate) fn points(&self) -> (Vec<Point>, Vec<String>) {
        let step = self.data["step"].as_i64().unwrap_or(0);
        let values = self.data["values"]
            .as_object()
            .filter(|_| self.kind == "metrics");
        let (mut points, mut non_finite) = (Vec::new(), Vec::new());
        for (name, value) in values.into_iter().flatten() {
            let name = crate::names::metric(name);
            match value.as_f64() {
                Some(value) => points.push(Point {
                    name,
                    value,
                    at_ms: self.at_ms,
                    step,
                }),
                None => non_finite.push(name),
            }
        }
        (points, non_finite)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn points_keep_the_time_of_their_event() {
        let text = r#"{"type":"metrics","ts":"2026-11-21T10:00:00.1239Z","attempt":2,"seq":7,
            "data":{"step":3,"values":{"train_loss":0.5,"mfu":null}}}"#;
        let line = Line::parse(text).unwrap();
        let (points, non_finite) = line.points();
        let loss = Point {
            name: "train/loss".to_owned(),
            value: 0.5,
            at_ms: 1_795_255_200_123,
            step: 3,
        };
        assert_eq!(points, [loss]);
        assert_eq!(non_finite, ["perf/mfu"]);
        assert_eq!(line.attempt, 2);
    }

    #[test]
    fn what_is_no_event_for_mlflow_is_passed_over() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"type":"progress","ts":"2026-11-21T10:00:00Z"}"#,
            r#"{"type":"metrics","ts":"soon"}"#,
        ] {
            assert!(Line::parse(text).is_none(), "{text}");
        }
        let event = json!({"type": "completed", "ts": "2026-11-21T10:00:00Z", "data": {}});
        assert!(Line::of(&event).unwrap().points().0.is_empty());
    }
}
