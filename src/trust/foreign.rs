//! What a key signs in the formats of other programs, and why no such signature passes for one of ours.
//!
//! One Ed25519 key signs three kinds of messages, so no message of one kind may be a message of another. Ours is the
//! DSSE encoding of an in-toto Statement: it begins with `DSSEv1 28 application/vnd.in-toto+json `.

use crate::trust::SecretKey;

/// A message of another program. The only bytes besides Statements that a [`SecretKey`] signs.
pub(crate) enum ForeignMessage<'a> {
    /// minisign, prehashed: the BLAKE2b-512 of a file. 64 bytes of a hash: none is known that begins with the 39 bytes of
    /// a DSSE encoding, and a Statement does not fit into the 25 that would be left.
    Minisign(&'a [u8; 64]),
    /// minisign's second signature: the first, then the comment. It begins with an Ed25519 point that whoever chooses the
    /// file cannot steer to the 32 letters that a DSSE encoding begins with.
    MinisignComment {
        /// The first signature.
        signature: &'a [u8; 64],
        /// The trusted comment.
        comment: &'a str,
    },
    /// OpenSSH (`PROTOCOL.sshsig`): begins with `SSHSIG`, which neither DSSE nor a login of SSH (a length) does.
    Sshsig {
        /// What the signature is for.
        namespace: &'a str,
        /// The SHA-512 of the file.
        digest: &'a [u8; 64],
    },
}

impl ForeignMessage<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Minisign(digest) => digest.to_vec(),
            Self::MinisignComment { signature, comment } => [signature.as_slice(), comment.as_bytes()].concat(),
            Self::Sshsig { namespace, digest } => {
                let mut out = b"SSHSIG".to_vec();
                for part in [namespace.as_bytes(), b"", b"sha512", digest.as_slice()] {
                    // Constant names and a digest: far below 2^32.
                    out.extend((part.len() as u32).to_be_bytes());
                    out.extend(part);
                }
                out
            }
        }
    }
}

impl SecretKey {
    /// Signs a message of another program: pure Ed25519, as all of them do.
    pub(crate) fn sign_foreign(&self, message: &ForeignMessage<'_>) -> [u8; 64] {
        self.sign_bytes(&message.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::container::signing_input;

    #[test]
    fn foreign_messages_are_no_statements() {
        let ours = signing_input(b"{}");
        let digest = [b'D'; 64];
        let comment = String::from_utf8(ours.clone()).unwrap();
        for message in [
            ForeignMessage::Minisign(&digest),
            ForeignMessage::MinisignComment { signature: &digest, comment: &comment },
            ForeignMessage::Sshsig { namespace: &comment, digest: &digest },
        ] {
            assert!(!message.to_bytes().starts_with(b"DSSEv1 "));
            let key = SecretKey::from_seed(&[7; 32]);
            let signature = key.sign_foreign(&message);
            let public = key.public().unwrap();
            assert!(public.verifies(&message.to_bytes(), &signature) && !public.verifies(&ours, &signature));
        }
    }

    #[test]
    fn sshsig_bytes() {
        let bytes = ForeignMessage::Sshsig { namespace: "nestpatch", digest: &[9; 64] }.to_bytes();
        let head = b"SSHSIG\0\0\0\x09nestpatch\0\0\0\0\0\0\0\x06sha512\0\0\0\x40";
        assert_eq!(bytes, [&head[..], &[9; 64]].concat());
    }
}
