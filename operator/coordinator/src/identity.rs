//! Who is at the other end of a stream, and which names it may use.
//!
//! Owns the words. Does not own how a token is verified: that is what a [`crate::WorkerAuthenticator`] is for.

use std::sync::Arc;

/// Stands between the name of a pod and what tells its agent processes apart: no name of a pod has it.
pub const WORKER_ID_SEPARATOR: char = ':';

/// Who has signed in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Any worker of this machine (local mode): all hold one secret, so their names are taken on trust.
    LocalWorker,
    /// The agent of a pod that exists.
    Worker {
        /// Name of the pod.
        pod_name: Arc<str>,
        /// UID of the pod: a later pod of the same name has another one.
        pod_uid: Arc<str>,
    },
    /// The operator.
    Operator,
}

impl Identity {
    /// Whether a worker of this identity may call itself so: by the name of its pod, or by that name, a colon and
    /// anything. A name that merely begins like the pod's is that of another pod.
    #[must_use]
    pub fn may_be_called(&self, worker_id: &str) -> bool {
        match self {
            Identity::LocalWorker => true,
            Identity::Operator => false,
            Identity::Worker { pod_name, .. } => worker_id
                .strip_prefix(&**pod_name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(WORKER_ID_SEPARATOR)),
        }
    }

    /// Name of the pod; none in local mode and of the operator.
    #[must_use]
    pub fn pod_name(&self) -> Option<&Arc<str>> {
        match self {
            Identity::Worker { pod_name, .. } => Some(pod_name),
            Identity::LocalWorker | Identity::Operator => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_called_by_the_name_of_its_own_pod_only() {
        let identity = Identity::Worker {
            pod_name: "cpu-7d9f-abc".into(),
            pod_uid: "uid".into(),
        };
        for good in ["cpu-7d9f-abc", "cpu-7d9f-abc:", "cpu-7d9f-abc:1f"] {
            assert!(identity.may_be_called(good), "{good}");
        }
        for bad in [
            "",
            "cpu-7d9f-ab",
            "cpu-7d9f-abcd",
            "cpu-7d9f-abc-1",
            "cpu-7d9f-abc.x",
            "x:cpu-7d9f-abc",
        ] {
            assert!(!identity.may_be_called(bad), "{bad}");
        }
        assert!(Identity::LocalWorker.may_be_called("anything"));
        assert!(!Identity::Operator.may_be_called("cpu-7d9f-abc"));
    }
}
