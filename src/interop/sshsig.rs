//! OpenSSH signatures of whole files (`PROTOCOL.sshsig`) and the `allowed_signers` line that goes with them.

use sha2::{Digest as _, Sha512};

use super::{base64, short_id};
use crate::trust::{ForeignMessage, KeyError, PublicKey, SecretKey};

/// What `ssh-keygen -Y verify -n` is to be told.
pub const NAMESPACE: &str = "nestpatch";
/// Digits a line of armor, as ssh-keygen has it.
const LINE: usize = 70;

/// The text of a `.sig` file for a patch file: SHA-512, then Ed25519, under [`NAMESPACE`].
///
/// # Errors
/// As [`SecretKey::public`].
pub fn signature(file: &[u8], key: &SecretKey) -> Result<String, KeyError> {
    let digest: [u8; 64] = Sha512::digest(file).into();
    let signature = key.sign_foreign(&ForeignMessage::Sshsig { namespace: NAMESPACE, digest: &digest });
    let version = 1_u32.to_be_bytes();
    let signature = [string(b"ssh-ed25519"), string(&signature)].concat();
    let fields = [&public_blob(&key.public()?), NAMESPACE.as_bytes(), b"", b"sha512", &signature].map(string).concat();
    let digits = base64(&[b"SSHSIG".as_slice(), &version, &fields].concat());
    let mut text = String::from("-----BEGIN SSH SIGNATURE-----\n");
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && index.is_multiple_of(LINE) {
            text.push('\n');
        }
        text.push(digit);
    }
    Ok(text + "\n-----END SSH SIGNATURE-----\n")
}

/// A line of an `allowed_signers` file: good for [`NAMESPACE`] only. The principal, which the reader may change, is the
/// beginning of the key id.
pub fn allowed_signers(key: &PublicKey) -> String {
    format!("{} namespaces=\"{NAMESPACE}\" ssh-ed25519 {}\n", short_id(key.id()), base64(&public_blob(key)))
}

fn public_blob(key: &PublicKey) -> Vec<u8> {
    [string(b"ssh-ed25519"), string(&key.to_bytes())].concat()
}

/// RFC 4251 section 5: a length and the bytes. Nothing here is longer than a key or signature.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::testing::{TINY, key};

    /// What `ssh-keygen -Y sign -n nestpatch` (OpenSSH 9.2) writes for the same file and key.
    #[test]
    fn ssh_keygen_writes_the_same_bytes() {
        let expected = "-----BEGIN SSH SIGNATURE-----\n\
            U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgiojj3XQJ8ZX9UtstPLpdcspnCb\n\
            8dlBIb83SIAbQPb1wAAAAJbmVzdHBhdGNoAAAAAAAAAAZzaGE1MTIAAABTAAAAC3NzaC1l\n\
            ZDI1NTE5AAAAQPosVXz39aRDhEjMGKXIxmfWAQ0uQm7mlK+t+cuG9tTGhYeGXqwYr56R79\n\
            nDnnopzChwKTNHdORU2O+3UDBQhwE=\n\
            -----END SSH SIGNATURE-----\n";
        assert_eq!(signature(TINY, &key(1)).unwrap(), expected);
    }

    #[test]
    fn the_line_holds_the_key() {
        let public = key(1).public().unwrap();
        let line = allowed_signers(&public);
        let expected = "fd110d301d2f077d namespaces=\"nestpatch\" \
            ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c\n";
        assert_eq!(line, expected);
        assert_eq!(PublicKey::parse(line.split_once("\" ").unwrap().1), Ok(public));
    }
}
