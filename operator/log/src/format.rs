//! The bytes of an object: a header of fixed size, then records. A CRC-32 covers both, so damage and truncation are
//! told from a wrong but whole object.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `PRLG` |
//! | 4 | 1 | format, 1 |
//! | 5 | 1 | kind: 1 epoch, 2 records, 3 part of a checkpoint, 4 its marker |
//! | 6 | 2 | zero |
//! | 8 | 8 | sequence (of a part: its number in the checkpoint) |
//! | 16 | 8 | epoch |
//! | 24 | 16 | writer |
//! | 40 | 4 | number of records |
//! | 44 | 4 | bytes after the header |
//! | 48 | 4 | CRC-32 of what follows the header, then of the bytes before this field |
//!
//! Each record is its length in 4 bytes and its bytes. Numbers are little-endian. The first 40 bytes stay the same in
//! all later formats: an old leader must see that a newer one fenced it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32fast::Hasher;

use crate::error::LogError;
use crate::model::WriterId;
use crate::names::{Position, Stem};

/// The newest format that this version knows.
pub(crate) const FORMAT: u8 = 1;
/// The bytes before the records.
pub(crate) const HEADER_BYTES: usize = 52;
/// What each record takes beside its bytes.
pub(crate) const LENGTH_BYTES: usize = 4;
/// No object is larger: limits are cut to it, so that any reader can read what any writer wrote.
pub(crate) const MAX_OBJECT_BYTES: usize = 64 << 20;

const MAGIC: &[u8; 4] = b"PRLG";
const CRC_AT: usize = 48;
/// Bytes of a description of one part in a marker.
const DESCRIPTION_BYTES: usize = 8;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Epoch = 1,
    Records = 2,
    Part = 3,
    Marker = 4,
}

/// What the header of a whole object says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) writer: WriterId,
}

/// A whole object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) header: Header,
    pub(crate) records: Vec<Bytes>,
}

/// What a marker says of its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) position: Position,
    pub(crate) epoch: u64,
    pub(crate) stem: Stem,
    pub(crate) parts: Vec<PartInfo>,
}

/// What a marker says of a part: enough to tell it from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartInfo {
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

/// An object in the making. Records are hashed as they come, so that finishing costs the same for any number.
#[derive(Debug)]
pub(crate) struct Builder {
    buffer: BytesMut,
    hasher: Hasher,
    records: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl Builder {
    /// One that takes so many bytes of records without moving them.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + bytes);
        buffer.put_bytes(0, HEADER_BYTES);
        Self {
            buffer,
            hasher: Hasher::new(),
            records: 0,
        }
    }

    /// What a record takes.
    pub(crate) fn cost(record: &[u8]) -> usize {
        LENGTH_BYTES + record.len()
    }

    pub(crate) fn push(&mut self, record: &[u8]) {
        let begin = self.buffer.len();
        assert!(
            begin + Self::cost(record) <= HEADER_BYTES + MAX_OBJECT_BYTES,
            "an object is too large"
        );
        self.buffer.put_u32_le(record.len() as u32);
        self.buffer.put_slice(record);
        self.hasher.update(&self.buffer[begin..]);
        self.records += 1;
    }

    /// Bytes of the records so far, their lengths included.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len() - HEADER_BYTES
    }

    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    pub(crate) fn finish(mut self, header: Header) -> Bytes {
        let length = self.bytes() as u32;
        let mut front = &mut self.buffer[..HEADER_BYTES];
        front.put_slice(MAGIC);
        front.put_u8(FORMAT);
        front.put_u8(header.kind as u8);
        front.put_u16_le(0);
        front.put_u64_le(header.sequence);
        front.put_u64_le(header.epoch);
        front.put_u128_le(header.writer.0);
        front.put_u32_le(self.records);
        front.put_u32_le(length);
        self.hasher.update(&self.buffer[..CRC_AT]);
        let crc = self.hasher.finalize();
        self.buffer[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.buffer.freeze()
    }
}

/// The object that begins an epoch.
pub(crate) fn epoch(sequence: u64, epoch: u64, writer: WriterId) -> Bytes {
    Builder::default().finish(Header {
        kind: Kind::Epoch,
        sequence,
        epoch,
        writer,
    })
}

/// The CRC that a whole object carries.
pub(crate) fn crc_of(object: &[u8]) -> u32 {
    (&object[CRC_AT..HEADER_BYTES]).get_u32_le()
}

