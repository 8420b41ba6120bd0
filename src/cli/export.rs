//! `nestpatch export`: a patch in the formats of other programs.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, bytes};
use super::passphrase;
use super::trusted::read_patch;
use crate::checkpoint::{CheckpointError, write_new};
use crate::digest::Sha256;
use crate::format::Container;
use crate::interop::{ExportError, dsse, intoto, minisig, sigstore, sshsig};
use crate::patch::{Contents, PatchError};
use crate::trust::SecretKey;

/// Write a patch's manifest and signatures in the formats of other programs.
///
/// The patch is read whole and checked against its digests first, so nothing malformed is exported; its signatures are
/// copied, not checked: `nestpatch verify` or the other program does that.
///
/// Without -o the text goes to stdout. If OUT is a folder, each file gets its usual name in it: NAME.dsse.json,
/// NAME.KEYID.sigstore.json (16 digits) and NAME.intoto.json, with NAME the patch's without its ending; PATCH.minisig and
/// PATCH.sig. If OUT is anything else, it is the one file to write. Beside a minisign signature lies the public key for
/// it, with .pub added to the name, and beside an OpenSSH signature its line, with .allowed_signers added. Nothing is
/// overwritten, and either all files are written or none.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The patch.
    patch: PathBuf,
    /// What to write.
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// Write to this new file or existing folder instead of stdout.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// The private key to sign with, for minisig and sshsig. It need not be one that signed the patch.
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    /// Take the key's passphrase from the first line of this file instead of asking for it.
    #[arg(long, value_name = "FILE", requires = "key")]
    passphrase_file: Option<PathBuf>,
    /// Of several signers, write the bundle of the one whose key id begins so; for sigstore-bundle.
    #[arg(long, value_name = "KEYID")]
    signer: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// DSSE envelope (JSON) of the manifest with all Ed25519 signatures.
    Dsse,
    /// Sigstore bundle v0.3, by public key; one file for each signer.
    SigstoreBundle,
    /// The manifest as it is: a bare in-toto Statement, without signatures.
    Intoto,
    /// minisign signature of the patch file, and the public key for it; needs --key.
    Minisig,
    /// OpenSSH signature of the patch file (namespace nestpatch), and an allowed_signers line; needs --key.
    Sshsig,
}

impl Format {
    fn signs(self) -> bool {
        matches!(self, Self::Minisig | Self::Sshsig)
    }

