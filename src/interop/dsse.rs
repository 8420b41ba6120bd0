//! DSSE v1 JSON envelopes (secure-systems-lab/dsse, `envelope.md`), as in-toto attestations use them.

use super::{ExportError, ed25519, json};
use crate::format::{Container, Envelope, SignatureRecord};

/// The manifest with some of its signatures.
pub(super) fn of(container: &Container<'_>, records: &[&SignatureRecord]) -> Envelope {
    Envelope::new(container.manifest().to_vec(), records.iter().copied().cloned().collect())
}

/// The manifest with all Ed25519 signatures of the patch, on one line of JSON.
///
/// # Errors
/// No such signature.
pub fn envelope(container: &Container<'_>) -> Result<String, ExportError> {
    json(&of(container, &ed25519(container)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::testing::{TINY, signed_by};

    #[test]
    fn golden_text() {
        // The signatures are those that Python's cryptography makes over `DSSEv1 28 application/vnd.in-toto+json 2 {}`.
        let expected = "{\"payload\":\"e30=\",\"payloadType\":\"application/vnd.in-toto+json\",\"signatures\":[\
            {\"keyid\":\"47dea58ea00fae9417ee19d76755bfef690899021132effb04fe1f9e4f0c8059\",\"sig\":\"hz2hsOxS/3FftwS7PldoVbOw3reSF8DBEbsfDMSMN35xcC7QN/qWf6GiL4iQwmTY/BMJugqZoFLm0ix2ROK5Ag==\"},\
            {\"keyid\":\"fd110d301d2f077de1414b8f99f441b1403fab207b2052fbd2c065e4ee8e7dc2\",\"sig\":\"veLg0e+f4poyS3YRJakfMGqcWCOKpK/odygGjhTkwZv0V+Om/OfLlEQ57kTgEM0N02igz2ne/YdGZ1SOWajECA==\"}]}\n";
        let file = signed_by(&[1, 2]);
        assert_eq!(envelope(&Container::parse(&file).unwrap()).unwrap(), expected);
    }

    #[test]
    fn the_payload_is_the_stored_manifest() {
        let container = Container::parse(TINY).unwrap();
        let text = envelope(&container).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let payload = <base64ct::Base64 as base64ct::Encoding>::decode_vec(value["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload, container.manifest());
        assert_eq!(value["signatures"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn signatures_of_unknown_algorithms_do_not_make_an_envelope() {
        let file = signed_by(&[]);
        let error = envelope(&Container::parse(&file).unwrap()).unwrap_err();
        assert!(matches!(error, ExportError::Unsigned { found: 1 }), "{error}");
    }
}
