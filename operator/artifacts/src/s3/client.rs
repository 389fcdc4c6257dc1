//! Builds the SDK's client: endpoint, credentials, timeouts, rustls with ring. Sends nothing.

use std::env;

use aws_config::BehaviorVersion;
use aws_config::meta::region::RegionProviderChain;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use crate::error::StoreError;
use crate::store::StoreOptions;
use crate::url::S3Location;

/// What S3 services that have no regions call theirs.
const ONLY_REGION: &str = "us-east-1";

pub(super) async fn build(location: &S3Location, options: &StoreOptions) -> Result<Client, StoreError> {
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
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

fn region(location: &S3Location) -> Option<String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    location
        .region
        .clone()
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .or_else(|| location.endpoint.is_some().then(|| ONLY_REGION.to_owned()))
}
