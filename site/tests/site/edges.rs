//! Input that is unusual and right: shown, not hidden.

use build_site::input::{LogLine, SampleFile};
use build_site::pages;
use wmtp_records::Metric;
use wmtp_stats::leaderboard::Verdict;

use crate::check::faults;
use crate::fixture::{self, World};
use crate::rendered;

/// A typical world after a change to its input.
fn changed(change: impl FnOnce(&mut build_site::SiteInput)) -> build_site::Site {
    let root = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    change(&mut input);
    whole(input)
}

/// The site of an input whose versions were changed: its table says what they say, and its pages have no fault.
fn whole(mut input: build_site::SiteInput) -> build_site::Site {
    input.board.rows = input
        .versions
        .iter()
        .map(|version| version.row.clone())
        .collect();
    let site = rendered(&input);
    assert_eq!(faults(&site), Vec::<String>::new());
    site
}

fn has(site: &build_site::Site, path: &str, texts: &[&str]) {
    let page = site
        .text(path)
        .unwrap_or_else(|| panic!("there is no {path}"));
    for text in texts {
        assert!(page.contains(text), "{path} lacks {text:?}");
    }
}

#[test]
fn a_version_without_the_primary_metric_is_last_with_a_dash_and_a_warning() {
    let site = changed(|input| {
        let mut lacking = input.versions.remove(2);
        lacking.row.estimate = None;
        lacking.row.rank = None;
        lacking.row.against_parent = None;
        lacking
            .row
            .metrics
            .retain(|metric| metric.name != "pass_at_1");
        input
            .board
            .warnings
            .push(format!("{} has no pass_at_1", lacking.row.version_id));
        input.versions.push(lacking);
    });
    let page = site.text("index.html").unwrap();
    let last = page.rfind("<tr class=\"g-").unwrap();
    assert!(
        page[last..].contains("<td class=\"c-rank\">–</td>"),
        "{}",
        &page[last..last + 300]
    );
    has(
        &site,
        "index.html",
        &["class=\"warnings\"", "has no pass_at_1"],
    );
    has(&site, "final.html", &["has no pass_at_1"]);
}

#[test]
fn files_of_samples_that_no_page_shows_are_offered_and_run_nowhere() {
    let site = changed(|input| {
        let file = |name: &str, bytes: Option<&[u8]>| SampleFile {
            sample: "0001".to_owned(),
            name: name.to_owned(),
            size: bytes.map_or(9 << 20, |bytes| bytes.len() as u64),
            bytes: bytes.map(<[u8]>::to_vec),
        };
        let version = &mut input.versions[0];
        version.runs[0].files = vec![
            file("output.html", Some(b"<script>alert(1)</script>")),
            file("output.png", Some(b"png")),
            file("output.wav", None),
        ];
        version.row.version_id = "v002".to_owned();
    });
    for (page, top) in [
        ("v/v002/samples.html", "../../"),
        ("ko/v/v002/samples.html", "../../../"),
    ] {
        let link = |path: &str, name: &str| {
            format!("<a href=\"{top}v/v002/files/0001/{path}\" download=\"{name}\">{name}</a>")
        };
        let links = [
            link("output.html.bin", "output.html"),
            link("output.png", "output.png"),
        ];
        has(&site, page, &links.each_ref().map(String::as_str));
        assert!(!site.text(page).unwrap().contains("files/0001/output.wav"));
    }
    assert_eq!(
        site.text("v/v002/files/0001/output.html.bin"),
        Some("<script>alert(1)</script>")
    );
    assert!(!site.files().any(|(path, _)| path.ends_with("output.html")));
    has(
        &site,
        "v/v002/samples.html",
        &["output.wav, too large for a site"],
    );
}

#[test]
fn metrics_of_one_name_and_metrics_that_are_better_when_lower_are_told_apart() {
    let site = changed(|input| {
        let metric = |name: &str, value, higher_is_better| Metric {
            name: name.to_owned(),
            value,
            higher_is_better,
        };
        for version in &mut input.versions {
            version.row.metrics.extend([
                metric("bleu", 0.5, true),
                metric("bleu__2", 0.6, true),
                metric("ce", 1.25, false),
            ]);
        }
    });
    has(
        &site,
        "v/v002/index.html",
        &["<dt>bleu ↑</dt>", "<dt>bleu__2 ↑</dt>", "<dt>ce ↓</dt>"],
    );
}

#[test]
fn a_board_whose_metric_is_better_when_lower_says_so() {
    let site = changed(|input| input.board.higher_is_better = false);
    has(&site, "index.html", &["pass@1 ↓</th>"]);
}

