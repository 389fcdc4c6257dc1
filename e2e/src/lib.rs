//! What the black-box tests of local mode share: the real binaries, their processes, and manifests.
//!
//! Sees no crate of the project, only its programs. Every run gets a folder of its own as TMPDIR, which all its
//! processes inherit: so they are found, and what is left behind is seen. A missing prerequisite fails loudly.

pub mod binaries;
pub mod kill;
pub mod manifest;
pub mod processes;
pub mod run;

pub use binaries::{bin_directory, binary, sample_program, workspace};
pub use kill::Kill;
pub use manifest::{Manifest, Model};
pub use processes::{Process, await_until};
pub use run::{Finished, Job, Running};
