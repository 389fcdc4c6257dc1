//! Builds the SDK's client: endpoint, credentials, timeouts, rustls with ring, whom it trusts. Sends nothing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use aws_config::BehaviorVersion;
use aws_config::meta::region::RegionProviderChain;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::StoreError;
use crate::store::StoreOptions;
use crate::url::S3Location;

/// What S3 services that have no regions call theirs.
const ONLY_REGION: &str = "us-east-1";
/// Variable that names a file of PEM certificates, as the SDKs of other languages read it too.
const AUTHORITIES: &str = "AWS_CA_BUNDLE";
/// Largest file of certificates that is read; all public authorities together have a quarter of it.
const LARGEST_AUTHORITIES_BYTES: u64 = 1 << 20;

pub(super) async fn build(location: &S3Location, options: &StoreOptions) -> Result<Client, StoreError> {
    let mut http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    let named = env::var_os(AUTHORITIES)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    if let Some(path) = options.authorities.clone().or(named) {
        let unusable = |problem| StoreError::Authorities {
            store: location.to_string(),
            path: path.clone(),
            problem,
        };
        let trusted = TrustStore::default().with_pem_certificate(authorities(&path).map_err(unusable)?);
        let context = TlsContext::builder().with_trust_store(trusted).build();
        http = http.tls_context(context.map_err(|error| unusable(error.to_string()))?);
    }
    let http = http.build_https();
    let region = region(location).ok_or_else(|| StoreError::InvalidUrl {
        url: location.to_string(),
        problem: "the region is missing: add ?region=NAME or set AWS_REGION".into(),
    })?;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(RegionProviderChain::first_try(Region::new(region)));
    if let Some(credentials) = &options.credentials {
        loader = loader.credentials_provider(Credentials::new(
            &credentials.access_key_id,
            &credentials.secret_access_key,
            credentials.session_token.clone(),
            None,
            "prover-operator",
        ));
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(location.path_style)
        .timeout_config(timeouts)
        // One policy of retries, ours: two layers would multiply.
        .retry_config(RetryConfig::disabled())
        // SHA-256 is computed and compared here, so the SDK's own sums would only cost time.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &location.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// The file's content, once it is known that each certificate in it can be used: the SDK panics at one that can't.
fn authorities(path: &Path) -> Result<Vec<u8>, String> {
    let size_bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size_bytes > LARGEST_AUTHORITIES_BYTES {
        return Err(format!(
            "it has {size_bytes} bytes, more than the limit of {LARGEST_AUTHORITIES_BYTES}"
        ));
    }
    let content = fs::read(path).map_err(|error| error.to_string())?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        store
            .add(certificate)
            .map_err(|error| format!("certificate {} is malformed: {error}", store.len() + 1))?;
    }
    if store.is_empty() {
        return Err("it holds no certificate".into());
    }
    Ok(content)
}

fn region(location: &S3Location) -> Option<String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    location
        .region
        .clone()
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .or_else(|| location.endpoint.is_some().then(|| ONLY_REGION.to_owned()))
}
