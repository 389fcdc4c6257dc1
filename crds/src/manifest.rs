//! Reading a manifest from a file, strictly: what a cluster would refuse or drop is refused with its line.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::validation::{
    Checker, Destination, Position, Violations, proof_job_checker, prover_cluster_checker,
};
use crate::{ProofJob, ProverCluster};

/// Largest manifest in bytes: what etcd takes.
pub const LARGEST_MANIFEST: usize = 1_500_000;
/// `apiVersion` of both kinds.
pub const API_VERSION: &str = "proving.rs/v1alpha1";

/// Why a manifest was not taken. Every message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More than an API server would store.
    #[error(
        "the manifest has {size} bytes, at most {LARGEST_MANIFEST} are allowed: name program and input as s3, http or file sources"
    )]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// Nothing but comments.
    #[error("the manifest is empty: write an object with apiVersion: {API_VERSION} and kind: {kind}")]
    Empty {
        /// Kind that was wanted.
        kind: &'static str,
    },
    /// No YAML.
    #[error("the manifest is no valid YAML{}: {message}", at(*position))]
    Syntax {
        /// What the parser says.
        message: String,
        /// Where.
        position: Option<Position>,
    },
    /// More than one object.
    #[error(
        "the manifest holds several documents: put each object into a file of its own, or apply them to a cluster with kubectl"
    )]
    SeveralDocuments,
    /// Another kind, or another version of it.
    #[error("the manifest holds {found}{}: it must begin with apiVersion: {API_VERSION} and kind: {kind}", at(*position))]
    WrongKind {
        /// Kind that was wanted.
        kind: &'static str,
        /// What it is.
        found: String,
        /// Where it says so.
        position: Option<Position>,
    },
    /// It breaks rules of its kind.
    #[error("the manifest is not valid:\n{0}")]
    Invalid(Violations),
}

impl ManifestError {
    /// One word for metrics and scripts.
    pub fn category(&self) -> &'static str {
        match self {
            ManifestError::TooLarge { .. } => "ManifestTooLarge",
            ManifestError::Empty { .. } => "ManifestEmpty",
            ManifestError::Syntax { .. } => "ManifestSyntax",
            ManifestError::SeveralDocuments => "ManifestSeveralDocuments",
            ManifestError::WrongKind { .. } => "ManifestWrongKind",
            ManifestError::Invalid(_) => "ManifestInvalid",
        }
    }

    /// What is wrong in single fields; empty for the other errors.
    pub fn violations(&self) -> &[crate::validation::Violation] {
        match self {
            ManifestError::Invalid(violations) => violations.as_slice(),
            _ => &[],
        }
    }
}

fn at(position: Option<Position>) -> String {
    position
        .map(|position| format!(" ({position})"))
        .unwrap_or_default()
}

/// Reads a ProofJob, as local mode takes it: `file` sources are allowed, unknown fields are not.
pub fn parse_proof_job(yaml: &str) -> Result<ProofJob, ManifestError> {
    parse(yaml, "ProofJob", proof_job_checker(), Destination::LocalMode)
}

/// Reads a ProofJob as a cluster takes it: `file` sources are refused as well.
pub fn parse_proof_job_for_cluster(yaml: &str) -> Result<ProofJob, ManifestError> {
    parse(yaml, "ProofJob", proof_job_checker(), Destination::Cluster)
}

/// Reads a ProverCluster as a cluster takes it.
pub fn parse_prover_cluster(yaml: &str) -> Result<ProverCluster, ManifestError> {
    parse(
        yaml,
        "ProverCluster",
        prover_cluster_checker(),
        Destination::Cluster,
    )
}

fn parse<T: DeserializeOwned>(
    yaml: &str,
    kind: &'static str,
    checker: &Checker,
    destination: Destination,
) -> Result<T, ManifestError> {
    if yaml.len() > LARGEST_MANIFEST {
        return Err(ManifestError::TooLarge { size: yaml.len() });
    }
    let mut documents = serde_saphyr::from_multiple::<Node>(yaml).map_err(|error| ManifestError::Syntax {
        message: error.without_snippet().to_string(),
        position: error.location().map(position_of),
    })?;
    documents.retain(|document| !matches!(document.0.value, Content::Scalar(Value::Null)));
    let document = match documents.len() {
        0 => return Err(ManifestError::Empty { kind }),
        1 => documents.remove(0),
        _ => return Err(ManifestError::SeveralDocuments),
    };
    let mut positions = BTreeMap::new();
    let object = document.into_value("", &mut positions);
    check_kind(&object, kind, &positions)?;
    checker
        .check(&object, None, destination)
        .map_err(|mut violations| {
            for violation in violations.each_mut() {
                violation.position = nearest_position(&violation.path, &positions);
            }
            ManifestError::Invalid(violations)
        })?;
    // The schema has been held to; what is left would be a difference between schema and type.
    serde_json::from_value(object).map_err(|error| ManifestError::Syntax {
        message: error.to_string(),
        position: None,
    })
}

fn check_kind(
    object: &Value,
    kind: &'static str,
    positions: &BTreeMap<String, Position>,
) -> Result<(), ManifestError> {
    let said = |field: &str| object[field].as_str();
    if said("apiVersion") == Some(API_VERSION) && said("kind") == Some(kind) {
        return Ok(());
    }
    let found = match (said("apiVersion"), said("kind")) {
        (Some(version), Some(other)) => format!("a {other} of {version}"),
        (None, Some(other)) => format!("a {other} without apiVersion"),
        (Some(version), None) => format!("an object of {version} without kind"),
        (None, None) => "something without apiVersion and kind".to_owned(),
    };
    let field = if said("apiVersion") == Some(API_VERSION) {
        "kind"
    } else {
        "apiVersion"
    };
    Err(ManifestError::WrongKind {
        kind,
        found,
        position: positions.get(field).copied(),
    })
}

/// The position of a field, or of the innermost object around it that is there.
fn nearest_position(path: &str, positions: &BTreeMap<String, Position>) -> Option<Position> {
    let mut path = path;
    loop {
        if let Some(position) = positions.get(path) {
            return Some(*position);
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}

fn position_of(location: serde_saphyr::Location) -> Position {
    Position {
        line: location.line(),
        column: location.column(),
    }
}

/// A value of YAML that knows where it was written.
struct Node(Spanned<Content>);

enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Fields(Vec<(Spanned<String>, Node)>),
}

impl Node {
    /// The bare value; where its fields and entries were written goes into `positions`.
    fn into_value(self, path: &str, positions: &mut BTreeMap<String, Position>) -> Value {
        match self.0.value {
            Content::Scalar(value) => value,
            Content::List(items) => Value::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| {
                        let path = format!("{path}[{index}]");
                        positions.insert(path.clone(), position_of(item.0.referenced));
                        item.into_value(&path, positions)
                    })
                    .collect(),
            ),
            Content::Fields(fields) => {
                let mut object = Map::new();
                for (name, value) in fields {
                    let path = crate::validation::join_path(path, &name.value);
                    positions.insert(path.clone(), position_of(name.referenced));
                    object.insert(name.value, value.into_value(&path, positions));
                }
                Value::Object(object)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Node)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> de::Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Content, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("infinite numbers are not allowed"))?;
        Ok(Content::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Content::Fields(fields))
    }
}
