"""Writes ../../fixtures/vectors: small files that each break one rule of ../format.md, or that all readers must accept.

Nothing here depends on time or chance: `vectors.py` writes the same bytes again, `vectors.py --check` compares them."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from container import (
    BASE, MAGIC, SPKI_PREFIX, L, P, Record, add, challenge, decode_point, encode_point, is_small_order, key_id,
    multiply, signed_message,
)
from manifest import content_root
from payload import BY_NAME, LANES, Dtype, Edit, Words, fold, guess_and_lanes
from payload import text as length_and_text

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "vectors"
Files = dict[str, bytes]
Hook = Callable[[Any], Any]


def encode_record(record: Record) -> bytes:
    return struct.pack("<HHI", record.algorithm, 0, len(record.signature)) + record.key_id + record.signature


def encode_edit(e: Edit) -> bytes:
    """An edit's bytes in the `rows` section."""
    n, shape = struct.pack("<Q", len(e.rows)), struct.pack(f"<Q{len(e.shape)}Q", len(e.shape), *e.shape)
    codes = bytes([e.layout, e.delta_dtype.code])
    lists = n + e.rows.astype("<u4").tobytes() + n + e.clusters.astype("<u4").tobytes()
    return length_and_text(e.name) + bytes([e.dtype.code]) + shape + codes + lists


def encode_planes(codec: str, content: bytes) -> bytes:
    """What goes into the frame."""
    if codec == "zstd":
        return content
    width = int(codec.split("+")[0][-1])
    words = np.frombuffer(content, f"<u{width}")
    if codec.startswith("float"):
        words = words << 1 | words >> width * 8 - 1
    return words.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T[::-1].tobytes()


def write_residual(edits: list[Edit], folds: list[tuple[Words, Words, Words]]) -> bytes:
    """From each edit's (old, new, delta rows)."""
    values, counts = [], []
    for lane in range(LANES):
        for edit, (old, new, deltas) in zip(edits, folds):
            guess, lanes = guess_and_lanes(edit, new, deltas)
            bits = edit.dtype.width * 8
            s = (old.astype(np.int64) - guess + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
            value = np.where(s >= 0, 2 * s, -2 * s - 1).astype(edit.dtype.words)
            values += [value[row][lanes[row] == lane].tobytes() for row in range(len(edit.rows))]
            counts += [int((row == lane).sum()) for row in lanes]
    all_counts = np.array(counts, np.uint32)
    return b"".join(values) + (all_counts & 0xFFFF).astype("<u2").tobytes() + (all_counts >> 16).astype("<u2").tobytes()


class Key:
    """A key pair of a fixed seed. Never trust it."""

    def __init__(self, seed: int) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))
        self.public = self.private.public_key().public_bytes_raw()
        self.scalar = (
            int.from_bytes(hashlib.sha512(bytes([seed] * 32)).digest()[:32], "little") & (1 << 254) - 8 | 1 << 254
        )

    def record(self, manifest: bytes, message: Callable[[bytes], bytes] = signed_message) -> Record:
        return Record(1, key_id(self.public), self.private.sign(message(manifest)))

    def forge(self, manifest: bytes, torsion: tuple[int, int], nonce: int, public: bytes | None = None) -> Record:
        """R = nonce * B + torsion, and the S that goes with it if the cofactor is ignored."""
        public, r = public or self.public, encode_point(add(multiply(nonce, BASE), torsion))
        s = (nonce + challenge(r, public, signed_message(manifest)) * self.scalar) % L
        return Record(1, key_id(public), r + s.to_bytes(32, "little"))


ALICE, ALICE_2, BOB, STRANGER = Key(0xA1), Key(0xA2), Key(0xB0), Key(0x55)
POINTS = [point for y in range(2, 99) if (point := decode_point(y.to_bytes(32, "little")))]
TORSION = next(point for point in (multiply(L, q) for q in POINTS) if multiply(4, point) != (0, 1))  # of order 8
MIXED = encode_point(add(decode_point(ALICE.public) or BASE, TORSION))


def spki(public: bytes) -> str:
    return base64.b64encode(SPKI_PREFIX + public).decode()


# The checkpoint that patches are for, and its edits: name, dtype, shape, layout, delta dtype, rows, clusters.
def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> Words:
    values = np.frombuffer(blake3(name.encode()).digest(length=int(np.prod(shape))), np.uint8).astype(np.float32)
    bits = BY_NAME[dtype].round(np.ascontiguousarray((values - 127.5) / 64)).copy()
    bits[1] = 1 << bits.itemsize * 8 - 1  # negative zero
    return bits


def edit(
    name: str, dtype: str, shape: tuple[int, ...], layout: int, delta: str, rows: list[int], clusters: list[int]
) -> Edit:
    return Edit(
        name, BY_NAME[dtype], shape, layout, BY_NAME[delta], np.array(rows, np.uint32), np.array(clusters, np.uint32)
    )


A = edit("a.weight", "BF16", (4, 4), 0, "BF16", [0, 2, 3], [0, 1, 0])
B = edit("b.weight", "F32", (3, 2), 1, "F32", [1], [0])
C = edit("c.weight", "F16", (2, 2, 3), 1, "BF16", [0, 2, 5], [0, 1, 2])
D = edit("d.weight", "BF16", (2, 2, 2, 3), 0, "F32", [1, 6], [0, 0])
TENSORS = {e.name: (e.dtype.name, e.shape, tensor(e.name, e.dtype.name, e.shape)) for e in (A, B, C, D)}
TENSORS["untouched"] = ("BF16", (2, 2), tensor("untouched", "BF16", (2, 2)))
CONFIG = {
    "hidden_size": 4, "rope_theta": 10000.0, "eps": 1e-05, "tie": False, "act": 'gel\u00fc\u007f/\n"\u0001',
    "model_type": "llama", "rope": {"b": [1, 2.5, None], "a": "x"},
}


def deltas(e: Edit) -> Words:
    if e.name in EXTREMES:
        return EXTREMES[e.name][1]
    bits = tensor("delta of " + e.name, e.delta_dtype.name, (int(e.clusters.max()) + 1, e.cols))
    bits[1] = 0  # keeps the negative zero
    return bits.reshape(-1, e.cols)


def extreme(e: Edit) -> tuple[Words, Words]:
    """Bits of every magnitude, with deltas that are unrelated, cancel, nearly vanish or make ties; none may overflow."""
    def finite_bits(name: str, dtype: Dtype, shape: tuple[int, ...]) -> Words:
        bits = np.frombuffer(blake3(name.encode()).digest(length=int(np.prod(shape)) * dtype.width), dtype.words)
        finite = dtype.exponent(bits) != dtype.exponent_mask
        return np.where(finite, bits, bits & 0xFF).astype(dtype.words).reshape(shape)
    old = finite_bits(e.name, e.dtype, e.shape)
    values = e.dtype.to_f32(old[1:])
    unrelated = e.delta_dtype.to_f32(finite_bits("delta of " + e.name, e.delta_dtype, (1, e.cols)))
    with np.errstate(over="ignore", under="ignore"):
        small, half = values * np.float32(0.003), values * np.float32(2**-8)
        wanted = np.choose(np.arange(e.cols) % 4, [unrelated, -values, small, half])
        bits = e.delta_dtype.round(wanted.astype(np.float32))
        sums = e.dtype.round(values + e.delta_dtype.to_f32(bits))
    infinite = e.dtype.exponent(sums) == e.dtype.exponent_mask
    infinite |= e.delta_dtype.exponent(bits) == e.delta_dtype.exponent_mask
    negative_zero = bits == 1 << e.delta_dtype.width * 8 - 1
    return old.reshape(-1), np.where(infinite | negative_zero, 0, bits).astype(e.delta_dtype.words)


