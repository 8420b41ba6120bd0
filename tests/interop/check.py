"""Reads what `nestpatch export` wrote with libraries that are not ours: check.py KIND FILE [PUBLIC-KEY.pem ...]

KIND    library                                 what it checks
dsse    securesystemslib                        the envelope, and a signature by every key given
intoto  in-toto-attestation                     the Statement's members; a Statement has no signature
bundle  sigstore-models, then securesystemslib  the bundle's schema; hint, then the signature of its envelope

Exits 0 if accepted, 3 if a library is missing, 4 if the library refuses; anything else is a fault of this script.
"""

import hashlib
import json
import sys


def keys(paths):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
    from securesystemslib.signer import SSlibKey

    for path in paths:
        with open(path, "rb") as file:
            key = load_pem_public_key(file.read())
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        yield SSlibKey.from_crypto(key, keyid=hashlib.sha256(spki).hexdigest())


def dsse(envelope, paths):
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    trusted = list(keys(paths))
    try:
        Envelope.from_dict(envelope).verify(trusted, len(trusted))
    except VerificationError as error:
        raise Refused(error) from error


def check_dsse(text, paths):
    dsse(json.loads(text), paths)


def check_intoto(text, _):
    import in_toto_attestation.v1.statement_pb2 as pb
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement

    try:
        Statement.copy_from_pb(json_format.Parse(text, pb.Statement())).validate()
    except (json_format.ParseError, ValueError) as error:
        raise Refused(error) from error


def check_bundle(text, paths):
    from pydantic import ValidationError
    from sigstore_models.bundle.v1 import Bundle

    try:
        bundle = Bundle.from_json(text)
    except ValidationError as error:
        raise Refused(error) from error
    envelope = json.loads(text)["dsseEnvelope"]
    hint = bundle.verification_material.public_key.hint
    if [hint] != [signature["keyid"] for signature in envelope["signatures"]]:
        raise Refused("hint and keyid differ")
    dsse(envelope, paths)


class Refused(Exception):
    pass


def main(kind, file, *paths):
    with open(file, encoding="utf-8") as text:
        text = text.read()
    try:
        {"dsse": check_dsse, "intoto": check_intoto, "bundle": check_bundle}[kind](text, paths)
    except ImportError as error:
        print(f"skipped: {error}")
        return 3
    except Refused as error:
        print(f"refused: {error}")
        return 4
    print("accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
