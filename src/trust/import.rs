//! Public keys as OpenSSH and minisign write them, and what a text is that holds no key of the expected kind.
//!
//! Lines are those of `PROTOCOL` (OpenSSH, RFC 8709) and of minisign: exact lengths, canonical Base64, nothing after.

use base64ct::{Base64, Encoding as _};
use pkcs8::der::Decode as _;
use pkcs8::spki::SubjectPublicKeyInfoRef;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use zeroize::Zeroizing;

const OPENSSH: &str = "ssh-ed25519";
/// What an OpenSSH Ed25519 key holds before its 32 bytes: two lengths and the algorithm.
const OPENSSH_HEAD: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";
/// Key types that OpenSSH knows, without the domain that some carry.
const OPENSSH_TYPES: [&str; 9] = [
    OPENSSH,
    "ssh-rsa",
    "ssh-dss",
    "ssh-ed448",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519",
    "sk-ecdsa-sha2-nistp256",
];
const MINISIGN_COMMENT: &str = "untrusted comment:";
/// A minisign key or signature begins with `Ed` or `ED`, an 8-byte key number follows. Longest: the secret key.
const MINISIGN_PUBLIC: usize = 2 + 8 + 32;
const MINISIGN_SIGNATURE: usize = 2 + 8 + 64;
const MINISIGN_SECRET: usize = 158;

/// The 32 bytes of an OpenSSH or minisign public key; nothing if the text may be a SubjectPublicKeyInfo.
///
/// # Errors
/// What the text is instead.
pub(super) fn public_key(text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.split_whitespace().next() == Some(OPENSSH) {
        return openssh(text).map(Some);
    }
    if let Some(found) = minisign(text) {
        return found.map(Some);
    }
    match describe(text) {
        Some(Found { is_spki: true, .. }) => Ok(None),
        Some(found) => Err(found.to_string()),
        None => Ok(None),
    }
}

/// What a text is, if it is anything that has to do with keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    what: &'static str,
    how: String,
    /// A SubjectPublicKeyInfo, which is no foreign key.
    is_spki: bool,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.what, self.how)
    }
}

/// Names a key, certificate or signature of any common kind by its looks, without vouching that it is whole.
pub(super) fn describe(text: &str) -> Option<Found> {
    pem(text).or_else(|| minisign_kind(text)).or_else(|| openssh_kind(text)).or_else(|| der_kind(text))
}

fn found(what: &'static str, how: impl Into<String>) -> Option<Found> {
    Some(Found { what, how: how.into(), is_spki: false })
}

fn spki(how: &str) -> Option<Found> {
    Some(Found { what: "a public key", how: how.to_owned(), is_spki: true })
}

fn openssh(line: &str) -> Result<[u8; 32], String> {
    let lines = line.lines().count();
    if lines != 1 {
        return Err(format!("{lines} lines that begin with an OpenSSH key"));
    }
    let body = line.split_whitespace().nth(1).ok_or("an OpenSSH line without a key")?;
    let blob = Base64::decode_vec(body).map_err(|error| format!("an OpenSSH key that is not Base64: {error}"))?;
    let key = blob.strip_prefix(OPENSSH_HEAD).and_then(|key| key.try_into().ok());
    let expected = OPENSSH_HEAD.len() + 32;
    key.ok_or_else(|| match blob.len() == expected {
        true => format!("an OpenSSH line that says {OPENSSH} before a key of another type"),
        false => format!("an OpenSSH {OPENSSH} key of {} bytes instead of {expected}", blob.len()),
    })
}

/// The key of a minisign public key; nothing if the text has to do with minisign in another way or none.
fn minisign(text: &str) -> Option<Result<[u8; 32], String>> {
    let line = match text.strip_prefix(MINISIGN_COMMENT) {
        None => text,
        Some(rest) => match rest.lines().skip(1).collect::<Vec<_>>().as_slice() {
            [line] => line,
            _ => return None,
        },
    };
    if text == line && (line.len() != MINISIGN_PUBLIC / 3 * 4 || !line.starts_with("RW")) {
        return None;
    }
    match Base64::decode_vec(line) {
        Err(error) => Some(Err(format!("a minisign key that is not Base64: {error}"))),
        Ok(bytes) if bytes.len() == MINISIGN_PUBLIC => {
            let key = bytes.strip_prefix(b"Ed").and_then(|rest| rest.get(8..)?.try_into().ok());
            Some(key.ok_or_else(|| "a minisign key of another algorithm than Ed".to_owned()))
        }
        Ok(bytes) if matches!(bytes.len(), MINISIGN_SIGNATURE | MINISIGN_SECRET) => None,
        Ok(bytes) => Some(Err(format!("a minisign key of {} bytes instead of {MINISIGN_PUBLIC}", bytes.len()))),
    }
}

