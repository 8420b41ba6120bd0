//! Keys, signatures, and who is believed (`spec/trust.md`).
//!
//! A key found inside a patch is never trusted, and a key id only says which key to try. Verification uses no network.

mod foreign;
mod import;
mod key;
mod keyfile;
mod policy;
mod seen;
mod trust_file;
mod verify;

pub(crate) use foreign::ForeignMessage;
pub use key::{KeyError, PublicKey, SecretKey};
pub use keyfile::{KeyFileError, KeyPairPaths, create_key_pair, read_public_key, read_secret_key};
pub use policy::{Conditions, Person, Policy, PolicyError, Role, StatusRule, TrustedKey};
pub use seen::{NotAMemory, Seen, SeenError};
pub use verify::{PassedOver, Signatures, Signer, TrustError, Verified, verify};
