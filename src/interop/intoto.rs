//! The bare in-toto Statement: a patch's manifest, byte for byte as stored and signed.

use crate::format::Container;

/// The Statement (in-toto attestation framework, v1). Without an envelope it proves nothing: see [`super::dsse`].
pub fn statement<'a>(container: &Container<'a>) -> &'a [u8] {
    container.manifest()
}
