//! Writes result files so that a reader sees either the whole file or none, and reads files with errors that
//! name the path.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::report::WrittenFile;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// What was wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It could not be read.
    #[error("can't read {what} {path}: {source}", path = path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// It is larger than anything this command takes.
    #[error("{what} {path} has {bytes} bytes, more than the limit of {limit}", path = path.display())]
    TooLarge {
        what: &'static str,
        path: PathBuf,
        bytes: u64,
        limit: u64,
    },
    /// It could not be written.
    #[error("can't write {path}: {source}. Choose another folder with --output-directory", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

impl FileError {
    /// Short CamelCase word for scripts.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            FileError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => "FileNotFound",
            FileError::Read { .. } => "FileNotReadable",
            FileError::TooLarge { .. } => "FileTooLarge",
            FileError::Write { .. } => "OutputNotWritable",
        }
    }
}

/// Reads a whole file of at most `limit` bytes. `what` names its role in messages.
pub(crate) fn read(what: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::IsADirectory,
            "it is a folder",
        )));
    }
    if metadata.len() > limit {
        return Err(FileError::TooLarge {
            what,
            path: path.to_owned(),
            bytes: metadata.len(),
            limit,
        });
    }
    std::fs::read(path).map_err(failed)
}

/// Writes `bytes` to `path`: first beside it, then renamed over it once they are on disk.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".kubectl-proof-")
            .tempfile_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        let mut permissions = file.as_file().metadata()?.permissions();
        // Temporary files are private; results are for everybody whom the folder lets in.
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        file.as_file().set_permissions(permissions)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Path, size and SHA-256 of a file that is there, read piece by piece.
pub(crate) fn describe(path: &Path) -> Result<WrittenFile, FileError> {
    let failed = |source| FileError::Read {
        what: "file",
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        bytes += length as u64;
    }
    Ok(WrittenFile {
        path: path.display().to_string(),
        bytes,
        sha256: hex::encode(hasher.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_replaces_the_one_before_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.proof");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read("program", Path::new("/nowhere/a.elf"), 10).unwrap_err();
        assert_eq!(error.reason(), "FileNotFound");
        assert!(error.to_string().contains("program /nowhere/a.elf"), "{error}");
    }

    #[test]
    fn a_file_over_the_limit_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read("input", &path, 4).unwrap_err().reason(), "FileTooLarge");
        assert_eq!(read("input", &path, 5).unwrap(), b"12345");
    }

    #[test]
    fn a_file_is_described_by_its_own_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        let described = describe(&path).unwrap();
        assert_eq!(described.bytes, 3);
        assert!(
            described.sha256.starts_with("ba7816bf8f01cfea"),
            "{}",
            described.sha256
        );
    }

    #[test]
    fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            read("input", folder.path(), 4)
                .unwrap_err()
                .to_string()
                .contains("it is a folder")
        );
    }
}
