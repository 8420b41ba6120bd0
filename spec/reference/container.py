"""The container and its signatures: sections 2, 3, 9 and 10 of ../format.md.

Failure classes `container` and `signature`. Ed25519 is written out here, because the rules of section 3 are stricter
than those of common libraries, and an auditor should see them."""
import base64
import hashlib
import struct
import tomllib
from pathlib import Path
from typing import NamedTuple

MAGIC = bytes.fromhex("8e4e53540d0a1a0a")
READER_MINOR = 0
MAX_MANIFEST_BYTES, MAX_PAYLOAD_BYTES = 32 << 20, 2 << 30
MAX_SIGNATURES, MAX_SIGNATURE_BYTES = 64, 50_000
ED25519 = 1
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")

class Refused(Exception):
    """What a reader must not accept. `failure` is a class of section 9, or `trust` for the reader's own policy."""
    def __init__(self, failure: str, text: str) -> None:
        super().__init__(f"{failure}: {text}")
        self.failure = failure

def require(condition: object, failure: str, text: str) -> None:
    """Refuses unless the condition holds."""
    if not condition:
        raise Refused(failure, text)

def text(value: str) -> bytes:
    """A `text` of the format: its length and its UTF-8."""
    return struct.pack("<Q", len(value.encode())) + value.encode()

class Container(NamedTuple):
    """A file cut into its parts, section 2; nothing in it is trusted yet."""
    minors: tuple[int, int]  # the least of a reader, the writer's
    manifest: bytes
    records: list[tuple[int, bytes, bytes]]  # algorithm, key id, signature
    payload: bytes

def parse_container(data: bytes) -> Container:
    """The checks of class `container`, in the order of section 9."""
    require(data[:8] == MAGIC, "container", f"magic is {data[:8].hex()}")
    require(len(data) >= 64, "container", f"header: 64 bytes expected, {len(data)} found")
    major, min_reader, writer, flags, m, s, p = struct.unpack_from("<HHHHQQQ", data, 8)
    require(major == 1 and min_reader <= READER_MINOR, "container", f"for readers of version {major}.{min_reader}")
    fits = m <= MAX_MANIFEST_BYTES and s <= MAX_SIGNATURES * (40 + MAX_SIGNATURE_BYTES) and p <= MAX_PAYLOAD_BYTES
    require(fits, "container", f"too long: manifest {m}, signatures {s}, payload {p} bytes")
    require(not flags and not any(data[40:64]), "container", "flags or reserved bytes are not zero")
    require(len(data) == 64 + m + s + p, "container", f"file: {64 + m + s + p} bytes expected, {len(data)} found")
    records = parse_records(data[64 + m : 64 + m + s])
    return Container((min_reader, writer), data[64 : 64 + m], records, data[64 + m + s :])

