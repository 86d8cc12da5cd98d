use std::collections::BTreeMap;

use wmtp_records::{
    Contamination, EarlierTouch, ErrorClass, EvalScore, HeadLoss, Metric, ProblemCount,
    ScoreSummary, Split, TestTouch,
};
use wmtp_stats::leaderboard::{LeaderboardRow, Verdict, files};

use super::*;

const SAMPLES: u32 = 20;

/// A run whose task `i` passes `passes[i]` of 20 samples.
pub(crate) fn run(
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
            checkpoint: Some(format!("checkpoint-{version}-{seed:?}")),
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
            latency_ms: Some(10.0),
        },
        problems,
        samples: BTreeMap::new(),
        dir: None,
    }
}

/// 40 tasks around a level out of 20, the same wobble for everybody.
pub(crate) fn tasks(level: u32) -> Vec<u32> {
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
fn a_metric_that_is_better_when_lower_turns_the_order_and_what_misses_it_stays_last() {
    let mut runs = board_of(&FULL, 1);
    for run in &mut runs {
        run.score.metrics[0].higher_is_better = false;
    }
    let board = build(&runs).unwrap();
    assert_eq!(ids(&board), ["base", "v001", "v004", "v005", "v002"]);
    runs[1].score.metrics[0].name = "exact_match".to_owned();
    let board = build(&runs).unwrap();
    assert_eq!(ids(&board), ["base", "v004", "v005", "v002", "v001"]);
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

/// A model from outside, which says how it is judged and nothing of how it samples.
fn outsider(level: u32) -> ScoredRun {
    let mut outside = run("big-model", "external", None, None, &tasks(level));
    outside.summary.shared_digest = "none".to_owned();
    outside.summary.checkpoint = None;
    outside.summary.heads.clear();
    outside.summary.protocol = BTreeMap::from([("num_samples".to_owned(), "20".to_owned())]);
    outside.score.latency_ms = None;
    outside
}

#[test]
fn a_model_from_outside_is_ranked_and_compared_and_is_nobodys_version() {
    let mut runs = board_of(&FULL, 3);
    for run in &mut runs {
        let more = [("num_samples", "20"), ("top_p", "0.9")];
        let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
        run.summary.protocol.extend(more);
    }
    let alone = build(&runs).unwrap();
    runs.push(outsider(16));
    let board = build(&runs).unwrap();
    assert_eq!(
        ids(&board),
        ["big-model", "v002", "v005", "v001", "v004", "base"]
    );
    // What the board says of its protocol is what the versions say, though its first run is another's.
    assert_eq!(board.protocol, alone.protocol);
    assert_eq!(board.resolution, alone.resolution);
    assert_eq!(board.algorithm_bests, alone.algorithm_bests);

    let outside = row(&board, "big-model");
    assert!(outside.is_external() && !outside.is_trained());
    assert_eq!((outside.rank, outside.latency_ms), (Some(1), None));
    assert_eq!(outside.runs[0].checkpoint, None);
    assert!(outside.against_parent.is_none() && outside.against_baseline.is_none());
    assert!(outside.against_controls.is_empty());
    // Others are tested against it as against any leader, and it as any other against them.
    let best = row(&board, "v002");
    let behind = best.against_leader.as_ref().unwrap();
    assert_eq!(
        (behind.other.as_str(), behind.verdict),
        ("big-model", Verdict::Worse)
    );
    assert!(behind.p_holm.is_some_and(|p| p < 0.05));
    assert_eq!(best.rank, Some(2));
    runs.pop();
    runs.push(outsider(4));
    let board = build(&runs).unwrap();
    let outside = row(&board, "big-model").against_leader.as_ref().unwrap();
    assert_eq!(
        (outside.other.as_str(), outside.verdict),
        ("v002", Verdict::Worse)
    );
    assert_eq!(
        verdict_on_parent(&board, "v002"),
        verdict_on_parent(&alone, "v002")
    );
    assert!(board.warnings[0].contains("not trained here, for comparison only: big-model"));
}

#[test]
fn a_model_from_outside_shares_data_tasks_and_how_it_is_judged() {
    type Change = fn(&mut ScoredRun);
    let changes: [(&str, Change); 3] = [
        ("data sets", |run| run.summary.data = "other".to_owned()),
        ("tasks", |run| {
            run.problems[0].problem_id = "other".to_owned();
        }),
        ("evaluation protocols", |run| {
            let many = ("num_samples".to_owned(), "40".to_owned());
            run.summary.protocol.extend([many]);
        }),
    ];
    for (what, change) in changes {
        let mut runs = board_of(&FULL, 1);
        for run in &mut runs {
            let same = ("num_samples".to_owned(), "20".to_owned());
            run.summary.protocol.extend([same]);
        }
        runs.push(outsider(4));
        assert!(build(&runs).is_ok());
        change(runs.last_mut().unwrap());
        let error = build(&runs).unwrap_err();
        assert!(
            matches!(&error, Error::NotShared { what: found, .. } if *found == what),
            "{error}"
        );
    }
}

#[test]
fn a_final_analysis_tells_of_a_model_from_outside_beside_the_best_version() {
    let end = |level: u32| {
        let mut runs = board_of(&FULL, 3);
        runs.push(outsider(level));
        let work = crate::Work {
            inputs: Vec::new(),
            held_out: Vec::new(),
            notes: BTreeMap::new(),
            metrics: Vec::new(),
        };
        let judged = judge(&runs).unwrap();
        let report = crate::report::Report::new(judged, BTreeMap::new(), &[], &work).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        report.write(scratch.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(scratch.path().join(name)).unwrap();
        // A time that nobody told is an empty cell.
        let csv = read(files::CSV);
        assert!(
            csv.contains("big-model,micropy-test,2026-11-21T12:00:00Z,,versions/big-model,"),
            "{csv}"
        );
        assert!(read(files::MODEL_CARD).starts_with("# Model card of v002\n"));
        let analysis = read(&files::analysis("big-model"));
        assert!(
            analysis.contains("big-model was not trained here; it solves "),
            "{analysis}"
        );
        read(files::FINAL_ANALYSIS)
    };
    let leads = end(16);
    assert!(
        leads.starts_with("# Final analysis\n\nv002 has the highest pass_at_1"),
        "{leads}"
    );
    assert!(leads.contains("of 4 trained versions"), "{leads}");
    assert!(leads.contains("## Models from outside\n"), "{leads}");
    assert!(leads.contains("- big-model: Rank 1: "), "{leads}");
    assert!(
        leads.contains(" The best version trained here, v002, against it: "),
        "{leads}"
    );
    let behind = end(4);
    assert!(behind.contains("- big-model: Rank "), "{behind}");
    assert!(behind.contains(" Against the leader v002: "), "{behind}");
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
    let csv = String::from_utf8(crate::frame::csv(&board, &[]).unwrap()).unwrap();
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
    let wanted = ["ce_head_1".to_owned()];
    let one = String::from_utf8(crate::frame::csv(&board, &wanted).unwrap()).unwrap();
    assert!(one.starts_with(
        "version_id,dataset_id,created_at,latency_ms,artifact_relpath,metric__ce_head_1\n"
    ));
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
    let judged = judge(&runs).unwrap();
    let better = "better; the interval excludes 0";
    let expected = format!(
        "# v002\n\n\
         v002 (verifiable, 3 seeds) solves 70.0% of 40 tasks with one try (95% interval over tasks and seeds 70.0 to 70.0). \
         Its one change: scorer verifiable. \
         Against its parent v001: +20.0 points (+20.0 to +20.0), {better}. \
         Against the control v005: +15.0 points (+15.0 to +15.0), {better}. \
         Against the control v004: +20.0 points (+20.0 to +20.0), {better}.\n\n\
         ## Metric deltas\n\n\
         | metric | v002 | v001 | delta | 95% interval |\n\
         |---|---:|---:|---:|---:|\n\
         | pass_at_1 | 0.7000 | 0.5000 | +0.2000 | +0.2000 to +0.2000 |\n\n\
         ## Where the difference sits\n\n\
         ### Task families\n\n\
         | family | tasks | v002 | v001 | points | 95% interval | p (Holm) |\n\
         |---|---:|---:|---:|---:|---:|---:|\n\
         | lists | 20 | 70.0% | 50.0% | +20.0 | +20.0 to +20.0 | below 0.001 |\n\
         | strings | 20 | 70.0% | 50.0% | +20.0 | +20.0 to +20.0 | below 0.001 |\n\n\
         ### Error classes\n\n\
         | outcome | tasks | v002 | v001 | points | 95% interval | p (Holm) |\n\
         |---|---:|---:|---:|---:|---:|---:|\n\
         | passed |  | 70.0% | 50.0% | +20.0 |  |  |\n\
         | syntax |  | 30.0% | 50.0% | \u{2212}20.0 |  |  |\n\n\
         ### Prediction heads\n\n\
         | loss, nats | v002 | v001 | delta | tokens right |\n\
         |---|---:|---:|---:|---:|\n\
         | head 1 | 0.5000 | 0.5000 | 0.0000 | 80.0% |\n\n\
         ## Evidence\n\n\
         **task-000** (lists): 70.0% of its programs pass, 50.0% with v001.\n\n\
         **task-001** (strings): 70.0% of its programs pass, 50.0% with v001.\n\n\
         ## Hypotheses\n\n\
         - Family lists: +20.0 points (+20.0 to +20.0; p below 0.001 after Holm): +10.0 points of the +20.0 points in all \
         come from these 20 of 40 tasks.\n\n\
         ## Candidates for next\n\n\
         None: there is no recipe to change.\n"
    );
    assert_eq!(analysis(&judged, "v002"), expected);
}

/// The analysis of a version of which nothing but its scores is known.
fn analysis(judged: &Judged, version: &str) -> String {
    let find = |id: &str| {
        let mut versions = judged.versions.iter();
        versions.find(|known| known.version_id == id)
    };
    let this = find(version).unwrap();
    let parent = this.parent.as_deref().and_then(find);
    let figures = crate::figures::Comparison::default()
        .figures(this, parent, &BTreeMap::new())
        .unwrap();
    crate::analysis::render(&judged.board, row(&judged.board, version), &figures)
}

#[test]
fn markup_in_a_recipe_stays_text_in_the_analysis() {
    let mut runs = board_of(&FULL, 1);
    runs[2].summary.change =
        Some("<script>alert(1)</script> | [x](javascript:1)\n# title".to_owned());
    let text = analysis(&judge(&runs).unwrap(), "v002");
    assert!(
        text.contains("\\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript:1) \\# title"),
        "{text}"
    );
}

#[test]
fn a_leaderboard_artifact_holds_tables_analyses_figures_and_the_loops_notes() {
    let judged = judge(&board_of(&FULL, 3)).unwrap();
    let work = crate::Work {
        inputs: Vec::new(),
        held_out: Vec::new(),
        notes: BTreeMap::from([(files::action("v001"), "# Action after v001\n".to_owned())]),
        metrics: vec!["pass_at_7".to_owned()],
    };
    let repeated = crate::training::TrainingFacts {
        attempts: vec![attempt(1, "failed"), attempt(2, "completed")],
        ..crate::training::TrainingFacts::default()
    };
    let training = BTreeMap::from([("v004".to_owned(), repeated)]);
    let mut held_out = run("v002", "verifiable", None, Some(1), &tasks(11));
    held_out.summary.data = "processed-data-1".to_owned();
    let report = crate::report::Report::new(judged, training, &[held_out], &work).unwrap();
    let warning = "the metric pass_at_7, which the rules ask for, is in no score";
    assert!(report.board.warnings.contains(&warning.to_owned()));
    let scratch = tempfile::tempdir().unwrap();
    report.write(scratch.path()).unwrap();
    let read = |file: String| std::fs::read_to_string(scratch.path().join(file)).unwrap();
    for version in ["base", "v001", "v002", "v004", "v005"] {
        let analysis = read(files::analysis(version));
        let headings: Vec<&str> = analysis
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        let expected = [
            "## Metric deltas",
            "## Where the difference sits",
            "## Evidence",
            "## Hypotheses",
            "## Candidates for next",
        ];
        assert_eq!(headings, expected, "{version}");
        let figures: crate::figures::Figures =
            serde_json::from_str(&read(files::figures(version))).unwrap();
        assert_eq!(figures.version_id, version);
    }
    assert!(read(files::retry_report("v004")).contains("| 42 | 2 | completed |"));
    assert!(!scratch.path().join(files::retry_report("v001")).exists());
    assert_eq!(read(files::action("v001")), "# Action after v001\n");
    let end = read(files::FINAL_ANALYSIS.to_owned());
    assert!(
        end.starts_with("# Final analysis\n\nv002 has the highest pass_at_1"),
        "{end}"
    );
    assert!(end.contains("that were used this once"), "{end}");
    assert!(read(files::MODEL_CARD.to_owned()).starts_with("# Model card of v002\n"));
    let asked: wmtp_stats::leaderboard::HeldOut =
        serde_json::from_str(&read(files::HELD_OUT.to_owned())).unwrap();
    assert_eq!((asked.version_id.as_str(), asked.num_tasks), ("v002", 40));
    let csv = read(files::CSV.to_owned());
    assert!(
        csv.starts_with("version_id,dataset_id,created_at,latency_ms,artifact_relpath\n"),
        "{csv}"
    );
}

#[test]
fn what_the_models_have_seen_of_the_tasks_is_told() {
    let mut runs = board_of(&[("v001", "baseline", 8)], 2);
    assert!(build(&runs).unwrap().warnings.is_empty());
    runs[1].summary.contaminated =
        BTreeMap::from([(Contamination::Statement, 1), (Contamination::Program, 2)]);
    let warnings = build(&runs).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    let told =
        "the training rows hold the statement of 3 of 40 tasks, or a program that solves them; ";
    assert!(warnings[0].starts_with(told), "{warnings:?}");
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

fn attempt(number: u64, state: &str) -> crate::training::Attempt {
    crate::training::Attempt {
        seed: Some(42),
        number,
        state: state.to_owned(),
        exit_code: None,
        message: String::new(),
        resumed_from: None,
        fallbacks: 0,
    }
}

#[test]
fn held_out_scores_are_of_one_ranked_version_on_the_test_split() {
    let refused = |runs: &[ScoredRun]| {
        let work = crate::Work {
            inputs: Vec::new(),
            held_out: Vec::new(),
            notes: BTreeMap::new(),
            metrics: Vec::new(),
        };
        let judged = judge(&board_of(&FULL, 1)).unwrap();
        match crate::report::Report::new(judged, BTreeMap::new(), runs, &work) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.render(),
        }
    };
    let of = |version: &str, seed| run(version, "verifiable", None, Some(seed), &tasks(11));
    assert!(refused(&[of("v001", 1), of("v002", 1)]).contains("several versions"));
    assert!(refused(&[of("v009", 1)]).contains("not ranked on this board"));
    let mut validation = of("v002", 1);
    validation.summary.split = Split::Validation;
    assert!(refused(&[validation]).contains("on the validation split"));
}

#[test]
fn the_best_of_each_algorithm_meets_the_best_baseline() {
    let board = build(&board_of(&FULL, 3)).unwrap();
    let bests: Vec<(&str, &str)> = board
        .algorithm_bests
        .iter()
        .map(|best| (best.this.as_str(), best.comparison.other.as_str()))
        .collect();
    assert_eq!(
        bests,
        [("v002", "v001"), ("v005", "v001"), ("v004", "v001")]
    );
    let json = serde_json::to_value(&board.algorithm_bests[0]).unwrap();
    assert_eq!(
        (&json["this"], &json["verdict"]),
        (&"v002".into(), &"better".into())
    );
}

#[test]
fn greedy_samples_of_one_seed_get_wilsons_interval() {
    let one = build(&board_of(&FULL, 1)).unwrap();
    let best = row(&one, "v002");
    let interval = best.greedy_interval.unwrap();
    let share = best.greedy_passed.unwrap() as f64 / 40.0;
    assert!(interval.low <= share && share <= interval.high);
    assert_eq!(
        row(&build(&board_of(&FULL, 3)).unwrap(), "v002").greedy_interval,
        None
    );
}

#[test]
fn one_sample_a_task_gets_wilsons_interval() {
    let mut one = run("v001", "baseline", None, Some(1), &tasks(8));
    for (index, problem) in one.problems.iter_mut().enumerate() {
        (problem.num_samples, problem.num_passed) = (1, u32::from(index < 13));
    }
    one.score.metrics[0].value = 13.0 / 40.0;
    let board = build(&[one]).unwrap();
    let expected = wmtp_stats::wilson(13, 40).unwrap();
    assert_eq!(row(&board, "v001").estimate.unwrap().interval, expected);
}

#[test]
fn a_family_of_few_tasks_is_a_hint_and_no_finding() {
    let with_rare = |version: &str, parent: Option<&str>, rare: u32, rest: u32| {
        let passes: Vec<u32> = (0..40).map(|i| if i < 5 { rare } else { rest }).collect();
        let mut run = run(version, "verifiable", parent, Some(1), &passes);
        for problem in &mut run.problems[..5] {
            problem.family = "rare".to_owned();
        }
        run
    };
    let runs = [
        with_rare("v001", None, 20, 10),
        with_rare("v002", Some("v001"), 0, 11),
    ];
    let text = analysis(&judge(&runs).unwrap(), "v002");
    assert!(
        text.contains("Groups of fewer than 6 tasks are not tested"),
        "{text}"
    );
    let row = "| rare | 5 | 0.0% | 100.0% | \u{2212}100.0 |  |  |";
    assert!(text.contains(row), "{text}");
    assert!(!text.contains("Family rare"), "{text}");
}
