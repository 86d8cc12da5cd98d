//! What many requests and responses have in common, where the generated types have fields of the same name but no
//! common trait: hence macros.

/// The checksum values that a request carries in its five fields.
macro_rules! sent_sums {
    ($input:expr) => {{
        let values = [
            (Algorithm::Crc32, $input.checksum_crc32.clone()),
            (Algorithm::Crc32c, $input.checksum_crc32c.clone()),
            (Algorithm::Crc64nvme, $input.checksum_crc64nvme.clone()),
            (Algorithm::Sha1, $input.checksum_sha1.clone()),
            (Algorithm::Sha256, $input.checksum_sha256.clone()),
        ];
        values
            .into_iter()
            .filter_map(|(algorithm, value)| Some((algorithm, value?)))
            .collect::<Sums>()
    }};
}

/// Fills the five checksum fields of a response.
macro_rules! set_sums {
    ($output:expr, $sums:expr) => {{
        let sums: &Sums = $sums;
        $output.checksum_crc32 = sums.get(&Algorithm::Crc32).cloned();
        $output.checksum_crc32c = sums.get(&Algorithm::Crc32c).cloned();
        $output.checksum_crc64nvme = sums.get(&Algorithm::Crc64nvme).cloned();
        $output.checksum_sha1 = sums.get(&Algorithm::Sha1).cloned();
        $output.checksum_sha256 = sums.get(&Algorithm::Sha256).cloned();
    }};
}

/// The headers that a request attaches to an object.
macro_rules! attached_headers {
    ($input:expr) => {
        Headers {
            content_type: $input.content_type.clone(),
            content_encoding: $input.content_encoding.as_deref().and_then(stored_encoding),
            content_disposition: $input.content_disposition.clone(),
            content_language: $input.content_language.clone(),
            cache_control: $input.cache_control.clone(),
            metadata: $input
                .metadata
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
        }
    };
}

/// Fills what GET and HEAD have in common.
macro_rules! describe {
    ($output:expr, $object:expr, $selection:expr, $with_sums:expr) => {{
        let (record, selection): (&ObjectRecord, &Selection) = (&$object.record, $selection);
        let headers = record.headers.clone();
        $output.accept_ranges = Some("bytes".to_owned());
        $output.content_length = Some((selection.bytes.end - selection.bytes.start) as i64);
        $output.content_range = selection.content_range(record.size);
        $output.parts_count = selection.of_part.then_some(record.segments.len() as i32);
        $output.e_tag = Some(ETag::Strong(record.etag.clone()));
        $output.last_modified = Some(timestamp(record.modified));
        $output.content_type = Some(
            headers
                .content_type
                .unwrap_or_else(|| "binary/octet-stream".to_owned()),
        );
        $output.content_encoding = headers.content_encoding;
        $output.content_disposition = headers.content_disposition;
        $output.content_language = headers.content_language;
        $output.cache_control = headers.cache_control;
        $output.metadata = Some(headers.metadata.into_iter().collect::<Metadata>());
        if $with_sums && !selection.partial {
            set_sums!($output, &record.checksums.sums);
            $output.checksum_type = Some(checksum_type(record.checksums.composite));
        }
    }};
}
