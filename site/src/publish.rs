//! A finished folder on its way to a bucket: what changed is sent, readers never meet a page whose files are missing, and
//! what is gone is deleted last.

use std::collections::BTreeMap;
use std::path::Path;

use wmtp_artifacts::Store;

use crate::Error;
use crate::output::{MANIFEST, SNAPSHOTS, Written, listed_with_digests, snapshots};

/// Files sent at a time.
const IN_FLIGHT: usize = 16;

/// Brings a bucket up to date with a folder. The manifest is sent when all else is done: cut off, the same call begins
/// anew and ends the same.
///
/// # Errors
/// The folder holds no site; the store's errors.
pub async fn publish(root: &Path, store: &Store, force: bool) -> Result<Written, Error> {
    let manifest = read(root, MANIFEST)?;
    let wanted = listed_with_digests(&manifest);
    let there = store.page(MANIFEST).await?.unwrap_or_default();
    let before = if force {
        BTreeMap::new()
    } else {
        listed_with_digests(&there)
    };
    let mut written = Written::default();
    let mut changed: Vec<&String> = wanted
        .iter()
        .filter(|(path, digest)| before.get(*path) != Some(*digest))
        .map(|(path, _)| path)
        .collect();
    written.unchanged = wanted.len() - changed.len();
    changed.sort_by_key(|path| (turn(path), path.as_str()));
    for name in snapshots(root) {
        publish_snapshot(root, store, &name, &mut written).await?;
    }
    for of_turn in changed.chunk_by(|a, b| turn(a) == turn(b)) {
        send_all(
            root,
            store,
            of_turn.iter().map(|path| (*path).clone()).collect(),
        )
        .await?;
        written.changed += of_turn.len();
    }
    for path in before.keys().filter(|path| !wanted.contains_key(*path)) {
        store.delete_page(path).await?;
        written.removed += 1;
    }
    if there != manifest || force {
        send(root, store, MANIFEST.to_owned()).await?;
        written.changed += 1;
    } else {
        written.unchanged += 1;
    }
    Ok(written)
}

/// Style and script first, then data, pages, and the first page, which leads to all others.
fn turn(path: &str) -> u8 {
    match path {
        "index.html" => 3,
        _ if is_page(path) => 2,
        _ if path.starts_with("data/") => 1,
        _ => 0,
    }
}

fn is_page(path: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "html")
}

/// A snapshot that the bucket holds whole is left alone.
async fn publish_snapshot(
    root: &Path,
    store: &Store,
    name: &str,
    written: &mut Written,
) -> Result<(), Error> {
    let folder = format!("{SNAPSHOTS}{name}/");
    let manifest = format!("{folder}{MANIFEST}");
    if store.page(&manifest).await?.is_some() {
        return Ok(());
    }
    let files = listed_with_digests(&read(root, &manifest)?);
    written.changed += files.len() + 1;
    send_all(
        root,
        store,
        files
            .into_keys()
            .map(|path| format!("{folder}{path}"))
            .collect(),
    )
    .await?;
    send(root, store, manifest).await
}

async fn send_all(root: &Path, store: &Store, paths: Vec<String>) -> Result<(), Error> {
    use futures::{StreamExt, TryStreamExt, stream};
    stream::iter(paths)
        .map(|path| send(root, store, path))
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
}

async fn send(root: &Path, store: &Store, path: String) -> Result<(), Error> {
    let bytes = read(root, &path)?;
    store
        .put_page(
            &path,
            bytes.into(),
            content_type(&path),
            cache_control(&path),
        )
        .await?;
    Ok(())
}

fn read(root: &Path, path: &str) -> Result<Vec<u8>, Error> {
    let path = root.join(path);
    std::fs::read(&path).map_err(|source| Error::Io { path, source })
}

/// The type that a browser needs to be told.
fn content_type(path: &str) -> &'static str {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "atom" => "application/atom+xml; charset=utf-8",
        "parquet" => "application/vnd.apache.parquet",
        _ => "application/octet-stream",
    }
}

/// Snapshots never change; everything else is asked for anew, and answered by its tag where it is the same.
fn cache_control(path: &str) -> &'static str {
    if path.starts_with(SNAPSHOTS) {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_after_what_they_use_and_the_first_page_last() {
        let mut paths = [
            "index.html",
            "v/v001/index.html",
            "data/leaderboard.csv",
            "style.css",
            "ko/index.html",
        ];
        paths.sort_by_key(|path| (turn(path), *path));
        assert_eq!(
            paths,
            [
                "style.css",
                "data/leaderboard.csv",
                "ko/index.html",
                "v/v001/index.html",
                "index.html"
            ]
        );
    }

    #[test]
    fn only_snapshots_may_be_kept_by_a_browser() {
        assert_eq!(cache_control("index.html"), "no-cache");
        assert!(cache_control("r/2026-11-21_12-05/index.html").contains("immutable"));
        assert_eq!(
            content_type("feed.atom"),
            "application/atom+xml; charset=utf-8"
        );
        assert_eq!(
            content_type("data/leaderboard.csv"),
            "text/csv; charset=utf-8"
        );
    }
}
