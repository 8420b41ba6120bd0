//! `nestpatch trust`: the trust file, listed, extended and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, counted, fields, on_one_line};
use super::trusted::{parse_trust_file, read_text, read_trust_file};
use crate::checkpoint::Amendment;
use crate::digest::Sha256;
use crate::format::Timestamp;
use crate::trust::{Person, Policy, Role, TrustedKey, read_public_key};

/// Days before its end at which a key is worth a remark.
const SOON: u32 = 30;

/// Keep the trust file: who is believed, by which keys, and on what conditions.
///
/// It is a text (TOML) made to be read, reviewed and committed; spec/trust.md describes it.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show people, keys and conditions.
    List(At),
    /// Add a person with their public keys; the file is made if it is not there.
    Add(Box<Add>),
    /// Exit 0 only if enough people can sign at this time for a patch to be believed.
    Check(At),
}

#[derive(Args)]
struct At {
    /// The trust file.
    file: PathBuf,
    /// Look at keys as of this time (like 2026-11-24T03:41:00Z) instead of now.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

#[derive(Args)]
struct Add {
    /// The trust file.
    file: PathBuf,
    /// Who it is: the name that is shown when their signature holds.
    #[arg(long)]
    name: String,
    /// Their public key: a file with a PEM, an ssh-ed25519 line, or a minisign key; may be repeated.
    #[arg(long, value_name = "PUB", required = true)]
    key: Vec<PathBuf>,
    /// What their signature stands for; may be repeated. A status feed counts by `release` only.
    #[arg(long, value_parser = PossibleValuesParser::new(Role::ALL.map(Role::as_str)))]
    role: Vec<String>,
    /// The only series whose patches they may sign; may be repeated.
    #[arg(long)]
    series: Vec<String>,
    /// From when on their keys count.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Until when their keys count.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    at: Timestamp,
    threshold: usize,
    require: &'a BTreeMap<Role, usize>,
    minimum: &'a BTreeMap<String, u64>,
    status_feed: Option<ShownFeed<'a>>,
    people: Vec<Shown<'a>>,
    /// Why no patch can be believed at this time.
    problems: Vec<String>,
    /// What will soon be so.
    remarks: Vec<String>,
}

#[derive(Serialize)]
struct ShownFeed<'a> {
    name: &'a str,
    threshold: usize,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    roles: Vec<&'static str>,
    series: Option<Vec<&'a str>>,
    keys: Vec<ShownKey>,
}

#[derive(Serialize)]
struct ShownKey {
    key_id: Sha256,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    counts: bool,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    match &arguments.action {
        Action::List(At { file, at }) => {
            show(file, &read_trust_file(file)?, *at, output)?;
            Ok(Exit::Done)
        }
        Action::Check(At { file, at }) => match show(file, &read_trust_file(file)?, *at, output)? {
            true => Ok(Exit::Done),
            false => Ok(Exit::Input),
        },
        Action::Add(add) => run_add(add, output),
    }
}

fn run_add(add: &Add, output: Output) -> Result<Exit, Failure> {
    let file = Amendment::of(&add.file)?;
    let old = if file.is_new() { "version = 1\n".to_owned() } else { read_text(&add.file)? };
    if !file.is_new() {
        let policy = parse_trust_file(&add.file, &old)?;
        if policy.people().iter().any(|person| person.name == add.name) {
            let what = format!("{}: {:?} is there already", add.file.display(), add.name);
            return Err(Failure::message(Exit::Input, what).hint("add the key to their `keys` in the file"));
        }
    }
    let separator = if old.ends_with('\n') { "\n" } else { "\n\n" };
    let new = format!("{old}{separator}{}", add.person()?);
    // Read back before anything is written.
    let policy = Policy::from_trust_file(&new).map_err(|error| {
        let why = format!("{}: with {:?} added it would not be a trust file: {error}", add.file.display(), add.name);
        Failure::message(Exit::Input, why)
    })?;
    file.write(new.as_bytes())?;
    show(&add.file, &policy, None, output)?;
    Ok(Exit::Done)
}

impl Add {
    /// The person as the file has them. A JSON string is a TOML basic string too.
    fn person(&self) -> Result<String, Failure> {
        let quote = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let list = |items: &[String]| items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", ");
        let time =
            |name: &str, time: Option<Timestamp>| time.map(|time| format!(", {name} = \"{time}\"")).unwrap_or_default();
        let mut keys = Vec::new();
        for path in &self.key {
            let line = read_public_key(path)?.to_line();
            keys.push(match self.from.is_some() || self.until.is_some() {
                false => quote(&line),
                true => format!("{{ key = {}{}{} }}", quote(&line), time("from", self.from), time("until", self.until)),
            });
        }
        let mut text = format!("[[people]]\nname = {}\nkeys = [{}]\n", quote(&self.name), keys.join(", "));
        if !self.role.is_empty() {
            text += &format!("roles = [{}]\n", list(&self.role));
        }
        if !self.series.is_empty() {
            text += &format!("series = [{}]\n", list(&self.series));
        }
        Ok(text)
    }
}

