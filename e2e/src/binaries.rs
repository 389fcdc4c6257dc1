//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// Root of the checkout.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Folder of the built programs: PROVER_BIN_DIRECTORY, else `target/bin` of the checkout.
#[must_use]
pub fn bin_directory() -> PathBuf {
    std::env::var_os("PROVER_BIN_DIRECTORY").map_or_else(|| workspace().join("target/bin"), PathBuf::from)
}

/// A built program.
///
/// # Panics
/// It is not there: the message names the make target.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = bin_directory().join(name);
    let target = match name {
        "prover-backend-risc0" => "make backend-risc0",
        "prover-backend-sp1" => "make backend-sp1",
        "prover-sp1-alone" => "make sp1-alone",
        _ => "make build",
    };
    assert!(
        path.is_file(),
        "{} is missing: run `{target}`, or set PROVER_BIN_DIRECTORY to a folder that has it",
        path.display()
    );
    path
}

/// A compiled sample program, such as `fibonacci`.
///
/// # Panics
/// It is not there: the message names the make target.
#[must_use]
pub fn sample_program(name: &str) -> PathBuf {
    let path = workspace().join("target/programs").join(format!("{name}.elf"));
    assert!(
        path.is_file(),
        "{} is missing: run `make programs`",
        path.display()
    );
    path
}
