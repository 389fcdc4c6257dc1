//! Holding an object against its own CRD, without an API server.
//!
//! Nothing is written twice: structure, bounds and CEL rules are read from the definition that is installed in
//! clusters, so local mode refuses what a cluster refuses, in the same words.

mod structure;

pub(crate) use structure::join as join_path;

use std::fmt;
use std::sync::OnceLock;

use kube::core::cel::{ErrorKind, Validator, apply_defaults};
use serde::Serialize;
use serde_json::Value;

use crate::crd::{proof_job_crd, prover_cluster_crd, schema_of};
use crate::{ProofJob, ProverCluster, rules};

/// Where an object shall be used. Only the rule about `file` sources differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A Kubernetes cluster.
    Cluster,
    /// `kubectl-proof run` on a machine of the user.
    LocalMode,
}

/// Something that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Field, such as `spec.proof.kind`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
    /// Line and column in the manifest, counted from 1, where there is one.
    pub position: Option<Position>,
}

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, column {}", self.line, self.column)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.position {
            Some(position) => write!(formatter, "{} ({position}): {}", self.path, self.message),
            None => write!(formatter, "{}: {}", self.path, self.message),
        }
    }
}

/// Everything that is wrong with an object; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// In the order of the fields.
    pub fn as_slice(&self) -> &[Violation] {
        &self.0
    }

    pub(crate) fn each_mut(&mut self) -> impl Iterator<Item = &mut Violation> {
        self.0.iter_mut()
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            violation.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

impl ProofJob {
    /// Tells everything that a new object of this kind violates.
    pub fn validate(&self, destination: Destination) -> Result<(), Violations> {
        proof_job_checker().check(&as_json(self), None, destination)
    }

    /// Tells everything that replacing `old` by this object violates: immutable fields among others.
    pub fn validate_update(&self, old: &ProofJob, destination: Destination) -> Result<(), Violations> {
        proof_job_checker().check(&as_json(self), Some(&as_json(old)), destination)
    }
}

impl ProverCluster {
    /// Tells everything that a new object of this kind violates.
    pub fn validate(&self) -> Result<(), Violations> {
        prover_cluster_checker().check(&as_json(self), None, Destination::Cluster)
    }

    /// Tells everything that replacing `old` by this object violates: immutable fields among others.
    pub fn validate_update(&self, old: &ProverCluster) -> Result<(), Violations> {
        prover_cluster_checker().check(&as_json(self), Some(&as_json(old)), Destination::Cluster)
    }
}

fn as_json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("the resource types are JSON")
}

pub(crate) fn proof_job_checker() -> &'static Checker {
    static CHECKER: OnceLock<Checker> = OnceLock::new();
    CHECKER.get_or_init(|| Checker {
        schema: schema_of(&proof_job_crd()),
        metadata: structure::metadata_schema(),
    })
}

pub(crate) fn prover_cluster_checker() -> &'static Checker {
    static CHECKER: OnceLock<Checker> = OnceLock::new();
    CHECKER.get_or_init(|| Checker {
        schema: schema_of(&prover_cluster_crd()),
        metadata: structure::metadata_schema(),
    })
}

/// The schema of a kind.
pub(crate) struct Checker {
    schema: Value,
    metadata: Value,
}

impl Checker {
    /// As the API server does it: defaults, then structure and bounds, then the rules if the structure is sound.
    pub(crate) fn check(
        &self,
        object: &Value,
        old: Option<&Value>,
        destination: Destination,
    ) -> Result<(), Violations> {
        let mut violations = structure::check_object(&self.schema, &self.metadata, object);
        if violations.is_empty() {
            let object = apply_defaults(&self.schema, object);
            let old = old.map(|old| apply_defaults(&self.schema, old));
            violations = self.broken_rules(&object, old.as_ref(), destination);
        }
        if violations.is_empty() {
            Ok(())
        } else {
            Err(Violations(violations))
        }
    }

    fn broken_rules(&self, object: &Value, old: Option<&Value>, destination: Destination) -> Vec<Violation> {
        let Err(errors) = Validator::new().validate(&self.schema, object, old) else {
            return Vec::new();
        };
        errors
            .into_vec()
            .into_iter()
            .filter(|error| {
                destination == Destination::Cluster || error.rule != rules::FILE_ONLY_IN_LOCAL_MODE.0
            })
            .map(|error| Violation {
                message: match error.kind {
                    ErrorKind::ValidationFailure => error.message,
                    // A rule that can't be evaluated refuses, as in the API server.
                    _ => format!(
                        "the rule `{}` could not be evaluated: {}",
                        error.rule, error.message
                    ),
                },
                path: error.field_path,
                position: None,
            })
            .collect()
    }
}

// The common table of cases has `super::rules`.
#[cfg(test)]
#[path = "../../tests/api_server/cases.rs"]
mod cases;
#[cfg(test)]
mod tests;
