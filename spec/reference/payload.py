"""The payload: codecs (section 5), sections (6), arithmetic (7), digests over tensors (8). Failure class `payload`."""
from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from container import Container, Refused
from manifest import KNOWN_KINDS, MAX_EDITS, is_shape, is_tensor_name

MAX_ROWS_SECTION_BYTES, MAX_WINDOW, LANES = 160 << 20, 8 << 20, 15
MAX_ROWS, MAX_COLS, MAX_TENSOR_ROWS = 1 << 24, 1 << 20, 1 << 32
CODEC = re.compile(r"raw|zstd|(planes|float)([24])\+zstd")
Words = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Dtype:
    """An element type: its code in `rows`, its width in bytes, and where the exponent field lies."""

    name: str
    code: int
    width: int
    exponent_shift: int
    exponent_mask: int

    @property
    def words(self) -> str:
        return f"<u{self.width}"

    def to_f32(self, bits: Words) -> NDArray[np.float32]:
        if self.name == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.view("<f2").astype(np.float32) if self.name == "F16" else bits.view("<f4")

    def round(self, values: NDArray[np.float32]) -> Words:
        """To nearest, ties to even; overflow gives infinity. There is no NaN here."""
        bits = values.view(np.uint32)
        if self.name == "BF16":
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(self.words)
        with np.errstate(over="ignore"):
            return values.astype("<f2").view("<u2") if self.name == "F16" else bits

    def exponent(self, bits: Words) -> NDArray[np.int64]:
        return (bits.astype(np.int64) >> self.exponent_shift) & self.exponent_mask

    def is_finite(self, bits: Words) -> bool:
        return bool((self.exponent(bits) != self.exponent_mask).all())


DTYPES = [Dtype("BF16", 1, 2, 7, 255), Dtype("F16", 2, 2, 10, 31), Dtype("F32", 3, 4, 23, 255)]
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_CODE = {dtype.code: dtype for dtype in DTYPES}


def refuse(text: str) -> Refused:
    return Refused("payload", text)


def frame_content_size(frame: bytes) -> int:
    """The declared size of exactly one zstd frame (RFC 8878, 3.1.1) that fills the bytes and obeys section 5."""
    try:
        if frame[:4] != bytes.fromhex("28b52ffd"):
            raise refuse("not a zstd frame")
        descriptor, at = frame[4], 5
        single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        if descriptor & 0b11011:
            raise refuse("dictionary id, reserved or unused bits in the frame's descriptor")
        window = 0
        if not single:
            base = 1 << 10 + (frame[at] >> 3)
            window, at = base + base // 8 * (frame[at] & 7), at + 1
        length = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        if not length:
            raise refuse("the frame does not declare its content size")
        size = int.from_bytes(frame[at : at + length], "little") + (256 if length == 2 else 0)
        if max(window, size if single else 0) > MAX_WINDOW:
            raise refuse("the frame's window is over 8 MiB")
        at, last = at + length, 0
        while not last:
            header = int.from_bytes(frame[at : at + 3], "little") if at + 3 <= len(frame) else frame[at + 3]
            last, kind, length = header & 1, header >> 1 & 3, header >> 3
            at += 3 + (1 if kind == 1 else length)
    except IndexError as error:
        raise refuse("the frame is cut short") from error
    if at + 4 * checksum != len(frame):
        raise refuse("the frame does not fill the stored bytes")
    return size


def decode(codec: str, stored: bytes, length: int) -> bytes:
    """Section 5: stored bytes to exactly `length` bytes of content."""
    if codec == "raw":
        return stored
    if frame_content_size(stored) != length:
        raise refuse("the frame declares another content size than the manifest")
    try:
        data = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise refuse(str(error)) from error
    if len(data) != length:
        raise refuse(f"the frame gives {len(data)} bytes, not {length}")
    if codec == "zstd":
        return data
    width = int(codec.split("+")[0][-1])
    if length % width:
        raise refuse(f"{length} bytes are no words of {width} bytes")
    words = np.frombuffer(data, np.uint8).reshape(width, -1)[::-1].T.copy().view(f"<u{width}").ravel()
    if codec.startswith("float"):
        words = words >> 1 | words << width * 8 - 1
    return words.astype(f"<u{width}").tobytes()


