//! Finds out what a service really does: some accept conditional writes or checksums and ignore them.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use uuid::Uuid;

use super::{ANY, Inner};
use crate::counters::Request;
use crate::error::StoreError;
use crate::hash::{ObjectInfo, Sha256};
use crate::key::RESERVED;
use crate::store::StoreCapabilities;

/// What the probe writes.
const CONTENT: &[u8] = b"prover-operator probes what this store can do; this object may be deleted\n";

impl Inner {
    pub(super) async fn probe(self: &Arc<Self>) -> Result<StoreCapabilities, StoreError> {
        let key = format!("{RESERVED}probe-{}", Uuid::new_v4());
        let result = self.probe_with(&key).await;
        // Whatever the probe found, it leaves nothing behind; its own result says more than a failure of this.
        let deleted = self.delete(&key).await;
        let capabilities = result?;
        deleted?;
        Ok(capabilities)
    }

    async fn probe_with(self: &Arc<Self>, key: &str) -> Result<StoreCapabilities, StoreError> {
        let unsupported = || StoreError::ConditionalWritesUnsupported {
            store: self.name.clone(),
        };
        match self.probe_put(key, &Sha256::of(CONTENT), Some(ANY)).await {
            (Ok(()), _) => {}
            // The key is new to the world, so only a try of this call that seemed to fail can have made it.
            (Err(StoreError::AlreadyExists { .. }), failures) if failures > 0 => {}
            (Err(StoreError::Rejected { code, .. }), _) if code == "NotImplemented" => {
                return Err(unsupported());
            }
            (Err(error), _) => return Err(error),
        }
        match self.probe_put(key, &Sha256::of(CONTENT), Some(ANY)).await.0 {
            Err(StoreError::AlreadyExists { .. }) => {}
            Ok(()) => return Err(unsupported()),
            Err(error) => return Err(error),
        }
        let conditional_multipart = self.probe_multipart(key).await?;
        let verifies_uploads = self.probe_checksum(key).await?;
        Ok(StoreCapabilities {
            writable: true,
            conditional_writes: true,
            conditional_multipart,
            verifies_uploads,
        })
    }

    /// A plain write, without the kindness towards repeated tries that real writes have; answers how many tries
    /// failed before the last.
    async fn probe_put(
        &self,
        key: &str,
        digest: &Sha256,
        condition: Option<&str>,
    ) -> (Result<(), StoreError>, u32) {
        let send = || {
            self.client
                .put_object()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .set_if_none_match(condition.map(ToOwned::to_owned))
                .checksum_sha256(BASE64.encode(digest.as_bytes()))
                .body(ByteStream::from_static(CONTENT))
                .customize()
                .disable_payload_signing()
                .send()
        };
        let mut tries = self.retrier.start();
        loop {
            self.counters.request(Request::PutObject);
            let tried = match self.classified(key, send().await) {
                // Our checksum is wrong on purpose: trying again would change nothing.
                Err(StoreError::UploadDamaged { .. }) if *digest != Sha256::of(CONTENT) => Ok(false),
                other => other.map(|_| true),
            };
            if let Some(result) = tries.settle(tried).await {
                let damaged = || StoreError::UploadDamaged {
                    key: key.into(),
                    store: self.name.clone(),
                    problem: "its checksum is wrong".into(),
                };
                let result = result.and_then(|stored| if stored { Ok(()) } else { Err(damaged()) });
                return (result, tries.failures());
            }
        }
    }

    /// Whether an upload in parts onto an existing object is refused at its end.
    async fn probe_multipart(self: &Arc<Self>, key: &str) -> Result<bool, StoreError> {
        let info = ObjectInfo::of(CONTENT);
        let mut upload = self.create_upload(key, &info, "probe").await?;
        let sent = self
            .upload_part(&upload.id, key, 1, Bytes::from_static(CONTENT), &info.sha256)
            .await;
        let result = match sent {
            Ok(part) => self.send_complete(&mut upload, vec![part]).await.0,
            Err(error) => Err(error),
        };
        upload.abort().await;
        match result {
            Err(StoreError::AlreadyExists { .. }) => Ok(true),
            Ok(_) | Err(StoreError::Rejected { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether content that differs from its checksum is refused.
    async fn probe_checksum(&self, key: &str) -> Result<bool, StoreError> {
        self.delete(key).await?;
        match self.probe_put(key, &Sha256::of(b"other content"), None).await.0 {
            Ok(()) => Ok(false),
            Err(StoreError::UploadDamaged { .. } | StoreError::Rejected { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
