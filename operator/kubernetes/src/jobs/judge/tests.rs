use std::collections::BTreeSet;

use prover_crds::{ClusterLimits, NamespaceLimits, ProofKind, ProofSystem};

use super::*;

const NOW: Timestamp = Timestamp(1_000);

fn mk_rules() -> Rules {
    Rules {
        cluster: Some(ClusterRules {
            offers: BTreeSet::from(["risc0".to_owned(), "command:gnark".to_owned()]),
            limits: ClusterLimits {
                max_unfinished_jobs: Some(10),
                namespaces: vec![
                    NamespaceLimits {
                        namespace: "*".to_owned(),
                        max_unfinished_jobs: Some(3),
                        max_priority: Some(5),
                        ..NamespaceLimits::default()
                    },
                    NamespaceLimits {
                        namespace: "vip".to_owned(),
                        ..NamespaceLimits::default()
                    },
                ],
                ..ClusterLimits::default()
            },
            ..ClusterRules::default()
        }),
        namespaces: BTreeSet::from(["tenant".to_owned(), "vip".to_owned()]),
    }
}

fn mk_policy() -> JobPolicy {
    prover_coordinator::policy(&prover_crds::ProofJobSpec::default())
}

struct Case {
    namespace: &'static str,
    proof: ProofSpec,
    policy: JobPolicy,
    cancelled: bool,
    accepted_before: bool,
    unfinished: Unfinished,
    rules: Rules,
}

impl Case {
    fn good() -> Case {
        Case {
            namespace: "tenant",
            proof: ProofSpec {
                system: ProofSystem::Risc0,
                kind: ProofKind::Succinct,
                backend: None,
            },
            policy: mk_policy(),
            cancelled: false,
            accepted_before: false,
            unfinished: Unfinished::default(),
            rules: mk_rules(),
        }
    }

    fn judged(&self) -> Verdict {
        let candidate = Candidate {
            namespace: self.namespace,
            proof: &self.proof,
            policy: &self.policy,
            cancelled: self.cancelled,
            accepted_before: self.accepted_before,
        };
        judge(&candidate, &self.rules, self.unfinished, NOW)
    }

    fn word(&self) -> String {
        match self.judged() {
            Verdict::Accept => "Accept".to_owned(),
            Verdict::Refuse { reason, message } => {
                assert!(
                    message.contains(':') || message.contains("takes no new"),
                    "{message}"
                );
                reason.to_owned()
            }
            Verdict::End(ending) => format!("{} {}", ending.phase, ending.reason),
            Verdict::Unknown => "Unknown".to_owned(),
        }
    }
}

/// Each case differs from a good one in one thing.
#[test]
fn one_thing_wrong_gives_one_verdict() {
    type Change = fn(&mut Case);
    let cases: [(&str, Change, &str); 15] = [
        ("a good one", |_| {}, "Accept"),
        (
            "another system",
            |case| case.proof.system = ProofSystem::Sp1,
            reasons::PROOF_NOT_OFFERED,
        ),
        (
            "a command of another name",
            |case| {
                case.proof.system = ProofSystem::Command;
                case.proof.backend = Some("halo2".to_owned());
            },
            reasons::PROOF_NOT_OFFERED,
        ),
        (
            "the command that is there",
            |case| {
                case.proof.system = ProofSystem::Command;
                case.proof.backend = Some("gnark".to_owned());
            },
            "Accept",
        ),
        (
            "too urgent",
            |case| case.policy.priority = 6,
            reasons::PRIORITY_TOO_HIGH,
        ),
        (
            "urgent where nothing bounds it",
            |case| {
                case.namespace = "vip";
                case.policy.priority = 6;
            },
            "Accept",
        ),
        (
            "a strange namespace",
            |case| case.namespace = "stranger",
            reasons::NAMESPACE_NOT_ALLOWED,
        ),
        (
            "accepted before its namespace went",
            |case| {
                case.namespace = "stranger";
                case.accepted_before = true;
            },
            "Accept",
        ),
        (
            "too many of its namespace",
            |case| case.unfinished.of_namespace = 3,
            reasons::TOO_MANY_JOBS,
        ),
        (
            "too many in all",
            |case| case.unfinished.in_all = 10,
            reasons::TOO_MANY_JOBS,
        ),
        (
            "too many, but accepted before",
            |case| {
                case.unfinished.in_all = 10;
                case.accepted_before = true;
            },
            "Accept",
        ),
        (
            "the cluster goes",
            |case| {
                if let Some(cluster) = &mut case.rules.cluster {
                    cluster.terminating = true;
                }
            },
            reasons::CLUSTER_TERMINATING,
        ),
        ("no cluster", |case| case.rules.cluster = None, "Unknown"),
        ("cancelled", |case| case.cancelled = true, "Cancelled Cancelled"),
        (
            "too late",
            |case| case.policy.deadline = Some(NOW),
            "Failed DeadlineExceeded",
        ),
    ];
    for (what, change, expected) in cases {
        let mut case = Case::good();
        change(&mut case);
        assert_eq!(case.word(), expected, "{what}");
    }
}
