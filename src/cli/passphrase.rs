//! Passphrases: by prompt, from a file or from a descriptor, never from the command line.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use crate::trust::{KeyError, KeyFileError, SecretKey, read_secret_key};

/// The longest passphrase file read, in bytes.
const MAX_BYTES: usize = 4096;

/// The key to sign with.
#[derive(clap::Args)]
pub(super) struct SigningKey {
    /// Sign with this private key.
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
    /// Take the key's passphrase from the first line of this file (or descriptor: /dev/fd/3) instead of asking for it.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl SigningKey {
    /// Reads the key.
    pub(super) fn read(&self) -> Result<SecretKey, Failure> {
        signing_key(&self.key, self.passphrase_file.as_deref())
    }
}

/// A passphrase for a new key: the first line of `file`, or what is typed twice.
pub(super) fn choose(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    if let Some(file) = file {
        return first_line(file);
    }
    let first = prompt("Passphrase for the new key: ")?;
    let again = prompt("The same again: ")?;
    match first == again {
        true => Ok(first),
        false => Err(Failure::message(Exit::Input, "the two passphrases differ")),
    }
}

/// Reads a signing key; its passphrase, if it has one, is the first line of `file` or is asked for.
pub(super) fn signing_key(path: &Path, file: Option<&Path>) -> Result<SecretKey, Failure> {
    let from_file = file.map(first_line).transpose()?;
    let ask = || from_file.or_else(|| prompt(&format!("Passphrase of {}: ", path.display())).ok());
    read_secret_key(path, ask).map_err(|error| {
        let encrypted = matches!(error, KeyFileError::Key { error: KeyError::Encrypted, .. });
        let failure = Failure::from(error);
        match encrypted {
            true => failure.hint("give the passphrase with --passphrase-file where there is no terminal"),
            false => failure,
        }
    })
}

/// The first line of a file or pipe; a pipe so that no passphrase need lie on a disk.
fn first_line(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::message(Exit::Input, format!("{}: cannot read the passphrase: {error}", path.display()))
    };
    // Never grown: a reallocation would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES + 1));
    let file = File::open(path).map_err(|error| failed(&error))?;
    file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if text.len() > MAX_BYTES {
        let what = format!("{}: expected a passphrase of at most {MAX_BYTES} bytes, found more", path.display());
        return Err(Failure::message(Exit::Input, what));
    }
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn prompt(text: &str) -> Result<Zeroizing<String>, Failure> {
    let asked = rpassword::prompt_password(text).map(Zeroizing::new);
    asked.map_err(|error| {
        Failure::message(Exit::Input, format!("cannot ask for a passphrase: {error}"))
            .hint("give it with --passphrase-file where there is no terminal")
    })
}
