//! Documents about the whole: the final analysis, the card of the best version, the audit before the first.

use minijinja::context;

use super::{Book, markup, warnings};
use crate::{Error, headline, text};

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let documents = &book.input.documents;
    let finding = headline::of_board(&book.input.board, &book.words).finding;
    let title = book.say("What should we do next?", &[]);
    let render =
        |document: &Option<String>| document.as_deref().map(|text| markup(text::document(text)));
    let values = context! {
        kicker => title.as_str(),
        heading => finding.as_str(),
        warnings => warnings(book.input),
        body => render(&documents.final_analysis),
        absent => book.say("No final analysis has been written yet: it comes at the end of a loop of versions.", &[]),
        extra => documents
            .baseline_report
            .as_deref()
            .map(|text| markup(text::markdown(text))),
        extra_title => book.say("The audit before the first version", &[]),
    };
    book.page("final.html", "document.html", &title, values)?;
    let summary = documents.final_analysis.clone().unwrap_or_default();
    book.entry("final.html", &title, &summary);
    if documents.model_card.is_some() {
        let title = book.say("Card of the best version", &[]);
        let values = context! {
            kicker => book.say("Model card", &[]),
            heading => title.as_str(),
            warnings => Vec::<String>::new(),
            body => render(&documents.model_card),
            absent => "",
            extra => (),
            extra_title => "",
        };
        book.page("card.html", "document.html", &title, values)?;
        let summary = documents.model_card.clone().unwrap_or_default();
        book.entry("card.html", &title, &summary);
    }
    Ok(())
}