X = [edit(f"x.{t}.{d}", t, (2, 32), 0, d, [1], [0]) for t in ("BF16", "F16", "F32") for d in ("BF16", "F16", "F32")]
EXTREMES = {e.name: extreme(e) for e in X}


def frame(
    content: bytes, single: bool = True, window: int = 0, size: int | None = None, width: int = 3, bits: int = 0,
    extra: bytes = b"", blocks: bytes | None = None, tail: bytes = b"",
) -> bytes:
    """A zstd frame of one raw block; every field of its header can be set."""
    n = len(content) if size is None else size
    field = {
        0: b"" if not single else bytes([n & 255]), 1: struct.pack("<H", n - 256 & 65535), 2: struct.pack("<I", n),
        3: struct.pack("<Q", n),
    }
    head = bytes([width << 6 | single << 5 | bits]) + (b"" if single else bytes([window])) + extra + field[width]
    return bytes.fromhex("28b52ffd") + head + (block(content) if blocks is None else blocks) + tail


def block(content: bytes, last: int = 1, kind: int = 0, size: int | None = None) -> bytes:
    return ((len(content) if size is None else size) << 3 | kind << 1 | last).to_bytes(3, "little") + content


def patch(
    edits: list[Edit] = [A, B], content: dict[str, Hook] = {}, codec: dict[str, str] = {}, stored: dict[str, Hook] = {},
    table: Hook | None = None, statement: Hook | None = None, text: Hook | None = None, header: dict[str, int] = {},
    records: Hook | None = None, file: Hook | None = None, extra: list[dict[str, Any]] = [],
    payload: Hook | None = None, without: str = "", folds: list[Words] | None = None, lenient: bool = False,
) -> bytes:
    """A right patch, in which each part can be changed before the parts that depend on it are made."""
    rows = [TENSORS[e.name][2].copy() for e in edits] if folds is None else folds
    base = [tensor_line(e, t) for e, t in zip(edits, rows)]
    all_deltas = [deltas(e) for e in edits]
    done = []
    for e, t, d in zip(edits, rows, all_deltas):
        old, per_row = e.take(t), d[e.clusters]
        new = old if lenient else fold(e, old, per_row)  # lenient: for patches whose fold must fail
        e.put(t, new)
        done.append((old, new, per_row))
    contents = {
        "rows": struct.pack("<Q", len(edits)) + b"".join(encode_edit(e) for e in edits),
        "deltas": b"".join(d.tobytes() for d in all_deltas), "residual": write_residual(edits, done),
    }
    codecs = {"rows": "zstd", "deltas": "float2+zstd", "residual": "planes2+zstd"} | codec
    lines, parts = [], []
    for name in contents:
        if name != without:
            data = content.get(name, bytes)(contents[name])
            part = data if codecs[name] == "raw" else stored.get(name, frame)(encode_planes(codecs[name], data))
            lines.append(section_line(name, name, name != "residual", codecs[name], data, part))
            parts.append(part)
    for line in extra:
        parts.append(line.pop("part"))
        lines.append(line)
    lines = (table and table(lines)) or lines
    digests = [
        {"name": line["name"], "digest": {k: line["content"][k] for k in ("blake3", "sha256")}} for line in lines
    ]
    result = [
        {k: v for k, v in tensor_line(e, t).items() if k in ("name", "blake3", "rows")} for e, t in zip(edits, rows)
    ]
    fields = {"major": 1, "min_reader": 0, "writer": 0, "flags": 0} | header
    document: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1", "subject": digests,
        "predicateType": "urn:nestpatch:safety-patch:v1",
        "predicate": {
            "format": {"major": 1, "min_reader_minor": fields["min_reader"], "writer_minor": fields["writer"]},
            "name": "vector", "series": "vectors", "sequence": 1, "supersedes": [], "created": "2026-11-24T00:00:00Z",
            "tool": {"name": "vectors", "version": "1"}, "requires": [], "sections": lines,
            "content_root": content_root(lines),
            "base": {
                "name": "tiny", "architecture": {"model_type": "llama", "config": {"hidden_size": "4"}},
                "levels": ["exact", "architecture"], "tensors": base,
            },
            "result": {"tensors": result}, "creation": {"method": "vectors"},
        },
    }
    document = (statement and statement(document)) or document
    manifest = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    manifest = text(manifest) if text else manifest
    signed = records(manifest) if records else [ALICE.record(manifest)]
    signatures = (
        signed
        if isinstance(signed, bytes)
        else b"".join(encode_record(r) for r in sorted(signed, key=lambda r: r.key_id))
    )
    body = payload(b"".join(parts)) if payload else b"".join(parts)
    lengths = [fields.get(name, len(part)) for name, part in (("m", manifest), ("s", signatures), ("p", body))]
    head = (
        MAGIC
        + struct.pack("<HHHHQQQ", *(fields[k] for k in ("major", "min_reader", "writer", "flags")), *lengths)
        + bytes(24)
    )
    whole = head + manifest + signatures + body
    return file(whole) if file else whole


def tensor_line(e: Edit, t: Words) -> dict[str, Any]:
    return {
        "name": e.name, "dtype": e.dtype.name, "shape": list(e.shape), "blake3": e.tensor_digest(t),
        "rows": e.rows_digest(t),
    }


def section_line(name: str, kind: str, critical: bool, codec: str, data: bytes, part: bytes) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "critical": critical, "codec": codec,
        "stored": {"length": len(part), "blake3": blake3(part).hexdigest()},
        "content": {
            "length": len(data), "blake3": blake3(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest(),
        },
    }


def extra(kind: str = "sketch", critical: bool = False, name: str = "more", codec: str = "raw") -> dict[str, Any]:
    return section_line(name, kind, critical, codec, b"abc", b"abc") | {"part": b"abc"}


GONE = object()


def put(path: str, value: Any) -> Hook:
    """Sets, changes (a function) or takes away (GONE) one member, named by its path; p. is short for predicate."""
    keys = [
        int(k) if k.isdigit() else k
        for k in path.replace("p.", "predicate.", 1 if path.startswith("p.") else 0).split(".")
    ]

    def hook(document: Any) -> None:
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        if value is GONE:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value(inner[keys[-1]]) if callable(value) else value

    return hook


def swap(old: bytes, new: bytes) -> Hook:
    """Replaces the first occurrence; it must be there."""

    def hook(data: bytes) -> bytes:
        assert old in data, old
        return data.replace(old, new, 1)

    return hook


def small(**change: Any) -> bytes:
    """A patch of one tensor without residual, to keep files short where neither matters."""
    return patch([A], without="residual", **change)


