//! What is new: dated entries, the snapshots, and the feed.

use std::fmt::Write;

use minijinja::context;
use minijinja::value::Value;

use super::{Book, moment};
use crate::facts::Facts;
use crate::input::{SiteInput, VersionInput};
use crate::text::{escape, visible};
use crate::words::{Language, Words};
use crate::{Error, headline};

/// Entries on the page and in the feed; a table of a thousand versions is on the leaderboard.
const SHOWN: usize = 100;

/// Versions by the time of their newest score, newest first.
fn newest<'a>(facts: &Facts<'a>) -> Vec<&'a VersionInput> {
    let mut versions = facts.lineage.clone();
    versions.reverse();
    versions.sort_by(|a, b| b.row.created_at.cmp(&a.row.created_at));
    versions.truncate(SHOWN);
    versions
}

/// The page of a snapshot lists no snapshots: it knows of no later ones, and never changes.
pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let title = book.say("What is new?", &[]);
    let entries: Vec<Value> = newest(book.facts)
        .into_iter()
        .map(|version| {
            context! {
                moment => moment(&version.row.created_at),
                id => version.row.version_id.as_str(),
                finding => headline::of_version(&book.input.board, &version.row, &book.words),
                change => book.change(version),
            }
        })
        .collect();
    let values = |snapshots: Vec<String>| {
        context! {
            heading => title.as_str(),
            leaderboard => context! {
                moment => moment(&book.input.board.created_at),
                finding => headline::of_board(&book.input.board, &book.words).finding,
            },
            entries => entries.clone(),
            snapshots => snapshots,
        }
    };
    let (top, copy) = (values(snapshots(book)), values(Vec::new()));
    book.page_of_two("changes.html", "changes.html", &title, top, copy)
}

/// Names of all snapshots, newest first.
fn snapshots(book: &Book<'_>) -> Vec<String> {
    let mut names = book.options.snapshots.clone();
    if book.options.snapshot {
        names.push(super::snapshot_name(&book.input.board.created_at));
    }
    names.sort();
    names.dedup();
    names.reverse();
    names
}

/// `feed.atom`: the leaderboard and its versions, newest first.
pub(super) fn feed(input: &SiteInput, facts: &Facts<'_>) -> String {
    let words = Words::of(Language::English);
    let board = &input.board;
    let mut feed = String::from(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<feed xmlns=\"http://www.w3.org/2005/Atom\" xml:lang=\"en\">\n",
    );
    let _ = writeln!(
        feed,
        "<title>wmtp: {}</title>\n<id>urn:wmtp:{}</id>\n<updated>{}</updated>\n<author><name>wmtp</name></author>\n<link rel=\"self\" href=\"feed.atom\"/>\n<link href=\"index.html\"/>",
        xml(&board.dataset_id),
        xml(&board.dataset_id),
        xml(&board.created_at)
    );
    let mut entry = |id: &str, at: &str, title: &str, summary: &str, href: &str| {
        let _ = writeln!(
            feed,
            "<entry><id>urn:wmtp:{}</id><updated>{}</updated><title>{}</title><summary>{}</summary><link href=\"{}\"/></entry>",
            xml(id),
            xml(at),
            xml(title),
            xml(summary),
            xml(href)
        );
    };
    let headline = headline::of_board(board, &words);
    let summary = format!("{} {}", headline.uncertainty, headline.answer);
    entry(
        &input.leaderboard_id,
        &board.created_at,
        &headline.finding,
        &summary,
        "index.html",
    );
    for version in newest(facts) {
        let row = &version.row;
        let id = format!("{}:{}", board.dataset_id, row.version_id);
        let title = headline::of_version(board, row, &words);
        let change = row.change.clone().unwrap_or_default();
        entry(
            &id,
            &row.created_at,
            &title,
            &change,
            &format!("v/{}/index.html", row.version_id),
        );
    }
    feed.push_str("</feed>\n");
    feed
}

/// Untrusted text in XML, which knows no control characters at all.
fn xml(text: &str) -> String {
    escape(&visible(text).replace(['\n', '\t'], " ")).into_owned()
}
