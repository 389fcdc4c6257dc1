//! What to run, as the operator writes it from a ProverCluster.

use std::fmt::Write;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Environment variable with the configuration, as JSON.
pub(crate) const CONFIG_VARIABLE: &str = "PROVER_COMMAND_CONFIG";
/// Before the backend's name in the word under which it offers proofs, so that nobody's own prover is taken for
/// another. The resource types say the same: `prover_crds::command_offer`.
const OFFER_PREFIX: &str = "command:";
/// Memory that a verification is expected to take where the configuration does not say.
const VERIFY_MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// Times where the configuration does not say.
const PROVE_SECONDS: u64 = 3_600;
const VERIFY_SECONDS: u64 = 600;
/// Most that the protocol allows.
const MOST_ATTEMPTS_AT_ONCE: u32 = 64;
/// Bytes of the hash that stands for a version.
const VERSION_BYTES: usize = 8;

/// The configuration is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(
        "{CONFIG_VARIABLE} is not set: the operator sets it from spec.backends[].command of a ProverCluster"
    )]
    Missing,
    #[error("{CONFIG_VARIABLE} is not what this backend reads: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("{CONFIG_VARIABLE}: {field} {problem}")]
    Invalid {
        field: &'static str,
        problem: &'static str,
    },
}

/// A file whose path a command is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Program,
    Input,
    Proof,
    PublicValues,
}

impl Place {
    const ALL: [Place; 4] = [Place::Program, Place::Input, Place::Proof, Place::PublicValues];

    fn word(self) -> &'static str {
        match self {
            Place::Program => "{program}",
            Place::Input => "{input}",
            Place::Proof => "{proof}",
            Place::PublicValues => "{publicValues}",
        }
    }
}

/// The words of a command, with places for paths.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub(crate) struct CommandLine(Vec<String>);

impl CommandLine {
    pub(crate) fn names(&self, place: Place) -> bool {
        self.0.iter().any(|word| word.contains(place.word()))
    }

    /// The words with paths in their places. What a path contains is never taken for a place.
    pub(crate) fn fill(&self, path_of: impl Fn(Place) -> String) -> Vec<String> {
        self.0.iter().map(|word| fill_word(word, &path_of)).collect()
    }

    fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }
}

