//! Stored bytes to content and back: byte planes, and one zstd frame.
//!
//! Only bytes whose digest a verified manifest names come here. Still nothing is taken on the frame's word: one frame,
//! its declared size the expected one, a window that every decoder supports, an exactly sized buffer.

use zstd::zstd_safe;

use crate::format::limits::MAX_WINDOW_LOG;
use crate::format::manifest::Codec;
use crate::format::reader::Reader;

/// Compression for writing. Level 19 takes a third longer, and the residual gets 0.7 % smaller.
const LEVEL: i32 = 16;
/// First bytes of a zstd frame (RFC 8878 section 3.1.1).
const ZSTD_MAGIC: u32 = 0xfd2f_b528;

/// Why stored bytes do not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A codec that this version does not know.
    #[error("codec {codec:?} is unknown to this version")]
    Unknown {
        /// Its name.
        codec: String,
    },
    /// Content whose length no sequence of the codec's words has.
    #[error("codec {codec:?}: expected a length divisible by {width}, found {found}")]
    Width {
        /// The codec.
        codec: &'static str,
        /// Bytes of a word.
        width: usize,
        /// The length.
        found: usize,
    },
    /// Stored raw, but not of the content's length.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// Bytes of the content.
        expected: u64,
        /// Bytes stored or decoded.
        found: u64,
    },
    /// A frame that breaks one of the rules on frames.
    #[error("zstd frame: {what}: expected {expected}, found {found}")]
    Rule {
        /// Which rule.
        what: &'static str,
        /// What it asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// zstd itself fails.
    #[error("zstd: {reason}")]
    Zstd {
        /// What it says.
        reason: String,
    },
}

/// What a known codec does before the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planes {
    /// Nothing.
    None,
    /// Splits words into planes, the most significant byte's first.
    Split(usize),
    /// Rotates each word left by one bit, so that its sign joins the fraction, then splits.
    RotateSplit(usize),
}

fn planes(codec: &Codec) -> Option<Planes> {
    match codec {
        Codec::Raw | Codec::Other(_) => None,
        Codec::Zstd => Some(Planes::None),
        Codec::Planes2Zstd => Some(Planes::Split(2)),
        Codec::Planes4Zstd => Some(Planes::Split(4)),
        Codec::Float2Zstd => Some(Planes::RotateSplit(2)),
        Codec::Float4Zstd => Some(Planes::RotateSplit(4)),
    }
}

/// The stored form of `content`.
///
/// # Errors
/// An unknown codec, or a length that does not suit it.
pub fn store(codec: &Codec, content: &[u8]) -> Result<Vec<u8>, FrameError> {
    if *codec == Codec::Raw {
        return Ok(content.to_vec());
    }
    match planes(codec).ok_or_else(|| unknown(codec))? {
        Planes::None => compress(content),
        Planes::Split(2) => compress(&split::<2>(content, 0)?),
        Planes::RotateSplit(2) => compress(&split::<2>(content, 1)?),
        Planes::Split(_) => compress(&split::<4>(content, 0)?),
        Planes::RotateSplit(_) => compress(&split::<4>(content, 1)?),
    }
}

/// The content of `length` bytes whose stored form is `stored`.
///
/// # Errors
/// Anything that [`FrameError`] names. `length` bytes are allocated, so check it against a cap first.
pub fn load(codec: &Codec, stored: &[u8], length: u64) -> Result<Vec<u8>, FrameError> {
    if *codec == Codec::Raw {
        return match stored.len() as u64 == length {
            true => Ok(stored.to_vec()),
            false => Err(FrameError::Length { expected: length, found: stored.len() as u64 }),
        };
    }
    let planes = planes(codec).ok_or_else(|| unknown(codec))?;
    let bytes = decompress(stored, length)?;
    match planes {
        Planes::None => Ok(bytes),
        Planes::Split(2) => join::<2>(&bytes, 0),
        Planes::RotateSplit(2) => join::<2>(&bytes, 1),
        Planes::Split(_) => join::<4>(&bytes, 0),
        Planes::RotateSplit(_) => join::<4>(&bytes, 1),
    }
}

/// Words of `N` little-endian bytes, rotated left, as `N` planes.
fn split<const N: usize>(content: &[u8], rotate: u32) -> Result<Vec<u8>, FrameError> {
    let words = words::<N>(content)?;
    let mut out = vec![0; content.len()];
    for (plane, byte) in out.chunks_exact_mut(words.len().max(1)).zip((0..N).rev()) {
        for (out, word) in plane.iter_mut().zip(words) {
            *out = rotated(*word, rotate).get(byte).copied().unwrap_or_default();
        }
    }
    Ok(out)
}

/// Undoes [`split`].
fn join<const N: usize>(bytes: &[u8], rotate: u32) -> Result<Vec<u8>, FrameError> {
    let count = words::<N>(bytes)?.len();
    let mut out = vec![[0; N]; count];
    for (plane, byte) in bytes.chunks_exact(count.max(1)).zip((0..N).rev()) {
        for (word, value) in out.iter_mut().zip(plane) {
            word.get_mut(byte).into_iter().for_each(|byte| *byte = *value);
        }
    }
    Ok(out.into_iter().flat_map(|word| rotated(word, 8 * N as u32 - rotate)).collect())
}

