//! The check of finished sites: links, anchors, ids, language, title, outside hosts. Run on the folder as it is and on the
//! same folder two levels deeper, where a link that climbs too high would be hidden by the root of a server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use build_site::{Sink as _, Site};

pub(crate) fn is_page(path: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "html")
}

/// Name and attributes of an opening tag.
pub(crate) type Tag = (String, BTreeMap<String, String>);

/// Opening tags with their attributes: enough of HTML for pages that we write ourselves.
pub(crate) fn tags(page: &str) -> Vec<Tag> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = rest[start..]
            .find('>')
            .map(|end| start + end)
            .expect("every tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with(['/', '!']) {
            continue;
        }
        let name: String = tag
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let mut attributes = BTreeMap::new();
        let mut pieces = tag[name.len()..].split('"');
        while let (Some(key), Some(value)) = (pieces.next(), pieces.next()) {
            let key = key
                .trim()
                .trim_end_matches('=')
                .rsplit(' ')
                .next()
                .unwrap_or_default();
            attributes.insert(key.to_owned(), value.to_owned());
        }
        found.push((name, attributes));
    }
    found
}

/// Joins a relative link to the folder of a page; `None` when it leaves the site.
fn resolved(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => {
                parts.pop()?;
            }
            "." | "" => {}
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}

/// Everything that is wrong with a site.
pub(crate) fn faults(site: &Site) -> Vec<String> {
    faults_below(site, "")
}

/// [`faults`] of the site moved below a prefix, which ends with a slash.
pub(crate) fn faults_below(site: &Site, prefix: &str) -> Vec<String> {
    let files: BTreeMap<String, &[u8]> = site
        .files()
        .map(|(path, bytes)| (format!("{prefix}{path}"), bytes))
        .collect();
    let parsed: BTreeMap<&str, Vec<Tag>> = files
        .iter()
        .filter(|(path, _)| is_page(path))
        .map(|(path, bytes)| {
            (
                path.as_str(),
                tags(std::str::from_utf8(bytes).expect("pages are text")),
            )
        })
        .collect();
    let ids: BTreeMap<&str, Vec<&String>> = parsed
        .iter()
        .map(|(page, tags)| {
            (
                *page,
                tags.iter()
                    .filter_map(|(_, attributes)| attributes.get("id"))
                    .collect(),
            )
        })
        .collect();
    let mut faults = Vec::new();
    for (page, tags) in &parsed {
        let text = std::str::from_utf8(files[*page]).expect("pages are text");
        head(page.trim_start_matches(prefix), text, &mut faults);
        let unique: BTreeSet<&&String> = ids[page].iter().collect();
        if unique.len() != ids[page].len() {
            faults.push(format!("{page}: duplicate id"));
        }
        for (name, attributes) in tags {
            element(page, name, attributes, &mut faults);
            for key in ["href", "src"] {
                if let Some(link) = attributes.get(key)
                    && let Some(fault) = link_fault(page, link, prefix, &files, &ids)
                {
                    faults.push(fault);
                }
            }
            for key in ["aria-labelledby", "for"] {
                if let Some(label) = attributes
                    .get(key)
                    .filter(|label| !ids[page].contains(label))
                {
                    faults.push(format!("{page}: {key} {label} is missing"));
                }
            }
        }
    }
    faults
}

fn head(page: &str, text: &str, faults: &mut Vec<String>) {
    let inner = page
        .strip_prefix("r/")
        .and_then(|rest| rest.split_once('/'))
        .map_or(page, |(_, inner)| inner);
    let lang = if inner.starts_with("ko/") {
        "<html lang=\"ko\">"
    } else {
        "<html lang=\"en\">"
    };
    if !text.contains(lang) || !text.contains("<title>") || text.matches("<h1").count() != 1 {
        faults.push(format!("{page}: lang, title or h1"));
    }
}

/// The one script of the site is a classic one of its own; nothing runs or is styled in place.
fn element(
    page: &str,
    name: &str,
    attributes: &BTreeMap<String, String>,
    faults: &mut Vec<String>,
) {
    let is_ours = attributes
        .get("src")
        .is_some_and(|src| src.ends_with("site.js"))
        && !attributes.contains_key("type")
        && !attributes.contains_key("integrity");
    if (name == "script" && !is_ours)
        || attributes
            .keys()
            .any(|key| key.starts_with("on") || key == "style")
    {
        faults.push(format!("{page}: <{name}> with {attributes:?}"));
    }
}

fn link_fault(
    page: &str,
    link: &str,
    prefix: &str,
    files: &BTreeMap<String, &[u8]>,
    ids: &BTreeMap<&str, Vec<&String>>,
) -> Option<String> {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    if link.contains(':') || link.starts_with('/') {
        return Some(format!("{page}: outside link {link}"));
    }
    let target = if path.is_empty() {
        Some(page.to_owned())
    } else {
        resolved(page, path)
    };
    match target {
        Some(target) if !target.starts_with(prefix) => {
            Some(format!("{page}: {link} leaves the site"))
        }
        Some(target) if !files.contains_key(&target) => Some(format!("{page}: dead link {link}")),
        Some(target)
            if !anchor.is_empty() && !ids[target.as_str()].iter().any(|id| *id == anchor) =>
        {
            Some(format!("{page}: missing anchor {link}"))
        }
        Some(_) => None,
        None => Some(format!("{page}: {link} leaves the site")),
    }
}

#[test]
fn the_check_finds_what_it_is_for() {
    let page = |body: &str| {
        let mut site = Site::default();
        let html =
            format!("<html lang=\"en\"><title>t</title><h1>h</h1><p id=\"a\">{body}</p></html>");
        site.add("v/x/index.html", html.as_bytes()).unwrap();
        site.add("style.css", b"").unwrap();
        site
    };
    assert_eq!(
        faults(&page(
            "<a href=\"../../style.css\">x</a><a href=\"#a\">y</a>"
        )),
        Vec::<String>::new()
    );
    for broken in [
        "<a href=\"../../../style.css\">one level too high</a>",
        "<a href=\"/style.css\">from the root</a>",
        "<a href=\"https://example.org/\">outside</a>",
        "<a href=\"#b\">no such anchor</a>",
        "<a href=\"y.html\">no such page</a>",
        "<b id=\"a\">twice</b>",
        "<script>alert(1)</script>",
        "<script src=\"../../site.js\" type=\"module\"></script>",
        "<b style=\"color:red\">x</b>",
        "<label for=\"nothing\">x</label>",
    ] {
        for prefix in ["", "bucket/reports/"] {
            assert!(
                !faults_below(&page(broken), prefix).is_empty(),
                "{prefix}{broken}"
            );
        }
    }
}
