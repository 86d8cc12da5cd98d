use std::collections::BTreeMap;

use wmtp_records::{
    EarlierTouch, ErrorClass, EvalScore, HeadLoss, Metric, ProblemCount, ScoreSummary, Split,
    TestTouch,
};
use wmtp_stats::leaderboard::{LeaderboardRow, Verdict};

use super::*;

const SAMPLES: u32 = 20;

/// A run whose task `i` passes `passes[i]` of 20 samples.
fn run(
    version: &str,
    algo: &str,
    parent: Option<&str>,
    seed: Option<u64>,
    passes: &[u32],
) -> ScoredRun {
    let problems: Vec<ProblemCount> = passes
        .iter()
        .enumerate()
        .map(|(index, &num_passed)| ProblemCount {
            problem_id: format!("task-{index:03}"),
            family: if index.is_multiple_of(2) {
                "lists"
            } else {
                "strings"
            }
            .to_owned(),
            num_samples: SAMPLES,
            num_passed,
            greedy_passed: Some(num_passed > 10),
            contamination: None,
        })
        .collect();
    let pass_at_1 = passes.iter().sum::<u32>() as f64 / (SAMPLES as usize * passes.len()) as f64;
    ScoredRun {
        id: format!("scores-{version}-{seed:?}"),
        summary: ScoreSummary {
            version_id: version.to_owned(),
            algo: algo.to_owned(),
            parent: parent.map(str::to_owned),
            change: parent.map(|_| format!("scorer {algo}")),
            seed,
            dataset: "micropy".to_owned(),
            split: Split::Test,
            shared_digest: "d1".to_owned(),
            checkpoint: format!("checkpoint-{version}-{seed:?}"),
            data: "processed-data-1".to_owned(),
            protocol: BTreeMap::from([("temperature".to_owned(), "0.2".to_owned())]),
            heads: vec![HeadLoss {
                horizon: 1,
                ce_nats: 0.5,
                accuracy: 0.8,
                num_targets: 100,
            }],
            error_shares: BTreeMap::from([
                (ErrorClass::Passed, pass_at_1),
                (ErrorClass::Syntax, 1.0 - pass_at_1),
            ]),
            pass_at_1_spread: None,
            audits: BTreeMap::new(),
            doubtful: Vec::new(),
            sandbox: BTreeMap::new(),
            reference_loss: None,
            trained_on: None,
            contaminated: BTreeMap::new(),
            test_touch: None,
        },
        score: EvalScore {
            dataset_id: "micropy-test".to_owned(),
            created_at: format!("2026-11-21T12:0{}:00Z", seed.unwrap_or(0) % 10),
            num_samples: u64::from(SAMPLES) * passes.len() as u64,
            metrics: vec![Metric {
                name: "pass_at_1".to_owned(),
                value: pass_at_1,
                higher_is_better: true,
            }],
            latency_ms: 10.0,
        },
        problems,
    }
}

/// 40 tasks around a level out of 20, the same wobble for everybody.
fn tasks(level: u32) -> Vec<u32> {
    (0..40)
        .map(|i| (level + (i * 7) % 5).min(SAMPLES))
        .collect()
}

/// Versions of one board: id, algorithm, level; three seeds each.
fn board_of(versions: &[(&str, &str, u32)], seeds: u64) -> Vec<ScoredRun> {
    let mut runs = vec![run("base", "base", None, None, &tasks(0))];
    for (version, algo, level) in versions {
        let parent = (*algo != "baseline").then_some("v001");
        for seed in 1..=seeds {
            runs.push(run(version, algo, parent, Some(seed), &tasks(*level)));
        }
    }
    runs
}

fn row<'a>(board: &'a Leaderboard, version: &str) -> &'a LeaderboardRow {
    board
        .rows
        .iter()
        .find(|row| row.version_id == version)
        .unwrap()
}

fn ids(board: &Leaderboard) -> Vec<&str> {
    board
        .rows
        .iter()
        .map(|row| row.version_id.as_str())
        .collect()
}

fn verdict_on_parent(board: &Leaderboard, version: &str) -> (Verdict, String) {
    let comparison = row(board, version).against_parent.as_ref().unwrap();
    (comparison.verdict, comparison.reason.clone())
}

const FULL: [(&str, &str, u32); 4] = [
    ("v001", "baseline", 8),
    ("v002", "verifiable", 12),
    ("v004", "random_matched", 8),
    ("v005", "shuffled", 9),
];

