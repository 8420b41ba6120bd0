//! The container: a 64-byte header, manifest bytes, signature records, payload bytes. Structure only.
//!
//! Nothing here says that the bytes are trustworthy. `spec/format.md`, *Container*, has the layout.

use crate::digest::Sha256;
use crate::format::limits::{
    MAX_MANIFEST_BYTES, MAX_PAYLOAD_BYTES, MAX_SIGNATURE_BYTES, MAX_SIGNATURES, MAX_SIGNATURES_BYTES,
};
use crate::format::manifest::{FormatVersion, Manifest, ManifestError};
use crate::format::reader::Reader;

/// The first eight bytes: a high bit against 7-bit channels, the name, and line ends that text tools would change.
pub const MAGIC: [u8; 8] = *b"\x8eNST\r\n\x1a\n";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// DSSE payload type of the manifest.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Why bytes are not a patch container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// Another kind of file.
    #[error("not a patch file: expected the first bytes {MAGIC:02x?}, found {found:02x?}")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version that this reader must not guess at.
    #[error("{what}: expected {expected}, found {found}: a newer nestpatch may read it")]
    Version {
        /// `format_major` or `min_reader_minor`.
        what: &'static str,
        /// What this reader knows.
        expected: String,
        /// What the file asks for.
        found: u16,
    },
    /// Bytes that must be zero in this version.
    #[error("{what}: expected zero, found other bytes")]
    NotZero {
        /// Which field.
        what: &'static str,
    },
    /// A part over its cap.
    #[error("{what}: expected at most {limit}, found {found}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The cap.
        limit: u64,
        /// What the file says.
        found: u64,
    },
    /// The file ends early or goes on.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Length {
        /// Which part.
        what: &'static str,
        /// What the header or record says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Signature records out of order or twice.
    #[error("signature record {index}: expected records by strictly ascending key id, found {found} after {before}")]
    Order {
        /// Zero-based.
        index: usize,
        /// Key id before.
        before: Sha256,
        /// Key id that does not come after it.
        found: Sha256,
    },
    /// The manifest contradicts the header.
    #[error("manifest and header disagree on {what}: the manifest (signed) says {manifest}, the header {header}")]
    Contradiction {
        /// Which member.
        what: &'static str,
        /// The manifest's.
        manifest: String,
        /// The header's.
        header: String,
    },
}

/// The header: versions and the lengths of the three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Versions; the manifest repeats them under the signature.
    pub version: FormatVersion,
    /// Bytes of the manifest.
    pub manifest: u64,
    /// Bytes of the signature records.
    pub signatures: u64,
    /// Bytes of the payload.
    pub payload: u64,
}

impl Header {
    /// The header, whether its flags are zero, and whether its reserved bytes are.
    fn read(reader: &mut Reader<'_>) -> Option<(Self, bool, bool)> {
        reader.take_array::<8>().filter(|magic| *magic == MAGIC)?;
        let (major, min_reader_minor, writer_minor) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let no_flags = reader.u16()? == 0;
        let (manifest, signatures, payload) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let version = FormatVersion { major, min_reader_minor, writer_minor };
        Some((Self { version, manifest, signatures, payload }, no_flags, reader.take_array()? == [0; 24]))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC);
        let FormatVersion { major, min_reader_minor, writer_minor } = self.version;
        [major, min_reader_minor, writer_minor, 0].iter().for_each(|field| out.extend(field.to_le_bytes()));
        [self.manifest, self.signatures, self.payload].iter().for_each(|length| out.extend(length.to_le_bytes()));
        out.extend([0; 24]);
    }

    fn check(&self) -> Result<(), ContainerError> {
        let FormatVersion { major, writer_minor, .. } = FormatVersion::CURRENT;
        let version = |what, expected, found| Err(ContainerError::Version { what, expected, found });
        if self.version.major != major {
            return version("format_major", major.to_string(), self.version.major);
        }
        if !self.version.is_readable() {
            return version("min_reader_minor", format!("at most {writer_minor}"), self.version.min_reader_minor);
        }
        for (what, limit, found) in [
            ("manifest bytes", MAX_MANIFEST_BYTES, self.manifest),
            ("signature bytes", MAX_SIGNATURES_BYTES, self.signatures),
            ("payload bytes", MAX_PAYLOAD_BYTES, self.payload),
        ] {
            if found > limit {
                return Err(ContainerError::TooLarge { what, limit, found });
            }
        }
        Ok(())
    }
}

