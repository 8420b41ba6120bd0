//! `nestpatch feed`: the signed list of patches that are no longer to be used.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, count, fields, on_one_line, warn};
use super::passphrase::SigningKey;
use super::trusted::{Keys, feed_failure, patch_id, read_input, read_trust_file};
use crate::checkpoint::{lock_folder_of, replace, write_new};
use crate::digest::Sha256;
use crate::format::limits::MAX_ENVELOPE_BYTES;
use crate::format::{Envelope, FeedEntry, PatchStatus, StatusFeed, Timestamp};
use crate::trust::{Person, Policy, Role, SecretKey, TrustedKey};

/// The words of the feed.
const STATUSES: [PatchStatus; 4] =
    [PatchStatus::Active, PatchStatus::Superseded, PatchStatus::Withdrawn, PatchStatus::Compromised];

/// Keep the status feed: a signed file that says which patches are no longer to be used.
///
/// Publish it where the patches are; who applies them gives it with --status-feed. Entries are only ever added, and a
/// patch that was withdrawn never comes back. Every issue expires, so that readers notice when newer ones are kept from
/// them: renew it in time.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say how a patch stands: a new issue of the feed, or the first one.
    Add(Box<Add>),
    /// Issue the same feed with a new expiry.
    Renew(Renew),
    /// Add a signature to the newest issue, of which the whole is printed: read it first.
    Sign(Sign),
    /// Show a feed, and whether it is to be believed.
    Show(Show),
}

#[derive(Args)]
struct Add {
    /// The feed's file; a new one is made if it is not there.
    feed: PathBuf,
    /// The patch: its file, or its id.
    #[arg(long, value_name = "PATCH")]
    patch: String,
    /// How it stands: nothing comes back to what it was before.
    #[arg(long, value_parser = PossibleValuesParser::new(STATUSES.map(PatchStatus::as_str)))]
    status: String,
    /// Why, for people: at most 500 bytes.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// The patch to use instead of a superseded one: its file, or its id.
    #[arg(long, value_name = "PATCH")]
    by: Option<String>,
    /// The name of a new feed; trust files refer to it.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    issue: Issue,
}

#[derive(Args)]
struct Renew {
    /// The feed's file.
    feed: PathBuf,
    #[command(flatten)]
    issue: Issue,
}

#[derive(Args)]
struct Issue {
    /// Days until the issue expires.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    #[command(flatten)]
    key: SigningKey,
    /// The old issue counts if the people of this trust file signed it, and this key must be one that it lets sign feeds;
    /// without a trust file, this key must have signed the old issue.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
}

#[derive(Args)]
struct Sign {
    /// The feed's file.
    feed: PathBuf,
    #[command(flatten)]
    key: SigningKey,
    /// Refuse an issue on which a signature of somebody in this trust file is wrong.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
}

#[derive(Args)]
struct Show {
    /// The feed's file.
    feed: PathBuf,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    /// Whether enough trusted people signed it; none where nobody was given to trust.
    trusted: Option<bool>,
    expired: bool,
    key_ids: Vec<Sha256>,
    #[serde(flatten)]
    feed: &'a StatusFeed,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    match &arguments.action {
        Action::Add(add) => run_add(add, output),
        Action::Renew(Renew { feed: path, issue }) => {
            let key = issue.key.read()?;
            let _lock = lock_folder_of(path)?;
            let feed = issue.read_old(path, &key)?;
            issue.publish(path, feed, &key, output)
        }
        Action::Sign(sign) => run_sign(sign, output),
        Action::Show(show) => run_show(show, output),
    }
}

