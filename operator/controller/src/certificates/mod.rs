//! Authorities and certificates.
/// What is known.
#[derive(Debug, Default)]
pub struct CertificateMemory {}
