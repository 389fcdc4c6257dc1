//! Files of this machine: hashed copies, and destinations that appear whole or not at all.
//! Knows no store; both stores use it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{StoreError, is_full};
use crate::hash::{ObjectInfo, Sha256Hasher};

/// Unfinished files begin so; listings never show them.
pub(crate) const PARTIAL: &str = ".prover-partial-";
/// Bytes that a copy reads at once.
const COPY_BUFFER_BYTES: usize = 256 << 10;
/// A folder may be deleted between its creation and the first file in it, but hardly this often in a row.
const CREATE_ATTEMPTS: u32 = 5;
/// The agent and a backend may run as different users, so what one fetches the other may read.
const FILE_MODE: u32 = 0o644;

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies to the end and hashes what passes.
pub(crate) fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> Result<ObjectInfo, CopyError> {
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(CopyError::Write)?;
    }
    to.flush().map_err(CopyError::Write)?;
    Ok(hasher.finish())
}

/// Opens a local source.
pub(crate) fn open_source(path: &Path) -> Result<File, StoreError> {
    let file = File::open(path).map_err(|error| read_error(path, error))?;
    let metadata = file.metadata().map_err(|error| read_error(path, error))?;
    if metadata.is_dir() {
        return Err(read_error(path, io::Error::from(io::ErrorKind::IsADirectory)));
    }
    Ok(file)
}

/// A temporary file beside its later place, in a folder that is created if missing.
pub(crate) fn partial_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut attempt = 1;
    loop {
        fs::create_dir_all(folder)?;
        let created = tempfile::Builder::new()
            .prefix(PARTIAL)
            .permissions(Permissions::from_mode(FILE_MODE))
            .tempfile_in(folder);
        match created {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < CREATE_ATTEMPTS => {
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// The folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(crate) fn read_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::LocalFile {
        action: "read",
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn write_error(path: &Path, source: io::Error) -> StoreError {
    if is_full(&source) {
        StoreError::LocalDiskFull {
            path: path.to_owned(),
            source,
        }
    } else {
        StoreError::LocalFile {
            action: "write",
            path: path.to_owned(),
            source,
        }
    }
}
