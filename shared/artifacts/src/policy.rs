//! Who may do what in a store, as policies in the language of AWS.
//!
//! | role | may | for |
//! |---|---|---|
//! | reader | list and get | the site, fetching, `wmtp-store` where it only looks |
//! | trainer | that, and write what the protocol writes and what a tracking server shows; delete nothing | the jobs |
//! | publisher | list, get, put and delete pages | `build-site --publish`, at the site's own place |
//! | admin | that, announce collections and delete, but for the records of who did what | `wmtp-store gc` |
//!
//! A policy can tell keys, not contents: that what is committed never changes is kept by create-only writes, not by these.

use serde_json::{Value, json};

use crate::{Error, Result, StoreUri, layout};

/// What an identity is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Keeps the pages of a site, whose place is its own and no store.
    Publisher,
    /// Looks, and changes nothing.
    Reader,
    /// Runs jobs.
    Trainer,
    /// Looks after the store.
    Admin,
}

/// Version of the policy language.
const LANGUAGE: &str = "2012-10-17";

impl Role {
    /// The roles of a store, each may do what the one before it may.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Trainer, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Reader => "reader",
            Self::Trainer => "trainer",
            Self::Admin => "admin",
        }
    }

    /// The policy of a user or an assumed role for one store; of a publisher for the place of one site.
    pub fn policy(self, store: &StoreUri) -> Value {
        json!({ "Version": LANGUAGE, "Statement": self.statements(store) })
    }

    fn statements(self, store: &StoreUri) -> Vec<Value> {
        let prefix = match store.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let bucket = format!("arn:aws:s3:::{}", store.bucket);
        let objects = |keys: &[String]| -> Vec<String> {
            let object = |key: &String| format!("{bucket}/{prefix}{key}");
            keys.iter().map(object).collect()
        };
        if self == Self::Publisher {
            return pages(&bucket, &prefix);
        }
        // A GET of an absent key is a 404 only for who may list, and its request has no prefix: hence IfExists.
        let mut statements = vec![
            json!({
                "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
                "Condition": {"StringLikeIfExists": {"s3:prefix": format!("{prefix}v1/*")}},
            }),
            json!({
                "Sid": "Get", "Effect": "Allow", "Action": "s3:GetObject",
                "Resource": objects(&["v1/*".to_owned()]),
            }),
        ];
        if self >= Self::Trainer {
            statements.extend([
                json!({
                    "Sid": "FindUploads", "Effect": "Allow", "Action": "s3:ListBucketMultipartUploads",
                    "Resource": bucket,
                }),
                json!({
                    "Sid": "Write", "Effect": "Allow", "Action": "s3:PutObject",
                    "Resource": objects(&written_by_jobs()),
                }),
                json!({
                    "Sid": "ResumeUploads", "Effect": "Allow",
                    "Action": ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
                    "Resource": objects(&[format!("{}*", layout::BLOBS)]),
                }),
            ]);
        }
        if self >= Self::Admin {
            statements.extend([
                json!({
                    "Sid": "Announce", "Effect": "Allow", "Action": "s3:PutObject",
                    "Resource": objects(&[format!("{}*", layout::COLLECTIONS)]),
                }),
                json!({
                    "Sid": "Delete", "Effect": "Allow", "Action": "s3:DeleteObject",
                    "Resource": objects(&["v1/*".to_owned()]),
                }),
                // A refusal counts for more than any other policy's permission.
                json!({
                    "Sid": "KeepRecords", "Effect": "Deny", "Action": "s3:DeleteObject",
                    "Resource": objects(&RECORDS.map(|folder| format!("{folder}*"))),
                }),
            ]);
        }
        statements
    }
}

/// What bringing a site to its place takes: pages that are gone are deleted, and where a store lies beside them after all,
/// nothing of it is touched.
fn pages(bucket: &str, prefix: &str) -> Vec<Value> {
    let all = format!("{bucket}/{prefix}*");
    vec![
        json!({
            "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
            "Condition": {"StringLikeIfExists": {"s3:prefix": format!("{prefix}*")}},
        }),
        json!({
            "Sid": "Publish", "Effect": "Allow", "Resource": all,
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        }),
        json!({
            "Sid": "KeepStore", "Effect": "Deny", "Action": ["s3:PutObject", "s3:DeleteObject"],
            "Resource": format!("{bucket}/{prefix}v1/*"),
        }),
    ]
}

