//! How the objects of a log are called, relative to its prefix. Names sort by place, so a listing is in order.

use crate::model::WriterId;

/// The folder of the log's objects.
pub(crate) const ENTRIES: &str = "log/";
/// The folder of the checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoint/";
/// The last part of a marker's name: the checkpoint is complete.
const COMPLETE: &str = "complete";
/// Digits of a sequence: all of a `u64`.
const SEQUENCE_DIGITS: usize = 20;
/// Digits of a number of records in one object: all of a `u32`.
const RECORDS_DIGITS: usize = 10;

/// What a checkpoint covers: all objects before `sequence`, and the first `records` records of that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Position {
    pub(crate) sequence: u64,
    pub(crate) records: u32,
}

/// Which parts belong to one checkpoint: no other has the same writer and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stem {
    pub(crate) writer: WriterId,
    pub(crate) number: u32,
}

/// What a name below `checkpoint/` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckpointName {
    Marker(Position),
    Part(Position, Stem),
}

impl CheckpointName {
    pub(crate) fn position(self) -> Position {
        match self {
            Self::Marker(position) | Self::Part(position, _) => position,
        }
    }
}

pub(crate) fn entry(sequence: u64) -> String {
    format!("{ENTRIES}{sequence:0SEQUENCE_DIGITS$}")
}

pub(crate) fn parse_entry(name: &str) -> Option<u64> {
    digits(name.strip_prefix(ENTRIES)?, SEQUENCE_DIGITS)
}

pub(crate) fn marker(position: Position) -> String {
    format!("{}{COMPLETE}", folder(position))
}

pub(crate) fn part(position: Position, stem: Stem, part: usize) -> String {
    let Stem { writer, number } = stem;
    format!("{}{:032x}-{number:08}-{part:08}", folder(position), writer.0)
}

pub(crate) fn parse_checkpoint(name: &str) -> Option<CheckpointName> {
    let (folder, file) = name.strip_prefix(CHECKPOINTS)?.split_once('/')?;
    let (sequence, records) = folder.split_once('-')?;
    let position = Position {
        sequence: digits(sequence, SEQUENCE_DIGITS)?,
        records: digits(records, RECORDS_DIGITS)?.try_into().ok()?,
    };
    if file == COMPLETE {
        return Some(CheckpointName::Marker(position));
    }
    let mut words = file.split('-');
    let (writer, number, part) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || writer.len() != 32 || part.parse::<u32>().is_err() {
        return None;
    }
    let stem = Stem {
        writer: WriterId(u128::from_str_radix(writer, 16).ok()?),
        number: number.parse().ok()?,
    };
    Some(CheckpointName::Part(position, stem))
}

fn folder(position: Position) -> String {
    let Position { sequence, records } = position;
    format!("{CHECKPOINTS}{sequence:0SEQUENCE_DIGITS$}-{records:0RECORDS_DIGITS$}/")
}

fn digits(text: &str, count: usize) -> Option<u64> {
    let all = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_parsers() {
        let position = Position {
            sequence: u64::MAX,
            records: 7,
        };
        let stem = Stem {
            writer: WriterId(0xabc),
            number: 3,
        };
        assert_eq!(parse_entry(&entry(42)), Some(42));
        assert_eq!(
            parse_checkpoint(&marker(position)),
            Some(CheckpointName::Marker(position))
        );
        assert_eq!(
            parse_checkpoint(&part(position, stem, 9)),
            Some(CheckpointName::Part(position, stem))
        );
    }

    #[test]
    fn names_sort_by_place() {
        assert!(entry(9) < entry(10));
        let at = |sequence, records| marker(Position { sequence, records });
        assert!(at(9, 4_000_000_000) < at(10, 0));
        assert!(at(10, 9) < at(10, 10));
    }

    #[test]
    fn names_of_others_are_not_ours() {
        for name in [
            "log/7",
            "log/0000000000000000000x",
            "log/00000000000000000007/a",
            "other/7",
        ] {
            assert_eq!(parse_entry(name), None, "{name}");
        }
        let folder = "checkpoint/00000000000000000007-0000000000/";
        for file in ["", "incomplete", "a-b-c", "00-1-2", "0-0-0-0"] {
            assert_eq!(parse_checkpoint(&format!("{folder}{file}")), None, "{file}");
        }
        assert_eq!(parse_checkpoint("checkpoint/7-0/complete"), None);
    }
}
