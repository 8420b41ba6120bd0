//! Ed25519 keys: PKCS#8 and SubjectPublicKeyInfo in PEM, strict verification, no weak keys.
//!
//! [`super::import`] reads the public keys of other programs.

use std::fmt;

use ed25519_dalek::pkcs8::{EncodePrivateKey, EncodePublicKey, KeypairBytes, PublicKeyBytes};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use pkcs8::der::pem::{LineEnding, PemLabel};
use pkcs8::der::{Decode as _, SecretDocument};
use pkcs8::pkcs5::{EncryptionScheme, pbes2, scrypt};
use pkcs8::spki::DecodePublicKey as _;
use pkcs8::{DecodePrivateKey as _, EncryptedPrivateKeyInfoOwned, EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use zeroize::Zeroizing;

use crate::digest::Sha256;
use crate::format::SignatureRecord;
use crate::format::container::{PAYLOAD_TYPE, pre_authentication_encoding};
use crate::trust::import;

/// scrypt's cost: 2^14 blocks of 1 KiB, five times over. 16 MiB, which OpenSSL also allows, and about 0.3 s.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);
/// The most bytes that a key file may make scrypt hold, 128 r (N + p) ...
const MAX_SCRYPT_MEMORY: u64 = 1 << 28;
/// ... how often over (p), so that it takes seconds at most ...
const MAX_SCRYPT_PASSES: u64 = 16;
/// ... and how long PBKDF2 may take.
const MAX_PBKDF2_ITERATIONS: u64 = 10_000_000;
/// Bytes of the longest key text accepted. An encrypted Ed25519 key takes about 400.
pub(crate) const MAX_KEY_TEXT_BYTES: usize = 16 << 10;

/// Why a text is not a usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PEM, or PEM of something else.
    #[error("{what}: expected {expected}, found {found}")]
    Format {
        /// `public key`, `private key`, or `key` where it could be either.
        what: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What the decoder says.
        found: String,
    },
    /// A point of small order: anybody can sign for it.
    #[error("public key: expected a key of full order, found a weak one (small order), for which anybody can sign")]
    Weak,
    /// A second encoding of a point.
    #[error("public key: expected the canonical encoding of its point, found another")]
    NotCanonical,
    /// An encrypted key, and no passphrase.
    #[error("private key: it is encrypted: expected a passphrase, found none")]
    Encrypted,
    /// A wrong passphrase.
    #[error("private key: the passphrase is wrong, or the file is damaged")]
    Passphrase,
    /// An empty passphrase for a new key.
    #[error("private key: expected a passphrase of at least one character, found none")]
    EmptyPassphrase,
    /// A key file that asks for more work than a passphrase is worth.
    #[error("private key: {what}: expected at most {limit}, found {found}")]
    Cost {
        /// Which parameter.
        what: &'static str,
        /// The cap.
        limit: u64,
        /// What the file asks for.
        found: u64,
    },
    /// No randomness from the system.
    #[error("the system gives no random bytes: {reason}")]
    Random {
        /// What it says.
        reason: String,
    },
}

/// A public key that may be trusted: canonical, of full order.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    id: Sha256,
}

impl PublicKey {
    /// Takes the 32 bytes of RFC 8032.
    ///
    /// # Errors
    /// Not a point, not its canonical encoding, or a point of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|error| format_error(error.to_string()))?;
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(KeyError::NotCanonical);
        }
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        let spki = key.to_public_key_der().map_err(|error| format_error(error.to_string()))?;
        Ok(Self { key, id: Sha256::of(spki.as_bytes()) })
    }

    /// Reads a SubjectPublicKeyInfo in PEM or its Base64 body on one line, an OpenSSH `ssh-ed25519` line, or a minisign
    /// public key with or without its comment.
    ///
    /// # Errors
    /// Anything else, named where it is known; also a key that is weak or not canonical.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_KEY_TEXT_BYTES {
            return Err(format_error(format!("{} bytes", text.len())));
        }
        let text = text.trim();
        if let Some(bytes) = import::public_key(text).map_err(format_error)? {
            return Self::from_bytes(&bytes);
        }
        let wrapped;
        let pem = if text.starts_with("-----") {
            text
        } else {
            wrapped = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
            &wrapped
        };
        let bytes = PublicKeyBytes::from_public_key_pem(pem).map_err(|error| format_error(error.to_string()))?;
        Self::from_bytes(&bytes.to_bytes())
    }

    /// SubjectPublicKeyInfo in PEM.
    pub fn to_pem(&self) -> String {
        // Encoding 44 fixed bytes cannot fail; if it did, an empty text would parse as no key.
        self.key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
    }

    /// The Base64 body of the PEM: the key on one line.
    pub fn to_line(&self) -> String {
        self.to_pem().lines().filter(|line| !line.starts_with('-')).collect()
    }

    /// SHA-256 of the SubjectPublicKeyInfo: the name by which signature records refer to it.
    pub fn id(&self) -> Sha256 {
        self.id
    }

    /// The 32 bytes of RFC 8032.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Whether `signature` is this key's Ed25519 signature (RFC 8032, pure) of `message`, by the strict rules of
    /// `spec/format.md`, section 3: 64 bytes, S reduced, R canonical and not of small order, the equation without cofactor.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = Signature::from_slice(signature);
        signature.is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id.short())
    }
}