/// A typical world with a model from outside of some level, as it lies on the disk: without a checkpoint, tokens and times.
pub(crate) fn with_outsider(level: f64) -> build_site::Site {
    let root = tempfile::tempdir().unwrap();
    let mut world = World::typical();
    world.versions.push(fixture::Version {
        id: "big-model",
        algo: "external",
        parent: None,
        change: None,
        level,
        claim: (Verdict::Worse, "the interval excludes 0"),
    });
    let mut input = world.input(root.path());
    for row in input.versions.iter_mut().map(|version| &mut version.row) {
        let leads = row.is_external() && level > 0.6;
        row.rank = Some(if leads || level < 0.6 && row.is_trained() {
            1
        } else {
            2
        });
    }
    let site = whole(input);
    // For looking at the pages, below the folder of the test that shows all others.
    if let Ok(dir) = std::env::var("WMTP_SITE_PREVIEW") {
        site.write(&std::path::Path::new(&dir).join(format!("outsider-{level}")))
            .unwrap();
    }
    site
}

#[test]
fn a_model_from_outside_is_a_marked_row_without_lineage_training_or_what_nobody_told() {
    let site = with_outsider(0.4);
    let page = "v/big-model/index.html";
    has(
        &site,
        page,
        &[
            "comes from outside and has no lineage here",
            "a model that was not trained here, for comparison",
            "against the leader",
        ],
    );
    let text = site.text(page).unwrap();
    for unknown in [
        "time per generated sample",
        "tokens generated",
        "<td>model</td>",
        "training, machine time",
        "checkpoint-",
    ] {
        assert!(!text.contains(unknown), "{unknown}");
    }
    has(
        &site,
        "index.html",
        &[
            "a model from outside",
            "class=\"f-external\"",
            "<tr class=\"g-external",
        ],
    );
    // Its page of comparison with the leader is there, its tasks count, and it is no trained version.
    assert!(site.text("compare/v002-big-model.html").is_some());
    has(&site, "t/index.html", &["by every trained version"]);
    has(&site, "ko/index.html", &["외부 모델"]);
}

#[test]
fn a_model_from_outside_that_leads_is_told_beside_the_best_version_trained_here() {
    let site = with_outsider(0.9);
    let finding = ", a model from outside, leads with ";
    has(
        &site,
        "index.html",
        &[finding, "; v002, the best version trained here, solves "],
    );
    let text = site.text("index.html").unwrap();
    assert!(text.contains(" points less."), "{finding}");
    // The best so far is of versions, and their lineage ends with the best of them.
    has(&site, "lineage.html", &["big-model"]);
    has(&site, "present.html", &["big-model"]);
}

#[test]
fn repeated_trainings_are_told_on_the_page_of_their_version() {
    let site = changed(|input| {
        input.versions[1].retry_report =
            Some("# Retries\n\n| seed | attempt |\n|--:|--:|\n| 42 | 2 |\n".to_owned());
    });
    let root = tempfile::tempdir().unwrap();
    let id = World::typical().input(root.path()).versions[1]
        .row
        .version_id
        .clone();
    has(
        &site,
        &format!("v/{id}/analysis.html"),
        &[
            "Trainings that had to be repeated",
            "<td class=\"right\">42</td>",
        ],
    );
}

#[test]
fn an_analysis_without_its_headings_is_shown_and_warned_about() {
    let root = tempfile::tempdir().unwrap();
    let mut world = World::typical();
    world.bare_analysis = true;
    let site = rendered(&world.input(root.path()));
    has(
        &site,
        "index.html",
        &["its analysis lacks the heading Metric deltas"],
    );
    has(
        &site,
        "final.html",
        &["its analysis lacks the heading Metric deltas"],
    );
    has(&site, "v/v002/index.html", &["Nothing but a sentence."]);
}

#[test]
fn a_task_without_a_solution_shows_the_program_alone() {
    let site = changed(|input| {
        for problem in input.problems.values_mut() {
            problem.reference = Some("  \n".to_owned());
        }
    });
    has(
        &site,
        "v/v002/index.html",
        &["No solution of this task is known", "class=\"diff alone\""],
    );
}

#[test]
fn an_action_is_shown_with_what_it_expected_beside_what_came() {
    let root = tempfile::tempdir().unwrap();
    let site = rendered(&World::typical().input(root.path()));
    has(
        &site,
        "v/v002/index.html",
        &[
            "<dt>Goal</dt>",
            "<dt>Expected impact</dt>",
            "<dt>Measured</dt>",
            "no difference detected",
        ],
    );
    has(
        &site,
        "v/v001/index.html",
        &["Decided after this version:", "../v002/index.html"],
    );
}

