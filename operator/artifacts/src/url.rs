//! The URL that names a store. Does not open anything and reads no environment.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::StoreError;
use crate::key::Prefix;

/// Which store, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:///folder`
    Folder(PathBuf),
    /// `s3://bucket/prefix?endpoint=http://host:port&region=name&path-style=true`
    S3(S3Location),
}

/// A bucket of an S3 service, and the prefix in it that is the root of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// Name of the bucket.
    pub bucket: String,
    /// The root of the store in the bucket.
    pub prefix: Prefix,
    /// `http://host:port` or `https://...`; Amazon S3 when not given.
    pub endpoint: Option<String>,
    /// Region; without it AWS_REGION counts, and beside an endpoint `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is named in the path and not in the host name. By default so when an endpoint is given.
    pub path_style: bool,
}

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |url: &str, problem: String| StoreError::InvalidUrl {
            url: url.into(),
            problem,
        };
        // What can't be parsed is not repeated, since a password may stand in it.
        let url = url::Url::parse(text).map_err(|error| {
            refuse(
                text.split(['@', '?']).next().unwrap_or_default(),
                error.to_string(),
            )
        })?;
        let shown = shown(&url);
        if !url.username().is_empty() || url.password().is_some() {
            let problem = "credentials do not belong into a URL; give them in the environment";
            return Err(refuse(&shown, problem.into()));
        }
        if url.fragment().is_some() {
            return Err(refuse(&shown, "a part after # has no meaning".into()));
        }
        let parsed = match url.scheme() {
            "file" => folder(&url),
            "s3" => s3(&url),
            other => Err(format!("the scheme `{other}` is neither file nor s3")),
        };
        parsed.map_err(|problem| refuse(&shown, problem))
    }
}

fn shown(url: &url::Url) -> String {
    let mut url = url.clone();
    // Both fail only where there is nothing to remove.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn folder(url: &url::Url) -> Result<StoreUrl, String> {
    if url.query().is_some() {
        return Err("a folder takes no parameters".into());
    }
    let path = url
        .to_file_path()
        .map_err(|()| "the path must be absolute, with three slashes: file:///folder")?;
    Ok(StoreUrl::Folder(path))
}

fn s3(url: &url::Url) -> Result<StoreUrl, String> {
    let bucket = url
        .host_str()
        .filter(|bucket| !bucket.is_empty())
        .ok_or("the bucket is missing")?;
    if url.port().is_some() {
        return Err("a port belongs into the endpoint parameter".into());
    }
    let path = url.path().trim_start_matches('/');
    let prefix = Prefix::new(path).map_err(|error| error.to_string())?;
    let mut location = S3Location {
        bucket: bucket.into(),
        prefix,
        endpoint: None,
        region: None,
        path_style: false,
    };
    let mut path_style = None;
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "endpoint" => location.endpoint = Some(endpoint(&value)?),
            "region" if value.is_empty() => return Err("the region is empty".into()),
            "region" => location.region = Some(value.into_owned()),
            "path-style" => {
                let parsed = value
                    .parse()
                    .map_err(|_| format!("path-style is `{value}`, not true or false"))?;
                path_style = Some(parsed);
            }
            other => {
                return Err(format!(
                    "the parameter `{other}` is unknown: use endpoint, region, path-style"
                ));
            }
        }
    }
    location.path_style = path_style.unwrap_or(location.endpoint.is_some());
    Ok(StoreUrl::S3(location))
}

fn endpoint(value: &str) -> Result<String, String> {
    let url = url::Url::parse(value).map_err(|error| format!("the endpoint is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("the endpoint must be http://host:port or https://host:port".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the endpoint; give them in the environment".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the endpoint takes no parameters; write & between the parameters of the store".into());
    }
    Ok(value.trim_end_matches('/').to_owned())
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(formatter, "file://{}", path.display()),
            Self::S3(location) => write!(formatter, "{location}"),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "s3://{}/{}", self.bucket, self.prefix)?;
        match &self.endpoint {
            Some(endpoint) => write!(formatter, " at {endpoint}"),
            None => Ok(()),
        }
    }
}
