//! Lineage: how did we get here?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use minijinja::context;
use wmtp_stats::leaderboard::{LeaderboardRow, Verdict};
use wmtp_stats::wording::{percent, signed};

use super::index::{verdict_class, verdict_sign};
use super::{Book, markup};
use crate::input::VersionInput;
use crate::text::escape;
use crate::{Error, marks};

/// Children by the place of their parent; roots stand under none.
type Tree = BTreeMap<Option<usize>, Vec<usize>>;

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let mut tree = Tree::new();
    for (place, version) in book.facts.lineage.iter().enumerate() {
        // A parent that came later would make a circle.
        let parent = version
            .row
            .parent
            .as_deref()
            .and_then(|parent| book.facts.place(parent));
        tree.entry(parent.filter(|parent| *parent < place))
            .or_default()
            .push(place);
    }
    let path = path_to_leader(book);
    let lineage = &book.facts.lineage;
    let changes = lineage
        .iter()
        .filter(|version| version.row.parent.is_some())
        .count();
    let title = match changes {
        0 => book.say("How did we get here? Nothing has been changed yet.", &[]),
        _ => book.words.count(
            changes,
            "How did we get here? By one change.",
            "How did we get here? By {n} changes, one at a time.",
        ),
    };
    let mut html = String::new();
    branch(book, &tree, None, &path, &mut html);
    let leader = leader(book).map(|row| row.version_id.clone());
    let values = context! { finding => title.as_str(), tree => markup(html), leader => leader, is_chain => path.len() > 1 };
    book.page("lineage.html", "lineage.html", &title, values)?;
    book.entry("lineage.html", &title, "");
    Ok(())
}

/// The first row of what was made here: models from outside have no lineage.
fn leader<'a>(book: &Book<'a>) -> Option<&'a LeaderboardRow> {
    let mut rows = book.input.board.rows.iter();
    rows.find(|row| !row.is_external())
}

/// Versions from the first one to the leader.
fn path_to_leader(book: &Book<'_>) -> BTreeSet<usize> {
    let mut path = BTreeSet::new();
    let leader = leader(book).filter(|row| row.rank.is_some());
    let mut next = leader.and_then(|row| book.facts.place(&row.version_id));
    while let Some(place) = next {
        if !path.insert(place) {
            break;
        }
        let parent = book.facts.lineage[place].row.parent.as_deref();
        next = parent.and_then(|parent| book.facts.place(parent));
    }
    path
}

/// One level of the nested list. Chains stay on one level, so that a long line of versions does not run off the page.
fn branch(
    book: &Book<'_>,
    tree: &Tree,
    parent: Option<usize>,
    path: &BTreeSet<usize>,
    html: &mut String,
) {
    let Some(children) = tree.get(&parent) else {
        return;
    };
    html.push_str("<ul class=\"rail\">");
    for &child in children {
        let mut place = child;
        item(book, tree, place, path, html);
        while let Some([only]) = tree.get(&Some(place)).map(Vec::as_slice) {
            html.push_str("</li>");
            place = *only;
            item(book, tree, place, path, html);
        }
        branch(book, tree, Some(place), path, html);
        html.push_str("</li>");
    }
    html.push_str("</ul>");
}

fn item(book: &Book<'_>, tree: &Tree, place: usize, path: &BTreeSet<usize>, html: &mut String) {
    let version = book.facts.lineage[place];
    let row = &version.row;
    let is_dead = !path.contains(&place)
        && !tree.contains_key(&Some(place))
        && row
            .against_parent
            .as_ref()
            .is_some_and(|c| c.verdict != Verdict::Better);
    let goes_on = tree
        .get(&Some(place))
        .is_some_and(|children| children.iter().any(|child| path.contains(child)));
    let class = match (path.contains(&place) && goes_on, is_dead) {
        (true, _) => "led",
        (false, true) => "dead",
        (false, false) => "",
    };
    let mark = marks::of(&row.algo);
    let _ = write!(
        html,
        "<li class=\"{class}\"><svg class=\"node\" width=\"18\" height=\"18\" viewBox=\"-9 -9 18 18\" aria-hidden=\"true\" focusable=\"false\">{}</svg><p><a href=\"{}\">{}</a> {}<span class=\"what\">{}</span> {}</p>",
        mark.shape(),
        super::version_link(0, &row.version_id),
        row.version_id,
        row.estimate
            .map(|estimate| format!("<strong>{}</strong> ", percent(estimate.mean)))
            .unwrap_or_default(),
        escape(&book.change(version)),
        verdict(book, version),
    );
}

fn verdict(book: &Book<'_>, version: &VersionInput) -> String {
    let Some(comparison) = &version.row.against_parent else {
        return String::new();
    };
    let points = signed(comparison.difference.difference);
    let words = book.say(comparison.words(), &[]);
    let words = escape(&words);
    let text = format!(
        "<span aria-hidden=\"true\">{}</span> {points}",
        verdict_sign(comparison.verdict)
    );
    let pair = book.facts.pair(&version.row.version_id, &comparison.other);
    let linked = match pair {
        Some(pair) => format!("<a href=\"{}\">{words}</a>", escape(&pair.path)).into(),
        None => words,
    };
    format!(
        "<span class=\"{}\">{text}</span> <span class=\"quiet\">{linked}</span>",
        verdict_class(comparison.verdict)
    )
}
