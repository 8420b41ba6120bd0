//! `nestpatch keygen`: a key pair for signing patches.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, fields};
use super::passphrase;
use crate::digest::Sha256;
use crate::trust::{KeyPairPaths, SecretKey, create_key_pair};

/// Make a key pair for signing patches.
///
/// Writes NAME.key, encrypted unless told otherwise, and NAME.pub. Neither is ever overwritten.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The files' name, without .key and .pub.
    #[arg(short, long, value_name = "NAME")]
    output: PathBuf,
    /// Leave the private key unencrypted: whoever reads the file can sign.
    #[arg(long, conflicts_with = "passphrase_file")]
    no_passphrase: bool,
    /// Take the passphrase from the first line of this file instead of asking for it.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Made {
    secret: PathBuf,
    public: PathBuf,
    key_id: Sha256,
    encrypted: bool,
    /// The public key on one line, for a trust file.
    key: String,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let paths = KeyPairPaths::new(&arguments.output);
    for path in [&paths.secret, &paths.public] {
        if path.symlink_metadata().is_ok() {
            let taken = Failure::message(Exit::Failed, format!("{} already exists", path.display()));
            return Err(taken.hint("choose another name; a key is never overwritten"));
        }
    }
    let passphrase = match arguments.no_passphrase {
        true => None,
        false => Some(passphrase::choose(arguments.passphrase_file.as_deref())?),
    };
    let secret = SecretKey::generate().map_err(Failure::other)?;
    let public = create_key_pair(&secret, &paths, passphrase.as_ref().map(|text| text.as_str()))?;
    let made = Made {
        secret: paths.secret,
        public: paths.public,
        key_id: public.id(),
        encrypted: passphrase.is_some(),
        key: public.to_line(),
    };
    output.data("nestpatch/keygen/1", &made, text)?;
    Ok(Exit::Done)
}

fn text(made: &Made) -> String {
    let how = if made.encrypted { "encrypted; keep it" } else { "NOT encrypted; keep it safe" };
    format!(
        "Made a key pair\n{}",
        fields(&[
            ("private", format!("{} ({how})", made.secret.display())),
            ("public", format!("{} (give it to those who apply your patches)", made.public.display())),
            ("key id", made.key_id.to_string()),
            ("one line", made.key.clone()),
        ])
    )
}
