//! One page of a listing over the ordered keys of a bucket.

use std::collections::BTreeMap;
use std::ops::Bound;

/// What a listing asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pub(crate) prefix: String,
    /// Keys that share the text up to the first delimiter after the prefix become one common prefix.
    pub(crate) delimiter: Option<String>,
    /// Where the page starts.
    pub(crate) start: Start,
    /// Entries per page, keys and common prefixes together.
    pub(crate) limit: usize,
}

/// Where a page starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Start {
    #[default]
    Beginning,
    /// Behind this key.
    AfterKey(String),
    /// Behind every key that begins with this common prefix.
    AfterPrefix(String),
}

/// A page: keys and common prefixes in order, and where the next page starts if there is one.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) objects: Vec<T>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) next: Option<Start>,
}

/// Lists one page; costs the entries of the page, however many keys lie behind a common prefix.
pub(crate) fn page<T: Clone>(objects: &BTreeMap<String, T>, query: &Query) -> Page<T> {
    let mut page = Page {
        objects: Vec::new(),
        prefixes: Vec::new(),
        next: None,
    };
    let (mut from, mut last) = (first_bound(query), query.start.clone());
    while let Some((key, object)) = from
        .take()
        .and_then(|bound| objects.range::<String, _>((bound, Bound::Unbounded)).next())
    {
        if !key.starts_with(&query.prefix) {
            break;
        }
        if page.objects.len() + page.prefixes.len() == query.limit {
            page.next = (query.limit > 0).then_some(last);
            break;
        }
        if let Some(common) = common_prefix(key, query) {
            from = behind_prefix(common).map(Bound::Included);
            last = Start::AfterPrefix(common.to_owned());
            page.prefixes.push(common.to_owned());
        } else {
            from = Some(Bound::Excluded(key.clone()));
            last = Start::AfterKey(key.clone());
            page.objects.push(object.clone());
        }
    }
    page
}

/// The first key position that is both inside the prefix and behind the start; `None` when there is none.
fn first_bound(query: &Query) -> Option<Bound<String>> {
    let inside = Bound::Included(query.prefix.clone());
    match &query.start {
        Start::AfterKey(key) if *key >= query.prefix => Some(Bound::Excluded(key.clone())),
        Start::AfterPrefix(prefix) => {
            behind_prefix(prefix).map(|next| Bound::Included(next.max(query.prefix.clone())))
        }
        Start::AfterKey(_) | Start::Beginning => Some(inside),
    }
}

fn common_prefix<'k>(key: &'k str, query: &Query) -> Option<&'k str> {
    let delimiter = query
        .delimiter
        .as_deref()
        .filter(|delimiter| !delimiter.is_empty())?;
    let rest = &key[query.prefix.len()..];
    let end = query.prefix.len() + rest.find(delimiter)? + delimiter.len();
    Some(&key[..end])
}

/// The smallest text behind everything that begins with `prefix`.
fn behind_prefix(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Page, Query, Start, behind_prefix, page};
    use proptest::prelude::{prop_assert_eq, proptest};
    use std::collections::{BTreeMap, BTreeSet};

    fn keys(names: &[&str]) -> BTreeMap<String, String> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), (*name).to_owned()))
            .collect()
    }

    fn all_pages(
        objects: &BTreeMap<String, String>,
        mut query: Query,
    ) -> (Vec<String>, Vec<String>) {
        let (mut names, mut prefixes) = (Vec::new(), Vec::new());
        loop {
            let Page {
                objects,
                prefixes: common,
                next,
            } = page(objects, &query);
            names.extend(objects);
            prefixes.extend(common);
            let Some(start) = next else {
                return (names, prefixes);
            };
            query.start = start;
        }
    }

    #[test]
    fn a_delimiter_folds_folders_and_an_exact_last_page_is_the_last() {
        let objects = keys(&["a", "b/1", "b/2", "b0", "c/d/e"]);
        let query = Query {
            delimiter: Some("/".to_owned()),
            limit: 4,
            ..Query::default()
        };
        let first = page(&objects, &query);
        assert_eq!(
            (first.objects, first.prefixes),
            (
                vec!["a".to_owned(), "b0".to_owned()],
                vec!["b/".to_owned(), "c/".to_owned()]
            )
        );
        assert_eq!(first.next, None);
        let two = page(&objects, &Query { limit: 2, ..query });
        assert_eq!(two.next, Some(Start::AfterPrefix("b/".to_owned())));
    }

    #[test]
    fn the_text_behind_a_prefix_skips_what_is_no_character() {
        assert_eq!(behind_prefix("a/"), Some("a0".to_owned()));
        assert_eq!(behind_prefix("a\u{D7FF}"), Some("a\u{E000}".to_owned()));
        assert_eq!(behind_prefix("a\u{10FFFF}"), Some("b".to_owned()));
        assert_eq!(behind_prefix("\u{10FFFF}"), None);
    }

    proptest! {
        #[test]
        fn pages_add_up_to_the_naive_listing(
            names in proptest::collection::btree_set("[ab/]{1,5}", 0..30),
            prefix in "[ab/]{0,2}",
            limit in 1_usize..5,
        ) {
            let objects = names.iter().map(|name| (name.clone(), name.clone())).collect();
            let query = Query { prefix: prefix.clone(), delimiter: Some("/".to_owned()), limit, ..Query::default() };
            let (found, common) = all_pages(&objects, query);
            let inside: Vec<&String> = names.iter().filter(|name| name.starts_with(&prefix)).collect();
            let plain: Vec<String> = inside.iter().filter(|name| !name[prefix.len()..].contains('/')).map(|name| (*name).clone()).collect();
            let folded: BTreeSet<String> = inside.iter().filter_map(|name| {
                let end = name[prefix.len()..].find('/')?;
                Some(name[..=prefix.len() + end].to_owned())
            }).collect();
            prop_assert_eq!(found, plain);
            prop_assert_eq!(common, folded.into_iter().collect::<Vec<_>>());
        }
    }
}