fn run_add(add: &Add, output: Output) -> Result<Exit, Failure> {
    let (patch, by) = (patch_id(&add.patch)?, add.by.as_deref().map(patch_id).transpose()?);
    let status = STATUSES.into_iter().find(|status| status.as_str() == add.status).unwrap_or(PatchStatus::Active);
    let key = add.issue.key.read()?;
    let _lock = lock_folder_of(&add.feed)?;
    let now = Timestamp::now();
    let is_new = add.feed.symlink_metadata().is_err();
    let mut feed = match (&add.name, is_new) {
        (Some(name), true) => StatusFeed { feed: name.clone(), number: 0, issued: now, expires: now, entries: vec![] },
        (None, true) => {
            let what = format!("{}: there is no such feed yet", add.feed.display());
            return Err(Failure::message(Exit::Failed, what).hint("to start one, name it with --name"));
        }
        (name, false) => {
            let old = add.issue.read_old(&add.feed, &key)?;
            if let Some(name) = name.as_ref().filter(|name| **name != old.feed) {
                let what = format!("{}: expected the feed {name:?}, found {:?}", add.feed.display(), old.feed);
                return Err(Failure::message(Exit::Input, what));
            }
            old
        }
    };
    feed.entries.push(FeedEntry { patch, status, since: now, reason: add.reason.clone(), by });
    add.issue.publish(&add.feed, feed, &key, output)
}

impl Issue {
    /// The newest issue, if those who may signed it: nobody adds to what somebody else slipped in.
    fn read_old(&self, path: &Path, key: &SecretKey) -> Result<StatusFeed, Failure> {
        let policy = match &self.trust {
            Some(trust) => read_trust_file(trust)?,
            None => {
                let public = key.public().map_err(|error| Failure::new(Exit::Input, &error))?;
                Policy::from_keys([("this key".to_owned(), public)]).map_err(Failure::other)?
            }
        };
        policy.read_status_feed(&read_feed(path)?).map_err(|error| feed_failure(path, &error))
    }

    /// How many more signatures the trust file asks for on an issue that this key has signed.
    fn missing(&self, key: &SecretKey) -> Result<usize, Failure> {
        let Some(trust) = &self.trust else { return Ok(0) };
        let policy = read_trust_file(trust)?;
        let id = key.public().map_err(|error| Failure::new(Exit::Input, &error))?.id();
        let may = |(person, _): &(&Person, &TrustedKey)| person.roles.contains(&Role::Release);
        match policy.find(id).filter(may) {
            Some(_) => Ok(policy.conditions().status.as_ref().map_or(0, |rule| rule.threshold - 1)),
            None => {
                let what = format!("{}: key {} is of nobody with the role release", trust.display(), id.short());
                Err(Failure::message(Exit::Untrusted, what).hint("sign with the key of somebody whose feed counts"))
            }
        }
    }

    /// Writes the next issue.
    fn publish(&self, path: &Path, feed: StatusFeed, key: &SecretKey, output: Output) -> Result<Exit, Failure> {
        let is_new = feed.number == 0;
        let missing = self.missing(key)?;
        let issued = Timestamp::now();
        let feed = StatusFeed { number: feed.number + 1, issued, expires: issued.plus_days(self.days), ..feed };
        let statement = feed.to_bytes().map_err(|error| Failure::new(Exit::Usage, &error))?;
        let signature = key.sign(&statement).map_err(|error| Failure::new(Exit::Input, &error))?;
        let envelope = Envelope::new(statement, vec![signature]);
        let text = envelope.to_json() + "\n";
        match is_new {
            true => write_new(path, text.as_bytes())?,
            false => replace(path, text.as_bytes())?,
        }
        if missing > 0 {
            let more = count(missing as u64, "more signature");
            warn(&format!("note: this issue counts only with {more}: `nestpatch feed sign {}`", path.display()));
        }
        show(path, &envelope, &feed, None, output)
    }
}

