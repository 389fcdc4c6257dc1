//! A store that is a folder, for local mode and tests: an object is a file at its key's path.
//!
//! Owns atomic creation (a temporary file in the same folder, renamed without replacing) and the mapping of the
//! operating system's errors. An object `a` and an object `a/b` can't both exist here, though they can in S3.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::NamedTempFile;
use uuid::Uuid;

use crate::counters::{Counters, Operation};
use crate::error::{StoreError, is_full, is_not_writable};
use crate::hash::ObjectInfo;
use crate::key::{Key, Prefix, RESERVED};
use crate::local::{self, CopyError};
use crate::retry::Retrier;
use crate::store::{
    ArtifactStore, Condition, ListedObject, Listing, MAX_LIST_OBJECTS, StoreCapabilities, StoreOptions,
};
use crate::url::StoreUrl;

/// A prefix into which others keep writing is not emptied forever.
const DELETE_ATTEMPTS: u32 = 5;

/// The folder store. Any number of processes may use the same folder at once.
#[derive(Debug)]
pub struct FolderStore {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    retrier: Retrier,
}

impl FolderStore {
    /// Opens a folder as store and creates it if it is missing.
    pub async fn open(root: PathBuf, options: StoreOptions) -> Result<Self, StoreError> {
        let counters = Arc::new(Counters::default());
        let retrier = Retrier::new(options.retry, options.jitter, Arc::clone(&counters));
        let name = StoreUrl::Folder(root.clone()).to_string();
        let shared = Arc::new(Shared {
            root,
            name,
            sync: options.sync,
            counters: Arc::clone(&counters),
        });
        let store = Self {
            shared,
            counters,
            retrier,
        };
        store.blocking("", Shared::create_root).await?;
        Ok(store)
    }

    /// Runs file operations where they may block, without retries.
    async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
            Err(_) => Err(StoreError::Stopped {
                key: key.into(),
                store: self.shared.name.clone(),
            }),
        }
    }

    /// Runs file operations with retries, and counts the operation.
    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &str,
        work: impl Fn(&Shared) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let work = Arc::new(work);
        let mut tries = self.retrier.start();
        let result = loop {
            let work = Arc::clone(&work);
            let tried = self.blocking(key, move |shared| work(shared)).await;
            if let Some(result) = tries.settle(tried).await {
                break result;
            }
        };
        self.counters.operation(operation, &result);
        result
    }
}

#[async_trait]
impl ArtifactStore for FolderStore {
    async fn put_file(&self, key: &Key, path: &Path, condition: Condition) -> Result<ObjectInfo, StoreError> {
        let (key, path) = (key.clone(), path.to_owned());
        let name = key.clone();
        self.run(Operation::PutFile, name.as_str(), move |shared| {
            let mut source = local::open_source(&path)?;
            shared.put(&key, &mut source, condition, &path)
        })
        .await
    }

    async fn put_bytes(
        &self,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        let key = key.clone();
        let name = key.clone();
        self.run(Operation::PutBytes, name.as_str(), move |shared| {
            shared.put(&key, &mut content.as_ref(), condition, Path::new("memory"))
        })
        .await
    }

    async fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        let (key, expected, to) = (key.clone(), *expected, to.to_owned());
        let name = key.clone();
        self.run(Operation::GetFile, name.as_str(), move |shared| {
            shared.get_file(&key, &expected, &to)
        })
        .await
    }

    async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let (key, expected) = (key.clone(), expected.copied());
        let name = key.clone();
        self.run(Operation::GetBytes, name.as_str(), move |shared| {
            shared.get_bytes(&key, expected.as_ref(), max_bytes)
        })
        .await
    }

    async fn fetch_file(&self, key: &Key, max_bytes: u64, to: &Path) -> Result<ObjectInfo, StoreError> {
        let (key, to) = (key.clone(), to.to_owned());
        let name = key.clone();
        self.run(Operation::FetchFile, name.as_str(), move |shared| {
            shared.fetch_file(&key, max_bytes, &to)
        })
        .await
    }

    async fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError> {
        let key = key.clone();
        let name = key.clone();
        self.run(Operation::Stat, name.as_str(), move |shared| shared.stat(&key))
            .await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let key = key.clone();
        let name = key.clone();
        self.run(Operation::Delete, name.as_str(), move |shared| {
            shared.delete(&key)
        })
        .await
    }

    async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        let prefix = prefix.clone();
        let name = prefix.clone();
        self.run(Operation::DeletePrefix, name.as_str(), move |shared| {
            shared.delete_prefix(&prefix)
        })
        .await
    }

    async fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let (prefix, limit) = (prefix.clone(), limit.min(MAX_LIST_OBJECTS));
        let (name, after) = (prefix.clone(), after.cloned());
        self.run(Operation::List, name.as_str(), move |shared| {
            shared.list(&prefix, after.as_ref(), limit)
        })
        .await
    }

    async fn probe(&self) -> Result<StoreCapabilities, StoreError> {
        self.run(Operation::Probe, "", Shared::probe).await
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn location(&self) -> &str {
        &self.shared.name
    }
}

