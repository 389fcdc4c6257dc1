//! The authorities and the certificate of one cluster, and what each step changes. Knows no API server.

use std::collections::BTreeMap;

use prover_crds::names;

use super::issue::{
    Authority, AuthorityCertificate, IssueError, Leaf, create_authority, is_trusted, issue_leaf,
};
use super::plan::{AuthorityFacts, Facts, Fingerprint, LeafFacts, Step};

/// What there is, as far as it can be read.
#[derive(Debug, Default)]
pub struct State {
    /// The authority that signs.
    pub current: Option<Authority>,
    /// Its successor.
    pub next: Option<Authority>,
    /// Authorities that sign no more.
    pub previous: Vec<AuthorityCertificate>,
    /// What workers are given; none where it can't be read.
    pub bundle: Option<Vec<AuthorityCertificate>>,
    /// Since when each authority has been in the bundle, in milliseconds since the epoch.
    pub published: BTreeMap<Fingerprint, u64>,
    /// What the coordinator serves.
    pub leaf: Option<Leaf>,
}

/// The object that a step changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The Secret with the authorities and their keys.
    Authority,
    /// The ConfigMap with the bundle.
    Bundle,
    /// The Secret with the coordinator's certificate.
    Leaf,
    /// None.
    Nothing,
}

impl State {
    /// What [`super::plan::plan`] decides upon.
    #[must_use]
    pub fn facts(&self, now_ms: u64) -> Facts {
        let in_bundle = |id: &Fingerprint| {
            self.bundle
                .as_ref()
                .is_some_and(|bundle| bundle.iter().any(|certificate| certificate.id == *id))
        };
        let facts = |certificate: &AuthorityCertificate| AuthorityFacts {
            id: certificate.id.clone(),
            not_after_ms: certificate.not_after_ms,
            // Nobody could have published it in the future: then nothing is known.
            published_at_ms: self
                .published
                .get(&certificate.id)
                .copied()
                .filter(|at| in_bundle(&certificate.id) && *at <= now_ms),
        };
        Facts {
            current: self
                .current
                .as_ref()
                .map(|authority| facts(&authority.certificate)),
            next: self.next.as_ref().map(|authority| facts(&authority.certificate)),
            previous: self.previous.iter().map(facts).collect(),
            bundle: self
                .bundle
                .as_ref()
                .map(|bundle| bundle.iter().map(|certificate| certificate.id.clone()).collect()),
            leaf: self.leaf.as_ref().and_then(|leaf| self.leaf_facts(leaf, now_ms)),
        }
    }

    fn leaf_facts(&self, leaf: &Leaf, now_ms: u64) -> Option<LeafFacts> {
        // The moment of the check lies within its life, so that an ended one is told from one of a stranger.
        let moment = now_ms.min(leaf.not_after_ms.saturating_sub(1));
        let issuer = self.certificates().find(|certificate| {
            is_trusted(
                leaf,
                std::iter::once(*certificate),
                names::COORDINATOR_SERVER_NAME,
                moment,
            )
        })?;
        Some(LeafFacts {
            issuer: issuer.id.clone(),
            issued_at_ms: leaf.issued_at_ms,
            not_after_ms: leaf.not_after_ms,
        })
    }

    /// All authorities that are known, the one that signs first.
    pub fn certificates(&self) -> impl Iterator<Item = &AuthorityCertificate> {
        let able = self
            .current
            .iter()
            .chain(&self.next)
            .map(|authority| &authority.certificate);
        able.chain(&self.previous)
    }

    /// Takes a step. `cluster` names the cluster in the certificate of an authority.
    ///
    /// # Errors
    /// The cryptographic library refused.
    pub fn take(&mut self, step: &Step, cluster: &str, now_ms: u64) -> Result<Changed, IssueError> {
        match step {
            Step::CreateAuthority => {
                self.create_authority(cluster, now_ms)?;
                Ok(Changed::Authority)
            }
            Step::StartRotation => {
                self.next = Some(create_authority(cluster, now_ms)?);
                Ok(Changed::Authority)
            }
            Step::SwitchAuthority => {
                if let Some(next) = self.next.take() {
                    let old = self.current.replace(next).map(|authority| authority.certificate);
                    self.previous.splice(0..0, old);
                }
                Ok(Changed::Authority)
            }
            Step::FinishRotation => {
                self.previous.clear();
                Ok(Changed::Authority)
            }
            Step::PublishBundle(wanted) => {
                self.publish(wanted, now_ms);
                Ok(Changed::Bundle)
            }
            Step::IssueLeaf(_) => {
                let Some(current) = &self.current else {
                    return Ok(Changed::Nothing);
                };
                self.leaf = Some(issue_leaf(current, names::COORDINATOR_SERVER_NAME, now_ms)?);
                Ok(Changed::Leaf)
            }
            Step::Keep { .. } => Ok(Changed::Nothing),
        }
    }

    /// A new authority beside whatever vouches for what is served now, so that nobody is cut off.
    fn create_authority(&mut self, cluster: &str, now_ms: u64) -> Result<(), IssueError> {
        let leaf = self.leaf.as_ref();
        let published = self.bundle.iter().flatten();
        let known = self.current.take().map(|authority| authority.certificate);
        let vouching: Vec<AuthorityCertificate> = known
            .into_iter()
            .chain(self.next.take().map(|authority| authority.certificate))
            .chain(published.cloned())
            .filter(|certificate| {
                leaf.is_some_and(|leaf| {
                    is_trusted(
                        leaf,
                        std::iter::once(certificate),
                        names::COORDINATOR_SERVER_NAME,
                        now_ms,
                    )
                })
            })
            .collect();
        for certificate in vouching {
            if !self.previous.contains(&certificate) {
                self.previous.push(certificate);
            }
        }
        self.current = Some(create_authority(cluster, now_ms)?);
        Ok(())
    }

    fn publish(&mut self, wanted: &[Fingerprint], now_ms: u64) {
        let facts = self.facts(now_ms);
        let known = facts.current.iter().chain(&facts.next).chain(&facts.previous);
        let published = known
            .filter_map(|authority| Some((authority.id.clone(), authority.published_at_ms?)))
            .collect::<BTreeMap<_, _>>();
        let bundle: Vec<AuthorityCertificate> = wanted
            .iter()
            .filter_map(|id| {
                self.certificates()
                    .find(|certificate| certificate.id == *id)
                    .cloned()
            })
            .collect();
        self.published = bundle
            .iter()
            .map(|certificate| {
                (
                    certificate.id.clone(),
                    published.get(&certificate.id).copied().unwrap_or(now_ms),
                )
            })
            .collect();
        self.bundle = Some(bundle);
    }
}
