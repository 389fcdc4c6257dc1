//! Turns what the SDK and S3 services say into [`StoreError`]. Decides nothing about retries.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Cause, StoreError};

/// Longest text of a cause that is kept, in characters: a proxy may answer with a whole page.
const MAX_CAUSE_CHARACTERS: usize = 500;

pub(super) fn classify<E>(
    error: &SdkError<E, HttpResponse>,
    key: &str,
    store: &str,
    bucket: &str,
) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let (key, store) = (key.to_owned(), store.to_owned());
    match error {
        SdkError::ServiceError(failure) => {
            let answer = Answer {
                status: failure.raw().status().as_u16(),
                code: failure.err().code().unwrap_or_default(),
                message: failure.err().message().unwrap_or_default(),
                retry_after: retry_after(failure.raw()),
                bucket,
            };
            service_error(&answer, key, store)
        }
        // An answer that is not S3's: half of one, or one of a proxy between.
        SdkError::ResponseError(failure) => {
            let status = failure.raw().status().as_u16();
            let source = cause(error);
            match status {
                429 | 503 => StoreError::Throttled {
                    key,
                    store,
                    code: status.to_string(),
                    retry_after: retry_after(failure.raw()),
                },
                500.. => StoreError::StoreFailed {
                    key,
                    store,
                    code: status.to_string(),
                    source,
                },
                _ => StoreError::Connection { key, store, source },
            }
        }
        SdkError::TimeoutError(_) => StoreError::Timeout {
            key,
            store,
            source: cause(error),
        },
        SdkError::DispatchFailure(failure) if failure.is_timeout() => StoreError::Timeout {
            key,
            store,
            source: cause(error),
        },
        _ if is_about_credentials(error) => StoreError::NoCredentials {
            store,
            source: cause(error),
        },
        SdkError::ConstructionFailure(_) => StoreError::Rejected {
            key,
            store,
            code: "the request could not be built".into(),
            source: cause(error),
        },
        _ => StoreError::Connection {
            key,
            store,
            source: cause(error),
        },
    }
}

/// An error answer of the service.
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: &'a str,
    retry_after: Option<Duration>,
    bucket: &'a str,
}

impl Answer<'_> {
    /// The code as messages show it. Answers to HEAD have no body and so no code.
    fn shown(&self) -> String {
        if self.code.is_empty() {
            format!("HTTP status {}", self.status)
        } else {
            self.code.to_owned()
        }
    }

    fn source(&self) -> Cause {
        let text = format!("{}: {} (HTTP status {})", self.shown(), self.message, self.status);
        shortened(&text).into()
    }
}

fn service_error(answer: &Answer<'_>, key: String, store: String) -> StoreError {
    let code = answer.shown();
    match (answer.code, answer.status) {
        // MinIO's words when its disk fills up between two looks at the free space.
        ("InternalError", _) if answer.message.contains("no space left on device") => StoreError::StoreFull {
            key,
            store,
            source: answer.source(),
        },
        ("NoSuchBucket", _) => StoreError::BucketNotFound {
            bucket: answer.bucket.into(),
            store,
        },
        ("NoSuchKey" | "NotFound", _) => StoreError::NotFound { key, store },
        ("PreconditionFailed", _) => StoreError::AlreadyExists { key, store },
        // Another write of the same key was under way; the next try learns who won.
        ("ConditionalRequestConflict" | "OperationAborted", _) => StoreError::StoreFailed {
            key,
            store,
            code,
            source: answer.source(),
        },
        (
            "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "QuotaExceeded"
            | "InsufficientStorage"
            | "InsufficientCapacity"
            | "XMinioInsufficientStorage",
            _,
        )
        | (_, 507) => StoreError::StoreFull {
            key,
            store,
            source: answer.source(),
        },
        (
            "BadDigest"
            | "InvalidDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
            | "IncompleteBody",
            _,
        ) => StoreError::UploadDamaged {
            key,
            store,
            problem: code,
        },
        ("RequestTimeout", _) | (_, 408 | 504) => StoreError::Timeout {
            key,
            store,
            source: answer.source(),
        },
        (
            "SlowDown"
            | "ServiceUnavailable"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequests"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "BandwidthLimitExceeded",
            _,
        )
        | (_, 429 | 503) => StoreError::Throttled {
            key,
            store,
            code,
            retry_after: answer.retry_after,
        },
        // A clock that is off is told as such by its code.
        (_, 401 | 403) => StoreError::AccessDenied { key, store, code },
        ("", 404) => StoreError::NotFound { key, store },
        ("", 412) => StoreError::AlreadyExists { key, store },
        ("NotImplemented", _) | (_, 501) => StoreError::Rejected {
            key,
            store,
            code,
            source: answer.source(),
        },
        // MinIO answers 499 to what is under way when it is told to end.
        (_, 499 | 500..) => StoreError::StoreFailed {
            key,
            store,
            code,
            source: answer.source(),
        },
        _ => StoreError::Rejected {
            key,
            store,
            code,
            source: answer.source(),
        },
    }
}

/// The store's own wish, in seconds; the other form of the header, a date, is not used by S3 services.
fn retry_after(answer: &HttpResponse) -> Option<Duration> {
    answer
        .headers()
        .get("retry-after")?
        .parse()
        .ok()
        .map(Duration::from_secs)
}

fn is_about_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<CredentialsError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The chain of causes as one text: the SDK's own types hold whole requests.
pub(super) fn cause(error: &(dyn Error + 'static)) -> Cause {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !text.ends_with(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = error.source();
    }
    shortened(&text).into()
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_CAUSE_CHARACTERS).collect()
}
