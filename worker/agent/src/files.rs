//! Small files that others write: read whole, and never without a bound.

use std::io;
use std::path::Path;

use tokio::io::AsyncReadExt;

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// It can't be read, or is larger.
pub(crate) async fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}