#[test]
fn every_life_of_a_run_has_a_page_that_says_what_it_means() {
    let root = tempfile::tempdir().unwrap();
    let site = rendered(&World::typical().input(root.path()));
    has(
        &site,
        "runs/index.html",
        &[
            "1 running",
            "1 lost",
            "1 failed",
            "1 preempted",
            "1 waiting",
            "completed",
        ],
    );
    has(
        &site,
        "runs/train-running/index.html",
        &["is running: training, 40 / 100 step"],
    );
    has(
        &site,
        "runs/train-lost/index.html",
        &["its machine is gone or cut off"],
    );
    has(
        &site,
        "runs/train-failed/index.html",
        &[
            "out of memory",
            "The card of node 7",
            "ada",
            "ablation, node-7",
        ],
    );
    has(&site, "runs/index.html", &["ablation, node-7"]);
    has(
        &site,
        "runs/train-preempted/index.html",
        &["goes on when it is started again"],
    );
    has(&site, "runs/train-waiting/index.html", &["has not begun"]);
    // Seven runs of half an hour an attempt on four GPUs, three of which had two and stated a price once.
    has(
        &site,
        "cost.html",
        &[
            "out of memory",
            "5.0 h of machine time and 20.0 h of GPU time, for",
            "6.75 USD, at the prices stated for 3 of 8 runs.",
        ],
    );
}

#[test]
fn a_log_of_a_hundred_thousand_lines_is_shown_in_parts_with_every_error_in_front() {
    let site = changed(|input| {
        let run = &mut input.runs.as_mut().unwrap()[0];
        run.id = "train-long".to_owned();
        run.logs = (1..=100_000)
            .map(|number| LogLine {
                at: "2026-11-21T12:00:00Z".to_owned(),
                level: if number % 10_000 == 7 {
                    "error"
                } else {
                    "info"
                }
                .to_owned(),
                message: format!("line number {number} of the log"),
            })
            .collect();
    });
    let page = site.text("runs/train-long/index.html").unwrap();
    assert!(page.len() < 80_000, "{}", page.len());
    assert_eq!(
        page.matches("class=\"ll l-error\"").count(),
        10,
        "every error"
    );
    assert_eq!(
        page.matches("class=\"ll l-info\"").count(),
        200,
        "the last lines"
    );
    assert!(page.contains("line number 99801 of") && !page.contains("line number 99800 of"));
    let parts = site
        .files()
        .filter(|(path, _)| path.starts_with("runs/train-long/log-"))
        .count();
    assert_eq!(parts, 50);
    let part = site.text("runs/train-long/log-0002.html").unwrap();
    assert!(
        part.contains("line number 2001 of")
            && part.contains("line number 4000 of")
            && !part.contains("line number 4001 of")
    );
    assert_eq!(
        site.text("runs/train-long/log.txt")
            .unwrap()
            .lines()
            .count(),
        100_000
    );
}

#[test]
fn a_site_without_a_store_says_that_it_knows_no_runs() {
    let site = changed(|input| input.runs = None);
    has(&site, "runs/index.html", &["made without a store"]);
    has(
        &site,
        "cost.html",
        &["made without one", "Not known without a store."],
    );
}

#[test]
fn a_sweep_is_concluded_as_far_as_its_comparisons_go_and_no_further() {
    let root = tempfile::tempdir().unwrap();
    let site = rendered(&World::typical().input(root.path()));
    has(
        &site,
        "sweeps/experiment-algo.html",
        &[
            "None of the 2 other settings of experiment.algo can be told from baseline: no difference detected.",
        ],
    );
}

#[test]
fn no_sentence_of_the_interface_lacks_its_translation() {
    let root = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    input.versions[0].runs[0].files = vec![SampleFile {
        sample: "0001".to_owned(),
        name: "output.wav".to_owned(),
        size: 9 << 20,
        bytes: None,
    }];
    assert_eq!(pages::untranslated(&input).unwrap(), Vec::<String>::new());
    let mut bare = input;
    bare.runs = None;
    bare.documents = build_site::input::Documents::default();
    for version in &mut bare.versions {
        version.action = Some(fixture::action("v001", "none", ""));
        version.row.estimate = None;
    }
    bare.board.rows = bare
        .versions
        .iter()
        .map(|version| version.row.clone())
        .collect();
    assert_eq!(pages::untranslated(&bare).unwrap(), Vec::<String>::new());
}
