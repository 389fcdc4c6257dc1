//! Objects of foreign buckets: one signed or anonymous request, sent like any other download, so that an endpoint
//! leads nowhere that a web server may not be.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use prover_artifacts::StaticCredentials;
use prover_coordinator::{RemoteError, RemoteProblem};
use prover_crds::S3Source;
use url::Url;

use super::download::Fetch;
use super::problem;

/// Region where none is named, as S3 services without regions call theirs.
const REGION: &str = "us-east-1";

/// The request for an object, and the object as messages name it. `now` is in milliseconds since the Unix epoch.
pub(super) fn fetch(
    source: &S3Source,
    credentials: Option<&StaticCredentials>,
    limit_bytes: u64,
    now: u64,
) -> Result<(String, Fetch), RemoteError> {
    let bucket = source.bucket.as_deref().unwrap_or_default();
    let unreadable = |message: String| problem(RemoteProblem::Unreadable, message);
    let region = source.region.as_deref().unwrap_or(REGION);
    let segments = source.key.split('/');
    if source.key.is_empty() || segments.clone().any(|segment| matches!(segment, "." | "..")) {
        return Err(unreadable(format!(
            "key {:?} can't be asked for by URL",
            source.key
        )));
    }
    let key = encoded(&source.key);
    let text = match &source.endpoint {
        Some(endpoint) => format!("{}/{bucket}/{key}", endpoint.trim_end_matches('/')),
        // A dot in the name would not match the certificate.
        None if bucket.contains('.') => format!("https://s3.{region}.amazonaws.com/{bucket}/{key}"),
        None => format!("https://{bucket}.s3.{region}.amazonaws.com/{key}"),
    };
    let url = Url::parse(&text).map_err(|error| unreadable(format!("the endpoint is malformed: {error}")))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(unreadable("the endpoint takes no parameters".to_owned()));
    }
    let headers = match credentials {
        Some(credentials) => signed(&url, region, credentials, now).map_err(unreadable)?,
        None => Vec::new(),
    };
    let origin = format!("object {:?} of bucket {bucket:?}", source.key);
    Ok((
        origin,
        Fetch {
            url,
            headers,
            limit_bytes,
            redirects: false,
        },
    ))
}

/// A key as the path of a URL, with its slashes.
fn encoded(key: &str) -> String {
    let mut path = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

fn signed(
    url: &Url,
    region: &str,
    credentials: &StaticCredentials,
    now: u64,
) -> Result<Vec<(String, String)>, String> {
    let identity = Credentials::new(
        &credentials.access_key_id,
        &credentials.secret_access_key,
        credentials.session_token.clone(),
        None,
        "prover-operator",
    )
    .into();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(UNIX_EPOCH + Duration::from_millis(now))
        .settings(settings)
        .build()
        .map_err(|error| format!("the request can't be signed: {error}"))?
        .into();
    let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(&[]))
        .map_err(|error| format!("the request can't be signed: {error}"))?;
    let (instructions, _) = sign(request, &parameters)
        .map_err(|error| format!("the request can't be signed: {error}"))?
        .into_parts();
    Ok(instructions
        .headers()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}
