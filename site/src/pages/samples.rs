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
        files => files(book, version)?,
    };
    book.page(
        &format!("v/{id}/samples.html"),
        "samples.html",
        &title,
        values,
    )
}

/// Links to files that no page shows. They are written once, below the top of the site.
fn files(book: &Book<'_>, version: &VersionInput) -> Result<Value, Error> {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[&say("sample"), &say("file"), &say("size")]).class("narrow");
    let language = book.words.language().folder();
    let top = "../".repeat(2 + language.matches('/').count());
    let id = &version.row.version_id;
    for file in version.runs.first().iter().flat_map(|run| &run.files) {
        let path = format!("v/{id}/{}", file.path());
        let name = match &file.bytes {
            Some(bytes) => {
                if language.is_empty() {
                    book.tray.borrow_mut().add(&path, bytes)?;
                }
                Cell::download(&format!("{top}{path}"), &file.name)
            }
            None => Cell::text(book.say("{file}, too large for a site", &[("file", &file.name)])),
        };
        let size = crate::cost::bytes(file.size);
        table.row(vec![Cell::text(&file.sample), name, Cell::number(size)]);
    }
    Ok(table.finish())
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