/// A signature over the manifest's [`signing_input`], as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureRecord {
    /// SHA-256 of the public key's SubjectPublicKeyInfo: a lookup hint, never a decision.
    pub key_id: Sha256,
    /// How the signature is made: [`SignatureRecord::ED25519`], or one that this version does not know.
    pub algorithm: u16,
    /// The signature; 64 bytes for Ed25519.
    pub signature: Vec<u8>,
}

impl SignatureRecord {
    /// Ed25519 (RFC 8032, pure) over the DSSE pre-authentication encoding.
    pub const ED25519: u16 = 1;

    fn read(reader: &mut Reader<'_>) -> Option<(Self, u16)> {
        let (algorithm, reserved, length) = (reader.u16()?, reader.u16()?, reader.u32()?);
        let key_id = Sha256::from_bytes(reader.take_array()?);
        let length = Some(length).filter(|length| *length as usize <= MAX_SIGNATURE_BYTES)?;
        let signature = reader.sub(length.into())?.to_vec();
        Some((Self { key_id, algorithm, signature }, reserved))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.algorithm.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend((self.signature.len() as u32).to_le_bytes());
        out.extend(self.key_id.as_bytes());
        out.extend(&self.signature);
    }
}

/// A patch file taken apart.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    header: Header,
    manifest: &'a [u8],
    signatures: Vec<SignatureRecord>,
    payload: &'a [u8],
}

