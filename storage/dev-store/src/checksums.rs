//! Content digests: computing them while a body arrives, holding them against what the client sent, and deriving
//! the digest of a multipart object from those of its parts without reading a byte again.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The checksum algorithms of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64nvme,
        Self::Sha1,
        Self::Sha256,
    ];

    /// The name in S3 requests.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The header or trailer that carries the value.
    pub(crate) const fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// The linear algorithms, whose value for a whole follows from the values of its parts; with its width in bytes.
    const fn linear(self) -> Option<(CrcAlgorithm, usize)> {
        match self {
            Self::Crc32 => Some((CrcAlgorithm::Crc32IsoHdlc, 4)),
            Self::Crc32c => Some((CrcAlgorithm::Crc32Iscsi, 4)),
            Self::Crc64nvme => Some((CrcAlgorithm::Crc64Nvme, 8)),
            Self::Sha1 | Self::Sha256 => None,
        }
    }
}

/// Base64 values by algorithm.
pub(crate) type Sums = BTreeMap<Algorithm, String>;

/// The digests kept with an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksums {
    /// Values over the digests of the parts (`<base64>-<parts>`) rather than over the bytes.
    pub(crate) composite: bool,
    pub(crate) sums: Sums,
}

/// Digests a body as it arrives.
pub(crate) struct BodyHasher {
    sums: ChecksumHasher,
    md5: Option<Md5>,
}

/// The digests of a received body.
pub(crate) struct BodyDigests {
    pub(crate) sums: Sums,
    md5: Option<[u8; 16]>,
}

impl BodyHasher {
    pub(crate) fn new(algorithms: impl IntoIterator<Item = Algorithm>, md5: bool) -> Self {
        let mut sums = ChecksumHasher::default();
        for algorithm in algorithms {
            match algorithm {
                Algorithm::Crc32 => sums.crc32 = Some(Crc32::new()),
                Algorithm::Crc32c => sums.crc32c = Some(Crc32c::new()),
                Algorithm::Crc64nvme => sums.crc64nvme = Some(Crc64Nvme::new()),
                Algorithm::Sha1 => sums.sha1 = Some(Sha1::new()),
                Algorithm::Sha256 => sums.sha256 = Some(Sha256::new()),
            }
        }
        Self {
            sums,
            md5: md5.then(Md5::new),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sums.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    pub(crate) fn finish(self) -> BodyDigests {
        let sums = self.sums.finalize();
        let values = [
            (Algorithm::Crc32, sums.checksum_crc32),
            (Algorithm::Crc32c, sums.checksum_crc32c),
            (Algorithm::Crc64nvme, sums.checksum_crc64nvme),
            (Algorithm::Sha1, sums.checksum_sha1),
            (Algorithm::Sha256, sums.checksum_sha256),
        ];
        BodyDigests {
            sums: values
                .into_iter()
                .filter_map(|(algorithm, value)| Some((algorithm, value?)))
                .collect(),
            md5: self.md5.map(Md5::finalize),
        }
    }
}

/// What the client says about a body, before it arrives.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Values sent in headers.
    pub(crate) sums: Sums,
    /// Algorithms whose value follows the body in a trailer.
    pub(crate) trailers: Vec<Algorithm>,
    /// `Content-MD5`, in base64.
    pub(crate) md5: Option<String>,
}

impl Expected {
    /// A hasher for all that is to be checked, and always CRC64NVME, which costs next to nothing and lets any client
    /// check any object.
    pub(crate) fn hasher(&self, also: Option<Algorithm>) -> BodyHasher {
        let algorithms = self
            .sums
            .keys()
            .chain(&self.trailers)
            .copied()
            .chain(also)
            .chain([Algorithm::Crc64nvme]);
        BodyHasher::new(algorithms, self.md5.is_some())
    }

