//! Learning the merges of a byte-pair encoding, with the same result in every process.
//!
//! The trainer of the `tokenizers` crate may hold one pair twice in its queue (a token can arise by two routes)
//! and then orders the two by the iteration order of a randomly seeded hash map. Artifact ids are digests of
//! bytes, so the merges are learned here; the crate splits, encodes, decodes and stores.

use std::collections::{BTreeMap, BTreeSet, HashMap};

type Pair = (u32, u32);

/// A piece of text as symbols, with the number of times that it occurs.
struct Word {
    symbols: Vec<u32>,
    count: i64,
}

/// Learns merges over `words`, the most frequent pair first, ties to the smaller ids.
///
/// `tokens` holds the text of each symbol id and grows by every new token, by `num_merges` at most; a merge whose
/// token is there already adds none. Pairs that occur once are left alone.
pub(crate) fn learn_merges(
    words: &BTreeMap<Vec<u32>, i64>,
    tokens: &mut Vec<String>,
    num_merges: usize,
) -> Vec<(String, String)> {
    let mut words: Vec<Word> = words
        .iter()
        .map(|(symbols, &count)| Word {
            symbols: symbols.clone(),
            count,
        })
        .collect();
    let mut ids: HashMap<String, u32> = (0..)
        .zip(tokens.iter())
        .map(|(id, t)| (t.clone(), id))
        .collect();
    let mut pairs = PairTable::new(&words);
    let mut merges = Vec::new();
    let wanted = tokens.len() + num_merges;
    while tokens.len() < wanted {
        let Some(pair) = pairs.most_frequent() else {
            break;
        };
        let (left, right) = (
            tokens[pair.0 as usize].clone(),
            tokens[pair.1 as usize].clone(),
        );
        let merged = format!("{left}{right}");
        let id = *ids.entry(merged.clone()).or_insert_with(|| {
            tokens.push(merged);
            tokens.len() as u32 - 1
        });
        merges.push((left, right));
        pairs.merge(pair, id, &mut words);
    }
    merges
}

/// How often each pair of neighbours occurs, and in which words.
struct PairTable {
    counts: HashMap<Pair, i64>,
    places: HashMap<Pair, BTreeSet<usize>>,
}

impl PairTable {
    fn new(words: &[Word]) -> Self {
        let mut table = Self {
            counts: HashMap::new(),
            places: HashMap::new(),
        };
        for (index, word) in words.iter().enumerate() {
            table.add(index, word);
        }
        table
    }

    fn add(&mut self, index: usize, word: &Word) {
        for pair in word.symbols.windows(2) {
            let pair = (pair[0], pair[1]);
            *self.counts.entry(pair).or_default() += word.count;
            self.places.entry(pair).or_default().insert(index);
        }
    }

    fn remove(&mut self, index: usize, word: &Word) {
        for pair in word.symbols.windows(2) {
            let pair = (pair[0], pair[1]);
            *self.counts.entry(pair).or_default() -= word.count;
            if let Some(places) = self.places.get_mut(&pair) {
                places.remove(&index);
            }
        }
    }

    /// The order of the map does not matter: the key is a total order.
    fn most_frequent(&self) -> Option<Pair> {
        self.counts
            .iter()
            .filter(|&(_, &count)| count > 1)
            .max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)))
            .map(|(&pair, _)| pair)
    }

    fn merge(&mut self, pair: Pair, id: u32, words: &mut [Word]) {
        let places = self.places.remove(&pair).unwrap_or_default();
        for index in places {
            self.remove(index, &words[index]);
            words[index].symbols = merged(&words[index].symbols, pair, id);
            self.add(index, &words[index]);
        }
        self.counts.remove(&pair);
    }
}

fn merged(symbols: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(symbols.len());
    let mut at = 0;
    while at < symbols.len() {
        if symbols[at..].starts_with(&[pair.0, pair.1]) {
            out.push(id);
            at += 2;
        } else {
            out.push(symbols[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_pair_goes_first_and_ties_go_to_smaller_ids() {
        let mut tokens: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        // "abc" three times, "bc" once: (b, c) occurs 4 times, (a, b) 3 times; then (a, bc) 3 times.
        let words = BTreeMap::from([(vec![0, 1, 2], 3), (vec![1, 2], 1)]);
        let merges = learn_merges(&words, &mut tokens, 2);
        let expected = [("b", "c"), ("a", "bc")].map(|(l, r)| (l.to_owned(), r.to_owned()));
        assert_eq!(merges, expected);
        assert_eq!(tokens, ["a", "b", "c", "bc", "abc"]);

        let mut tokens: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let tied = BTreeMap::from([(vec![0, 1], 2), (vec![1, 2], 2)]);
        assert_eq!(
            learn_merges(&tied, &mut tokens, 1),
            [("a".to_owned(), "b".to_owned())]
        );
    }

    #[test]
    fn repeated_symbols_merge_from_the_left() {
        assert_eq!(merged(&[5, 5, 5], (5, 5), 9), [9, 5]);
    }

    #[test]
    fn pairs_that_occur_once_are_left_alone() {
        let mut tokens: Vec<String> = ["a", "b"].map(String::from).to_vec();
        let words = BTreeMap::from([(vec![0, 1], 1)]);
        assert!(learn_merges(&words, &mut tokens, 5).is_empty());
    }
}
