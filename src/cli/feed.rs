//! `nestpatch feed`: the signed list of patches that are no longer to be used.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, count, counted, fields, on_one_line, warn};
use super::passphrase::SigningKey;
use super::trusted::{Keys, feed_failure, patch_id, read_input, read_trust_file};
use crate::checkpoint::Amendment;
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
    /// Add a signature to the newest issue. Read it first, with `feed show`.
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
            let signer = issue.signer()?;
            let file = Amendment::of(path)?;
            let feed = signer.read_old(path)?;
            signer.publish(path, &file, feed, issue.days, output)
        }
        Action::Sign(sign) => run_sign(sign, output),
        Action::Show(show) => run_show(show, output),
    }
}

fn run_add(add: &Add, output: Output) -> Result<Exit, Failure> {
    let (patch, by) = (patch_id(&add.patch)?, add.by.as_deref().map(patch_id).transpose()?);
    let status = STATUSES.into_iter().find(|status| status.as_str() == add.status).unwrap_or(PatchStatus::Active);
    let signer = add.issue.signer()?;
    let file = Amendment::of(&add.feed)?;
    let now = Timestamp::now();
    let mut feed = match (&add.name, file.is_new()) {
        (Some(name), true) => StatusFeed { feed: name.clone(), number: 0, issued: now, expires: now, entries: vec![] },
        (None, true) => {
            let what = format!("{}: there is no such feed yet", add.feed.display());
            return Err(Failure::message(Exit::Failed, what).hint("to start one, name it with --name"));
        }
        (name, false) => {
            let old = signer.read_old(&add.feed)?;
            if let Some(name) = name.as_ref().filter(|name| **name != old.feed) {
                let what = format!("{}: expected the feed {name:?}, found {:?}", add.feed.display(), old.feed);
                return Err(Failure::message(Exit::Input, what));
            }
            old
        }
    };
    feed.entries.push(FeedEntry { patch, status, since: now, reason: add.reason.clone(), by });
    signer.publish(&add.feed, &file, feed, add.issue.days, output)
}

impl Issue {
    /// The key, and whose feeds count.
    fn signer(&self) -> Result<Signer, Failure> {
        let key = self.key.read()?;
        let public = key.public().map_err(|error| Failure::new(Exit::Input, &error))?;
        let policy = match &self.trust {
            Some(trust) => read_trust_file(trust)?,
            None => Policy::from_keys([("this key".to_owned(), public.clone())]).map_err(Failure::other)?,
        };
        let counts = |(person, key): &(&Person, &TrustedKey)| {
            person.roles.contains(&Role::Release) && key.is_out_of_time(policy.time()).is_none()
        };
        if policy.find(public.id()).filter(counts).is_none() {
            let what = format!("key {}: by this trust file, no feed counts that it signs now", public.id().short());
            let hint = "sign with a key that counts now, of somebody with the role release";
            return Err(Failure::message(Exit::Untrusted, what).hint(hint));
        }
        Ok(Signer { key, policy })
    }
}

/// A key that may sign the feed, and whose feeds count.
struct Signer {
    key: SecretKey,
    policy: Policy,
}

impl Signer {
    /// The newest issue, if those who may signed it: nobody adds to what somebody else slipped in.
    fn read_old(&self, path: &Path) -> Result<StatusFeed, Failure> {
        self.policy.read_status_feed(&read_feed(path)?).map_err(|error| feed_failure(path, &error))
    }

    /// Writes the next issue.
    fn publish(
        &self,
        path: &Path,
        file: &Amendment<'_>,
        feed: StatusFeed,
        days: u32,
        output: Output,
    ) -> Result<Exit, Failure> {
        let rule = self.policy.conditions().status.as_ref();
        if let Some(rule) = rule.filter(|rule| rule.feed != feed.feed) {
            let what = format!("expected the feed {:?}, as the trust file says, found {:?}", rule.feed, feed.feed);
            return Err(Failure::message(Exit::Input, what));
        }
        let issued = Timestamp::now();
        let feed = StatusFeed { number: feed.number + 1, issued, expires: issued.plus_days(days), ..feed };
        let statement = feed.to_bytes().map_err(|error| Failure::new(Exit::Usage, &error))?;
        let signature = self.key.sign(&statement).map_err(|error| Failure::new(Exit::Input, &error))?;
        let envelope = Envelope::new(statement, vec![signature]);
        file.write(text_of(path, &envelope)?.as_bytes())?;
        let missing = rule.map_or(0, |rule| rule.threshold - 1);
        if missing > 0 {
            let more = count(missing as u64, "more signature");
            warn(&format!("note: this issue counts only with {more}: `nestpatch feed sign {}`", path.display()));
        }
        show(path, &envelope, &feed, None, self.policy.time(), output)
    }
}

fn run_sign(sign: &Sign, output: Output) -> Result<Exit, Failure> {
    let path = &sign.feed;
    let key = sign.key.read()?;
    let file = Amendment::of(path)?;
    let (mut envelope, feed) = parse(path, &read_feed(path)?)?;
    if let Some(trust) = &sign.trust {
        read_trust_file(trust)?.check_signatures(&envelope).map_err(|error| feed_failure(path, &error))?;
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
    file.write(text_of(path, &envelope)?.as_bytes())?;
    show(path, &envelope, &feed, None, Timestamp::now(), output)
}

fn run_show(arguments: &Show, output: Output) -> Result<Exit, Failure> {
    let path = &arguments.feed;
    let bytes = read_feed(path)?;
    let (envelope, feed) = parse(path, &bytes)?;
    let policy = arguments.keys.policy()?;
    let at = policy.as_ref().map_or_else(Timestamp::now, Policy::time);
    let trusted = match &policy {
        None => None,
        Some(policy) => match policy.clone().knowing(&bytes) {
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
    show(path, &envelope, &feed, trusted, at, output)?;
    Ok(if trusted == Some(true) { Exit::Done } else { Exit::Untrusted })
}

/// What a file says, whoever vouches for it.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Envelope, StatusFeed), Failure> {
    let envelope = Envelope::parse(bytes).map_err(|error| feed_failure(path, &error.into()))?;
    let feed = StatusFeed::parse(&envelope.statement).map_err(|error| feed_failure(path, &error.into()))?;
    Ok((envelope, feed))
}

/// The text of an envelope, if it can be read again: with one signature more, it may be too long or have too many.
fn text_of(path: &Path, envelope: &Envelope) -> Result<String, Failure> {
    let text = envelope.to_json() + "\n";
    Envelope::parse(text.as_bytes()).map_err(|error| feed_failure(path, &error.into()))?;
    Ok(text)
}

fn read_feed(path: &Path) -> Result<Vec<u8>, Failure> {
    read_input(path, MAX_ENVELOPE_BYTES as u64, Exit::Input)
}

fn show(
    path: &Path,
    envelope: &Envelope,
    feed: &StatusFeed,
    trusted: Option<bool>,
    at: Timestamp,
    output: Output,
) -> Result<Exit, Failure> {
    let key_ids = envelope.signatures.iter().map(|one| one.key_id).collect();
    let expired = feed.expires <= at;
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
        ("entries", counted(feed.entries.len() as u64, "entry", "entries")),
    ];
    let mut text = format!("{}{verdict}\n{}", on_one_line(report.file), fields(&lines));
    for entry in &feed.entries {
        let by = entry.by.map(|by| format!(", by {by}")).unwrap_or_default();
        let reason = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
        text += &format!("\n  {} {} {}{by}{reason}", entry.since, entry.patch, entry.status.as_str());
    }
    text
}
