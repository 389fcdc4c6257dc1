//! The table of what S3 services answer and what it means here.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::primitives::SdkBody;

use super::errors::classify;
use crate::error::{Retry, StoreError};

fn answered(status: u16, code: &str, message: &str) -> StoreError {
    let metadata = ErrorMetadata::builder().code(code).message(message).build();
    let raw = HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
    let error = SdkError::service_error(PutObjectError::generic(metadata), raw);
    classify(&error, "jobs/a/x", "s3://bucket/", "bucket")
}

#[test]
fn answers_of_services_get_their_category() {
    let table = [
        (404, "NoSuchKey", "not_found"),
        (404, "", "not_found"),
        (404, "NoSuchBucket", "bucket_not_found"),
        (404, "NoSuchUpload", "rejected"),
        (412, "PreconditionFailed", "already_exists"),
        (412, "", "already_exists"),
        (409, "ConditionalRequestConflict", "store_failed"),
        (403, "AccessDenied", "access_denied"),
        (403, "SignatureDoesNotMatch", "access_denied"),
        (403, "", "access_denied"),
        (401, "", "access_denied"),
        (507, "XMinioStorageFull", "store_full"),
        (507, "", "store_full"),
        (400, "XMinioAdminBucketQuotaExceeded", "store_full"),
        (403, "QuotaExceeded", "store_full"),
        (503, "SlowDown", "throttled"),
        (503, "", "throttled"),
        (429, "TooManyRequests", "throttled"),
        (400, "RequestTimeout", "timeout"),
        (504, "", "timeout"),
        (400, "BadDigest", "upload_damaged"),
        (400, "XAmzContentChecksumMismatch", "upload_damaged"),
        (500, "InternalError", "store_failed"),
        (502, "", "store_failed"),
        (499, "", "store_failed"),
        (501, "NotImplemented", "rejected"),
        (400, "InvalidArgument", "rejected"),
    ];
    for (status, code, category) in table {
        let error = answered(status, code, "");
        assert_eq!(error.category(), category, "{status} {code}: {error:?}");
    }
}

#[test]
fn a_disk_that_minio_found_full_is_store_full() {
    let error = answered(500, "InternalError", "We failed: cause(no space left on device)");
    assert_eq!(error.category(), "store_full");
    assert_eq!(error.retry(), Retry::Never);
}

#[test]
fn a_message_names_the_service_s_own_code_where_ours_is_general() {
    let error = answered(400, "InvalidArgument", "the thing is wrong");
    assert_eq!(
        error.to_string(),
        "the store s3://bucket/ refused `jobs/a/x`: InvalidArgument"
    );
    let error = answered(418, "", "");
    assert_eq!(
        error.to_string(),
        "the store s3://bucket/ refused `jobs/a/x`: HTTP status 418"
    );
}