/// A private key; wiped from memory when dropped.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        random(seed.as_mut_slice())?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed (RFC 8032 section 5.1.5). For test keys, and for keys made elsewhere.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 in PEM. `passphrase` is asked for only if the key is encrypted.
    ///
    /// # Errors
    /// Not a key, no or a wrong passphrase, a cost over the caps.
    pub fn parse(pem: &str, passphrase: impl FnOnce() -> Option<Zeroizing<String>>) -> Result<Self, KeyError> {
        let expected = "an Ed25519 key as PKCS#8 PEM";
        let format = |found: String| KeyError::Format { what: "private key", expected, found };
        if pem.len() > MAX_KEY_TEXT_BYTES {
            return Err(format(format!("{} bytes", pem.len())));
        }
        let pem = pem.trim();
        let labels = [PrivateKeyInfoRef::PEM_LABEL, EncryptedPrivateKeyInfoOwned::PEM_LABEL];
        let ours = labels.iter().any(|label| pem.starts_with(&format!("-----BEGIN {label}-----")));
        if let Some(found) = import::describe(pem).filter(|_| !ours) {
            return Err(format(found.to_string()));
        }
        let (label, document) = SecretDocument::from_pem(pem).map_err(|error| format(error.to_string()))?;
        let document = match label {
            EncryptedPrivateKeyInfoOwned::PEM_LABEL => decrypt(&document, passphrase)?,
            PrivateKeyInfoRef::PEM_LABEL => document,
            other => return Err(format(format!("{other:?}"))),
        };
        SigningKey::from_pkcs8_der(document.as_bytes()).map(Self).map_err(|error| format(error.to_string()))
    }

    /// PKCS#8 in PEM, encrypted with scrypt and AES-256-CBC if there is a passphrase.
    ///
    /// # Errors
    /// An empty passphrase, or no randomness.
    pub fn to_pem(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, KeyError> {
        let found = |error: String| KeyError::Format { what: "private key", expected: "a key to encode", found: error };
        // Without the public key: the older version of the structure, which every reader knows.
        let pair = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let document = pair.to_pkcs8_der().map_err(|error| found(error.to_string()))?;
        let (label, document) = match passphrase {
            None => (PrivateKeyInfoRef::PEM_LABEL, document),
            Some("") => return Err(KeyError::EmptyPassphrase),
            Some(passphrase) => (EncryptedPrivateKeyInfoOwned::PEM_LABEL, encrypt(&document, passphrase)?),
        };
        document.to_pem(label, LineEnding::LF).map_err(|error| found(error.to_string()))
    }

    /// The public key.
    ///
    /// # Errors
    /// None for a key of a real seed.
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        PublicKey::from_bytes(&self.0.verifying_key().to_bytes())
    }

    /// Signs an in-toto Statement: a patch's manifest, or a record.
    ///
    /// # Errors
    /// As [`SecretKey::public`].
    pub fn sign(&self, statement: &[u8]) -> Result<SignatureRecord, KeyError> {
        let signature = self.0.sign(&pre_authentication_encoding(PAYLOAD_TYPE, statement));
        let signature = signature.to_bytes().to_vec();
        Ok(SignatureRecord { key_id: self.public()?.id(), algorithm: SignatureRecord::ED25519, signature })
    }

    /// Signs bytes as they are. Only [`super::foreign`] may call this: it says why its bytes are safe to sign.
    pub(super) fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

