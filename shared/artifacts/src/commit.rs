//! Create-only writes and how their answers are judged. No other code sends a conditional request.
//!
//! "412 Precondition Failed" is not a conflict until the object is read back: after a lost reply the retry
//! meets our own write.

use bytes::Bytes;

use crate::client::{Bucket, Patience, status};
use crate::{Crc64, Error, Result};

/// How a create-only write ended. In every case the key now holds an object, and it will never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// We wrote it.
    Committed,
    /// It was there and holds exactly our bytes: an earlier attempt of ours whose reply was lost.
    AlreadyOurs,
    /// Another wrote it, and it means the same.
    TheirsEqual,
    /// Another wrote it, and it means something else.
    TheirsDifferent,
}

/// What a single create-only PUT told.
enum Answer {
    Created,
    /// There is, or may be, an object: read it.
    Unclear(Error),
    /// Reading would not help.
    Refused(Error),
}

/// Writes an object if its key is free, and says how it went.
///
/// `means_the_same` compares a foreign object with ours. Returns the object that the key holds.
pub(crate) async fn create_only(
    bucket: &Bucket,
    key: &str,
    bytes: Vec<u8>,
    means_the_same: impl Fn(&[u8]) -> bool,
) -> Result<(Outcome, Bytes)> {
    let bytes = Bytes::from(bytes);
    let mut pause = bucket.backoff();
    loop {
        let error = match put_if_absent(bucket, Patience::Full, key, bytes.clone()).await {
            Answer::Created => return Ok((Outcome::Committed, bytes)),
            Answer::Refused(error) => return Err(error),
            Answer::Unclear(error) => error,
        };
        if let Some(found) = bucket.get(key).await? {
            let outcome = judge(&bytes, &found, &means_the_same);
            return Ok((outcome, found));
        }
        // Absent although it was refused: a conflicting write was under way, or ours never arrived.
        if !pause.wait().await {
            return Err(error);
        }
    }
}

/// What an object found under our key is to us.
fn judge(ours: &[u8], found: &[u8], means_the_same: impl Fn(&[u8]) -> bool) -> Outcome {
    if ours == found {
        Outcome::AlreadyOurs
    } else if means_the_same(found) {
        Outcome::TheirsEqual
    } else {
        Outcome::TheirsDifferent
    }
}

/// Writes the same key twice; the second write must be refused, or the store cannot carry the protocol.
pub(crate) async fn prove_conditions(bucket: &Bucket, key: &str, bytes: Bytes) -> Result<()> {
    for round in 1..=2 {
        match put_if_absent(bucket, Patience::Probe, key, bytes.clone()).await {
            Answer::Created if round == 2 => {
                return Err(bucket.unavailable(
                    "commit",
                    "the store ignores create-only conditions, so two writers could both win"
                        .to_owned(),
                    "use a store that answers If-None-Match: * with 412",
                ));
            }
            Answer::Refused(error) => return Err(error),
            Answer::Created => {}
            Answer::Unclear(error) => match bucket.get_with(Patience::Probe, key).await? {
                Some(_) => {}
                None => return Err(error),
            },
        }
    }
    Ok(())
}

async fn put_if_absent(bucket: &Bucket, patience: Patience, key: &str, body: Bytes) -> Answer {
    let crc = bucket.send_checksums.then(|| Crc64::of(&body).base64());
    let request = bucket
        .client_for(patience)
        .put_object()
        .bucket(&bucket.uri.bucket)
        .key(bucket.key(key))
        .if_none_match("*")
        .set_checksum_crc64_nvme(crc)
        .body(body.into());
    let mut request = request.customize().config_override(bucket.slow_upload());
    if !bucket.sign_payload {
        request = request.disable_payload_signing();
    }
    match request.send().await {
        Ok(_) => Answer::Created,
        Err(error) => {
            let is_final = matches!(status(&error), Some(400 | 401 | 403 | 404));
            let error = bucket.failure(&format!("create {key}"), error).await;
            if is_final {
                Answer::Refused(error)
            } else {
                Answer::Unclear(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_write_is_judged_by_what_the_key_holds() {
        let same = |found: &[u8]| found.ends_with(b"x");
        assert_eq!(judge(b"1x", b"1x", same), Outcome::AlreadyOurs);
        assert_eq!(judge(b"1x", b"2x", same), Outcome::TheirsEqual);
        assert_eq!(judge(b"1x", b"1y", same), Outcome::TheirsDifferent);
    }
}
