//! Whole sites from a small world: links, headlines, hostile text, repeatability.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail where the test would"
)]

mod browser;
mod check;
mod edges;
mod fixture;
mod hostile;
mod incremental;
mod publish;

use std::path::Path;

use build_site::words::{Language, Words};
use build_site::{Options, Site, SiteInput, headline, pages};
use check::{faults, faults_below, is_page};
use fixture::World;
use wmtp_stats::leaderboard::{Leaderboard, Verdict, files};
use wmtp_stats::wording::{percent, points};

fn rendered(input: &SiteInput) -> Site {
    pages::render(input, &Options::default()).unwrap()
}

fn built(world: &World) -> (SiteInput, Site) {
    let root = tempfile::tempdir().unwrap();
    let input = world.input(root.path());
    let site = rendered(&input);
    (input, site)
}

fn english() -> Words {
    Words::of(Language::English)
}

#[test]
fn every_link_anchor_and_id_holds_and_nothing_leaves_the_folder() {
    let (input, site) = built(&World::typical());
    assert_eq!(faults(&site), Vec::<String>::new());
    assert_eq!(faults_below(&site, "bucket/reports/"), Vec::<String>::new());
    let pages = |folder: &str| {
        let below = |path: &&str| path.starts_with(folder) && is_page(path);
        site.files().map(|(path, _)| path).filter(below).count()
    };
    // Three of each, and logs of the three whose runs are known.
    assert_eq!(pages("v/"), 3 * input.versions.len() + 3);
    assert_eq!(pages("t/"), 1 + input.problems.len());
    // Four children; of five versions behind the leader three are among these pairs; and the list of all.
    assert_eq!(pages("compare/"), 7);
    assert_eq!(
        pages("ko/"),
        pages("") - pages("ko/") - pages("r/"),
        "the Korean tree is the same tree"
    );
    assert_eq!(
        pages("r/"),
        pages("") - pages("r/"),
        "the snapshot is a copy of the whole"
    );
    // For looking at the pages: WMTP_SITE_PREVIEW=folder cargo test -p build-site
    if let Ok(dir) = std::env::var("WMTP_SITE_PREVIEW") {
        site.write(Path::new(&dir)).unwrap();
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_and_a_second_write_changes_nothing() {
    let (_, first) = built(&World::typical());
    let (_, second) = built(&World::typical());
    assert_eq!(first, second);
    let out = tempfile::tempdir().unwrap();
    assert_eq!(first.write(out.path()).unwrap().changed, first.len());
    assert_eq!(second.write(out.path()).unwrap().changed, 0);
}

/// How every finding about v002 in the lead begins.
fn v002_leads(board: &Leaderboard) -> String {
    let leader = &board.rows[0];
    assert_eq!(leader.version_id, "v002");
    let rate = percent(leader.estimate.unwrap().mean);
    format!("v002 leads with {rate} of tasks solved")
}

/// A world in which v002 is alone in the lead and better than its baseline by the rule for claims.
fn won() -> Leaderboard {
    let mut world = World::typical();
    world.versions[2].claim = (Verdict::Better, "the interval excludes 0");
    world.versions[2].level = 0.68;
    let (input, _) = built(&world);
    let mut board = input.board;
    for (place, row) in board.rows.iter_mut().enumerate() {
        row.rank = Some(place as u32 + 1);
    }
    board
}

#[test]
fn a_lead_within_the_noise_is_called_level() {
    let (input, _) = built(&World::typical());
    let headline = headline::of_board(&input.board, &english());
    assert_eq!(
        headline.finding,
        format!(
            "{}, level with v005, v003, v001 and v004 within the noise.",
            v002_leads(&input.board)
        )
    );
    assert!(
        headline
            .uncertainty
            .starts_with("Over 60 tasks and 3 seeds, v002 stands between "),
        "{headline:?}"
    );
    assert!(
        headline
            .answer
            .starts_with("No difference detected between weighted and unweighted training: v002 "),
        "{headline:?}"
    );
    assert!(!headline.answer.contains("helps"), "{headline:?}");
}

#[test]
fn a_verdict_for_the_weights_is_said_and_no_more() {
    let board = won();
    let headline = headline::of_board(&board, &english());
    let behind = board.rows[1].against_leader.as_ref().unwrap();
    let gap = points(behind.difference.difference.abs());
    assert_eq!(
        headline.finding,
        format!(
            "{}, ahead of v005 by {}.",
            v002_leads(&board),
            gap.trim_start_matches('+')
        )
    );
    assert!(
        headline
            .answer
            .starts_with("Weighting tokens helps here: v002 +"),
        "{headline:?}"
    );
    assert!(
        headline
            .answer
            .contains("No difference detected between weighted and unweighted training: v003 "),
        "{headline:?}"
    );
}

#[test]
fn one_seed_claims_nothing() {
    let mut board = won();
    for row in &mut board.rows {
        row.seeds.truncate(1);
        for comparison in row
            .against_baseline
            .iter_mut()
            .chain(&mut row.against_parent)
        {
            comparison.verdict = Verdict::NoDifference;
        }
    }
    let headline = headline::of_board(&board, &english());
    assert_eq!(
        headline.finding,
        format!(
            "{}, ahead of v005; one seed is too little to claim an improvement.",
            v002_leads(&board)
        )
    );
    assert!(
        headline
            .uncertainty
            .starts_with("Over 60 tasks and 1 seed, v002 stands between "),
        "{headline:?}"
    );
    assert!(!headline.answer.contains("helps"), "{headline:?}");
}

#[test]
fn nothing_solved_is_said_plainly() {
    let mut board = won();
    for row in &mut board.rows {
        row.rank = Some(1);
        row.estimate = wmtp_stats::bootstrap_mean(&[0.0; 60], 10, 1);
    }
    assert_eq!(
        headline::of_board(&board, &english()).finding,
        "No version solves any of the 60 tasks."
    );
}

#[test]
fn every_number_of_the_headline_is_in_the_leaderboard() {
    let (input, site) = built(&World::typical());
    let board: Leaderboard =
        serde_json::from_str(site.text(&format!("data/{}", files::JSON)).unwrap()).unwrap();
    assert_eq!(board, input.board);
    let page = site.text("index.html").unwrap();
    let leader = &board.rows[0];
    let headline = headline::of_board(&board, &english());
    assert!(
        headline
            .finding
            .contains(&percent(leader.estimate.unwrap().mean)),
        "{headline:?}"
    );
    assert!(page.contains(&format!("<h1>{}</h1>", headline.finding)));
    for row in &board.rows {
        assert!(
            page.contains(&percent(row.estimate.unwrap().mean)),
            "{}",
            row.version_id
        );
        let own = site
            .text(&format!("v/{}/index.html", row.version_id))
            .unwrap();
        assert!(
            own.contains(&format!(
                "<h1>{}</h1>",
                headline::of_version(&board, row, &english())
            )),
            "{}",
            row.version_id
        );
    }
}

#[test]
fn a_version_id_that_is_a_path_makes_no_page() {
    let root = tempfile::tempdir().unwrap();
    let world = World::typical();
    let input = world.input(root.path());
    let mut board = input.board;
    board.rows[0].version_id = "../../etc".to_owned();
    wmtp_records::jsonl::write_json(&root.path().join("leaderboard-1").join(files::JSON), &board)
        .unwrap();
    let folder =
        |id: &str| -> Result<std::path::PathBuf, build_site::Error> { Ok(root.path().join(id)) };
    let error = SiteInput::load("leaderboard-1", folder).unwrap_err();
    assert!(error.to_string().contains("plain name"), "{error}");
}

#[test]
fn pages_stay_small() {
    let (_, site) = built(&World::typical());
    let size = |path: &str| site.text(path).unwrap().len();
    assert!(size("index.html") < 60_000, "{}", size("index.html"));
    assert!(
        size("v/v002/index.html") < 160_000,
        "{}",
        size("v/v002/index.html")
    );
    assert!(size("style.css") < 12_288, "{}", size("style.css"));
    assert!(size("pages.css") < 12_288, "{}", size("pages.css"));
    assert!(size("site.js") < 12_288, "{}", size("site.js"));
}

#[test]
fn the_pages_name_a_strict_policy() {
    let (_, site) = built(&World::typical());
    for (path, _) in site.files().filter(|(path, _)| is_page(path)) {
        assert!(
            site.text(path)
                .unwrap()
                .contains("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'\">"),
            "{path}"
        );
    }
}

#[test]
fn every_sentence_of_the_interface_is_translated() {
    let (_, site) = built(&World::typical());
    for (path, _) in site
        .files()
        .filter(|(path, _)| path.starts_with("ko/") && is_page(path))
    {
        let page = site.text(path).unwrap();
        let untold = [
            "Leaderboard<",
            "Skip to",
            "no difference detected",
            ">Method<",
            "How to read",
            "Every version",
        ];
        for english in untold {
            assert!(!page.contains(english), "{path}: {english}");
        }
    }
    assert!(site.text("ko/index.html").unwrap().contains("과제의"));
    assert!(
        site.text("ko/v/v002/index.html")
            .unwrap()
            .contains("<div lang=\"en\">")
    );
}
