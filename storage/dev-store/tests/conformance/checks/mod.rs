//! The 44 checks that an S3 server is held against, by number: on dev-store one test each, on other servers all in a
//! row. `storage/README.md` says which server passes which; the tests fail where it does not say what is.

mod access;
mod conditions;
mod foreign;
mod integrity;
mod multipart;
mod objects;
mod reads;
mod target;

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use dev_store::TestServer;

use self::target::{Server, Target};

/// After so long a check has failed: some servers never let a counter get to its end.
const MOST_TIME: Duration = Duration::from_mins(2);

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One check. It panics where the server does not do what it should.
struct Check {
    number: u8,
    /// As the table of `storage/README.md` calls it.
    what: &'static str,
    run: fn(Target) -> Running,
}

impl Check {
    /// Whether the server passes.
    async fn passes_on(&self, server: &Server) -> bool {
        let target = Target::new(server, self.number);
        let running = tokio::spawn((self.run)(target));
        let stop = running.abort_handle();
        let ended = tokio::time::timeout(MOST_TIME, running).await;
        stop.abort();
        matches!(ended, Ok(Ok(())))
    }
}

macro_rules! checks {
    ($($number:literal $module:ident::$name:ident $what:literal,)+) => {
        const CHECKS: [Check; 44] = [$(Check {
            number: $number,
            what: $what,
            run: |target| Box::pin($module::$name(target)),
        }),+];

        mod on_dev_store {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::dev_store_does_what_the_table_says($number).await;
                }
            )+
        }
    };
}

checks! {
    1 objects::c01_bytes_metadata_and_type "put and get: bytes, metadata, content type",
    2 objects::c02_streamed_body "body streamed from a file",
    3 integrity::c03_crc32 "CRC32 stored and returned",
    4 integrity::c04_crc32c "CRC32C stored and returned",
    5 integrity::c05_crc64nvme "CRC64NVME stored and returned",
    6 integrity::c06_sha1 "SHA-1 stored and returned",
    7 integrity::c07_sha256 "SHA-256 stored and returned",
    8 integrity::c08_wrong_sha256_refused "wrong SHA-256 refused",
    9 integrity::c09_refusal_keeps_the_old_object "old object whole after that",
    10 integrity::c10_wrong_md5_refused "wrong Content-MD5 refused, nothing visible",
    11 multipart::c11_parts_out_of_order "parts out of order become one object",
    12 multipart::c12_list_parts "ListParts",
    13 multipart::c13_list_uploads "ListMultipartUploads",
    14 multipart::c14_wrong_etag_at_complete "Complete with a wrong ETag refused",
    15 multipart::c15_wrong_part_checksum "part with a wrong checksum refused",
    16 multipart::c16_wrong_whole_checksum "Complete with a wrong CRC64NVME refused",
    17 multipart::c17_small_middle_part "small part in the middle refused",
    18 multipart::c18_multipart_over_one_put "multipart over a single PUT readable",
    19 reads::c19_ranges "ranges: middle, end, rest",
    20 reads::c20_range_behind_the_end "range behind the end is 416",
    21 reads::c21_get_by_part "GET by part number",
    22 reads::c22_get_if_match "GET If-Match, wrong ETag: 412",
    23 reads::c23_get_if_none_match "GET If-None-Match, same ETag: 304",
    24 objects::c24_listing_pages_in_order "listing: pages, in order",
    25 objects::c25_listing_has_etags "listing: ETags",
    26 objects::c26_odd_keys "odd characters in keys",
    27 objects::c27_long_keys "keys of 200, 600 and 1,024 bytes",
    28 objects::c28_key_beside_folder "object `n` beside `n/x`",
    29 conditions::c29_create_only "PUT If-None-Match: *, object there: 412",
    30 conditions::c30_race_of_small_writers "24 creators of 16 bytes: one wins",
    31 conditions::c31_race_of_large_writers "24 creators of 2 MiB: one wins",
    32 conditions::c32_put_if_match "PUT If-Match: right, wrong, absent",
    33 conditions::c33_counter "counter by compare-and-swap",
    34 conditions::c34_conditional_complete "Complete If-None-Match: *, object there: 412",
    35 conditions::c35_conditional_delete "DELETE If-Match, wrong ETag: 412",
    36 access::c36_presigned "presigned GET and PUT",
    37 access::c37_presigned_wrongly "presigned and altered, or expired: refused",
    38 access::c38_anonymous "anonymous request refused",
    39 access::c39_wrong_credentials "wrong secret, unknown key: refused",
    40 access::c40_nothing_there "missing key and bucket named as such",
    41 objects::c41_copy_and_batch_delete "copy; deletion of many",
    42 reads::c42_reads_during_overwrites "reads during overwrites are of one version",
    43 access::c43_tagging_and_lifecycle "tagging, lifecycle rule",
    44 access::c44_versioning "versioning",
}

/// The column of a server in the table of `storage/README.md`: by number, whether it passes. The names of the checks are
/// compared on the way.
fn column(server: &str) -> Vec<bool> {
    let text = include_str!("../../../../README.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip_while(|line| !line.starts_with("| # | check |"))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let place = rows[0].iter().position(|title| title.starts_with(server));
    let place = place.unwrap_or_else(|| panic!("storage/README.md has no column {server}"));
    let rows = &rows[2..];
    assert_eq!(rows.len(), CHECKS.len());
    let passes = CHECKS.iter().zip(rows).map(|(check, row)| {
        assert_eq!((row[0], row[1]), (&*check.number.to_string(), check.what));
        match row[place] {
            "yes" => true,
            "no" | "declined" => false,
            other => panic!("check {} of {server}: {other}", check.number),
        }
    });
    passes.collect()
}

async fn dev_store_does_what_the_table_says(number: u8) {
    let root = tempfile::tempdir().unwrap();
    let server = TestServer::start(root.path());
    let check = CHECKS.iter().find(|check| check.number == number).unwrap();
    let passes = check.passes_on(&Server::of(&server)).await;
    let expected = column("dev-store")[usize::from(number) - 1];
    assert_eq!(passes, expected, "check {number}: {}", check.what);
}

#[test]
fn dev_store_declines_two_and_passes_the_rest() {
    let numbers: Vec<_> = CHECKS.iter().map(|check| check.number).collect();
    assert_eq!(numbers, (1..=44).collect::<Vec<_>>());
    let column = column("dev-store");
    let declined: Vec<_> = (1..=44).filter(|number| !column[number - 1]).collect();
    assert_eq!(declined, [43, 44]);
}

/// Runs checks and tells what is other than the table says.
async fn hold_against_the_table(name: &str, server: &Server, numbers: RangeInclusive<u8>) {
    let expected = column(name);
    let (mut shown, mut wrong, mut passed) = (format!("{name}:\n"), Vec::new(), 0);
    let chosen = CHECKS.iter().zip(expected);
    for (check, expected) in chosen.filter(|(check, _)| numbers.contains(&check.number)) {
        let passes = check.passes_on(server).await;
        passed += usize::from(passes);
        let answer = if passes { "yes" } else { "no" };
        writeln!(shown, "{:>2} {answer:3} {}", check.number, check.what).unwrap();
        if passes != expected {
            wrong.push(check.number);
        }
    }
    tell(&format!("{shown}{passed} of {}", numbers.count()));
    assert!(
        wrong.is_empty(),
        "storage/README.md says otherwise of {wrong:?}"
    );
}

#[expect(clippy::print_stderr, reason = "a table for whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}
