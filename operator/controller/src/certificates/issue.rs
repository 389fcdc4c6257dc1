//! Makes and reads authorities and certificates. Owns the cryptography; does not own when something is due.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;

use super::plan::{AUTHORITY_LIFE, BACKDATE, Fingerprint, LEAF_LIFE};

/// Most certificates that one PEM file may have.
const MOST_CERTIFICATES: usize = 16;

/// A key or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The library refused.
    #[error("a certificate could not be made: {source}")]
    Refused {
        /// Why.
        #[from]
        source: rcgen::Error,
    },
    /// A moment that certificates can't express.
    #[error(
        "a certificate could not be made: {milliseconds} ms after 1970 is no moment that a certificate can name"
    )]
    Time {
        /// The moment.
        milliseconds: u64,
    },
}

/// An authority's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityCertificate {
    /// In PEM.
    pub pem: String,
    der: CertificateDer<'static>,
    /// Fingerprint.
    pub id: Fingerprint,
    /// End, in milliseconds since the epoch.
    pub not_after_ms: u64,
}

/// An authority that can sign.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate.
    pub certificate: AuthorityCertificate,
    /// Its key, in PEM.
    pub key_pem: String,
}

/// A certificate of a coordinator, with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// In PEM.
    pub pem: String,
    /// Its key, in PEM.
    pub key_pem: String,
    der: CertificateDer<'static>,
    /// When it was made, in milliseconds since the epoch.
    pub issued_at_ms: u64,
    /// End, in milliseconds since the epoch.
    pub not_after_ms: u64,
}

fn moment(milliseconds: u64) -> Result<OffsetDateTime, IssueError> {
    let seconds = i64::try_from(milliseconds / 1_000).map_err(|_| IssueError::Time { milliseconds })?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| IssueError::Time { milliseconds })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A new authority for this cluster.
///
/// # Errors
/// See [`IssueError`].
pub fn create_authority(cluster: &str, now_ms: u64) -> Result<Authority, IssueError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = moment(now_ms.saturating_sub(ms(BACKDATE)))?;
    params.not_after = moment(now_ms.saturating_add(ms(AUTHORITY_LIFE)))?;
    params
        .distinguished_name
        .push(DnType::OrganizationName, "prover-operator");
    // The key's fingerprint keeps the subjects of two authorities of one cluster apart.
    let distinct = hex::encode(&Sha256::digest(key.der_bytes())[..8]);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("authority of {cluster} {distinct}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    Ok(Authority {
        certificate: AuthorityCertificate {
            pem: certificate.pem(),
            id: fingerprint(certificate.der()),
            der: certificate.der().clone(),
            not_after_ms: now_ms.saturating_add(ms(AUTHORITY_LIFE)) / 1_000 * 1_000,
        },
        key_pem: key.serialize_pem(),
    })
}

/// A new certificate for the coordinator, made out to `server_name`. It never outlives its authority.
///
/// # Errors
/// See [`IssueError`].
pub fn issue_leaf(authority: &Authority, server_name: &str, now_ms: u64) -> Result<Leaf, IssueError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![server_name.to_owned()])?;
    let not_after_ms = now_ms
        .saturating_add(ms(LEAF_LIFE))
        .min(authority.certificate.not_after_ms)
        / 1_000
        * 1_000;
    let not_before_ms = now_ms.saturating_sub(ms(BACKDATE)) / 1_000 * 1_000;
    params.not_before = moment(not_before_ms)?;
    params.not_after = moment(not_after_ms)?;
    params.distinguished_name.push(DnType::CommonName, server_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let issuer =
        Issuer::from_ca_cert_der(&authority.certificate.der, KeyPair::from_pem(&authority.key_pem)?)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Leaf {
        pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        der: certificate.der().clone(),
        issued_at_ms: not_before_ms.saturating_add(ms(BACKDATE)),
        not_after_ms,
    })
}

fn fingerprint(der: &CertificateDer<'_>) -> Fingerprint {
    hex::encode(Sha256::digest(der))
}

/// Beginning and end of a certificate in milliseconds, and its public key.
fn read(der: &CertificateDer<'_>) -> Option<(u64, u64, Vec<u8>)> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let milliseconds = |seconds: i64| u64::try_from(seconds).ok()?.checked_mul(1_000);
    Some((
        milliseconds(validity.not_before.timestamp())?,
        milliseconds(validity.not_after.timestamp())?,
        certificate.public_key().raw.to_vec(),
    ))
}

fn key_fits(key_pem: &str, public_key: &[u8]) -> bool {
    KeyPair::from_pem(key_pem).is_ok_and(|key| key.subject_public_key_info() == public_key)
}

/// The certificates of a PEM file; none where one can't be read.
#[must_use]
pub fn read_bundle(pem: &str) -> Option<Vec<AuthorityCertificate>> {
    let mut bundle = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()).take(MOST_CERTIFICATES) {
        let der = der.ok()?;
        let (_, not_after_ms, _) = read(&der)?;
        bundle.push(AuthorityCertificate {
            pem: to_pem(&der),
            id: fingerprint(&der),
            der,
            not_after_ms,
        });
    }
    Some(bundle)
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// An authority from its files; none where they can't be read or don't belong together.
#[must_use]
pub fn read_authority(pem: &str, key_pem: &str) -> Option<Authority> {
    let certificate = read_bundle(pem)?.into_iter().next()?;
    let (_, _, public_key) = read(&certificate.der)?;
    key_fits(key_pem, &public_key).then(|| Authority {
        certificate,
        key_pem: key_pem.to_owned(),
    })
}

/// A coordinator's certificate from its files; none where they can't be read or don't belong together.
#[must_use]
pub fn read_leaf(pem: &str, key_pem: &str) -> Option<Leaf> {
    let der = CertificateDer::pem_slice_iter(pem.as_bytes()).next()?.ok()?;
    let (not_before_ms, not_after_ms, public_key) = read(&der)?;
    key_fits(key_pem, &public_key).then(|| Leaf {
        pem: pem.to_owned(),
        key_pem: key_pem.to_owned(),
        der,
        issued_at_ms: not_before_ms.saturating_add(ms(BACKDATE)),
        not_after_ms,
    })
}

/// Whether somebody who trusts these authorities takes this certificate for `server_name` at this moment: the check that
/// workers make.
#[must_use]
pub fn is_trusted<'a>(
    leaf: &Leaf,
    bundle: impl IntoIterator<Item = &'a AuthorityCertificate>,
    server_name: &str,
    now_ms: u64,
) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in bundle {
        if roots.add(authority.der.clone()).is_err() {
            return false;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    let Ok(name) = ServerName::try_from(server_name) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    verifier
        .verify_server_cert(&leaf.der, &[], &name, &[], now)
        .is_ok()
}