fn minisign_kind(text: &str) -> Option<Found> {
    let commented = text.starts_with(MINISIGN_COMMENT);
    let mut lines = text.lines().skip(usize::from(commented));
    let bytes = Zeroizing::new(lines.next().and_then(|line| Base64::decode_vec(line).ok()).unwrap_or_default());
    match (bytes.get(..2), bytes.len()) {
        (Some(b"Ed"), MINISIGN_PUBLIC) if lines.next().is_some() => {
            found("a public key", "minisign, and lines after it")
        }
        (Some(b"Ed"), MINISIGN_PUBLIC) => found("a public key", "minisign"),
        (Some(b"Ed"), MINISIGN_SECRET) => found("a private key", "minisign"),
        (Some(b"Ed" | b"ED"), MINISIGN_SIGNATURE) => found("a signature", "minisign"),
        _ if commented => found("a file", "minisign or signify, but neither key nor signature"),
        _ => None,
    }
}

fn openssh_kind(text: &str) -> Option<Found> {
    let known = |word: &str| {
        let name = word.strip_suffix("@openssh.com").unwrap_or(word);
        OPENSSH_TYPES.contains(&name.strip_suffix("-cert-v01").unwrap_or(name))
    };
    let line = text.lines().find(|line| !line.starts_with('#'))?;
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if !known(first) || text.starts_with('#') {
        let with = Some(first).into_iter().chain(words).find(|word| known(word))?;
        let how = format!("of an allowed_signers, known_hosts or authorized_keys file; the key begins at {with}");
        return found("a line", how);
    }
    match first {
        _ if first.contains("-cert-v01") => found("a certificate", format!("OpenSSH {first}")),
        _ if first.starts_with("sk-") => found("a public key", format!("OpenSSH {first}, of a hardware security key")),
        _ => found("a public key", format!("OpenSSH {first}")),
    }
}

/// By the label of PEM, or of its forerunner in RFC 4716.
fn pem(text: &str) -> Option<Found> {
    let label = match text.strip_prefix("-----BEGIN ") {
        Some(rest) => rest.split_once("-----")?.0,
        None => text.strip_prefix("---- BEGIN ")?.split_once(" ----")?.0,
    };
    if label == "PUBLIC KEY" {
        return spki("SubjectPublicKeyInfo PEM");
    }
    let how: String = label.chars().take(40).collect();
    let what = [("PRIVATE KEY", "a private key"), ("PUBLIC KEY", "a public key"), ("CERTIFICATE", "a certificate")];
    let what = what.iter().find(|(end, _)| label.ends_with(end)).map_or("something else", |(_, what)| what);
    found(what, format!("PEM {how:?}"))
}

/// The Base64 body of a PEM without its frame.
fn der_kind(text: &str) -> Option<Found> {
    // Never grown: a reallocation would leave a copy of a private key behind.
    let mut joined = Zeroizing::new(String::with_capacity(text.len()));
    text.lines().for_each(|line| joined.push_str(line.trim()));
    let bytes = Zeroizing::new(Base64::decode_vec(&joined).ok()?);
    if PrivateKeyInfoRef::from_der(&bytes).is_ok() || EncryptedPrivateKeyInfoRef::from_der(&bytes).is_ok() {
        return found("a private key", "Base64 of PKCS#8");
    }
    SubjectPublicKeyInfoRef::from_der(&bytes).ok()?;
    spki("SubjectPublicKeyInfo in Base64")
}

#[cfg(test)]
mod tests {
    use crate::trust::{KeyError, PublicKey, SecretKey};

