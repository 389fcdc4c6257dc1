//! The folder of one run: worker logs and folders, the bearer token, and the store unless another is named.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rand::RngCore;

use crate::failure::Failure;

/// Bytes of randomness in a bearer token.
const TOKEN_BYTES: usize = 32;

/// Removed when dropped, unless it is kept.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    folder: tempfile::TempDir,
    keep: bool,
}

impl RunDirectory {
    /// Creates it in the system's folder for temporary files (TMPDIR).
    pub(crate) fn create(keep: bool) -> Result<Self, Failure> {
        let parent = std::env::temp_dir();
        let failed = |error: std::io::Error| {
            Failure::bad_input(
                crate::run::storage_reason(&error),
                format!(
                    "can't create a run folder in {}: {error}. Set TMPDIR to a folder that can be written",
                    parent.display()
                ),
            )
        };
        let mut folder = tempfile::Builder::new()
            .prefix("kubectl-proof-")
            .tempdir_in(&parent)
            .map_err(failed)?;
        folder.disable_cleanup(keep);
        let directory = RunDirectory { folder, keep };
        for path in [directory.logs(), directory.work(), directory.store()] {
            std::fs::create_dir(path).map_err(failed)?;
        }
        Ok(directory)
    }

    /// Its path, if it stays after the run.
    pub(crate) fn kept(&self) -> Option<&Path> {
        self.keep.then(|| self.folder.path())
    }

    /// Logs of the coordinator and the workers.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// The workers' own folders.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Store of this run alone.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Writes a new random bearer token that only this user can read; answers with its path and the token.
    pub(crate) fn write_token(&self) -> std::io::Result<(PathBuf, String)> {
        let mut bytes = [0; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let token = hex::encode(bytes);
        let path = self.folder.path().join("token");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(token.as_bytes())?;
        Ok((path, token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_removed_with_everything_in_it() {
        let directory = RunDirectory::create(false).unwrap();
        let path = directory.folder.path().to_owned();
        directory.write_token().unwrap();
        assert!(directory.store().is_dir());
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn it_stays_when_it_is_kept() {
        let directory = RunDirectory::create(true).unwrap();
        let path = directory.kept().unwrap().to_owned();
        drop(directory);
        assert!(path.is_dir());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_token_is_random_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let (one, other) = (
            RunDirectory::create(false).unwrap(),
            RunDirectory::create(false).unwrap(),
        );
        let (path, token) = one.write_token().unwrap();
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert_ne!(token, other.write_token().unwrap().1);
    }
}