fn run_sign(sign: &Sign, output: Output) -> Result<Exit, Failure> {
    let path = &sign.feed;
    let key = sign.key.read()?;
    let _lock = lock_folder_of(path)?;
    let (mut envelope, feed) = read_unsigned(path)?;
    if let Some(trust) = &sign.trust {
        read_trust_file(trust)?.check_feed_signatures(&envelope).map_err(|error| feed_failure(path, &error))?;
    }
    let signature = key.sign(&envelope.statement).map_err(|error| Failure::new(Exit::Input, &error))?;
    // Signing is deterministic: another one under this key is wrong, and gives way.
    if envelope.signatures.contains(&signature) {
        let what = format!("{}: key {} has signed this issue already", path.display(), signature.key_id.short());
        return Err(Failure::message(Exit::Input, what));
    }
    envelope.signatures.retain(|other| other.key_id != signature.key_id);
    envelope.signatures.push(signature);
    let envelope = Envelope::new(envelope.statement, envelope.signatures);
    replace(path, (envelope.to_json() + "\n").as_bytes())?;
    show(path, &envelope, &feed, None, output)
}

fn run_show(arguments: &Show, output: Output) -> Result<Exit, Failure> {
    let path = &arguments.feed;
    let (envelope, feed) = read_unsigned(path)?;
    let policy = arguments.keys.policy()?;
    let trusted = match &policy {
        None => None,
        Some(policy) => match policy.clone().knowing(&read_feed(path)?) {
            Ok(_) => Some(true),
            Err(error) => {
                warn(feed_failure(path, &error).to_string().trim_end());
                Some(false)
            }
        },
    };
    if policy.is_none() {
        output.note("note: no key or trust file was given, so no signature is checked; the exit code says so");
    }
    show(path, &envelope, &feed, trusted, output)?;
    Ok(if trusted == Some(true) { Exit::Done } else { Exit::Untrusted })
}

/// Reads a feed that nobody vouches for.
fn read_unsigned(path: &Path) -> Result<(Envelope, StatusFeed), Failure> {
    let bytes = read_feed(path)?;
    let envelope = Envelope::parse(&bytes).map_err(|error| feed_failure(path, &error.into()))?;
    let feed = StatusFeed::parse(&envelope.statement).map_err(|error| feed_failure(path, &error.into()))?;
    Ok((envelope, feed))
}

fn read_feed(path: &Path) -> Result<Vec<u8>, Failure> {
    read_input(path, MAX_ENVELOPE_BYTES as u64, Exit::Input)
}

fn show(
    path: &Path,
    envelope: &Envelope,
    feed: &StatusFeed,
    trusted: Option<bool>,
    output: Output,
) -> Result<Exit, Failure> {
    let key_ids = envelope.signatures.iter().map(|one| one.key_id).collect();
    let expired = feed.expires <= Timestamp::now();
    output.data("nestpatch/feed/1", &Report { file: path, trusted, expired, key_ids, feed }, text)?;
    Ok(Exit::Done)
}

fn text(report: &Report<'_>) -> String {
    let feed = report.feed;
    let verdict = match report.trusted {
        Some(true) => ": trusted",
        Some(false) => ": NOT TRUSTED",
        None => "",
    };
    let keys = report.key_ids.iter().map(|id| format!("key {}", id.short())).collect::<Vec<_>>();
    let expires = format!("{}{}", feed.expires, if report.expired { " (EXPIRED)" } else { "" });
    let lines = [
        ("feed", feed.feed.clone()),
        ("number", feed.number.to_string()),
        ("issued", feed.issued.to_string()),
        ("expires", expires),
        ("claimed by", keys.join(", ")),
        ("entries", count(feed.entries.len() as u64, "entry").replace("entrys", "entries")),
    ];
    let mut text = format!("{}{verdict}\n{}", on_one_line(report.file), fields(&lines));
    for entry in &feed.entries {
        let by = entry.by.map(|by| format!(", by {by}")).unwrap_or_default();
        let reason = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
        text += &format!("\n  {} {} {}{by}{reason}", entry.since, entry.patch, entry.status.as_str());
    }
    text
}