impl<'a> Container<'a> {
    /// Takes a whole file apart, checking everything that the header and the records alone decide.
    ///
    /// # Errors
    /// The first rule broken, in the order of the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ContainerError> {
        let found = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if found != MAGIC {
            return Err(ContainerError::Magic { found: found.to_vec() });
        }
        let mut reader = Reader::new(bytes);
        let length = |what, expected, found: usize| ContainerError::Length { what, expected, found: found as u64 };
        let short = || length("header", HEADER_BYTES as u64, bytes.len());
        let (header, no_flags, none_reserved) = Header::read(&mut reader).ok_or_else(short)?;
        header.check()?;
        for (what, zero) in [("header flags", no_flags), ("reserved header bytes", none_reserved)] {
            if !zero {
                return Err(ContainerError::NotZero { what });
            }
        }
        let expected = HEADER_BYTES as u64 + header.manifest + header.signatures + header.payload;
        let file = || length("file", expected, bytes.len());
        let manifest = reader.sub(header.manifest).ok_or_else(file)?;
        let records = reader.sub(header.signatures).ok_or_else(file)?;
        let payload = reader.sub(header.payload).ok_or_else(file)?;
        if !reader.is_empty() {
            return Err(file());
        }
        Ok(Self { header, manifest, signatures: read_records(records)?, payload })
    }

    /// Puts a file together.
    ///
    /// # Errors
    /// A part over its cap, or two records of one key.
    pub fn write(
        manifest: &[u8],
        signatures: &[SignatureRecord],
        payload: &[u8],
        version: FormatVersion,
    ) -> Result<Vec<u8>, ContainerError> {
        let mut records = Vec::new();
        let mut sorted: Vec<_> = signatures.iter().collect();
        sorted.sort_by_key(|record| record.key_id);
        sorted.into_iter().for_each(|record| record.write(&mut records));
        read_records(&records)?;
        let (signatures, lengths) = (records.len() as u64, (manifest.len() as u64, payload.len() as u64));
        let header = Header { version, manifest: lengths.0, signatures, payload: lengths.1 };
        header.check()?;
        let mut out = Vec::with_capacity(HEADER_BYTES + manifest.len() + records.len() + payload.len());
        header.write(&mut out);
        [manifest, &records, payload].iter().for_each(|part| out.extend(*part));
        Ok(out)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The manifest's bytes: what is signed.
    pub fn manifest(&self) -> &'a [u8] {
        self.manifest
    }

    /// The signature records, by ascending key id.
    pub fn signatures(&self) -> &[SignatureRecord] {
        &self.signatures
    }

    /// The payload's bytes.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The patch's name for machines: SHA-256 of the manifest's bytes, whatever the signatures.
    pub fn patch_id(&self) -> Sha256 {
        patch_id(self.manifest)
    }

    /// What signatures are made over.
    pub fn signing_input(&self) -> Vec<u8> {
        signing_input(self.manifest)
    }

    /// The manifest read, and agreeing with the header; trust is another matter.
    ///
    /// # Errors
    /// Anything that [`Manifest::parse`] refuses, or a contradiction.
    pub fn read_manifest(&self) -> Result<Manifest, ReadError> {
        let manifest = Manifest::parse(self.manifest)?;
        let contradiction = |what, manifest: String, header: String| {
            Err(ReadError::Container(ContainerError::Contradiction { what, manifest, header }))
        };
        if manifest.format != self.header.version {
            return contradiction("format", format!("{:?}", manifest.format), format!("{:?}", self.header.version));
        }
        // At most 64 sections of at most 1 GiB each: the sum cannot overflow.
        let stored: u64 = manifest.sections.iter().map(|entry| entry.stored.length).sum();
        if stored != self.header.payload {
            return contradiction("the payload's length", stored.to_string(), self.header.payload.to_string());
        }
        Ok(manifest)
    }

    /// The same file with one more signature, in the place of one by the same key; the manifest and payload stay as they
    /// are.
    ///
    /// # Errors
    /// Too many records.
    pub fn with_signature(&self, record: SignatureRecord) -> Result<Vec<u8>, ContainerError> {
        let others = self.signatures.iter().filter(|other| other.key_id != record.key_id);
        let signatures: Vec<_> = others.cloned().chain([record.clone()]).collect();
        Self::write(self.manifest, &signatures, self.payload, self.header.version)
    }
}

/// Why a container's manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The manifest itself.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The header against it.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

/// SHA-256 of manifest bytes.
pub fn patch_id(manifest: &[u8]) -> Sha256 {
    Sha256::of(manifest)
}

/// DSSE v1 pre-authentication encoding of manifest bytes: what signatures are made over.
pub fn signing_input(manifest: &[u8]) -> Vec<u8> {
    pre_authentication_encoding(PAYLOAD_TYPE, manifest)
}

/// `DSSEv1 SP LEN(type) SP type SP LEN(body) SP body`, lengths in decimal (DSSE protocol, version 1.0).
pub fn pre_authentication_encoding(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len()).into_bytes();
    out.extend(body);
    out
}

