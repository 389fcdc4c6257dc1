//! The input of a job, from the format of the manifest to the bytes that the program reads from standard input.

use prover_backend::protocol::InputFormat;
use prover_backend::{FramesError, frames};

/// Bytes of a word of RISC Zero's serialization.
const WORD_BYTES: usize = 4;

/// An input that is not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Not whole frames.
    #[error(transparent)]
    Frames(#[from] FramesError),
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
        InputFormat::Frames => drop(frames(&bytes)?),
        InputFormat::Stdin if bytes.len().is_multiple_of(WORD_BYTES) => {}
        InputFormat::Stdin => return Err(InputError::NotWords { bytes: bytes.len() }),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_pass_whatever_they_are() {
        assert_eq!(standard_input(InputFormat::Raw, vec![1, 2, 3]), Ok(vec![1, 2, 3]));
        assert_eq!(standard_input(InputFormat::Raw, vec![]), Ok(vec![]));
    }

    #[test]
    fn whole_frames_pass_unchanged_and_others_are_refused() {
        let bytes = b"\x03\0\0\0one\0\0\0\0".to_vec();
        assert_eq!(standard_input(InputFormat::Frames, bytes.clone()), Ok(bytes));
        let refused = standard_input(InputFormat::Frames, vec![0, 0, 0]);
        let cut_off = FramesError::LengthCutOff { offset: 0, left: 3 };
        assert_eq!(refused, Err(InputError::Frames(cut_off)));
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
