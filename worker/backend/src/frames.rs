//! Inputs in the format `frames`: one after the other, each its length as 4 bytes little-endian, then its bytes.

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// Bytes that are not whole frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramesError {
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
}

/// The frames that bytes are made of, in their order.
///
/// # Errors
/// Where the bytes end within a frame.
pub fn frames(bytes: &[u8]) -> Result<Vec<&[u8]>, FramesError> {
    let (mut offset, mut frames) = (0, Vec::new());
    while offset < bytes.len() {
        let Some((length, rest)) = bytes[offset..].split_first_chunk::<LENGTH_BYTES>() else {
            return Err(FramesError::LengthCutOff {
                offset,
                left: bytes.len() - offset,
            });
        };
        let announced = u32::from_le_bytes(*length) as usize;
        let Some(frame) = rest.get(..announced) else {
            return Err(FramesError::FrameCutOff {
                frame: frames.len(),
                offset,
                announced,
                left: rest.len(),
            });
        };
        frames.push(frame);
        offset += LENGTH_BYTES + announced;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(payloads: &[Vec<u8>]) -> Vec<u8> {
        let frame = |payload: &Vec<u8>| [&(payload.len() as u32).to_le_bytes()[..], payload].concat();
        payloads.iter().flat_map(frame).collect()
    }

    proptest! {
        #[test]
        fn what_was_framed_comes_out_again(payloads: Vec<Vec<u8>>) {
            let bytes = framed(&payloads);
            prop_assert_eq!(frames(&bytes).unwrap(), payloads);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = frames(&bytes);
        }
    }

    #[test]
    fn a_frame_that_is_cut_off_is_told_with_its_place() {
        let mut bytes = framed(&[b"one".to_vec(), b"three".to_vec()]);
        bytes.pop();
        let cut_off = FramesError::FrameCutOff {
            frame: 1,
            offset: 7,
            announced: 5,
            left: 4,
        };
        assert_eq!(frames(&bytes), Err(cut_off));
        let cut_off = FramesError::LengthCutOff { offset: 0, left: 3 };
        assert_eq!(frames(&[0, 0, 0]), Err(cut_off));
    }
}