def creation(text: str | bytes) -> bytes:
    return small(text=swap(b'{"method":"vectors"}', text if isinstance(text, bytes) else text.encode()))


def overwrite(offset: int, data: bytes) -> Hook:
    return lambda whole: whole[: offset % len(whole)] + data + whole[offset % len(whole) + len(data) :]


def flip(offset: int) -> Hook:
    return lambda whole: overwrite(offset, bytes([whole[offset] ^ 1]))(whole)


VECTORS: dict[str, tuple[dict[str, Any], bytes]] = {}


def add_vector(name: str, failure: str, section: str, data: bytes, **more: str) -> None:
    assert name not in VECTORS, name
    base = {"base": "exact"} if failure == "ok" else {}
    entry = {"file": f"{name}.nestpatch", "rule": name.replace("-", " "), "section": section, "class": failure}
    VECTORS[name] = (entry | base | more, data)


def each(prefix: str, failure: str, section: str, cases: dict[str, bytes], **more: str) -> None:
    for name, data in cases.items():
        add_vector(f"{prefix}-{name}", failure, section, data, **more)


def containers() -> None:
    good = small()
    m, s, p = struct.unpack_from("<QQQ", good, 16)
    u64 = lambda offset, value: small(file=overwrite(offset, struct.pack("<Q", value)))  # noqa: E731
    each(
        "file", "container", "2",
        {
            "empty": b"", "magic-only": MAGIC, "header-cut-short": good[:63], "cut-short": good[:-1],
            "one-byte-more": good + b"\0", "magic-in-text-mode": small(file=swap(b"\r\n", b"\n")),
            "payload-missing": good[:-p],
        },
    )
    each(
        "header", "container", "2",
        {
            "major-0": small(header={"major": 0}), "major-2": small(header={"major": 2}),
            "min-reader-1": small(header={"min_reader": 1}), "flags-nonzero": small(header={"flags": 1}),
            "flags-high-bit": small(header={"flags": 1 << 15}), "reserved-first": small(file=overwrite(40, b"\1")),
            "reserved-last": small(file=overwrite(63, b"\1")),
            "signatures-one-longer-payload-one-shorter": small(header={"s": s + 1, "p": p - 1}),
        },
    )
    each(
        "header", "container", "10",
        {
            "manifest-over-cap": u64(16, 33554433), "signatures-over-cap": u64(24, 64 * 50040 + 1),
            "payload-over-cap": u64(32, 2**31 + 1), "payload-all-ones": u64(32, 2**64 - 1),
        },
    )
    add_vector("header-writer-minor-7", "ok", "2", patch(header={"writer": 7}))
    fields = {
        "major": 8, "min-reader": 10, "flags": 14, "reserved": 50, "manifest-length": 16, "signatures-length": 24,
        "payload-length": 32, "magic": 0, "record-reserved": 64 + m + 2, "record-length": 64 + m + 4,
    }
    each("flip", "container", "9", {name: flip(at)(good) for name, at in fields.items()})
    each(
        "flip", "signature", "9",
        {
            name: flip(at)(good)
            for name, at in {
                "manifest-first": 64, "manifest-middle": 64 + m // 2, "manifest-last": 63 + m,
                "record-algorithm": 64 + m, "record-key-id": 64 + m + 8, "signature-r": 64 + m + 40,
                "signature-s": 64 + m + 72,
            }.items()
        },
    )
    add_vector("flip-writer-minor", "manifest", "9", flip(12)(good))
    good = patch()
    m, s, p = struct.unpack_from("<QQQ", good, 16)
    at = 64 + m + s
    for line in json.loads(good[64 : 64 + m])["predicate"]["sections"]:
        n = line["stored"]["length"]
        each(
            f"flip-{line['name']}", "payload", "9",
            {"first": flip(at)(good), "middle": flip(at + n // 2)(good), "last": flip(at + n - 1)(good)},
        )
        at += n


def signatures() -> None:
    unknown = lambda n, size=0: [Record(7, bytes([i] * 32), b"x" * size) for i in range(1, n + 1)]  # noqa: E731
    by = lambda *keys: (lambda m: [k.record(m) for k in keys])  # noqa: E731
    raw = lambda change: (lambda m: change(encode_record(ALICE.record(m))))  # noqa: E731
    ordered = lambda m: sorted((ALICE.record(m), STRANGER.record(m)), key=lambda r: r.key_id)  # noqa: E731
    each(
        "records", "container", "3",
        {
            "descending": small(records=lambda m: b"".join(encode_record(r) for r in ordered(m)[::-1])),
            "twice": small(records=by(ALICE, ALICE)),
            "one-key-two-algorithms": small(records=lambda m: [ALICE.record(m), Record(7, key_id(ALICE.public), b"")]),
            "reserved-first": small(records=raw(overwrite(2, b"\1"))),
            "reserved-second": small(records=raw(overwrite(3, b"\1"))),
            "ed25519-63-bytes": small(records=raw(lambda r: overwrite(4, b"\x3f")(r)[:-1])),
            "ed25519-65-bytes": small(records=raw(lambda r: overwrite(4, b"\x41")(r) + b"\0")),
            "left-over": small(records=raw(lambda r: r + b"\0" * 39)),
            "cut-short": small(records=raw(lambda r: r[:-1])),
            "length-all-ones": small(records=raw(overwrite(4, b"\xff" * 4))),
        },
    )
    each("records", "container", "10", {"65": small(records=lambda m: unknown(64) + [ALICE.record(m)])})
    each(
        "records", "ok", "3",
        {
            "64": small(records=lambda m: unknown(63) + [ALICE.record(m)]),
            "unknown-algorithm-beside": small(records=lambda m: unknown(1, 5) + [ALICE.record(m)]),
            "unknown-key-beside": small(records=by(ALICE, STRANGER)),
            "wrong-signature-of-unknown-key-beside": small(records=lambda m: [ALICE.record(m), STRANGER.record(b"")]),
        },
        revert="none",
    )
    each(
        "signature", "signature", "3",
        {
            "none": small(records=lambda m: []), "unknown-key-only": small(records=by(STRANGER)),
            "unknown-algorithm-of-trusted-key": small(
                records=lambda m: [Record(7, key_id(ALICE.public), ALICE.record(m).signature)]
            ),
            "key-id-of-another": small(records=lambda m: [Record(1, key_id(ALICE.public), BOB.record(m).signature)]),
            "of-bare-manifest": small(records=lambda m: [ALICE.record(m, bytes)]),
            "of-other-payload-type": small(
                records=lambda m: [
                    ALICE.record(
                        m,
                        lambda b: signed_message(b).replace(b"28 application/vnd.in-toto+json", b"16 application/json"),
                    )
                ]
            ),
            "of-digest": small(records=lambda m: [ALICE.record(m, lambda b: hashlib.sha256(b).digest())]),
            "s-not-reduced": small(
                records=raw(lambda r: r[:72] + (int.from_bytes(r[72:], "little") + L).to_bytes(32, "little"))
            ),
            "r-small-order": small(records=lambda m: [ALICE.forge(m, (0, 1), 0)]),
            "r-order-8": small(records=lambda m: [ALICE.forge(m, TORSION, 0)]),
            "r-not-canonical": small(
                records=lambda m: [
                    Record(
                        1, key_id(ALICE.public),
                        (P + 1).to_bytes(32, "little")
                        + (
                            challenge((P + 1).to_bytes(32, "little"), ALICE.public, signed_message(m))
                            * ALICE.scalar
                            % L
                        ).to_bytes(32, "little"),
                    )
                ]
            ),
            "cofactored-only": small(records=lambda m: [ALICE.forge(m, TORSION, 5)]),
            "all-zero": small(records=raw(lambda r: r[:40] + bytes(64))),
        },
    )
    each(
        "signature", "signature", "3",
        {
            "wrong-beside-enough-others": small(
                records=lambda m: [ALICE.record(m), Record(1, key_id(BOB.public), bytes(64))]
            )
        },
        trust="one-of-two.toml",
    )
    each(
        "threshold", "signature", "3",
        {"one-of-two": small(), "one-person-two-keys": small(records=by(ALICE, ALICE_2))}, trust="two.toml",
    )
    each(
        "threshold", "ok", "3",
        {"two-people": small(records=by(ALICE, BOB)), "two-people-three-keys": small(records=by(ALICE, ALICE_2, BOB))},
        trust="two.toml", revert="none",
    )
    mixed = lambda m: next(
        r
        for n in range(1, 99)
        if challenge((r := ALICE.forge(m, (0, 1), n, MIXED)).signature[:32], MIXED, signed_message(m)) % 8 == 0
    )  # noqa: E731
    add_vector(
        "signature-mixed-order-key", "ok", "3", small(records=lambda m: [mixed(m)]), trust="mixed-order.toml",
        revert="none",
    )


def json_rules() -> None:
    each(
        "json", "manifest", "4.1",
        {
            name: creation(text)
            for name, text in {
                "key-twice": '{"a":1,"a":1}', "key-twice-after-unescaping": '{"a":1,"\\u0061":1}',
                "fraction": '{"a":1.5}', "fraction-zero": '{"a":1.0}', "exponent": '{"a":1e3}',
                "exponent-upper-case": '{"a":1E3}', "minus-zero": '{"a":-0}', "integer-2-53": '{"a":9007199254740992}',
                "integer-minus-2-53": '{"a":-9007199254740992}', "integer-huge": '{"a":1' + "0" * 30 + "}",
                "nan": '{"a":NaN}', "infinity": '{"a":-Infinity}', "depth-17": '{"a":' + "[" * 14 + "]" * 14 + "}",
                "high-surrogate": '{"a":"\\ud800"}', "low-surrogate": '{"a":"\\udc00"}',
                "surrogates-reversed": '{"a":"\\udc00\\ud800"}', "surrogate-in-key": '{"\\ud800":1}',
                "high-surrogate-and-letter": '{"a":"\\ud800\\u0061"}', "tab-unescaped": '{"a":"\t"}',
                "newline-unescaped": '{"a":"\n"}', "nul-unescaped": '{"a":"\0"}', "control-in-key": '{"\x1f":1}',
                "leading-zero": '{"a":01}', "plus": '{"a":+1}', "comma-after-last-member": '{"a":1,}',
                "comma-after-last-element": '{"a":[1,]}', "comment": '{"a":1/**/}', "single-quotes": "{'a':1}",
                "unknown-escape": '{"a":"\\x"}', "short-unicode-escape": '{"a":"\\u12"}', "hex": '{"a":0x10}',
                "unicode-escape-with-sign": '{"a":"\\u+123"}', "key-not-quoted": "{a:1}",
                "word-in-upper-case": '{"a":True}', "form-feed": '{"a":\f1}', "no-break-space": '{"a":\u00a01}',
                "no-colon": '{"a"1}', "no-comma": '{"a":1"b":2}', "lone-minus": '{"a":-}', "empty-value": '{"a":}',
            }.items()
        },
    )
    each(
        "json", "manifest", "4.1",
        {
            name: creation(b'{"a":"' + text + b'"}')
            for name, text in {
                "not-utf-8": b"\xff", "overlong-utf-8": b"\xc0\x80", "surrogate-in-utf-8": b"\xed\xa0\x80",
                "beyond-unicode": b"\xf4\x90\x80\x80", "cut-utf-8": b"\xc3",
            }.items()
        },
    )
    each(
        "json", "manifest", "4.1",
        {
            name: small(text=change)
            for name, change in {
                "empty": lambda b: b"", "space-before": lambda b: b" " + b, "newline-after": lambda b: b + b"\n",
                "byte-order-mark": lambda b: b"\xef\xbb\xbf" + b, "array": lambda b: b"[" + b + b"]",
                "two-values": lambda b: b + b"{}", "brace-missing": lambda b: b[:-1],
                "brace-too-many": lambda b: b + b"}",
                "key-twice-at-the-top": lambda b: b[:-1] + b',"_type":"https://in-toto.io/Statement/v1"}',
                "utf-16": lambda b: b.decode().encode("utf-16-le"),
            }.items()
        },
    )
    each(
        "json", "ok", "4.1",
        {
            name: creation(text)
            for name, text in {
                "surrogate-pair": '{"a":"\\ud83d\\uDE00"}',
                "integers-at-the-edge": '{"a":9007199254740991,"b":-9007199254740991,"c":0}',
                "depth-16": '{"a":' + "[" * 13 + "]" * 13 + "}",
                "escapes": '{"\\u0061\\/\\b":"\\u0000\\n\\t\\"\\\\\\f\\r"}',
                "not-normalised-keys": '{"\u00e9":1,"e\u0301":1}', "delete-unescaped": '{"a":"\x7f\u0085\u2028\ufffe"}',
                "words": '{"a":[true,false,null,{},[],""]}',
            }.items()
        },
        revert="none",
    )
    spread = lambda b: json.dumps(json.loads(b), indent="\r\n\t", sort_keys=True).encode()  # noqa: E731
    escaped = lambda b: b.replace(b"predicateType", b"\\u0070redicateType").replace(
        b"rows", b"\\u0072ows"
    )  # noqa: E731
    add_vector("json-other-order-and-white-space", "ok", "4.1", patch(text=spread))
    add_vector("json-escaped-member-names", "ok", "4.1", patch(text=escaped))


MEMBERS = """
_type subject subject.0.name subject.0.digest subject.0.digest.blake3 subject.0.digest.sha256 predicateType predicate
p.format p.format.major p.format.min_reader_minor p.format.writer_minor p.name p.series p.sequence p.supersedes
p.created p.tool p.tool.name p.tool.version p.requires p.sections p.sections.0.name p.sections.0.kind
p.sections.0.critical p.sections.0.codec p.sections.0.stored p.sections.0.stored.length p.sections.0.stored.blake3
p.sections.0.content p.sections.0.content.length p.sections.0.content.blake3 p.sections.0.content.sha256
p.content_root p.base p.base.name p.base.architecture p.base.architecture.model_type p.base.architecture.config
p.base.levels p.base.tensors p.base.tensors.0.name p.base.tensors.0.dtype p.base.tensors.0.shape
p.base.tensors.0.blake3 p.base.tensors.0.rows p.result p.result.tensors p.result.tensors.0.name
p.result.tensors.0.blake3 p.result.tensors.0.rows p.creation
""".split()


def manifests() -> None:
    other = lambda v: {str: 7, int: "1", list: {}, dict: [], bool: "true"}[type(v)]  # noqa: E731
    said = (
        lambda path: path.removeprefix("p.").replace(".0", "").replace(".", "-").replace("_", "-").strip("-")
    )  # noqa: E731
    for path in MEMBERS:
        each(
            f"manifest-{said(path)}", "manifest", "4.2" if "tensors" not in path else "8",
            {"missing": small(statement=put(path, GONE)), "wrong-type": small(statement=put(path, other))},
        )
    hexes = lambda n: [hashlib.sha256(bytes([i])).hexdigest() for i in range(n)]  # noqa: E731
    upper, t0 = str.upper, "p.base.tensors.0."
    cases: dict[str, tuple[str, Any]] = {
        "type-other": ("_type", "https://in-toto.io/Statement/v0.1"),
        "predicate-type-other": ("predicateType", "urn:nestpatch:safety-patch:v2"),
        "format-major-2": ("p.format.major", 2), "format-min-reader-not-the-headers": ("p.format.min_reader_minor", 1),
        "format-writer-not-the-headers": ("p.format.writer_minor", 1), "name-empty": ("p.name", ""),
        "name-201-bytes": ("p.name", "\u20ac" * 67), "name-control": ("p.name", "a\nb"),
        "name-delete": ("p.name", "a\x7fb"), "name-c1-control": ("p.name", "a\u009bb"),
        "series-empty": ("p.series", ""), "sequence-zero": ("p.sequence", 0), "sequence-negative": ("p.sequence", -1),
        "sequence-true": ("p.sequence", True), "sequence-null": ("p.sequence", None),
        "supersedes-twice": ("p.supersedes", hexes(1) * 2), "supersedes-65": ("p.supersedes", hexes(65)),
        "supersedes-upper-case": ("p.supersedes", [upper(hexes(1)[0])]),
        "supersedes-short": ("p.supersedes", ["ab" * 31]), "supersedes-not-hex": ("p.supersedes", ["xy" * 32]),
        "created-no-zone": ("p.created", "2026-11-24T00:00:00"),
        "created-offset": ("p.created", "2026-11-24T00:00:00+00:00"),
        "created-lower-case": ("p.created", "2026-11-24t00:00:00z"),
        "created-fraction": ("p.created", "2026-11-24T00:00:00.0Z"),
        "created-month-13": ("p.created", "2026-13-24T00:00:00Z"),
        "created-day-0": ("p.created", "2026-11-00T00:00:00Z"),
        "created-february-30": ("p.created", "2026-02-30T00:00:00Z"),
        "created-hour-24": ("p.created", "2026-11-24T24:00:00Z"),
        "created-second-60": ("p.created", "2026-11-24T23:59:60Z"), "requires-twice": ("p.requires", ["a", "a"]),
        "requires-65": ("p.requires", [f"r{i}" for i in range(65)]), "requires-empty-label": ("p.requires", [""]),
        "content-root-other": ("p.content_root", hexes(1)[0]), "content-root-upper-case": ("p.content_root", upper),
        "levels-without-exact": ("p.base.levels", ["architecture"]),
        "levels-twice": ("p.base.levels", ["exact", "exact"]), "levels-empty": ("p.base.levels", []),
        "config-257-keys": ("p.base.architecture.config", {f"k{i}": "1" for i in range(257)}),
        "config-key-empty": ("p.base.architecture.config", {"": "1"}),
        "config-value-number": ("p.base.architecture.config", {"a": 1}),
        "config-value-16385-bytes": ("p.base.architecture.config", {"a": "x" * 16385}),
        "tensor-dtype-unknown": (t0 + "dtype", "I16"), "tensor-dtype-lower-case": (t0 + "dtype", "bf16"),
        "tensor-shape-one-dimension": (t0 + "shape", [16]),
        "tensor-shape-nine-dimensions": (t0 + "shape", [4, 4] + [1] * 7), "tensor-shape-zero": (t0 + "shape", [4, 0]),
        "tensor-shape-negative": (t0 + "shape", [4, -4]), "tensor-shape-2-63-elements": (t0 + "shape", [2**31, 2**32]),
        "tensor-name-empty": (t0 + "name", ""), "tensor-name-control": (t0 + "name", "a\x07"),
        "tensor-name-513-bytes": (t0 + "name", "a" * 513), "base-tensors-empty": ("p.base.tensors", []),
        "result-tensors-other-order": ("p.result.tensors", lambda v: v[::-1]),
        "result-tensors-one-less": ("p.result.tensors", lambda v: v[:1]),
        "result-tensors-other-name": ("p.result.tensors.0.name", "a.weigh"),
        "base-tensor-blake3-upper-case": (t0 + "blake3", upper), "subject-empty": ("subject", []),
        "subject-one-less": ("subject", lambda v: v[:-1]), "subject-one-more": ("subject", lambda v: v + v[:1]),
        "subject-other-order": ("subject", lambda v: v[::-1]), "subject-other-name": ("subject.0.name", "row"),
        "subject-other-blake3": ("subject.0.digest.blake3", hexes(1)[0]),
        "subject-other-sha256": ("subject.2.digest.sha256", hexes(1)[0]),
    }
    two = ("result-tensors", "subject-other-sha256")
    each(
        "manifest", "manifest", "4.2",
        {name: (patch if name.startswith(two) else small)(statement=put(*change)) for name, change in cases.items()},
    )
    s = {
        name: patch(table=put(*change))
        for name, change in {
            "name-empty": ("0.name", ""), "name-control": ("0.name", "\r"), "name-twice": ("1.name", "rows"),
            "kind-twice": ("2.kind", "rows"), "rows-not-critical": ("0.critical", False),
            "deltas-not-critical": ("1.critical", False), "residual-critical": ("2.critical", True),
            "codec-empty": ("0.codec", ""), "stored-negative": ("0.stored.length", -1),
            "stored-over-1-gib": ("0.stored.length", 2**30 + 1), "content-over-1-gib": ("1.content.length", 2**30 + 1),
            "stored-sum-less": ("0.stored.length", lambda n: n - 1),
            "stored-sum-more": ("2.stored.length", lambda n: n + 1),
        }.items()
    }
    s |= {
        "rows-missing": patch(without="rows"), "deltas-missing": patch(without="deltas"),
        "payload-left-over": patch(payload=lambda b: b + b"\0"),
        "raw-lengths-differ": patch(codec={"deltas": "raw"}, table=put("1.content.length", lambda n: n + 1)),
        "65": small(extra=[extra(name=f"x{i}") for i in range(63)]),
        "raw-digests-differ": patch(codec={"deltas": "raw"}, table=put("1.content.blake3", hexes(1)[0])),
    }
    each("sections", "manifest", "4.2", s)
    each(
        "manifest", "ok", "11",
        {
            "unknown-members": patch(
                statement=lambda d: [
                    put(f"{path}more" if path else "more", [1])(d)
                    for path in (
                        "", "p.", "p.base.", "p.tool.", "p.sections.0.", "p.sections.0.stored.", "p.base.tensors.0.",
                        "p.base.architecture.", "p.result.", "subject.0.digest.", "p.format.",
                    )
                ]
                and None
            ),
            "unknown-level": patch(statement=put("p.base.levels", ["later", "exact"])),
            "unknown-ancillary-section": patch(extra=[extra()]),
            "unknown-kind-twice": patch(extra=[extra(), extra(name="again")]),
            "unknown-kind-unknown-codec": patch(extra=[extra(codec="brotli")]),
            "64-sections": patch(extra=[extra(name=f"x{i}") for i in range(61)]),
        },
    )
    each(
        "manifest", "ok", "4.2",
        {
            name: patch(statement=put(*change))
            for name, change in {
                "label-200-bytes": ("p.name", "\u20ac" * 66 + "ab"),
                "label-any-script": ("p.name", '\u05d0\u202e\U0001f600 \\"/'),
                "supersedes-64": ("p.supersedes", hexes(64)), "creation-empty": ("p.creation", {}),
                "sequence-greatest": ("p.sequence", 2**53 - 1), "config-empty": ("p.base.architecture.config", {}),
                "config-other": ("p.base.architecture.config", {"hidden_size": "5"}),
                "created-leap-day": ("p.created", "2028-02-29T23:59:59Z"), "exact-only": ("p.base.levels", ["exact"]),
            }.items()
        },
    )
    each(
        "apply-refused", "ok", "11",
        {
            "critical-unknown-section": patch(extra=[extra(critical=True)]),
            "requires-unknown": patch(statement=put("p.requires", ["two-auditors"])),
            "requires-64": patch(statement=put("p.requires", [f"r{i}" for i in range(64)])),
            "critical-unknown-codec": patch(table=put("1.codec", "brotli")),
        },
        apply="refuse",
    )
    add_vector("residual-unknown-codec", "ok", "11", patch(table=put("2.codec", "brotli")), revert="none")
    add_vector(
        "unknown-section-stored-bytes-other", "payload", "5", patch(extra=[extra()], payload=lambda b: b[:-1] + b"d")
    )


def frames() -> None:
    by = lambda **f: small(stored={"rows": lambda c: frame(c, **f)})  # noqa: E731
    of = lambda change: small(stored={"rows": change})  # noqa: E731
    skippable = bytes.fromhex("502a4d18") + b"\1\0\0\0x"
    each(
        "frame", "payload", "5",
        {
            "skippable-before": of(lambda c: skippable + frame(c)),
            "skippable-after": of(lambda c: frame(c) + skippable), "skippable-only": of(lambda c: skippable),
            "two": of(lambda c: frame(c[:9]) + frame(c[9:])), "empty-second": of(lambda c: frame(c) + frame(b"")),
            "byte-after": by(tail=b"\0"), "cut-short": of(lambda c: frame(c)[:-1]), "empty": of(lambda c: b""),
            "header-only": of(lambda c: frame(c)[:6]), "magic-other": of(lambda c: b"\x27" + frame(c)[1:]),
            "no-content-size": by(single=False, width=0), "content-size-more": of(lambda c: frame(c, size=len(c) + 1)),
            "content-size-less": of(lambda c: frame(c, size=len(c) - 1)),
            "gives-less": of(lambda c: frame(c, blocks=block(c[:-1]))),
            "gives-more": of(lambda c: frame(c, blocks=block(c + b"\0"))), "dictionary-id": by(bits=1, extra=b"\7"),
            "dictionary-id-zero": by(bits=1, extra=b"\0"), "unused-bit": by(bits=16), "reserved-bit": by(bits=8),
            "window-9-mib": by(single=False, window=13 << 3 | 1), "window-16-mib": by(single=False, window=14 << 3),
            "checksum-wrong": by(bits=4, tail=b"\0" * 4), "checksum-missing": by(bits=4),
            "reserved-block": of(lambda c: frame(c, blocks=block(c, kind=3))),
            "no-last-block": of(lambda c: frame(c, blocks=block(c, last=0))),
        },
    )
    level = lambda n, **more: (lambda c: zstandard.ZstdCompressor(level=n, **more).compress(c))  # noqa: E731
    each(
        "frame", "ok", "5",
        {
            "checksum": of(level(3, write_checksum=True)), "level-1": of(level(1)), "level-19": of(level(19)),
            "window-8-mib": by(single=False, window=13 << 3), "size-4-bytes": by(width=2),
            "size-in-window-form": by(single=False, window=0),
            "blocks": of(lambda c: frame(c, blocks=block(c[:9], 0) + block(b"", 0) + block(c[9:]))),
            "run-length-block": of(
                lambda c: frame(c, blocks=block(c[:10], 0) + block(c[10:11], 0, 1, 1) + block(c[11:]))
            ),
        },
        revert="none",
    )
    each(
        "codec", "ok", "5",
        {
            "raw": patch(codec=dict.fromkeys(("rows", "deltas", "residual"), "raw")),
            "zstd": patch(codec=dict.fromkeys(("rows", "deltas", "residual"), "zstd")),
            "float4": patch([B], codec={"deltas": "float4+zstd", "residual": "planes4+zstd"}),
            "planes2": patch(codec={"deltas": "planes2+zstd"}),
            "float2-residual": patch(codec={"residual": "float2+zstd"}),
        },
    )
    add_vector("sections-rows-over-160-mib", "payload", "10", patch(table=put("0.content.length", 167772161)))
    add_vector("codec-length-not-a-multiple", "payload", "5", patch(table=put("0.codec", "planes4+zstd")))
    for n, name in enumerate(("rows", "deltas", "residual")):
        each(
            f"digest-{name}", "payload", "4.2",
            {
                kind: patch(table=put(f"{n}.{path}", lambda v: ("0" if v[0] != "0" else "1") + v[1:]))
                for kind, path in {
                    "stored": "stored.blake3", "content-blake3": "content.blake3", "content-sha256": "content.sha256",
                }.items()
            },
        )


def sections() -> None:
    good = struct.pack("<Q", 2) + encode_edit(A) + encode_edit(B)
    at_a, at_b = 8, 8 + len(encode_edit(A))
    dims, codes = at_a + 17, at_a + 41  # after the name and type; after the shape
    change = {
        "empty": lambda c: b"", "no-edits": lambda c: bytes(8), "count-all-ones": overwrite(0, b"\xff" * 8),
        "count-32769": overwrite(0, struct.pack("<Q", 32769)), "byte-after": lambda c: c + b"\0",
        "cut-short": lambda c: c[:-1], "name-length-zero": lambda c: c[:8] + bytes(8) + c[24:],
        "name-length-all-ones": overwrite(8, b"\xff" * 8),
        "name-513-bytes": lambda c: c[:8] + struct.pack("<Q", 513) + b"a" * 513 + c[24:],
        "name-control": overwrite(16, b"\x1b"), "name-not-utf-8": overwrite(16, b"\xff"),
        "type-0": overwrite(24, b"\0"), "type-4": overwrite(24, b"\4"), "type-not-the-tensors": overwrite(24, b"\2"),
        "dimensions-1": lambda c: c[:25] + struct.pack("<QQ", 1, 16) + c[49:],
        "dimensions-9": lambda c: c[:25] + struct.pack("<10Q", 9, *[1] * 7, 4, 4) + c[49:],
        "dimension-zero": overwrite(33, bytes(8)), "dimensions-all-ones": overwrite(25, b"\xff" * 8),
        "shape-2-63-elements": overwrite(33, struct.pack("<QQ", 2**32, 2**31)),
        "shape-overflow": overwrite(33, struct.pack("<QQ", 2**33, 2**32)),
        "shape-not-the-tensors": overwrite(33, b"\5"), "columns-over-cap": overwrite(41, struct.pack("<Q", 2**20 + 1)),
        "tensor-rows-over-cap": overwrite(33, struct.pack("<Q", 2**32 + 1)), "layout-2": overwrite(49, b"\2"),
        "delta-type-0": overwrite(50, b"\0"), "delta-type-4": overwrite(50, b"\4"),
        "number-zero": lambda c: c[:51] + bytes(16) + c[91:], "number-all-ones": overwrite(51, b"\xff" * 8),
        "index-twice": overwrite(63, struct.pack("<I", 0)),
        "indices-descending": overwrite(63, struct.pack("<II", 3, 2)),
        "index-too-high": overwrite(67, struct.pack("<I", 4)),
        "clusters-one-less": lambda c: c[:71] + struct.pack("<Q", 2) + c[79:87] + c[91:],
        "clusters-one-more": lambda c: c[:71] + struct.pack("<Q", 4) + c[79:91] + bytes(4) + c[91:],
        "cluster-first-not-zero": overwrite(79, struct.pack("<III", 1, 0, 1)),
        "cluster-skipped": overwrite(83, struct.pack("<I", 2)), "cluster-all-ones": overwrite(87, b"\xff" * 4),
        "edits-descending": lambda c: c[:8] + c[at_b:] + c[at_a:at_b], "edit-twice": lambda c: c[:8] + c[at_a:at_b] * 2,
        "edit-left-out": lambda c: b"\1" + c[1:at_b],
    }
    assert len(good) == at_b + len(encode_edit(B)) and dims == 25 and codes == 49
    each(
        "rows", "payload", "6.1",
        {name: (patch if name.startswith("edit") else small)(content={"rows": hook}) for name, hook in change.items()},
    )
    t = "p.base.tensors."
    each(
        "base-tensors", "payload", "8",
        {
            "other-name": patch(
                statement=lambda d: put(t + "0.name", "a.other")(d) or put("p.result.tensors.0.name", "a.other")(d)
            ),
            "other-dtype": patch(statement=put(t + "0.dtype", "F16")),
            "other-shape": patch(statement=put(t + "0.shape", [2, 8])),
            "one-dimension-more": patch(statement=put(t + "0.shape", [1, 4, 4])),
            "one-less": patch(
                statement=lambda d: put("p.base.tensors", lambda v: v[:1])(d)
                or put("p.result.tensors", lambda v: v[:1])(d)
            ),
        },
    )
    value = lambda at, bits: patch(content={"deltas": overwrite(at, bits)}, codec={"deltas": "raw"})  # noqa: E731
    each(
        "deltas", "payload", "6.2",
        {
            "empty": patch(content={"deltas": lambda c: b""}),
            "value-less": patch(content={"deltas": lambda c: c[:-2]}),
            "value-more": patch(content={"deltas": lambda c: c + bytes(2)}), "infinity": value(0, b"\x80\x7f"),
            "minus-infinity": value(0, b"\x80\xff"), "nan": value(0, b"\xc0\x7f"),
            "nan-signalling": value(0, b"\x81\xff"), "negative-zero": value(0, b"\0\x80"),
            "negative-zero-f32": value(-4, b"\0\0\0\x80"), "infinity-f32": value(-4, b"\0\0\x80\x7f"),
        },
    )
    low = 3 * 4 * 2 + 3 * 4  # bytes of values; then 15 x 4 counts, low halves first
    res = lambda change: patch(content={"residual": change}, codec={"residual": "raw"})  # noqa: E731

    def move(c: bytes) -> bytes:
        """Says that the first row's first value lies in another lane: the sum is right, the lane is not."""
        counts = np.frombuffer(c[low : low + 120], "<u2").reshape(15, 4).copy()
        lane = int(np.argmax(counts[:, 0]))
        counts[lane, 0] -= 1
        counts[(lane + 1) % 15, 0] += 1
        return c[:low] + counts.tobytes() + c[low + 120 :]

    each(
        "residual", "payload", "6.3",
        {
            "empty": res(lambda c: b""), "byte-less": res(lambda c: c[:-1]),
            "two-bytes-more": res(lambda c: c + bytes(2)), "value-less": res(lambda c: c[2:]),
            "counts-too-high": res(overwrite(low, b"\xff\0")), "count-high-half": res(overwrite(-2, b"\1\0")),
            "counts-too-low": res(lambda c: c[:low] + bytes(240)),
        },
    )
    each("residual", "ok", "7", {"other-lane": res(move), "other-value": res(flip(0))}, revert="base")
    each("revert", "ok", "6.3", {"without-residual": patch(without="residual")}, revert="none")


def save(tensors: dict[str, tuple[str, tuple[int, ...], Words]], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at := at + bits.nbytes]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(bits.tobytes() for _, _, bits in tensors.values())


def bases(files: Files) -> None:
    """Checkpoint folders, and the vectors that are applied to them."""

    def folder(
        name: str, tensors: dict[str, Any], config: dict[str, Any] = CONFIG, metadata: dict[str, str] | None = None
    ) -> None:
        files[f"bases/{name}/config.json"] = json.dumps(config, indent=1, ensure_ascii=False).encode()
        files[f"bases/{name}/model.safetensors"] = save(tensors, metadata)

    def changed(name: str, at: int, bits: int) -> dict[str, Any]:
        dtype, shape, old = TENSORS[name]
        new = old.copy()
        new[at] = bits
        return TENSORS | {name: (dtype, shape, new)}

    a = TENSORS["a.weight"][2]
    nan = changed("a.weight", 2, 0x7FC0)
    folder("exact", TENSORS)
    folder("tensor-order-and-metadata", dict(list(TENSORS.items())[::-1]), metadata={"format": "pt"})
    folder("other-config", TENSORS, CONFIG | {"hidden_size": 5})
    folder("text-config", TENSORS, {"hidden_size": 99, "act": "x", "text_config": CONFIG})
    folder("untouched-tensor-differs", changed("untouched", 0, 1))
    folder("touched-row-differs", changed("a.weight", 0, int(a[0]) ^ 1))
    folder("untouched-row-differs", changed("a.weight", 4, int(a[4]) ^ 1))
    folder("sign-of-zero-differs", changed("a.weight", 1, 0))
    folder("tensor-missing", {k: v for k, v in TENSORS.items() if k != "b.weight"})
    folder("other-dtype", TENSORS | {"a.weight": ("F16", (4, 4), a)})
    folder("other-shape", TENSORS | {"a.weight": ("BF16", (2, 8), a)})
    folder("other-name-in-case", {k.replace("a.w", "A.w"): v for k, v in TENSORS.items()})
    folder("nan", nan)
    folder("nan-elsewhere", elsewhere := changed("a.weight", 4, 0x7FC0))
    shards = {
        "model-00001-of-00002.safetensors": ["untouched", "b.weight"],
        "model-00002-of-00002.safetensors": ["d.weight", "c.weight", "a.weight"],
    }
    files["bases/shards/config.json"] = files["bases/exact/config.json"]
    for shard, names in shards.items():
        files[f"bases/shards/{shard}"] = save({name: TENSORS[name] for name in names})
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    size = sum(bits.nbytes for _, _, bits in TENSORS.values())
    files["bases/shards/model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": size}, "weight_map": weight_map}
    ).encode()
    for name in ("tensor-order-and-metadata", "other-config", "text-config", "untouched-tensor-differs", "shards"):
        add_vector(f"base-{name}", "ok", "8", patch(), base=name)
    for name in (
        "touched-row-differs", "untouched-row-differs", "sign-of-zero-differs", "tensor-missing", "other-dtype",
        "other-shape", "other-name-in-case",
    ):
        add_vector(f"base-{name}", "base", "8", patch(), base=name)
    digest = lambda path: patch(statement=put(path, lambda v: ("0" if v[0] != "0" else "1") + v[1:]))  # noqa: E731
    each(
        "digest", "base", "8",
        {
            name.replace(".", "-").replace("p-", "").replace("tensors-", ""): digest(name)
            for name in (
                "p.base.tensors.0.blake3", "p.base.tensors.1.rows", "p.result.tensors.0.blake3",
                "p.result.tensors.1.rows",
            )
        },
        base="exact",
    )
    true_nan = patch(folds=[nan["a.weight"][2].copy(), TENSORS["b.weight"][2].copy()], lenient=True)
    add_vector("fold-nan-in-touched-row", "base", "7", true_nan, base="nan")
    add_vector(
        "fold-nan-in-untouched-row", "ok", "7",
        patch(folds=[elsewhere["a.weight"][2].copy(), TENSORS["b.weight"][2].copy()]), base="nan-elsewhere",
    )
    big = TENSORS["a.weight"][2].copy()
    big[0] = 0x7F7F
    folder("greatest", TENSORS | {"a.weight": ("BF16", (4, 4), big.copy())})
    each(
        "fold", "base", "7",
        {
            "overflow": patch(
                folds=[big.copy(), TENSORS["b.weight"][2].copy()], content={"deltas": overwrite(0, b"\x7f\x7f")},
                lenient=True,
            )
        },
        base="greatest",
    )
    numbers = {e.name: (e.dtype.name, e.shape, EXTREMES[e.name][0]) for e in X}
    folder("extremes", numbers)
    extremes = patch(X, folds=[bits.copy() for _, _, bits in numbers.values()])
    add_vector("fold-all-magnitudes-and-types", "ok", "7", extremes, base="extremes")
    each(
        "apply", "ok", "7",
        {
            "three-types": patch([A, B, C, D]), "one-tensor": patch([D]), "columns-of-matrices": patch([C]),
            "delta-wider-than-tensor": patch([D], codec={"deltas": "float4+zstd"}),
        },
    )
    texts = {
        "rope_theta": "10000", "eps": "f64:3ee4f8b588e368f1", "tie": "false", "hidden_size": "4", "absent": "null",
        "act": '"gel\u00fc\x7f/\\n\\"\\u0001"', "rope": '{"a":"x","b":[1,f64:4004000000000000,null]}',
    }
    configured = lambda t: patch(statement=put("p.base.architecture.config", t))  # noqa: E731
    each(
        "architecture", "ok", "8", {"config-texts": configured(texts)}, base="touched-row-differs", level="architecture"
    )
    each("architecture", "ok", "8", {"text-config-first": configured(texts)}, base="text-config", level="architecture")
    each("architecture", "base", "8", {"config-differs": patch()}, base="other-config", level="architecture")
    each(
        "architecture", "base", "8",
        {
            f"config-{n}": configured({k: v})
            for n, k, v in (
                ("number-as-float", "rope_theta", "10000.0"), ("absent-key-listed", "absent", "0"),
                ("slash-escaped", "act", texts["act"].replace("/", "\\/")), ("boolean-as-number", "tie", "0"),
            )
        },
        base="exact", level="architecture",
    )
    each(
        "architecture", "base", "8", {"not-permitted": patch(statement=put("p.base.levels", ["exact"]))},
        base="touched-row-differs", level="architecture",
    )