/// What tells who did what, and is nobody's to delete.
const RECORDS: [&str; 2] = [layout::AUDIT, layout::PROMOTIONS];

/// Patterns of all keys that jobs write, the index for a tracking server among them: of a collection only the objection to it,
/// and its end where its process died.
fn written_by_jobs() -> Vec<String> {
    let folders = [
        layout::BLOBS,
        layout::ARTIFACTS,
        layout::CACHE,
        layout::NAMES,
        layout::TOUCHES,
        layout::RUNS,
    ];
    let mut keys: Vec<String> = folders
        .iter()
        .chain(&RECORDS)
        .map(|folder| format!("{folder}*"))
        .collect();
    let of_collections = ["verdict", "done"];
    keys.extend(of_collections.map(|what| format!("{}*/{what}.json", layout::COLLECTIONS)));
    keys.push(layout::PROBE.to_owned());
    keys.push(format!("{}*", layout::TRACKED));
    keys
}

/// The policy of a bucket: each grant is a role and the ARN of the user or assumed role that has it.
///
/// # Errors
/// [`Error::Usage`] for an ARN that is none; `*` is none, so that nothing is opened to everybody.
pub fn bucket_policy(store: &StoreUri, grants: &[(Role, String)]) -> Result<Value> {
    let mut statements = Vec::new();
    for (number, (role, principal)) in grants.iter().enumerate() {
        if !principal.starts_with("arn:") || principal.contains('*') {
            let detail = "expected the ARN of a user or role, such as arn:aws:iam::123456789012:role/training";
            return Err(Error::usage(format!("{}={principal}", role.name()), detail));
        }
        for mut statement in role.statements(store) {
            let sid = statement["Sid"].as_str().unwrap_or_default();
            statement["Sid"] = format!("{}{}{sid}", role.name(), number + 1).into();
            statement["Principal"] = json!({ "AWS": principal });
            statements.push(statement);
        }
    }
    Ok(json!({ "Version": LANGUAGE, "Statement": statements }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArtifactId, Digest, Kind, RunId};

    fn store() -> StoreUri {
        "s3://bucket/a/prefix".parse().unwrap()
    }

    /// Whether a policy lets an action be done to a key of the store, by its patterns with one `*` each.
    fn allows(role: Role, action: &str, key: &str) -> bool {
        let policy = role.policy(&store());
        let all = |value: &Value| -> Vec<String> {
            let texts = value
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![value.clone()]);
            texts
                .iter()
                .map(|text| text.as_str().unwrap().to_owned())
                .collect()
        };
        let key = format!("arn:aws:s3:::bucket/a/prefix/{key}");
        let matches = |pattern: &String| match pattern.split_once('*') {
            Some((start, end)) => {
                key.len() >= start.len() + end.len() && key.starts_with(start) && key.ends_with(end)
            }
            None => *pattern == key,
        };
        let statements = policy["Statement"].as_array().unwrap();
        let says = |effect: &str| {
            statements.iter().any(|statement| {
                statement["Effect"] == effect
                    && all(&statement["Action"]).iter().any(|one| one == action)
                    && all(&statement["Resource"]).iter().any(matches)
            })
        };
        says("Allow") && !says("Deny")
    }

    /// A key of every kind that the protocol knows, and whether jobs write it.
    fn keys() -> Vec<(String, bool)> {
        let digest = Digest::of(b"x");
        let id = ArtifactId::new(Kind::Checkpoint, &digest);
        let run = RunId::for_work("train-stage2", &digest);
        vec![
            (layout::blob(&digest), true),
            (layout::manifest(&id), true),
            (
                format!("{}0000.json", layout::cache("evaluate", &digest)),
                true,
            ),
            (
                format!("{}0000.json", layout::name(Kind::Checkpoint, "v001")),
                true,
            ),
            (
                format!("{}0000.json", layout::touches(&digest, "v001")),
                true,
            ),
            (layout::run_request(&run), true),
            (layout::run_result(&run), true),
            (layout::checkpoint(&run, 7, 1), true),
            (layout::claim(&run, 1), true),
            (layout::status(&run, 1), true),
            (
                format!("{}0000.jsonl", layout::lines(&run, 1, "events")),
                true,
            ),
            (format!("{}0000.json", layout::remarks(&run)), true),
            (layout::PROBE.to_owned(), true),
            (layout::audit_event(7, "id"), true),
            (format!("{}0000.json", layout::promotions("m")), true),
            (layout::collection(3, "verdict"), true),
            (layout::collection(3, "done"), true),
            (layout::collection(3, "plan"), false),
            (layout::collection(3, "status"), false),
        ]
    }

    #[test]
    fn each_role_may_do_to_every_key_of_the_protocol_what_it_is_there_for() {
        for (key, by_jobs) in keys() {
            for role in Role::ALL {
                assert!(allows(role, "s3:GetObject", &key), "{role:?} {key}");
            }
            let put = Role::ALL.map(|role| allows(role, "s3:PutObject", &key));
            assert_eq!(put, [false, by_jobs, true], "{key}");
            let delete = Role::ALL.map(|role| allows(role, "s3:DeleteObject", &key));
            let is_kept = RECORDS.iter().any(|folder| key.starts_with(folder));
            assert_eq!(delete, [false, false, !is_kept], "{key}");
        }
        // Beside the protocol's keys the jobs write the index of a run, for a server that reads it with a key of its own.
        let index = format!(
            "{}mtp-rho1-micropy/1/artifacts/artifacts.json",
            layout::TRACKED
        );
        let put = Role::ALL.map(|role| allows(role, "s3:PutObject", &index));
        assert_eq!(put, [false, true, true]);
        assert!(
            !Role::ALL
                .iter()
                .any(|role| allows(*role, "s3:DeleteObject", &index))
        );
        for role in Role::ALL {
            for action in ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"] {
                assert!(!allows(role, action, "index.html"), "{role:?} {action}");
                assert!(!allows(role, action, "v1"), "{role:?} {action}");
            }
        }
    }

    #[test]
    fn a_publisher_keeps_pages_and_touches_no_store() {
        let may = |action, key| allows(Role::Publisher, action, key);
        for action in ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"] {
            assert!(may(action, "index.html") && may(action, "v/v001/index.html"));
            assert_eq!(may(action, "v1/probe.json"), action == "s3:GetObject");
        }
        let other = Role::Publisher.policy(&"s3://bucket/a/pre".parse().unwrap());
        assert_eq!(
            other["Statement"][1]["Resource"],
            "arn:aws:s3:::bucket/a/pre/*"
        );
    }

    #[test]
    fn a_store_without_a_prefix_is_the_bucket() {
        let whole = Role::Reader.policy(&"s3://bucket".parse().unwrap());
        let statements = &whole["Statement"];
        assert_eq!(
            statements[0]["Condition"]["StringLikeIfExists"]["s3:prefix"],
            "v1/*"
        );
        assert_eq!(statements[1]["Resource"][0], "arn:aws:s3:::bucket/v1/*");
    }

    #[test]
    fn a_bucket_policy_names_who_and_is_never_for_everybody() {
        let arn = "arn:aws:iam::123456789012:user/";
        let grants = [
            (Role::Reader, format!("{arn}site")),
            (Role::Reader, format!("{arn}ada")),
            (Role::Admin, format!("{arn}root")),
        ];
        let policy = bucket_policy(&store(), &grants).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        let sids: std::collections::BTreeSet<_> = statements
            .iter()
            .map(|one| one["Sid"].as_str().unwrap())
            .collect();
        assert_eq!(
            sids.len(),
            statements.len(),
            "each has a name of its own: {sids:?}"
        );
        assert_eq!(statements[0]["Principal"]["AWS"], format!("{arn}site"));
        for wrong in ["*", "arn:aws:iam::*:user/x", "ada", ""] {
            assert!(bucket_policy(&store(), &[(Role::Reader, wrong.to_owned())]).is_err());
        }
    }
}
