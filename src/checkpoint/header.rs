//! The safetensors header: which tensor lies where in a file.
//!
//! A file is 8 bytes with the header's length, the header (a JSON object from tensor name to element type, shape and
//! byte range), and the tensors' bytes back to back. Stricter than the `safetensors` crate where two readers could
//! disagree: no key twice, no unknown field, printable names.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::tensor::{Dtype, Shape, TensorError, TensorName};

/// The longest header accepted, in bytes: the cap of the `safetensors` crate.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the length before the header.
pub const LENGTH_BYTES: u64 = 8;

/// The element types of safetensors with their sizes in bits.
const TYPES: [(&str, u64); 22] = [
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("BOOL", 8),
    ("I8", 8),
    ("U8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
];

/// Any element type a safetensors file may hold; a patch touches only those that are a [`Dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredType {
    name: &'static str,
    bits: u64,
}

impl StoredType {
    fn parse(name: &str) -> Option<Self> {
        TYPES.iter().find(|(known, _)| *known == name).map(|&(name, bits)| Self { name, bits })
    }

    /// The name safetensors gives it.
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    /// Bits that an element takes: 4 to 64.
    pub const fn bits(self) -> u64 {
        self.bits
    }

    /// The element type as patches know it; `None` for one that they cannot touch.
    pub fn editable(self) -> Option<Dtype> {
        self.name.parse().ok()
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// One tensor of a header; offsets in bytes from the start of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: TensorName,
    /// Its element type.
    pub dtype: StoredType,
    /// Its dimensions.
    pub shape: Shape,
    /// Where its bytes begin.
    pub begin: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// What is wrong with a safetensors header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file cannot hold a header.
    #[error("the file has {file} bytes, too few for a safetensors header of {header}")]
    Short {
        /// Bytes of the file.
        file: u64,
        /// Bytes that the length field and the header take.
        header: u64,
    },
    /// The length field is beyond the cap.
    #[error("the header claims {found} bytes, at most {MAX_HEADER_BYTES} are allowed")]
    TooLong {
        /// The claimed length.
        found: u64,
    },
    /// Not a JSON object of tensors, or a key twice.
    #[error("the header is not a JSON object of tensors")]
    Json(#[from] serde_json::Error),
    /// A name or shape outside what this tool accepts.
    #[error("tensor {name:?}")]
    Tensor {
        /// The tensor, cut for display.
        name: String,
        /// What is wrong.
        source: TensorError,
    },
    /// An element type that safetensors does not define.
    #[error("tensor {name}: unknown element type {found:?}")]
    Type {
        /// The tensor.
        name: TensorName,
        /// The type as written.
        found: String,
    },
    /// The byte range does not have the size that type and shape give.
    #[error("tensor {name}: {dtype} {shape} takes {expected} bits, its range has {found}")]
    Size {
        /// The tensor.
        name: TensorName,
        /// Its element type.
        dtype: StoredType,
        /// Its dimensions.
        shape: Shape,
        /// Bits of type and shape.
        expected: u128,
        /// Bits of the range.
        found: u128,
    },
    /// Ranges overlap, leave a hole, or run backwards.
    #[error("tensor {name}: its bytes begin at {found}, the tensor before it ends at {expected}")]
    Offset {
        /// The tensor.
        name: TensorName,
        /// The end of the tensor before.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// The file is longer or shorter than its tensors.
    #[error(
        "the tensors take {expected} bytes, the file holds {found} after the header (truncated or with bytes added)"
    )]
    Length {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// Checks the length field against the file's length; gives the header's length.
pub(super) fn header_length(field: [u8; 8], file: u64) -> Result<u64, HeaderError> {
    let found = u64::from_le_bytes(field);
    if found > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLong { found });
    }
    let header = found + LENGTH_BYTES;
    if header > file { Err(HeaderError::Short { file, header }) } else { Ok(found) }
}

/// Parses the header of a file with `data` bytes after it; entries in the order of their bytes.
pub fn parse(header: &[u8], data: u64) -> Result<Vec<Entry>, HeaderError> {
    let RawHeader(raw) = serde_json::from_slice(header)?;
    let mut entries = raw.into_iter().map(|(name, raw)| entry(name, raw)).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| (entry.begin, entry.length));
    let mut end = 0;
    for entry in &entries {
        if entry.begin != end {
            return Err(HeaderError::Offset { name: entry.name.clone(), expected: end, found: entry.begin });
        }
        end += entry.length;
    }
    if end == data { Ok(entries) } else { Err(HeaderError::Length { expected: end, found: data }) }
}

fn entry(name: String, raw: RawEntry) -> Result<Entry, HeaderError> {
    let wrong = |source| HeaderError::Tensor { name: name.chars().take(80).collect(), source };
    let shape = Shape::new(raw.shape).map_err(wrong)?;
    let name = TensorName::new(name.clone()).map_err(wrong)?;
    let Some(dtype) = StoredType::parse(&raw.dtype) else {
        return Err(HeaderError::Type { name, found: raw.dtype.chars().take(40).collect() });
    };
    let (begin, end) = raw.data_offsets;
    let Some(length) = end.checked_sub(begin) else {
        return Err(HeaderError::Offset { name, expected: begin, found: end });
    };
    let (expected, found) = (u128::from(shape.elements()) * u128::from(dtype.bits), u128::from(length) * 8);
    if expected != found {
        return Err(HeaderError::Size { name, dtype, shape, expected, found });
    }
    Ok(Entry { name, dtype, shape, begin, length })
}