KEYS = [
    ("a key", spki(ALICE.public), False), ("a key with a torsion component", spki(MIXED), False),
    ("the neutral element", spki(bytes([1]) + bytes(31)), True),
    ("order 2", spki((P - 1).to_bytes(32, "little")), True), ("order 4", spki(bytes(32)), True),
    ("order 8", spki(encode_point(TORSION)), True), ("sign on x = 0", spki(bytes([1]) + bytes(30) + b"\x80"), True),
    ("y = p + 1", spki((P + 1).to_bytes(32, "little")), True),
    ("y = p + 3, of large order", spki((P + 3).to_bytes(32, "little")), True),
    ("no point", spki(bytes([2]) + bytes(31)), True), ("31 bytes", spki(ALICE.public[:31]), True),
    ("33 bytes", spki(ALICE.public + b"\0"), True),
    (
        "another algorithm (X25519)", base64.b64encode(SPKI_PREFIX.replace(b"\x70", b"\x6e") + ALICE.public).decode(),
        True,
    ),
]


def trust(threshold: int, **people: list[bytes]) -> bytes:
    keys = "".join(
        f'\n[[people]]\nname = "{name}"\nkeys = {json.dumps([spki(k) for k in keys])}\n'
        for name, keys in people.items()
    )
    return (
        f"# Keys of fixed seeds, for tests. Trust none of them.\nversion = 1\nthreshold = {threshold}\n{keys}".encode()
    )


