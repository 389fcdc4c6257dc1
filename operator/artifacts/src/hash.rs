//! SHA-256 digests: the type that crosses every interface, and the streaming hasher. Does not read files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

/// A SHA-256 digest. Written as 64 lower-case hexadecimal digits everywhere (display, JSON, object metadata).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Wraps a digest computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Sha256({self})")
    }
}

/// A text that is no SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 digest is 64 hexadecimal digits, but this has {length} characters or others among them")]
pub struct Sha256ParseError {
    /// How many characters were given.
    pub length: usize,
}

impl FromStr for Sha256 {
    type Err = Sha256ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(Sha256ParseError {
                length: text.chars().count(),
            }),
        }
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Sha256ParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

/// What identifies the content of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Size of the content in bytes.
    pub size_bytes: u64,
    /// Digest of the whole content.
    pub sha256: Sha256,
}

impl ObjectInfo {
    /// Describes content that lies in memory.
    pub fn of(content: &[u8]) -> Self {
        Self {
            size_bytes: content.len() as u64,
            sha256: Sha256::of(content),
        }
    }
}

/// Counts and hashes content as it streams by.
#[derive(Debug, Clone, Default)]
pub struct Sha256Hasher {
    digest: sha2::Sha256,
    size_bytes: u64,
}

impl Sha256Hasher {
    /// Starts with no content.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// Bytes seen so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size and digest of all that was added.
    pub fn finish(self) -> ObjectInfo {
        ObjectInfo {
            size_bytes: self.size_bytes,
            sha256: Sha256(self.digest.finalize().into()),
        }
    }
}
