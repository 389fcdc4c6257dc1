//! Five years of a cluster in seconds, with real keys and real verification.
