//! Keys and prefixes: where artifacts lie below the root of a store, and what names are allowed.
//! Does not know where the root is; the URL of the store says that.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// Longest key in bytes. S3 allows 1024 with the prefix of the store before it.
pub const MAX_KEY_BYTES: usize = 768;
/// Longest part between two slashes, in bytes. File systems allow 255 for a file name.
pub const MAX_SEGMENT_BYTES: usize = 200;
/// Parts that begin so are the store's own: unfinished files and probes.
pub(crate) const RESERVED: &str = ".prover-";

/// The name of one object, relative to the root of its store, such as `jobs/<uid>/attempts/7/receipt`.
///
/// Valid keys have parts joined by `/`, none of them empty, `.`, `..` or reserved, without control characters and
/// backslashes, so that the same key is safe as a path and as an S3 key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Key(String);

impl Key {
    /// Checks and wraps a key.
    pub fn new(key: impl Into<String>) -> Result<Self, StoreError> {
        let key = key.into();
        check(&key)?;
        Ok(Self(key))
    }

    /// The key as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A folder of keys. It always ends with a slash, so that `jobs/a/` never covers `jobs/ab/...`.
///
/// The artifacts of a job lie below [`Prefix::job`]; its builders name them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Everything in the store. It can be listed but never deleted.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Checks and wraps a prefix; a missing slash at its end is added. The empty text is the root.
    pub fn new(prefix: impl Into<String>) -> Result<Self, StoreError> {
        let mut prefix = prefix.into();
        if prefix.is_empty() {
            return Ok(Self::root());
        }
        check(prefix.strip_suffix('/').unwrap_or(&prefix))?;
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Self(prefix))
    }

    /// Where all artifacts of a job lie: `jobs/<uid>/`.
    pub fn job(uid: &str) -> Result<Self, StoreError> {
        segment(uid)?;
        Self::new(format!("jobs/{uid}/"))
    }

    /// What an attempt of this job writes: `jobs/<uid>/attempts/<attempt>/<name>`.
    pub fn attempt(&self, attempt: u64, name: &str) -> Result<Key, StoreError> {
        segment(name)?;
        Key::new(format!("{}attempts/{attempt}/{name}", self.0))
    }

    /// Everything that one attempt of this job writes.
    pub fn attempt_prefix(&self, attempt: u64) -> Result<Self, StoreError> {
        Self::new(format!("{}attempts/{attempt}/", self.0))
    }

    /// What this job reads and its user gave (program, input, assumptions): `jobs/<uid>/sources/<name>`.
    pub fn source(&self, name: &str) -> Result<Key, StoreError> {
        segment(name)?;
        Key::new(format!("{}sources/{name}", self.0))
    }

    /// A key below this prefix; `name` may have slashes.
    pub fn key(&self, name: &str) -> Result<Key, StoreError> {
        Key::new(format!("{}{name}", self.0))
    }

    /// Whether this is the whole store.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the key lies below this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.0.starts_with(&self.0)
    }

    /// The prefix with its slash at the end; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn refuse(key: &str, problem: impl Into<String>) -> StoreError {
    // A hostile key may be long or unprintable: the message shows the beginning, escaped.
    let shown: String = key.chars().take(80).flat_map(char::escape_debug).collect();
    StoreError::InvalidKey {
        key: shown,
        problem: problem.into(),
    }
}

fn segment(name: &str) -> Result<(), StoreError> {
    if name.contains('/') {
        return Err(refuse(name, "a name has no slash"));
    }
    check(name)
}

fn check(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(refuse(key, "it is empty"));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(refuse(
            key,
            format!("it has {} bytes, at most {MAX_KEY_BYTES} are allowed", key.len()),
        ));
    }
    if key
        .chars()
        .any(|character| character.is_control() || character == '\\')
    {
        return Err(refuse(key, "control characters and backslashes are not allowed"));
    }
    for part in key.split('/') {
        if part.is_empty() {
            return Err(refuse(key, "it begins or ends with a slash or has two in a row"));
        }
        if part == "." || part == ".." {
            return Err(refuse(key, "`.` and `..` are not allowed"));
        }
        if part.starts_with(RESERVED) {
            return Err(refuse(
                key,
                format!("names that begin with `{RESERVED}` are the store's own"),
            ));
        }
        if part.len() > MAX_SEGMENT_BYTES {
            let problem = format!(
                "a part has {} bytes, at most {MAX_SEGMENT_BYTES} are allowed",
                part.len()
            );
            return Err(refuse(key, problem));
        }
    }
    Ok(())
}

macro_rules! text_type {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({:?})", stringify!($type), self.0)
            }
        }

        impl FromStr for $type {
            type Err = StoreError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = StoreError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    };
}

text_type!(Key);
text_type!(Prefix);
