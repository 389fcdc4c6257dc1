//! The input of a job, from the format of the manifest to the bytes that the program reads from standard input.

use prover_backend::protocol::InputFormat;

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// An input that is not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A frame that is longer than what is left.
    #[error(
        "the input is not in the format `frames`: frame {frame} at byte {offset} says {announced} bytes, but only \
         {left} are left. Each frame is its length as 4 bytes little-endian, then its bytes"
    )]
    FrameCutOff {
        /// Number of the frame, from 0.
        frame: usize,
        /// Where its length stands.
        offset: usize,
        /// Its length as announced.
        announced: usize,
        /// What is left after the length.
        left: usize,
    },
    /// Less than a length is left.
    #[error(
        "the input is not in the format `frames`: {left} bytes are left at byte {offset}, where a frame's length of \
         4 bytes should stand"
    )]
    LengthCutOff {
        /// Where the length should stand.
        offset: usize,
        /// What is left.
        left: usize,
    },
    /// RISC Zero's serialization is made of words.
    #[error(
        "the input is not in the format `stdin`: it has {bytes} bytes, but what RISC Zero serializes (risc0_zkvm::serde) \
         is words of 4 bytes. Use the format `raw` for plain bytes"
    )]
    NotWords {
        /// Its size.
        bytes: usize,
    },
}

impl InputError {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        "InputMalformed"
    }

    /// The input stays what it is.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// Checks the input and answers with what the program reads.
///
/// `frames` need no change: a frame of a manifest is what a guest reads with `env::read_frame`, and what
/// `ExecutorEnvBuilder::write_frame` writes. They are checked, so that a wrong length is told here with its place.
pub fn standard_input(format: InputFormat, bytes: Vec<u8>) -> Result<Vec<u8>, InputError> {
    match format {
        InputFormat::Raw | InputFormat::Unspecified => {}
        InputFormat::Frames => check_frames(&bytes)?,
        InputFormat::Stdin if bytes.len().is_multiple_of(LENGTH_BYTES) => {}
        InputFormat::Stdin => return Err(InputError::NotWords { bytes: bytes.len() }),
    }
    Ok(bytes)
}

fn check_frames(bytes: &[u8]) -> Result<(), InputError> {
    let (mut offset, mut frame) = (0, 0);
    while offset < bytes.len() {
        let Some((length, rest)) = bytes[offset..].split_first_chunk::<LENGTH_BYTES>() else {
            return Err(InputError::LengthCutOff {
                offset,
                left: bytes.len() - offset,
            });
        };
        let announced = u32::from_le_bytes(*length) as usize;
        if announced > rest.len() {
            return Err(InputError::FrameCutOff {
                frame,
                offset,
                announced,
                left: rest.len(),
            });
        }
        offset += LENGTH_BYTES + announced;
        frame += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(payloads: &[&[u8]]) -> Vec<u8> {
        payloads
            .iter()
            .flat_map(|p| [&(p.len() as u32).to_le_bytes()[..], p].concat())
            .collect()
    }

    #[test]
    fn raw_bytes_pass_whatever_they_are() {
        assert_eq!(standard_input(InputFormat::Raw, vec![1, 2, 3]), Ok(vec![1, 2, 3]));
        assert_eq!(standard_input(InputFormat::Raw, vec![]), Ok(vec![]));
    }

    #[test]
    fn whole_frames_pass_unchanged() {
        let bytes = frames(&[b"one", b"", b"three"]);
        assert_eq!(standard_input(InputFormat::Frames, bytes.clone()), Ok(bytes));
    }

    #[test]
    fn a_frame_that_is_cut_off_is_told_with_its_place() {
        let mut bytes = frames(&[b"one", b"three"]);
        bytes.pop();
        assert_eq!(
            standard_input(InputFormat::Frames, bytes),
            Err(InputError::FrameCutOff {
                frame: 1,
                offset: 7,
                announced: 5,
                left: 4
            })
        );
        assert_eq!(
            standard_input(InputFormat::Frames, vec![0, 0, 0]),
            Err(InputError::LengthCutOff { offset: 0, left: 3 })
        );
    }

    #[test]
    fn serialized_input_must_be_words() {
        assert_eq!(standard_input(InputFormat::Stdin, vec![0; 8]), Ok(vec![0; 8]));
        assert_eq!(
            standard_input(InputFormat::Stdin, vec![0; 7]),
            Err(InputError::NotWords { bytes: 7 })
        );
    }
}
