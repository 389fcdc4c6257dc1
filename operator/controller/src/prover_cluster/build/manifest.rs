//! An object as it shall be, ready to be applied.

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, GroupVersionKind};
use serde::Serialize;
use serde_json::Value;

use super::metadata::{APPLIED_HASH_ANNOTATION, hash};

macro_rules! kinds {
    ($($(#[$meta:meta])* $kind:ident = $group:literal $plural:literal,)*) => {
        /// Kinds of objects that are made. All are of version `v1`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$meta])* $kind,)*
        }

        impl Kind {
            /// Every kind, in the order in which they are applied.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// As manifests write it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$kind => stringify!($kind),)* }
            }

            /// API group; empty for the core.
            #[must_use]
            pub fn group(self) -> &'static str {
                match self { $(Kind::$kind => $group,)* }
            }

            /// As paths and rules of roles write it.
            #[must_use]
            pub fn plural(self) -> &'static str {
                match self { $(Kind::$kind => $plural,)* }
            }
        }
    };
}

kinds! {
    /// Who a pod is.
    ServiceAccount = "" "serviceaccounts",
    /// What it may do.
    Role = "rbac.authorization.k8s.io" "roles",
    /// That it may.
    RoleBinding = "rbac.authorization.k8s.io" "rolebindings",
    /// The list of allowed namespaces.
    ConfigMap = "" "configmaps",
    /// Where workers find the coordinator.
    Service = "" "services",
    /// Who may connect to whom.
    NetworkPolicy = "networking.k8s.io" "networkpolicies",
    /// How many may be evicted at once.
    PodDisruptionBudget = "policy" "poddisruptionbudgets",
    /// Coordinator and workers.
    Deployment = "apps" "deployments",
    /// Images that are fetched early.
    DaemonSet = "apps" "daemonsets",
}

impl Kind {
    /// For calls of the API server.
    #[must_use]
    pub fn api_resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(self.group(), "v1", self.as_str()),
            self.plural(),
        )
    }
}

/// How an object comes into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// By being applied.
    Applied,
    /// With no replicas, whose number belongs to the scaler from then on.
    WithoutReplicas,
}

/// An object as it shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How it comes into being.
    pub creation: Creation,
    /// Hash of the body, which is also its annotation.
    pub hash: String,
    /// All of it.
    pub body: Value,
}

impl Manifest {
    /// Of a typed object.
    pub(super) fn new<K: Serialize + Metadata<Ty = ObjectMeta>>(kind: Kind, object: &K) -> Manifest {
        let metadata = object.metadata();
        Manifest {
            kind,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            creation: Creation::Applied,
            hash: String::new(),
            // These types only have strings as keys, so that they always become JSON.
            body: serde_json::to_value(object).unwrap_or_default(),
        }
    }

    /// Writes the hash of the body into its annotations: what is there with the same hash needs no call.
    pub(super) fn sealed(mut self) -> Manifest {
        self.hash = hash(&self.body, 32);
        let hash = Value::String(self.hash.clone());
        self.body["metadata"]["annotations"][APPLIED_HASH_ANNOTATION] = hash;
        self
    }

    /// Adds an annotation to a sealed manifest.
    pub(super) fn annotate(&mut self, name: &str, value: &str) {
        let annotations = &mut self.body["metadata"]["annotations"];
        annotations[name] = Value::String(value.to_owned());
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.remove(APPLIED_HASH_ANNOTATION);
        }
        *self = self.clone().sealed();
    }
}
