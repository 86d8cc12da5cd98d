//! Ceph RGW, an S3 server that others made, as processes that end with their test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What starts and stops it, beside the tests of the server that stands in for it.
const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../storage/dev-store/tests/rgw.sh"
);
/// How the script ends where a program is missing.
const MISSING: i32 = 3;

/// A cluster of one monitor, one OSD in memory and one gateway.
#[derive(Debug)]
pub struct Rgw {
    process: Child,
    endpoint: String,
    access_key: String,
    secret_key: String,
}

impl Rgw {
    /// Starts a cluster below a folder, with further users who own nothing; none where its programs are not installed.
    ///
    /// # Panics
    /// If it does not start although they are.
    pub fn start(folder: &Path, users: &[&str]) -> Option<Self> {
        let mut process = Command::new("bash")
            .arg(SCRIPT)
            .arg(folder)
            .args(users)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let mut said = String::new();
        let mut answer = BufReader::new(process.stdout.take().expect("its output is piped"));
        answer.read_line(&mut said).expect("the script writes text");
        process.stdout = Some(answer.into_inner());
        let words: Vec<_> = said.split_whitespace().collect();
        if let [endpoint, access_key, secret_key] = words[..] {
            let [endpoint, access_key, secret_key] =
                [endpoint, access_key, secret_key].map(str::to_owned);
            return Some(Self {
                process,
                endpoint,
                access_key,
                secret_key,
            });
        }
        let ended = process.wait().expect("the script is ours");
        assert_eq!(
            ended.code(),
            Some(MISSING),
            "rgw.sh failed: see its messages above"
        );
        None
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Access key of the user who owns what is made.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// Secret key of that user.
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
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