    /// As on the command line.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What there is to write: texts with their usual names.
struct Texts {
    main: Vec<(String, Vec<u8>)>,
    /// What to add to the name of the main text, and the public key in the same program's format.
    public: Option<(&'static str, String)>,
}

#[derive(Serialize)]
struct Exported {
    format: String,
    patch: Sha256,
    files: Vec<Written>,
}

#[derive(Serialize)]
struct Written {
    path: PathBuf,
    bytes: usize,
    sha256: Sha256,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    check(arguments, output)?;
    let contents = Contents::read(read_patch(&arguments.patch)?)?;
    // The key comes last: nobody types a passphrase for a patch that cannot be exported.
    let key = arguments.key.as_deref().map(|key| passphrase::signing_key(key, arguments.passphrase_file.as_deref()));
    let texts = texts(arguments, &contents, key.transpose()?.as_ref())?;
    let Some(out) = &arguments.output else {
        print(&texts, output)?;
        return Ok(Exit::Done);
    };
    let files = write(&place(texts, out)?)?;
    let exported = Exported { format: arguments.format.name(), patch: contents.id(), files };
    output.data("nestpatch/export/1", &exported, text)?;
    Ok(Exit::Done)
}

/// What the command line alone decides.
fn check(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let name = arguments.format.name();
    match (arguments.format.signs(), &arguments.key) {
        (true, None) => Err(keyless(arguments.format)),
        (false, Some(_)) => Err(usage(format!("--format {name} needs no private key: leave out --key"))),
        _ if arguments.signer.is_some() && arguments.format != Format::SigstoreBundle => {
            Err(usage(format!("--format {name} has no use for --signer: only sigstore-bundle does")))
        }
        _ if output.json && arguments.output.is_none() => {
            Err(usage("--json lists the files written: say where with -o"))
        }
        _ => Ok(()),
    }
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::message(Exit::Usage, text)
}

fn keyless(format: Format) -> Failure {
    usage(format!("--format {} signs the patch file anew: give a private key with --key", format.name()))
}

fn texts(arguments: &Arguments, contents: &Contents, key: Option<&SecretKey>) -> Result<Texts, Failure> {
    let container = Container::parse(contents.bytes()).map_err(PatchError::from)?;
    let file = arguments.patch.file_name().unwrap_or_default().to_string_lossy();
    let stem = arguments.patch.file_stem().unwrap_or_default().to_string_lossy();
    let one = |name: String, bytes: Vec<u8>| Texts { main: vec![(name, bytes)], public: None };
    Ok(match (arguments.format, key) {
        (Format::Dsse, _) => one(format!("{stem}.dsse.json"), dsse::envelope(&container)?.into()),
        (Format::Intoto, _) => one(format!("{stem}.intoto.json"), intoto::statement(&container).to_vec()),
        (Format::SigstoreBundle, _) => {
            let wanted = arguments.signer.as_ref().map(|wanted| wanted.to_lowercase());
            let bundles = sigstore::bundles(&container, wanted.as_deref())?.into_iter();
            let name = |id: String| format!("{stem}.{}.sigstore.json", id.get(..16).unwrap_or_default());
            Texts { main: bundles.map(|one| (name(one.key_id.to_string()), one.text.into())).collect(), public: None }
        }
        (Format::Minisig, Some(key)) => {
            let text = minisig::signature(contents.bytes(), contents.id(), key).map_err(PatchError::from)?;
            let public = minisig::public_key(&key.public().map_err(PatchError::from)?);
            Texts { public: Some((".pub", public)), ..one(format!("{file}.minisig"), text.into()) }
        }
        (Format::Sshsig, Some(key)) => {
            let text = sshsig::signature(contents.bytes(), key).map_err(PatchError::from)?;
            let line = sshsig::allowed_signers(&key.public().map_err(PatchError::from)?);
            Texts { public: Some((".allowed_signers", line)), ..one(format!("{file}.sig"), text.into()) }
        }
        (Format::Minisig | Format::Sshsig, None) => return Err(keyless(arguments.format)),
    })
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match &error {
            ExportError::Unsigned { .. } => Self::new(Exit::Untrusted, &error),
            ExportError::Signer { .. } => Self::new(Exit::Usage, &error),
            ExportError::Json(_) => Self::new(Exit::Failed, &error),
        }
    }
}

/// The text as it is: other programs read it, and its digest counts.
fn print(texts: &Texts, output: Output) -> Result<(), Failure> {
    let [(_, bytes)] = texts.main.as_slice() else { return Err(several(texts)) };
    output.exact(bytes)?;
    if let Some((_, public)) = &texts.public {
        output.note(&format!("The public key to check it with:\n{}", public.trim_end()));
    }
    Ok(())
}

fn several(texts: &Texts) -> Failure {
    usage(format!("{} keys signed, and a bundle holds one signature", texts.main.len()))
        .hint("choose one with --signer, or give an existing folder with -o")
}

/// The files to write; none of them is there.
fn place(texts: Texts, out: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Failure> {
    let folder = out.is_dir();
    if texts.main.len() != 1 && !folder {
        return Err(several(&texts));
    }
    let path = |name| if folder { out.join(name) } else { out.to_owned() };
    let mut files: Vec<_> = texts.main.into_iter().map(|(name, bytes)| (path(name), bytes)).collect();
    if let (Some((suffix, text)), Some((main, _))) = (texts.public, files.first()) {
        let mut beside = main.clone().into_os_string();
        beside.push(suffix);
        files.push((beside.into(), text.into()));
    }
    match files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        Some((path, _)) => Err(CheckpointError::Exists { path: path.clone() }.into()),
        None => Ok(files),
    }
}

/// Writes every file, or none: those already written are removed when one fails.
fn write(files: &[(PathBuf, Vec<u8>)]) -> Result<Vec<Written>, Failure> {
    for (index, (path, bytes)) in files.iter().enumerate() {
        if let Err(error) = write_new(path, bytes) {
            for (path, _) in files.iter().take(index) {
                // Ours, made a moment ago; the error to report is the other one.
                let _ = fs::remove_file(path);
            }
            return Err(error.into());
        }
    }
    let written = |(path, bytes): &(PathBuf, Vec<u8>)| Written {
        path: path.clone(),
        bytes: bytes.len(),
        sha256: Sha256::of(bytes),
    };
    Ok(files.iter().map(written).collect())
}

fn text(exported: &Exported) -> String {
    let line = |file: &Written| format!("  {} ({})\n", file.path.display(), bytes(file.bytes as u64));
    format!("Wrote {} as {}\n", exported.patch.short(), exported.format)
        + &exported.files.iter().map(line).collect::<String>()
}
