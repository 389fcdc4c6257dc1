//! How artifacts between SP1's tasks lie in the store.
//!
//! A shard's record has some 200 MB before compression and a tenth of that after it. The bytes are the same for the same
//! content, so that their hash can be a key of the action cache.

use std::io;

/// Compressed with zstd.
const COMPRESSED: u8 = 1;

/// As they are.
const PLAIN: u8 = 0;

/// Below this size compression saves nothing worth having.
const SMALLEST_COMPRESSED: usize = 4096;

/// Fast: the executor feeds all devices of a job through this.
const LEVEL: i32 = 1;

/// Largest artifact after decompression, in bytes: far above any record, and below what would exhaust a worker at once.
pub const MAX_ARTIFACT_BYTES: usize = 8 << 30;

/// Bytes that are not an artifact of ours.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Nothing, or a first byte that nobody writes.
    #[error("the artifact begins with {0:?}, which this version does not write")]
    Unknown(Option<u8>),
    /// The compressed bytes are damaged or too large.
    #[error("the artifact can't be unpacked: {0}")]
    Damaged(#[from] io::Error),
}

/// The bytes for the store.
pub fn pack(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    if bytes.len() < SMALLEST_COMPRESSED {
        let mut packed = Vec::with_capacity(bytes.len() + 1);
        packed.push(PLAIN);
        packed.extend_from_slice(bytes);
        return Ok(packed);
    }
    let mut packed = vec![COMPRESSED];
    zstd::stream::copy_encode(bytes, &mut packed, LEVEL)?;
    Ok(packed)
}

/// What [`pack`] was given.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, CodecError> {
    match packed.split_first() {
        Some((&PLAIN, bytes)) => Ok(bytes.to_vec()),
        Some((&COMPRESSED, bytes)) => {
            let mut unpacked = Vec::new();
            let decoder = zstd::stream::read::Decoder::new(bytes)?;
            let read = io::Read::read_to_end(
                &mut io::Read::take(decoder, MAX_ARTIFACT_BYTES as u64 + 1),
                &mut unpacked,
            )?;
            if read > MAX_ARTIFACT_BYTES {
                let message = format!("it has more than {MAX_ARTIFACT_BYTES} bytes");
                return Err(io::Error::other(message).into());
            }
            Ok(unpacked)
        }
        first => Err(CodecError::Unknown(first.map(|(first, _)| *first))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_artifacts_come_back_as_they_were() {
        for size in [0, 1, SMALLEST_COMPRESSED - 1, SMALLEST_COMPRESSED, 1 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7 % 251) as u8).collect();
            let packed = pack(&bytes).expect("packs");
            assert_eq!(unpack(&packed).expect("unpacks"), bytes);
        }
    }

    #[test]
    fn the_same_content_has_the_same_bytes_in_the_store() {
        let bytes = vec![7; 1 << 16];
        assert_eq!(pack(&bytes).expect("packs"), pack(&bytes).expect("packs"));
        assert!(pack(&bytes).expect("packs").len() < 1024);
    }

    #[test]
    fn damaged_and_foreign_bytes_are_refused() {
        let mut packed = pack(&vec![7; 1 << 16]).expect("packs");
        packed.truncate(packed.len() / 2);
        assert!(matches!(unpack(&packed), Err(CodecError::Damaged(_))));
        assert!(matches!(unpack(&[9, 9]), Err(CodecError::Unknown(Some(9)))));
        assert!(matches!(unpack(&[]), Err(CodecError::Unknown(None))));
    }
}
