//! Ceph RGW: the gateway of a cluster of one monitor and one OSD in memory.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::skipped;

/// Of `rgw.sh`, where a program is missing.
const NOT_INSTALLED: i32 = 3;

/// A cluster with nothing in it but a user. It cannot read the trailers that the SDK sends with every body unless it is
/// told not to (`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`).
#[derive(Debug)]
pub struct Rgw {
    script: Child,
    endpoint: String,
    access_key: String,
    secret_key: String,
}

impl Rgw {
    /// Starts a cluster with all its files below a folder and further users who own nothing, which takes half a minute;
    /// where its programs are not installed, says that the test is skipped.
    ///
    /// # Panics
    /// If the programs are there and do not start.
    pub fn start(folder: &Path, users: &[&str]) -> Option<Self> {
        let mut script = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/rgw.sh"))
            .arg(folder)
            .args(users)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let mut said = String::new();
        let answer = script.stdout.take().expect("its answer is piped");
        BufReader::new(answer)
            .read_line(&mut said)
            .expect("the script writes text");
        let words: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
        let Ok([endpoint, access_key, secret_key]) = <[String; 3]>::try_from(words) else {
            let ended = script.wait().expect("the script ends");
            assert_eq!(
                ended.code(),
                Some(NOT_INSTALLED),
                "rgw.sh failed: see its messages above"
            );
            skipped("Ceph RGW; install radosgw, ceph-mon and ceph-osd");
            return None;
        };
        Some(Self {
            script,
            endpoint,
            access_key,
            secret_key,
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The access key of its user.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret key of its user.
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// Access key and secret key of a further user.
    pub fn keys_of(user: &str) -> (String, String) {
        (format!("wmtp-{user}-key"), format!("wmtp-{user}-secret"))
    }
}

impl Drop for Rgw {
    fn drop(&mut self) {
        // The end of its input tells the script to stop what it started.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