#[test]
fn rows_stand_best_first_and_seeds_are_pooled() {
    let board = build(&board_of(&FULL, 3)).unwrap();
    assert_eq!(ids(&board), ["v002", "v005", "v001", "v004", "base"]);
    let best = row(&board, "v002");
    assert_eq!(best.seeds, [1, 2, 3]);
    assert_eq!(best.num_samples, 3 * 40 * 20);
    assert_eq!(best.created_at, "2026-11-21T12:03:00Z");
    let estimate = best.estimate.unwrap();
    assert!((estimate.mean - best.metric("pass_at_1").unwrap()).abs() < 1e-12);
    assert_eq!(board.num_tasks, 40);
    assert!(board.warnings.is_empty(), "{:?}", board.warnings);
}

#[test]
fn the_order_of_the_inputs_does_not_matter() {
    let runs = board_of(&FULL, 3);
    let mut turned = runs.clone();
    turned.reverse();
    turned.push(runs[0].clone());
    assert_eq!(build(&runs).unwrap(), build(&turned).unwrap());
}

#[test]
fn three_seeds_an_interval_and_both_controls_make_a_claim() {
    let board = build(&board_of(&FULL, 3)).unwrap();
    assert_eq!(verdict_on_parent(&board, "v002").0, Verdict::Better);
    assert_eq!(row(&board, "v002").against_controls.len(), 2);
}

#[test]
fn two_seeds_claim_nothing() {
    let board = build(&board_of(&FULL, 2)).unwrap();
    let (verdict, reason) = verdict_on_parent(&board, "v002");
    assert_eq!(verdict, Verdict::NoDifference);
    assert!(reason.contains("3 seeds"), "{reason}");
    let base = row(&board, "base");
    assert_eq!(
        base.against_leader.as_ref().unwrap().verdict,
        Verdict::Worse
    );
}

#[test]
fn a_version_that_a_control_matches_claims_nothing() {
    let mut versions = FULL;
    versions[3].2 = 12;
    let board = build(&board_of(&versions, 3)).unwrap();
    let (verdict, reason) = verdict_on_parent(&board, "v002");
    assert_eq!(verdict, Verdict::NoDifference);
    assert!(reason.contains("v005"), "{reason}");
    assert_eq!(row(&board, "v002").rank, row(&board, "v005").rank);
}

#[test]
fn a_missing_control_is_warned_about_and_stops_the_claim() {
    let board = build(&board_of(&FULL[..3], 3)).unwrap();
    assert!(
        board.warnings[0].contains("shuffled"),
        "{:?}",
        board.warnings
    );
    assert!(verdict_on_parent(&board, "v002").1.contains("shuffled"));
}

#[test]
fn differences_within_noise_share_the_rank() {
    let mut wobble = tasks(8);
    wobble[0] += 3;
    wobble[1] -= 3;
    wobble[2] += 2;
    let runs = [
        run("v001", "baseline", None, Some(1), &tasks(8)),
        run("v002", "verifiable", Some("v001"), Some(1), &wobble),
        run("v003", "rho1", Some("v001"), Some(1), &tasks(1)),
    ];
    let board = build(&runs).unwrap();
    let ranks: Vec<_> = board.rows.iter().map(|row| row.rank.unwrap()).collect();
    assert_eq!(
        (ids(&board), ranks),
        (vec!["v002", "v001", "v003"], vec![1, 1, 3])
    );
}

#[test]
fn a_missing_primary_metric_stands_last_without_a_rank() {
    let mut runs = board_of(&FULL, 1);
    runs[2].score.metrics[0].name = "exact_match".to_owned();
    let board = build(&runs).unwrap();
    assert_eq!(ids(&board).last(), Some(&"v002"));
    assert_eq!(row(&board, "v002").rank, None);
    assert!(
        board
            .warnings
            .iter()
            .any(|w| w.contains("v002 has no pass_at_1")),
        "{:?}",
        board.warnings
    );
}

#[test]
fn a_second_metric_of_one_name_gets_a_suffix() {
    let mut runs = board_of(&FULL, 1);
    let again = Metric {
        value: 0.25,
        ..runs[1].score.metrics[0].clone()
    };
    runs[1].score.metrics.push(again);
    let board = build(&runs).unwrap();
    assert_eq!(row(&board, "v001").metric("pass_at_1__2"), Some(0.25));
}