fn encrypt(document: &SecretDocument, passphrase: &str) -> Result<SecretDocument, KeyError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    random(&mut salt)?;
    random(&mut iv)?;
    let failed = |error: String| KeyError::Format { what: "private key", expected: "a key to encrypt", found: error };
    let (log_n, r, p) = SCRYPT;
    let cost = scrypt::Params::new(log_n, r, p).map_err(|error| failed(error.to_string()))?;
    let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv);
    let parameters = parameters.map_err(|error| failed(error.to_string()))?;
    PrivateKeyInfoRef::try_from(document.as_bytes())
        .and_then(|info| info.encrypt_with_params(parameters, passphrase))
        .map_err(|error| failed(error.to_string()))
}

fn decrypt(
    document: &SecretDocument,
    passphrase: impl FnOnce() -> Option<Zeroizing<String>>,
) -> Result<SecretDocument, KeyError> {
    let info = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|error| KeyError::Format {
        what: "private key",
        expected: "an encrypted PKCS#8 structure",
        found: error.to_string(),
    })?;
    check_cost(&info.encryption_algorithm)?;
    let passphrase = passphrase().ok_or(KeyError::Encrypted)?;
    info.decrypt(passphrase.as_bytes()).map_err(|_| KeyError::Passphrase)
}

/// Somebody else's file must not be able to make this machine work for hours.
fn check_cost(scheme: &EncryptionScheme) -> Result<(), KeyError> {
    let EncryptionScheme::Pbes2(parameters) = scheme else { return Ok(()) };
    let at_most = |what, limit, found| match found <= limit {
        true => Ok(()),
        false => Err(KeyError::Cost { what, limit, found }),
    };
    match &parameters.kdf {
        pbes2::Kdf::Scrypt(cost) => {
            let blocks = cost.cost_parameter.saturating_add(u64::from(cost.parallelization));
            let memory = blocks.saturating_mul(u64::from(cost.block_size)).saturating_mul(128);
            at_most("bytes of scrypt memory", MAX_SCRYPT_MEMORY, memory)?;
            at_most("passes of scrypt", MAX_SCRYPT_PASSES, cost.parallelization.into())
        }
        pbes2::Kdf::Pbkdf2(cost) => at_most("iterations of PBKDF2", MAX_PBKDF2_ITERATIONS, cost.iteration_count.into()),
        _ => Ok(()),
    }
}

fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    getrandom::fill(bytes).map_err(|error| KeyError::Random { reason: error.to_string() })
}