@dataclass(frozen=True)
class Edit:
    """One tensor's edit, section 6.1."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    layout: int
    delta_dtype: Dtype
    rows: NDArray[np.uint32]
    clusters: NDArray[np.uint32]

    @property
    def cols(self) -> int:
        return self.shape[-1 - self.layout]

    def take(self, tensor: Words) -> Words:
        """The edited rows of a tensor, one below the other."""
        return self._view(tensor)[self._index()]

    def put(self, tensor: Words, rows: Words) -> None:
        self._view(tensor)[self._index()] = rows

    def _view(self, tensor: Words) -> Words:
        if self.layout == 0:
            return tensor.reshape(-1, self.cols)
        return tensor.reshape(-1, self.cols, self.shape[-1]).transpose(0, 2, 1)

    def _index(self) -> Any:
        return self.rows if self.layout == 0 else (self.rows // self.shape[-1], self.rows % self.shape[-1])

    def head(self) -> bytes:
        dims = struct.pack(f"<Q{len(self.shape)}Q", len(self.shape), *self.shape)
        return text(self.name) + text(self.dtype.name) + dims

    def tensor_digest(self, tensor: Words) -> str:
        digest = blake3(derive_key_context="nestpatch v1 2026-11-24 tensor content")
        return digest.update(self.head()).update(tensor.tobytes()).hexdigest()

    def rows_digest(self, tensor: Words) -> str:
        digest = blake3(derive_key_context="nestpatch v1 2026-11-24 touched rows")
        digest.update(self.head() + struct.pack("<BQ", self.layout, len(self.rows)) + self.rows.astype("<u4").tobytes())
        return digest.update(self.take(tensor).tobytes()).hexdigest()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


class Reader:
    """Bytes from the front; running out is an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise refuse(f"rows: {n} bytes expected at {self.at}, {len(self.data) - self.at} left")
        self.at += n
        return self.data[self.at - n : self.at]

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def numbers(self, kind: str) -> NDArray[Any]:
        return np.frombuffer(self.take(self.integer(8) * int(kind[-1])), kind)


def read_rows(content: bytes) -> list[Edit]:
    """Section 6.1."""
    reader = Reader(content)
    count, edits = reader.integer(8), []
    if not 1 <= count <= MAX_EDITS:
        raise refuse(f"rows: {count} edits")
    for _ in range(count):
        edits.append(read_edit(reader))
        if len(edits) > 1 and edits[-1].name.encode() <= edits[-2].name.encode():
            raise refuse("rows: names are not strictly ascending")
    if reader.at != len(content) or sum(len(edit.rows) for edit in edits) > MAX_ROWS:
        raise refuse("rows: bytes left over, or too many rows")
    return edits


def read_edit(reader: Reader) -> Edit:
    name_bytes, dtype, shape = reader.take(reader.integer(8)), reader.integer(1), reader.numbers("<u8").tolist()
    layout, delta_dtype = reader.integer(1), reader.integer(1)
    rows, clusters = reader.numbers("<u4"), reader.numbers("<u4")
    try:
        name = name_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse("rows: a name is not UTF-8") from error
    known = dtype in BY_CODE and delta_dtype in BY_CODE and layout in (0, 1)
    if not known or not is_tensor_name(name) or not is_shape(shape):
        raise refuse(f"rows: name, element type, layout or shape of {name!r}")
    edit = Edit(name, BY_CODE[dtype], tuple(shape), layout, BY_CODE[delta_dtype], rows, clusters)
    number = prod(shape) // edit.cols
    if edit.cols > MAX_COLS or number > MAX_TENSOR_ROWS:
        raise refuse(f"rows: {name} has too many rows or columns")
    if not len(rows) or (np.diff(rows.astype(np.int64)) <= 0).any() or rows[-1] >= number:
        raise refuse(f"rows: indices of {name}")
    before = np.maximum.accumulate(np.concatenate([[-1], clusters.astype(np.int64)]))
    if len(clusters) != len(rows) or (clusters > before[:-1] + 1).any():
        raise refuse(f"rows: clusters of {name} are not numbered by first use")
    return edit


def read_deltas(content: bytes, edits: list[Edit]) -> list[Words]:
    """Section 6.2: for each edit, a delta for each cluster."""
    deltas, at = [], 0
    for edit in edits:
        number = (int(edit.clusters.max()) + 1) * edit.cols
        end = at + number * edit.delta_dtype.width
        if end > len(content):
            raise refuse("deltas: too short")
        bits = np.frombuffer(content[at:end], edit.delta_dtype.words)
        if not edit.delta_dtype.is_finite(bits) or (bits == 1 << edit.delta_dtype.width * 8 - 1).any():
            raise refuse(f"deltas: {edit.name}: not finite, or negative zero")
        deltas.append(bits.reshape(-1, edit.cols))
        at = end
    if at != len(content):
        raise refuse("deltas: bytes left over")
    return deltas


Residual = list[list[list[Words]]]  # for each edit, each row, each lane: values


