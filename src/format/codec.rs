//! bincode, and nothing but bincode: fixed-width little-endian integers, `u64` lengths, nothing left over.
//!
//! bincode 2.0.1 is unmaintained and not canonical by itself. With this configuration and these checks a value has one
//! encoding, and the specification describes its bytes without the crate's name. No other module imports it.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::limits::MAX_ROWS_SECTION_BYTES;

/// Why bytes are not the one encoding of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not an encoding at all: ends early, a length that cannot be, text that is not UTF-8.
    #[error("cannot be decoded: {reason}")]
    Malformed {
        /// What the decoder says.
        reason: String,
    },
    /// Bytes after the value.
    #[error("expected {consumed} bytes, found {length}")]
    Trailing {
        /// Bytes of the value.
        consumed: usize,
        /// Bytes given.
        length: usize,
    },
    /// Another encoding of the value than the one written.
    #[error("not the canonical encoding")]
    NotCanonical,
}

type Config = Configuration<LittleEndian, Fixint, Limit<MAX_ROWS_SECTION_BYTES>>;

const CONFIG: Config =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_ROWS_SECTION_BYTES>();

/// The value whose one encoding is `bytes`.
pub(crate) fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let decoded = bincode::serde::decode_from_slice(bytes, CONFIG);
    let (value, consumed) = decoded.map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    if consumed != bytes.len() {
        return Err(CodecError::Trailing { consumed, length: bytes.len() });
    }
    if encode(&value)? == bytes { Ok(value) } else { Err(CodecError::NotCanonical) }
}

/// The one encoding of `value`.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| CodecError::Malformed { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let value = ("ab".to_owned(), 7_u8, vec![0x0102_0304_u32, 5], vec![6_u64]);
        let bytes = [
            &[2, 0, 0, 0, 0, 0, 0, 0][..],
            b"ab",
            &[7],
            &[2, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(encode(&value), Ok(bytes.clone()));
        assert_eq!(decode(&bytes), Ok(value));
    }

    #[test]
    fn nothing_may_be_missing_or_left_over() {
        let bytes = encode(&(vec![1_u32, 2], "x".to_owned())).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<(Vec<u32>, String)>(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let trailing = CodecError::Trailing { consumed: bytes.len(), length: longer.len() };
        assert_eq!(decode::<(Vec<u32>, String)>(&longer), Err(trailing));
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        for length in [u64::MAX, 1 << 40, MAX_ROWS_SECTION_BYTES as u64] {
            assert!(decode::<Vec<u64>>(&length.to_le_bytes()).is_err(), "{length}");
        }
    }

    /// What the re-encoding is for: a decoder that took this would let one value have two encodings.
    #[test]
    fn a_second_encoding_is_refused() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Even(u8);
        impl Serialize for Even {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_newtype_struct("Even", &(self.0 & !1))
            }
        }
        assert_eq!(decode::<Even>(&[4]), Ok(Even(4)));
        assert_eq!(decode::<Even>(&[5]), Err(CodecError::NotCanonical));
        assert!(decode::<String>(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).is_err(), "not UTF-8");
    }
}
