//! Finding out, before work begins, that the store can be used.

use bytes::Bytes;
use jiff::Timestamp;

use crate::{Result, Store, commit, layout};

/// A clock that is further off than this is worth a warning; signatures still work.
const SKEW_WARNING_SECS: u64 = 60;
/// A clock that is further off than this makes signatures fail sooner or later.
const SKEW_LIMIT_SECS: u64 = 600;

impl Store {
    /// Checks that the store answers, that the credentials are right and the bucket exists. Reads only.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] names endpoint, bucket and operation, and what to check. It comes within
    /// seconds: there are few retries.
    pub async fn reach(&self) -> Result<()> {
        let Some(theirs) = self.bucket.touch().await? else {
            return Ok(());
        };
        let skew = theirs.abs_diff(Timestamp::now().as_second());
        if skew > SKEW_LIMIT_SECS {
            return Err(self.bucket.unavailable(
                "agree on the time",
                format!("the clocks are {skew} s apart"),
                "set this machine's clock: requests are signed with the time",
            ));
        }
        if skew > SKEW_WARNING_SECS {
            tracing::warn!(skew, "the clocks of the store and of this machine differ");
        }
        Ok(())
    }

    /// [`Store::reach`], and proves that writing works and that a create-only write is refused the second
    /// time: everything that the protocol's safety rests on.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] as [`Store::reach`], or when the store ignores conditions.
    pub async fn preflight(&self) -> Result<()> {
        self.reach().await?;
        let probe = Bytes::from_static(b"{\"probe\":\"written once, never changed\"}\n");
        commit::prove_conditions(&self.bucket, layout::PROBE, probe).await
    }
}
