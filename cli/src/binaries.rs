//! Finds the programs that belong to this one: the worker and the backends.

use std::path::{Path, PathBuf};

/// A program is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BinaryError {
    /// It is in none of the folders.
    #[error(
        "{name} is not in {folder}. Build it with `make {target}`, or name its folder with --backends-directory \
         (or PROVER_BACKENDS_DIRECTORY)",
        folder = folder.display()
    )]
    NotFound {
        name: String,
        folder: PathBuf,
        target: &'static str,
    },
    /// The folder of this executable is unknown.
    #[error("can't find the folder of this executable: {source}. Name the folder with --backends-directory")]
    OwnFolderUnknown { source: std::io::Error },
}

impl BinaryError {
    /// Short CamelCase word for scripts.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            BinaryError::NotFound { .. } => "BackendNotFound",
            BinaryError::OwnFolderUnknown { .. } => "OwnFolderUnknown",
        }
    }
}

/// The folder in which programs are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The given folder, else the one of this executable.
    pub(crate) fn locate(folder: Option<&Path>) -> Result<Self, BinaryError> {
        if let Some(folder) = folder {
            return Ok(Binaries {
                folder: folder.to_owned(),
            });
        }
        let own = std::env::current_exe().map_err(|source| BinaryError::OwnFolderUnknown { source })?;
        // A plugin folder often holds only a link to the program.
        let own = own.canonicalize().unwrap_or(own);
        Ok(Binaries {
            folder: own.parent().unwrap_or(Path::new(".")).to_owned(),
        })
    }

    /// The worker program.
    pub(crate) fn worker(&self) -> Result<PathBuf, BinaryError> {
        self.find("prover-worker".to_owned(), "build")
    }

    /// The backend of a proof system.
    pub(crate) fn backend(&self, system: &str) -> Result<PathBuf, BinaryError> {
        let target = if system == "risc0" {
            "backend-risc0"
        } else {
            "build"
        };
        self.find(format!("prover-backend-{system}"), target)
    }

    fn find(&self, name: String, target: &'static str) -> Result<PathBuf, BinaryError> {
        let path = self.folder.join(&name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(BinaryError::NotFound {
                name,
                folder: self.folder.clone(),
                target,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_backend_is_told_with_the_make_target() {
        let folder = tempfile::tempdir().unwrap();
        let binaries = Binaries::locate(Some(folder.path())).unwrap();
        let message = binaries.backend("risc0").unwrap_err().to_string();
        assert!(message.contains("prover-backend-risc0"), "{message}");
        assert!(message.contains("make backend-risc0"), "{message}");
    }

    #[test]
    fn a_program_in_the_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("prover-worker"), "").unwrap();
        let binaries = Binaries::locate(Some(folder.path())).unwrap();
        assert_eq!(binaries.worker().unwrap(), folder.path().join("prover-worker"));
    }
}