def parse_records(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Signature records without gaps, section 3, key ids strictly ascending."""
    records: list[tuple[int, bytes, bytes]] = []
    at = 0
    while at < len(data):
        require(len(data) - at >= 40, "container", f"{len(data) - at} bytes left over after the signature records")
        algorithm, zero, n, key = struct.unpack_from("<HHI32s", data, at)
        require(n <= min(MAX_SIGNATURE_BYTES, len(data) - at - 40), "container", f"a signature of {n} bytes")
        require(zero == 0, "container", "reserved bytes of a signature record are not zero")
        require(algorithm != ED25519 or n == 64, "container", f"an Ed25519 signature of {n} bytes")
        require(not records or key > records[-1][1], "container", "key ids are not strictly ascending")
        records.append((algorithm, key, data[at + 40 : at + 40 + n]))
        at += 40 + n
    require(len(records) <= MAX_SIGNATURES, "container", f"{len(records)} signature records")
    return records

class Policy(NamedTuple):
    """Whose signature counts: how many people are needed, and each person's public keys."""
    threshold: int
    people: dict[str, list[bytes]]

def load_policy(path: Path) -> Policy:
    """A trust file; a member that is not known is refused."""
    file = tomllib.loads(path.read_text("utf-8"))
    people = {str(person["name"]): [import_key(key) for key in person["keys"]] for person in file["people"]}
    threshold, keys = file.get("threshold", 1), [key for keys in people.values() for key in keys]
    known = file["version"] == 1 and set(file) <= {"version", "threshold", "people"}
    known = known and all(set(person) == {"name", "keys"} for person in file["people"])
    require(known, "trust", f"{path}: a member or version that is not known")
    once = len(people) == len(file["people"]) and len(set(keys)) == len(keys)
    require(once, "trust", f"{path}: a person or key twice")
    require(type(threshold) is int and 1 <= threshold <= len(people), "trust", f"{path}: threshold {threshold}")
    return Policy(threshold, people)

def import_key(line: str) -> bytes:
    """The 32 bytes of a public key, from Base64 of its SubjectPublicKeyInfo."""
    der = base64.b64decode(line, validate=True)
    require(len(der) == 44 and der[:12] == SPKI_PREFIX, "trust", f"{line} is not an Ed25519 public key")
    point = decode_point(der[12:])
    require(point and not is_small_order(point), "trust", f"{line} is no point, not canonical, or of small order")
    return der[12:]

def key_id(key: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo."""
    return hashlib.sha256(SPKI_PREFIX + key).digest()

def signed_message(manifest: bytes) -> bytes:
    """DSSE pre-authentication encoding of the manifest's stored bytes."""
    return b"DSSEv1 28 application/vnd.in-toto+json %d " % len(manifest) + manifest

def verify_signatures(container: Container, policy: Policy) -> None:
    """Enough people signed. Any wrong signature under a trusted key is fatal, whatever the others are."""
    owner = {key_id(key): (name, key) for name, keys in policy.people.items() for key in keys}
    message = signed_message(container.manifest)
    signers = set()
    for algorithm, identity, signature in container.records:
        if algorithm == ED25519 and identity in owner:
            name, key = owner[identity]
            require(verify_ed25519(key, message, signature), "signature", f"wrong, under a key of {name}")
            signers.add(name)
    require(len(signers) >= policy.threshold, "signature", f"{policy.threshold} people needed, {len(signers)} signed")

# Ed25519 (RFC 8032) on affine points: -x^2 + y^2 = 1 + D x^2 y^2 modulo P. Slow, and short.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]

def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    inverse = pow((1 + k) * (1 - k), -1, P)
    return (x1 * y2 + x2 * y1) * (1 - k) * inverse % P, (y1 * y2 + x1 * x2) * (1 + k) * inverse % P

def multiply(k: int, point: Point) -> Point:
    result: Point = (0, 1)
    for bit in bin(k)[2:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result

def encode_point(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")

def decode_point(data: bytes) -> Point | None:
    """Only a canonical encoding: y below P, and no sign on x = 0."""
    y = int.from_bytes(data, "little") & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x & 1 != data[31] >> 7:
        x = -x % P
    return (x, y) if x * x % P == square and encode_point((x, y % P)) == data else None

def is_small_order(point: Point) -> bool:
    return multiply(8, point) == (0, 1)

BASE = decode_point((4 * pow(5, -1, P) % P).to_bytes(32, "little")) or (0, 1)

def challenge(r: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % L

def verify_ed25519(key: bytes, message: bytes, signature: bytes) -> bool:
    """S reduced; neither R nor key of small order; R equal to the recomputed encoding, without the cofactor."""
    a, s = decode_point(key), int.from_bytes(signature[32:], "little")
    if a is None or is_small_order(a) or s >= L:
        return False
    h = challenge(signature[:32], key, message)
    r = add(multiply(s, BASE), multiply(h, (-a[0] % P, a[1])))
    return not is_small_order(r) and encode_point(r) == signature[:32]
