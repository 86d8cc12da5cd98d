//! Search: an index that a script reads, and for readers without scripts a list of all pages.

use minijinja::context;
use minijinja::value::Value;
use serde_json::json;
use unicode_normalization::UnicodeNormalization;

use super::{Book, markup};
use crate::Error;
use crate::text::{escape, visible};

/// Characters of a page's text in the index.
const TEXT: usize = 300;
/// Bytes of one file of the index.
const FILE: usize = 200_000;
/// Pages that the list without scripts holds.
const LISTED: usize = 400;

/// One page in the index.
#[derive(Debug)]
pub(super) struct Entry {
    path: String,
    title: String,
    text: String,
}

impl Book<'_> {
    /// Adds a page to the index.
    pub(super) fn entry(&mut self, path: &str, title: &str, text: &str) {
        let text = visible(text);
        let words = text
            .split_whitespace()
            .filter(|word| !word.chars().all(|c| "#|-:*`".contains(c)));
        let mut short = String::new();
        let mut length = 0;
        for word in words {
            length += word.chars().count();
            if length >= TEXT {
                break;
            }
            short.push_str(word);
            short.push(' ');
            length += 1;
        }
        self.entries.push(Entry {
            path: path.to_owned(),
            title: visible(title),
            text: short.trim_end().to_owned(),
        });
    }
}

pub(super) fn write(book: &mut Book<'_>) -> Result<(), Error> {
    let title = book.say("Search", &[]);
    let shown: Vec<Value> = book
        .entries
        .iter()
        .take(LISTED)
        .map(
            |entry| context! { path => markup(escape(&entry.path)), title => entry.title.as_str() },
        )
        .collect();
    let values = context! {
        heading => title.as_str(),
        index => markup(index_name(book, 0)),
        pages => shown,
        left_out => book.entries.len().saturating_sub(LISTED),
    };
    book.page("search.html", "search.html", &title, values)?;
    add_index(book)
}

/// `data/search-index.js`, `data/search-index-2.js`, … with the language in the name where it is not the first.
fn index_name(book: &Book<'_>, part: usize) -> String {
    let language = match book.words.language().folder() {
        "" => String::new(),
        _ => format!("-{}", book.words.language().code()),
    };
    let number = if part == 0 {
        String::new()
    } else {
        format!("-{}", part + 1)
    };
    format!("data/search-index{language}{number}.js")
}

/// Writes the index: each part says how many there are.
fn add_index(book: &Book<'_>) -> Result<(), Error> {
    let mut parts: Vec<Vec<String>> = vec![Vec::new()];
    let mut size = 0;
    for entry in &book.entries {
        let folded: String = format!("{} {}", entry.title, entry.text)
            .to_lowercase()
            .nfc()
            .collect();
        let line = json!([entry.path, entry.title, entry.text, folded]).to_string();
        if size + line.len() > FILE && size > 0 {
            parts.push(Vec::new());
            size = 0;
        }
        size += line.len() + 2;
        parts.last_mut().expect("there is always a part").push(line);
    }
    let count = parts.len();
    for (part, lines) in parts.iter().enumerate() {
        // Inside a script file nothing is markup, but two characters end a line there that JSON does not escape.
        let lines = lines
            .join(",\n")
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029");
        let script = format!("wmtpSearch({part},{count},[\n{lines}\n]);\n");
        let mut tray = book.tray.borrow_mut();
        tray.add(&index_name(book, part), script.as_bytes())?;
    }
    Ok(())
}