fn format_error(found: String) -> KeyError {
    KeyError::Format {
        what: "public key",
        expected: "an Ed25519 key as SubjectPublicKeyInfo PEM or its Base64 body, an OpenSSH line, or a minisign key",
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    fn point(hex: &str) -> [u8; 32] {
        *hex.parse::<Sha256>().unwrap().as_bytes()
    }

    #[test]
    fn public_keys_have_these_bytes() {
        // RFC 8032 section 7.1, test 1; the PEM is as OpenSSL writes it.
        let seed = point("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = SecretKey::from_seed(&seed).public().unwrap();
        assert_eq!(key.to_bytes(), point("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
        assert_eq!(key.to_line(), "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        let der = [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0][..], &key.to_bytes()].concat();
        assert_eq!(key.id(), Sha256::of(&der));
        for text in [key.to_pem(), key.to_line(), format!("  {}\n", key.to_line())] {
            assert_eq!(PublicKey::parse(&text), Ok(key.clone()), "{text}");
        }
    }

    /// The points of small order, in every encoding that a decoder might take (as in the speccheck vectors).
    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        let small_order = [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        ];
        for hex in small_order {
            assert_eq!(PublicKey::from_bytes(&point(hex)), Err(KeyError::Weak), "{hex}");
        }
        let not_canonical = [
            "0100000000000000000000000000000000000000000000000000000000000080",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            // Of full order: y = 3 written as 3 + p.
            "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for hex in not_canonical {
            assert_eq!(PublicKey::from_bytes(&point(hex)), Err(KeyError::NotCanonical), "{hex}");
        }
        let none = "0200000000000000000000000000000000000000000000000000000000000000";
        assert!(matches!(PublicKey::from_bytes(&point(none)), Err(KeyError::Format { .. })), "not on the curve");
    }

    #[test]
    fn texts_that_are_no_key_are_refused() {
        let (public, secret) = (key().public().unwrap().to_pem(), key().to_pem(None).unwrap());
        let rsa_like = public.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu");
        for wrong in ["", "AAAA", secret.as_str(), &rsa_like, &public[..60], &public.replace("MCow", "MCo!")] {
            assert!(matches!(PublicKey::parse(wrong), Err(KeyError::Format { .. })), "{wrong}");
        }
        for wrong in ["", public.as_str(), &secret[..80]] {
            assert!(matches!(SecretKey::parse(wrong, || None), Err(KeyError::Format { .. })), "{wrong}");
        }
        assert!(matches!(PublicKey::parse(&"A".repeat(1 << 20)), Err(KeyError::Format { .. })));
    }

    #[test]
    fn private_keys_come_back_from_pem() {
        let plain = key().to_pem(None).unwrap();
        assert!(plain.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcH"));
        let back = SecretKey::parse(&plain, || panic!("not asked")).unwrap();
        assert_eq!(back.public(), key().public());

        let pem = key().to_pem(Some("correct horse")).unwrap();
        assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        let back = SecretKey::parse(&pem, || Some("correct horse".to_owned().into())).unwrap();
        assert_eq!(back.public(), key().public());
        let (_, document) = SecretDocument::from_pem(&pem).unwrap();
        let info = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).unwrap();
        let EncryptionScheme::Pbes2(pbes2::Parameters { kdf: pbes2::Kdf::Scrypt(cost), .. }) =
            info.encryption_algorithm
        else {
            panic!("not scrypt");
        };
        assert_eq!((cost.cost_parameter, cost.block_size, cost.parallelization), (1 << 14, 8, 5));
        let wrong = SecretKey::parse(&pem, || Some("wrong".to_owned().into()));
        assert_eq!(wrong.unwrap_err(), KeyError::Passphrase);
        assert_eq!(SecretKey::parse(&pem, || None).unwrap_err(), KeyError::Encrypted);
        assert_eq!(key().to_pem(Some("")).unwrap_err(), KeyError::EmptyPassphrase);
        assert_ne!(pem.as_str(), key().to_pem(Some("correct horse")).unwrap().as_str(), "salted");
    }

    #[test]
    fn a_key_file_cannot_ask_for_endless_work() {
        let scrypt = |log_n, r, p| {
            let cost = scrypt::Params::new(log_n, r, p).unwrap();
            EncryptionScheme::Pbes2(pbes2::Parameters::generate_scrypt_aes256cbc(cost, &[0; 16], [0; 16]).unwrap())
        };
        assert_eq!(check_cost(&scrypt(14, 8, 5)), Ok(()));
        assert!(matches!(check_cost(&scrypt(19, 8, 1)), Err(KeyError::Cost { .. })));
        assert!(matches!(check_cost(&scrypt(14, 8, 17)), Err(KeyError::Cost { .. })));
        let pbkdf2 = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(20_000_000, &[0; 16], [0; 16]).unwrap();
        assert!(matches!(check_cost(&EncryptionScheme::Pbes2(pbkdf2)), Err(KeyError::Cost { .. })));
    }

    #[test]
    fn new_keys_differ_and_nothing_secret_is_shown() {
        let (one, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        assert_ne!(one.public(), other.public());
        assert_eq!(format!("{one:?}"), "SecretKey(..)");
    }

    #[test]
    fn signatures_verify_and_only_theirs() {
        let record = key().sign(b"{}").unwrap();
        let message = crate::format::container::signing_input(b"{}");
        let public = key().public().unwrap();
        assert_eq!((record.key_id, record.algorithm), (public.id(), SignatureRecord::ED25519));
        assert!(public.verifies(&message, &record.signature));
        assert!(!public.verifies(b"{}", &record.signature), "the type is signed too");
        assert!(!public.verifies(&message, &record.signature[1..]));
        let other = SecretKey::from_seed(&[8; 32]).public().unwrap();
        assert!(!other.verifies(&message, &record.signature));
    }
}
