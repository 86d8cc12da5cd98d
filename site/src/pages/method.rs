//! The method: can the numbers be trusted?

use std::collections::BTreeMap;

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::DRAWS;
use wmtp_stats::leaderboard::SEEDS_FOR_A_CLAIM;

use super::{Book, warnings};
use crate::table::{Cell, Table};
use crate::{Error, headline, text};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let input = book.input;
    let board = &input.board;
    let pairs = |map: &BTreeMap<String, String>| -> Vec<Value> {
        map.iter()
            .map(|(key, value)| context! { name => text::visible(&key.replace('_', " ")), value => text::visible(value) })
            .collect()
    };
    let points = |share: f64| format!("{:.1}", share * 100.0);
    let mut sources = Table::new(&[]).class("ids");
    sources.row(vec![
        Cell::text(book.say("data set", &[])),
        Cell::code(&board.data),
    ]);
    sources.row(vec![
        Cell::text(book.say("leaderboard", &[])),
        Cell::code(&input.leaderboard_id),
    ]);
    let title = book.say("How these numbers were made", &[]);
    let values = context! {
        heading => title.as_str(),
        num_tasks => board.num_tasks,
        split => board.split.as_str(),
        sources => sources.finish(),
        primary => text::visible(&board.primary_metric),
        protocol => pairs(&board.protocol),
        sandbox => pairs(&board.sandbox),
        draws => crate::cost::grouped(DRAWS as u64),
        claim_seeds => SEEDS_FOR_A_CLAIM,
        significant => board.resolution.map(|r| points(r.significant)),
        reliable => board.resolution.map(|r| points(r.reliable)),
        held_out => input.documents.held_out.as_ref().map(|held_out| headline::held_out(held_out, &book.words)),
        num_versions => board.rows.iter().filter(|row| !row.seeds.is_empty()).count(),
        warnings => warnings(input),
    };
    book.page("method.html", "method.html", &title, values)?;
    let summary = book.say("Protocol, statistics in plain words, known limits.", &[]);
    book.entry("method.html", &title, &summary);
    Ok(())
}
