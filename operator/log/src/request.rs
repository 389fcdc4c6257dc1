//! What the machine asks of a store, and what the store answers.

use bytes::Bytes;

/// Names one try of one request; a later try of the same has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One request to the store. It may be carried out at any time later, more than once, or never; its answer may come
/// late, more than once, or never: the protocol holds whatever happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// To be given back with the answer.
    pub id: RequestId,
    /// What to do.
    pub operation: Operation,
}

/// What to do. Names are relative to the log's prefix, such as `log/00000000000000000007`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Create an object only if there is none of this name.
    Create {
        /// The object.
        name: String,
        /// Its bytes.
        content: Bytes,
    },
    /// Read a whole object.
    Read {
        /// The object.
        name: String,
        /// One of more bytes is a failure that trying again doesn't help.
        max_bytes: u64,
    },
    /// Delete an object. One that is not there counts as deleted.
    Delete {
        /// The object.
        name: String,
    },
    /// List the objects of a folder in the order of their names' bytes.
    List {
        /// The folder, with its slash: `log/` or `checkpoint/`.
        folder: &'static str,
        /// The most names to answer.
        limit: usize,
    },
}

/// What the store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The object is created by this very request.
    Created,
    /// An object of this name was there already.
    Exists,
    /// The object's bytes.
    Content(Bytes),
    /// There is no such object.
    Absent,
    /// The object is gone.
    Deleted,
    /// The names, and whether there are more.
    Listed {
        /// Relative to the log's prefix, in order.
        names: Vec<String>,
        /// Whether there are more than the limit.
        truncated: bool,
    },
    /// It is unknown whether the request was carried out.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whether trying again may help; a leader tries in any case, since access may be granted again.
    pub retry: bool,
    /// Whether the bytes came damaged.
    pub damaged: bool,
    /// The category of the store's error.
    pub category: &'static str,
    /// What the store said.
    pub problem: String,
}