fn words<const N: usize>(bytes: &[u8]) -> Result<&[[u8; N]], FrameError> {
    match bytes.as_chunks::<N>() {
        (words, []) => Ok(words),
        _ => {
            let codec = if N == 2 { "planes2 or float2" } else { "planes4 or float4" };
            Err(FrameError::Width { codec, width: N, found: bytes.len() })
        }
    }
}

/// A little-endian word of `N` bytes (2 or 4), rotated left by `count` bits.
fn rotated<const N: usize>(word: [u8; N], count: u32) -> [u8; N] {
    let width = 8 * N as u32;
    let bits = word.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let turned = bits << (count % width) | bits >> ((width - count % width) % width);
    std::array::from_fn(|index| (turned >> (8 * index)) as u8)
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let failed = |error: std::io::Error| FrameError::Zstd { reason: error.to_string() };
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
    compressor.set_parameter(zstd_safe::CParameter::WindowLog(MAX_WINDOW_LOG)).map_err(failed)?;
    let frame = compressor.compress(bytes).map_err(failed)?;
    check_frame(&frame, bytes.len() as u64)?;
    Ok(frame)
}

fn decompress(frame: &[u8], length: u64) -> Result<Vec<u8>, FrameError> {
    check_frame(frame, length)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let written = zstd::bulk::decompress_to_buffer(frame, &mut bytes)
        .map_err(|error| FrameError::Zstd { reason: error.to_string() })?;
    match written as u64 == length {
        true => Ok(bytes),
        false => Err(FrameError::Length { expected: length, found: written as u64 }),
    }
}

/// The rules on frames, from the frame's header and its blocks' sizes, before anything is decompressed.
fn check_frame(frame: &[u8], length: u64) -> Result<(), FrameError> {
    let header = FrameHeader::read(frame)?;
    rule("dictionary", "none", "one", !header.has_dictionary)?;
    let declared = header.content.map_or("no size".to_owned(), |size| size.to_string());
    rule("declared content size", length, declared, header.content == Some(length))?;
    rule("window", format!("at most 2^{MAX_WINDOW_LOG} bytes"), header.window, header.window <= 1 << MAX_WINDOW_LOG)?;
    let size = zstd_safe::find_frame_compressed_size(frame)
        .map_err(|code| FrameError::Zstd { reason: zstd_safe::get_error_name(code).to_owned() })?;
    rule("frames", format!("one of {} bytes", frame.len()), format!("a first of {size} bytes"), size == frame.len())
}

fn rule(what: &'static str, expected: impl ToString, found: impl ToString, holds: bool) -> Result<(), FrameError> {
    match holds {
        true => Ok(()),
        false => Err(FrameError::Rule { what, expected: expected.to_string(), found: found.to_string() }),
    }
}

/// A zstd frame's header (RFC 8878 section 3.1.1.1).
struct FrameHeader {
    content: Option<u64>,
    window: u64,
    has_dictionary: bool,
}

impl FrameHeader {
    fn read(frame: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(frame);
        let short = || FrameError::Rule {
            what: "header",
            expected: "magic, descriptor, window, size".to_owned(),
            found: format!("{} bytes", frame.len()),
        };
        let magic = reader.u32().ok_or_else(short)?;
        rule("magic", format!("{ZSTD_MAGIC:#010x}"), format!("{magic:#010x}"), magic == ZSTD_MAGIC)?;
        let descriptor = reader.u8().ok_or_else(short)?;
        rule("reserved and unused bits", "zero", format!("{descriptor:#04x}"), descriptor & 0x18 == 0)?;
        let single_segment = descriptor & 0x20 != 0;
        let window = if single_segment { 0 } else { window_size(reader.u8().ok_or_else(short)?) };
        reader.sub([0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0)).ok_or_else(short)?;
        let content = match descriptor >> 6 {
            0 if single_segment => reader.u8().map(u64::from).map(Some),
            0 => Some(None),
            1 => reader.u16().map(|size| Some(u64::from(size) + 256)),
            2 => reader.u32().map(|size| Some(u64::from(size))),
            _ => reader.u64().map(Some),
        }
        .ok_or_else(short)?;
        let window = if single_segment { content.unwrap_or(u64::MAX) } else { window };
        Ok(Self { content, window, has_dictionary: descriptor & 3 != 0 })
    }
}

fn window_size(descriptor: u8) -> u64 {
    let base = 1_u64 << (10 + u32::from(descriptor >> 3));
    base + base / 8 * u64::from(descriptor & 7)
}

