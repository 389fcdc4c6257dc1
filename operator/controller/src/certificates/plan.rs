//! What is due in the life of a cluster's authority and certificate: a pure decision.
//!
//! The rule behind all of it: a worker trusts what its copy of the bundle has, and copies lag behind. So an authority
//! signs only once its certificate has been in the bundle for [`OVERLAP`], and leaves the bundle only when nothing that
//! it signed has been served for as long.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority is valid.
pub const AUTHORITY_LIFE: Duration = DAY.saturating_mul(730);
/// How long before its end an authority gets its successor: longer than any certificate lives.
pub const AUTHORITY_RENEWAL: Duration = DAY.saturating_mul(180);
/// How long a coordinator's certificate is valid.
pub const LEAF_LIFE: Duration = DAY.saturating_mul(90);
/// How long before its end a coordinator's certificate is renewed.
pub const LEAF_RENEWAL: Duration = DAY.saturating_mul(30);
/// How long a change takes at most until every pod has it, with ample room: mounted ConfigMaps and Secrets lag by up
/// to two minutes.
pub const OVERLAP: Duration = Duration::from_secs(60 * 60);
/// How long before it is made a certificate begins to be valid, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// Fingerprint of an authority's certificate.
pub type Fingerprint = String;

/// An authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// Fingerprint of its certificate.
    pub id: Fingerprint,
    /// Its end, in milliseconds since the epoch.
    pub not_after_ms: u64,
    /// Since when it has been in the bundle without interruption; none where it is not there.
    pub published_at_ms: Option<u64>,
}

/// The certificate that the coordinator serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// The authority that signed it.
    pub issuer: Fingerprint,
    /// When it was made.
    pub issued_at_ms: u64,
    /// Its end.
    pub not_after_ms: u64,
}

/// What there is. What can't be read, or is signed by nobody known, is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The authority that signs.
    pub current: Option<AuthorityFacts>,
    /// Its successor, while workers learn of it.
    pub next: Option<AuthorityFacts>,
    /// Authorities that sign no more but may have signed what is served.
    pub previous: Vec<AuthorityFacts>,
    /// What the bundle has; none where it can't be read.
    pub bundle: Option<Vec<Fingerprint>>,
    /// What the coordinator serves.
    pub leaf: Option<LeafFacts>,
}

/// Why a certificate is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafReason {
    /// There is none that can be read and is signed by a known authority.
    Missing,
    /// It has ended.
    Expired,
    /// It ends soon.
    Ageing,
    /// Another authority signs now.
    NewAuthority,
}

/// What is due. A step that needs another first is never the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority: there is none that can be used.
    CreateAuthority,
    /// Make a successor of the authority, which ends soon.
    StartRotation,
    /// Write the bundle with these, in this order.
    PublishBundle(Vec<Fingerprint>),
    /// The successor signs from now on.
    SwitchAuthority,
    /// Forget the authorities that sign no more.
    FinishRotation,
    /// Have the current authority sign a new certificate.
    IssueLeaf(LeafReason),
    /// Nothing is due until then, in milliseconds since the epoch.
    Keep {
        /// When to look again.
        until_ms: u64,
    },
}

impl Step {
    /// For metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Step::CreateAuthority => "create_authority",
            Step::StartRotation => "start_rotation",
            Step::PublishBundle(_) => "publish_bundle",
            Step::SwitchAuthority => "switch_authority",
            Step::FinishRotation => "finish_rotation",
            Step::IssueLeaf(_) => "issue_leaf",
            Step::Keep { .. } => "keep",
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn before(time_ms: u64, duration: Duration) -> u64 {
    time_ms.saturating_sub(ms(duration))
}

/// The step that is due at `now_ms`.
#[must_use]
pub fn plan(facts: &Facts, now_ms: u64) -> Step {
    let Some(current) = facts
        .current
        .as_ref()
        .filter(|current| current.not_after_ms > now_ms)
    else {
        return Step::CreateAuthority;
    };
    let expected = expected_bundle(facts, current, now_ms);
    let ids: Vec<Fingerprint> = expected.iter().map(|authority| authority.id.clone()).collect();
    // What was published nobody knows when, counts from now on.
    let all_dated = expected
        .iter()
        .all(|authority| authority.published_at_ms.is_some());
    if facts.bundle.as_ref() != Some(&ids) || !all_dated {
        return Step::PublishBundle(ids);
    }
    let mut dues = Vec::new();
    match due_of_leaf(facts, current, now_ms) {
        Due::Now(reason) => return Step::IssueLeaf(reason),
        Due::At(at) => dues.push(at),
    }
    match &facts.next {
        None => {
            let starts = before(current.not_after_ms, AUTHORITY_RENEWAL);
            if starts <= now_ms {
                return Step::StartRotation;
            }
            dues.push(starts);
        }
        Some(next) => {
            let ready = known_from(next, now_ms);
            if ready <= now_ms {
                return Step::SwitchAuthority;
            }
            dues.push(ready);
        }
    }
    if !facts.previous.is_empty() {
        // Nothing else signs what is served: due_of_leaf would have answered.
        let leaf = facts.leaf.as_ref().filter(|leaf| leaf.issuer == current.id);
        if let Some(leaf) = leaf {
            let over = leaf.issued_at_ms.saturating_add(ms(OVERLAP));
            if over <= now_ms {
                return Step::FinishRotation;
            }
            dues.push(over);
        }
    }
    Step::Keep {
        until_ms: dues.into_iter().min().unwrap_or(now_ms),
    }
}

/// What the bundle shall have: nothing that has ended. Its order does not change when another begins to sign.
fn expected_bundle<'a>(
    facts: &'a Facts,
    current: &'a AuthorityFacts,
    now_ms: u64,
) -> Vec<&'a AuthorityFacts> {
    let others = facts
        .next
        .iter()
        .chain(&facts.previous)
        .filter(|other| other.not_after_ms > now_ms);
    let mut expected: Vec<&AuthorityFacts> = std::iter::once(current).chain(others).collect();
    expected.sort_by(|one, other| one.id.cmp(&other.id));
    expected
}

/// When every worker trusts an authority.
fn known_from(authority: &AuthorityFacts, now_ms: u64) -> u64 {
    authority
        .published_at_ms
        .unwrap_or(now_ms)
        .saturating_add(ms(OVERLAP))
}

enum Due {
    Now(LeafReason),
    At(u64),
}

fn due_of_leaf(facts: &Facts, current: &AuthorityFacts, now_ms: u64) -> Due {
    let Some(leaf) = &facts.leaf else {
        return Due::Now(LeafReason::Missing);
    };
    if leaf.not_after_ms <= now_ms {
        return Due::Now(LeafReason::Expired);
    }
    let trusted = |id: &Fingerprint| facts.bundle.as_ref().is_some_and(|bundle| bundle.contains(id));
    if !trusted(&leaf.issuer) {
        return Due::Now(LeafReason::Missing);
    }
    let ages = before(leaf.not_after_ms, LEAF_RENEWAL);
    let (reason, wanted) = if leaf.issuer == current.id {
        (LeafReason::Ageing, ages)
    } else {
        (LeafReason::NewAuthority, 0)
    };
    // What is served now is trusted, so there is time until every worker trusts what comes; but not beyond its end.
    let last_moment = before(leaf.not_after_ms, OVERLAP);
    let at = wanted
        .max(known_from(current, now_ms))
        .min(last_moment.max(wanted));
    if at <= now_ms {
        Due::Now(reason)
    } else {
        Due::At(at)
    }
}