#[test]
fn runs_that_differ_in_what_all_share_are_refused() {
    type Change = fn(&mut ScoredRun);
    let changes: [(&str, Change); 5] = [
        ("shared recipe parts", |run| {
            run.summary.shared_digest = "d2".to_owned();
        }),
        ("data sets", |run| {
            run.summary.data = "processed-data-2".to_owned();
        }),
        ("evaluation protocols", |run| {
            run.summary
                .protocol
                .insert("top_p".to_owned(), "1".to_owned());
        }),
        ("splits", |run| run.summary.split = Split::Validation),
        ("tasks", |run| {
            run.problems[0].problem_id = "other".to_owned();
        }),
    ];
    for (what, change) in changes {
        let mut runs = board_of(&FULL, 1);
        change(&mut runs[2]);
        let error = build(&runs).unwrap_err();
        assert!(
            matches!(&error, Error::NotShared { what: found, .. } if *found == what),
            "{error}"
        );
        assert_eq!(JobError::from(error).exit().code(), 77);
    }
}

#[test]
fn the_untrained_base_need_not_share_the_recipe_but_must_share_the_data() {
    let mut runs = board_of(&FULL, 1);
    runs[0].summary.shared_digest = "other".to_owned();
    assert!(build(&runs).is_ok());
    runs[0].summary.data = "other".to_owned();
    assert!(build(&runs).is_err());
}

#[test]
fn contradictions_are_bad_input() {
    let spoiled = |spoil: fn(&mut ScoredRun)| {
        let mut runs = board_of(&FULL, 1);
        spoil(&mut runs[1]);
        let error = build(&runs).unwrap_err();
        let text = error.to_string();
        assert_eq!(JobError::from(error).exit().code(), 65, "{text}");
        text
    };
    assert!(spoiled(|run| run.score.metrics[0].value += 0.1).contains("its tasks give"));
    assert!(spoiled(|run| run.summary.version_id = "../x".to_owned()).contains("plain name"));
    assert!(spoiled(|run| run.problems[0].num_samples = 0).contains("task-000"));
    let mut twice = board_of(&FULL, 1);
    let mut other = twice[1].clone();
    other.id = "scores-other".to_owned();
    twice.push(other);
    assert!(matches!(build(&twice), Err(Error::Duplicate { .. })));
    assert_eq!(build(&[]), Err(Error::Empty));
}

#[test]
fn greedy_outcomes_are_compared_exactly_with_one_seed_only() {
    let one = build(&board_of(&FULL, 1)).unwrap();
    let greedy = row(&one, "v002")
        .against_parent
        .as_ref()
        .unwrap()
        .greedy
        .unwrap();
    assert!(greedy.only_this > 0 && greedy.only_other == 0);
    let three = build(&board_of(&FULL, 3)).unwrap();
    assert_eq!(
        row(&three, "v002").against_parent.as_ref().unwrap().greedy,
        None
    );
}

#[test]
fn tables_hold_the_founding_columns_and_empty_cells() {
    let mut runs = board_of(&FULL, 1);
    runs[1].score.metrics.push(Metric {
        name: "ce_head_1".to_owned(),
        value: 0.5,
        higher_is_better: false,
    });
    let board = build(&runs).unwrap();
    let csv = String::from_utf8(crate::frame::csv(&board).unwrap()).unwrap();
    let mut lines = csv.lines();
    let header = "version_id,dataset_id,created_at,latency_ms,artifact_relpath,metric__pass_at_1,metric__ce_head_1";
    assert_eq!(lines.next(), Some(header));
    let first = lines.next().unwrap();
    assert!(
        first.starts_with("v002,micropy-test,2026-11-21T12:01:00Z,10.0,versions/v002,0.7,"),
        "{first}"
    );
    assert!(
        first.ends_with(','),
        "a missing metric is an empty cell: {first}"
    );
    assert_eq!(lines.count(), 4);
    let parquet = crate::frame::parquet(&board).unwrap();
    assert_eq!(
        (&parquet[..4], &parquet[parquet.len() - 4..]),
        (&b"PAR1"[..], &b"PAR1"[..])
    );
    assert_eq!(parquet, crate::frame::parquet(&board).unwrap());
}

