//! Untrusted text made inert: escaping, control characters, Markdown.

use std::borrow::Cow;
use std::fmt::Write;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// Escapes text for element content and double-quoted attributes.
pub fn escape(text: &str) -> Cow<'_, str> {
    let special = |byte: u8| matches!(byte, b'&' | b'<' | b'>' | b'"' | b'\'');
    let Some(first) = text.bytes().position(special) else {
        return Cow::Borrowed(text);
    };
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate().skip(first) {
        let reference = match byte {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'"' => "&quot;",
            b'\'' => "&#39;",
            _ => continue,
        };
        escaped.push_str(&text[from..at]);
        escaped.push_str(reference);
        from = at + 1;
    }
    escaped.push_str(&text[from..]);
    Cow::Owned(escaped)
}

/// Program text and output as a reader can trust it: terminal colour codes are dropped; bidirectional, invisible
/// and control characters are written out, so that nothing hides or reorders code.
pub fn visible(text: &str) -> String {
    if text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t'))
    {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                // A colour code ends at its first byte from @ to ~.
                for code in characters.by_ref() {
                    if ('@'..='~').contains(&code) {
                        break;
                    }
                }
            }
            '\n' | '\t' => shown.push(character),
            '\r' if characters.peek() == Some(&'\n') => {}
            _ if is_hidden(character) => {
                let _ = write!(shown, "\u{27e8}U+{:04X}\u{27e9}", u32::from(character));
            }
            _ => shown.push(character),
        }
    }
    shown
}

fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// [`visible`] and [`escape`].
pub fn inert(text: &str) -> String {
    escape(&visible(text)).into_owned()
}

/// Lets a line break behind the underscores of escaped text, so that names with no blank in them fit into a narrow column.
pub fn breaking(html: &str) -> String {
    html.replace('_', "_<wbr>")
}

/// Markdown as HTML below a heading of the page: raw HTML is shown as text, links keep only safe targets, images become
/// their text, and headings sink by one level. The first heading of level 1 is left out, because the page has its own
/// title.
pub fn markdown(text: &str) -> String {
    rendered(text, sunk)
}

/// [`markdown`] that is a page's whole content: its headings stay as they are.
pub fn document(text: &str) -> String {
    rendered(text, |level| level)
}

fn rendered(text: &str, place: fn(HeadingLevel) -> HeadingLevel) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let source = visible(text);
    let (mut in_title, mut in_cell) = (false, false);
    let mut dropped_links = Vec::new();
    let events = Parser::new_ext(&source, options).filter_map(|event| {
        let event = match event {
            Event::Start(Tag::Heading {
                level: HeadingLevel::H1,
                ..
            }) => {
                in_title = true;
                return None;
            }
            Event::End(TagEnd::Heading(HeadingLevel::H1)) => {
                in_title = false;
                return None;
            }
            _ if in_title => return None,
            Event::Html(html) | Event::InlineHtml(html) => Event::Text(html),
            Event::Start(Tag::Heading {
                level,
                id,
                classes,
                attrs,
            }) => Event::Start(Tag::Heading {
                level: place(level),
                id,
                classes,
                attrs,
            }),
            Event::End(TagEnd::Heading(level)) => Event::End(TagEnd::Heading(place(level))),
            Event::Start(Tag::Link { ref dest_url, .. }) => {
                let safe = is_safe_link(dest_url);
                dropped_links.push(!safe);
                if !safe {
                    return None;
                }
                event
            }
            Event::End(TagEnd::Link) => {
                if dropped_links.pop() == Some(true) {
                    return None;
                }
                event
            }
            Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => return None,
            Event::Start(Tag::TableCell) => {
                in_cell = true;
                event
            }
            Event::End(TagEnd::TableCell) => {
                in_cell = false;
                event
            }
            Event::Text(ref text) if in_cell && text.contains('_') => {
                Event::InlineHtml(breaking(&escape(text)).into())
            }
            _ => event,
        };
        Some(event)
    });
    let mut rendered = String::new();
    html::push_html(&mut rendered, events);
    rendered
        .replace("<table>", "<div class=\"wide\" tabindex=\"0\"><table>")
        .replace("</table>", "</table></div>")
        // The policy of the pages forbids style attributes; escaped text cannot hold these strings.
        .replace(" style=\"text-align: right\"", " class=\"right\"")
        .replace(" style=\"text-align: center\"", "")
        .replace(" style=\"text-align: left\"", "")
}

