//! Keeps secrets out of everything that leaves the process.

use std::sync::LazyLock;

/// Parts of a variable's name that mark its value as secret.
const SECRET_NAMES: [&str; 4] = ["SECRET", "TOKEN", "PASSWORD", "CREDENTIAL"];
/// Query parameters of presigned URLs whose values are secret.
const SECRET_PARAMETERS: [&str; 3] = [
    "X-Amz-Signature=",
    "X-Amz-Credential=",
    "X-Amz-Security-Token=",
];
/// Shorter values would blank out ordinary words.
const SHORTEST_SECRET: usize = 8;
const MASK: &str = "[redacted]";

static OF_ENVIRONMENT: LazyLock<Secrets> = LazyLock::new(|| Secrets::of(variables()));

/// The environment of this process; variables that are no UTF-8 are left out.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string(), value.into_string());
        name.ok().zip(value.ok())
    })
}

/// Replaces the secrets of this process's environment.
pub(crate) fn redact(text: &str) -> String {
    OF_ENVIRONMENT.redact(text)
}

struct Secrets {
    values: Vec<String>,
    key_ids: Vec<String>,
}

impl Secrets {
    fn of(variables: impl Iterator<Item = (String, String)>) -> Self {
        let mut values = Vec::new();
        let mut key_ids = Vec::new();
        for (name, value) in variables {
            let name = name.to_uppercase();
            if value.len() < SHORTEST_SECRET {
                continue;
            }
            if name.ends_with("ACCESS_KEY_ID") {
                key_ids.push(value);
            } else if SECRET_NAMES.iter().any(|part| name.contains(part))
                && !name.ends_with("_FILE")
            {
                values.push(value);
            }
        }
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values, key_ids }
    }

    fn redact(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for value in &self.values {
            clean = clean.replace(value, MASK);
        }
        for id in &self.key_ids {
            let head: String = id.chars().take(4).collect();
            clean = clean.replace(id, &format!("{head}…"));
        }
        for parameter in SECRET_PARAMETERS {
            clean = mask_after(&clean, parameter);
        }
        mask_user_info(&clean)
    }
}

/// Masks the value after every occurrence of a query parameter.
fn mask_after(text: &str, parameter: &str) -> String {
    let mut parts = text.split(parameter);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| c == '&' || c.is_whitespace() || c == '"' || c == '\'')
            .unwrap_or(part.len());
        clean.push_str(parameter);
        clean.push_str(MASK);
        clean.push_str(&part[end..]);
    }
    clean
}

/// Masks `user:password@` behind `://`.
fn mask_user_info(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("://");
        let authority = part
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"')
            .unwrap_or(part.len());
        match part[..authority].rfind('@') {
            Some(at) => {
                clean.push_str(MASK);
                clean.push_str(&part[at..]);
            }
            None => clean.push_str(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::Secrets;

    #[test]
    fn planted_secrets_are_masked() {
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "planted-secret-value"),
            ("AWS_ACCESS_KEY_ID", "AKIAPLANTED123"),
            ("TRACKING_PASSWORD", "hunter2hunter2"),
            ("SHORT_TOKEN", "a"),
            ("HOME", "/home/planted"),
        ];
        let secrets = Secrets::of(
            variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let clean = secrets.redact(
            "key AKIAPLANTED123 with planted-secret-value at http://me:hunter2hunter2@host/a?X-Amz-Signature=beef&x=1 \
             and https://host/b in /home/planted",
        );
        assert_eq!(
            clean,
            "key AKIA… with [redacted] at http://[redacted]@host/a?X-Amz-Signature=[redacted]&x=1 \
             and https://host/b in /home/planted"
        );
    }
}
