//! A store that can be held up or taken away.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prover_artifacts::{
    ArtifactStore, Condition, Counters, Key, Listing, ObjectInfo, Prefix, StoreCapabilities, StoreError,
};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Writes wait.
    Held,
    /// Everything fails.
    Away,
}

#[derive(Debug)]
pub(crate) struct GatedStore {
    inner: Arc<dyn ArtifactStore>,
    pub(crate) gate: watch::Sender<Gate>,
}

impl GatedStore {
    pub(crate) fn over(inner: Arc<dyn ArtifactStore>) -> Arc<GatedStore> {
        let (gate, _) = watch::channel(Gate::Open);
        Arc::new(GatedStore { inner, gate })
    }

    pub(crate) fn set(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }

    fn there(&self, key: &str) -> Result<(), StoreError> {
        if *self.gate.borrow() == Gate::Away {
            return Err(StoreError::Connection {
                key: key.to_owned(),
                store: "of the test".to_owned(),
                source: "the test took the store away".into(),
            });
        }
        Ok(())
    }

    async fn passed(&self, key: &str) -> Result<(), StoreError> {
        let mut gate = self.gate.subscribe();
        let _ = gate.wait_for(|gate| *gate != Gate::Held).await;
        self.there(key)
    }
}

#[async_trait::async_trait]
impl ArtifactStore for GatedStore {
    async fn put_file(&self, key: &Key, path: &Path, condition: Condition) -> Result<ObjectInfo, StoreError> {
        self.passed(key.as_str()).await?;
        self.inner.put_file(key, path, condition).await
    }

    async fn put_bytes(
        &self,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        self.passed(key.as_str()).await?;
        self.inner.put_bytes(key, content, condition).await
    }

    async fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        self.there(key.as_str())?;
        self.inner.get_file(key, expected, to).await
    }

    async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.there(key.as_str())?;
        self.inner.get_bytes(key, expected, max_bytes).await
    }

    async fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError> {
        self.there(key.as_str())?;
        self.inner.stat(key).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.there(key.as_str())?;
        self.inner.delete(key).await
    }

    async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        self.there(prefix.as_str())?;
        self.inner.delete_prefix(prefix).await
    }

    async fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.there(prefix.as_str())?;
        self.inner.list_after(prefix, after, limit).await
    }

    async fn probe(&self) -> Result<StoreCapabilities, StoreError> {
        self.inner.probe().await
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }

    fn location(&self) -> &str {
        self.inner.location()
    }
}