/// The marker of a complete checkpoint: one record with its position, number and parts.
pub(crate) fn marker(marker: &Marker) -> Bytes {
    let mut record = BytesMut::with_capacity(8 + DESCRIPTION_BYTES * marker.parts.len());
    record.put_u32_le(marker.position.records);
    record.put_u32_le(marker.stem.number);
    for part in &marker.parts {
        record.put_u32_le(part.bytes);
        record.put_u32_le(part.crc);
    }
    let mut builder = Builder::with_capacity(Builder::cost(&record));
    builder.push(&record);
    builder.finish(Header {
        kind: Kind::Marker,
        sequence: marker.position.sequence,
        epoch: marker.epoch,
        writer: marker.stem.writer,
    })
}

fn damaged(name: &str, problem: impl Into<String>) -> LogError {
    LogError::Damaged {
        key: name.into(),
        problem: problem.into(),
    }
}

/// The epoch and writer of an object of any format, if it has that much of a header.
pub(crate) fn peek(content: &[u8]) -> Option<(u64, WriterId)> {
    let mut rest = content.strip_prefix(MAGIC)?.get(12..36)?;
    Some((rest.get_u64_le(), WriterId(rest.get_u128_le())))
}

/// Reads an object of the log: an epoch or records.
pub(crate) fn decode_entry(name: &str, sequence: u64, content: &Bytes) -> Result<Object, LogError> {
    let object = decode(name, content)?;
    if !matches!(object.header.kind, Kind::Epoch | Kind::Records) {
        return Err(damaged(name, "it is no object of the log"));
    }
    if object.header.sequence != sequence {
        let problem = format!("it is that of sequence {}", object.header.sequence);
        return Err(damaged(name, problem));
    }
    Ok(object)
}

/// Reads a part of a checkpoint and compares it with what the marker says of it.
pub(crate) fn decode_part(name: &str, info: PartInfo, content: &Bytes) -> Result<Vec<Bytes>, LogError> {
    if content.len() != info.bytes as usize {
        let problem = format!("it has {} bytes, its marker says {}", content.len(), info.bytes);
        return Err(damaged(name, problem));
    }
    let object = decode(name, content)?;
    if object.header.kind != Kind::Part || crc_of(content) != info.crc {
        return Err(damaged(name, "it is not the part that its marker names"));
    }
    Ok(object.records)
}

/// Reads a marker.
pub(crate) fn decode_marker(name: &str, position: Position, content: &Bytes) -> Result<Marker, LogError> {
    let Object { header, records } = decode(name, content)?;
    let (Kind::Marker, [record]) = (header.kind, records.as_slice()) else {
        return Err(damaged(name, "it is no marker of a checkpoint"));
    };
    let mut record = record.clone();
    if record.len() < 8 || !(record.len() - 8).is_multiple_of(DESCRIPTION_BYTES) {
        return Err(damaged(name, "its list of parts breaks off"));
    }
    let found = Position {
        sequence: header.sequence,
        records: record.get_u32_le(),
    };
    if found != position {
        return Err(damaged(name, "it is that of another position"));
    }
    let stem = Stem {
        writer: header.writer,
        number: record.get_u32_le(),
    };
    let mut parts = Vec::with_capacity(record.len() / DESCRIPTION_BYTES);
    while record.has_remaining() {
        parts.push(PartInfo {
            bytes: record.get_u32_le(),
            crc: record.get_u32_le(),
        });
    }
    Ok(Marker {
        position,
        epoch: header.epoch,
        stem,
        parts,
    })
}

/// Reads a whole object. The records share its memory.
fn decode(name: &str, content: &Bytes) -> Result<Object, LogError> {
    let Some(after_magic) = content.strip_prefix(MAGIC) else {
        return Err(damaged(name, "it does not begin as an object of the log"));
    };
    match after_magic.first() {
        Some(&found) if found > FORMAT => {
            return Err(LogError::NewerFormat {
                key: name.into(),
                found,
                known: FORMAT,
            });
        }
        _ if content.len() < HEADER_BYTES => {
            return Err(damaged(name, format!("it has only {} bytes", content.len())));
        }
        _ => {}
    }
    let mut front = &content[5..HEADER_BYTES];
    let kind = front.get_u8();
    front.advance(2);
    let (sequence, epoch) = (front.get_u64_le(), front.get_u64_le());
    let writer = WriterId(front.get_u128_le());
    let (count, length, crc) = (front.get_u32_le(), front.get_u32_le(), front.get_u32_le());
    let body = content.slice(HEADER_BYTES..);
    if body.len() != length as usize {
        let problem = format!(
            "it has {} bytes, its header says {}",
            content.len(),
            HEADER_BYTES + length as usize
        );
        return Err(damaged(name, problem));
    }
    let mut hasher = Hasher::new();
    hasher.update(&body);
    hasher.update(&content[..CRC_AT]);
    let found = hasher.finalize();
    if found != crc {
        return Err(damaged(
            name,
            format!("its CRC-32 is {found:08x}, its header says {crc:08x}"),
        ));
    }
    let kind = match kind {
        1 => Kind::Epoch,
        2 => Kind::Records,
        3 => Kind::Part,
        4 => Kind::Marker,
        other => return Err(damaged(name, format!("there is no kind {other}"))),
    };
    let header = Header {
        kind,
        sequence,
        epoch,
        writer,
    };
    let records = split(name, body, count)?;
    Ok(Object { header, records })
}

