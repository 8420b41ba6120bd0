//! minisign (jedisct1/minisign): signatures of whole files, prehashed, and the public key that goes with them.

use blake2::{Blake2b512, Digest as _};

use super::{base64, short_id};
use crate::digest::Sha256;
use crate::trust::{ForeignMessage, KeyError, PublicKey, SecretKey};

/// The text of a `.minisig` file for a patch file: BLAKE2b-512, then Ed25519; the trusted comment names the patch.
///
/// # Errors
/// As [`SecretKey::public`].
pub fn signature(file: &[u8], patch_id: Sha256, key: &SecretKey) -> Result<String, KeyError> {
    let id = key.public()?.id();
    let signature = key.sign_foreign(&ForeignMessage::Minisign(&Blake2b512::digest(file).into()));
    let comment = format!("nestpatch patch_id:{patch_id}");
    let global = key.sign_foreign(&ForeignMessage::MinisignComment { signature: &signature, comment: &comment });
    let line = base64(&[b"ED".as_slice(), &key_number(id), &signature].concat());
    Ok(format!(
        "untrusted comment: signature of nestpatch key {}\n{line}\ntrusted comment: {comment}\n{}\n",
        short_id(id),
        base64(&global)
    ))
}

/// The text of a minisign public key file.
pub fn public_key(key: &PublicKey) -> String {
    let line = base64(&[b"Ed".as_slice(), &key_number(key.id()), &key.to_bytes()].concat());
    format!("untrusted comment: minisign public key {}\n{line}\n", short_id(key.id()).to_uppercase())
}

/// minisign draws eight random bytes and shows them backwards; these make it show the beginning of the key id.
fn key_number(id: Sha256) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    [h, g, f, e, d, c, b, a]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Container;
    use crate::interop::testing::{TINY, key};

    /// What `minisign -S` 0.11 writes for the same file, key, key number and comments.
    #[test]
    fn minisign_writes_the_same_bytes() {
        let expected = "untrusted comment: signature of nestpatch key fd110d301d2f077d\n\
            RUR9By8dMA0R/QRFpD2TEEmPZeQ4CuzA/LN854FYYQVtDGwZ8jqOqvWL+0T6rq8CFYtM39LpBSiZ1am1YxbLM8JZJCT6RkG8OQ0=\n\
            trusted comment: nestpatch patch_id:5043addb15ff4409cace191733cdae2d5f8c94c50d2dffa632c893092d3b5e16\n\
            Bhxs941A3qYpdzp4mFyYmLB9MMmhCe6Z3xsRVbCUdKnzE+iB5PlfTAY1A/Up8r2sDEu0huAwNf+L81GbtTz2Cg==\n";
        let patch_id = Container::parse(TINY).unwrap().patch_id();
        assert_eq!(signature(TINY, patch_id, &key(1)).unwrap(), expected);
    }

    #[test]
    fn public_keys_come_back() {
        let public = key(1).public().unwrap();
        let expected = "untrusted comment: minisign public key FD110D301D2F077D\n\
                        RWR9By8dMA0R/YqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c\n";
        assert_eq!(public_key(&public), expected);
        assert_eq!(PublicKey::parse(expected), Ok(public));
    }
}
