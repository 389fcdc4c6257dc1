//! Lists and deletes by prefix, page by page, within named limits.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use super::{Inner, request};
use crate::counters::Request;
use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::store::{ListedObject, Listing};

/// S3's limit of keys in one page, and of deletions in one request.
const PAGE_OBJECTS: u64 = 1_000;
/// The most pages that one deletion handles: ten million objects.
const MAX_DELETE_PAGES: u64 = 10_000;

impl Inner {
    pub(super) async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let after = after.map(|key| self.bucket_key(key.as_str()));
        let mut listing = Listing::default();
        let mut token = None;
        loop {
            // One more than asked for tells whether there are more.
            let wanted = (limit - listing.objects.len()) as u64 + 1;
            let page = self
                .page(prefix, after.clone(), token, wanted.min(PAGE_OBJECTS))
                .await?;
            for object in page.contents() {
                if listing.objects.len() == limit {
                    listing.truncated = true;
                    return Ok(listing);
                }
                listing.objects.extend(self.listed(object));
            }
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(listing);
            }
        }
    }

    /// An object as our key names it; those that others put into the bucket under other rules are left out.
    fn listed(&self, object: &aws_sdk_s3::types::Object) -> Option<ListedObject> {
        let key = object.key()?.strip_prefix(self.location.prefix.as_str())?;
        let size_bytes = object.size().and_then(|size| u64::try_from(size).ok())?;
        Some(ListedObject {
            key: Key::new(key).ok()?,
            size_bytes,
        })
    }

    async fn page(
        &self,
        prefix: &Prefix,
        after: Option<String>,
        token: Option<String>,
        keys: u64,
    ) -> Result<ListObjectsV2Output, StoreError> {
        let send = || {
            self.client
                .list_objects_v2()
                .bucket(&self.location.bucket)
                .prefix(self.bucket_key(prefix.as_str()))
                .set_start_after(after.clone())
                .set_continuation_token(token.clone())
                .max_keys(keys as i32)
                .send()
        };
        let (result, _) = request!(self, Request::ListObjects, prefix.as_str(), send());
        result
    }

    pub(super) async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        if prefix.is_root() {
            return Err(StoreError::InvalidKey {
                key: String::new(),
                problem: "a whole store is never deleted; name a prefix".into(),
            });
        }
        let mut count = 0;
        let mut token = None;
        for _ in 0..MAX_DELETE_PAGES {
            let page = self.page(prefix, None, token, PAGE_OBJECTS).await?;
            let keys: Vec<&str> = page.contents().iter().filter_map(|object| object.key()).collect();
            if !keys.is_empty() {
                self.delete_keys(prefix, &keys).await?;
                count += keys.len() as u64;
            }
            token = page.next_continuation_token;
            if token.is_none() {
                self.abort_uploads_below(prefix).await?;
                return Ok(count);
            }
        }
        let limit = MAX_DELETE_PAGES * PAGE_OBJECTS;
        Err(StoreError::TooManyObjects {
            prefix: prefix.to_string(),
            store: self.name.clone(),
            limit,
        })
    }

    /// Deletes one batch. What the store could not delete for a passing reason is tried again with the whole batch.
    async fn delete_keys(&self, prefix: &Prefix, keys: &[&str]) -> Result<(), StoreError> {
        let identifiers: Vec<_> = keys
            .iter()
            .filter_map(|key| ObjectIdentifier::builder().key(*key).build().ok())
            .collect();
        let rejected = |code: &str, message: &str| StoreError::Rejected {
            key: prefix.to_string(),
            store: self.name.clone(),
            code: code.into(),
            source: message.to_owned().into(),
        };
        let batch = Delete::builder()
            .set_objects(Some(identifiers))
            .quiet(true)
            .build();
        let batch = batch.map_err(|error| rejected("no objects to delete", &error.to_string()))?;
        let mut tries = self.retrier.start();
        loop {
            self.counters.request(Request::DeleteObjects);
            let send = self
                .client
                .delete_objects()
                .bucket(&self.location.bucket)
                .delete(batch.clone())
                .send();
            let tried = self.classified(prefix.as_str(), send.await).and_then(|answer| {
                match answer.errors().first() {
                    None => Ok(()),
                    Some(error) => Err(self.delete_error(error)),
                }
            });
            if let Some(result) = tries.settle(tried).await {
                return result;
            }
        }
    }

    fn delete_error(&self, error: &aws_sdk_s3::types::Error) -> StoreError {
        let key = error.key().unwrap_or_default().to_owned();
        let code = error.code().unwrap_or("unknown").to_owned();
        let store = self.name.clone();
        match code.as_str() {
            "AccessDenied" => StoreError::AccessDenied { key, store, code },
            "SlowDown" | "ServiceUnavailable" => StoreError::Throttled {
                key,
                store,
                code,
                retry_after: None,
            },
            "InternalError" => StoreError::StoreFailed {
                key,
                store,
                code,
                source: error.message().unwrap_or_default().to_owned().into(),
            },
            _ => StoreError::Rejected {
                key,
                store,
                code,
                source: error.message().unwrap_or_default().to_owned().into(),
            },
        }
    }

    /// Removes the parts of uploads whose process died. Not every service or account may list them; then the
    /// bucket's lifecycle rule has to, which the documentation asks for anyway.
    async fn abort_uploads_below(&self, prefix: &Prefix) -> Result<(), StoreError> {
        let (mut key_marker, mut id_marker) = (None, None);
        for _ in 0..MAX_DELETE_PAGES {
            let send = || {
                self.client
                    .list_multipart_uploads()
                    .bucket(&self.location.bucket)
                    .prefix(self.bucket_key(prefix.as_str()))
                    .set_key_marker(key_marker.clone())
                    .set_upload_id_marker(id_marker.clone())
                    .send()
            };
            let (result, _) = request!(self, Request::ListMultipartUploads, prefix.as_str(), send());
            let page = match result {
                Err(error @ (StoreError::AccessDenied { .. } | StoreError::Rejected { .. })) => {
                    tracing::warn!(%prefix, category = error.category(), "unfinished uploads can't be listed");
                    return Ok(());
                }
                other => other?,
            };
            for upload in page.uploads() {
                let key = upload
                    .key()
                    .and_then(|key| key.strip_prefix(self.location.prefix.as_str()));
                if let (Some(key), Some(id)) = (key, upload.upload_id()) {
                    self.abort_upload(key, id).await?;
                }
            }
            if page.is_truncated() != Some(true) {
                return Ok(());
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
        Ok(())
    }
}
