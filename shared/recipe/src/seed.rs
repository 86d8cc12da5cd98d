//! Named streams of one seed, so that adding a consumer shifts no other.

use wmtp_artifacts::Digest;

/// The key of a named random stream: the first 8 bytes of SHA-256(`seed ":" name`), little-endian.
///
/// ```
/// use wmtp_recipe::seed::stream;
/// assert_eq!(stream(42, "split"), stream(42, "split"));
/// assert_ne!(stream(42, "split"), stream(42, "batches"));
/// assert_ne!(stream(42, "split"), stream(43, "split"));
/// ```
pub fn stream(seed: u64, name: &str) -> u64 {
    let digest = Digest::of(format!("{seed}:{name}").as_bytes());
    let hex = digest.to_string();
    u64::from_str_radix(&hex[..16], 16)
        .expect("a digest is hex")
        .swap_bytes()
}

#[cfg(test)]
mod tests {
    use super::stream;

    #[test]
    fn the_stream_key_is_the_start_of_the_digest() {
        // printf '42:split' | sha256sum
        assert_eq!(stream(42, "split").to_le_bytes(), EXPECTED);
    }

    const EXPECTED: [u8; 8] = [0x66, 0x36, 0xb2, 0xe2, 0xc6, 0x2c, 0x4b, 0xa2];
}
