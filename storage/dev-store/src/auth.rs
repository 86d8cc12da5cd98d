//! The access key and secret key of a root: random, made once, readable by the owner only.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use s3s::auth::SimpleAuth;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, random_name};
use crate::error::{AtPath, Error};

/// A pair of keys. `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

impl Keys {
    /// The keys of a root; the first server on it makes them.
    pub(crate) fn of_root(disk: &Disk) -> Result<Self, Error> {
        let path = disk.root().join("keys.json");
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&path, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = Self::random();
                let text = serde_json::to_vec(&keys).expect("two strings always serialise");
                disk.replace_file(&path, &text)?;
                disk.sync_dir(disk.root())?;
                Ok(keys)
            }
            Err(error) => Err(error).at(&path),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    fn random() -> Self {
        Self {
            access_key: format!("DEV{}", random_name()[..17].to_ascii_uppercase()),
            secret_key: format!("{}{}", random_name(), random_name()),
        }
    }

    /// The check of request signatures against these keys.
    pub(crate) fn checker(&self) -> SimpleAuth {
        SimpleAuth::from_single(self.access_key.clone(), self.secret_key.clone())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;
    use crate::disk::Disk;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), false).unwrap();
        let first = Keys::of_root(&disk).unwrap();
        assert_eq!(Keys::of_root(&disk).unwrap(), first);
        let mode = std::fs::metadata(folder.path().join("keys.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&first.secret_key));
    }
}
