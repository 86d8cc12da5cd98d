//! Files of samples: streamed, resumed, sharded, merged.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use wmtp_grading::files::{FileSummary, Files, Shard, TestChoice};
use wmtp_grading::{Error, Grader, GraderConfig};
use wmtp_records::{AuditOutcome, ErrorClass};

const NUM_SAMPLES: usize = 61;

/// Three problems, and samples of which some pass, fail, are equal, or do not parse.
struct Case {
    folder: tempfile::TempDir,
    grader: Grader,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let problems: Vec<String> = (0..3)
            .map(|task| {
                format!(
                    "{{\"task_id\": \"t{task}\", \"test_list\": [\"assert f() % 3 == {task}\"]}}\n"
                )
            })
            .collect();
        fs::write(folder.path().join("problems.jsonl"), problems.concat()).unwrap();
        let samples: Vec<String> = (0..NUM_SAMPLES)
            .map(|sample| {
                let (task, value) = (sample % 3, sample / 2);
                let bracket = if sample % 10 == 9 { "(" } else { "" };
                format!(
                    "{{\"note\": [{sample}], \"task_id\": \"t{task}\", \
                     \"completion\": \"def f(): return {value}{bracket}\"}}\n"
                )
            })
            .collect();
        fs::write(folder.path().join("samples.jsonl"), samples.concat()).unwrap();
        let grader = Grader::start(GraderConfig {
            workers: NonZeroUsize::new(2).unwrap(),
            audit: true,
            ..GraderConfig::default()
        })
        .unwrap();
        Self { folder, grader }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Grades into `out`; stops after `limit` rows.
    fn grade(&self, out: &str, shard: &str, limit: usize) -> Result<FileSummary, Error> {
        let (problems, samples, out) = (
            self.path("problems.jsonl"),
            self.path("samples.jsonl"),
            self.path(out),
        );
        let files = files(&problems, &samples, &out);
        files.grade(&self.grader, shard.parse().unwrap(), |done, _| {
            if done >= limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    fn merge(&self, out: &str, shards: &[PathBuf]) -> Result<FileSummary, Error> {
        let (problems, samples, out) = (
            self.path("problems.jsonl"),
            self.path("samples.jsonl"),
            self.path(out),
        );
        files(&problems, &samples, &out).merge(shards)
    }
}

fn files<'a>(problems: &'a Path, samples: &'a Path, out: &'a Path) -> Files<'a> {
    Files {
        problems,
        tests: TestChoice::default(),
        samples,
        out,
    }
}

#[test]
fn eight_shards_together_are_the_single_run_byte_for_byte() {
    let case = Case::new();
    let single = case.grade("single.jsonl", "1/1", usize::MAX).unwrap();
    assert_eq!(case.text("single.jsonl").lines().count(), NUM_SAMPLES);
    let shards: Vec<PathBuf> = (1..=8)
        .map(|number| {
            let name = format!("shard{number}.jsonl");
            case.grade(&name, &format!("{number}/8"), usize::MAX)
                .unwrap();
            case.path(&name)
        })
        .collect();
    let merged = case.merge("merged.jsonl", &shards).unwrap();
    assert_eq!(case.text("merged.jsonl"), case.text("single.jsonl"));
    assert_eq!(merged, single);
    assert!(single.classes.len() >= 3, "{:?}", single.classes);
    let passed = single.classes[&ErrorClass::Passed];
    assert_eq!(single.audits, [(AuditOutcome::Confirmed, passed)].into());

    let mut swapped = shards.clone();
    swapped.swap(2, 5);
    let error = case.merge("wrong.jsonl", &swapped).unwrap_err().to_string();
    assert!(
        error.contains("shard6.jsonl, line 1: not the result of"),
        "{error}"
    );
    let error = case
        .merge("wrong.jsonl", &shards[..7])
        .unwrap_err()
        .to_string();
    assert!(error.contains("not the result of"), "{error}");
    assert!(!case.path("wrong.jsonl").exists());
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes() {
    let case = Case::new();
    let single = case.grade("single.jsonl", "1/1", usize::MAX).unwrap();
    let stopped = case.grade("out.jsonl", "1/1", 20).unwrap_err();
    assert!(
        matches!(stopped, Error::Stopped { num_done: 20, .. }),
        "{stopped}"
    );
    assert!(!case.path("out.jsonl").exists());
    // A kill may leave half a row.
    let part = case.path("out.jsonl.part");
    let mut file = fs::File::options().append(true).open(&part).unwrap();
    file.write_all(b"{\"task_id\": \"t").unwrap();
    drop(file);

    let mut seen = Vec::new();
    let (problems, samples, out) = (
        case.path("problems.jsonl"),
        case.path("samples.jsonl"),
        case.path("out.jsonl"),
    );
    let summary = files(&problems, &samples, &out)
        .grade(&case.grader, Shard::ALL, |done, total| {
            seen.push(done);
            assert_eq!(total, NUM_SAMPLES);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        seen,
        (21..=NUM_SAMPLES).collect::<Vec<_>>(),
        "20 are not graded again"
    );
    assert_eq!(case.text("out.jsonl"), case.text("single.jsonl"));
    assert_eq!(summary, single);
    assert!(!part.exists());
}

#[test]
fn results_of_other_samples_are_not_gone_on_with() {
    let case = Case::new();
    case.grade("out.jsonl", "1/1", 5).unwrap_err();
    let other = case.text("samples.jsonl").replace("def f", "def  f");
    fs::write(case.path("samples.jsonl"), other).unwrap();
    let error = case.grade("out.jsonl", "1/1", 9).unwrap_err().to_string();
    assert!(
        error.contains("out.jsonl.part, line 1: not the result of"),
        "{error}"
    );
}

#[test]
fn two_runs_do_not_write_the_same_results() {
    let case = Case::new();
    let (problems, samples, out) = (
        case.path("problems.jsonl"),
        case.path("samples.jsonl"),
        case.path("out.jsonl"),
    );
    let mut inner = None;
    files(&problems, &samples, &out)
        .grade(&case.grader, Shard::ALL, |_, _| {
            inner.get_or_insert_with(|| case.grade("out.jsonl", "1/1", usize::MAX));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(matches!(inner, Some(Err(Error::Busy { .. }))), "{inner:?}");
}

#[test]
fn compressed_samples_and_a_bad_row_at_the_end() {
    let case = Case::new();
    case.grade("plain.jsonl", "1/1", usize::MAX).unwrap();
    let packed = case.path("samples.jsonl.gz");
    let mut encoder = GzEncoder::new(fs::File::create(&packed).unwrap(), Compression::fast());
    encoder
        .write_all(case.text("samples.jsonl").as_bytes())
        .unwrap();
    encoder.finish().unwrap();
    let (problems, out) = (case.path("problems.jsonl"), case.path("packed.jsonl"));
    let go_on = |_, _| ControlFlow::Continue(());
    files(&problems, &packed, &out)
        .grade(&case.grader, Shard::ALL, go_on)
        .unwrap();
    assert_eq!(case.text("packed.jsonl"), case.text("plain.jsonl"));

    let bad = case.text("samples.jsonl") + "{\"task_id\": \"t9\", \"completion\": \"\"}\n";
    fs::write(case.path("samples.jsonl"), bad).unwrap();
    let mut num_graded = 0;
    let (samples, out) = (case.path("samples.jsonl"), case.path("bad.jsonl"));
    let error = files(&problems, &samples, &out)
        .grade(&case.grader, Shard::ALL, |_, _| {
            num_graded += 1;
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("line 62: no problem has task_id t9"),
        "{error}"
    );
    assert_eq!(num_graded, 0, "found before any program runs");
}