/// One line of Markdown without the paragraph around it.
pub fn markdown_line(text: &str) -> String {
    let rendered = markdown(text);
    let line = rendered.trim();
    let line = line.strip_prefix("<p>").unwrap_or(line);
    line.strip_suffix("</p>").unwrap_or(line).to_owned()
}

fn sunk(level: HeadingLevel) -> HeadingLevel {
    match level {
        HeadingLevel::H1 | HeadingLevel::H2 => HeadingLevel::H3,
        HeadingLevel::H3 => HeadingLevel::H4,
        HeadingLevel::H4 => HeadingLevel::H5,
        HeadingLevel::H5 | HeadingLevel::H6 => HeadingLevel::H6,
    }
}

/// http, https and mailto only: pages of the site do not move with an analysis, so relative targets would break.
fn is_safe_link(target: &str) -> bool {
    let target = target.trim().to_ascii_lowercase();
    ["http://", "https://", "mailto:"]
        .iter()
        .any(|scheme| target.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_html_in_markdown_is_shown_as_text() {
        let rendered = markdown("# t\n\nA <script>alert(1)</script> b\n\n<img src=x onerror=y>\n");
        assert!(
            !rendered.contains("<script") && !rendered.contains("<img"),
            "{rendered}"
        );
        assert!(rendered.contains("&lt;script&gt;"), "{rendered}");
    }

    #[test]
    fn unsafe_links_become_their_text() {
        let rendered = markdown(
            "[a](javascript:alert(1)) [b](https://example.org) [c](../../x) ![d](http://e/f.png)",
        );
        assert!(
            rendered.contains("a <a href=\"https://example.org\">b</a> c"),
            "{rendered}"
        );
        assert!(
            !rendered.contains("javascript") && !rendered.contains("<img"),
            "{rendered}"
        );
    }

    #[test]
    fn tables_carry_no_style_attributes() {
        let rendered = markdown("| a | b |\n|:--|--:|\n| x | 1 |\n");
        assert!(!rendered.contains("style="), "{rendered}");
        assert!(
            rendered.contains("<td class=\"right\">1</td>"),
            "{rendered}"
        );
    }

    #[test]
    fn names_break_behind_their_underscores_in_tables_alone() {
        let rendered = markdown("a_b\n\n| pass_at_1 | <x_y> |\n|---|---|\n| `c_d` | e |\n");
        assert!(rendered.contains("<p>a_b</p>"), "{rendered}");
        assert!(
            rendered.contains("<th>pass_<wbr>at_<wbr>1</th>"),
            "{rendered}"
        );
        assert!(!rendered.contains("<x_"), "{rendered}");
    }

    #[test]
    fn headings_sink_below_the_page_title() {
        let rendered = markdown("# v002\n\n## Summary\n\ntext\n");
        assert!(
            !rendered.contains("v002") && rendered.contains("<h3>Summary</h3>"),
            "{rendered}"
        );
    }

    #[test]
    fn headings_of_a_document_stay_below_the_page_title() {
        let rendered = document("# Final\n\n## Warnings\n\n### v002\n");
        assert_eq!(rendered, "<h2>Warnings</h2>\n<h3>v002</h3>\n");
    }

    #[test]
    fn hidden_characters_are_written_out_and_colours_dropped() {
        assert_eq!(
            visible("a\u{202e}b\u{1b}[31mred\u{1b}[0m\r\n\u{7}"),
            "a⟨U+202E⟩bred\n⟨U+0007⟩"
        );
        assert_eq!(inert("<b>\"'&"), "&lt;b&gt;&quot;&#39;&amp;");
    }
}
