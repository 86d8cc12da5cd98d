//! What an image says of itself.

use std::collections::BTreeMap;

use serde_json::Value;

/// The part of an image's configuration that the contract is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) user: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) arguments: Vec<String>,
    pub(crate) signal: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) variables: BTreeMap<String, String>,
}

impl Image {
    /// Reads what `image inspect` of docker or podman printed.
    pub(crate) fn of(inspected: &Value) -> Self {
        let config = &inspected["Config"];
        let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
        Self {
            user: text("User"),
            entrypoint: texts(&config["Entrypoint"]),
            arguments: texts(&config["Cmd"]),
            // Podman leaves it out where it is what the runtime sends anyway.
            signal: Some(text("StopSignal"))
                .filter(|signal| !signal.is_empty())
                .unwrap_or_else(|| "SIGTERM".to_owned()),
            labels: map(&config["Labels"]),
            variables: texts(&config["Env"])
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Image;

    /// The part that podman 4.3 and docker 28 print alike; podman leaves out a stop signal of SIGTERM.
    #[test]
    fn what_an_image_says_is_read() {
        let image = Image::of(&json!({"Config": {
            "User": "10001:10001",
            "Entrypoint": ["evaluate"],
            "Cmd": null,
            "Env": ["PATH=/usr/bin", "A=b=c"],
            "Labels": {"wmtp.job": "evaluate"},
        }}));
        assert_eq!(image.user, "10001:10001");
        assert_eq!(image.entrypoint, ["evaluate"]);
        assert_eq!(
            (image.arguments.len(), image.signal.as_str()),
            (0, "SIGTERM")
        );
        assert_eq!(image.variables["A"], "b=c");
        assert_eq!(
            (image.label("wmtp.job"), image.label("other")),
            ("evaluate", "")
        );
    }
}
