//! Tables of text, numbers and links.

use std::fmt::Write;

use minijinja::value::Value;

use crate::text::{breaking, escape, inert};

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    html: String,
    right: bool,
    class: &'static str,
}

impl Cell {
    /// Untrusted text.
    pub(crate) fn text(text: impl AsRef<str>) -> Self {
        Self::markup(breaking(&inert(text.as_ref())))
    }

    /// A number, set to the right.
    pub(crate) fn number(text: impl AsRef<str>) -> Self {
        Self {
            right: true,
            ..Self::text(text)
        }
    }

    /// Untrusted text in the face of programs.
    pub(crate) fn code(text: impl AsRef<str>) -> Self {
        Self::markup(format!("<code>{}</code>", breaking(&inert(text.as_ref()))))
    }

    /// A link of this site behind untrusted text.
    pub(crate) fn link(href: &str, text: &str) -> Self {
        let text = breaking(&inert(text));
        Self::markup(format!("<a href=\"{}\">{text}</a>", escape(href)))
    }

    /// A file of this site that is saved, not opened.
    pub(crate) fn download(href: &str, name: &str) -> Self {
        let (file, text) = (escape(name), breaking(&inert(name)));
        Self::markup(format!(
            "<a href=\"{}\" download=\"{file}\">{text}</a>",
            escape(href)
        ))
    }

    /// Nothing known.
    pub(crate) fn none() -> Self {
        Self {
            right: true,
            ..Self::markup("\u{2013}")
        }
    }

    /// A number where there is one.
    pub(crate) fn maybe(text: Option<String>) -> Self {
        text.map_or_else(Self::none, Self::number)
    }

    /// Markup made by this crate from escaped text.
    pub(crate) fn markup(html: impl Into<String>) -> Self {
        Self {
            html: html.into(),
            right: false,
            class: "",
        }
    }

    /// With a mark of this crate before it.
    #[must_use]
    pub(crate) fn marked(mut self, mark: &str) -> Self {
        self.html.insert_str(0, mark);
        self
    }

    /// In a class of the style sheet.
    #[must_use]
    pub(crate) fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    fn write(&self, out: &mut String, tag: &str) {
        let class = match (self.right, self.class) {
            (false, "") => String::new(),
            (true, "") => " class=\"right\"".to_owned(),
            (false, class) => format!(" class=\"{class}\""),
            (true, class) => format!(" class=\"right {class}\""),
        };
        let _ = write!(out, "<{tag}{class}>{}</{tag}>", self.html);
    }
}

/// A table whose first column names its rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    caption: String,
    class: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with the names of its columns; empty names make a table without a head.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(|name| escape(name).into_owned()).collect(),
            ..Self::default()
        }
    }

    /// A sentence over the table.
    #[must_use]
    pub(crate) fn caption(mut self, caption: &str) -> Self {
        self.caption = inert(caption);
        self
    }

    /// A class beside the one that all have.
    #[must_use]
    pub(crate) fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The finished table; nothing where it has no rows.
    pub(crate) fn finish(&self) -> Value {
        if self.rows.is_empty() {
            return Value::from(());
        }
        let mut html = format!(
            "<div class=\"wide\" tabindex=\"0\"><table class=\"plain-table {}\">",
            self.class
        );
        if !self.caption.is_empty() {
            let _ = write!(html, "<caption>{}</caption>", self.caption);
        }
        if !self.head.is_empty() {
            html.push_str("<thead><tr>");
            for (index, name) in self.head.iter().enumerate() {
                let right = self
                    .rows
                    .iter()
                    .all(|row| row.get(index).is_some_and(|cell| cell.right));
                let class = if right { " class=\"right\"" } else { "" };
                let _ = write!(html, "<th scope=\"col\"{class}>{name}</th>");
            }
            html.push_str("</tr></thead>");
        }
        html.push_str("<tbody>");
        for row in &self.rows {
            html.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                if index == 0 {
                    let class = if cell.class.is_empty() {
                        String::new()
                    } else {
                        format!(" class=\"{}\"", cell.class)
                    };
                    let _ = write!(html, "<th scope=\"row\"{class}>{}</th>", cell.html);
                } else {
                    cell.write(&mut html, "td");
                }
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table></div>");
        Value::from_safe_string(html)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_inert_and_numbers_stand_right() {
        let mut table = Table::new(&["a", "b"]).caption("c <x>");
        table.row(vec![Cell::text("<script>"), Cell::number("1")]);
        table.row(vec![Cell::link("../x.html", "y\u{202e}"), Cell::none()]);
        let html = table.finish().to_string();
        assert!(
            !html.contains("<script") && html.contains("&lt;script&gt;"),
            "{html}"
        );
        assert!(
            html.contains("<th scope=\"col\" class=\"right\">b</th>"),
            "{html}"
        );
        assert!(
            html.contains("<a href=\"../x.html\">y⟨U+202E⟩</a>"),
            "{html}"
        );
        assert!(Table::new(&["a"]).finish().is_none());
    }
}