    /// Holds the received bytes against headers and trailers.
    pub(crate) fn check(&self, digests: &BodyDigests, trailers: &Sums) -> Result<(), Error> {
        if let Some(missing) = self
            .trailers
            .iter()
            .find(|algorithm| !trailers.contains_key(*algorithm))
        {
            return Err(Error::Body(format!(
                "the trailer {} was announced and did not come",
                missing.header()
            )));
        }
        require(&self.sums, &digests.sums)?;
        require(trailers, &digests.sums)?;
        match (&self.md5, &digests.md5) {
            (Some(sent), Some(computed)) => same("Content-MD5", sent, &BASE64.encode(computed)),
            _ => Ok(()),
        }
    }
}

/// Every value the client sent must be the one we know.
pub(crate) fn require(sent: &Sums, known: &Sums) -> Result<(), Error> {
    sent.iter().try_for_each(|(algorithm, value)| {
        same(
            algorithm.name(),
            value,
            known.get(algorithm).map_or("none", String::as_str),
        )
    })
}

fn same(algorithm: &'static str, sent: &str, computed: &str) -> Result<(), Error> {
    if sent == computed {
        Ok(())
    } else {
        Err(Error::BadDigest {
            algorithm,
            sent: sent.to_owned(),
            computed: computed.to_owned(),
        })
    }
}

/// The digests of an object made of `parts` (their values and sizes, in order).
///
/// Composite: the algorithm over the concatenated part digests, with the number of parts behind a dash. Else: the
/// linear algorithms combined to the value over all bytes; an algorithm that a part lacks is left out.
pub(crate) fn of_parts(
    algorithm: Option<Algorithm>,
    composite: bool,
    parts: &[(&Sums, u64)],
) -> Checksums {
    let sums = match algorithm {
        Some(algorithm) if composite => composite_sum(algorithm, parts)
            .map(|sum| (algorithm, sum))
            .into_iter()
            .collect(),
        _ => Algorithm::ALL
            .into_iter()
            .filter_map(|each| Some((each, combined_sum(each, parts)?)))
            .collect(),
    };
    Checksums { composite, sums }
}

fn composite_sum(algorithm: Algorithm, parts: &[(&Sums, u64)]) -> Option<String> {
    let mut hasher = BodyHasher::new([algorithm], false);
    for (sums, _) in parts {
        hasher.update(&BASE64.decode(sums.get(&algorithm)?).ok()?);
    }
    let sum = hasher.finish().sums.remove(&algorithm)?;
    Some(format!("{sum}-{}", parts.len()))
}

fn combined_sum(algorithm: Algorithm, parts: &[(&Sums, u64)]) -> Option<String> {
    let (crc, width) = algorithm.linear()?;
    let mut whole = None;
    for (sums, size) in parts {
        let bytes = BASE64.decode(sums.get(&algorithm)?).ok()?;
        let part = bytes
            .iter()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte));
        whole = Some(whole.map_or(part, |before| {
            crc_fast::checksum_combine(crc, before, part, *size)
        }));
    }
    whole.map(|value: u64| BASE64.encode(&value.to_be_bytes()[8 - width..]))
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, BodyHasher, Expected, Sums, of_parts};
    use crate::error::Error;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn sums_of(bytes: &[u8]) -> Sums {
        let mut hasher = BodyHasher::new(Algorithm::ALL, false);
        hasher.update(bytes);
        hasher.finish().sums
    }

    #[test]
    fn known_values_of_the_check_string() {
        // CRC catalogue check values of "123456789": CRC-32 cbf43926, CRC-32C e3069283, CRC-64/NVME ae8b14860a799888.
        let sums = sums_of(b"123456789");
        assert_eq!(sums[&Algorithm::Crc32], "y/Q5Jg==");
        assert_eq!(sums[&Algorithm::Crc32c], "4waSgw==");
        assert_eq!(sums[&Algorithm::Crc64nvme], "rosUhgp5mIg=");
    }

    #[test]
    fn a_wrong_digest_and_a_missing_trailer_are_refused() {
        let wrong = Expected {
            sums: [(Algorithm::Crc32, "AAAAAA==".to_owned())].into(),
            ..Expected::default()
        };
        let digests = wrong.hasher(None).finish();
        wrong
            .check(&digests, &Sums::new())
            .expect("the CRC-32 of nothing is zero");
        let mut hasher = wrong.hasher(None);
        hasher.update(b"x");
        assert!(matches!(
            wrong.check(&hasher.finish(), &Sums::new()),
            Err(Error::BadDigest { .. })
        ));

        let announced = Expected {
            trailers: vec![Algorithm::Sha256],
            ..Expected::default()
        };
        let digests = announced.hasher(None).finish();
        assert!(matches!(
            announced.check(&digests, &Sums::new()),
            Err(Error::Body(_))
        ));
    }

    #[test]
    fn composite_counts_the_parts() {
        let (a, b) = (sums_of(b"a"), sums_of(b"b"));
        let sums = of_parts(Some(Algorithm::Sha256), true, &[(&a, 1), (&b, 1)]);
        // Python: b64encode(sha256(sha256(b"a").digest() + sha256(b"b").digest()).digest())
        assert_eq!(
            sums.sums[&Algorithm::Sha256],
            "5aAf7hTg7VxIcU8iGA8lrYNltT+XefedxKPX6Tlj+Uo=-2"
        );
    }

    proptest! {
        #[test]
        fn combined_parts_have_the_sums_of_the_whole(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..200), 1..6)) {
            let sums: Vec<(Sums, u64)> = parts.iter().map(|part| (sums_of(part), part.len() as u64)).collect();
            let views: Vec<(&Sums, u64)> = sums.iter().map(|(sums, size)| (sums, *size)).collect();
            let combined = of_parts(None, false, &views).sums;
            let whole = sums_of(&parts.concat());
            for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64nvme] {
                prop_assert_eq!(&combined[&algorithm], &whole[&algorithm]);
            }
        }
    }
}
