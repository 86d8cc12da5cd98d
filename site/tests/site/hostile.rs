//! Text that wants to be more than text, in every place where a site shows what others wrote.

use crate::check::{faults, is_page};
use crate::fixture::{self, World};
use crate::rendered;

const HOSTILE: &str = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}\u{1b}[31m{{ 7 * 7 }} [x](javascript:alert(1))";

/// A site with hostile text in titles, changes, analyses, actions, statements, programs, errors, logs, names and paths.
fn site() -> (build_site::SiteInput, build_site::Site) {
    let root = tempfile::tempdir().unwrap();
    let mut world = World::typical();
    world.hostile = Some(HOSTILE);
    world.versions[2].change = Some(HOSTILE.to_owned());
    let mut input = world.input(root.path());
    for version in &mut input.versions {
        "../../../etc/passwd".clone_into(&mut version.row.artifact_relpath);
        version.row.metrics.push(wmtp_records::Metric {
            name: HOSTILE.to_owned(),
            value: 1.0,
            higher_is_better: false,
        });
        version.action = Some(fixture::action("v001", "v002", HOSTILE));
        version.retry_report = Some(format!("# Retries\n\n{HOSTILE}\n"));
        if let Some(comparison) = &mut version.row.against_parent {
            HOSTILE.clone_into(&mut comparison.reason);
        }
    }
    input.board.rows = input
        .versions
        .iter()
        .map(|version| version.row.clone())
        .collect();
    input.board.warnings.push(HOSTILE.to_owned());
    input
        .board
        .protocol
        .insert(HOSTILE.to_owned(), HOSTILE.to_owned());
    input.documents.final_analysis = Some(format!(
        "# Final\n\n## Warnings\n\n{HOSTILE}\n\n[up](../../../../etc/passwd) <b onclick=x>b</b>\n"
    ));
    input.documents.model_card = Some(HOSTILE.to_owned());
    for run in input.runs.iter_mut().flatten() {
        run.name = Some(HOSTILE.to_owned());
        HOSTILE.clone_into(&mut run.host);
        HOSTILE.clone_into(&mut run.phase);
        run.logs.push(build_site::input::LogLine {
            at: HOSTILE.to_owned(),
            level: HOSTILE.to_owned(),
            message: HOSTILE.to_owned(),
        });
        run.tags.push(HOSTILE.to_owned());
        run.notes.push(build_site::input::Note {
            at: HOSTILE.to_owned(),
            author: HOSTILE.to_owned(),
            text: HOSTILE.to_owned(),
        });
        for event in &mut run.events {
            HOSTILE.clone_into(&mut event.text);
        }
        for attempt in &mut run.attempts {
            attempt.message = Some(HOSTILE.to_owned());
        }
    }
    let site = rendered(&input);
    (input, site)
}

#[test]
fn hostile_text_is_inert_on_every_page() {
    let (_, site) = site();
    assert_eq!(faults(&site), Vec::<String>::new());
    for (path, _) in site.files().filter(|(path, _)| is_page(path)) {
        let page = site.text(path).unwrap();
        let scripts =
            page.matches("<script").count() - page.matches("site.js\" defer></script>").count();
        assert!(
            scripts == 0 && !page.contains("<img") && !page.contains("<b onclick"),
            "{path}"
        );
        assert!(
            !page.contains("href=\"javascript") && !page.contains("etc/passwd\""),
            "{path}"
        );
        assert!(
            !page.contains('\u{202e}') && !page.contains('\u{1b}'),
            "{path}"
        );
    }
}

#[test]
fn hostile_text_is_still_shown_as_what_it_is() {
    let (_, site) = site();
    let shown = |path: &str, texts: &[&str]| {
        let page = site.text(path).unwrap_or_else(|| panic!("{path}"));
        for text in texts {
            assert!(page.contains(text), "{path}: {text}");
        }
    };
    let inert = ["&lt;script&gt;alert(1)", "⟨U+202E⟩", "{{ 7 * 7 }}"];
    shown("v/v002/index.html", &inert);
    shown("v/v002/samples.html", &inert);
    shown("v/v002/index.html", &["../../../etc/passwd</code>"]);
    shown(
        "final.html",
        &["&lt;script&gt;", "&lt;b onclick=x&gt;", "up"],
    );
    shown("card.html", &["&lt;script&gt;"]);
    shown("cost.html", &["&lt;script&gt;"]);
    shown("changes.html", &["&lt;script&gt;"]);
    shown("lineage.html", &["&lt;script&gt;"]);
}

#[test]
fn feed_search_index_and_log_file_hold_no_live_text_either() {
    let (input, site) = site();
    let feed = site.text("feed.atom").unwrap();
    assert!(
        !feed.contains("<script") && !feed.contains('\u{1b}') && feed.contains("&lt;script&gt;"),
        "{feed}"
    );
    let index = site.text("data/search-index.js").unwrap();
    assert!(!index.contains('\u{202e}') && !index.contains('\u{1b}'));
    let run = &input.runs.as_ref().unwrap()[0];
    let log = site.text(&format!("runs/{}/log.txt", run.id)).unwrap();
    assert!(!log.contains('\u{1b}') && log.contains("⟨U+202E⟩"));
}

#[test]
fn a_task_whose_id_is_a_path_stays_inside() {
    let root = tempfile::tempdir().unwrap();
    let mut input = World::typical().input(root.path());
    for version in &mut input.versions {
        for run in &mut version.runs {
            run.problems[0].problem_id = "../../../etc/passwd".to_owned();
        }
    }
    let site = rendered(&input);
    assert_eq!(faults(&site), Vec::<String>::new());
    assert!(site.text("t/etc/passwd.html").is_some());
    assert!(site.files().all(|(path, _)| !path.contains("..")));
}