def make() -> Files:
    """Every file below the folder, by its path there."""
    files: Files = {
        "trust.toml": trust(1, alice=[ALICE.public]),
        "one-of-two.toml": trust(1, alice=[ALICE.public], bob=[BOB.public]),
        "two.toml": trust(2, alice=[ALICE.public, ALICE_2.public], bob=[BOB.public]),
        "mixed-order.toml": trust(1, alice=[MIXED]),
    }
    VECTORS.clear()
    containers()
    signatures()
    json_rules()
    manifests()
    frames()
    sections()
    bases(files)
    index = {
        "vectors": [entry for entry, _ in VECTORS.values()],
        "keys": [{"rule": r, "key": k, "refused": bad} for r, k, bad in KEYS],
    }
    files |= {f"{name}.nestpatch": data for name, (_, data) in VECTORS.items()}
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"  # noqa: E731
    files["index.json"] = (
        "{" + ",\n".join(f'"{name}": {lines(rows)}' for name, rows in index.items()) + "}\n"
    ).encode()
    return files


def main() -> int:
    files = make()
    if "--check" not in sys.argv:
        for path, data in files.items():
            (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / path).write_bytes(data)
    disk = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    wrong = [path for path in sorted(files.keys() | disk.keys()) if files.get(path) != disk.get(path)]
    print(
        f"{len(VECTORS)} vectors, {len(files)} files, {sum(map(len, files.values()))} bytes;",
        "differ: " + " ".join(wrong) if wrong else "all as written",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