fn fill_word(word: &str, path_of: &impl Fn(Place) -> String) -> String {
    let mut filled = String::new();
    let mut rest = word;
    while let Some(start) = rest.find('{') {
        filled.push_str(&rest[..start]);
        rest = &rest[start..];
        match Place::ALL
            .into_iter()
            .find(|place| rest.starts_with(place.word()))
        {
            Some(place) => {
                filled.push_str(&path_of(place));
                rest = &rest[place.word().len()..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// What to run.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the ProverCluster's backend.
    pub(crate) backend: String,
    /// Of everything that a proof depends on, such as the image's digest; a hash of the commands where absent.
    #[serde(default)]
    version: String,
    pub(crate) prove: CommandLine,
    pub(crate) verify: CommandLine,
    #[serde(default)]
    timeout_seconds: Option<u64>,
    #[serde(default)]
    verify_timeout_seconds: Option<u64>,
    /// Of one proof. All memory of the smallest worker where absent.
    #[serde(default)]
    pub(crate) host_memory_bytes: Option<u64>,
    #[serde(default)]
    verify_host_memory_bytes: Option<u64>,
    #[serde(default)]
    attempts_at_once: Option<u32>,
}

impl Config {
    /// From the environment of this process.
    pub(crate) fn from_environment() -> Result<Self, ConfigError> {
        let text = std::env::var(CONFIG_VARIABLE).map_err(|_| ConfigError::Missing)?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Config = serde_json::from_str(text)?;
        let invalid = |field, problem| Err(ConfigError::Invalid { field, problem });
        if config.backend.is_empty() {
            return invalid("backend", "is empty");
        }
        for (field, command) in [("prove", &config.prove), ("verify", &config.verify)] {
            if !command.program().starts_with('/') {
                return invalid(field, "must begin with the absolute path of a program");
            }
            if !command.names(Place::Proof) {
                return invalid(field, "must contain {proof}");
            }
        }
        if !config.verify.names(Place::Program) {
            return invalid("verify", "must contain {program}");
        }
        if config.prove.names(Place::PublicValues) && !config.verify.names(Place::PublicValues) {
            return invalid("verify", "must contain {publicValues}, since prove writes them");
        }
        if config.timeout().is_zero() || config.verify_timeout().is_zero() {
            return invalid("timeoutSeconds", "must be at least 1");
        }
        if !(1..=MOST_ATTEMPTS_AT_ONCE).contains(&config.attempts_at_once()) {
            return invalid("attemptsAtOnce", "must be between 1 and 64");
        }
        Ok(config)
    }

    /// The word under which its proofs are offered.
    pub(crate) fn offered_as(&self) -> String {
        format!("{OFFER_PREFIX}{}", self.backend)
    }

    pub(crate) fn version(&self) -> String {
        if !self.version.is_empty() {
            return self.version.clone();
        }
        let mut hash = Sha256::new();
        for word in self
            .prove
            .0
            .iter()
            .chain(["\n".to_owned()].iter())
            .chain(&self.verify.0)
        {
            hash.update(word.as_bytes());
            hash.update([0]);
        }
        hash.finalize()[..VERSION_BYTES]
            .iter()
            .fold(String::new(), |mut text, byte| {
                // Writing to a String can't fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(PROVE_SECONDS))
    }

    pub(crate) fn verify_timeout(&self) -> Duration {
        Duration::from_secs(self.verify_timeout_seconds.unwrap_or(VERIFY_SECONDS))
    }

    /// Of one verification.
    pub(crate) fn verify_host_memory_bytes(&self) -> u64 {
        self.verify_host_memory_bytes.unwrap_or(VERIFY_MEMORY_BYTES)
    }

    /// Attempts that one process takes at once.
    pub(crate) fn attempts_at_once(&self) -> u32 {
        self.attempts_at_once.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &[(&str, serde_json::Value)]) -> Result<Config, ConfigError> {
        let mut config = serde_json::json!({
            "backend": "groth16",
            "prove": ["/groth16", "prove", "{program}", "{input}", "{proof}", "{publicValues}"],
            "verify": ["/groth16", "verify", "{program}", "{proof}", "{publicValues}"],
        });
        for (field, value) in changes {
            config[field] = value.clone();
        }
        Config::parse(&config.to_string())
    }

    #[test]
    fn paths_take_their_places_once() {
        let command: CommandLine =
            serde_json::from_str(r#"["/p", "--in={input}", "{proof}{proof}", "{other} {", "{{program}}"]"#)
                .unwrap();
        let words = command.fill(|place| match place {
            Place::Input => "{proof}".to_owned(),
            other => format!("/dir/{other:?}"),
        });
        assert_eq!(
            words,
            [
                "/p",
                "--in={proof}",
                "/dir/Proof/dir/Proof",
                "{other} {",
                "{/dir/Program}"
            ]
        );
    }

    #[test]
    fn a_version_follows_the_commands() {
        let first = parse(&[]).unwrap().version();
        assert_eq!(first.len(), 16);
        assert_eq!(parse(&[("timeoutSeconds", 5.into())]).unwrap().version(), first);
        let other = parse(&[("prove", serde_json::json!(["/other", "{proof}"]))]).unwrap();
        assert_ne!(other.version(), first);
        let named = parse(&[("version", "1.2".into())]).unwrap();
        assert_eq!(named.version(), "1.2");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = [
            (
                "prove",
                serde_json::json!(["/prove"]),
                "prove must contain {proof}",
            ),
            (
                "prove",
                serde_json::json!(["prove", "{proof}"]),
                "prove must begin with the absolute path",
            ),
            (
                "verify",
                serde_json::json!(["/v", "{proof}", "{publicValues}"]),
                "verify must contain {program}",
            ),
            (
                "verify",
                serde_json::json!(["/v", "{proof}", "{program}"]),
                "verify must contain {publicValues}",
            ),
            ("timeoutSeconds", 0.into(), "timeoutSeconds must be at least 1"),
            (
                "attemptsAtOnce",
                65.into(),
                "attemptsAtOnce must be between 1 and 64",
            ),
            ("backend", "".into(), "backend is empty"),
            ("timeout", 5.into(), "unknown field `timeout`"),
        ];
        for (field, value, message) in wrong {
            let error = parse(&[(field, value)]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