/// What the blocking calls need.
#[derive(Debug)]
struct Shared {
    root: PathBuf,
    name: String,
    sync: bool,
    counters: Arc<Counters>,
}

impl Shared {
    fn create_root(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.root).map_err(|error| {
            if is_full(&error) {
                self.error("", error)
            } else {
                StoreError::StoreNotWritable {
                    path: self.root.clone(),
                    source: error,
                }
            }
        })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn put(
        &self,
        key: &Key,
        content: &mut impl Read,
        condition: Condition,
        source: &Path,
    ) -> Result<ObjectInfo, StoreError> {
        let path = self.path(key);
        // Only a short cut: the rename below is what decides.
        if condition == Condition::CreateOnly && path.symlink_metadata().is_ok() {
            return Err(self.already_exists(key));
        }
        let mut partial =
            local::partial_in(&local::folder_of(&path)).map_err(|error| self.write_error(key, error))?;
        let info = match local::copy_hashed(content, partial.as_file_mut()) {
            Ok(info) => info,
            Err(CopyError::Read(error)) => return Err(local::read_error(source, error)),
            Err(CopyError::Write(error)) => return Err(self.write_error(key, error)),
        };
        self.counters.written(info.size_bytes);
        self.publish(key, partial, &path, &info, condition)?;
        Ok(info)
    }

    /// Gives a finished file its name, unless the name is taken.
    fn publish(
        &self,
        key: &Key,
        partial: NamedTempFile,
        path: &Path,
        info: &ObjectInfo,
        condition: Condition,
    ) -> Result<(), StoreError> {
        if self.sync {
            partial
                .as_file()
                .sync_all()
                .map_err(|error| self.write_error(key, error))?;
        }
        match partial.persist_noclobber(path) {
            Ok(_) => self
                .sync_folders(path)
                .map_err(|error| self.write_error(key, error)),
            Err(failure) if failure.error.kind() == io::ErrorKind::AlreadyExists => {
                if path.is_dir() {
                    return Err(self.write_error(key, io::Error::from(io::ErrorKind::IsADirectory)));
                }
                let same = condition == Condition::CreateOrSame && self.stat(key)? == *info;
                if same {
                    Ok(())
                } else {
                    Err(self.already_exists(key))
                }
            }
            Err(failure) => Err(self.write_error(key, failure.error)),
        }
    }

    /// A name is safe only once every folder on its way is on the disk.
    fn sync_folders(&self, path: &Path) -> io::Result<()> {
        if !self.sync {
            return Ok(());
        }
        for folder in path
            .ancestors()
            .skip(1)
            .take_while(|folder| folder.starts_with(&self.root))
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        let mut file = self.open_object(key)?;
        let mut partial =
            local::partial_in(&local::folder_of(to)).map_err(|error| local::write_error(to, error))?;
        let found = match local::copy_hashed(&mut file, partial.as_file_mut()) {
            Ok(found) => found,
            Err(CopyError::Read(error)) => return Err(self.error(key.as_str(), error)),
            Err(CopyError::Write(error)) => return Err(local::write_error(to, error)),
        };
        self.counters.read(found.size_bytes);
        self.check(key, expected, &found)?;
        partial
            .persist(to)
            .map_err(|failure| local::write_error(to, failure.error))?;
        Ok(())
    }

    fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let file = self.open_object(key)?;
        let size_bytes = file
            .metadata()
            .map_err(|error| self.error(key.as_str(), error))?
            .len();
        let too_large = |size_bytes| StoreError::TooLarge {
            key: key.to_string(),
            size_bytes,
            limit_bytes: max_bytes,
        };
        if size_bytes > max_bytes {
            return Err(too_large(size_bytes));
        }
        let mut content = Vec::new();
        // The file may grow meanwhile, so the limit holds for the reading too.
        file.take(max_bytes.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|error| self.error(key.as_str(), error))?;
        self.counters.read(content.len() as u64);
        if content.len() as u64 > max_bytes {
            return Err(too_large(content.len() as u64));
        }
        if let Some(expected) = expected {
            self.check(key, expected, &ObjectInfo::of(&content))?;
        }
        Ok(content.into())
    }

    fn fetch_file(&self, key: &Key, max_bytes: u64, to: &Path) -> Result<ObjectInfo, StoreError> {
        // The file may grow meanwhile, so the limit holds for the reading too.
        let mut file = self.open_object(key)?.take(max_bytes.saturating_add(1));
        let mut partial =
            local::partial_in(&local::folder_of(to)).map_err(|error| local::write_error(to, error))?;
        let found = match local::copy_hashed(&mut file, partial.as_file_mut()) {
            Ok(found) => found,
            Err(CopyError::Read(error)) => return Err(self.error(key.as_str(), error)),
            Err(CopyError::Write(error)) => return Err(local::write_error(to, error)),
        };
        self.counters.read(found.size_bytes);
        if found.size_bytes > max_bytes {
            return Err(StoreError::TooLarge {
                key: key.to_string(),
                size_bytes: found.size_bytes,
                limit_bytes: max_bytes,
            });
        }
        partial
            .persist(to)
            .map_err(|failure| local::write_error(to, failure.error))?;
        Ok(found)
    }

    fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError> {
        let mut file = self.open_object(key)?;
        match local::copy_hashed(&mut file, &mut io::sink()) {
            Ok(info) => Ok(info),
            Err(CopyError::Read(error) | CopyError::Write(error)) => Err(self.error(key.as_str(), error)),
        }
    }

    fn open_object(&self, key: &Key) -> Result<File, StoreError> {
        let file = File::open(self.path(key)).map_err(|error| self.error(key.as_str(), error))?;
        let metadata = file.metadata().map_err(|error| self.error(key.as_str(), error))?;
        // A folder is where other keys lie: no object has this key.
        if metadata.is_dir() {
            Err(self.not_found(key.as_str()))
        } else {
            Ok(file)
        }
    }

    fn check(&self, key: &Key, expected: &ObjectInfo, found: &ObjectInfo) -> Result<(), StoreError> {
        if expected == found {
            return Ok(());
        }
        Err(StoreError::ChecksumMismatch {
            key: key.to_string(),
            store: self.name.clone(),
            expected: Box::new(*expected),
            found: Box::new(*found),
        })
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => self.remove_empty_folders(&path),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {}
                _ => return Err(self.write_error(key, error)),
            },
        }
        Ok(())
    }

    /// Empty folders are no objects; they go, so that a store without objects is an empty folder.
    fn remove_empty_folders(&self, path: &Path) {
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != self.root) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        if prefix.is_root() {
            return Err(StoreError::InvalidKey {
                key: String::new(),
                problem: "a whole store is never deleted; name a prefix".into(),
            });
        }
        let folder = self.root.join(prefix.as_str().trim_end_matches('/'));
        if !folder.is_dir() {
            return Ok(0);
        }
        let mut count = 0;
        let mut attempt = 1;
        loop {
            match remove_all(&folder, &mut count) {
                Ok(()) => break,
                Err(error)
                    if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < DELETE_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(self.map_write_error(prefix.as_str(), error)),
            }
        }
        self.remove_empty_folders(&folder);
        Ok(count)
    }

    fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let folder = self.root.join(prefix.as_str().trim_end_matches('/'));
        let after = after.map_or("", Key::as_str);
        list_folder(&folder, prefix.as_str(), after, limit, &mut listing)
            .map_err(|error| self.error(prefix.as_str(), error))?;
        Ok(listing)
    }

    fn probe(&self) -> Result<StoreCapabilities, StoreError> {
        self.create_root()?;
        let probe = self.root.join(format!("{RESERVED}probe-{}", Uuid::new_v4()));
        let failed = |error: io::Error| {
            if is_full(&error) {
                self.error("probe", error)
            } else {
                StoreError::StoreNotWritable {
                    path: self.root.clone(),
                    source: error,
                }
            }
        };
        let write = || -> io::Result<bool> {
            local::partial_in(&self.root)?
                .persist_noclobber(&probe)
                .map_err(|failure| failure.error)?;
            match local::partial_in(&self.root)?.persist_noclobber(&probe) {
                Ok(_) => Ok(false),
                Err(failure) if failure.error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
                Err(failure) => Err(failure.error),
            }
        };
        let honoured = write().map_err(failed)?;
        fs::remove_file(&probe).map_err(failed)?;
        if !honoured {
            return Err(StoreError::ConditionalWritesUnsupported {
                store: self.name.clone(),
            });
        }
        Ok(StoreCapabilities {
            writable: true,
            conditional_writes: true,
            conditional_multipart: true,
            verifies_uploads: true,
        })
    }

    fn already_exists(&self, key: &Key) -> StoreError {
        StoreError::AlreadyExists {
            key: key.to_string(),
            store: self.name.clone(),
        }
    }

    fn not_found(&self, key: &str) -> StoreError {
        StoreError::NotFound {
            key: key.into(),
            store: self.name.clone(),
        }
    }

    fn write_error(&self, key: &Key, error: io::Error) -> StoreError {
        self.map_write_error(key.as_str(), error)
    }

    fn map_write_error(&self, key: &str, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
                StoreError::InvalidKey {
                    key: key.into(),
                    problem: "in a folder store a key can't lie below another key".into(),
                }
            }
            _ if is_not_writable(&error) => StoreError::StoreNotWritable {
                path: self.root.clone(),
                source: error,
            },
            _ => self.error(key, error),
        }
    }

    fn error(&self, key: &str, error: io::Error) -> StoreError {
        let (key, store) = (key.to_owned(), self.name.clone());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreError::NotFound { key, store },
            io::ErrorKind::PermissionDenied => StoreError::AccessDenied {
                key,
                store,
                code: error.to_string(),
            },
            _ if is_full(&error) => StoreError::StoreFull {
                key,
                store,
                source: Box::new(error),
            },
            _ => StoreError::StoreFile {
                key,
                store,
                source: error,
            },
        }
    }
}

