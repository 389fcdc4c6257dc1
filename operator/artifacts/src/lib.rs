//! The artifact store: bytes named by key, checked by hash, over a folder or over S3.
//!
//! Owns keys, streaming, checksums, retries and conditional creation. Does not own which name is bound to which
//! key and who still refers to it: the scheduling core decides that.