    // Made by ssh-keygen (OpenSSH 9.2) and minisign 0.11; nobody has the private keys any more.
    const SSH: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILEK0MR81BknU1xV/RlM1dfux8XQ302IN3JZEa1M6WPr ed25519@example";
    const SSH_SPKI: &str = "MCowBQYDK2VwAyEAsQrQxHzUGSdTXFX9GUzV1+7HxdDfTYg3clkRrUzpY+s=";
    const MINISIGN: &str = "untrusted comment: minisign public key 62359B7CD9D5563E\n\
                            RWQ+VtXZfJs1YnkVGUry0KDUcwPVyFFfGzh0ky84TsaylPfC02IbwKe6\n";
    const MINISIGN_SPKI: &str = "MCowBQYDK2VwAyEAeRUZSvLQoNRzA9XIUV8bOHSTLzhOxrKU98LTYhvAp7o=";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBOdYSHtxlkFTSCdMVN\
                         YLKabaiPAiGSkQPEvaWow8SPsSHaqMz+CKZA1HwmsnoEPxANhvWKvAlOGHuNjGanjQlIo= ecdsa@example";

    /// The whole of what the error says was found.
    #[track_caller]
    fn refused(text: &str) -> String {
        match PublicKey::parse(text) {
            Err(KeyError::Format { what: "public key", found, .. }) => found,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn base64(bytes: &[u8]) -> String {
        <base64ct::Base64 as base64ct::Encoding>::encode_string(bytes)
    }

    fn ssh_of(point: &[u8; 32]) -> String {
        format!("ssh-ed25519 {}", base64(&[super::OPENSSH_HEAD, point].concat()))
    }

    #[test]
    fn keys_of_openssh_and_minisign_are_read() {
        let bare = MINISIGN.lines().nth(1).unwrap();
        let ssh_bare = SSH.rsplit_once(' ').unwrap().0;
        for (text, spki) in [
            (SSH, SSH_SPKI),
            (ssh_bare, SSH_SPKI),
            (&format!("\n{SSH} and more words\r\n"), SSH_SPKI),
            (MINISIGN, MINISIGN_SPKI),
            (&MINISIGN.replace('\n', "\r\n"), MINISIGN_SPKI),
            (bare, MINISIGN_SPKI),
        ] {
            let key = PublicKey::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(key.to_line(), spki, "{text}");
            assert_eq!(PublicKey::parse(spki), Ok(key));
        }
    }

    #[test]
    fn damaged_openssh_keys_are_refused() {
        let body = SSH.split(' ').nth(1).unwrap();
        for (text, words) in [
            ("ssh-ed25519".to_owned(), "without a key"),
            (format!("{SSH}\n{SSH}"), "2 lines"),
            (SSH.replace("PrJZ", "Pr!Z").replace("6WPr", "6WP"), "not Base64"),
            (SSH.replace(body, &format!("{body}AAAA")), "54 bytes instead of 51"),
            (SSH.replace(body, &body[..64]), "48 bytes instead of 51"),
            (SSH.replace("1lZDI1NTE5", "1lZDI1NTE4"), "before a key of another type"),
            // The outer name is right, the key is another's.
            (ECDSA.replace("ecdsa-sha2-nistp256 ", "ssh-ed25519 "), "104 bytes instead of 51"),
        ] {
            let found = refused(&text);
            assert!(found.contains(words), "{text}: {found}");
        }
    }

    #[test]
    fn damaged_minisign_keys_are_refused() {
        let bare = MINISIGN.lines().nth(1).unwrap();
        for (text, words) in [
            (bare.replace("RWQ+", "RWQ!"), "not Base64"),
            (MINISIGN.replace("wKe6", "wKe6AAAA"), "45 bytes instead of 42"),
            (MINISIGN.replace("RWQ", "RUQ"), "another algorithm than Ed"),
            (format!("{MINISIGN}{MINISIGN}"), "a public key (minisign, and lines after it)"),
            ("untrusted comment: nothing".to_owned(), "neither key nor signature"),
        ] {
            let found = refused(&text);
            assert!(found.contains(words), "{text}: {found}");
        }
    }

    /// The last digit of a padded Base64 text has bits that decode to nothing: they must be zero.
    #[test]
    fn base64_has_one_reading() {
        // Neither kind of key needs padding, so this stands for the decoder that both use.
        let padded = base64(&[1, 2, 3, 4]);
        assert_eq!(padded, "AQIDBA==");
        for wrong in ["AQIDBB==", "AQIDBA=", "AQIDBA", "AQID BA==", "AQIDBA==\n", "AQIDBA==AQID"] {
            assert!(<base64ct::Base64 as base64ct::Encoding>::decode_vec(wrong).is_err(), "{wrong}");
        }
        assert!(refused(&SSH.replace("PrJZ", "Pr-Z").replace('/', "_")).contains("not Base64"), "URL-safe");
    }

    #[test]
    fn weak_and_non_canonical_points_are_refused_in_every_dress() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut above = [0xff; 32];
        (above[0], above[31]) = (0xf0, 0x7f);
        for (point, error) in [(identity, KeyError::Weak), (above, KeyError::NotCanonical)] {
            assert_eq!(PublicKey::parse(&ssh_of(&point)), Err(error.clone()));
            let minisign = base64(&[&b"Ed"[..], &[7; 8], &point].concat());
            assert_eq!(PublicKey::parse(&minisign), Err(error));
        }
    }

    #[test]
    fn other_kinds_are_named() {
        let cert = "ssh-ed25519-cert-v01@openssh.com AAAAIHNz user";
        let secret = base64(&[&b"Ed\0\0B2"[..], &[0; 152]].concat());
        let signature = base64(&[&b"ED"[..], &[0; 72]].concat());
        for (text, words) in [
            ("ssh-rsa AAAAB3NzaC1yc2E me", "a public key (OpenSSH ssh-rsa)"),
            (ECDSA, "a public key (OpenSSH ecdsa-sha2-nistp256)"),
            ("sk-ssh-ed25519@openssh.com AAAA me", "of a hardware security key"),
            (cert, "a certificate (OpenSSH ssh-ed25519-cert-v01@openssh.com)"),
            (&format!("me@example {SSH}"), "a line (of an allowed_signers, known_hosts"),
            (&format!("me@example namespaces=\"git\" {SSH}"), "the key begins at ssh-ed25519"),
            (&format!("# mine\n[host]:22 {SSH}"), "known_hosts"),
            (&format!("# mine\n{SSH}"), "authorized_keys file"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key (PEM \"OPENSSH PRIVATE KEY\")"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "a private key (PEM"),
            ("-----BEGIN RSA PUBLIC KEY-----\n", "a public key (PEM \"RSA PUBLIC KEY\")"),
            ("-----BEGIN CERTIFICATE-----\n", "a certificate (PEM"),
            ("-----BEGIN SSH SIGNATURE-----\n", "something else (PEM \"SSH SIGNATURE\")"),
            ("---- BEGIN SSH2 PUBLIC KEY ----\n", "a public key (PEM \"SSH2 PUBLIC KEY\")"),
            (&secret, "a private key (minisign)"),
            (&format!("untrusted comment: minisign encrypted secret key\n{secret}\n"), "a private key (minisign)"),
            (&format!("untrusted comment: x\n{signature}\ntrusted comment: y\nAA==\n"), "a signature (minisign)"),
        ] {
            let found = refused(text);
            assert!(found.contains(words), "{text}: {found}");
        }
    }

    #[test]
    fn a_private_key_is_no_public_key_and_the_other_way_round() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let (plain, locked) = (secret.to_pem(None).unwrap(), secret.to_pem(Some("x")).unwrap());
        let body = |pem: &str| pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        for text in [plain.as_str(), locked.as_str(), &body(&plain), &body(&locked)] {
            assert!(refused(text).starts_with("a private key ("), "{}", refused(text));
        }
        let public = secret.public().unwrap();
        for text in [&public.to_pem(), &public.to_line(), SSH, MINISIGN, MINISIGN.lines().nth(1).unwrap(), ECDSA] {
            let error = SecretKey::parse(text, || panic!("not asked")).unwrap_err();
            let KeyError::Format { what: "private key", found, .. } = &error else { panic!("{error:?}") };
            assert!(found.starts_with("a public key ("), "{text}: {error}");
        }
        let openssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
        let error = SecretKey::parse(openssh, || None).unwrap_err().to_string();
        assert!(error.contains("expected an Ed25519 key as PKCS#8 PEM, found a private key (PEM"), "{error}");
    }
}