/// Removes a folder with all that is in it, counts the objects, and takes what vanishes meanwhile as removed.
fn remove_all(folder: &Path, count: &mut u64) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(folder) {
        Err(error) if gone(&error) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_all(&entry.path(), count)?;
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) if is_reserved(&entry) => {}
            Ok(()) => *count += 1,
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_reserved(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(RESERVED)
}

/// Adds the objects of a folder in the order of their keys' bytes.
fn list_folder(
    folder: &Path,
    prefix: &str,
    after: &str,
    limit: usize,
    listing: &mut Listing,
) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let (Ok(name), false) = (entry.file_name().into_string(), is_reserved(&entry)) else {
            continue;
        };
        // With its slash a folder sorts among files as its keys do.
        let is_folder = entry.file_type()?.is_dir();
        names.push(if is_folder { format!("{name}/") } else { name });
    }
    names.sort_unstable();
    for name in names {
        if listing.truncated {
            break;
        }
        let path = folder.join(name.trim_end_matches('/'));
        let full = format!("{prefix}{name}");
        // All of a folder comes before what is greater than its name and does not begin with it.
        if full.as_str() <= after && !(name.ends_with('/') && after.starts_with(&full)) {
            continue;
        }
        if name.ends_with('/') {
            list_folder(&path, &full, after, limit, listing)?;
            continue;
        }
        let (Ok(key), Ok(metadata)) = (Key::new(full), path.metadata()) else {
            continue;
        };
        if listing.objects.len() == limit {
            listing.truncated = true;
        } else {
            listing.objects.push(ListedObject {
                key,
                size_bytes: metadata.len(),
            });
        }
    }
    Ok(())
}
