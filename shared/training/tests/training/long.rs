//! A run of many steps takes no more memory than a short one.

use std::process::Command;

use candle_core::DType;

use crate::policy::trainer;
use crate::support::{counting, settings, store, tiny};
use wmtp_training::{PolicySettings, PolicyTrainer, Trainer};

/// Steps of the run.
const STEPS: u64 = 10_000;
/// Steps after which every buffer and the allocator's own stock exist.
const WARM: u64 = 5_000;
/// Steps before each of the two over which the most memory is taken: the allocator gives back and takes as it sees fit.
const WINDOW: u64 = 500;
/// Growth that is granted beyond the record that the run publishes: the allocator's fragments.
const SLACK_BYTES: usize = 1 << 20;

/// Resident memory of this process that no file stands behind: pages of the program itself come and go as the system
/// pleases.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kib: usize = kib.expect("a size").trim().parse().expect("a number");
    kib << 10
}

/// Set for the process that takes the steps.
const ALONE: &str = "WMTP_TEST_ALONE";

/// The steps are taken in a process of their own, whose allocator keeps what it has and takes it in small pages: pages
/// of 2 MiB, given back and taken again as it sees fit, hide what this test looks for.
#[test]
#[ignore = "a minute or more; `make test-full` runs it"]
fn ten_thousand_steps_take_no_more_memory_than_five_thousand() {
    if std::env::var_os(ALONE).is_some() {
        return take_the_steps();
    }
    let name = "long::ten_thousand_steps_take_no_more_memory_than_five_thousand";
    let status = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env(ALONE, "1")
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .env("MIMALLOC_ALLOW_THP", "0")
        .status();
    assert!(status.unwrap().success(), "see above");
}

#[expect(clippy::print_stderr, reason = "the figures are for people")]
fn take_the_steps() {
    let file = counting(40);
    let params = tiny(2);
    let store = store(&params, DType::F32);
    let settings = PolicySettings {
        epochs: STEPS as f64 / 4.0,
        lr: 1e-3,
        ..settings()
    };
    let mut trainer = trainer(&params, &store, &file, "rho1", settings);
    assert!(trainer.total_steps() >= STEPS);
    let record = |trainer: &PolicyTrainer<'_>| {
        trainer.metrics().num_bytes() + trainer.weight_lines().num_bytes()
    };
    let (mut warm, mut last, mut recorded) = (0, 0, 0);
    while trainer.step() < STEPS {
        trainer.advance().unwrap();
        if trainer.step().is_multiple_of(500) {
            let dir = tempfile::tempdir().unwrap();
            trainer.save(dir.path()).unwrap();
        }
        let step = trainer.step();
        if (WARM - WINDOW..=WARM).contains(&step) {
            warm = resident_bytes().max(warm);
        }
        if step >= STEPS - WINDOW {
            last = resident_bytes().max(last);
        }
        if step == WARM {
            recorded = record(&trainer);
        }
    }
    let grown = last.saturating_sub(warm);
    // Metrics and weight statistics are published whole, so they are held as text until then.
    let record = record(&trainer) - recorded;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let found = format!(
        "resident {:.1} MiB after {WARM} steps, {:.1} more after {STEPS}; the record explains {:.1}",
        mib(warm),
        mib(grown),
        mib(record)
    );
    assert!(grown <= record + SLACK_BYTES, "{found}");
    eprintln!("{found}");
}
