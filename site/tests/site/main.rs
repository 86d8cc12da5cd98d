//! Whole sites from a small world: links, headlines, hostile text, repeatability.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail where the test would"
)]

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use build_site::{Site, SiteInput, headline, pages};
use fixture::World;
use wmtp_stats::leaderboard::{Leaderboard, Verdict, files};
use wmtp_stats::wording::{percent, points};

fn built(world: &World) -> (SiteInput, Site) {
    let root = tempfile::tempdir().unwrap();
    let input = world.input(root.path());
    let site = pages::render(&input).unwrap();
    (input, site)
}

fn is_page(path: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "html")
}

/// Opening tags with their attributes: enough of HTML for pages that we write ourselves.
fn tags(page: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = rest[start..]
            .find('>')
            .map(|end| start + end)
            .expect("every tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with(['/', '!']) {
            continue;
        }
        let name: String = tag
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let mut attributes = BTreeMap::new();
        let mut pieces = tag[name.len()..].split('"');
        while let (Some(key), Some(value)) = (pieces.next(), pieces.next()) {
            let key = key
                .trim()
                .trim_end_matches('=')
                .rsplit(' ')
                .next()
                .unwrap_or_default();
            attributes.insert(key.to_owned(), value.to_owned());
        }
        found.push((name, attributes));
    }
    found
}

/// Joins a relative link to the folder of a page; `None` when it leaves the site.
fn resolved(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => {
                parts.pop()?;
            }
            "." | "" => {}
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}

fn faults(site: &Site) -> Vec<String> {
    let pages: Vec<&str> = site
        .files()
        .map(|(path, _)| path)
        .filter(|path| is_page(path))
        .collect();
    let paths: BTreeSet<&str> = site.files().map(|(path, _)| path).collect();
    let ids: BTreeMap<&str, Vec<String>> = pages
        .iter()
        .map(|page| {
            let tags = tags(site.text(page).unwrap());
            (
                *page,
                tags.into_iter()
                    .filter_map(|(_, mut attributes)| attributes.remove("id"))
                    .collect(),
            )
        })
        .collect();
    let mut faults = Vec::new();
    for page in pages {
        let text = site.text(page).unwrap();
        let unique: BTreeSet<&String> = ids[page].iter().collect();
        if unique.len() != ids[page].len() {
            faults.push(format!("{page}: duplicate id"));
        }
        if !text.contains("<html lang=\"en\">")
            || !text.contains("<title>")
            || text.matches("<h1>").count() != 1
        {
            faults.push(format!("{page}: lang, title or h1"));
        }
        for (name, attributes) in tags(text) {
            if name == "script"
                || attributes
                    .keys()
                    .any(|key| key.starts_with("on") || key == "style")
            {
                faults.push(format!("{page}: <{name}> with {attributes:?}"));
            }
            for key in ["href", "src"] {
                let Some(link) = attributes.get(key) else {
                    continue;
                };
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = if path.is_empty() {
                    Some(page.to_owned())
                } else {
                    resolved(page, path)
                };
                match target {
                    _ if link.contains(':') || link.starts_with('/') => {
                        faults.push(format!("{page}: outside link {link}"));
                    }
                    Some(target) if !paths.contains(target.as_str()) => {
                        faults.push(format!("{page}: dead link {link}"));
                    }
                    Some(target)
                        if !anchor.is_empty()
                            && !ids[target.as_str()].iter().any(|id| id == anchor) =>
                    {
                        faults.push(format!("{page}: missing anchor {link}"));
                    }
                    None => faults.push(format!("{page}: {link} leaves the site")),
                    Some(_) => {}
                }
            }
            if let Some(label) = attributes
                .get("aria-labelledby")
                .filter(|label| !ids[page].contains(label))
            {
                faults.push(format!("{page}: label {label} is missing"));
            }
        }
    }
    faults
}

#[test]
fn every_link_anchor_and_id_holds_and_nothing_leaves_the_folder() {
    let (input, site) = built(&World::typical());
    assert_eq!(faults(&site), Vec::<String>::new());
    let pages = site.files().filter(|(path, _)| is_page(path)).count();
    assert_eq!(pages, 2 + input.versions.len());
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

#[test]
fn an_edit_to_one_version_rewrites_only_what_shows_it() {
    let root = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    let out = tempfile::tempdir().unwrap();
    pages::render(&input).unwrap().write(out.path()).unwrap();
    let last = input
        .versions
        .iter_mut()
        .find(|version| version.row.version_id == "v003")
        .unwrap();
    last.analysis.push_str("\nOne more sentence.\n");
    let written = pages::render(&input).unwrap().write(out.path()).unwrap();
    assert_eq!(written.changed, 2, "its page and the manifest");
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
    let headline = headline::of_board(&input.board);
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
    let headline = headline::of_board(&board);
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
    let headline = headline::of_board(&board);
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
        headline::of_board(&board).finding,
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
    let headline = headline::of_board(&board);
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
            own.contains(&format!("<h1>{}</h1>", headline::of_version(&board, row))),
            "{}",
            row.version_id
        );
    }
}

#[test]
fn hostile_text_is_inert_everywhere() {
    const HOSTILE: &str = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}\u{1b}[31m{{ 7 * 7 }} [x](javascript:alert(1))";
    let mut world = World::typical();
    world.hostile = Some(HOSTILE);
    world.versions[2].change = Some(HOSTILE.to_owned());
    let (_, site) = built(&world);
    assert_eq!(faults(&site), Vec::<String>::new());
    for (path, _) in site.files().filter(|(path, _)| is_page(path)) {
        let page = site.text(path).unwrap();
        assert!(
            !page.contains("<script") && !page.contains("<img"),
            "{path}"
        );
        assert!(!page.contains("href=\"javascript"), "{path}");
    }
    let page = site.text("v/v002/index.html").unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)") && page.contains("{{ 7 * 7 }}"));
    assert!(page.contains("⟨U+202E⟩") && !page.contains('\u{202e}') && !page.contains('\u{1b}'));
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
}

#[test]
fn the_pages_name_a_strict_policy() {
    let (_, site) = built(&World::typical());
    for (path, _) in site.files().filter(|(path, _)| is_page(path)) {
        assert!(
            site.text(path)
                .unwrap()
                .contains("default-src 'none'; style-src 'self'"),
            "{path}"
        );
    }
}