def read_residual(content: bytes, edits: list[Edit]) -> Residual:
    """Section 6.3."""
    cols = np.concatenate([np.full(len(edit.rows), edit.cols) for edit in edits])
    total = sum(len(edit.rows) * edit.cols * edit.dtype.width for edit in edits)
    if len(content) != total + LANES * len(cols) * 4:
        raise refuse("residual: length")
    halves = np.frombuffer(content[total:], "<u2").astype(np.int64).reshape(2, LANES, len(cols))
    counts = halves[0] | halves[1] << 16
    if (counts.sum(axis=0) != cols).any():
        raise refuse("residual: a row's counts do not add up to its length")
    residual: Residual = [[[] for _ in edit.rows] for edit in edits]
    at = 0
    for lane in range(LANES):
        numbers = iter(counts[lane])
        for edit, rows in zip(edits, residual):
            for row in rows:
                end = at + int(next(numbers)) * edit.dtype.width
                row.append(np.frombuffer(content[at:end], edit.dtype.words))
                at = end
    return residual


def fold(edit: Edit, old: Words, deltas: Words) -> Words:
    """Section 7: rows to new rows; one delta per row."""
    with np.errstate(over="ignore"):
        total = edit.dtype.to_f32(old) + edit.delta_dtype.to_f32(deltas)
    if edit.dtype.is_finite(old):
        new = np.where(deltas == 0, old, edit.dtype.round(total)).astype(edit.dtype.words)
    if not edit.dtype.is_finite(old) or not edit.dtype.is_finite(new):
        raise Refused("base", f"{edit.name}: a touched row has, or would get, a NaN or an infinity")
    return new


def guess_and_lanes(edit: Edit, new: Words, deltas: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    with np.errstate(over="ignore"):
        difference = edit.dtype.to_f32(new) - edit.delta_dtype.to_f32(deltas)
    guess = np.where(deltas == 0, new, edit.dtype.round(difference)).astype(edit.dtype.words)
    above = edit.dtype.exponent(new) - edit.dtype.exponent(guess)
    lanes = np.where(above < 0, 0, 1 + 2 * np.minimum(above, 6) + (new & 1))
    return guess.astype(np.int64), lanes


def unfold(edit: Edit, new: Words, deltas: Words, residual: list[list[Words]]) -> Words:
    """Section 7: patched rows to the rows they were folded from."""
    if not edit.dtype.is_finite(new):
        raise Refused("base", f"{edit.name}: a patched row has a NaN or an infinity")
    guess, lanes = guess_and_lanes(edit, new, deltas)
    value = np.zeros(new.shape, np.int64)
    for row, by_lane in enumerate(residual):
        for lane, values in enumerate(by_lane):
            here = lanes[row] == lane
            if here.sum() != len(values):
                raise Refused("base", f"{edit.name}: row {edit.rows[row]} is not the one that was folded")
            value[row][here] = values
    s = np.where(value % 2 == 0, value >> 1, -(value + 1 >> 1))
    old = ((guess + s) % (1 << edit.dtype.width * 8)).astype(edit.dtype.words)
    if not edit.dtype.is_finite(old):
        raise Refused("base", f"{edit.name}: a restored row has a NaN or an infinity")
    return old


@dataclass(frozen=True)
class Payload:
    """What the sections say. `refusals`: why a reader that verifies this must not apply it (section 11)."""

    refusals: list[str]
    edits: list[Edit]
    deltas: list[Words]
    residual: Residual | None


def read_payload(container: Container, statement: dict[str, Any]) -> Payload:
    """Section 9, step 4."""
    predicate, stored, at = statement["predicate"], {}, 0
    for line in predicate["sections"]:
        stored[line["name"]] = container.payload[at : at + line["stored"]["length"]]
        at += line["stored"]["length"]
        if blake3(stored[line["name"]]).hexdigest() != line["stored"]["blake3"]:
            raise refuse(f"{line['name']}: stored bytes are not the ones that were signed")
    refusals = [f"requires {name}" for name in predicate["requires"]]
    contents = {}
    for line in predicate["sections"]:
        if line["kind"] in KNOWN_KINDS and CODEC.fullmatch(line["codec"]):
            if line["kind"] == "rows" and line["content"]["length"] > MAX_ROWS_SECTION_BYTES:
                raise refuse("rows: section too long")
            content = decode(line["codec"], stored[line["name"]], line["content"]["length"])
            if blake3(content).hexdigest() != line["content"]["blake3"] \
                    or hashlib.sha256(content).hexdigest() != line["content"]["sha256"]:
                raise refuse(f"{line['name']}: content is not the one that was signed")
            contents[line["kind"]] = content
        elif line["critical"]:
            refusals.append(f"critical section {line['name']} of kind {line['kind']}, codec {line['codec']}")
    edits = read_rows(contents["rows"]) if "rows" in contents else []
    described = [(t["name"], t["dtype"], tuple(t["shape"])) for t in predicate["base"]["tensors"]]
    if "rows" in contents and [(e.name, e.dtype.name, e.shape) for e in edits] != described:
        raise refuse("the edits are not base.tensors")
    deltas = read_deltas(contents["deltas"], edits) if edits and "deltas" in contents else []
    residual = read_residual(contents["residual"], edits) if edits and "residual" in contents else None
    return Payload(refusals, edits, deltas, residual)
