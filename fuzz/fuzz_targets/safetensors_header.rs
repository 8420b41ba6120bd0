//! Any bytes as a safetensors header: what our reader accepts, the `safetensors` crate accepts too.
//!
//! The first two bytes are the length of the data behind the header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::checkpoint::header;
use safetensors::SafeTensors;

fuzz_target!(|bytes: &[u8]| {
    let Some((length, header)) = bytes.split_at_checked(2) else { return };
    let data = usize::from(length[0]) << 8 | usize::from(length[1]);
    let Ok(entries) = header::parse(header, data as u64) else { return };
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + data, 0);
    let peer = SafeTensors::deserialize(&file).expect("the peer reads what we read");
    assert_eq!(peer.len(), entries.len());
});