fn read_records(bytes: &[u8]) -> Result<Vec<SignatureRecord>, ContainerError> {
    let mut reader = Reader::new(bytes);
    let mut records: Vec<SignatureRecord> = Vec::new();
    while !reader.is_empty() {
        let left = reader.clone().rest().len() as u64;
        let short = ContainerError::Length { what: "signature record", expected: 40 + 64, found: left };
        let (record, reserved) = SignatureRecord::read(&mut reader).ok_or(short)?;
        if reserved != 0 {
            return Err(ContainerError::NotZero { what: "reserved bytes of a signature record" });
        }
        if record.algorithm == SignatureRecord::ED25519 && record.signature.len() != 64 {
            let found = record.signature.len() as u64;
            return Err(ContainerError::Length { what: "Ed25519 signature", expected: 64, found });
        }
        if let Some(before) = records.last().map(|before| before.key_id).filter(|before| *before >= record.key_id) {
            return Err(ContainerError::Order { index: records.len(), before, found: record.key_id });
        }
        records.push(record);
        if records.len() > MAX_SIGNATURES {
            let (limit, found) = (MAX_SIGNATURES as u64, records.len() as u64);
            return Err(ContainerError::TooLarge { what: "signatures", limit, found });
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u8) -> SignatureRecord {
        let key_id = Sha256::from_bytes([key; 32]);
        SignatureRecord { key_id, algorithm: SignatureRecord::ED25519, signature: vec![key; 64] }
    }

    fn file() -> Vec<u8> {
        Container::write(b"{}", &[record(2), record(1)], b"xyz", FormatVersion::CURRENT).unwrap()
    }

    #[test]
    fn golden_bytes() {
        let file = file();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let header = "8e4e53540d0a1a0a0100000000000000\
                      0200000000000000d00000000000000003000000000000000000000000000000\
                      00000000000000000000000000000000";
        assert_eq!(hex(&file[..64]), header);
        assert_eq!(&file[64..66], b"{}");
        let record = format!("0100000040000000{}{}", "01".repeat(32), "01".repeat(64));
        assert_eq!(hex(&file[66..66 + 104]), record);
        assert_eq!(&file[66 + 208..], b"xyz");
    }

    #[test]
    fn what_is_written_reads_back() {
        let file = file();
        let container = Container::parse(&file).unwrap();
        assert_eq!(container.manifest(), b"{}");
        assert_eq!(container.payload(), b"xyz");
        assert_eq!(container.signatures(), [record(1), record(2)]);
        assert_eq!(container.patch_id(), Sha256::of(b"{}"));
        let more = container.with_signature(record(3)).unwrap();
        let more = Container::parse(&more).unwrap();
        assert_eq!((more.signatures().len(), more.patch_id()), (3, container.patch_id()));
        let again = container.with_signature(record(1)).unwrap();
        assert_eq!(again, file, "a key signs once");
    }

    #[test]
    fn the_signing_input_is_that_of_dsse() {
        // The example of the DSSE protocol document.
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn no_length_but_the_right_one() {
        let file = file();
        for length in 0..file.len() {
            assert!(Container::parse(&file[..length]).is_err(), "{length}");
        }
        assert!(Container::parse(&[&file[..], b"!"].concat()).is_err());
    }

    #[test]
    fn each_header_rule_refuses() {
        let refused = |offset: usize, value: u8| {
            let mut file = file();
            file[offset] = value;
            Container::parse(&file).unwrap_err().to_string()
        };
        let cases = [
            (0, 0, "not a patch file"),
            (8, 2, "format_major: expected 1, found 2"),
            (10, 1, "min_reader_minor: expected at most 0, found 1"),
            (14, 1, "header flags: expected zero"),
            (23, 1, "manifest bytes: expected at most"),
            (31, 1, "signature bytes: expected at most"),
            (39, 1, "payload bytes: expected at most"),
            (40, 1, "reserved header bytes: expected zero"),
            (63, 1, "reserved header bytes: expected zero"),
            (66 + 2, 1, "reserved bytes of a signature record"),
            (66 + 4, 63, "Ed25519 signature: expected 64 bytes, found 63"),
            (66 + 8, 3, "strictly ascending key id"),
        ];
        for (offset, value, message) in cases {
            let found = refused(offset, value);
            assert!(found.contains(message), "byte {offset}: {found}");
        }
    }

    #[test]
    fn unknown_algorithms_are_kept_and_counts_are_capped() {
        let unknown = SignatureRecord { algorithm: 7, signature: vec![9; 3_309], ..record(9) };
        let write = |records: &[SignatureRecord]| Container::write(b"{}", records, b"", FormatVersion::CURRENT);
        let file = write(std::slice::from_ref(&unknown)).unwrap();
        assert_eq!(Container::parse(&file).unwrap().signatures(), [unknown]);
        let records: Vec<_> = (0..=MAX_SIGNATURES as u8).map(record).collect();
        assert!(write(&records[1..]).is_ok());
        assert!(write(&records).is_err());
    }
}