fn unknown(codec: &Codec) -> FrameError {
    FrameError::Unknown { codec: codec.as_str().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Codec; 6] =
        [Codec::Raw, Codec::Zstd, Codec::Planes2Zstd, Codec::Planes4Zstd, Codec::Float2Zstd, Codec::Float4Zstd];

    proptest! {
        #[test]
        fn storing_then_loading_gives_the_content(words in prop::collection::vec(any::<u32>(), 0..300)) {
            let content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            for codec in CODECS {
                let stored = store(&codec, &content).unwrap();
                prop_assert_eq!(&load(&codec, &stored, content.len() as u64).unwrap(), &content);
                prop_assert!(load(&codec, &stored, content.len() as u64 + 4).is_err());
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), length in 0..300_u64) {
            let framed = [&ZSTD_MAGIC.to_le_bytes()[..], &bytes].concat();
            if let Ok(content) = load(&Codec::Zstd, &framed, length) {
                prop_assert_eq!(content.len() as u64, length);
            }
        }
    }

    #[test]
    fn planes_have_these_bytes() {
        let words = [0x8123_u16, 0x4567].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(split::<2>(&words, 0).unwrap(), [0x81, 0x45, 0x23, 0x67]);
        assert_eq!(split::<2>(&words, 1).unwrap(), [0x02, 0x8a, 0x47, 0xce]);
        let word = 0x8123_4567_u32.to_le_bytes();
        assert_eq!(split::<4>(&word, 0).unwrap(), [0x81, 0x23, 0x45, 0x67]);
        assert_eq!(split::<4>(&word, 1).unwrap(), [0x02, 0x46, 0x8a, 0xcf]);
    }

    #[test]
    fn lengths_must_suit_the_codec() {
        assert!(matches!(store(&Codec::Planes2Zstd, &[0; 3]), Err(FrameError::Width { width: 2, found: 3, .. })));
        let odd = store(&Codec::Zstd, &[0; 6]).unwrap();
        assert!(matches!(load(&Codec::Float4Zstd, &odd, 6), Err(FrameError::Width { width: 4, found: 6, .. })));
        let other = Codec::Other("lz".to_owned());
        assert!(matches!(load(&other, &[], 0), Err(FrameError::Unknown { .. })));
    }

    fn refused(frame: &[u8], length: u64) -> String {
        load(&Codec::Zstd, frame, length).unwrap_err().to_string()
    }

    #[test]
    fn frames_that_are_not_one_plain_frame_are_refused() {
        let frame = store(&Codec::Zstd, &[7; 1000]).unwrap();
        let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &[0; 4]].concat();
        assert!(refused(&[&frame[..], &frame].concat(), 1000).contains("frames: expected one"));
        assert!(refused(&[&frame[..], &skippable].concat(), 1000).contains("frames: expected one"));
        assert!(refused(&[&skippable[..], &frame].concat(), 1000).contains("magic"));
        assert!(refused(&[&frame[..], &[0]].concat(), 1000).contains("frames: expected one"));
        for length in 0..frame.len() {
            assert!(load(&Codec::Zstd, &frame[..length], 1000).is_err(), "{length}");
        }
    }

    #[test]
    fn a_frame_must_declare_the_expected_size() {
        let frame = store(&Codec::Zstd, &[7; 1000]).unwrap();
        assert!(refused(&frame, 999).contains("declared content size: expected 999, found 1000"));
        let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
        compressor.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let silent = compressor.compress(&[7; 1000]).unwrap();
        assert!(refused(&silent, 1000).contains("found no size"));
    }

    /// A few kilobytes that claim, and would give, a gigabyte: refused by the header, nothing allocated for them.
    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_pledged_src_size(Some(1 << 28)).unwrap();
        encoder.include_contentsize(true).unwrap();
        encoder.window_log(27).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 1 << 28), &mut encoder).unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 1 << 16);
        assert!(refused(&bomb, 1000).contains("declared content size: expected 1000, found 268435456"));
        assert!(refused(&bomb, 1 << 28).contains("window: expected at most 2^23 bytes, found 134217728"));
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_refused() {
        let mut frame = store(&Codec::Zstd, &[7; 1000]).unwrap();
        // Two-byte size field, 256 less than the size; after magic and descriptor.
        assert_eq!(frame[4] >> 6, 1);
        frame[5..7].copy_from_slice(&(900_u16 - 256).to_le_bytes());
        assert!(load(&Codec::Zstd, &frame, 900).is_err());
        frame[5..7].copy_from_slice(&(1100_u16 - 256).to_le_bytes());
        assert!(load(&Codec::Zstd, &frame, 1100).is_err());
    }

    #[test]
    fn content_beyond_the_window_stays_within_it() {
        let content: Vec<u8> = (0..(9_u32 << 20)).map(|index| (index >> 12) as u8).collect();
        let stored = store(&Codec::Zstd, &content).unwrap();
        assert_eq!(load(&Codec::Zstd, &stored, content.len() as u64).unwrap(), content);
    }

    #[test]
    fn window_descriptors_are_those_of_the_rfc() {
        assert_eq!(window_size(0), 1 << 10);
        assert_eq!(window_size(13 << 3), 1 << 23);
        assert_eq!(window_size((13 << 3) | 1), (1 << 23) + (1 << 20));
    }
}
