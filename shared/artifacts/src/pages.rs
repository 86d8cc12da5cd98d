//! Files for browsers beside the artifacts: replaced in place, with the headers that a web server would send.

use bytes::Bytes;

use crate::client::Headers;
use crate::{Error, Result, Store};

/// Everything of the store's own lies below this.
const OWN: &str = "v1/";

impl Store {
    /// Writes a file for browsers, replacing what is there.
    ///
    /// # Errors
    /// [`Error::Usage`] when the path is not a plain relative one or lies where the store keeps artifacts.
    pub async fn put_page(
        &self,
        path: &str,
        bytes: Bytes,
        content_type: &str,
        cache_control: &str,
    ) -> Result<()> {
        check_path(path)?;
        let headers = Headers {
            content_type: Some(content_type),
            cache_control: Some(cache_control),
        };
        self.bucket.put_with(path, bytes, headers).await
    }

    /// A small file for browsers, or none.
    ///
    /// # Errors
    /// As [`Store::put_page`].
    pub async fn page(&self, path: &str) -> Result<Option<Bytes>> {
        check_path(path)?;
        self.bucket.get(path).await
    }

    /// Removes a file for browsers; one that is not there counts as removed.
    ///
    /// # Errors
    /// As [`Store::put_page`].
    pub async fn delete_page(&self, path: &str) -> Result<()> {
        check_path(path)?;
        self.bucket.delete(path).await.map(|_| ())
    }
}

fn check_path(path: &str) -> Result<()> {
    let plain = !path.starts_with(OWN)
        && path.len() <= 512
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if plain {
        return Ok(());
    }
    Err(Error::usage(
        format!("page {path:?}"),
        "expected a relative path without '.' or '..', outside v1/, where artifacts are",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_stay_outside_the_artifacts_and_inside_the_prefix() {
        for path in ["index.html", "v/v001/index.html", "data/manifest.json"] {
            check_path(path).unwrap();
        }
        for path in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            "v1/names/x.json",
            "a\u{0}",
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
    }
}
