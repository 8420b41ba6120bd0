//! Key pairs on disk: NAME.key (private, mode 0600) and NAME.pub, never written over another file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::trust::key::MAX_KEY_TEXT_BYTES;
use crate::trust::{KeyError, PublicKey, SecretKey};

/// Why a key file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system refuses.
    #[error("{path:?}: cannot {what}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `create`.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The file holds no usable key.
    #[error("{path:?}: {error}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: KeyError,
    },
}

/// Where a key pair lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPairPaths {
    /// NAME.key
    pub secret: PathBuf,
    /// NAME.pub
    pub public: PathBuf,
}

impl KeyPairPaths {
    /// The two files of `name`.
    pub fn new(name: &Path) -> Self {
        let with = |extension: &str| {
            let mut path = name.as_os_str().to_owned();
            path.push(extension);
            PathBuf::from(path)
        };
        Self { secret: with(".key"), public: with(".pub") }
    }
}

/// Writes `key` as NAME.key and NAME.pub; if either is there already, nothing is left behind and nothing changed.
///
/// # Errors
/// A file that exists, a directory that cannot be written, an empty passphrase.
pub fn create_key_pair(
    key: &SecretKey,
    paths: &KeyPairPaths,
    passphrase: Option<&str>,
) -> Result<PublicKey, KeyFileError> {
    let KeyPairPaths { secret, public } = paths;
    let wrong = |error| KeyFileError::Key { path: secret.clone(), error };
    let pem = key.to_pem(passphrase).map_err(wrong)?;
    let shared = key.public().map_err(wrong)?;
    create_file(secret, 0o600, pem.as_bytes())?;
    create_file(public, 0o644, shared.to_pem().as_bytes()).inspect_err(|_| {
        // Ours, made a moment ago; the error to report is the other one.
        let _ = std::fs::remove_file(secret);
    })?;
    Ok(shared)
}

/// Reads a private key; `passphrase` is asked for only if it is encrypted.
///
/// # Errors
/// A file that cannot be read or holds no usable key; a wrong passphrase.
pub fn read_secret_key(
    path: &Path,
    passphrase: impl FnOnce() -> Option<Zeroizing<String>>,
) -> Result<SecretKey, KeyFileError> {
    let text = read_text(path)?;
    SecretKey::parse(&text, passphrase).map_err(|error| KeyFileError::Key { path: path.to_owned(), error })
}

/// Reads a public key in any form of [`PublicKey::parse`].
///
/// # Errors
/// A file that cannot be read or holds no usable key.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    let text = read_text(path)?;
    PublicKey::parse(&text).map_err(|error| KeyFileError::Key { path: path.to_owned(), error })
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let failed = |error| KeyFileError::Io { path: path.to_owned(), what: "read", error };
    // One byte over the cap, so that the parser sees that it is over.
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_TEXT_BYTES + 1));
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_KEY_TEXT_BYTES as u64 + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            let found = "bytes that are no UTF-8".to_owned();
            let error = KeyError::Format { what: "key", expected: "a text", found };
            KeyFileError::Key { path: path.to_owned(), error }
        }
        _ => failed(error),
    })?;
    Ok(text)
}

fn create_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), KeyFileError> {
    let failed = |error| KeyFileError::Io { path: path.to_owned(), what: "create", error };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = std::fs::remove_file(path);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[9; 32])
    }

    #[test]
    fn a_pair_is_written_once_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let paths = KeyPairPaths::new(&folder.path().join("release.v1"));
        assert_eq!(paths.secret.file_name().unwrap(), "release.v1.key");
        let public = create_key_pair(&key(), &paths, None).unwrap();
        assert_eq!(read_public_key(&paths.public).unwrap(), public);
        assert_eq!(read_secret_key(&paths.secret, || None).unwrap().public().unwrap(), public);
        let before = std::fs::read(&paths.secret).unwrap();
        assert!(matches!(create_key_pair(&key(), &paths, None), Err(KeyFileError::Io { what: "create", .. })));
        assert_eq!(std::fs::read(&paths.secret).unwrap(), before);
    }

    #[cfg(unix)]
    #[test]
    fn the_private_file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let paths = KeyPairPaths::new(&folder.path().join("k"));
        create_key_pair(&key(), &paths, None).unwrap();
        assert_eq!(std::fs::metadata(&paths.secret).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_left_behind_when_the_other_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let paths = KeyPairPaths::new(&folder.path().join("k"));
        std::fs::write(&paths.public, "mine").unwrap();
        assert!(create_key_pair(&key(), &paths, None).is_err());
        assert!(!paths.secret.exists());
        assert_eq!(std::fs::read_to_string(&paths.public).unwrap(), "mine");
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.pub");
        assert!(read_public_key(&path).unwrap_err().to_string().contains("none.pub"));
        std::fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
        let error = read_public_key(&path).unwrap_err().to_string();
        assert!(error.contains("none.pub") && error.contains("found 16385 bytes"), "{error}");
    }
}
