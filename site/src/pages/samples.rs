//! Programs of one version: at most one of each outcome per task, failing ones first.

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::wording::percent;

use super::{Book, sections};
use crate::Error;
use crate::input::VersionInput;
use crate::table::{Cell, Table};

/// Programs on one page.
const FAILING_SHOWN: usize = 30;
const PASSING_SHOWN: usize = 10;

pub(super) fn write(book: &mut Book<'_>, version: &VersionInput) -> Result<(), Error> {
    let row = &version.row;
    let id = row.version_id.as_str();
    let title = book.say("{version}: what it wrote", &[("version", id)]);
    let kept = version
        .runs
        .first()
        .map(|run| &run.samples[..])
        .unwrap_or_default();
    let shown = sections::in_order(kept, FAILING_SHOWN, PASSING_SHOWN);
    let samples: Vec<Value> = shown
        .iter()
        .map(|sample| sections::sample(book, sample, 2))
        .collect();
    let values = context! {
        crumbs => super::version::crumbs(book, version, "samples"),
        heading => title.as_str(),
        outcomes => outcomes(book, version),
        num_shown => samples.len().to_string(),
        num_samples => crate::cost::grouped(row.num_samples),
        samples => samples,
    };
    book.page(
        &format!("v/{id}/samples.html"),
        "samples.html",
        &title,
        values,
    )
}

/// How programs end, as shares of all tries.
fn outcomes(book: &Book<'_>, version: &VersionInput) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[&say("outcome"), &say("share of tries")])
        .class("narrow")
        .caption(&say("How the programs ended, all seeds."));
    let mut shares: Vec<_> = version.row.error_shares.iter().collect();
    shares.sort_by(|a, b| b.1.total_cmp(a.1).then(a.0.cmp(b.0)));
    for (class, share) in shares {
        table.row(vec![
            Cell::text(sections::class_name(book, *class)),
            Cell::number(percent(*share)),
        ]);
    }
    table.finish()
}
