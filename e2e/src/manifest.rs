//! Builds ProofJob manifests and the models of emulated jobs. Manifests are JSON, which YAML readers take too.

use std::path::Path;

use serde_json::{Value, json};

/// The model of an emulated job: its input.
#[derive(Clone, Debug)]
pub struct Model(Value);

impl Model {
    /// A job of this many segments, whose tasks take no time.
    #[must_use]
    pub fn new(segments: u64) -> Self {
        Model(json!({"segments": segments, "durations": {}, "failures": []}))
    }

    /// How long tasks of a type take.
    #[must_use]
    pub fn duration(mut self, task_type: &str, milliseconds: u64) -> Self {
        self.0["durations"][task_type] = json!(milliseconds);
        self
    }

    /// Something that goes wrong, as the emulated backend describes failures.
    #[must_use]
    pub fn failure(mut self, failure: Value) -> Self {
        if let Some(failures) = self.0["failures"].as_array_mut() {
            failures.push(failure);
        }
        self
    }

    /// Any other field of the model.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.0[name] = value;
        self
    }

    /// The manifest of a job of this model.
    #[must_use]
    pub fn manifest(&self, name: &str) -> Manifest {
        Manifest(json!({
            "apiVersion": "proving.rs/v1alpha1",
            "kind": "ProofJob",
            "metadata": {"name": name},
            "spec": {
                // An emulated job needs no program, but the type asks for one: these bytes are its identity.
                "program": {"inline": "ZW11bGF0ZWQ="},
                "input": {"text": self.0.to_string()},
                "proof": {"system": "emulated", "kind": "Emulated"},
            },
        }))
    }
}

/// A ProofJob manifest.
#[derive(Clone, Debug)]
pub struct Manifest(Value);

impl Manifest {
    /// A job of RISC Zero whose program and input are files.
    #[must_use]
    pub fn risc0(name: &str, kind: &str, program: &Path) -> Self {
        Self::of_system("risc0", name, kind, program)
    }

    /// A job of SP1 whose program and input are files.
    #[must_use]
    pub fn sp1(name: &str, kind: &str, program: &Path) -> Self {
        Self::of_system("sp1", name, kind, program)
    }

    fn of_system(system: &str, name: &str, kind: &str, program: &Path) -> Self {
        Manifest(json!({
            "apiVersion": "proving.rs/v1alpha1",
            "kind": "ProofJob",
            "metadata": {"name": name},
            "spec": {
                "program": {"file": {"path": program}},
                "proof": {"system": system, "kind": kind},
            },
        }))
    }

    /// Sets a field of `spec`; a name with slashes reaches deeper, such as `program/sha256`.
    #[must_use]
    pub fn spec(mut self, path: &str, value: Value) -> Self {
        let mut place = &mut self.0["spec"];
        for name in path.split('/') {
            place = &mut place[name];
        }
        *place = value;
        self
    }

    /// The manifest as text.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}
