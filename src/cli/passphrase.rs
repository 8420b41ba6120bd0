//! Passphrases: by prompt or from a file, never from the command line.

use std::path::Path;

use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use super::trusted::read_input;
#[cfg(feature = "create")]
use crate::trust::{SecretKey, read_secret_key};

/// The longest passphrase file read, in bytes.
const MAX_BYTES: u64 = 4096;

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
#[cfg(feature = "create")]
pub(super) fn signing_key(path: &Path, file: Option<&Path>) -> Result<SecretKey, Failure> {
    let from_file = file.map(first_line).transpose()?;
    let ask = || from_file.or_else(|| prompt(&format!("Passphrase of {}: ", path.display())).ok());
    read_secret_key(path, ask).map_err(|error| Failure::new(Exit::Input, &error))
}

fn first_line(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = Zeroizing::new(read_input(path, MAX_BYTES, Exit::Input)?);
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Failure::message(Exit::Input, format!("{}: {error}", path.display())))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn prompt(text: &str) -> Result<Zeroizing<String>, Failure> {
    let asked = rpassword::prompt_password(text).map(Zeroizing::new);
    asked.map_err(|error| {
        Failure::message(Exit::Input, format!("cannot ask for a passphrase: {error}"))
            .hint("give it with --passphrase-file where there is no terminal")
    })
}
