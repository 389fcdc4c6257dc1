//! What is known of the worker pods of this cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::state::{self, PodNews};

/// Pods of one cluster; further ones can't sign in.
const PODS: usize = 50_000;

#[derive(Clone, Debug)]
struct Known {
    uid: String,
    addresses: Vec<IpAddr>,
    gone: bool,
    /// The latest end of each container that was told, by container.
    ends: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Pods {
    by_name: BTreeMap<String, Known>,
    /// Names that the list under way has told.
    listed: Option<BTreeSet<String>>,
    /// A whole list came once.
    synced: bool,
}

/// Shared by the watch, which writes it, and by those who let workers in.
#[derive(Clone, Debug)]
pub struct PodDirectory {
    pods: Arc<Mutex<Pods>>,
    version: watch::Sender<u64>,
}

impl Pods {
    /// The names of those that have not ended; none before a whole list has come.
    fn live(&self) -> Option<BTreeSet<Arc<str>>> {
        let live = self.by_name.iter().filter(|(_, known)| !known.gone);
        self.synced
            .then(|| live.map(|(name, _)| Arc::from(name.as_str())).collect())
    }
}

/// Why a pod can't be found as it is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodProblem {
    /// The watch has not told anything yet.
    NotSynced,
    /// There is no pod of this name and UID, or it has ended.
    Unknown,
    /// The pod has no such address.
    OtherAddress,
}

/// What one look finds.
enum Look {
    Found,
    /// It may still come.
    NotYet(PodProblem),
    Never(PodProblem),
}

impl Default for PodDirectory {
    fn default() -> Self {
        PodDirectory {
            pods: Arc::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl PodDirectory {
    /// Waits until the pod is known as it is said to be, at most for `patience`: the watch may be behind the agent,
    /// and the kubelet may tell a pod's address after its containers run.
    ///
    /// # Errors
    /// There is no such pod, or the caller is not in it.
    pub async fn admit(
        &self,
        name: &str,
        uid: &str,
        address: Option<IpAddr>,
        patience: Duration,
    ) -> Result<(), PodProblem> {
        let mut versions = self.version.subscribe();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            versions.borrow_and_update();
            let problem = match self.look(name, uid, address) {
                Look::Found => return Ok(()),
                Look::Never(problem) => return Err(problem),
                Look::NotYet(problem) => problem,
            };
            match tokio::time::timeout_at(deadline, versions.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(problem),
            }
        }
    }

    /// The pods that have not ended, as soon as a whole list has come.
    pub async fn names(&self) -> BTreeSet<Arc<str>> {
        let mut versions = self.version.subscribe();
        loop {
            versions.borrow_and_update();
            if let Some(names) = self.lock().live() {
                return names;
            }
            // This directory has the sender, so it can't be gone.
            let _ = versions.changed().await;
        }
    }

    fn look(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Look {
        let pods = self.lock();
        let Some(known) = pods.by_name.get(name) else {
            return Look::NotYet(if pods.synced {
                PodProblem::Unknown
            } else {
                PodProblem::NotSynced
            });
        };
        if known.uid != uid {
            return Look::NotYet(PodProblem::Unknown);
        }
        if known.gone {
            return Look::Never(PodProblem::Unknown);
        }
        match address {
            None => Look::Found,
            Some(address) if known.addresses.contains(&address.to_canonical()) => Look::Found,
            Some(_) if known.addresses.is_empty() => Look::NotYet(PodProblem::OtherAddress),
            Some(_) => Look::Never(PodProblem::OtherAddress),
        }
    }

    /// A list begins: what it does not tell is gone when it ends.
    pub(crate) fn begin_list(&self) {
        self.lock().listed = Some(BTreeSet::new());
    }

    /// The list has been told.
    pub(crate) fn end_list(&self) -> Vec<PodNews> {
        let mut pods = self.lock();
        let listed = pods.listed.take().unwrap_or_default();
        pods.synced = true;
        let missing: Vec<String> = pods
            .by_name
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        let news = missing
            .into_iter()
            .filter_map(|name| forget(&mut pods, &name, "the pod does not exist any more"))
            .collect();
        drop(pods);
        self.tell();
        news
    }

    /// A pod is as it is told here.
    pub(crate) fn apply(&self, pod: &Pod) -> Vec<PodNews> {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else {
            return Vec::new();
        };
        let mut pods = self.lock();
        if let Some(listed) = &mut pods.listed {
            listed.insert(name.clone());
        }
        let mut news = Vec::new();
        if pods.by_name.get(name).is_some_and(|known| known.uid != *uid) {
            news.extend(forget(&mut pods, name, "another pod took its name"));
        }
        let is_new = !pods.by_name.contains_key(name);
        if is_new && pods.by_name.len() >= PODS {
            tracing::error!(%name, limit = PODS, "too many worker pods: this one is not looked at");
            return news;
        }
        let known = pods.by_name.entry(name.clone()).or_insert_with(|| Known {
            uid: uid.clone(),
            addresses: Vec::new(),
            gone: false,
            ends: BTreeMap::new(),
        });
        known.addresses = state::addresses(pod);
        for (container, end) in state::ends(pod) {
            let before = known.ends.insert(container.clone(), end.container_id.clone());
            if before.as_ref() == Some(&end.container_id) {
                continue;
            }
            let uid = uid.clone();
            news.push(if state::is_agent(&container) {
                let name = name.clone();
                PodNews::AgentEnded { name, uid, end }
            } else {
                PodNews::ContainerEnded { uid, container, end }
            });
        }
        if !known.gone
            && let Some(why) = state::gone(pod)
        {
            known.gone = true;
            let (name, uid) = (name.clone(), uid.clone());
            news.push(PodNews::Gone { name, uid, why });
        }
        drop(pods);
        self.tell();
        news
    }

    /// The pod's object was deleted.
    pub(crate) fn delete(&self, pod: &Pod) -> Vec<PodNews> {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else {
            return Vec::new();
        };
        let mut pods = self.lock();
        if pods.by_name.get(name).is_some_and(|known| known.uid != *uid) {
            return Vec::new();
        }
        let news = forget(&mut pods, name, "the pod was deleted");
        drop(pods);
        self.tell();
        news.into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// Takes a pod out; news only where its end was not told before.
fn forget(pods: &mut Pods, name: &str, why: &str) -> Option<PodNews> {
    let known = pods.by_name.remove(name)?;
    (!known.gone).then(|| PodNews::Gone {
        name: name.to_owned(),
        uid: known.uid,
        why: why.to_owned(),
    })
}