fn split(name: &str, mut body: Bytes, count: u32) -> Result<Vec<Bytes>, LogError> {
    let mut records = Vec::with_capacity(count as usize);
    for _ in 0..count {
        if body.len() < LENGTH_BYTES {
            return Err(damaged(name, "its records break off"));
        }
        let length = body.get_u32_le() as usize;
        if body.len() < length {
            return Err(damaged(name, "its last record breaks off"));
        }
        records.push(body.split_to(length));
    }
    if body.is_empty() {
        Ok(records)
    } else {
        Err(damaged(name, "bytes follow its last record"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Bytes {
        let mut builder = Builder::default();
        builder.push(b"one");
        builder.push(b"");
        builder.push(b"three");
        builder.finish(Header {
            kind: Kind::Records,
            sequence: 7,
            epoch: 3,
            writer: WriterId(42),
        })
    }

    #[test]
    fn an_object_comes_back_as_it_was_written() {
        let object = decode_entry("log/7", 7, &records()).unwrap();
        assert_eq!(object.records, ["one".as_bytes(), b"", b"three"]);
        assert_eq!((object.header.epoch, object.header.writer), (3, WriterId(42)));
        assert_eq!(peek(&records()), Some((3, WriterId(42))));
        let begun = decode_entry("log/8", 8, &epoch(8, 4, WriterId(1))).unwrap();
        assert_eq!((begun.header.kind, begun.header.epoch), (Kind::Epoch, 4));
        assert!(begun.records.is_empty());
    }

    #[test]
    fn a_marker_comes_back_as_it_was_written() {
        let written = Marker {
            position: Position {
                sequence: 9,
                records: 2,
            },
            epoch: 5,
            stem: Stem {
                writer: WriterId(6),
                number: 1,
            },
            parts: vec![PartInfo { bytes: 100, crc: 1 }, PartInfo { bytes: 20, crc: 2 }],
        };
        let bytes = marker(&written);
        assert_eq!(decode_marker("m", written.position, &bytes).unwrap(), written);
        assert!(decode_marker("m", Position::default(), &bytes).is_err());
        assert!(decode_entry("m", 9, &bytes).is_err());
    }

    #[test]
    fn every_changed_bit_is_damage_that_names_the_object() {
        let whole = records();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = decode_entry("log/7", 7, &bytes.into()).unwrap_err();
            assert!(error.to_string().contains("`log/7`"), "{error}");
        }
    }

    #[test]
    fn every_truncation_and_every_extension_is_damage() {
        let whole = records();
        for length in 0..whole.len() {
            let error = decode_entry("log/7", 7, &whole.slice(..length)).unwrap_err();
            assert_eq!(error.category(), "damaged", "{length}");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        let error = decode_entry("log/7", 7, &longer.into()).unwrap_err();
        assert_eq!(error.category(), "damaged");
    }

    #[test]
    fn an_object_in_the_place_of_another_is_damage() {
        let error = decode_entry("log/8", 8, &records()).unwrap_err();
        assert!(error.to_string().contains("sequence 7"), "{error}");
    }

    #[test]
    fn an_object_of_a_newer_format_says_so_and_still_tells_its_epoch() {
        let mut bytes = records().to_vec();
        bytes[4] = FORMAT + 1;
        bytes.truncate(45);
        let bytes = Bytes::from(bytes);
        let error = decode_entry("log/7", 7, &bytes).unwrap_err();
        assert_eq!(error.category(), "newer_format");
        assert_eq!(peek(&bytes), Some((3, WriterId(42))));
    }
}
