//! Values that change over time, kept as numbered objects that never do.
//!
//! `0000.json, 0001.json, …`: the newest is the highest number. A writer that loses the race for a number
//! reads the winner and decides again. Stores differ in `If-Match`; create-only they all get right.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use crate::client::Bucket;
use crate::commit::create_only;
use crate::manifest::{new_write_id, parse_strict};
use crate::{Error, Outcome, Result};

/// Rounds after which a race is given up; each round someone else has won.
const MAX_ROUNDS: usize = 100;

/// The numbers in a folder, ascending.
async fn numbers(bucket: &Bucket, folder: &str) -> Result<Vec<u64>> {
    let keys = bucket.list(folder).await?;
    let mut numbers: Vec<u64> = keys.iter().filter_map(|key| number(key, folder)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The newest generation in a folder: its number and its bytes.
pub(crate) async fn newest(bucket: &Bucket, folder: &str) -> Result<Option<(u64, Bytes)>> {
    let mut numbers = numbers(bucket, folder).await?;
    while let Some(number) = numbers.pop() {
        // An object may vanish between listing and reading only by hand; the one before it then counts.
        if let Some(bytes) = bucket.get(&generation(folder, number)).await? {
            return Ok(Some((number, bytes)));
        }
    }
    Ok(None)
}

/// Every generation in a folder with its number, the oldest first.
pub(crate) async fn all(bucket: &Bucket, folder: &str) -> Result<Vec<(u64, Bytes)>> {
    let dated = dated(bucket, folder).await?.into_iter();
    Ok(dated.map(|(number, bytes, _)| (number, bytes)).collect())
}

/// Every generation in a folder with its number and when it was written, in seconds by the store's clock; the oldest first.
pub(crate) async fn dated(bucket: &Bucket, folder: &str) -> Result<Vec<(u64, Bytes, i64)>> {
    let mut listed = BTreeMap::new();
    bucket
        .list_objects(folder, |object| {
            if let Some(number) = number(&object.key, folder) {
                listed.insert(number, object.modified);
            }
        })
        .await?;
    let mut found = Vec::new();
    for (number, modified) in listed {
        let bytes = bucket.get(&generation(folder, number)).await?;
        found.extend(bytes.map(|bytes| (number, bytes, modified)));
    }
    Ok(found)
}

/// Adds a generation, unless any of them already says the same. Returns those up to the one that does, the oldest first.
pub(crate) async fn append_once(
    bucket: &Bucket,
    folder: &str,
    mut value: Value,
    says_the_same: impl Fn(&Value) -> bool,
) -> Result<Vec<(u64, Bytes)>> {
    let is_same = |bytes: &[u8]| parse_strict(bytes).is_ok_and(|found| says_the_same(&found));
    value["write_id"] = new_write_id().into();
    let bytes = value.to_string().into_bytes();
    for _ in 0..MAX_ROUNDS {
        let mut found = all(bucket, folder).await?;
        if let Some(place) = found.iter().position(|(_, bytes)| is_same(bytes)) {
            found.truncate(place + 1);
            return Ok(found);
        }
        let next = found.last().map_or(0, |(number, _)| number + 1);
        // Whoever took the number, the next round reads it.
        create_only(bucket, &generation(folder, next), bytes.clone(), is_same).await?;
    }
    Err(raced(bucket, folder))
}

/// Adds a generation, unless the newest one already says the same.
pub(crate) async fn append(
    bucket: &Bucket,
    folder: &str,
    mut value: Value,
    says_the_same: impl Fn(&Value) -> bool,
) -> Result<()> {
    let is_same = |bytes: &[u8]| parse_strict(bytes).is_ok_and(|found| says_the_same(&found));
    value["write_id"] = new_write_id().into();
    let bytes = value.to_string().into_bytes();
    for _ in 0..MAX_ROUNDS {
        let next = match newest(bucket, folder).await? {
            Some((_, found)) if is_same(&found) => return Ok(()),
            Some((number, _)) => number + 1,
            None => 0,
        };
        let key = generation(folder, next);
        let (outcome, _) = create_only(bucket, &key, bytes.clone(), is_same).await?;
        if outcome != Outcome::TheirsDifferent {
            return Ok(());
        }
    }
    Err(raced(bucket, folder))
}

/// Adds the generation with a number; false where another has taken it.
pub(crate) async fn append_at(
    bucket: &Bucket,
    folder: &str,
    number: u64,
    mut value: Value,
) -> Result<bool> {
    value["write_id"] = new_write_id().into();
    let bytes = value.to_string().into_bytes();
    let (outcome, _) = create_only(bucket, &generation(folder, number), bytes, |_| false).await?;
    Ok(outcome != Outcome::TheirsDifferent)
}

fn raced(bucket: &Bucket, folder: &str) -> Error {
    Error::Held {
        run: format!("{folder} in {}", bucket.place()),
        holder: format!("others, who changed it {MAX_ROUNDS} times meanwhile"),
    }
}

/// Key of a generation.
fn generation(folder: &str, number: u64) -> String {
    format!("{folder}{number:04}.json")
}

/// Number of a key in a folder.
fn number(key: &str, folder: &str) -> Option<u64> {
    key.strip_prefix(folder)?
        .strip_suffix(".json")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers() {
        let folder = "v1/names/scores/x/";
        for n in [0, 7, 9_999, 10_000] {
            assert_eq!(number(&generation(folder, n), folder), Some(n));
        }
        assert_eq!(number("v1/names/scores/x/y/0001.json", folder), None);
    }
}
