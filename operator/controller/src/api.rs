//! Calls of the API server: each with a time limit, each failure with its class.

use std::future::Future;
use std::time::Duration;

use kube::core::response::reason;

use crate::retry::Retry;

/// Longest wait for an answer of the API server.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Before a refused call is tried again: someone must grant a right or raise a quota first.
const REFUSED_DELAY: Duration = Duration::from_secs(60);

/// A call of the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("the API server did not answer within {} s when asked to {call}", CALL_LIMIT.as_secs())]
    Timeout {
        /// What was asked.
        call: &'static str,
    },
    /// An answer that is a refusal, or none at all.
    #[error("could not {call}: {source}")]
    Failed {
        /// What was asked.
        call: &'static str,
        /// What came back.
        source: Box<kube::Error>,
    },
}

impl ApiError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ApiError::Timeout { .. } => "api_timeout",
            ApiError::Failed { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    403 => "api_forbidden",
                    404 => "api_not_found",
                    409 => "api_conflict",
                    422 => "api_invalid",
                    429 => "api_too_many_requests",
                    500.. => "api_server_error",
                    _ => "api_refused",
                },
                _ => "api_unreachable",
            },
        }
    }

    /// When it is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.category() {
            "api_forbidden" | "api_invalid" => Retry::After(REFUSED_DELAY),
            _ => Retry::Backoff,
        }
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else changed or created it meanwhile.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The namespace is going, so that nothing can be created in it.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        match self {
            ApiError::Failed { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => {
                    status.reason == reason::FORBIDDEN && status.message.contains("being terminated")
                }
                _ => false,
            },
            ApiError::Timeout { .. } => false,
        }
    }

    fn code(&self) -> Option<u16> {
        match self {
            ApiError::Failed { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            ApiError::Timeout { .. } => None,
        }
    }
}

/// Awaits an answer of the API server, at most [`CALL_LIMIT`]. `call` is what was asked, as in "read the Lease".
///
/// # Errors
/// No answer in time, or a refusal.
pub async fn call<T>(
    call: &'static str,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(CALL_LIMIT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ApiError::Failed {
            call,
            source: Box::new(source),
        }),
        Err(_) => Err(ApiError::Timeout { call }),
    }
}

/// As [`call`]; that the object does not exist is an answer too.
///
/// # Errors
/// No answer in time, or another refusal.
pub async fn call_opt<T>(
    name: &'static str,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Option<T>, ApiError> {
    match call(name, answer).await {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