/// Prints the file and says whether a patch can be believed by it.
fn show(file: &Path, policy: &Policy, at: Option<Timestamp>, output: Output) -> Result<bool, Failure> {
    let at = at.unwrap_or(policy.time());
    let conditions = policy.conditions();
    let report = Report {
        file,
        at,
        threshold: conditions.threshold,
        require: &conditions.require,
        minimum: &conditions.minimum,
        status_feed: conditions
            .status
            .as_ref()
            .map(|status| ShownFeed { name: &status.feed, threshold: status.threshold }),
        people: policy.people().iter().map(|person| shown(person, at)).collect(),
        problems: problems(policy, at),
        remarks: remarks(policy, at),
    };
    output.data("nestpatch/trust/1", &report, text)?;
    Ok(report.problems.is_empty())
}

fn shown(person: &Person, at: Timestamp) -> Shown<'_> {
    let key = |key: &TrustedKey| ShownKey {
        key_id: key.key.id(),
        from: key.from,
        until: key.until,
        counts: key.is_out_of_time(at).is_none(),
    };
    Shown {
        name: &person.name,
        roles: person.roles.iter().map(|role| role.as_str()).collect(),
        series: person.series.as_ref().map(|series| series.iter().map(String::as_str).collect()),
        keys: person.keys.iter().map(key).collect(),
    }
}

/// What stands in the way of every series; nothing if patches of at least one can be believed.
fn problems(policy: &Policy, at: Timestamp) -> Vec<String> {
    let named = policy.people().iter().filter_map(|person| person.series.as_ref()).flatten();
    let series: BTreeSet<&str> = named.map(String::as_str).collect();
    // No label is empty, so this stands for every series that nobody is bound to.
    let each = [""].into_iter().chain(series).map(|series| problems_of(policy, at, series));
    each.min_by_key(Vec::len).unwrap_or_default()
}

fn problems_of(policy: &Policy, at: Timestamp, series: &str) -> Vec<String> {
    let in_time = |person: &&Person| person.keys.iter().any(|key| key.is_out_of_time(at).is_none());
    let in_time: Vec<&Person> = policy.people().iter().filter(in_time).collect();
    let holding = |role: Role| in_time.iter().filter(move |person| person.roles.contains(&role));
    let conditions = policy.conditions();
    let mut problems = Vec::new();
    let mut need = |what: &str, expected: usize, found: usize| {
        if found < expected {
            problems.push(format!("{what}: {expected} needed, {found} have a key that counts at {at}"));
        }
    };
    let of = if series.is_empty() { "any one series".to_owned() } else { format!("series {series:?}") };
    let able = in_time.iter().filter(|person| person.may_sign(series)).count();
    need(&format!("people who may sign {of}"), conditions.threshold, able);
    for (role, count) in &conditions.require {
        let able = holding(*role).filter(|person| person.may_sign(series)).count();
        need(&format!("people with the role {role} who may sign {of}"), *count, able);
    }
    if let Some(status) = &conditions.status {
        need("people with the role release, for the status feed", status.threshold, holding(Role::Release).count());
    }
    problems
}

fn remarks(policy: &Policy, at: Timestamp) -> Vec<String> {
    let ending = policy.keys().filter_map(|(person, key)| {
        let until = key.until.filter(|until| *until > at && *until <= at.plus_days(SOON))?;
        Some(format!("key {} of {} counts only until {until}", key.key.id().short(), person.name))
    });
    ending.collect()
}

fn text(report: &Report<'_>) -> String {
    let number = |(what, count): (&Role, &usize)| format!("{count} {what}");
    let require: Vec<String> = report.require.iter().map(number).collect();
    let people = counted(report.threshold as u64, "person", "people");
    let mut lines = vec![("as of", report.at.to_string()), ("threshold", people)];
    if !require.is_empty() {
        lines.push(("of them", require.join(", ")));
    }
    if let Some(ShownFeed { name, threshold }) = &report.status_feed {
        lines.push(("status feed", format!("{name:?} must be at hand, signed by {threshold} with the role release")));
    }
    lines.extend(report.minimum.iter().map(|(series, least)| ("series", format!("{series}: number {least} or later"))));
    let mut text = format!("{}\n{}", on_one_line(report.file), fields(&lines));
    for person in &report.people {
        let roles = if person.roles.is_empty() { "no role".to_owned() } else { person.roles.join(", ") };
        let series =
            person.series.as_ref().map_or(String::new(), |series| format!("; only series {}", series.join(", ")));
        text += &format!("\n{} ({roles}{series})\n", person.name);
        for key in &person.keys {
            let from = key.from.map(|from| format!(", from {from}")).unwrap_or_default();
            let until = key.until.map(|until| format!(", until {until}")).unwrap_or_default();
            let counts = if key.counts { "" } else { ": does NOT count now" };
            text += &format!("  key {}{from}{until}{counts}\n", key.key_id);
        }
    }
    for (heading, lines) in [("Problems", &report.problems), ("Remarks", &report.remarks)] {
        if !lines.is_empty() {
            text += &format!("\n{heading}\n  {}\n", lines.join("\n  "));
        }
    }
    text
}
