//! Everything that was written about one version.

use minijinja::context;

use super::{Book, markup};
use crate::input::VersionInput;
use crate::{Error, text};

pub(super) fn write(book: &mut Book<'_>, version: &VersionInput) -> Result<(), Error> {
    let id = version.row.version_id.as_str();
    let title = book.say(
        "{version}: what was found, and what was decided",
        &[("version", id)],
    );
    let document = |text: &Option<String>| text.as_deref().map(|text| markup(text::markdown(text)));
    let values = context! {
        crumbs => super::version::crumbs(book, version, "analysis"),
        heading => title.as_str(),
        analysis => (!version.analysis.trim().is_empty()).then(|| book.shared.analysis(version)),
        action => document(&version.action),
        retry => document(&version.retry_report),
    };
    book.page(
        &format!("v/{id}/analysis.html"),
        "analysis.html",
        &title,
        values,
    )
}