struct RawHeader(BTreeMap<String, RawEntry>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor name to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut entries = BTreeMap::new();
        let mut metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == "__metadata__" {
                // Text to text and without effect, but other readers refuse a file that has anything else here.
                map.next_value::<Option<BTreeMap<String, String>>>()?;
                std::mem::replace(&mut metadata, true)
            } else {
                let raw = map.next_value::<RawEntry>()?;
                entries.insert(name.clone(), raw).is_some()
            };
            if twice {
                return Err(A::Error::custom(format_args!("the key {name:?} appears twice")));
            }
        }
        Ok(RawHeader(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn ours(bytes: &[u8]) -> Result<Vec<Entry>, HeaderError> {
        let field = bytes.first_chunk().copied().unwrap_or_default();
        let length = header_length(field, bytes.len() as u64)? as usize;
        parse(&bytes[8..8 + length], (bytes.len() - 8 - length) as u64)
    }

    /// Whatever ours accepts, the peer accepts with the same meaning.
    fn agrees(bytes: &[u8]) -> bool {
        let Ok(entries) = ours(bytes) else { return false };
        let peer = SafeTensors::deserialize(bytes).expect("the peer accepts what we accept");
        assert_eq!(peer.len(), entries.len());
        for entry in entries {
            let view = peer.tensor(entry.name.as_str()).expect("same names");
            let shape: Vec<u64> = view.shape().iter().map(|dim| *dim as u64).collect();
            assert_eq!(entry.shape.dims(), shape);
            assert_eq!(entry.dtype.as_str(), view.dtype().to_string());
            assert_eq!(entry.length, view.data().len() as u64);
        }
        true
    }

    #[test]
    fn reads_what_the_peer_writes() {
        let data = [0_u8; 48];
        for dtype in
            [safetensors::Dtype::F4, safetensors::Dtype::BF16, safetensors::Dtype::F32, safetensors::Dtype::C64]
        {
            let count = 48 * 8 / dtype.bitsize();
            let view = safetensors::tensor::TensorView::new(dtype, vec![count / 2, 2], &data).expect("view");
            let empty = safetensors::tensor::TensorView::new(dtype, vec![0, 2], &[]).expect("view");
            let bytes = safetensors::serialize([("a", &view), ("b", &empty)], None).expect("serialize");
            assert!(agrees(&bytes));
        }
    }

    #[test]
    fn each_rule_is_enforced() {
        let good = r#"{"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}"#;
        assert!(agrees(&file(good, 9)));
        let text = |a: &str, b: &str| file(&good.replace(a, b), 9);
        let cases: [(Vec<u8>, &str); 14] = [
            (file(good, 8), "the tensors take 9 bytes"),
            (file(good, 10), "the tensors take 9 bytes"),
            (text("[8,9]", "[7,8]"), "begin at 7"),
            (text("[8,9]", "[9,10]"), "begin at 9"),
            (text("[0,8]", "[8,0]"), "begin at 0"),
            (text("\"b\"", "\"a\""), "not a JSON object"),
            (text("U8", "U9"), "unknown element type"),
            (text("[2,2]", "[2,3]"), "takes 96 bits"),
            (text("[2,2]", "[4294967296,4294967296]"), "tensor \"a\""),
            (text("\"shape\":[]", "\"shape\":[],\"x\":1"), "not a JSON object"),
            (text("\"shape\":[]", "\"shape\":[],\"shape\":[]"), "not a JSON object"),
            (text("\"b\"", "\"\""), "tensor \"\""),
            (100_000_001_u64.to_le_bytes().to_vec(), "at most"),
            (9_u64.to_le_bytes().to_vec(), "too few"),
        ];
        for (bytes, expected) in cases {
            let error = ours(&bytes).map(|_| ()).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
        let twice = r#"{"__metadata__":{},"__metadata__":{}}"#;
        assert!(ours(&file(twice, 0)).is_err());
        assert!(agrees(&file(r#"{"__metadata__":{"format":"pt"}}   "#, 0)));
        assert!(agrees(&file(r#"{"__metadata__":null}"#, 0)));
        for odd in ["1", "[]", r#""text""#, r#"{"a":1}"#, r#"{"a":{}}"#] {
            let header = format!(r#"{{"__metadata__":{odd}}}"#);
            assert!(ours(&file(&header, 0)).is_err() && SafeTensors::deserialize(&file(&header, 0)).is_err(), "{odd}");
        }
    }

    #[test]
    fn every_type_has_the_peers_size() {
        for (name, bits) in TYPES {
            let peer: safetensors::Dtype = serde_json::from_str(&format!("\"{name}\"")).expect(name);
            assert_eq!(peer.bitsize() as u64, bits, "{name}");
        }
    }

    proptest! {
        #[test]
        fn never_looser_than_the_peer(
            names in prop::collection::vec("[a-c]", 1..4),
            offsets in prop::collection::vec((0_u64..6, 0_u64..6), 3),
            sizes in prop::collection::vec(0_u64..4, 3),
            data in 0_usize..8,
            flips in prop::collection::vec((0_usize..160, any::<u8>()), 0..2),
        ) {
            let entries: Vec<String> = names.iter().zip(&offsets).zip(&sizes).map(|((name, (begin, end)), size)| {
                format!(r#""{name}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
            }).collect();
            let mut bytes = file(&format!("{{{}}}", entries.join(",")), data);
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(8 + at) { *byte = value; }
            }
            agrees(&bytes);
        }

        #[test]
        fn packed_tensors_are_read_as_the_peer_reads_them(sizes in prop::collection::vec(0_u64..5, 0..6)) {
            let mut end = 0;
            let entries: Vec<String> = sizes.iter().enumerate().map(|(index, size)| {
                let begin = end;
                end += size * 2;
                format!(r#""t{index}":{{"dtype":"F16","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
            }).collect();
            let header = format!("{{{}}}", entries.join(","));
            prop_assert!(agrees(&file(&header, end as usize)), "{}", header);
        }
    }
}