#[test]
fn an_analysis_says_what_the_numbers_say() {
    // Every task at the same level: all resamples agree, so that no interval depends on the draws.
    let level = |passes: u32| vec![passes; 40];
    let mut runs = vec![run("base", "base", None, None, &level(2))];
    for seed in [Some(1), Some(2), Some(3)] {
        runs.extend([
            run("v001", "baseline", None, seed, &level(10)),
            run("v002", "verifiable", Some("v001"), seed, &level(14)),
            run("v004", "random_matched", Some("v001"), seed, &level(10)),
            run("v005", "shuffled", Some("v001"), seed, &level(11)),
        ]);
    }
    let board = build(&runs).unwrap();
    let better = "better; the interval excludes 0";
    let expected = format!(
        "# v002\n\n\
         ## Summary\n\n\
         v002 (verifiable, 3 seeds) solves 70.0% of 40 tasks with one try (95 % interval over tasks 70.0 to 70.0). \
         Its one change: scorer verifiable. \
         Against its parent v001: +20.0 points (+20.0 to +20.0), {better}. \
         Against the control v005: +15.0 points (+15.0 to +15.0), {better}. \
         Against the control v004: +20.0 points (+20.0 to +20.0), {better}.\n\n\
         ## Metric deltas\n\n\
         | metric | v002 | v001 | delta |\n\
         |---|---:|---:|---:|\n\
         | pass_at_1 | 0.7000 | 0.5000 | +0.2000 |\n\n\
         ## Where the difference sits\n\n\
         Families in order of how much they moved; few tasks each, so read single rows as hints.\n\n\
         | family | tasks | v002 | v001 | points |\n\
         |---|---:|---:|---:|---:|\n\
         | lists | 20 | 70.0% | 50.0% | +20.0 |\n\
         | strings | 20 | 70.0% | 50.0% | +20.0 |\n\n\
         ## How programs fail\n\n\
         | outcome | v002 | v001 | points |\n\
         |---|---:|---:|---:|\n\
         | passed | 70.0% | 50.0% | +20.0 |\n\
         | syntax | 30.0% | 50.0% | \u{2212}20.0 |\n"
    );
    assert_eq!(
        crate::analysis::render(&board, row(&board, "v002")),
        expected
    );
}

#[test]
fn markup_in_a_recipe_stays_text_in_the_analysis() {
    let mut runs = board_of(&FULL, 1);
    runs[2].summary.change =
        Some("<script>alert(1)</script> | [x](javascript:1)\n# title".to_owned());
    let board = build(&runs).unwrap();
    let text = crate::analysis::render(&board, row(&board, "v002"));
    assert!(
        text.contains("\\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript:1) \\# title"),
        "{text}"
    );
}

#[test]
fn the_report_folder_holds_tables_analyses_and_the_best_versions_files() {
    let board = build(&board_of(&FULL, 3)).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (artifact, scores) = (
        scratch.path().join("leaderboard"),
        scratch.path().join("scores"),
    );
    std::fs::create_dir_all(&artifact).unwrap();
    crate::write_artifact(&artifact, &board).unwrap();
    let sample = scores.join("infer_samples/0001/output.txt");
    std::fs::create_dir_all(sample.parent().unwrap()).unwrap();
    std::fs::write(&sample, "print(1)\n").unwrap();
    let target = crate::report::write(
        &scratch.path().join("report"),
        &board,
        &artifact,
        Some(&scores),
    )
    .unwrap();
    assert!(target.ends_with("report/2026-11-21_12-03"));
    for file in [
        "leaderboard.csv",
        "versions/base/result-analysis.md",
        "versions/v002/result-analysis.md",
        "versions/v002/eval_score.json",
        "versions/v002/infer_samples/0001/output.txt",
    ] {
        assert!(target.join(file).is_file(), "{file}");
    }
    assert_eq!(
        crate::report::best_scores_id(&board),
        Some("scores-v002-Some(1)")
    );
}

#[test]
fn a_second_look_at_the_test_set_is_told_and_a_first_is_not() {
    let mut runs = board_of(&[("v001", "baseline", 8)], 2);
    let touch = |number, earlier: &[&str]| {
        let earlier = earlier.iter().map(|run| EarlierTouch {
            run_id: (*run).to_owned(),
            begun_at: "2026-11-21T12:00:00Z".to_owned(),
            same_protocol: true,
        });
        Some(TestTouch {
            number,
            earlier: earlier.collect(),
        })
    };
    for run in &mut runs {
        run.summary.test_touch = touch(1, &[]);
    }
    assert!(build(&runs).unwrap().warnings.is_empty());
    runs[2].summary.test_touch = touch(2, &["evaluate-0123"]);
    let warnings = build(&runs).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("v001 seed 2 is no first look at the test set: touch 2"),
        "{warnings:?}"
    );
    assert!(warnings[0].contains("run evaluate-0123 on 2026-11-21"));
}
