//! Sigstore bundles, version 0.3 (sigstore/protobuf-specs, `sigstore_bundle.proto`): one signer each, by public key.

use serde::Serialize;

use super::{ExportError, dsse, ed25519, json};
use crate::digest::Sha256;
use crate::format::{Container, Envelope, SignatureRecord};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// The bundle of one signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerBundle {
    /// Whose key it names.
    pub key_id: Sha256,
    /// The bundle, one line of JSON.
    pub text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: &'static str,
    verification_material: VerificationMaterial,
    dsse_envelope: Envelope,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerificationMaterial {
    public_key: PublicKeyIdentifier,
    // Nothing is logged; readers that require the member find it empty.
    tlog_entries: [(); 0],
}

#[derive(Serialize)]
struct PublicKeyIdentifier {
    // The specification asks for the very key id of the envelope's signature.
    hint: Sha256,
}

/// A bundle for each Ed25519 signature, as a bundle's envelope must have exactly one; `signer`, the beginning of a key id,
/// picks one of them.
///
/// # Errors
/// No such signature, or none or several by `signer`.
pub fn bundles(container: &Container<'_>, signer: Option<&str>) -> Result<Vec<SignerBundle>, ExportError> {
    let mut records = ed25519(container)?;
    if let Some(wanted) = signer {
        let found = records.iter().map(|record| record.key_id).collect();
        records.retain(|record| record.key_id.to_string().starts_with(wanted));
        if records.len() != 1 {
            return Err(ExportError::Signer { wanted: wanted.to_owned(), found });
        }
    }
    records.into_iter().map(|record| bundle(container, record)).collect()
}

fn bundle(container: &Container<'_>, record: &SignatureRecord) -> Result<SignerBundle, ExportError> {
    let key_id = record.key_id;
    let text = json(&Bundle {
        media_type: MEDIA_TYPE,
        verification_material: VerificationMaterial {
            public_key: PublicKeyIdentifier { hint: key_id },
            tlog_entries: [],
        },
        dsse_envelope: dsse::of(container, &[record]),
    })?;
    Ok(SignerBundle { key_id, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::testing::{key, signed_by};

    #[test]
    fn golden_text() {
        let file = signed_by(&[1]);
        let expected = "{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\",\
            \"verificationMaterial\":{\"publicKey\":{\"hint\":\"fd110d301d2f077de1414b8f99f441b1403fab207b2052fbd2c065e4ee8e7dc2\"},\"tlogEntries\":[]},\
            \"dsseEnvelope\":{\"payload\":\"e30=\",\"payloadType\":\"application/vnd.in-toto+json\",\"signatures\":[\
            {\"keyid\":\"fd110d301d2f077de1414b8f99f441b1403fab207b2052fbd2c065e4ee8e7dc2\",\"sig\":\"veLg0e+f4poyS3YRJakfMGqcWCOKpK/odygGjhTkwZv0V+Om/OfLlEQ57kTgEM0N02igz2ne/YdGZ1SOWajECA==\"}]}}\n";
        let bundles = bundles(&Container::parse(&file).unwrap(), None).unwrap();
        assert_eq!(bundles, [SignerBundle { key_id: key(1).public().unwrap().id(), text: expected.to_owned() }]);
    }

    #[test]
    fn each_signer_has_a_bundle_of_their_own() {
        let file = signed_by(&[1, 2, 3]);
        let container = Container::parse(&file).unwrap();
        let all = bundles(&container, None).unwrap();
        assert_eq!(all.len(), 3);
        for one in &all {
            let id = one.key_id.to_string();
            assert_eq!(one.text.matches(&id).count(), 2, "hint and keyid");
            assert_eq!(one.text.matches("\"sig\"").count(), 1);
            assert_eq!(bundles(&container, Some(&id[..8])).unwrap().as_slice(), std::slice::from_ref(one));
        }
        for wanted in ["", "zz", "FD11"] {
            let error = bundles(&container, Some(wanted)).unwrap_err();
            assert!(matches!(&error, ExportError::Signer { found, .. } if found.len() == 3), "{error}");
        }
    }
}
