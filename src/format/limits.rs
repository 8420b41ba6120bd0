//! Every cap on what a file may claim. Checked before anything is allocated; exceeding one is an error, never a cut.

/// Bytes of the manifest. 12,288 expert tensors (128 experts x 48 layers x gate and up) need about 7 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 32 << 20;
/// Nesting of the manifest's JSON. The deepest value this version writes is 6 levels down.
pub const MAX_JSON_DEPTH: usize = 16;
/// Members of one JSON object and elements of one JSON array, so that a reader can stop early.
pub const MAX_JSON_MEMBERS: usize = 1 << 16;
/// Largest magnitude of a JSON integer, exclusive: every JSON reader holds these exactly (2^53, RFC 8259 section 6).
pub const MAX_JSON_INTEGER: u64 = 1 << 53;
/// Bytes of the `creation` object once written: room for prompt-set digests, tuning curves, per-site scores.
pub const MAX_CREATION_BYTES: usize = 4 << 20;
/// Bytes of a name, series, tool or label in the manifest: a line that fits on a screen.
pub const MAX_LABEL_BYTES: usize = 200;
/// Rules that one patch may require.
pub const MAX_REQUIRES: usize = 64;
/// Patches that one patch may supersede.
pub const MAX_SUPERSEDES: usize = 64;
/// Configuration keys that fix the architecture.
pub const MAX_CONFIG_KEYS: usize = 256;
/// Bytes of one configuration value as text (long-context rope factors are the largest, about 2 KiB).
pub const MAX_CONFIG_VALUE_BYTES: usize = 16 << 10;

/// Signatures on one patch. Thresholds in practice stay under ten.
pub const MAX_SIGNATURES: usize = 64;
/// Bytes of one signature: 64 for Ed25519; the largest standardised post-quantum one (SLH-DSA-256f) takes 49,856.
pub const MAX_SIGNATURE_BYTES: usize = 50_000;
/// Bytes of the signature block: the most signatures at their largest, with their 40-byte record heads.
pub const MAX_SIGNATURES_BYTES: u64 = (MAX_SIGNATURES * (MAX_SIGNATURE_BYTES + 40)) as u64;

/// Sections in one payload.
pub const MAX_SECTIONS: usize = 64;
/// Bytes of one section, decompressed or stored. A delta for each of 100,000 rows of 4,096 bf16 takes 0.8 GiB.
pub const MAX_SECTION_BYTES: u64 = 1 << 30;
/// Bytes of the payload.
pub const MAX_PAYLOAD_BYTES: u64 = 2 << 30;
/// Bytes of the `rows` section: 8 bytes a row and a tensor table.
pub const MAX_ROWS_SECTION_BYTES: usize = 160 << 20;
/// Bytes that a section of a patch nobody vouches for may decode to, however few are stored ...
pub const MAX_UNVERIFIED_BYTES: u64 = 8 << 20;
/// ... and how many for each stored byte beyond that. Trained deltas decode to twice their bytes, rows to six times,
/// a sketch to hardly more than is stored.
pub const MAX_UNVERIFIED_RATIO: u64 = 128;
/// Base-2 logarithm of the largest zstd window: 8 MiB, what every decoder must support (RFC 8878 section 3.1.1.1.2).
pub const MAX_WINDOW_LOG: u32 = 23;

/// Tensors that one patch may edit. 128 experts x 48 layers x 2 projections = 12,288.
pub const MAX_EDITS: usize = 32_768;
/// Rows that one patch may edit, over all tensors.
pub const MAX_ROWS: usize = 1 << 24;
/// Elements of one row: the widest feed-forward inputs in use are under 2^16.
pub const MAX_COLS: usize = 1 << 20;
/// Millionths of a tolerance: at 1, rows of zeros would be near enough.
pub const MAX_TOLERANCE: u32 = 1_000_000;

/// Bytes of a DSSE envelope in JSON: a full status feed is about 17 MiB in Base64.
pub const MAX_ENVELOPE_BYTES: usize = 24 << 20;
/// Entries of a status feed.
pub const MAX_FEED_ENTRIES: usize = 1 << 14;
/// Bytes of the reason in a status feed's entry.
pub const MAX_REASON_BYTES: usize = 500;
